"""How well a language model predicts text: bits per byte and perplexity from sums of log probabilities by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from finesmith.evaluate.measurement import Measurement, ratio

if TYPE_CHECKING:
    import numpy.typing as npt

    from finesmith.evaluate.measurement import Floats

    Sums = Sequence[float] | npt.NDArray[Any]


def bits_per_byte(log_probabilities: Sums, byte_counts: Sums) -> Measurement:
    """Measure bits per byte of UTF-8: comparable across tokenizers, because every model predicts the same bytes.

    log_probabilities: [documents], each document's sum of log probabilities in nats, at most 0; byte_counts:
    [documents], the bytes of the text that these sums cover, without special tokens.

    Raises ValueError for a sum that is positive or not finite, a count below 1, or differing numbers of documents.
    """
    rows = _rows("bits_per_byte", log_probabilities, byte_counts)
    rows[:, 0] /= math.log(2)
    return Measurement("bits_per_byte", rows, ratio, ratio(rows), "positive", higher_is_better=False)


def perplexity(
    log_probabilities: Sums,
    token_counts: Sums,
    *,
    metric: Literal["perplexity", "pseudo_perplexity"] = "perplexity",
) -> Measurement:
    """Measure perplexity a token, exp(-sum of log probabilities / predicted tokens), over all documents' tokens.

    Only comparable between models with the same tokenizer and context. For an encoder `metric` is pseudo_perplexity
    (Salazar et al. 2020, "Masked language model scoring"): each token's log probability when it alone is masked.
    Arguments, units and errors as in `bits_per_byte`, with tokens for bytes.
    """
    rows = _rows(metric, log_probabilities, token_counts)
    return Measurement(metric, rows, _exp_ratio, _exp_ratio(rows), "positive", higher_is_better=False)


def _exp_ratio(sums: Floats) -> Floats:
    import numpy as np

    result: Floats = np.exp(ratio(sums))
    return result


def _rows(metric: str, log_probabilities: Sums, counts: Sums) -> Floats:
    import numpy as np

    sums, sizes = (np.asarray(values, dtype=np.float64) for values in (log_probabilities, counts))
    if sums.ndim != 1 or sums.shape != sizes.shape or not sums.size:
        raise ValueError(f"{metric}: {sums.shape} sums of log probabilities do not fit {sizes.shape} counts")
    wrong = ~np.isfinite(sums) | (sums > 0) | ~(sizes >= 1) | ~np.isfinite(sizes)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{metric}: document {row} has the log probability {sums[row]:g} over {sizes[row]:g}; expected a finite "
            "sum of at most 0 over a count of at least 1"
        )
    return np.column_stack([-sums, sizes])
