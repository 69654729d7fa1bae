"""Find the predictions most worth reading: wrong and sure, far from the truth, or far from the number asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.report.format import number

if TYPE_CHECKING:
    from finesmith.report.folder import RunFolder

SHOWN = 12


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong prediction; `given` is the probability the model gave to the true label, where it is known; `rank` the
    place of the first right answer and `found` the text that stood first, where answers are found among others.
    """

    id: int
    text: str
    text_pair: str | None
    label: Any
    prediction: Any
    confidence: float | None
    given: float | None
    error: float | None
    rank: int | None = None
    found: str | None = None


@dataclass(frozen=True, slots=True)
class Mistakes:
    """The mistakes of one split: how many of how many rows, and the ones to read."""

    split: str
    rows: int
    wrong: int | None
    confident: tuple[Mistake, ...] = ()
    worst: tuple[Mistake, ...] = ()


def find(folder: RunFolder, labels: Sequence[str]) -> tuple[Mistakes | None, str | None]:
    """Return the mistakes of the test split (validation when the test was never opened) and what could not be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("test", "validation"):
        path = folder.path / "predictions" / f"{split}.parquet"
        if not path.is_file():
            continue
        try:
            file = pq.ParquetFile(path)
            rows = file.metadata.num_rows
            wrong, confident, worst = 0, list[Mistake](), list[Mistake]()
            for batch in file.iter_batches(batch_size=8192):
                mistakes = _wrong(batch, labels)
                wrong += len(mistakes)
                confident = _surest(confident + mistakes)
                worst = _furthest(worst + mistakes)
        except (pa.ArrowException, OSError) as error:
            return None, f"predictions/{split}.parquet cannot be read: {str(error)[:120]}"
        return _ranked(split, rows, wrong, confident, worst), None
    return None, None


def _wrong(batch: Any, labels: Sequence[str]) -> list[Mistake]:
    columns = {name: batch.column(name) for name in batch.schema.names}
    if "rank" in columns:
        return _found_late(columns)
    if "label" not in columns or "prediction" not in columns:
        return []
    truths, predictions = columns["label"].to_pylist(), columns["prediction"].to_pylist()
    wrong = [i for i, (truth, guess) in enumerate(zip(truths, predictions, strict=True)) if _differ(truth, guess)]

    def pick(name: str) -> list[Any]:
        return columns[name].take(wrong).to_pylist() if name in columns and wrong else [None] * len(wrong)

    known = {label: index for index, label in enumerate(labels)}
    picked = zip(
        wrong, pick("id"), pick("text"), pick("text_pair"), pick("confidence"), pick("probabilities"), strict=True
    )
    return [
        Mistake(
            id=int(identity) if number(identity) is not None else position,
            text=str(text or "")[:2000],
            text_pair=None if pair is None else str(pair)[:2000],
            label=truths[position],
            prediction=predictions[position],
            confidence=number(confidence),
            given=_given(truths[position], probabilities, known),
            error=_error(truths[position], predictions[position]),
        )
        for position, identity, text, pair, confidence, probabilities in picked
    ]


def _found_late(columns: dict[str, Any]) -> list[Mistake]:
    """Return the rows of which another answer was found before the right one; texts may be withheld."""
    ranks = columns["rank"].to_pylist()
    late = [i for i, rank in enumerate(ranks) if number(rank) is not None and rank > 1]

    def pick(name: str) -> list[Any]:
        return columns[name].take(late).to_pylist() if name in columns and late else [None] * len(late)

    picked = zip(late, pick("id"), pick("text"), pick("label"), pick("prediction"), pick("found"), strict=True)
    return [
        Mistake(
            id=int(identity) if number(identity) is not None else position,
            text=str(text or "")[:2000],
            text_pair=None,
            label=label,
            prediction=prediction,
            confidence=None,
            given=None,
            error=float(ranks[position]),
            rank=int(ranks[position]),
            found=None if found is None else str(found)[:2000],
        )
        for position, identity, text, label, prediction, found in picked
    ]


def _differ(truth: Any, guess: Any) -> bool:
    if truth is None or guess is None:
        return False
    if isinstance(truth, list) and isinstance(guess, list):
        return set(map(str, truth)) != set(map(str, guess))
    return bool(truth != guess)


def _given(truth: Any, probabilities: Any, known: dict[str, int]) -> float | None:
    if not isinstance(probabilities, list) or isinstance(truth, list | float):
        return None
    index = known.get(str(truth))
    return number(probabilities[index]) if index is not None and index < len(probabilities) else None


def _error(truth: Any, guess: Any) -> float | None:
    if isinstance(truth, list) and isinstance(guess, list):
        return float(len(set(map(str, truth)) ^ set(map(str, guess))))
    true, guessed = number(truth), number(guess)
    if isinstance(guess, float) and true is not None and guessed is not None:
        return abs(true - guessed)
    return None


def _surest(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted((m for m in mistakes if m.confidence is not None), key=lambda m: -(m.confidence or 0.0))[:SHOWN]


def _furthest(mistakes: list[Mistake]) -> list[Mistake]:
    def distance(mistake: Mistake) -> tuple[float, float]:
        return -(mistake.error or 0.0), mistake.given if mistake.given is not None else math.inf

    # Twice as many as are shown, because the surest ones may be among them and are shown once only.
    return sorted(mistakes, key=distance)[: 2 * SHOWN]


def _ranked(split: str, rows: int, wrong: int, confident: list[Mistake], worst: list[Mistake]) -> Mistakes:
    if worst and isinstance(worst[0].prediction, float):
        return Mistakes(split, rows, None, worst=tuple(worst[:SHOWN]))
    seen = {mistake.id for mistake in confident}
    return Mistakes(split, rows, wrong, tuple(confident), tuple(m for m in worst if m.id not in seen)[:SHOWN])
