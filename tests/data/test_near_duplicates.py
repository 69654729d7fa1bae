from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.near_duplicates import HASHES, _candidates, _features, bands, cluster, normalise, similar, words


def naive_near(one: str, two: str, threshold: float = 0.8) -> bool:
    """Compare two texts as the docstring of `cluster` says, with Counters."""
    left, right = Counter(words(normalise(one))), Counter(words(normalise(two)))
    shared, sizes = (left & right).total(), (left.total(), right.total())
    jaccard = shared / max(sum(sizes) - shared, 1)
    one_word = max(sizes) - shared <= 1 and 2 * shared >= threshold * sum(sizes) - 1e-9
    return jaccard >= threshold - 1e-9 or one_word


def naive_first(texts: list[str]) -> list[int]:
    """Cluster by comparing every pair."""
    leader = list(range(len(texts)))

    def root(row: int) -> int:
        while leader[row] != row:
            row = leader[row]
        return row

    for two in range(len(texts)):
        for one in range(two):
            if normalise(texts[one]) == normalise(texts[two]) or naive_near(texts[one], texts[two]):
                low, high = sorted((root(one), root(two)))
                leader[high] = low
    return [root(row) for row in range(len(texts))]


def reviews(shared: Path, number: int) -> list[str]:
    lines = (shared / "data/film_reviews/train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:number]]


def with_edits(texts: list[str], number: int, seed: int = 0) -> list[str]:
    """Append copies with one word changed, dropped, added or swapped."""
    chance = random.Random(seed)
    long = [text for text in texts if len(words(normalise(text))) >= 5]
    copies = []
    for text in chance.sample(long, number):
        pieces = text.split()
        place = chance.choice([place for place, piece in enumerate(pieces) if words(piece) and piece.isalnum()] or [0])
        edit = chance.randrange(4)
        if edit == 0:
            pieces[place] = "unexpectedly"
        elif edit == 1:
            del pieces[place]
        elif edit == 2:
            pieces.insert(place, "truly")
        else:
            pieces[place], pieces[place - 1] = pieces[place - 1], pieces[place]
        copies.append(" ".join(pieces))
    return [*texts, *copies]


short_texts = st.lists(
    st.lists(
        st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]), min_size=0, max_size=9
    ).map(" ".join),
    min_size=1,
    max_size=9,
)


@given(texts=short_texts)
@settings(max_examples=60, deadline=None)
def test_similar_agrees_with_counters(texts: list[str]) -> None:
    pairs = [(one, two) for two in range(len(texts)) for one in range(two) if texts[one] and texts[two]]
    assert similar(texts, pairs) == [naive_near(texts[one], texts[two]) for one, two in pairs]


@given(texts=st.lists(st.text(max_size=30), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_clustered(texts: list[str]) -> None:
    found = cluster(texts)
    assert found.first.shape == found.exact.shape == (len(texts),)
    for row, (first, exact) in enumerate(zip(found.first.tolist(), found.exact.tolist(), strict=True)):
        assert first <= exact <= row
        assert found.first[first] == first
        assert found.first[exact] == first
        assert exact == next(one for one in range(row + 1) if normalise(texts[one]) == normalise(texts[row]))


def test_clusters_are_those_of_comparing_every_pair(shared: Path) -> None:
    texts = with_edits(reviews(shared, 200), 80)
    assert cluster(texts).first.tolist() == naive_first(texts)


def test_recall_on_planted_edits(shared: Path) -> None:
    texts = with_edits(reviews(shared, 4000), 1000)
    found = cluster(texts)
    assert (found.first[4000:] < 4000).mean() >= 0.99
    others = int((found.first[:4000] != np.arange(4000)).sum())
    assert others <= 10


def test_the_order_of_rows_does_not_matter(shared: Path) -> None:
    texts = with_edits(reviews(shared, 1000), 300)
    order = np.random.default_rng(1).permutation(len(texts))
    straight, mixed = cluster(texts).first, cluster([texts[row] for row in order]).first
    together = {frozenset(np.flatnonzero(straight == first).tolist()) for first in np.unique(straight)}
    again = {frozenset(order[np.flatnonzero(mixed == first)].tolist()) for first in np.unique(mixed)}
    assert together == again


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Great film", "great  FILM "),
        ("ﬁne", "fine"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth", "zerowidth"),
        ("Straße", "STRASSE"),
        ("a\u00a0b\n", "a b"),
    ],
)
def test_writing_variants_are_exact_duplicates(one: str, two: str) -> None:
    assert cluster([one, "something else", two]).exact.tolist() == [0, 1, 0]


def test_punctuation_makes_a_near_duplicate_not_an_exact_one() -> None:
    found = cluster(["It works, really!", "it works really"])
    assert found.exact.tolist() == [0, 1]
    assert found.first.tolist() == [0, 0]


def test_texts_without_spaces_are_compared_by_character() -> None:
    found = cluster(["我今天在银行存了一些钱", "我昨天在银行存了一些钱", "天气很好我们去公园散步"])
    assert found.first.tolist() == [0, 0, 2]


def test_a_short_text_with_another_word_is_another_text() -> None:
    assert cluster(["great film", "great food", "bad film"]).first.tolist() == [0, 1, 2]


def test_messages_of_one_template_are_near_duplicates() -> None:
    texts = [f"Where is my order {number}?" for number in range(30)]
    found = cluster(texts)
    assert set(found.first.tolist()) == {0}
    assert found.cut == 0


def test_a_chain_does_not_glue_without_limit() -> None:
    # Every text shares 11 of 12 words with the next, and the first and last share none.
    texts = [" ".join(f"word{place}" for place in range(start, start + 12)) for start in range(400)]
    found = cluster(texts)
    assert np.bincount(found.first).max() <= 50
    assert found.cut == 400


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    number, width = bands(threshold)
    jaccard = threshold / (2 - threshold)
    assert number * width <= HASHES
    assert 1 - (1 - jaccard**width) ** number >= 0.99


def test_boilerplate_costs_nine_pairs_a_text_and_band() -> None:
    notice = " ".join(f"notice{place}" for place in range(300))
    texts = [normalise(f"{notice} own{row} words{row} here{row}") for row in range(1000)]
    codes, counts = _features(texts)
    for left, right in _candidates(codes, counts, 0.8, 0):
        assert len(left) <= 9 * len(texts)
        assert (left < right).all()


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["the same words in every row"] * 50_000, id="all equal"),
        pytest.param([""] * 50_000, id="all empty"),
        pytest.param(["short one", "word " * 200_000, "other " * 3 + "word " * 200_000], id="a megabyte"),
        pytest.param([f"{'terms and conditions apply to this ' * 10} {row}" for row in range(5000)], id="boilerplate"),
        pytest.param([f"order {row}" for row in range(20_000)], id="templates"),
        pytest.param(["!" * (row % 50 + 1) for row in range(5000)], id="signs"),
        pytest.param(["x" * 1_000_000, "x" * 1_000_001], id="one word"),
    ],
)
def test_hostile_texts_stay_cheap(texts: list[str]) -> None:
    start = time.process_time()
    found = cluster(texts)
    assert time.process_time() - start < 20
    assert len(found.first) == len(texts)


def test_lone_surrogates_do_not_break_it() -> None:
    assert cluster(["bad \ud800 text", "bad \ud800 text", "good"]).exact.tolist() == [0, 0, 2]
