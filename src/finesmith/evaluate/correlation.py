"""How well one number a row goes with another: correlations as sums over rows, to be compared as other metrics are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from finesmith.evaluate.influence import influence
from finesmith.evaluate.measurement import Measurement, ratio
from finesmith.evaluate.metrics import regression

if TYPE_CHECKING:
    import numpy.typing as npt

    from finesmith.evaluate.measurement import Floats

    Numbers = Sequence[float] | npt.NDArray[Any]

CORRELATIONS: tuple[Literal["spearman", "pearson"], ...] = ("spearman", "pearson")


def correlations(targets: Numbers, found: Numbers) -> dict[str, Measurement]:
    """Measure Spearman's and Pearson's correlation of `found` [N] with `targets` [N], -1 to 1; mid-ranks for ties.

    Ranks hang on all rows, so no sums of row values are the metric. What a row adds is its influence (see `influence`)
    on Fisher's z of the value, z being what sums to it: draws of rows are then right to first order, as intervals of
    the same metrics are elsewhere, and never leave the range. Undefined (None) where either holds one value only.

    Raises ValueError when the two differ in length, are empty or not finite.
    """
    import numpy as np

    wanted, given = (np.asarray(values, np.float64) for values in (targets, found))
    values = regression(wanted, given)
    return {name: _measured(name, values[name], wanted, given) for name in CORRELATIONS}


def _measured(name: Literal["spearman", "pearson"], value: float | None, wanted: Floats, given: Floats) -> Measurement:
    import numpy as np

    rows, combine = np.zeros((len(wanted), 2)), ratio
    if value is not None:
        parts = influence("number", name, wanted, given)
        assert parts is not None
        # On its scale without bounds a value at an end lies nowhere: all rows are alike there.
        inside = abs(value) < 1.0
        rows[:, 0] = math.atanh(value) + parts / (1.0 - value**2) if inside else value
        rows[:, 1] = 1.0
        combine = _from_z if inside else ratio
    return Measurement(
        name,
        rows,
        combine,
        np.full(len(wanted), np.nan),
        "signed",
        again=lambda at: correlations(wanted[at], given[at])[name],
    )


def _from_z(sums: Floats) -> Floats:
    import numpy as np

    result: Floats = np.tanh(ratio(sums))
    return result
