"""Spans in tagged sentences, and their precision, recall and F1 as conlleval counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finesmith.evaluate.measurement import Measurement, divided

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Floats

# (type, first token, one past the last)
Span = tuple[str, int, int]

PREFIXES = "BIESLU"


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Precision, recall and F1 from 0 to 1 (0 where undefined, as in conlleval), and the counts behind them."""

    precision: float
    recall: float
    f1: float
    correct: int
    predicted: int
    expected: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Read the spans of one sentence from IOB1, IOB2, IOE or IOBES tags such as `B-PER` or `O`, malformed ones too.

    A span begins at B or S, after O at any tag, after E or S at any tag but O, and wherever the type changes; so an
    I that nothing precedes begins a span (Tjong Kim Sang and Veenstra 1999; the conlleval script of CoNLL-2000).
    conlleval knows no S, and B after E of the same type only as a continuation; here both begin a span. L and U
    (BILOU) are read as E and S. The type is all that follows the first hyphen and may be empty.

    Raises ValueError for a tag that is none of these.
    """
    found: list[Span] = []
    start, last_prefix, last_type = 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if prefix == "O":
            kind = ""
        elif len(prefix) != 1 or prefix not in PREFIXES:
            raise ValueError(f"tag {tag[:80]!r} at token {position}: expected O, or {', '.join(PREFIXES)} with -TYPE")
        prefix = {"L": "E", "U": "S"}.get(prefix, prefix)
        breaks = prefix in "OBS" or last_prefix in "OES" or kind != last_type
        if breaks and last_prefix != "O":
            found.append((last_type, start, position))
        if breaks:
            start = position
        last_prefix, last_type = prefix, kind
    return found


def span_f1(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> Measurement:
    """Measure micro-averaged span F1 of tagged sentences: a span counts when its type and both ends are right.

    nan where neither side has a span; a value for each sentence is kept, and resampling draws sentences.

    Raises ValueError when sentences or their tokens do not match, or for an unknown tag.
    """
    import numpy as np

    rows = np.zeros((len(expected), 3))
    for row, (ours, theirs) in enumerate(_pairs(predicted, expected)):
        rows[row] = len(ours & theirs), len(ours), len(theirs)
    return Measurement("span_f1", rows, f1_of_sums, f1_of_sums(rows), "unit")


def f1_of_sums(sums: Floats) -> Floats:
    """Compute F1 from sums [..., 3]: spans right, predicted, expected; nan where none is predicted or expected."""
    return divided(2.0 * sums[..., 0], sums[..., 1] + sums[..., 2])


def span_scores(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]
) -> tuple[SpanScore, dict[str, SpanScore]]:
    """Count spans over all sentences; return the micro average and the scores by type, sorted by its name.

    Raises ValueError when sentences or their tokens do not match, or for an unknown tag.
    """
    counts: dict[str, list[int]] = {}
    for ours, theirs in _pairs(predicted, expected):
        for position, group in enumerate((ours & theirs, ours, theirs)):
            for kind, _, _ in group:
                counts.setdefault(kind, [0, 0, 0])[position] += 1
    total = [sum(column) for column in zip(*counts.values(), strict=True)] if counts else [0, 0, 0]
    return _score(*total), {kind: _score(*counts[kind]) for kind in sorted(counts)}


def _score(correct: int, predicted: int, expected: int) -> SpanScore:
    precision, recall = (correct / total if total else 0.0 for total in (predicted, expected))
    f1 = 2 * correct / (predicted + expected) if correct else 0.0
    return SpanScore(precision, recall, f1, correct, predicted, expected)


def _pairs(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> list[tuple[set[Span], set[Span]]]:
    if len(predicted) != len(expected) or not expected:
        raise ValueError(f"{len(predicted)} predicted sentences for {len(expected)} expected ones, or none at all")
    pairs = []
    for row, (ours, theirs) in enumerate(zip(predicted, expected, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(f"sentence {row}: {len(ours)} predicted tags for {len(theirs)} tokens")
        try:
            pairs.append((set(spans_of(ours)), set(spans_of(theirs))))
        except ValueError as error:
            raise ValueError(f"sentence {row}: {error}") from None
    return pairs
