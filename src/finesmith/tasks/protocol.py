"""What a task must be able to do. Adding a task is adding one file with a class that does this, named `TASK`.

A task binds data, model, training and evaluation: how labels are read, which head is needed, the loss, how outputs
become predictions, the metrics, and the cheap baselines. It holds what it learned from the training labels (the class
names, say) and nothing else, so that its `state` with the weights is all that prediction needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.float64]

LabelKind = Literal["category", "number", "list"]
Kind = Literal["single", "multi", "number"]


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """A label column as the tasks see it when they are asked whether it is theirs.

    kind: what its values are ("category", "rating", "number", "list", "boolean", "text", ...).
    """

    name: str
    kind: str
    distinct: int
    rows: int
    separator: str | None = None

    def describe(self) -> str:
        """Say in a few words what the column holds."""
        return f"{self.kind} with {self.distinct:,} distinct values in {self.rows:,} rows"


@dataclass(frozen=True, slots=True)
class Options:
    """How labels are read and the loss is shaped, as the recipe says."""

    separator: str | None = None
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.0


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Head:
    """The head that a task needs: how many outputs, which problem in transformers' words, and their names."""

    outputs: int
    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    labels: tuple[str, ...] | None


class Task(ABC):
    """A task with what it learned from the training labels."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    default_metric: ClassVar[str]
    label_kind: ClassVar[LabelKind]
    kind: ClassVar[Kind]

    @classmethod
    @abstractmethod
    def fits(cls, column: LabelColumn) -> str | None:
        """Say why a label column is this task's, or None when it is not."""

    @classmethod
    @abstractmethod
    def learn(cls, labels: Sequence[Any], options: Options) -> Task:
        """Learn from the raw training labels what the task needs.

        Raises DataError when they cannot be this task's (one class only, words where numbers belong).
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Task:
        """Rebuild the task from `state`."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must be saved beside the weights, as plain JSON values; holds the task's `name`."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head this task needs."""

    @abstractmethod
    def encode(self, labels: Sequence[Any], where: Sequence[str]) -> Array:
        """Turn raw labels into targets, float64 [N] or [N, C]; `where[i]` names the place of labels[i] in messages.

        Raises DataError naming the first places of labels that were not in the training data or cannot be read.
        """

    @abstractmethod
    def tensor(self, targets: Array) -> torch.Tensor:
        """Return targets as the loss takes them."""

    @abstractmethod
    def loss(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum over the batch of each example's loss, a scalar: the objective that training minimises."""

    @abstractmethod
    def plain_loss(self, outputs: Array, targets: Array) -> float:
        """Return the mean loss without weights, focus or smoothing: what validation curves show."""

    @abstractmethod
    def outputs(self, logits: Array) -> Array:
        """Turn logits [N, C] into what is scored: probabilities [N, C], or values [N] in the data's units."""

    @abstractmethod
    def columns(self, outputs: Array) -> dict[str, list[Any]]:
        """Return the columns of a prediction file: `prediction`; `confidence`, `probabilities` where they exist."""

    @abstractmethod
    def decode(self, targets: Array) -> list[Any]:
        """Turn targets back into labels as a person reads them."""

    @abstractmethod
    def scores(self, targets: Array, outputs: Array) -> dict[str, float]:
        """Return every metric of `metrics` that is defined on these examples."""

    @abstractmethod
    def details(self, targets: Array, outputs: Array) -> dict[str, Any]:
        """Return tables for the report: per class, confusion, reliability; or bins for numbers."""

    @abstractmethod
    def strata(self, labels: Sequence[Any]) -> list[Any]:
        """Return what the split is stratified by, for each raw label."""

    @abstractmethod
    def summary(self, targets: Array) -> dict[str, Any]:
        """Describe the targets of a split: counts a label, or mean and spread."""

    @property
    def rescaling(self) -> tuple[float, float] | None:
        """Return (scale, offset) from the head's outputs to the data's units, or None where they are the same."""
        return None

    def rescaled(self, scale: float, offset: float) -> Task:
        """Return this task with another rescaling: what is left after the rest was folded into the head's weights."""
        raise NotImplementedError(f"{self.name} has no rescaling ({scale}, {offset})")

    @abstractmethod
    def zero_shot(self, similarity: Array) -> Array | None:
        """Turn each text's similarity to each label's name, [N, C], into outputs; None where names mean nothing."""
