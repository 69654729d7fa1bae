"""Which examples make up each batch, in which order; and ragged batches from token arrays.

Everything here is a pure function of (seed, epoch, position): nothing has to be stored to go on where a run stopped,
and nothing depends on how many devices share the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from finesmith.types import Batch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.data.tokens import Tokens

    IntArray = npt.NDArray[np.int64]


@lru_cache(maxsize=2)
def permutation(count: int, *, seed: int, epoch: int) -> IntArray:
    """Return the order of the `count` examples in one epoch, int64 [count]."""
    import numpy as np

    return np.random.Generator(np.random.PCG64([seed, epoch, 0x5A3B1E])).permutation(count)


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """Part `count` draws by weight: whole numbers that add up, each less than one from its exact share.

    By largest remainders, the first of equal ones. Weights must be positive.
    """
    whole = sum(map(Fraction, weights))
    exact = [count * Fraction(weight) / whole for weight in weights]
    parts = [math.floor(share) for share in exact]
    order = sorted(range(len(parts)), key=lambda place: parts[place] - exact[place])
    for place in order[: count - sum(parts)]:
        parts[place] += 1
    return parts


def weighted_order(sources: IntArray, weights: Sequence[float], *, seed: int) -> Callable[[int], IntArray]:
    """Return a function from an epoch to the positions of its examples in order, int64 [N], drawn by weight.

    sources: int64 [N], which of the weighted sources each example is of; every source has one at least. An epoch has N
    draws, of which each source gets its part of `shares`. A source's draws run through its examples in a new order
    each time and go on from epoch to epoch, so all are drawn before any is drawn again.
    """
    import numpy as np

    rows = [np.flatnonzero(sources == source) for source in range(len(weights))]
    counts = shares(len(sources), weights)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> IntArray:
        turns = np.random.Generator(np.random.PCG64([seed, epoch, 0x3F1B])).permutation(
            np.repeat(np.arange(len(counts)), counts)
        )
        chosen = np.empty(len(sources), np.int64)
        for source, (mine, count) in enumerate(zip(rows, counts, strict=True)):
            draws = np.arange(epoch * count, (epoch + 1) * count)
            rounds, places = np.divmod(draws, len(mine))
            found = np.empty(count, np.int64)
            for again in np.unique(rounds).tolist():
                shuffled = np.random.Generator(np.random.PCG64([seed, again, source, 0x7E21])).permutation(mine)
                found[rounds == again] = shuffled[places[rounds == again]]
            chosen[turns == source] = found
        return chosen

    return order


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in an epoch; the last one may be smaller."""
    return math.ceil(count / batch_size)


def batch_positions(
    count: int, batch_size: int, *, seed: int, step: int, order: Callable[[int], IntArray] | None = None
) -> IntArray:
    """Return the positions of the examples in the batch of optimiser step `step` (from 0).

    order: that of each epoch, as `weighted_order` returns it; None draws every example once.
    """
    per_epoch = steps_per_epoch(count, batch_size)
    epoch, place = divmod(step, per_epoch)
    whole = permutation(count, seed=seed, epoch=epoch) if order is None else order(epoch)
    return whole[place * batch_size : (place + 1) * batch_size]


def micro_batches(positions: IntArray, lengths: npt.NDArray[np.integer], size: int) -> list[IntArray]:
    """Cut one batch into micro-batches of at most `size`, each of neighbouring lengths, shortest first.

    `lengths[p]` is the number of tokens of the example at position p. Ties keep the order of `positions`.
    """
    import numpy as np

    ordered = positions[np.argsort(lengths[positions], kind="stable")]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def in_length_order(lengths: npt.NDArray[np.integer], tokens_per_batch: int, size: int) -> Iterator[IntArray]:
    """Yield all positions, longest first, in batches of at most `size` sequences and about `tokens_per_batch` tokens.

    For prediction, where order is free: equal lengths fall together, and memory peaks in the first batch.
    """
    import numpy as np

    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        take = max(1, min(size, tokens_per_batch // max(1, int(lengths[order[start]]))))
        # ascending inside the batch, as a ragged batch wants it
        yield order[start : start + take][::-1]
        start += take


def ragged(
    tokens: Tokens,
    positions: IntArray,
    *,
    ids: IntArray,
    targets: torch.Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Batch:
    """Lay the sequences at `positions` end to end.

    `positions` must be in ascending order of length; `ids` (int64 [N]) and `targets` ([N] or [N, C]) belong to all of
    `tokens` and are indexed by position.
    """
    import numpy as np
    import torch

    # A memory-mapped array costs microseconds more at every indexing than a plain view of it.
    offsets, pool = np.asarray(tokens.offsets), np.asarray(tokens.tokens)
    starts = offsets[positions]
    lengths = offsets[positions + 1] - starts
    index = np.repeat(starts - lengths.cumsum() + lengths, lengths)
    index += np.arange(index.size)
    arrays = [pool[index].astype(np.int64), lengths, ids[positions]]
    if tokens.segments is not None:
        arrays.append(np.asarray(tokens.segments)[index].astype(np.int64))
    tensors = [torch.from_numpy(array) for array in arrays]
    if targets is not None:
        tensors.append(targets.index_select(0, torch.from_numpy(np.ascontiguousarray(positions))))
    if torch.device(device).type != "cpu":
        tensors = [tensor.to(device) for tensor in tensors]
    flat, sizes, names, *rest = tensors
    return Batch(
        tokens=flat,
        lengths=sizes,
        segments=None if tokens.segments is None else rest[0],
        targets=None if targets is None else rest[-1],
        ids=names,
    )
