"""Reward accuracy counts pairs, the margin is a mean in the rewards' own unit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finesmith.evaluate.paired import compare, interval
from finesmith.evaluate.preference import preferences


def test_accuracy_and_margin_with_ties() -> None:
    ours = preferences([1.0, 2.0, 0.0, -1.0], [0.0, 3.0, 0.0, -2.0])
    assert ours["reward_accuracy"].per_example.tolist() == [1.0, 0.0, 0.5, 1.0]
    assert ours["reward_accuracy"].value == 0.625
    assert ours["reward_margin"].value == pytest.approx(0.25)


def test_intervals_are_those_of_a_mean() -> None:
    margins = np.random.default_rng(0).normal(-0.3, 2.0, 500)
    ours = interval(preferences(margins, np.zeros(500))["reward_margin"])
    assert ours is not None
    assert ours.low is not None
    low, high = stats.t.interval(0.95, 499, margins.mean(), stats.sem(margins))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.02)


def test_two_models_without_ties_are_compared_by_mcnemar() -> None:
    rng = np.random.default_rng(1)
    first, second = (preferences(rng.normal(d, 1, 300), np.zeros(300)) for d in (0.8, 0.1))
    ours = compare(first["reward_accuracy"], second["reward_accuracy"])
    assert ours.test == "exact McNemar"
    assert ours.p_value < 0.05
    assert compare(first["reward_margin"], second["reward_margin"]).test == "paired sign-flip"


def test_rewards_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        preferences([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="reward_margin"):
        preferences([float("nan")], [1.0])
