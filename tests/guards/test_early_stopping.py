"""Early stopping: what counts as better, when patience ends, and that a resume remembers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesmith.guards.early_stopping import EarlyStopping


def feed(stopper: EarlyStopping, values: list[float], losses: list[float] | None = None) -> list[bool]:
    losses = losses or [1.0] * len(values)
    return [stopper.observe(v, loss, i + 1) for i, (v, loss) in enumerate(zip(values, losses, strict=True))]


def test_the_first_evaluation_is_the_best_so_far() -> None:
    stopper = EarlyStopping(2, higher_is_better=True)
    assert not stopper.exhausted
    assert stopper.observe(0.0, 9.0, 4)
    assert (stopper.best, stopper.best_step, stopper.bad) == (0.0, 4, 0)


@pytest.mark.parametrize(("higher", "values"), [(True, [0.5, 0.6, 0.5, 0.55]), (False, [0.6, 0.5, 0.6, 0.55])])
def test_patience_counts_evaluations_without_improvement(higher: bool, values: list[float]) -> None:
    stopper = EarlyStopping(2, higher_is_better=higher)
    assert feed(stopper, values[:3]) == [True, True, False]
    assert not stopper.exhausted
    stopper.observe(values[3], 1.0, 4)
    assert stopper.exhausted
    assert stopper.best_step == 2


def test_an_improvement_renews_patience() -> None:
    stopper = EarlyStopping(2, higher_is_better=True)
    feed(stopper, [0.5, 0.4, 0.6, 0.4])
    assert stopper.bad == 1
    assert not stopper.exhausted


def test_equal_values_are_decided_by_the_lower_loss() -> None:
    stopper = EarlyStopping(3, higher_is_better=True)
    assert feed(stopper, [0.5, 0.5, 0.5, 0.5], [1.0, 0.9, 0.95, 0.9]) == [True, True, False, False]
    assert stopper.best_step == 2


def test_without_patience_it_keeps_the_best_and_never_stops() -> None:
    stopper = EarlyStopping(None, higher_is_better=True)
    feed(stopper, [0.9] + [0.1] * 50)
    assert not stopper.exhausted
    assert stopper.best_step == 1


def test_a_value_that_is_no_number_gives_way_to_the_first_that_is() -> None:
    stopper = EarlyStopping(1, higher_is_better=True)
    nan = float("nan")
    assert feed(stopper, [nan, 0.5, nan]) == [True, True, False]
    assert (stopper.best, stopper.best_step) == (0.5, 2)
    assert stopper.exhausted


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1, max_size=20), st.booleans(), st.data())
def test_a_restored_stopper_goes_on_as_the_first(pairs: list[tuple[float, float]], higher: bool, data: st.DataObject):
    cut = data.draw(st.integers(0, len(pairs)))
    first = EarlyStopping(3, higher)
    for step, (value, loss) in enumerate(pairs[:cut]):
        first.observe(value, loss, step)
    second = EarlyStopping(3, higher)
    second.restore(json.loads(json.dumps(first.state())))
    assert second == first
    for step, (value, loss) in enumerate(pairs[cut:]):
        assert first.observe(value, loss, step) == second.observe(value, loss, step)
        assert first.exhausted == second.exhausted
    best = max(v for v, _ in pairs) if higher else min(v for v, _ in pairs)
    assert second.best == best
