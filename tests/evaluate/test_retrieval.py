"""Retrieval metrics agree with scikit-learn and with naive loops over every order of tied documents."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from finesmith.evaluate import statistics
from finesmith.evaluate.retrieval import FEW, Block, retrieval


def naive(ranked: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """Measure one order of the documents, best first."""
    hits = [rank for rank, document in enumerate(ranked, 1) if document in wanted]
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return {
        f"recall@{k}": sum(rank <= k for rank in hits) / len(wanted),
        f"hit@{k}": float(hits[0] <= k),
        f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in hits if rank <= k) / best,
        "mrr": 1 / hits[0],
        "map": sum((i + 1) / rank for i, rank in enumerate(hits)) / len(wanted),
    }


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.integers(1, 8))
def test_ties_count_as_the_mean_over_all_their_orders(seed: int, documents: int, values: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, documents).astype(np.float32)
    wanted = set(rng.choice(documents, rng.integers(1, documents + 1), replace=False).tolist())
    orders = [
        list(order)
        for order in itertools.permutations(range(documents))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    every = [naive(order, wanted, k) for order in orders]
    ours = retrieval([(scores[None], [sorted(wanted)], [None])], cutoffs=[k])
    assert ours.keys() == every[0].keys()
    for name, measured in ours.items():
        assert measured.value == pytest.approx(np.mean([order[name] for order in every])), name


def test_agrees_with_scikit_learn_without_ties_and_in_blocks() -> None:
    rng = np.random.default_rng(1)
    similarities = rng.normal(size=(30, 200))
    labels = rng.integers(0, 3, 200)
    relevant = [np.flatnonzero(labels == rng.integers(0, 3)).tolist() for _ in range(30)]
    assert min(map(len, relevant)) > FEW
    truth = np.zeros((30, 200))
    for row, wanted in enumerate(relevant):
        truth[row, wanted] = 1
    whole: list[Block] = [(similarities, relevant, [None] * 30)]
    pieces: list[Block] = [(similarities[i : i + 7], relevant[i : i + 7], [None] * 7) for i in range(0, 28, 7)]
    pieces.append((similarities[28:], relevant[28:], [None] * 2))
    ours, parted = retrieval(whole), retrieval(iter(pieces))
    assert ours["ndcg@10"].value == pytest.approx(ndcg_score(truth, similarities, k=10))
    single = [average_precision_score(truth[row], similarities[row]) for row in range(30)]
    assert ours["map"].per_example == pytest.approx(single)
    for name, measured in ours.items():
        assert measured.per_example == pytest.approx(parted[name].per_example)


def test_the_query_itself_is_left_out() -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 5, (12, 12)).astype(float)
    np.fill_diagonal(scores, 9.0)
    relevant = [[(row + 1) % 12, (row + 5) % 12] for row in range(12)]
    ours = retrieval([(scores, relevant, list(range(12)))])
    removed = np.array([np.delete(scores[row], row) for row in range(12)])
    shifted = [[document - (document > row) for document in relevant[row]] for row in range(12)]
    plain = retrieval([(removed, shifted, [None] * 12)])
    for name, measured in ours.items():
        assert measured.per_example == pytest.approx(plain[name].per_example)


def test_a_collapsed_model_is_as_good_as_chance() -> None:
    ours = retrieval([(np.zeros((1, 100_000), np.float32), [[7]], [None])])
    assert ours["recall@10"].value == pytest.approx(10 / 100_000)
    assert ours["mrr"].value == pytest.approx((1 / np.arange(1, 100_001)).mean())


def test_spearman_of_similarity_pairs_is_the_numeric_kind() -> None:
    rng = np.random.default_rng(3)
    people = rng.integers(0, 6, 300).astype(float)
    cosines = np.clip(people / 6 + rng.normal(0, 0.3, 300), -1, 1)
    score = statistics.bootstrap("number", people, cosines, metrics=["spearman"])["spearman"]
    assert score is not None
    assert score.low is not None
    assert score.low < score.value < 1


@pytest.mark.parametrize(
    ("scores", "wanted", "own", "named"),
    [
        ([[1.0, 2.0]], [[]], [None], "query 0: expected at least one relevant"),
        ([[1.0, 2.0]], [[2]], [None], "between 0 and 1"),
        ([[1.0, 2.0]], [[1]], [1], "the query itself"),
        ([[1.0, float("nan")]], [[1]], [None], "must be finite"),
    ],
)
def test_impossible_queries_are_named(
    scores: list[list[float]], wanted: list[list[int]], own: list[int | None], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        retrieval([(np.array(scores), wanted, own)])


def test_no_query_and_no_cutoff_are_refused() -> None:
    with pytest.raises(ValueError, match="no query"):
        retrieval([])
    with pytest.raises(ValueError, match="cutoffs"):
        retrieval([], cutoffs=[0])
