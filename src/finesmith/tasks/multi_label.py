"""Multi-label classification: any number of labels a text, also none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.errors import DataError
from finesmith.tasks.classification import label_name, label_order, refuse_look_alikes, unknown_labels
from finesmith.tasks.losses import sigmoid_loss
from finesmith.tasks.protocol import DEFAULT_OPTIONS, Head, Kind, LabelColumn, LabelKind, Options, Task

if TYPE_CHECKING:
    import torch

    from finesmith.tasks.protocol import Array

THRESHOLD = 0.5


@dataclass(frozen=True)
class MultiLabel(Task):
    """Multi-label classification. counts: of each label in training; examples: how many it was learnt from."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    examples: int
    options: Options = DEFAULT_OPTIONS

    name: ClassVar[str] = "multi-label"
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "subset_accuracy", "auroc", "calibration_error")
    default_metric: ClassVar[str] = "micro_f1"
    label_kind: ClassVar[LabelKind] = "list"
    kind: ClassVar[Kind] = "multi"

    @classmethod
    def fits(cls, column: LabelColumn) -> str | None:
        """Say why a column of label lists is this task's, or None."""
        if column.kind != "list":
            return None
        how = f"separated by {column.separator!r}" if column.separator else "as lists"
        return f"column {column.name!r} holds several labels for a text, {how}"

    @classmethod
    def learn(cls, labels: Sequence[Any], options: Options) -> MultiLabel:
        """Learn the set of labels.

        Raises DataError when there are none, or two that look alike.
        """
        lists = [parse(value, options.separator) for value in labels]
        counts = Counter(name for names in lists for name in names)
        names = label_order(set(counts))
        if not names:
            raise DataError("no training example carries a label; check data.label and data.separator")
        refuse_look_alikes(names)
        return cls(names, tuple(counts[name] for name in names), len(lists), options)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MultiLabel:
        """Rebuild the task from `state`."""
        return cls(tuple(state["labels"]), tuple(state["counts"]), state["examples"], Options(**state["options"]))

    @property
    def state(self) -> dict[str, Any]:
        """The label names, their counts in training and the options."""
        options = {f: getattr(self.options, f) for f in Options.__dataclass_fields__}
        return {
            "name": self.name,
            "labels": list(self.names),
            "counts": list(self.counts),
            "examples": self.examples,
            "options": options,
        }

    @property
    def head(self) -> Head:
        """One independent output a label."""
        return Head(len(self.names), "multi_label_classification", self.names)

    def encode(self, labels: Sequence[Any], where: Sequence[str]) -> Array:
        """Return 1 where an example carries a label, else 0, [N, C]."""
        import numpy as np

        index = {name: i for i, name in enumerate(self.names)}
        targets = np.zeros((len(labels), len(self.names)))
        bad: list[tuple[str, str]] = []
        for row, value in enumerate(labels):
            for name in parse(value, self.options.separator):
                if name in index:
                    targets[row, index[name]] = 1
                else:
                    bad.append((name, where[row]))
        if bad:
            raise unknown_labels([name for name, _ in bad], [place for _, place in bad], self.names)
        return targets

    def tensor(self, targets: Array) -> torch.Tensor:
        """Return targets as float32 [N, C]."""
        import torch

        return torch.from_numpy(targets).float()

    def loss(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed (weighted, smoothed, focal) binary cross-entropy."""
        import torch

        o, positive = self.options, None
        if o.class_weights == "balanced":
            counts = torch.tensor(self.counts, dtype=torch.float64)
            positive = ((self.examples - counts) / counts).clamp(1.0, 100.0)
        gamma = o.focal_gamma if o.loss == "focal" else None
        return sigmoid_loss(logits_BC, targets, positive_C=positive, smoothing=o.label_smoothing, focal_gamma=gamma)

    def plain_loss(self, outputs: Array, targets: Array) -> float:
        """Return the mean binary cross-entropy."""
        import numpy as np

        chosen = np.where(targets > 0, outputs, 1 - outputs)
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    def outputs(self, logits: Array) -> Array:
        """Return each label's probability, [N, C]."""
        from scipy.special import expit

        return expit(logits.astype("float64"))  # type: ignore[no-any-return]

    def columns(self, outputs: Array) -> dict[str, list[Any]]:
        """Return the labels above the threshold, the least certain decision as confidence, and probabilities."""
        import numpy as np

        chosen = outputs >= THRESHOLD
        return {
            "prediction": self.decode(chosen.astype(np.float64)),
            "confidence": np.maximum(outputs, 1 - outputs).min(1).tolist(),
            "probabilities": outputs.tolist(),
        }

    def decode(self, targets: Array) -> list[Any]:
        """Return the list of label names of each example."""
        return [[name for name, on in zip(self.names, row, strict=True) if on] for row in targets]

    def scores(self, targets: Array, outputs: Array) -> dict[str, float]:
        """Return micro and macro F1, subset accuracy, AUROC and calibration error, as far as defined."""
        from finesmith.evaluate import metrics

        found = metrics.multi_label(targets.astype(bool), outputs, THRESHOLD)
        return {k: v for k, v in found.items() if k in self.metrics and v is not None and math.isfinite(v)}

    def details(self, targets: Array, outputs: Array) -> dict[str, Any]:
        """Return per-label figures and reliability."""
        from finesmith.evaluate import metrics

        return metrics.multi_label_details(targets.astype(bool), outputs, list(self.names), THRESHOLD)

    def strata(self, labels: Sequence[Any]) -> list[Any]:
        """Stratify by each example's rarest label."""
        lists = [parse(value, self.options.separator) for value in labels]
        counts = Counter(name for names in lists for name in names)
        return [min(names, key=lambda n: (counts[n], n)) if names else "" for names in lists]

    def summary(self, targets: Array) -> dict[str, Any]:
        """Count the examples that carry each label."""
        return {"labels": {name: int(n) for name, n in zip(self.names, targets.sum(0), strict=True)}}

    def zero_shot(self, similarity: Array) -> Array | None:
        """Return None: without training there is no threshold on similarity that means "carries this label"."""
        del similarity
        return None


def parse(value: Any, separator: str | None) -> list[str]:
    """Return the labels in one cell: a list, or a string cut at `separator` (or one label, where it is None)."""
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = [] if value is None else [value]
    names = (label_name(part) for part in parts)
    return list(dict.fromkeys(name for name in names if name))


TASK: type[Task] = MultiLabel
