"""Ragged batches of supervised rows.

Rows lie end to end and each stays a sequence of its own, with its own positions and attention: no row sees another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finesmith.types import Batch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.data.supervised import Supervised

    IntArray = npt.NDArray[np.int64]


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
