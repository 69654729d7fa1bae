"""Regression: one number a text, such as a rating."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.errors import DataError
from finesmith.tasks.losses import squared_loss
from finesmith.tasks.protocol import Head, Kind, LabelColumn, LabelKind, Options, Task

if TYPE_CHECKING:
    import torch

    from finesmith.tasks.protocol import Array


@dataclass(frozen=True)
class Regression(Task):
    """Rating regression. The head learns standardised values; scale and offset turn them into the data's units."""

    scale: float
    offset: float

    name: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "spearman", "pearson", "r2")
    default_metric: ClassVar[str] = "rmse"
    label_kind: ClassVar[LabelKind] = "number"
    kind: ClassVar[Kind] = "number"

    @classmethod
    def fits(cls, column: LabelColumn) -> str | None:
        """Say why a column of numbers is this task's, or None."""
        if column.kind not in {"number", "rating"}:
            return None
        return f"column {column.name!r} holds numbers ({column.distinct} distinct), which are ordered: a rating"

    @classmethod
    def learn(cls, labels: Sequence[Any], options: Options) -> Regression:
        """Learn the mean and the spread of the training values.

        Raises DataError when a value is not a number or all are equal.
        """
        import numpy as np

        del options
        values = _numbers(labels, [f"training example {i + 1}" for i in range(len(labels))])
        if not len(values) or values.min() == values.max():
            raise DataError(
                f"all {len(values):,} training values are equal; regression needs numbers that differ: "
                "check --set data.label=COLUMN"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            spread, centre = float(np.std(values)), float(np.mean(values))
        if not 0 < spread < math.inf:
            raise DataError(
                f"the training values reach from {values.min():g} to {values.max():g}, too far or too near for "
                "arithmetic; mend the outliers or write the numbers in another unit"
            )
        return cls(spread, centre)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Regression:
        """Rebuild the task from `state`."""
        return cls(state["scale"], state["offset"])

    @property
    def state(self) -> dict[str, Any]:
        """The rescaling from outputs to the data's units."""
        return {"name": self.name, "scale": self.scale, "offset": self.offset}

    @property
    def head(self) -> Head:
        """One output."""
        return Head(1, "regression", None)

    @property
    def rescaling(self) -> tuple[float, float] | None:
        """Return (scale, offset)."""
        return self.scale, self.offset

    def rescaled(self, scale: float, offset: float) -> Regression:
        """Return this task with another rescaling."""
        return replace(self, scale=scale, offset=offset)

    def encode(self, labels: Sequence[Any], where: Sequence[str]) -> Array:
        """Return the values in the data's units, [N]."""
        return _numbers(labels, where)

    def tensor(self, targets: Array) -> torch.Tensor:
        """Return standardised targets as float32 [N]."""
        import torch

        return torch.from_numpy((targets - self.offset) / self.scale).float()

    def loss(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed squared error in units of the training variance."""
        return squared_loss(logits_BC, targets)

    def plain_loss(self, outputs: Array, targets: Array) -> float:
        """Return the mean squared error in units of the training variance."""
        return float((((outputs - targets) / self.scale) ** 2).mean())

    def outputs(self, logits: Array) -> Array:
        """Return values in the data's units, [N]."""
        return logits[:, 0].astype("float64") * self.scale + self.offset

    def columns(self, outputs: Array) -> dict[str, list[Any]]:
        """Return the predicted value."""
        return {"prediction": outputs.tolist()}

    def decode(self, targets: Array) -> list[Any]:
        """Return the values."""
        return targets.tolist()  # type: ignore[no-any-return]

    def scores(self, targets: Array, outputs: Array) -> dict[str, float]:
        """Return RMSE, MAE, Spearman, Pearson and R², as far as defined."""
        from finesmith.evaluate import metrics

        return {k: v for k, v in metrics.regression(targets, outputs).items() if v is not None and math.isfinite(v)}

    def details(self, targets: Array, outputs: Array) -> dict[str, Any]:
        """Return bins of predicted against true values."""
        from finesmith.evaluate import metrics

        return metrics.regression_details(targets, outputs)

    def strata(self, labels: Sequence[Any]) -> list[Any]:
        """Stratify by decile of the value."""
        import numpy as np

        values = _numbers(labels, [f"example {i + 1}" for i in range(len(labels))])
        edges = np.unique(np.quantile(values, np.linspace(0, 1, 11)[1:-1]))
        return np.searchsorted(edges, values, side="right").tolist()  # type: ignore[no-any-return]

    def summary(self, targets: Array) -> dict[str, Any]:
        """Return mean, spread and range."""
        import numpy as np

        if not len(targets):
            return {"summary": {}}
        with np.errstate(over="ignore", invalid="ignore"):
            figures = {"mean": targets.mean(), "std": targets.std(), "min": targets.min(), "max": targets.max()}
        return {"summary": {k: float(v) for k, v in figures.items()}}

    def zero_shot(self, similarity: Array) -> Array | None:
        """Return None: numbers have no names to compare with."""
        del similarity
        return None


def _numbers(labels: Sequence[Any], where: Sequence[str]) -> Array:
    """Return labels as float64, [N].

    Raises DataError naming the first places that hold no finite number.
    """
    import numpy as np

    values, bad = [], []
    for label, place in zip(labels, where, strict=True):
        try:
            number = float(label)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            bad.append(f"{str(label)[:40]!r} at {place}")
        values.append(number)
    if bad:
        raise DataError(
            f"{len(bad):,} labels are not numbers: {', '.join(bad[:3])}; regression needs a number for each text: "
            "mend or drop those rows, or --set task=classification"
        )
    return np.array(values, dtype=np.float64)


TASK: type[Task] = Regression
