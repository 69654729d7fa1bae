"""Metrics of written answers by name, each over rows of one or several references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Measurement
    from finesmith.evaluate.overlap import References

Scorer = Callable[[Sequence[str], "References"], "Measurement"]

# Answers of so few words are names of something, not sentences, where most of them are.
FEW_WORDS, MOSTLY, MARKED = 3, 0.9, 0.95


def final_number(predictions: Sequence[str], references: References) -> Measurement:
    """Measure final numbers; where a row's references hold none, whether the texts are alike."""
    from finesmith.evaluate.matches import final_number as read
    from finesmith.evaluate.matches import final_number_match, normalised_match
    from finesmith.evaluate.measurement import mean_of

    plain = normalised_match(predictions, references).per_example
    hits = []
    for text, several, alike in zip(predictions, references, plain, strict=True):
        numbered = [one for one in several if read(one, strict=False) is not None]
        hits.append(final_number_match([text], [numbered]).per_example[0] if numbered else alike)
    return mean_of("final_number_match", hits)


def _rouge(name: str) -> Scorer:
    def measure(predictions: Sequence[str], references: References) -> Measurement:
        from finesmith.evaluate.overlap import rouge

        return rouge(predictions, references)[name]

    return measure


def _chrf(predictions: Sequence[str], references: References) -> Measurement:
    from finesmith.evaluate.overlap import chrf

    return chrf(predictions, references)


def _bleu(predictions: Sequence[str], references: References) -> Measurement:
    from finesmith.evaluate.overlap import bleu

    return bleu(predictions, references)


def _exact(predictions: Sequence[str], references: References) -> Measurement:
    from finesmith.evaluate.matches import exact_match

    return exact_match(predictions, references)


def _normalised(predictions: Sequence[str], references: References) -> Measurement:
    from finesmith.evaluate.matches import normalised_match

    return normalised_match(predictions, references)


def _cider_d(predictions: Sequence[str], references: References) -> Measurement:
    from finesmith.evaluate.cider import cider

    return cider(predictions, references)


SCORERS: Mapping[str, Scorer] = {
    "final_number_match": final_number,
    "exact_match": _exact,
    "normalised_match": _normalised,
    "rouge_1": _rouge("rouge_1"),
    "rouge_2": _rouge("rouge_2"),
    "rouge_l": _rouge("rouge_l"),
    "chrf": _chrf,
    "bleu": _bleu,
    "cider_d": _cider_d,
}


def share_marked(answers: Sequence[str]) -> float:
    """Return the share of answers that end in a marked number (`#### 42`)."""
    from finesmith.evaluate.matches import final_number as read

    return sum(read(text) is not None for text in answers) / max(1, len(answers))


def share_short(answers: Sequence[str]) -> float:
    """Return the share of answers of at most three words."""
    return sum(len(text.split()) <= FEW_WORDS for text in answers) / max(1, len(answers))
