"""Intervals cover, tests keep their size, influences are derivatives, closed forms match simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from finesmith.evaluate import statistics as s
from finesmith.evaluate.influence import influence
from finesmith.evaluate.metrics import METRICS, Kind, measure


def sample(kind: Kind, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if kind == "number":
        targets = rng.normal(size=rows).round(1)
        return targets, (targets + rng.normal(size=rows)).round(1)
    if kind == "multi":
        truth = rng.random((rows, 3)) < 0.3
        return truth, np.clip(rng.random((rows, 3)) * 0.7 + truth * 0.3, 0, 1)
    labels = rng.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05])
    probabilities = rng.dirichlet(np.ones(4), rows)
    probabilities[np.arange(rows), labels] += 0.5
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


NAMES = [(kind, name) for kind, names in METRICS.items() for name in names if name != "calibration_error"]


@pytest.mark.parametrize(("kind", "metric"), NAMES)
def test_influence_is_the_derivative_by_leaving_one_row_out(kind: Kind, metric: str) -> None:
    targets, predictions = sample(kind, 250)
    value = measure(kind, targets, predictions)[metric]
    left_out = [
        249 * (value - measure(kind, np.delete(targets, row, 0), np.delete(predictions, row, 0))[metric])
        for row in range(250)
    ]
    ours = influence(kind, metric, targets, predictions)
    assert ours is not None
    assert ours.mean() == pytest.approx(0.0, abs=1e-12)
    assert np.corrcoef(ours, left_out)[0, 1] > 0.9995
    assert ours.std() == pytest.approx(np.std(left_out), rel=0.05)


@pytest.mark.parametrize(("kind", "metric"), NAMES)
def test_interval_agrees_with_a_naive_bootstrap_of_whole_rows(kind: Kind, metric: str) -> None:
    targets, predictions = sample(kind, 800, seed=1)
    rng = np.random.default_rng(5)
    replicates = []
    for _ in range(150):
        rows = rng.integers(0, 800, 800)
        replicates.append(measure(kind, targets[rows], predictions[rows])[metric])
    ours = s.bootstrap(kind, targets, predictions, metrics=[metric])[metric]
    assert ours is not None
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low < ours.value < ours.high
    assert ours.high - ours.low == pytest.approx(3.92 * np.std(replicates), rel=0.2)


def test_intervals_cover_the_truth() -> None:
    truth = {kind: measure(kind, *sample(kind, 200_000, seed=123)) for kind in ("single", "number")}
    covered: dict[str, list[bool]] = {}
    for seed in range(200):
        for kind, wanted in (("single", ["accuracy", "macro_f1", "auroc"]), ("number", ["rmse", "spearman"])):
            scores = s.bootstrap(kind, *sample(kind, 150, seed=1000 + seed), resamples=200, metrics=wanted)
            for name in wanted:
                score = scores[name]
                covered.setdefault(name, []).append(score.low <= truth[kind][name] <= score.high)
    for name, hits in covered.items():
        assert np.mean(hits) >= 0.91, name


def test_a_perfect_score_has_the_exact_binomial_bound_or_none() -> None:
    targets = np.arange(60) % 2
    scores = s.bootstrap("single", targets, np.eye(2)[targets] * 0.9 + 0.05)
    exact = stats.binomtest(60, 60).proportion_ci(0.95, "exact")
    assert scores["accuracy"].low == pytest.approx(exact.low)
    assert scores["accuracy"].high == 1.0
    assert scores["macro_f1"].value == 1.0
    assert scores["macro_f1"].low is scores["macro_f1"].high is None


def test_undefined_metrics_have_no_score() -> None:
    assert s.bootstrap("single", np.zeros(30, int), np.tile([0.7, 0.3], (30, 1)))["auroc"] is None
    assert s.bootstrap("number", np.ones(30), np.arange(30.0), metrics=["r2"]) == {"r2": None}


def test_same_seed_same_intervals() -> None:
    targets, predictions = sample("single", 200)
    first, again = (s.bootstrap("single", targets, predictions, seed=3, resamples=200) for _ in range(2))
    assert first == again
    assert first != s.bootstrap("single", targets, predictions, seed=4, resamples=200)


def test_rows_of_one_group_count_as_one() -> None:
    targets, predictions = sample("single", 150)
    groups = [f"customer {row}" for row in range(150)]
    once = s.bootstrap("single", targets, predictions, groups, metrics=["accuracy", "mcc"])
    fivefold = s.bootstrap(
        "single", np.tile(targets, 5), np.tile(predictions, (5, 1)), groups * 5, metrics=["accuracy", "mcc"]
    )
    for name, score in once.items():
        assert fivefold[name].low == pytest.approx(score.low)
        assert fivefold[name].high == pytest.approx(score.high)
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, 150)
    other = differences * rng.uniform(0.5, 1.0, 150)
    assert s.sign_flip(np.tile(differences, 5), groups * 5) == s.sign_flip(differences)
    repeated = s.smallest_by_other_test(np.tile(differences, 5), np.tile(other, 5), groups * 5)
    assert repeated == pytest.approx(s.smallest_by_other_test(differences, other))
    with pytest.raises(ValueError, match="groups"):
        s.sign_flip(differences, groups[:-1])


def test_a_hundred_thousand_rows_take_seconds() -> None:
    targets, predictions = sample("single", 100_000)
    started = time.process_time()
    s.bootstrap("single", targets, predictions)
    assert time.process_time() - started < 15


def test_mcnemar_is_the_sum_over_the_binomial() -> None:
    both = np.array([1] * 50 + [1] * 9 + [0] * 2, bool), np.array([1] * 50 + [0] * 9 + [1] * 2, bool)
    tail = sum(
        stats.binom.pmf(k, 11, 0.5)
        for k in range(12)
        if stats.binom.pmf(k, 11, 0.5) <= stats.binom.pmf(9, 11, 0.5) * 1.0001
    )
    assert s.mcnemar(*both) == pytest.approx(tail)
    assert s.mcnemar(both[0], both[0]) == 1.0


def test_sign_flip_agrees_with_every_sign() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.2, 0.6, 0.0, 0.1, 0.35])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    exact = np.mean(np.abs(signs.T @ differences) >= abs(differences.sum()) - 1e-9)
    assert s.sign_flip(differences, resamples=20_000) == pytest.approx(exact, abs=0.006)
    assert s.sign_flip(np.zeros(10)) == 1.0


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_sign_flip_keeps_its_size(share: float) -> None:
    rng = np.random.default_rng(2)
    draws = rng.choice([-1.0, 0.0, 1.0], size=(500, 80), p=[share / 2, 1 - share, share / 2])
    rejected = np.mean([s.sign_flip(row, resamples=200, seed=i) < 0.05 for i, row in enumerate(draws)])
    assert rejected <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize(("rows", "disagreement"), [(60, 0.3), (500, 0.1), (3000, 0.15)])
def test_smallest_share_difference_has_its_power_in_simulation(rows: int, disagreement: float) -> None:
    gain = s.smallest_share_difference(rows, disagreement)
    assert gain is not None
    share = max(disagreement, gain)
    rng = np.random.default_rng(0)
    only_a, only_b, _ = rng.multinomial(rows, [(share + gain) / 2, (share - gain) / 2, 1 - share], 20_000).T
    shown = 2 * stats.binom.sf(only_a - 1, only_a + only_b, 0.5) <= 0.05
    assert shown.mean() == pytest.approx(s.POWER, abs=0.01)
    connor = (1.96 * share**0.5 + 0.9542 * (share - gain**2) ** 0.5) / rows**0.5
    assert gain == pytest.approx(connor, rel=0.15)
    assert gain >= connor * 0.99


def test_smallest_mean_difference_is_the_textbook_formula_for_many_rows() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.5, 20_000)
    assert s.smallest_difference(differences) == pytest.approx(2.9141 * 0.5 / 20_000**0.5, rel=0.03)


def test_smallest_by_another_test_is_in_the_unit_of_the_differences() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.5, 20_000)
    alone = s.smallest_by_other_test(differences, differences)
    assert alone == pytest.approx(2.9141 * 0.5 / 20_000**0.5, rel=0.03)
    assert s.smallest_by_other_test(differences, 0.4 * differences) == pytest.approx(alone)


@pytest.mark.parametrize("gain", [0.05, 0.2, -0.1])
def test_smallest_by_another_test_has_its_power_in_simulation(gain: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([1.0, -0.5, 0.0], size=4000, p=[0.1 + gain / 2, 0.25 - gain, 0.65 + gain / 2])
    smallest = s.smallest_by_other_test(values[:200], values[:200])
    assert smallest is not None
    # The same answers with more of the good ones: a world whose true gain is the stated one.
    rate = (smallest + 0.5 * 0.2) / 1.5
    assert rate < 0.2
    draws = rng.choice([1.0, -0.5, 0.0], size=(2000, 200), p=[rate, 0.2 - rate, 0.8])
    shown = draws.sum(axis=1) > 1.96 * np.sqrt((draws**2).sum(axis=1))
    assert 0.7 < shown.mean() < 0.93


def test_too_few_rows_can_show_nothing() -> None:
    assert s.smallest_share_difference(5, 0.2) is None
    assert s.smallest_difference(np.ones(5)) is None
    assert s.smallest_difference(np.zeros(500)) is None
    assert s.smallest_by_other_test(np.ones(5), np.ones(5)) is None
    assert s.smallest_by_other_test(np.ones(500), np.zeros(500)) is None
    assert s.smallest_share_difference(200, 0.0) == pytest.approx(8.2 / 200, rel=0.1)


def test_comparison_takes_the_test_that_suits() -> None:
    targets, tuned = sample("single", 300)
    baseline = np.roll(tuned, 1, axis=0)
    plain = s.paired("single", "accuracy", targets, tuned, baseline, True, resamples=300)
    right = [p.argmax(axis=1) == targets for p in (tuned, baseline)]
    assert plain.test == "exact McNemar"
    assert plain.p_value == pytest.approx(s.mcnemar(*right))
    assert plain.gain == pytest.approx(right[0].mean() - right[1].mean())
    grouped = s.paired("single", "accuracy", targets, tuned, baseline, True, list(range(300)), resamples=300)
    assert grouped.test == "paired sign-flip"
    lower = s.paired("single", "log_loss", targets, tuned, baseline, False, resamples=300)
    values = [measure("single", targets, p)["log_loss"] for p in (tuned, baseline)]
    assert lower.gain == pytest.approx(values[1] - values[0])
    with pytest.raises(ValueError, match="undefined"):
        s.paired("single", "auroc", np.zeros(300, int), tuned[:, :2], tuned[:, :2], True)
