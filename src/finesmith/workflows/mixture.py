"""Several sources: which row is of which, how often each is drawn, and what is reached on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.data.batches import shares, weighted_order
from finesmith.errors import DataError
from finesmith.types import Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.recipe import Recipe

    Ints = npt.NDArray[np.int64]

# Of fewer rows an interval would span nearly everything.
FEWEST_SCORED = 10


@dataclass(frozen=True, slots=True)
class Mixture:
    """names: of all sources, those of data.train first; of: int64, by id, the source of each row, as its position."""

    names: tuple[str, ...]
    of: Ints

    def counted(self, recipe: Recipe, ids: Mapping[Split, Ints]) -> list[dict[str, Any]]:
        """Return for each source its rows in every split, its weight and its draws an epoch; nothing where it is one.

        Raises DataError where a source that is to be drawn has no row in train, or no draw.
        """
        import numpy as np

        if len(self.names) == 1:
            return []
        rows = {split: np.bincount(self.of[at], minlength=len(self.names)) for split, at in ids.items()}
        found = [
            {"source": name, **{split: int(count[place]) for split, count in rows.items()}}
            for place, name in enumerate(self.names)
        ]
        weights = recipe.data.weights
        if weights is not None:
            for one, weight, draws in zip(found, weights, self._draws(weights, ids["train"]), strict=False):
                one |= {"weight": weight, "draws": draws}
        return found

    def redrawn(self, recipe: Recipe, counted: Sequence[dict[str, Any]], sequences: int) -> list[dict[str, Any]]:
        """Return what `counted` found, with the draws of an epoch over so many sequences that the rows make."""
        draws = [{"draws": count} for count in shares(sequences, recipe.data.weights or ())]
        return [{**one, **drawn} for one, drawn in zip(counted, draws, strict=False)] + list(counted[len(draws) :])

    def order(self, recipe: Recipe, ids: Ints) -> Callable[[int], Ints] | None:
        """Return the order of every epoch over training rows with these ids; None where none is weighted.

        Raises DataError as `counted` does.
        """
        weights = recipe.data.weights
        if weights is None:
            return None
        self._draws(weights, ids)
        return weighted_order(self.of[ids], weights, seed=recipe.train.seed)

    def _draws(self, weights: Sequence[float], ids: Ints) -> list[int]:
        """Return how often rows of each weighted source are drawn in an epoch over training rows with these ids."""
        import numpy as np

        rows, draws = np.bincount(self.of[ids], minlength=len(weights)), shares(len(ids), weights)
        for name, weight, mine, drawn in zip(self.names, weights, rows.tolist(), draws, strict=False):
            if not mine or not drawn:
                why = (
                    "none of its rows can be trained on" if not mine else f"of {len(ids):,} draws an epoch it has none"
                )
                raise DataError(
                    f"{name}: data.weights gives it the weight {weight:g}, but {why}; "
                    f"{'give it more rows' if not mine else 'raise its weight'}, or leave it out of data.train"
                )
        return draws

    def by_source(self, ids: Ints, score: Callable[[Ints], dict[str, Any]]) -> list[dict[str, Any]]:
        """Score the rows of each source by themselves; nothing where there is one source.

        score: from positions among these rows to metrics. A source with too few rows says so.
        """
        if len(self.names) == 1:
            return []
        found: list[dict[str, Any]] = []
        for place, name in enumerate(self.names):
            at = (self.of[ids] == place).nonzero()[0]
            one: dict[str, Any] = {"source": name, "rows": len(at), "scores": None}
            if len(at) >= FEWEST_SCORED:
                one["scores"] = score(at)
            elif len(at):
                one["note"] = f"too few rows to be scored by themselves: {len(at)}, expected {FEWEST_SCORED} at least"
            if len(at):
                found.append(one)
        return found


def mixture_of(parts: Sequence[tuple[Sequence[str], Sequence[tuple[int, int]]]]) -> Mixture:
    """Lay sources end to end. parts: of each split its sources' names, and runs of rows: (which source, how many)."""
    import numpy as np

    names: list[str] = []
    of: list[Ints] = []
    for listed, runs in parts:
        of += [np.full(rows, len(names) + given, np.int64) for given, rows in runs]
        names += listed
    return Mixture(tuple(names), np.concatenate(of))
