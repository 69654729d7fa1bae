"""Baselines are strong, quick, deterministic, and survive classes and words they never saw."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from finesmith.errors import DataError
from finesmith.evaluate.baselines import majority, tfidf_linear
from finesmith.evaluate.metrics import measure

GOOD = ["a good film", "really good acting", "good and warm", "lovely good fun"]
BAD = ["a bad film", "really bad acting", "bad and cold", "dreary bad mess"]


def test_majority_predicts_frequencies_and_medians() -> None:
    np.testing.assert_allclose(majority(np.array([0, 0, 1]), 2, "single", classes=3), [[2 / 3, 1 / 3, 0]] * 2)
    labels = np.array([[True, False], [True, True], [False, False], [True, False]])
    np.testing.assert_allclose(majority(labels, 1, "multi"), [[0.75, 0.25]])
    np.testing.assert_allclose(majority(np.array([1.0, 2.0, 9.0]), 2, "number"), [2.0, 2.0])


@pytest.mark.parametrize(("metric", "constant"), [("rmse", 4.0), ("r2", 4.0), ("mae", 2.0), ("spearman", 2.0)])
def test_the_constant_is_the_one_that_the_metric_rewards(metric: str, constant: float) -> None:
    targets = np.array([1.0, 2.0, 9.0])
    np.testing.assert_allclose(majority(targets, 2, "number", metric=metric), [constant] * 2)
    if metric in ("rmse", "mae"):
        losses = [measure("number", targets, np.full(3, guess))[metric] for guess in (constant, 1.5, 3.0, 5.0)]
        assert losses[0] == min(losses)
    with pytest.raises(ValueError, match="no metric 'accuracy' for such predictions; choose one of rmse, mae"):
        majority(targets, 2, "number", metric="accuracy")


def test_probabilities_keep_the_column_of_a_class_that_training_lacks() -> None:
    targets = np.array([1] * 4 + [3] * 4)
    predictions = tfidf_linear((GOOD + BAD, None), targets, {"test": (["good", "bad", ""], None)}, "single", classes=5)
    table = predictions.predictions["test"]
    assert table.shape == (3, 5)
    np.testing.assert_allclose(table.sum(axis=1), 1.0)
    assert table[:, [0, 2, 4]].max() == 0.0
    assert list(table.argmax(axis=1)[:2]) == [1, 3]
    lone = tfidf_linear((GOOD, None), np.full(4, 2), {"test": (BAD, None)}, "single", classes=3)
    np.testing.assert_allclose(lone.predictions["test"], [[0, 0, 1]] * 4)


def test_many_classes_agree_with_one_regression_per_class() -> None:
    texts = [f"{word} number {i}" for i in range(8) for word in ("card", "loan", "transfer")]
    targets = np.array([0, 1, 2] * 8)
    result = tfidf_linear((texts, None), targets, {"train": (texts, None)}, "single", classes=3)
    assert (result.predictions["train"].argmax(axis=1) == targets).all()
    assert result.details["tried"] == [{"penalty": 3.0, "converged": True}]
    assert result.seconds > 0


def test_labels_that_always_or_never_apply() -> None:
    labels = np.array([[i < 4, True, False] for i in range(8)])
    table = tfidf_linear((GOOD + BAD, None), labels, {"t": (["good"], None)}, "multi").predictions["t"]
    assert table[0, 0] > 0.5
    np.testing.assert_array_equal(table[0, 1:], [1.0, 0.0])


def test_numbers_stay_within_the_training_range_and_validation_picks_the_penalty() -> None:
    targets = np.array([5.0] * 4 + [1.0] * 4)
    held = ((["good good good", "bad bad"], None), np.array([5.0, 1.0]))
    result = tfidf_linear((GOOD + BAD, None), targets, {"t": (["good good", "bad"], None)}, "number", validation=held)
    high, low = result.predictions["t"]
    assert 1.0 <= low < 3.0 < high <= 5.0
    tried = {row["penalty"]: row["rmse"] for row in result.details["tried"]}
    assert result.details["penalty"] == min(tried, key=tried.__getitem__)
    assert result.name == "TF-IDF + ridge regression"


def rare(rows: int, seed: int) -> tuple[tuple[list[str], None], np.ndarray]:
    """Return texts of which 8 percent are positive, told by words that negatives hold too, less often."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(rows) < 0.08).astype(int)
    words = [
        rng.choice(["plain", "usual", "clause", "sharp"], 6, p=[0.3, 0.3, 0.3 - 0.2 * y, 0.1 + 0.2 * y])
        for y in targets
    ]
    return ([" ".join(row) for row in words], None), targets


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_penalty_is_the_best_by_the_metric_asked_for(metric: str) -> None:
    (train, targets), (held, answers) = rare(400, 0), rare(300, 1)
    result = tfidf_linear(train, targets, {"t": held}, "single", classes=2, validation=(held, answers), metric=metric)
    tried = {row["penalty"]: row[metric] * (-1 if metric == "log_loss" else 1) for row in result.details["tried"]}
    assert len(tried) == 3
    assert result.details["penalty"] == max(tried, key=tried.__getitem__)
    with pytest.raises(ValueError, match="choose one of accuracy, macro_f1"):
        tfidf_linear(train, targets, {}, "single", classes=2, metric="rmse")


