"""Rows of token ids with what is to be predicted at each position: what every token-level task trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

UNSUPERVISED = -100


@dataclass(frozen=True, slots=True)
class Supervised:
    """Token ids of N rows laid end to end; row i is `tokens[offsets[i]:offsets[i + 1]]`.

    tokens: int32 [T]; offsets: int64 [N + 1]; targets: int32 [T], what is to be predicted at each position: for a
    causal model the next token of the same row, and -100 where nothing is supervised.
    """

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens in each row, int64 [N]."""
        import numpy as np

        return np.diff(self.offsets)

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the token ids and the targets of one row, counted from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        place = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[place], self.targets[place]

    def take(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> Supervised:
        """Return the rows at `positions`, in that order."""
        import numpy as np

        order = np.asarray(positions, np.int64)
        lengths = self.lengths()[order]
        offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        places = np.repeat(np.asarray(self.offsets)[order] - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return Supervised(self.tokens[places], offsets, self.targets[places])
