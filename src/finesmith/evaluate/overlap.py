"""BLEU, chrF, ROUGE and exact matches of generated texts against one or several references a row.

All values are shares from 0 to 1; the field prints BLEU and chrF times 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from finesmith.evaluate.measurement import Measurement, divided, mean_of
from finesmith.evaluate.words import words

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Floats

References = Sequence[Sequence[str]]

BLEU_ORDERS = 4
CHRF_ORDERS = 6
CHRF_BETA = 2.0


def bleu(
    predictions: Sequence[str], references: References, *, tokenize: Literal["13a", "intl", "char", "zh"] = "13a"
) -> Measurement:
    """Measure corpus BLEU-4 (Papineni et al. 2002) with sacrebleu's tokens and counts, cased, exponential smoothing.

    A row's matches are clipped by the reference that holds most of an n-gram, its reference length is the nearest one.
    `tokenize` is sacrebleu's name of a tokenizer: 13a for languages with spaces between words, zh for Chinese, char
    for other languages without. The value of one row leaves out orders that are longer than the row (sacrebleu's
    effective order); over the corpus none is left out.

    Raises ValueError when a row has no reference or the numbers of rows differ.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    checked(predictions, references)
    scorer = BLEU(tokenize=tokenize, force=True)
    rows = np.zeros((len(predictions), 2 * BLEU_ORDERS + 2))
    for row, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        score = scorer.corpus_score([prediction], [[reference] for reference in several])
        rows[row] = [*score.counts, *score.totals, score.sys_len, score.ref_len]
    return Measurement("bleu", rows, bleu_of_sums, bleu_of_sums(rows, effective_order=True), "unit")


def bleu_of_sums(sums: Floats, *, effective_order: bool = False) -> Floats:
    """Compute BLEU from sums [..., 10]: matches of 1 to 4 words, n-grams of 1 to 4, length, reference length.

    The k-th order without a match counts as 2^-k matches (smoothing method 3 of Chen and Cherry 2014). An order
    without n-grams makes BLEU 0, or with `effective_order` is left out. Without any match BLEU is 0.
    """
    import numpy as np

    matches, totals = sums[..., :BLEU_ORDERS], sums[..., BLEU_ORDERS : 2 * BLEU_ORDERS]
    length, wanted = sums[..., -2], sums[..., -1]
    # Sums of drawn or left-out rows are exact integers, but not those of weighted ones.
    none = matches < 0.5
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches)
    present = totals >= 0.5
    logs = np.log(divided(smoothed, totals, otherwise=1.0))
    orders = present.sum(axis=-1) if effective_order else BLEU_ORDERS
    mean = divided(np.where(present, logs, 0.0).sum(axis=-1), orders, otherwise=0.0)
    penalty = np.minimum(1.0 - divided(wanted, length, otherwise=1.0), 0.0)
    zero = none.all(axis=-1) if effective_order else none.all(axis=-1) | ~present.all(axis=-1)
    return np.where(zero, 0.0, np.exp(mean + penalty))


def chrf(predictions: Sequence[str], references: References) -> Measurement:
    """Measure corpus chrF2 (Popovic 2015): F-score of 1 to 6 characters without spaces, recall twice as important.

    Needs no words, so it suits every language. Each row takes the reference with the best chrF. Orders longer than
    both texts are left out. Equal to sacrebleu's, which keeps the counts to itself.

    Raises ValueError when a row has no reference or the numbers of rows differ.
    """
    import numpy as np
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    checked(predictions, references)
    rows = np.zeros((len(predictions), 3 * CHRF_ORDERS))
    for row, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        given = extract_all_char_ngrams(prediction, CHRF_ORDERS)
        options = np.zeros((len(several), 3, CHRF_ORDERS))
        for option, reference in enumerate(several):
            for order, (ours, theirs) in enumerate(
                zip(given, extract_all_char_ngrams(reference, CHRF_ORDERS), strict=True)
            ):
                total = sum(theirs.values())
                # As in sacrebleu, n-grams longer than the whole reference are not held against a text.
                counted = sum(ours.values()) if total else 0
                options[option, :, order] = counted, total, sum((ours & theirs).values())
        flat = options.reshape(len(several), -1)
        rows[row] = flat[int(np.argmax(chrf_of_sums(flat)))]
    return Measurement("chrf", rows, chrf_of_sums, chrf_of_sums(rows), "unit")


def chrf_of_sums(sums: Floats) -> Floats:
    """Compute chrF from sums [..., 18]: n-grams of the text, of the reference and matches, of 1 to 6 characters."""
    ours, theirs, matches = (sums[..., i * CHRF_ORDERS : (i + 1) * CHRF_ORDERS] for i in range(3))
    present = (ours > 0) & (theirs > 0)
    orders = present.sum(axis=-1)
    precision = divided((divided(matches, ours, otherwise=0.0) * present).sum(axis=-1), orders, otherwise=0.0)
    recall = divided((divided(matches, theirs, otherwise=0.0) * present).sum(axis=-1), orders, otherwise=0.0)
    weight = CHRF_BETA**2
    return divided((1 + weight) * precision * recall, weight * precision + recall, otherwise=0.0)


def rouge(predictions: Sequence[str], references: References) -> dict[str, Measurement]:
    """Measure ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): mean F1 of words, word pairs and the longest common subsequence.

    Each row takes its best reference, for each of the three by itself. Words are those of `words.words`, not stemmed:
    for ASCII text the tokens of rouge-score's default, which finds no word at all in other scripts.

    Raises ValueError when a row has no reference or the numbers of rows differ.
    """
    from rouge_score.rouge_scorer import RougeScorer

    checked(predictions, references)
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(names.values()), tokenizer=_Tokenizer())
    scores = [scorer.score_multi(several, text) for several, text in zip(references, predictions, strict=True)]
    return {ours: mean_of(ours, [score[theirs].fmeasure for score in scores]) for ours, theirs in names.items()}


class _Tokenizer:
    """The shape of tokenizer that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def checked(predictions: Sequence[str], references: References) -> None:
    """Raise ValueError when there is no row, a row has no reference or the numbers of rows differ."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} rows of references; expected as many")
    for row, several in enumerate(references):
        if isinstance(several, str) or not several:
            raise ValueError(f"row {row}: expected a list of at least one reference, got {str(several)[:80]!r}")
