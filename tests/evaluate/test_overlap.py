"""BLEU and chrF agree with sacrebleu, ROUGE with rouge-score, by row and over the corpus, with several references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from finesmith.evaluate.measurement import Measurement
from finesmith.evaluate.overlap import bleu, bleu_of_sums, chrf, rouge
from finesmith.evaluate.words import words

text = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "Mat", ".", "dogs,", "é"]), max_size=12)
texts = text.map(" ".join)
rows = st.lists(st.tuples(texts, st.lists(texts.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=6)


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """Turn rows of references into sacrebleu's streams, None where a row has fewer."""
    most = max(map(len, references))
    return [[several[i] if i < len(several) else None for several in references] for i in range(most)]


@settings(max_examples=150, deadline=None)
@given(rows)
@example([("", ["a"])])
@example([("a b", ["a b"]), ("a", ["b"])])
def test_bleu_agrees_with_sacrebleu(given_rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [row[0] for row in given_rows], [row[1] for row in given_rows]
    ours = bleu(predictions, references)
    assert ours.value == pytest.approx(BLEU().corpus_score(predictions, streams(references)).score / 100, abs=1e-9)
    alone = [BLEU(effective_order=True).sentence_score(p, r).score / 100 for p, r in given_rows]
    assert ours.per_example == pytest.approx(alone, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(rows)
@example([("ab", ["abcdefgh", "a"])])
@example([("abcdefgh", ["ab", ""])])
def test_chrf_agrees_with_sacrebleu(given_rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [row[0] for row in given_rows], [row[1] for row in given_rows]
    ours = chrf(predictions, references)
    assert ours.value == pytest.approx(CHRF().corpus_score(predictions, streams(references)).score / 100, abs=1e-9)
    alone = [CHRF().sentence_score(p, r).score / 100 for p, r in given_rows]
    assert ours.per_example == pytest.approx(alone, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(rows.filter(lambda found: all(part.isascii() for p, r in found for part in (p, *r))))
def test_rouge_agrees_with_rouge_score_on_ascii(given_rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [row[0] for row in given_rows], [row[1] for row in given_rows]
    ours = rouge(predictions, references)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        best = [max(scorer.score(one, p)[theirs].fmeasure for one in several) for p, several in given_rows]
        assert ours[name].per_example == pytest.approx(best)
        assert ours[name].value == pytest.approx(np.mean(best))


def test_bleu_of_the_classic_example_by_hand() -> None:
    # Papineni et al. 2002, example 2: clipped unigram precision 2 / 7, and no bigram matches.
    ours = bleu(
        ["the the the the the the the"],
        [["The cat is on the mat".lower(), "there is a cat on the mat"]],
    )
    assert ours.statistics[0].tolist() == [2, 0, 0, 0, 7, 6, 5, 4, 7, 7]
    expected = (2 / 7 * (1 / 2 / 6) * (1 / 4 / 5) * (1 / 8 / 4)) ** 0.25
    assert ours.value == pytest.approx(expected)


def test_bleu_of_many_sums_at_once_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    totals = rng.integers(0, 30, (200, 4))
    matches = rng.integers(0, totals + 1)
    sums = np.column_stack([matches, totals, rng.integers(0, 30, (200, 2))]).astype(float)
    for effective in (False, True):
        together = bleu_of_sums(sums.reshape(20, 10, 10), effective_order=effective).ravel()
        assert together == pytest.approx([float(bleu_of_sums(row, effective_order=effective)) for row in sums])


def test_words_of_many_scripts() -> None:
    assert words("Don't a_b 3.5!") == ["don", "t", "a", "b", "3", "5"]
    assert words("É cafe\N{COMBINING ACUTE ACCENT}") == ["é", "café"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("我爱 abc") == ["我", "爱", "abc"]
    assert words("Привет, мир") == ["привет", "мир"]
    assert rouge(["мир вам"], [["вам мир"]])["rouge_1"].value == 1.0


@pytest.mark.parametrize("metric", [bleu, chrf, rouge])
def test_rows_without_references_are_refused(metric: object) -> None:
    assert callable(metric)
    for predictions, references, named in (
        (["a"], [], "1 predictions for 0"),
        ([], [], "0 predictions"),
        (["a", "b"], [["a"], []], "row 1"),
        (["a"], ["text"], "row 0"),
    ):
        with pytest.raises(ValueError, match=named):
            metric(predictions, references)


def test_a_measurement_of_fewer_rows_is_the_metric_of_those_rows() -> None:
    predictions = ["a cat sat on the mat", "the dog", "a b c d e"]
    references = [["the cat sat on the mat"], ["a dog", "the dog ran"], ["a b c e d"]]
    for metric in (bleu, chrf):
        whole: Measurement = metric(predictions, references)
        part = metric(predictions[:2], references[:2])
        assert float(whole.combine(whole.statistics[:2].sum(axis=0))) == part.value
