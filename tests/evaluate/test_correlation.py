"""Correlations as sums over rows: scipy's values, and the intervals and tests that the same metrics have elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finesmith.evaluate import statistics
from finesmith.evaluate.correlation import correlations
from finesmith.evaluate.paired import compare, interval

ORACLES = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}


def drawn(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return whole scores, so with ties, and cosines that go with them."""
    draw = np.random.default_rng(seed)
    wanted = draw.integers(0, 6, count).astype(float)
    return wanted, np.tanh(wanted / 5 + noise * draw.normal(size=count))


@pytest.mark.parametrize("noise", [0.05, 0.5, 5.0])
def test_values_are_those_of_scipy_and_intervals_those_of_ratings(noise: float) -> None:
    wanted, found = drawn(80, noise)
    groups = [row // 2 for row in range(80)]
    for name, one in correlations(wanted, found).items():
        assert one.value == pytest.approx(ORACLES[name](wanted, found)[0], rel=1e-12)
        for units in (None, groups):
            ours = interval(one, units, 500)
            theirs = statistics.bootstrap("number", wanted, found, units, 500)[name]
            assert ours is not None
            assert theirs is not None
            # Quantiles between two draws are taken on the other scale.
            assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-3), pytest.approx(theirs.high, abs=1e-3))
        rows = [3, 8, 1, 44, 23, 60]
        assert one.take(rows).value == pytest.approx(ORACLES[name](wanted[rows], found[rows])[0], rel=1e-12)


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_comparisons_are_those_of_ratings(name: str) -> None:
    wanted, better = drawn(120, 0.3)
    for noise in (0.32, 0.6):
        other = np.tanh(wanted / 5 + noise * np.random.default_rng(5).normal(size=120))
        sides = [correlations(wanted, each)[name] for each in (better, other)]
        ours = compare(*sides, None, 2000)
        theirs = statistics.paired("number", name, wanted, better, other, True, None, 2000)
        assert ours.gain == pytest.approx(theirs.gain, abs=1e-12)
        assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))
        assert ours.p_value == pytest.approx(theirs.p_value, abs=0.03)


def test_what_has_no_correlation_and_what_is_perfect() -> None:
    same = correlations([1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5])["spearman"]
    assert same.value is None
    assert interval(same) is None
    ends = correlations([1, 2, 3, 4], [0.1, 0.2, 0.5, 0.9])["spearman"]
    score = interval(ends)
    assert score is not None
    assert (score.value, score.low, score.high) == (1.0, None, None)
    with pytest.raises(ValueError, match="fit"):
        correlations([1, 2], [0.5])
