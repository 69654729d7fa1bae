"""Checks of the texts themselves: empty, broken, foreign, personal, too long, too much alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from finesmith.data.audit_rows import Rows, excerpts, finding, row_count, share
from finesmith.data.clean import broken_encoding as is_broken
from finesmith.data.clean import has_html
from finesmith.data.language import detect_many
from finesmith.data.near_duplicates import words
from finesmith.data.personal import find_many
from finesmith.types import Action, Finding

LANGUAGE_ROWS = 50_000
DIVERSITY_WINDOW = 1_000
DIVERSITY_WORDS = 5_000_000
POOR = 0.1


def empty(rows: Rows, action: Action) -> Finding | None:
    """Find rows without a letter, a digit or a picture."""
    found = [row for row in range(len(rows)) if rows.blank[row]]
    if not found:
        return None
    return finding(
        rows,
        "empty",
        "warning",
        f"{row_count(len(found))} ({share(len(found), len(rows))}) are empty, white space or punctuation only",
        found,
        action=action,
        remedy="`data.audit.empty: keep` trains on them all the same",
    )


def broken_encoding(rows: Rows, action: Action) -> Finding | None:
    """Find mojibake and lost characters."""
    return _by_text(
        rows,
        "broken_encoding",
        is_broken,
        "hold characters read in the wrong encoding",
        action,
        "`data.audit.broken_encoding: fix` restores what can be restored",
    )


def html(rows: Rows, action: Action) -> Finding | None:
    """Find HTML tags and entities."""
    return _by_text(
        rows, "html", has_html, "hold HTML tags or entities", action, "`data.audit.html: fix` keeps the text alone"
    )


def _by_text(
    rows: Rows, kind: str, faulty: Callable[[str], bool], what: str, action: Action, remedy: str
) -> Finding | None:
    found = [row for row, text in enumerate(rows.contents) if faulty(text)]
    if not found:
        return None
    message = f"{row_count(len(found))} ({share(len(found), len(rows))}) {what}"
    return finding(rows, kind, "warning", message, found, action=action, remedy=remedy)


def mixed_language(rows: Rows, action: Action) -> Finding | None:
    """Name the languages; rows in another than the commonest are flagged when theirs is more than a stray guess.

    Of more than 50,000 rows a seeded sample of so many is read, unless the rows are to be dropped.
    """
    import numpy as np

    looked = np.arange(len(rows))
    if len(rows) > LANGUAGE_ROWS and action != "drop":
        looked = np.sort(np.random.default_rng(0).choice(len(rows), LANGUAGE_ROWS, replace=False))
    languages = dict(zip(looked.tolist(), detect_many(rows.contents[int(row)] for row in looked), strict=True))
    counts = Counter(name for name in languages.values() if name)
    if not counts:
        return None
    known = counts.total()
    main = counts.most_common(1)[0][0]
    others = {name for name, number in counts.items() if name != main and number >= max(5, known / 500)}
    found = [row for row, name in languages.items() if name in others]
    shares = {name: round(number / known, 4) for name, number in counts.most_common(10)}
    message = f"the texts are in {main} ({share(counts[main], known)} of those whose language can be told)"
    if found:
        message = f"{row_count(len(found))} are not in {main}: " + ", ".join(
            f"{name} {counts[name]:,}" for name in sorted(others, key=lambda name: -counts[name])
        )
    if len(looked) < len(rows):
        message += f"; seen in a sample of {len(looked):,}"
    return finding(
        rows,
        "mixed_language",
        "warning" if len(found) > known / 100 else "info",
        message,
        found,
        action=action if found else "keep",
        remedy=f"`data.audit.mixed_language: drop` keeps {main} and what cannot be told" if found else "",
        details={"main": main, "shares": shares, "looked_at": len(looked), "unclear": len(looked) - known},
        examples=excerpts(rows, found, language=languages),
    )


def personal_data(rows: Rows, action: Action) -> Finding | None:
    """Find e-mail addresses, telephone and card numbers and their like, by rules, in every row."""
    spans = find_many(rows.contents)
    found = [row for row, inside in enumerate(spans) if inside]
    if not found:
        return None
    kinds = {row: sorted({span.kind for span in spans[row]}) for row in found}
    by_kind = Counter(kind for inside in kinds.values() for kind in inside)
    # What is personal is not shown in a report.
    hidden = tuple(
        {"id": int(rows.examples.ids[row]), "text": ", ".join(f"[{kind.upper()}]" for kind in kinds[row])}
        for row in found[:5]
    )
    return finding(
        rows,
        "personal_data",
        "warning",
        f"{row_count(len(found))} ({share(len(found), len(rows))}) hold what looks like personal data: "
        + ", ".join(f"{kind} {number:,}" for kind, number in by_kind.most_common()),
        found,
        action=action,
        remedy="`data.audit.personal_data: fix` replaces it by its kind; names are found only beside a clue",
        details={"kinds": dict(by_kind.most_common())},
        examples=hidden,
    )


def length(rows: Rows, action: Action) -> Finding | None:
    """Find texts far shorter or longer than the others (tokens where they were counted, else words)."""
    import numpy as np

    unit = "words" if rows.lengths is None else "tokens"
    sizes = np.asarray([len(text.split()) for text in rows.contents] if rows.lengths is None else rows.lengths)
    full = sizes[[not blank for blank in rows.blank]]
    if len(full) < 20:
        return None
    low, middle, high = np.quantile(full, [0.01, 0.5, 0.99])
    logs = np.log(np.maximum(full, 1))
    spread = max(1.4826 * float(np.median(np.abs(logs - np.median(logs)))), 0.2)
    longest = max(float(middle * np.exp(5 * spread)), 3.0 * float(middle))
    shortest = min(float(middle * np.exp(-5 * spread)), float(middle) / 3)
    found = [row for row in range(len(rows)) if not rows.blank[row] and not shortest <= sizes[row] <= longest]
    if not found:
        return None
    long = sum(int(sizes[row]) > longest for row in found)
    return finding(
        rows,
        "length",
        "info",
        f"{row_count(len(found))} are far from the median of {middle:.0f} {unit}: {len(found) - long:,} under "
        f"{max(shortest, 1):.0f}, {long:,} over {longest:.0f}",
        found,
        action=action,
        remedy="look at them; `data.audit.length: drop` leaves them out",
        details={
            "unit": unit,
            "median": float(middle),
            "percentile_1": float(low),
            "percentile_99": float(high),
            "longest": int(sizes.max()),
            "short": len(found) - long,
            "long": long,
        },
        examples=excerpts(rows, found, length={row: int(sizes[row]) for row in found}),
    )


def truncation(rows: Rows, action: Action) -> Finding | None:
    """Count the texts that lose their end at `max_length` tokens, and how much is lost."""
    import numpy as np

    if rows.lengths is None or rows.max_length is None:
        return None
    sizes = np.asarray(rows.lengths)
    found = np.flatnonzero(sizes > rows.max_length).tolist()
    if not found:
        return None
    lost = int((sizes[found] - rows.max_length).sum())
    return finding(
        rows,
        "truncation",
        "warning" if len(found) > len(rows) / 20 else "info",
        f"{row_count(len(found))} ({share(len(found), len(rows))}) are longer than {rows.max_length} tokens and lose "
        f"{lost:,} tokens ({share(lost, int(sizes.sum()))} of all)",
        found,
        action=action,
        remedy=f"`data.max_length: {int(np.quantile(sizes, 0.99))}` would cut only one text in a hundred",
        details={
            "max_length": rows.max_length,
            "tokens_lost": lost,
            "share_lost": lost / max(int(sizes.sum()), 1),
            "longest": int(sizes.max()),
        },
    )


def lexical_diversity(rows: Rows, action: Action) -> Finding | None:
    """Measure the variety of words in windows of equal size, so that data sets of any size compare."""
    numbers: dict[str, int] = {}
    stream: list[int] = []
    read = 0
    for text in rows.normalised:
        stream += [numbers.setdefault(word, len(numbers)) for word in words(text)]
        read += 1
        if len(stream) > DIVERSITY_WORDS:
            break
    if not stream:
        return None
    figures = _diversity(stream)
    poor = len(stream) >= DIVERSITY_WINDOW and figures["type_token_ratio"] < POOR
    message = (
        f"{len(numbers):,} different words; in {figures['window']:,} words of running text "
        f"{100 * figures['type_token_ratio']:.0f} % are different, of word pairs {100 * figures['distinct_2']:.0f} %"
    )
    return finding(
        rows,
        "lexical_diversity",
        "warning" if poor else "info",
        message,
        [],
        action=action if poor else "keep",
        remedy="gather texts that differ more; such data teach templates rather than language" if poor else "",
        details={"vocabulary": len(numbers), "words": len(stream), "looked_at": read, **figures},
    )


def _diversity(stream: list[int]) -> dict[str, Any]:
    import numpy as np

    window = min(DIVERSITY_WINDOW, len(stream))
    one, two = [], []
    for start in range(0, len(stream) - window + 1, window):
        part = stream[start : start + window]
        one.append(len(set(part)) / window)
        two.append(len(set(pairwise(part))) / max(window - 1, 1))
    return {"window": window, "type_token_ratio": float(np.mean(one)), "distinct_2": float(np.mean(two))}
