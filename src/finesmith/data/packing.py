"""Which rows share a micro-batch when its size is counted in tokens, and ragged batches of supervised rows.

Batches are ragged: rows lie end to end and each stays a sequence of its own, with its own positions and attention. So
packing is only a choice of neighbours, and no row can see another. Everything is a pure function of the lengths, seed
and epoch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from finesmith.errors import UserError
from finesmith.types import Batch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.data.supervised import Supervised

    IntArray = npt.NDArray[np.int64]

# Rows are packed so many at a time, that every epoch has other neighbours and a long file takes linear time.
WINDOW = 4096


def within_budget(positions: IntArray, lengths: npt.NDArray[np.integer], max_tokens: int) -> list[IntArray]:
    """Cut one batch into few micro-batches of at most `max_tokens` tokens, each in ascending order of length.

    `lengths[p]` is the number of tokens of the row at position p. Best fit decreasing (Johnson et al. 1974): at most
    11/9 of the fewest possible, plus one. A row longer than `max_tokens` is a micro-batch by itself.

    Raises:
        UserError: `max_tokens` is below 1.
    """
    import numpy as np

    if max_tokens < 1:
        raise UserError(f"the tokens of a micro-batch are {max_tokens}, expected at least 1; a usual value is 4096")
    order = positions[np.argsort(-lengths[positions].astype(np.int64), kind="stable")]
    bins: list[list[int]] = []
    # (tokens left, number of the bin), ascending: the first one with room enough is the one it fits best.
    room: list[tuple[int, int]] = []
    for position, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        found = bisect_left(room, (length, -1))
        if found < len(room):
            left, place = room.pop(found)
        else:
            left, place = max_tokens, len(bins)
            bins.append([])
        bins[place].append(position)
        if left > length:
            insort(room, (left - length, place))
    return [np.array(members[::-1], np.int64) for members in bins]


def packed_epoch(lengths: npt.NDArray[np.integer], max_tokens: int, *, seed: int, epoch: int) -> list[IntArray]:
    """Return all rows of one epoch in micro-batches of at most `max_tokens` tokens, in random order.

    Rows are drawn in a random order, `WINDOW` at a time, and packed within each window. Every row comes exactly once.

    Raises:
        UserError: `max_tokens` is below 1.
    """
    import numpy as np

    rng = np.random.Generator(np.random.PCG64([seed, epoch, 0x9AC4ED]))
    order = rng.permutation(len(lengths))
    found = [
        bin
        for start in range(0, len(order), WINDOW)
        for bin in within_budget(order[start : start + WINDOW], lengths, max_tokens)
    ]
    return [found[place] for place in rng.permutation(len(found))]


def ragged(rows: Supervised, positions: IntArray, *, ids: IntArray, device: str | torch.device = "cpu") -> Batch:
    """Lay the rows at `positions` end to end, with their targets int64 [T].

    `positions` must be in ascending order of length; `ids` (int64 [N]) belongs to all of `rows`.
    """
    import numpy as np
    import torch

    # A memory-mapped array costs microseconds more at every indexing than a plain view of it.
    offsets = np.asarray(rows.offsets)
    starts = offsets[positions]
    lengths = offsets[positions + 1] - starts
    index = np.repeat(starts - lengths.cumsum() + lengths, lengths)
    index += np.arange(index.size)
    arrays = (
        np.asarray(rows.tokens)[index].astype(np.int64),
        lengths,
        np.asarray(rows.targets)[index].astype(np.int64),
        ids[positions],
    )
    tokens, sizes, targets, names = (torch.from_numpy(array).to(device) for array in arrays)
    return Batch(tokens=tokens, lengths=sizes, segments=None, targets=targets, ids=names)
