"""Checks of the labels: missing, lopsided, too few, or given away by the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from finesmith.data.audit_rows import Rows, excerpt, excerpts, finding, row_count, share
from finesmith.data.near_duplicates import normalise
from finesmith.data.split import FEWEST_UNITS, units
from finesmith.types import Action, Finding

LOPSIDED = 3
VERY_LOPSIDED = 10
FEW_ROWS = 10
UNREADABLE = 0.05
"""Above this share of the labels that are written, those that are no numbers are not missing but wrong."""

MARKER_ROWS = 20
"""A mark must stand in this many rows,"""
MARKER_PRECISION = 0.98
"""be followed by one label this often,"""
MARKER_LIFT = 20
"""be wrong so many times less often than naming that label always,"""
MARKER_COVERAGE = 0.2
"""and stand in this share of the label's rows;"""
WORD_COVERAGE = 0.15
"""an ordinary word must settle the label of this share of all rows,"""
NAME_COVERAGE = 0.5
"""and the labels' own names must stand in half of all rows, each in its own label's."""


def missing_labels(rows: Rows, action: Action) -> Finding | None:
    """Find rows without a label or, where numbers are wanted, with something else."""
    if rows.examples.labels is None:
        return None
    found = [row for row, label in enumerate(rows.answers) if label is None]
    if not found:
        return None
    unreadable = [row for row in found if _is_written(rows.examples.labels[row])]
    message = f"{row_count(len(found))} ({share(len(found), len(rows))}) have no label"
    if unreadable:
        message += f" that is a number ({len(unreadable):,} hold something else)"
    return finding(
        rows,
        "missing_labels",
        "error" if len(unreadable) > UNREADABLE * (len(rows) - len(found) + len(unreadable)) else "warning",
        message,
        found,
        action=action,
        remedy="fill them in; rows without a label cannot train or measure a model",
        details={"not_a_number": len(unreadable)},
        examples=excerpts(rows, unreadable or found),
    )


def _is_written(label: object) -> bool:
    return isinstance(label, str) and bool(label.strip()) and label.strip().casefold() not in {"nan", "inf", "-inf"}


def _counts(rows: Rows) -> Counter[str]:
    return Counter(name for label in rows.answers if label for name in label)


def imbalance(rows: Rows, action: Action) -> Finding | None:
    """Compare the largest class with the smallest."""
    counts = _counts(rows)
    if rows.kind == "number" or len(counts) < 2:
        return None
    (largest, most), (smallest, fewest) = counts.most_common()[0], counts.most_common()[-1]
    if most < LOPSIDED * fewest:
        return None
    return finding(
        rows,
        "imbalance",
        "warning" if most >= VERY_LOPSIDED * fewest else "info",
        f"the largest class, {excerpt(largest, 40)}, has {most / fewest:.1f} times the rows of the smallest, "
        f"{excerpt(smallest, 40)} ({most:,} and {fewest:,})",
        [],
        action=action,
        remedy="`train.class_weights: balanced` weighs rare classes up; read macro-F1 rather than accuracy",
        details={"classes": dict(counts.most_common(200)), "ratio": most / fewest, "majority": most / counts.total()},
    )


def small_classes(rows: Rows, action: Action) -> Finding | None:
    """Find classes with fewer than three independent examples: they cannot be in train, validation and test."""
    if rows.kind == "number" or rows.examples.labels is None:
        return None
    together = units(rows.clusters, rows.examples.groups).tolist()
    members: dict[str, set[int]] = {}
    for row, label in enumerate(rows.answers):
        for name in label or ():
            members.setdefault(name, set()).add(together[row])
    counts = _counts(rows)
    small = {name: len(independent) for name, independent in members.items() if len(independent) < FEWEST_UNITS}
    if not small:
        return None
    found = [row for row, label in enumerate(rows.answers) if label and any(name in small for name in label)]
    names = ", ".join(f"{excerpt(name, 40)} ({number})" for name, number in sorted(small.items())[:5])
    return finding(
        rows,
        "small_classes",
        "warning",
        f"{len(small):,} of {len(counts):,} classes have fewer than {FEWEST_UNITS} independent examples and cannot be "
        f"split: {names}{' and others' if len(small) > 5 else ''}",
        found,
        action=action,
        remedy="gather more, merge classes, or `data.audit.small_classes: drop`; kept ones are never measured",
        details={
            "classes": dict(sorted(small.items())[:200]),
            "under_10_rows": sum(1 for number in counts.values() if number < FEW_ROWS),
        },
    )


@dataclass(frozen=True, slots=True)
class _Mark:
    """A sign in the text that settles the label."""

    sign: str
    label: str
    rows: int
    precision: float
    coverage: float


def label_in_text(rows: Rows, action: Action) -> Finding | None:
    """Find signs in the texts that give the label away: its own name, or a mark such as "[SPAM]" or "5/5".

    A class may well have words of its own, so an ordinary word counts only when it alone settles a large part of all
    rows, and the labels' names only when they stand in half of all rows, each in its own class.
    """
    if rows.examples.labels is None or rows.kind == "number":
        return _number_in_text(rows, action)
    if len(_counts(rows)) < 2:
        return None
    marks = sorted([*_marks(rows), *_names(rows)], key=lambda mark: (-mark.rows, mark.sign))
    if not marks:
        return None
    found = [
        row
        for row, label in enumerate(rows.answers)
        if label
        and any(
            mark.label in label and (mark.sign in rows.contents[row] or mark.sign in rows.normalised[row])
            for mark in marks
        )
    ]
    shown = "; ".join(
        f"'{excerpt(mark.sign, 40)}' in {100 * mark.coverage:.0f} % of {excerpt(mark.label, 40)} and, of its rows, "
        f"{100 * mark.precision:.0f} % are that"
        for mark in marks[:3]
    )
    message = f"the text gives the label away: a sign in it settles the label of {row_count(len(found))}"
    return _leak(rows, action, message, found, marks, shown)