def test_balanced_rows_find_the_rare_class() -> None:
    (train, targets), (test, truth) = rare(400, 0), rare(400, 2)
    recalls = []
    for balanced in (False, True):
        found = tfidf_linear(train, targets, {"t": test}, "single", classes=2, balanced=balanced)
        answers = found.predictions["t"].argmax(axis=1)
        recalls.append(answers[truth == 1].mean())
        assert found.details["balanced"] is balanced
    assert recalls[1] > recalls[0] + 0.1
    labels = np.column_stack([targets == 1, targets == 0])
    tables = [tfidf_linear(train, labels, {"t": test}, "multi", balanced=b).predictions["t"] for b in (False, True)]
    assert (tables[1][:, 0] > tables[0][:, 0]).mean() > 0.95
    with pytest.raises(ValueError, match="numbers have no classes"):
        tfidf_linear(train, targets * 1.0, {}, "number", balanced=True)


def test_pairs_learn_from_what_both_texts_share() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    first = [" ".join(rng.choice(words, 6, replace=False)) for _ in range(600)]
    same = rng.random(600) < 0.5
    second = [
        " ".join(rng.permutation(text.split())) if equal else " ".join(rng.choice(words, 6, replace=False))
        for text, equal in zip(first, same, strict=True)
    ]
    train, test = (first[:400], second[:400]), (first[400:], second[400:])
    table = tfidf_linear(train, same[:400].astype(int), {"test": test}, "single", classes=2).predictions["test"]
    assert (table.argmax(axis=1) == same[400:]).mean() > 0.95


def test_same_seed_same_bits() -> None:
    arguments = ((GOOD + BAD, None), np.array([0] * 4 + [1] * 4), {"t": (GOOD, None)}, "single")
    first, again = (tfidf_linear(*arguments, classes=2, seed=5).predictions["t"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(DataError, match="the 2 training texts hold no words"):
        tfidf_linear((["", "  "], None), np.array([0, 1]), {}, "single", classes=2)


@pytest.mark.slow
def test_film_reviews_score_and_time(shared: Path) -> None:
    def read(split: str) -> tuple[list[str], np.ndarray]:
        lines = (shared / f"data/film_reviews/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["text"] for row in rows], np.array([int(row["label"] == "positive") for row in rows])

    (texts, targets), (held, answers), (test, truth) = (read(split) for split in ("train", "validation", "test"))
    started = time.process_time()
    result = tfidf_linear(
        (texts, None), targets, {"test": (test, None)}, "single", classes=2, validation=((held, None), answers)
    )
    assert time.process_time() - started < 20
    assert (result.predictions["test"].argmax(axis=1) == truth).mean() >= 0.785
