"""Micro-batches counted in tokens: every row once, never too many tokens, the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.packing import WINDOW, packed_epoch, ragged, within_budget
from finesmith.data.supervised import Supervised
from finesmith.errors import UserError


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60), st.integers(0, 5))
def test_every_row_once_within_the_budget(sizes: list[int], budget: int, epoch: int) -> None:
    lengths = np.array(sizes, np.int64)
    found = packed_epoch(lengths, budget, seed=3, epoch=epoch)
    assert sorted(int(p) for members in found for p in members) == list(range(len(sizes)))
    for members in found:
        assert lengths[members].sum() <= budget or len(members) == 1
        assert (np.diff(lengths[members]) >= 0).all()
    again = packed_epoch(lengths, budget, seed=3, epoch=epoch)
    assert [m.tolist() for m in found] == [m.tolist() for m in again]
    # Best fit decreasing never leaves two micro-batches that would fit into one.
    loads = sorted(int(lengths[members].sum()) for members in found)
    assert len(loads) < 2 or loads[0] + loads[1] > budget


def test_best_fit_decreasing_by_hand() -> None:
    lengths = np.array([7, 5, 3, 3, 2])
    found = within_budget(np.arange(5), lengths, 10)
    assert [lengths[members].tolist() for members in found] == [[3, 7], [2, 3, 5]]


def test_seed_and_epoch_change_neighbours_and_order() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 2 * WINDOW)
    one, other = (packed_epoch(lengths, 512, seed=0, epoch=epoch) for epoch in (0, 1))
    assert {tuple(sorted(m.tolist())) for m in one} != {tuple(sorted(m.tolist())) for m in other}
    assert sum(len(m) for m in one) == 2 * WINDOW
    assert lengths.sum() / (512 * len(one)) > 0.97


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        within_budget(np.arange(2), np.array([1, 1]), 0)


def test_rows_lie_end_to_end_with_their_targets() -> None:
    tokens = np.arange(10, dtype=np.int32)
    targets = np.where(tokens % 2 == 0, tokens + 1, -100).astype(np.int32)
    rows = Supervised(tokens, np.array([0, 3, 5, 10]), targets)
    assert len(rows) == 3
    assert rows.lengths().tolist() == [3, 2, 5]
    with pytest.raises(IndexError, match="row 3 of 3"):
        rows.row(3)
    batch = ragged(rows, np.array([1, 2]), ids=np.array([70, 80, 90]))
    assert batch.tokens.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert batch.lengths.tolist() == [2, 5]
    assert batch.ids.tolist() == [80, 90]
    assert batch.targets is not None
    assert batch.targets.tolist() == [*rows.row(1)[1].tolist(), *rows.row(2)[1].tolist()]
    assert str(batch.targets.dtype) == str(batch.tokens.dtype) == "torch.int64"
    assert batch.segments is None