def _leak(
    rows: Rows, action: Action, message: str, found: list[int], marks: Iterable[_Mark], shown: str = ""
) -> Finding:
    signs = [
        {"sign": excerpt(mark.sign, 40), "label": excerpt(mark.label, 40), "rows": mark.rows}
        | {"precision": round(mark.precision, 4), "coverage": round(mark.coverage, 4)}
        for mark in marks
    ]
    return finding(
        rows,
        "label_in_text",
        "error",
        message,
        found,
        action=action,
        remedy="if the mark is absent when the model is used, take it out of the text before training",
        shows=shown,
        details={"marks": signs[:50]},
        examples=excerpts(rows, found),
    )


def _marks(rows: Rows) -> list[_Mark]:
    """Find single pieces of text (between white space) whose presence settles the label."""
    import numpy as np

    labels = _counts(rows)
    number = {name: place for place, name in enumerate(labels)}
    pieces: dict[str, int] = {}
    codes: list[int] = []
    totals: Counter[int] = Counter()
    labelled = 0
    for text, label in zip(rows.contents, rows.answers, strict=True):
        if not label:
            continue
        labelled += 1
        inside = {pieces.setdefault(piece, len(pieces)) for piece in set(text.split()) if len(piece) <= 40}
        totals.update(inside)
        for name in label:
            codes += [piece * len(labels) + number[name] for piece in inside]
    if not codes:
        return []
    pairs, together = np.unique(np.asarray(codes, np.int64), return_counts=True)
    spelled, named = list(pieces), list(labels)
    marks = []
    for pair, count in zip(pairs.tolist(), together.tolist(), strict=True):
        if count < MARKER_ROWS:
            continue
        sign, label_name = spelled[pair // len(named)], named[pair % len(named)]
        mark = _Mark(sign, label_name, count, count / totals[pair // len(named)], count / labels[label_name])
        if 1 - mark.precision <= (1 - labels[label_name] / labelled) / MARKER_LIFT and _gives_away(mark, labelled):
            marks.append(mark)
    return marks


def _gives_away(mark: _Mark, labelled: int) -> bool:
    if mark.precision < MARKER_PRECISION or mark.coverage < MARKER_COVERAGE:
        return False
    # "[SPAM]", "5/5", "#pos" and "label=1" are marks; "don't", "top-up" and "(maybe)" are words.
    bare = mark.sign.strip(".,;:!?\"'()’‘“”…")
    ordinary = bare == "" or re.fullmatch(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*", bare) is not None
    return not ordinary or mark.rows >= WORD_COVERAGE * labelled


def _names(rows: Rows) -> list[_Mark]:
    """Find labels whose own name stands in most of their rows and hardly elsewhere."""
    labels = _counts(rows)
    spelled = {name: normalise(re.sub(r"[_/-]+", " ", name)) for name in labels}
    patterns = {
        name: re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)") for name, phrase in spelled.items() if len(phrase) >= 3
    }
    if not patterns:
        return []
    own: Counter[str] = Counter()
    for text, label in zip(rows.normalised, rows.answers, strict=True):
        own.update(name for name in label or () if name in patterns and patterns[name].search(text))
    marks = []
    for name, inside in own.items():
        if inside < NAME_COVERAGE * labels[name]:
            continue
        pattern, phrase = patterns[name], spelled[name]
        holding = sum(
            1
            for text, label in zip(rows.normalised, rows.answers, strict=True)
            if label and phrase in text and pattern.search(text)
        )
        if inside / holding >= 0.9:
            marks.append(_Mark(phrase, name, inside, inside / holding, inside / labels[name]))
    enough = sum(mark.rows for mark in marks) >= NAME_COVERAGE * labels.total()
    return marks if enough and sum(mark.rows for mark in marks) >= MARKER_ROWS else []


def _number_in_text(rows: Rows, action: Action) -> Finding | None:
    """Find ratings written in the text: far more rows hold their own number than would hold another row's."""
    import numpy as np

    numbered = [row for row, label in enumerate(rows.answers) if label]
    if not numbered:
        return None
    inside = {row: set(re.findall(r"\d+(?:\.\d+)?", rows.contents[row])) for row in numbered}
    written = {row: (rows.answers[row] or ("",))[0] for row in numbered}
    found = [row for row in numbered if written[row] in inside[row]]
    shuffled = np.random.default_rng(0).permutation(numbered).tolist()
    chance = sum(1 for row, other in zip(numbered, shuffled, strict=True) if written[other] in inside[row])
    if len(found) - chance < max(MARKER_ROWS, MARKER_COVERAGE * len(numbered)):
        return None
    mark = _Mark(
        "the number itself", "every value", len(found), len(found) / (len(found) + chance), len(found) / len(numbered)
    )
    message = (
        f"{row_count(len(found))} ({share(len(found), len(numbered))}) hold their own label as a number; by chance it "
        f"would be {chance:,}"
    )
    return _leak(rows, action, message, found, [mark])
