"""What every check of the audit looks at, and how a finding is put in words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finesmith.data.near_duplicates import normalise
from finesmith.types import Action, Examples, Finding, Severity

if TYPE_CHECKING:
    from finesmith.data.near_duplicates import Clusters

Kind = Literal["category", "number", "list"]

EXCERPT = 160
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows under audit, with what several checks need worked out once.

    contents: text and pair as one string; normalised: the same with Unicode, case and white space made alike;
    answers: the label as names, sorted, so that equal labels are equal tuples (() when there are no labels at all),
    None where it is missing; blank: rows without anything to read.
    """

    examples: Examples
    kind: Kind
    find_clusters: Callable[[], Clusters]
    splits: Sequence[str] | None
    lengths: Sequence[int] | None
    max_length: int | None
    contents: Sequence[str]
    normalised: Sequence[str]
    answers: Sequence[tuple[str, ...] | None]
    blank: Sequence[bool]

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def clusters(self) -> Clusters:
        """Which rows are copies of which."""
        return self.find_clusters()

    def open_to_training(self, row: int) -> bool:
        """Tell whether the row is, or may become, a training row."""
        return self.splits is None or self.splits[row] == "train"


def look_at(
    examples: Examples,
    *,
    kind: Kind,
    clusters: Callable[[], Clusters],
    splits: Sequence[str] | None,
    lengths: Sequence[int] | None,
    max_length: int | None,
) -> Rows:
    """Gather what the checks need about `examples`."""
    texts, pairs = examples.texts, examples.pairs
    blank = [is_blank(text) for text in texts]
    contents: Sequence[str] = texts
    if pairs is not None:
        blank = [gone or is_blank(pair) for gone, pair in zip(blank, pairs, strict=True)]
        contents = [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)]
    answers = [()] * len(texts) if examples.labels is None else [answer(label, kind) for label in examples.labels]
    normalised = [normalise(text) for text in contents]
    return Rows(examples, kind, clusters, splits, lengths, max_length, contents, normalised, answers, blank)


_CONTENT = re.compile(r"[^\W_]")


def is_blank(text: str) -> bool:
    """Tell whether a text is empty, white space or punctuation only; letters, digits and pictures are content."""
    return not _CONTENT.search(text) and not any(unicodedata.category(sign) == "So" for sign in text)


def answer(label: Any, kind: Kind) -> tuple[str, ...] | None:
    """Return a raw label as a sorted tuple of names, or None where it is missing or, for numbers, not one."""
    if label is None or (isinstance(label, float) and not math.isfinite(label)):
        return None
    if kind == "list" and isinstance(label, (list, tuple, set, frozenset)):
        return tuple(sorted({str(one) for one in label}))
    if not str(label).strip():
        return () if kind == "list" else None
    if kind != "number":
        return (str(label),)
    try:
        value = float(str(label))
    except ValueError:
        return None
    return (f"{value:g}",) if math.isfinite(value) else None


def excerpt(text: str, length: int = EXCERPT) -> str:
    """Return the beginning of a text on one line, control and invisible format characters taken out."""
    start = " ".join(text[: 4 * length].split())
    shown = "".join(sign for sign in start if unicodedata.category(sign) not in {"Cc", "Cf", "Cs"})
    return shown if len(shown) <= length and len(text) <= 4 * length else shown[: length - 1] + "…"


def excerpts(rows: Rows, positions: Iterable[int], **more: Mapping[int, Any]) -> tuple[dict[str, Any], ...]:
    """Show up to five rows: id, text, label, and for each of `more` what it holds for the row."""
    shown = []
    for row in list(positions)[:SHOWN]:
        example: dict[str, Any] = {"id": int(rows.examples.ids[row]), "text": excerpt(rows.contents[row])}
        if rows.examples.labels is not None:
            example["label"] = excerpt(str(rows.examples.labels[row]), 40)
        shown.append(example | {name: values[row] for name, values in more.items() if row in values})
    return tuple(shown)


def share(part: int, whole: int) -> str:
    """Write a share as a person reads it: `3.2 %`, `under 0.1 %`."""
    percent = 100 * part / max(whole, 1)
    return "under 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def row_count(number: int) -> str:
    """Write `1 row` or `1,234 rows`."""
    return "1 row" if number == 1 else f"{number:,} rows"


def finding(
    rows: Rows,
    kind: str,
    severity: Severity,
    message: str,
    positions: Sequence[int],
    *,
    action: Action,
    remedy: str,
    shows: str = "",
    details: Mapping[str, Any] | None = None,
    examples: tuple[dict[str, Any], ...] | None = None,
) -> Finding:
    """Build a finding about the rows at `positions`: those that `drop` would drop and `fix` would mend."""
    ids = rows.examples.ids
    return Finding(
        kind=kind,
        severity=severity,
        message=message,
        ids=tuple(int(ids[row]) for row in positions),
        examples=excerpts(rows, positions) if examples is None else examples,
        details={"rows": len(positions), "of": len(rows), **(details or {})},
        action=action,
        remedy=remedy,
        shows=shows,
    )
