"""A metric over many rows as sums: what intervals and paired tests of any corpus metric are computed from.

BLEU, span F1 or bits per byte are no means of row values, yet each is a function of sums over rows (matched n-grams,
right spans, bits and bytes). A `Measurement` keeps what each row adds to the sums and the function, so that any
choice of rows can be measured again without reading a text twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

# Where a metric's values lie: 0 to 1, -1 to 1, above 0, below 1, anywhere.
Range = Literal["unit", "signed", "positive", "below_one", "real"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of N rows.

    statistics: float64 [N, K], what each row adds to the sums. combine: from sums [..., K] to values [...], nan where
    the metric is undefined. per_example: float64 [N], the metric of each row by itself, for reading; nan where it is
    undefined. Only where `is_mean` is true do they average to the value. again: measures some rows anew, int64 [M] to a
    measurement, where sums of what they add to all of them would not do.
    """

    metric: str
    statistics: Floats
    combine: Callable[[Floats], Floats]
    per_example: Floats
    range: Range
    higher_is_better: bool = True
    is_mean: bool = False
    again: Callable[[Ints], Measurement] | None = None

    def take(self, rows: Sequence[int]) -> Measurement:
        """Return the measurement of some rows."""
        import numpy as np

        at = np.asarray(rows, np.int64)
        if self.again is not None:
            return self.again(at)
        return replace(self, statistics=self.statistics[at], per_example=self.per_example[at])

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def value(self) -> float | None:
        """The metric over all rows; None where it is undefined."""
        import math

        value = float(self.combine(self.statistics.sum(axis=0)))
        return value if math.isfinite(value) else None


def mean_of(
    metric: str, values: Sequence[float] | npt.NDArray[Any], range: Range = "unit", *, higher_is_better: bool = True
) -> Measurement:
    """Return the measurement whose value is the mean of `values` [N].

    Raises ValueError when there are none or one is not finite.
    """
    import numpy as np

    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not column.size or not np.isfinite(column).all():
        raise ValueError(f"{metric}: expected one finite value for each of at least one row, got shape {column.shape}")
    statistics = np.column_stack([column, np.ones_like(column)])
    return Measurement(metric, statistics, ratio, column, range, higher_is_better, is_mean=True)


def ratio(sums: Floats) -> Floats:
    """Divide the first sum by the second, [..., 2] to [...]; nan where the second is 0."""
    return divided(sums[..., 0], sums[..., 1])


def divided(above: npt.ArrayLike, below: npt.ArrayLike, otherwise: float = float("nan")) -> Floats:
    """Divide element by element, `otherwise` where `below` is 0."""
    import numpy as np

    upper, lower = np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64))
    result: Floats = np.divide(upper, lower, out=np.full(lower.shape, otherwise), where=lower != 0)
    return result
