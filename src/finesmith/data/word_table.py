"""What is known of distinct words: the tokens of each, by its number, and the number of each, by its text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING

from finesmith.data.template import Bare, gather

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MAX_WORDS = 400_000
MAX_CHARACTERS = 16_000_000


def row_by_row(table: Table, numbers: Ints, bounds: Ints) -> Bare:
    """Return the tokens of each run `numbers[bounds[i]:bounds[i + 1]]` of a table's entries."""
    import numpy as np

    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.lengths[numbers])])
    return Bare(table.gathered(numbers), ends[bounds])


@dataclass(frozen=True, slots=True)
class Table:
    """Pieces by number: `ids[starts:starts + lengths]`, and how many unknown tokens and white-space words each has."""

    ids: npt.NDArray[np.int32]
    starts: Ints
    lengths: Ints
    unknown: Ints
    words: Ints

    @classmethod
    def plain(cls, ids: npt.NDArray[np.int32], lengths: Ints) -> Table:
        """Return the table of words whose tokens lie end to end, without counts."""
        import numpy as np

        none = np.zeros(len(lengths), np.int64)
        return cls(ids, np.cumsum(lengths) - lengths, lengths, none, none)

    def gathered(self, numbers: Ints) -> npt.NDArray[np.int32]:
        """Return the tokens of some words, end to end."""
        return gather(self.ids, self.starts[numbers], self.lengths[numbers])

    def joined(self, other: Table) -> Table:
        """Return one table with another's entries after its own."""
        import numpy as np

        return Table(
            np.concatenate((self.ids, other.ids)),
            np.concatenate((self.starts, other.starts + self.ids.size)),
            np.concatenate((self.lengths, other.lengths)),
            np.concatenate((self.unknown, other.unknown)),
            np.concatenate((self.words, other.words)),
        )

    def first(self, size: int) -> Table:
        """Return the table of the first entries alone."""
        end = int(self.starts[size - 1] + self.lengths[size - 1]) if size else 0
        rest = (self.starts, self.lengths, self.unknown, self.words)
        return Table(self.ids[:end].copy(), *(each[:size].copy() for each in rest))


def _nothing() -> Table:
    import numpy as np

    return Table(np.empty(0, np.int32), *(np.empty(0, np.int64) for _ in range(4)))


@dataclass(slots=True)
class Known:
    """Pieces by text, and what is known of each."""

    table: Table = field(default_factory=_nothing)
    _numbers: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _characters: int = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, pieces: Sequence[str]) -> tuple[Ints, list[str]]:
        """Return the number of each piece, and the pieces that were new, once each, whose tokens must be added next."""
        import numpy as np

        known = len(self)
        self._numbers.default_factory = count(known).__next__
        found = np.fromiter(map(self._numbers.__getitem__, pieces), np.int64, len(pieces))
        new = list(islice(reversed(self._numbers), len(self) - known))[::-1]
        self._characters += sum(map(len, new))
        return found, new

    def add(self, table: Table) -> None:
        """Append the tokens of new pieces."""
        self.table = self.table.joined(table)

    def stay_bounded(self, known: int) -> None:
        """Forget all but the first `known` pieces where they have become too many: the frequent ones came first."""
        if len(self) > MAX_WORDS or self._characters > MAX_CHARACTERS:
            self.forget(known)

    def forget(self, known: int) -> None:
        """Forget all but the first `known` pieces."""
        while len(self) > known:
            self._characters -= len(self._numbers.popitem()[0])
        if self.table.starts.size > known:
            self.table = self.table.first(known)
