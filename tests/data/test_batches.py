"""Batches: every example once an epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import batches
from finesmith.data.tokens import Tokens

COUNTS = st.integers(1, 60)
SIZES = st.integers(1, 70)


def tokens_of(lengths: list[int], *, segments: bool = False) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    kinds = (np.arange(total) % 2).astype(np.uint8) if segments else None
    return Tokens(np.arange(total, dtype=np.int32), offsets, kinds, np.array(lengths, np.int32), 1, 1, 0, 0)


@given(COUNTS, SIZES, st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_an_epoch_holds_every_example_once(count: int, size: int, seed: int, epoch: int) -> None:
    per_epoch = batches.steps_per_epoch(count, size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    parts = [batches.batch_positions(count, size, seed=seed, step=step) for step in steps]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size


@given(COUNTS, st.integers(0, 2**32 - 1), st.integers(0, 5), SIZES, SIZES)
def test_order_depends_on_seed_and_epoch_alone(count: int, seed: int, epoch: int, one: int, other: int) -> None:
    def order(size: int) -> list[int]:
        per_epoch = batches.steps_per_epoch(count, size)
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        return np.concatenate([batches.batch_positions(count, size, seed=seed, step=step) for step in steps]).tolist()

    assert order(one) == order(other)
    batches.permutation.cache_clear()
    assert order(one) == batches.permutation(count, seed=seed, epoch=epoch).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(batches.permutation(50, seed=s, epoch=e).tolist()) for s in (0, 1) for e in (0, 1, 2)}
    assert len(orders) == 6


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    """A resumed run must meet the order it began with, so a change of it is a change of format."""
    assert batches.permutation(10, seed=0, epoch=0).tolist() == [8, 9, 6, 2, 3, 4, 5, 0, 1, 7]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 45), st.randoms())
def test_micro_batches_are_sorted_and_complete(lengths: list[int], size: int, random: object) -> None:
    positions = np.random.default_rng(len(lengths)).permutation(len(lengths))
    sizes = np.array(lengths)
    parts = batches.micro_batches(positions, sizes, size)
    flat = np.concatenate(parts)
    assert sorted(flat.tolist()) == sorted(positions.tolist())
    assert all(1 <= len(part) <= size for part in parts)
    assert (np.diff(sizes[flat]) >= 0).all()
    for length in set(lengths):
        ties = [p for p in flat if sizes[p] == length]
        assert ties == [p for p in positions if sizes[p] == length], "ties keep the order of the batch"


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_prediction_covers_every_example_once_longest_first(lengths: list[int], budget: int, size: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    parts = list(batches.in_length_order(sizes, budget, size))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    longest = [int(sizes[part].max()) for part in parts]
    assert longest == sorted(longest, reverse=True)
    for part in parts:
        assert (np.diff(sizes[part]) >= 0).all(), "ascending inside a batch"
        assert len(part) <= size
        assert len(part) == 1 or int(sizes[part].max()) * len(part) <= budget


@pytest.mark.parametrize("segments", [False, True])
def test_a_ragged_batch_lays_the_right_rows_end_to_end(segments: bool) -> None:
    tokens = tokens_of([4, 1, 3, 2], segments=segments)
    targets = torch.tensor([10, 11, 12, 13])
    batch = batches.ragged(tokens, np.array([1, 3, 0]), ids=np.array([100, 101, 102, 103]), targets=targets)
    assert batch.tokens.tolist() == [4, 8, 9, 0, 1, 2, 3]
    assert batch.tokens.dtype == torch.int64
    assert batch.lengths.tolist() == [1, 2, 4]
    assert batch.ids.tolist() == [101, 103, 100]
    assert batch.targets is not None
    assert batch.targets.tolist() == [11, 13, 10]
    if segments:
        assert batch.segments is not None
        assert batch.segments.tolist() == [0, 0, 1, 0, 1, 0, 1]
    else:
        assert batch.segments is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_ragged_batches_equal_a_naive_loop(lengths: list[int], data: st.DataObject) -> None:
    tokens = tokens_of(lengths)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)))
    batch = batches.ragged(tokens, chosen, ids=np.arange(len(lengths)))
    assert batch.tokens.tolist() == [int(t) for p in chosen for t in tokens.row(int(p))]
    assert batch.targets is None


# --- sources by weight ------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.one_of(st.floats(1e-6, 1e6), st.integers(1, 9).map(float)), min_size=1, max_size=6)


@given(st.integers(0, 3000), WEIGHTS)
def test_every_share_is_less_than_one_draw_from_its_weight(count: int, weights: list[float]) -> None:
    parts = batches.shares(count, weights)
    whole = sum(map(Fraction, weights))
    assert sum(parts) == count
    assert all(part >= 0 for part in parts)
    assert all(abs(part - count * Fraction(w) / whole) < 1 for part, w in zip(parts, weights, strict=True))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 17), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False),
)  # fmt: skip
def test_sources_are_drawn_by_weight_and_no_row_again_before_all_of_its_source(
    mixed: list[tuple[int, int]], size: int, seed: int, random: Any
) -> None:
    sources = [source for source, (rows, _) in enumerate(mixed) for _ in range(rows)]
    random.shuffle(sources)
    weights = [float(weight) for _, weight in mixed]
    order = batches.weighted_order(np.array(sources), weights, seed=seed)
    count, epochs = len(sources), 5
    per_epoch = batches.steps_per_epoch(count, size)
    drawn = [
        place
        for step in range(epochs * per_epoch)
        for place in batches.batch_positions(count, size, seed=seed, step=step, order=order).tolist()
    ]
    assert len(drawn) == epochs * count
    # A naive count over the whole sequence of draws is the oracle.
    left: dict[int, set[int]] = {source: set() for source in range(len(mixed))}
    for place in drawn:
        source = sources[place]
        if not left[source]:
            left[source] = {other for other, one in enumerate(sources) if one == source}
        assert place in left[source], "drawn again before all of its source were"
        left[source].remove(place)
    for epoch in range(epochs):
        part = [sources[place] for place in drawn[epoch * count : (epoch + 1) * count]]
        for source, weight in enumerate(weights):
            assert abs(part.count(source) - count * weight / sum(weights)) < 1


def test_a_weighted_order_is_a_function_of_seed_and_epoch_alone() -> None:
    sources, weights = np.array([0] * 30 + [1] * 12), [1.0, 3.0]
    order = batches.weighted_order(sources, weights, seed=4)
    ahead = [order(epoch).tolist() for epoch in range(6)]
    again = batches.weighted_order(sources, weights, seed=4)
    assert [again(epoch).tolist() for epoch in (5, 0, 3, 1)] == [ahead[epoch] for epoch in (5, 0, 3, 1)]
    assert len({tuple(one) for one in ahead}) == 6
    assert batches.weighted_order(sources, weights, seed=5)(0).tolist() != ahead[0]
    # A resumed run must meet the order it began with, so a change of it is a change of format.
    small = batches.weighted_order(np.array([0, 0, 0, 1, 1, 1]), [2.0, 1.0], seed=0)
    assert [small(0).tolist(), small(1).tolist()] == [[0, 4, 5, 2, 1, 0], [2, 3, 4, 1, 0, 1]]
