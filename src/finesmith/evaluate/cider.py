"""CIDEr and CIDEr-D: consensus of a text with several references, rare n-grams weighing more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from finesmith.evaluate.measurement import Measurement, mean_of
from finesmith.evaluate.overlap import References, checked
from finesmith.evaluate.words import words

ORDERS = 4
SIGMA = 6.0
SCALE = 10.0

Words = tuple[str, ...]
Vector = dict[Words, float]


def cider(
    predictions: Sequence[str], references: References, *, variant: Literal["cider", "cider_d"] = "cider_d"
) -> Measurement:
    """Measure CIDEr or CIDEr-D (Vedantam et al. 2015, "CIDEr: consensus-based image description evaluation").

    For 1 to 4 words each text is a vector of counts times log(N / rows whose references hold the n-gram), N the rows
    given. A row's value is 10 times the mean over orders and references of the cosine. CIDEr-D, which captioning
    papers report as CIDEr, clips a text's weights by the reference's and multiplies by
    exp(-(difference in words)^2 / (2 x 6^2)), so that repeating words gains nothing. From 0 to 10. Words are those of
    `words.words`, not stemmed.

    The value depends on the whole set of references: only values on the same rows compare. In resampling the document
    frequencies stay those of all rows.

    Raises ValueError for fewer than two rows (every weight would be log 1 = 0), a row without reference or differing
    numbers of rows.
    """
    checked(predictions, references)
    if len(predictions) < 2:
        raise ValueError("CIDEr weighs words by the rows whose references lack them: expected at least 2 rows, got 1")
    counted = [[_ngrams(words(reference)) for reference in several] for several in references]
    frequency = Counter(ngram for several in counted for ngram in set().union(*several))
    rows = math.log(len(predictions))

    def weighed(counts: Counter[Words]) -> list[Vector]:
        vectors: list[Vector] = [{} for _ in range(ORDERS)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (rows - math.log(max(1, frequency[ngram])))
        return vectors

    values = []
    for prediction, several in zip(predictions, counted, strict=True):
        counts = _ngrams(words(prediction))
        ours, length = weighed(counts), _length(counts)
        total = 0.0
        for reference in several:
            gap = (length - _length(reference)) if variant == "cider_d" else 0
            total += math.exp(-(gap**2) / (2 * SIGMA**2)) * sum(
                _cosine(a, b, clip=variant == "cider_d") for a, b in zip(ours, weighed(reference), strict=True)
            )
        values.append(SCALE * total / ORDERS / len(several))
    return mean_of(variant, values, "positive")


def _ngrams(tokens: Sequence[str]) -> Counter[Words]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


def _length(counts: Counter[Words]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)


def _cosine(ours: Vector, theirs: Vector, *, clip: bool) -> float:
    norm = math.sqrt(sum(v * v for v in ours.values()) * sum(v * v for v in theirs.values()))
    if norm == 0:
        return 0.0
    shared = ours.keys() & theirs.keys()
    return math.fsum((min(ours[g], theirs[g]) if clip else ours[g]) * theirs[g] for g in shared) / norm
