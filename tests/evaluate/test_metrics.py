"""Metrics agree with scikit-learn and with naive loops, and stay quiet where they are undefined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from finesmith.evaluate import metrics as m


def single(seed: int, rows: int, classes: int, missing: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes - 1 if missing and classes > 2 else classes, rows)
    probabilities = rng.dirichlet(np.ones(classes), rows)
    probabilities[np.arange(rows), targets] += 0.4
    probabilities = np.round(probabilities / probabilities.sum(axis=1, keepdims=True), 3)
    return targets, probabilities / probabilities.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(2, 6), st.booleans())
def test_single_label_metrics_agree_with_scikit_learn(seed: int, rows: int, classes: int, missing: bool) -> None:
    targets, probabilities = single(seed, rows, classes, missing)
    predicted = probabilities.argmax(axis=1)
    ours = m.classification(targets, probabilities)
    assert ours["accuracy"] == pytest.approx(oracle.accuracy_score(targets, predicted))
    assert ours["macro_f1"] == pytest.approx(oracle.f1_score(targets, predicted, average="macro", zero_division=0))
    one_class = min(len(set(targets)), len(set(predicted))) == 1
    assert ours["mcc"] == pytest.approx(0.0 if one_class else oracle.matthews_corrcoef(targets, predicted))
    expected = oracle.log_loss(targets, probabilities, labels=list(range(classes)))
    assert ours["log_loss"] == pytest.approx(expected)
    columns = [1] if classes == 2 else [c for c in range(classes) if 0 < (targets == c).sum() < rows]
    if len(set(targets)) == 1:
        assert ours["auroc"] is None
    else:
        areas = [oracle.roc_auc_score(targets == c, probabilities[:, c]) for c in columns]
        assert ours["auroc"] == pytest.approx(np.mean(areas))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 5))
def test_multi_label_metrics_agree_with_scikit_learn(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, labels)) < 0.3
    probabilities = np.round(rng.random((rows, labels)) * 0.7 + 0.3 * targets, 2)
    given_ = probabilities >= 0.5
    ours = m.multi_label(targets, probabilities)
    present = [c for c in range(labels) if targets[:, c].any() or given_[:, c].any()]
    f1 = [oracle.f1_score(targets[:, c], given_[:, c], zero_division=0) for c in present]
    assert ours["macro_f1"] == (pytest.approx(np.mean(f1)) if present else None)
    if present:
        pooled = oracle.f1_score(targets.ravel(), given_.ravel(), zero_division=0)
        assert ours["micro_f1"] == pytest.approx(pooled)
    assert ours["subset_accuracy"] == pytest.approx(np.mean([(targets[i] == given_[i]).all() for i in range(rows)]))
    assert ours["hamming_accuracy"] == pytest.approx(1 - oracle.hamming_loss(targets, given_))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 60))
def test_regression_metrics_agree_with_scipy(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.append(rng.integers(1, 6, rows - 1), 9).astype(float)
    predictions = targets + rng.normal(size=rows)
    ours = m.regression(targets, predictions)
    assert ours["rmse"] == pytest.approx(oracle.root_mean_squared_error(targets, predictions))
    assert ours["mae"] == pytest.approx(oracle.mean_absolute_error(targets, predictions))
    assert ours["r2"] == pytest.approx(oracle.r2_score(targets, predictions))
    assert ours["pearson"] == pytest.approx(stats.pearsonr(targets, predictions).statistic)
    assert ours["spearman"] == pytest.approx(stats.spearmanr(targets, predictions).statistic)


def test_calibration_error_is_the_naive_sum_over_bins_of_equal_mass() -> None:
    targets, probabilities = single(3, 600, 3)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    edges = np.quantile(confidence, [i / 15 for i in range(1, 15)])
    bins: dict[int, list[int]] = {}
    for row, value in enumerate(confidence):
        bins.setdefault(sum(value >= edge for edge in edges), []).append(row)
    naive = sum(len(rows) / 600 * abs(correct[rows].mean() - confidence[rows].mean()) for rows in bins.values())
    assert m.classification(targets, probabilities)["calibration_error"] == pytest.approx(naive)


def test_equal_confidences_share_one_bin_whatever_their_order() -> None:
    confidence = np.full(500, 0.7)
    assert set(m.calibration_bins(confidence)) == {0}
    tied = np.repeat([0.6, 0.9], [100, 400])
    shuffled = np.random.default_rng(0).permutation(500)
    np.testing.assert_array_equal(m.calibration_bins(tied)[shuffled], m.calibration_bins(tied[shuffled]))


def test_classes_absent_from_the_test_split_neither_crash_nor_warn() -> None:
    probabilities = np.full((4, 5), 0.1)
    probabilities[:, 2] = 0.6
    values = m.classification(np.array([2, 2, 2, 2]), probabilities)
    assert values["accuracy"] == values["macro_f1"] == 1.0
    assert values["mcc"] == 0.0
    assert values["auroc"] is None
    figures = m.classification_details(np.array([2, 2, 2, 2]), probabilities, list("abcde"))
    assert figures["per_class"][0] == {
        "label": "a", "precision": None, "recall": None, "f1": None, "support": 0, "predicted": 0,
    }  # fmt: skip
    assert m.multi_label(np.zeros((3, 2), bool), np.zeros((3, 2)))["micro_f1"] is None
    constant = m.regression(np.ones(4), np.arange(4.0))
    assert constant["r2"] is constant["pearson"] is constant["spearman"] is None


def test_details_are_json_and_add_up() -> None:
    targets, probabilities = single(1, 300, 4)
    figures = json.loads(json.dumps(m.classification_details(targets, probabilities, list("abcd"))))
    predicted = probabilities.argmax(axis=1)
    assert figures["confusion"] == oracle.confusion_matrix(targets, predicted, labels=range(4)).tolist()
    assert sum(row["support"] for row in figures["per_class"]) == 300
    assert sum(row["rows"] for row in figures["reliability"]) == 300
    recalls = oracle.recall_score(targets, predicted, average=None)
    assert [row["recall"] for row in figures["per_class"]] == pytest.approx(list(recalls))
    multi = json.loads(json.dumps(m.multi_label_details(probabilities > 0.3, probabilities, list("abcd"))))
    assert sum(row["rows"] for row in multi["reliability"]) == 1200
    numbers = json.loads(json.dumps(m.regression_details(probabilities[:, 0], probabilities[:, 1])))
    assert sum(row["rows"] for row in numbers["predicted_vs_true"]) == 300


def test_every_metric_has_a_direction_and_a_name() -> None:
    names = {name for group in m.METRICS.values() for name in group}
    assert names < set(m.HIGHER_IS_BETTER) == set(m.DISPLAY_NAMES)


@pytest.mark.parametrize(
    ("kind", "targets", "predictions"),
    [
        ("single", [0, 1], [[0.5, 0.5]]),
        ("single", [0, 2], [[0.5, 0.5], [0.5, 0.5]]),
        ("single", [0], [[float("nan"), 0.5]]),
        ("number", [1.0, float("inf")], [1.0, 2.0]),
        ("number", [], []),
        ("multi", [True], [[0.5]]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(kind: m.Kind, targets: list[float], predictions: list[float]) -> None:
    with pytest.raises(ValueError, match=kind):
        m.measure(kind, np.array(targets), np.array(predictions))


def test_a_reviews_majority_answer_scores_one_half(shared: Path) -> None:
    lines = (shared / "data/film_reviews/test.jsonl").read_text(encoding="utf-8").splitlines()
    targets = np.array([int(json.loads(line)["label"] == "positive") for line in lines])
    values = m.classification(targets, np.tile([0.4, 0.6], (len(targets), 1)))
    assert values["accuracy"] == pytest.approx(targets.mean())
    assert values["auroc"] == 0.5
