"""Intervals of corpus metrics cover, paired tests keep their size, both agree with what `statistics` does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from finesmith.evaluate import statistics
from finesmith.evaluate.influence import influence
from finesmith.evaluate.language_scores import bits_per_byte
from finesmith.evaluate.measurement import Measurement, mean_of
from finesmith.evaluate.overlap import bleu_of_sums
from finesmith.evaluate.paired import compare, influences, interval, swaps
from finesmith.evaluate.spans import f1_of_sums

System = Callable[[np.random.Generator, int], Measurement]


def measured_bleu(statistics: np.ndarray) -> Measurement:
    return Measurement("bleu", statistics, bleu_of_sums, bleu_of_sums(statistics, effective_order=True), "unit")


def bleu_rows(rng: np.random.Generator, difficulty: np.ndarray, skill: float) -> np.ndarray:
    """Return statistics as of real rows: lengths vary, each order matches rarer, easy rows are easy for all."""
    rows = len(difficulty)
    reference = rng.integers(8, 20, rows)
    length = np.maximum(reference + rng.integers(-3, 4, rows), 4)
    totals = length[:, None] - np.arange(4)
    share = np.clip(difficulty * skill, 0.02, 0.95)
    matches = np.empty((rows, 4), int)
    matches[:, 0] = rng.binomial(totals[:, 0], share)
    for order in range(1, 4):
        matches[:, order] = rng.binomial(np.minimum(matches[:, order - 1], totals[:, order]), share)
    return np.column_stack([matches, totals, length, reference]).astype(float)


def f1_rows(rng: np.random.Generator, rows: int, recall: float, extra: float) -> np.ndarray:
    expected = rng.poisson(1.5, rows)
    correct = rng.binomial(expected, recall)
    return np.column_stack([correct, correct + rng.poisson(extra, rows), expected]).astype(float)


def measured_f1(statistics: np.ndarray) -> Measurement:
    return Measurement("span_f1", statistics, f1_of_sums, f1_of_sums(statistics), "unit")


def equal_bleu(rng: np.random.Generator) -> tuple[Measurement, Measurement]:
    difficulty = rng.beta(4, 4, 60)
    return measured_bleu(bleu_rows(rng, difficulty, 1.0)), measured_bleu(bleu_rows(rng, difficulty, 1.0))


def equal_f1_otherwise_wrong(rng: np.random.Generator) -> tuple[Measurement, Measurement]:
    """Return two systems of F1 0.75 in the long run: one misses spans, the other invents some."""
    careful, eager = f1_rows(rng, 80, 0.6, 0.0), f1_rows(rng, 80, 1.0, 1.0)
    return measured_f1(careful), measured_f1(eager)


def equal_bits(rng: np.random.Generator) -> tuple[Measurement, Measurement]:
    sizes = rng.integers(50, 2000, 40).astype(float)
    common = rng.normal(0.7, 0.1, 40)
    first, second = (-sizes * (common + rng.normal(0, 0.05, 40)).clip(0.01) for _ in range(2))
    return bits_per_byte(first, sizes), bits_per_byte(second, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("equal", [equal_bleu, equal_f1_otherwise_wrong, equal_bits])
def test_equal_systems_differ_significantly_in_at_most_about_one_comparison_of_twenty(
    equal: Callable[[np.random.Generator], tuple[Measurement, Measurement]],
) -> None:
    rng = np.random.default_rng(0)
    rejected, covered = [], []
    for _ in range(400):
        result = compare(*equal(rng), resamples=300)
        rejected.append(result.p_value < 0.05)
        covered.append(result.low <= 0 <= result.high)
    # The standard error of 400 draws at 5 percent is 1.1 percent.
    assert 0.01 <= np.mean(rejected) <= 0.075
    assert 0.91 <= np.mean(covered) <= 0.985


def test_a_true_difference_of_the_smallest_detectable_size_is_mostly_found() -> None:
    rng = np.random.default_rng(1)
    found, smallest, gains = [], [], []
    for _ in range(150):
        difficulty = rng.beta(4, 4, 150)
        result = compare(
            measured_bleu(bleu_rows(rng, difficulty, 1.065)),
            measured_bleu(bleu_rows(rng, difficulty, 1.0)),
            resamples=300,
        )
        found.append(result.p_value < 0.05 and result.gain > 0)
        gains.append(result.gain)
        assert result.smallest_detectable is not None
        smallest.append(result.smallest_detectable)
    power = np.mean(found)
    # The true gain here is about the smallest one that 4 in 5 tests would show.
    assert np.mean(gains) / np.median(smallest) == pytest.approx(1.0, abs=0.15)
    assert 0.7 < power < 0.95


def test_intervals_of_bleu_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    truth = measured_bleu(bleu_rows(rng, rng.beta(4, 4, 200_000), 1.0)).value
    assert truth is not None
    covered = []
    for _ in range(300):
        score = interval(measured_bleu(bleu_rows(rng, rng.beta(4, 4, 80), 1.0)), resamples=300)
        assert score is not None
        assert score.low is not None
        assert score.high is not None
        covered.append(score.low <= truth <= score.high)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_influences_of_a_mean_are_deviations_and_of_micro_f1_its_derivative() -> None:
    values = np.random.default_rng(3).random(50)
    assert influences(mean_of("coverage", values)) == pytest.approx(values - values.mean())
    # Micro-F1 of labels is span F1 with one label decision a span: the closed form is in `influence`.
    rng = np.random.default_rng(4)
    truth, given = rng.random((400, 5)) < 0.3, rng.random((400, 5))
    rows = np.column_stack([((given >= 0.5) & truth).sum(1), (given >= 0.5).sum(1), truth.sum(1)]).astype(float)
    closed = influence("multi", "micro_f1", truth, given)
    assert closed is not None
    ours = influences(measured_f1(rows))
    assert ours == pytest.approx(closed, abs=0.02 * float(np.abs(closed).max()))


def test_comparison_agrees_with_that_of_micro_f1() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random((300, 4)) < 0.3
    sides = [np.clip(rng.random((300, 4)) * 0.8 + truth * share, 0, 1) for share in (0.30, 0.24)]

    def rows(given: np.ndarray) -> Measurement:
        chosen = given >= 0.5
        return measured_f1(np.column_stack([(chosen & truth).sum(1), chosen.sum(1), truth.sum(1)]).astype(float))

    theirs = statistics.paired("multi", "micro_f1", truth, *sides, True)
    ours = compare(*map(rows, sides))
    assert ours.gain == pytest.approx(theirs.gain)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours.p_value == pytest.approx(theirs.p_value, abs=0.02)
    assert ours.smallest_detectable == pytest.approx(theirs.smallest_detectable, rel=0.03)


def test_shares_agree_with_accuracy() -> None:
    rng = np.random.default_rng(6)
    targets = rng.integers(0, 2, 200)
    sides = [np.eye(2)[np.where(rng.random(200) < share, targets, 1 - targets)] for share in (0.9, 0.8)]
    theirs = statistics.paired("single", "accuracy", targets, *sides, True)
    ours = compare(*(mean_of("exact_match", side.argmax(1) == targets) for side in sides))
    assert (ours.gain, ours.p_value, ours.test) == pytest.approx((theirs.gain, theirs.p_value, theirs.test))
    assert ours.smallest_detectable == pytest.approx(theirs.smallest_detectable)
    alone = interval(mean_of("exact_match", np.ones(60)))
    assert alone is not None
    assert (alone.low, alone.high) == (pytest.approx(0.025 ** (1 / 60)), 1.0)


def test_swapping_agrees_with_swapping_and_measuring_again() -> None:
    rng = np.random.default_rng(7)
    difficulty = rng.beta(4, 4, 100)
    first, second = (measured_bleu(bleu_rows(rng, difficulty, skill)) for skill in (1.03, 1.0))
    gaps = []
    for _ in range(2000):
        swap = rng.random(100)[:, None] < 0.5
        sums = [np.where(swap, a.statistics, b.statistics).sum(0) for a, b in ((first, second), (second, first))]
        gaps.append(abs(float(bleu_of_sums(sums[0]) - bleu_of_sums(sums[1]))))
    assert first.value is not None
    assert second.value is not None
    again = np.mean(np.array(gaps) >= abs(first.value - second.value))
    ours = statistics.sign_flip(swaps(first, second))
    assert 0.005 < again < 0.5
    assert ours == pytest.approx(again, abs=0.03)


def test_groups_are_units_and_errors_gain_when_they_fall() -> None:
    rng = np.random.default_rng(8)
    values = np.repeat(rng.normal(0, 1, 20), 10)
    groups = np.repeat(np.arange(20), 10).tolist()
    loose, tight = interval(mean_of("m", values, "real"), groups), interval(mean_of("m", values, "real"))
    assert loose is not None
    assert tight is not None
    assert loose.low is not None
    assert tight.low is not None
    assert loose.value - loose.low > 2.5 * (tight.value - tight.low)
    sizes = np.full(50, 100.0)
    better = compare(bits_per_byte(-sizes * 0.5, sizes), bits_per_byte(-sizes * rng.uniform(0.6, 0.9, 50), sizes))
    assert better.gain > 0
    assert better.low > 0
    assert better.p_value < 0.01


def test_an_interval_ends_where_no_two_values_can_differ_more() -> None:
    good, bad = np.array([[1.0, 1.0, 1.0]] * 7 + [[1.0, 2.0, 2.0]]), np.array([[0.0, 1.0, 2.0]] * 7 + [[1.0, 3.0, 2.0]])
    found = compare(measured_f1(bad), measured_f1(good))
    assert found.low == -1.0
    assert -1.0 < found.gain < found.high < 0.0
    assert statistics.in_reach("mcc", -2.3, 2.1) == (-2.0, 2.0)
    assert statistics.in_reach("rmse", -5.0, 7.0) == (-5.0, 7.0)


def test_same_answers_show_nothing_and_what_is_undefined_is_said() -> None:
    rng = np.random.default_rng(9)
    rows = measured_f1(f1_rows(rng, 50, 0.7, 0.3))
    same = compare(rows, rows)
    assert (same.gain, same.low, same.high, same.p_value, same.smallest_detectable) == (0, 0, 0, 1, None)
    nothing = measured_f1(np.zeros((5, 3)))
    assert interval(nothing) is None
    with pytest.raises(ValueError, match="span_f1 is undefined on these 5 rows"):
        compare(nothing, nothing)
    with pytest.raises(ValueError, match="measure both models by one metric"):
        compare(rows, mean_of("coverage", np.ones(50)))
    with pytest.raises(ValueError, match="one finite value"):
        mean_of("m", [float("nan")])
    with pytest.raises(ValueError, match="cannot be compared on 1 rows or groups"):
        compare(rows, rows, groups=["one"] * 50)
    sparse = measured_f1(np.array([[1.0, 1.0, 1.0]] * 2 + [[0.0, 0.0, 0.0]] * 8))
    with pytest.raises(ValueError, match="too few on which it is defined"):
        compare(sparse, sparse)
    one = interval(measured_f1(np.array([[1.0, 2.0, 2.0]])))
    assert one is not None
    assert one.low is None
