from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.errors import DataError
from finesmith.evaluate.copies import (
    choose_lead,
    copied_concepts,
    few_shot,
    lead,
    nearest_answers,
    split_sentences,
)

TRAIN = ["how do I reset my card", "where is my refund", "how do I close my account", "where is my refund now"]
ANSWERS = ["reset", "refund", "close", "refund now"]


def naive_cosines(train: list[str], text: str) -> list[float]:
    """TF-IDF with (1 + ln tf) * (1 + ln((1 + n) / (1 + df))) over words and word pairs, in plain Python."""

    def terms(line: str) -> Counter[str]:
        words = line.lower().split()
        return Counter([*words, *map(" ".join, pairwise(words))])

    documents = [terms(line) for line in train]
    spread = {term: sum(term in d for d in documents) for d in documents for term in d}

    def weights(counts: Counter[str]) -> dict[str, float]:
        raw = {
            term: (1 + math.log(n)) * (1 + math.log((1 + len(train)) / (1 + spread[term])))
            for term, n in counts.items()
            if term in spread
        }
        length = math.sqrt(sum(w * w for w in raw.values())) or 1.0
        return {term: w / length for term, w in raw.items()}

    asked = weights(terms(text))
    return [sum(w * asked.get(term, 0.0) for term, w in weights(d).items()) for d in documents]


# The first example waits for scikit-learn.
@settings(deadline=None)
@given(st.lists(st.sampled_from(["how", "where", "is", "my", "card", "refund", "close", "now", "zebra"]), max_size=9))
def test_the_nearest_is_the_one_with_the_greatest_cosine(words: list[str]) -> None:
    text = " ".join(words)
    found = nearest_answers(TRAIN, ANSWERS, [text])
    cosines = naive_cosines(TRAIN, text)
    assert found.similarity[0] == pytest.approx(max(cosines), abs=1e-9)
    assert cosines[found.rows[0]] == pytest.approx(max(cosines), abs=1e-9)
    assert found.answers == [ANSWERS[found.rows[0]]]


def test_of_equally_near_ones_the_first_is_taken_whatever_the_block() -> None:
    train = ["red ball", "ball red", "red ball", "blue cup"] * 3
    answers = [str(i) for i in range(len(train))]
    texts = ["a red ball", "cup", "nothing known", ""]
    assert nearest_answers(train, answers, texts).answers == ["0", "3", "0", "0"]
    assert nearest_answers(train, answers, texts).similarity[2] == 0.0
    assert nearest_answers(train, answers, texts * 400).answers == ["0", "3", "0", "0"] * 400
    assert nearest_answers(train, answers, []).answers == []


def test_nothing_to_copy_from_is_said() -> None:
    with pytest.raises(DataError, match="no training examples to copy answers from"):
        nearest_answers([], [], ["a"])
    with pytest.raises(DataError, match="the 2 training prompts hold no words"):
        nearest_answers(["!", "?"], ["a", "b"], ["a"])
    with pytest.raises(DataError, match="no validation texts"):
        choose_lead([], [], lambda a, b: [])
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        nearest_answers(["a", "b"], ["c"], ["a"])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One day. Two nights! Three?", ["One day.", "Two nights!", "Three?"]),
        ("Dr. Smith met J. R. Jones. They left.", ["Dr. Smith met J. R. Jones.", "They left."]),
        ("It cost 3.5 dollars. Prof. X came.", ["It cost 3.5 dollars.", "Prof. X came."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("Is it Acme Inc. Yes.", ["Is it Acme Inc. Yes."]),
        ("you agree. (a) to pay", ["you agree.", "(a) to pay"]),
        ("first line\nstill first\n\nsecond", ["first line still first", "second"]),
        ("¿Qué es? Él vino. ¡Ya!", ["¿Qué es?", "Él vino.", "¡Ya!"]),
        ("今天好。明天呢？走", ["今天好。", "明天呢？", "走"]),
        ("Wait... what? 7 left.", ["Wait... what?", "7 left."]),
        ("  \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB .!?\n\"'(1。Dr", max_size=60))
def test_no_word_is_lost_between_sentences(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_lead_takes_the_first_sentences() -> None:
    assert lead(["One. Two. Three.", "Only"], 2) == ["One. Two.", "Only"]


def overlap(answers: list[str], references: list[str]) -> list[float]:
    """F1 of the words, as a stand-in for ROUGE."""
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        a, b = Counter(answer.lower().split()), Counter(reference.lower().split())
        common = sum((a & b).values())
        scores.append(2 * common / (sum(a.values()) + sum(b.values())) if common else 0.0)
    return scores


def test_the_number_of_sentences_is_the_best_on_validation() -> None:
    texts = ["A b c. D e f. G h i.", "J k l. M n o. P q r."]
    for best in (1, 2, 3):
        chosen = choose_lead(texts, lead(texts, best), overlap)  # type: ignore[arg-type]
        assert chosen.sentences == best
        assert chosen.tried[best - 1] == 1.0
    assert choose_lead(texts, ["x", "y"], overlap).sentences == 1  # type: ignore[arg-type]
    assert len(choose_lead(texts, texts, overlap, most=2).tried) == 2  # type: ignore[arg-type]


def test_lead_on_real_clauses(shared: Path) -> None:
    rows = json.loads((shared / "data" / "legal_summarization" / "tldrlegal_v1.json").read_text("utf-8")).values()
    texts, summaries = [r["original_text"] for r in rows], [r["reference_summary"] for r in rows]
    chosen = choose_lead(texts, summaries, overlap)  # type: ignore[arg-type]
    assert chosen.tried[chosen.sentences - 1] == max(chosen.tried)
    assert all(text.split()[0] == first.split()[0] for text, first in zip(texts, lead(texts, 1), strict=True))


def test_concepts_are_copied_as_they_stand() -> None:
    assert copied_concepts([["dog", "run"], ["a"]]) == ["dog run", "a"]


@settings(deadline=None)
@given(k=st.integers(0, 5), seed=st.integers(0, 1000), rows=st.integers(0, 6))
def test_shots_are_different_training_examples_fixed_by_seed_and_row(k: int, seed: int, rows: int) -> None:
    prompts, answers = ["a", "b", "a", "a", "c", "d", "e"], ["1", "2", "1", "3", "4", "5", "6"]
    chosen = few_shot(prompts, answers, k, seed, rows)
    assert chosen.shape == (rows, k)
    assert np.array_equal(few_shot(prompts, answers, k, seed, rows + 3)[:rows], chosen)
    for row in chosen:
        assert len({(prompts[i], answers[i]) for i in row}) == k
    # The second of two equal examples is never shown.
    assert 2 not in chosen


def test_every_example_is_shown_equally_often() -> None:
    shown = np.bincount(few_shot(list("abcdefgh"), list("abcdefgh"), 2, 0, rows=4000).ravel())
    # Binomial(4000, 1/4) each: five standard deviations.
    assert np.all(np.abs(shown - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75))


def test_too_few_examples_for_the_shots() -> None:
    with pytest.raises(DataError, match=r"4 examples are to stand in each prompt, .* only 2 different ones"):
        few_shot(["a", "b", "a"], ["1", "2", "1"], 4, 0)
    with pytest.raises(ValueError, match="k is -1"):
        few_shot(["a"], ["1"], -1, 0)
