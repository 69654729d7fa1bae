"""Classification: one label a text (or a pair of texts), among two or more."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.errors import DataError
from finesmith.tasks.losses import softmax_loss
from finesmith.tasks.protocol import DEFAULT_OPTIONS, Head, Kind, LabelColumn, LabelKind, Options, Task

if TYPE_CHECKING:
    import torch

    from finesmith.tasks.protocol import Array

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def label_name(value: Any) -> str:
    """Return a raw label as its name: 1 and 1.0 are "1", strings lose outer blanks."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def label_order(names: set[str]) -> tuple[str, ...]:
    """Order names as a person would: numbers by value, words by alphabet."""
    if all(NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def refuse_look_alikes(names: Sequence[str]) -> None:
    """Raise DataError where two labels look alike: almost certainly one class written two ways."""
    seen: dict[str, str] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if NUMBER.fullmatch(key) and "." in key:
            key = key.rstrip("0").rstrip(".")
        if key in seen:
            raise DataError(
                f"the labels {seen[key][:60]!r} and {name[:60]!r} differ only in case, blanks or how a character or "
                "number is written, so one class would be learnt as two; write them one way in the file"
            )
        seen[key] = name


def unknown_labels(found: Sequence[str], where: Sequence[str], known: Sequence[str]) -> DataError:
    """Return the error for labels that were not in the training data."""
    places = ", ".join(f"{name[:40]!r} at {place}" for name, place in list(zip(found, where, strict=True))[:3])
    return DataError(
        f"{len(found):,} labels are not among those of the training data: {places}; "
        f"known labels are {', '.join(repr(k[:40]) for k in known[:12])}{' …' if len(known) > 12 else ''}: mend them, "
        "or add such rows to the training data"
    )


@dataclass(frozen=True)
class Classification(Task):
    """Single-label classification. names: the classes in the order of the head's outputs; counts: in training."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    options: Options = DEFAULT_OPTIONS

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "mcc", "auroc", "log_loss", "calibration_error")
    default_metric: ClassVar[str] = "accuracy"
    label_kind: ClassVar[LabelKind] = "category"
    kind: ClassVar[Kind] = "single"

    @classmethod
    def fits(cls, column: LabelColumn) -> str | None:
        """Say why a column of classes is this task's, or None."""
        if column.kind not in {"category", "boolean", "constant"}:
            return None
        return f"column {column.name!r} holds one of {column.distinct} labels for each text"

    @classmethod
    def learn(cls, labels: Sequence[Any], options: Options) -> Classification:
        """Learn the classes.

        Raises DataError when there are fewer than two, two that look alike, or nearly as many as examples.
        """
        counts = Counter(label_name(value) for value in labels)
        names = label_order(set(counts))
        if len(names) < 2:
            only = f"only the label {names[0][:60]!r}" if names else "no labels"
            raise DataError(
                f"the training data has {only} in {len(labels):,} examples; classification needs two classes or more: "
                "check --set data.label=COLUMN"
            )
        refuse_look_alikes(names)
        if len(names) > max(20, len(labels) // 2):
            raise DataError(
                f"the label column has {len(names):,} distinct values in {len(labels):,} examples, so it is hardly a "
                "set of classes; name another with --set data.label=COLUMN, or --set task=regression for numbers"
            )
        return cls(names, tuple(counts[name] for name in names), options)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Classification:
        """Rebuild the task from `state`."""
        return cls(tuple(state["labels"]), tuple(state["counts"]), Options(**state["options"]))

    @property
    def state(self) -> dict[str, Any]:
        """The class names, their counts in training and the options."""
        options = {f: getattr(self.options, f) for f in Options.__dataclass_fields__}
        return {"name": self.name, "labels": list(self.names), "counts": list(self.counts), "options": options}

    @property
    def head(self) -> Head:
        """One output a class."""
        return Head(len(self.names), "single_label_classification", self.names)

    def encode(self, labels: Sequence[Any], where: Sequence[str]) -> Array:
        """Return the index of each label's class, [N]."""
        import numpy as np

        index = {name: i for i, name in enumerate(self.names)}
        found = [label_name(value) for value in labels]
        bad = [i for i, name in enumerate(found) if name not in index]
        if bad:
            raise unknown_labels([found[i] for i in bad], [where[i] for i in bad], self.names)
        return np.array([index[name] for name in found], dtype=np.float64)

    def tensor(self, targets: Array) -> torch.Tensor:
        """Return class indices as int64 [N]."""
        import torch

        return torch.from_numpy(targets).long()

    def loss(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed (weighted, smoothed, focal) cross-entropy."""
        o = self.options
        gamma = o.focal_gamma if o.loss == "focal" else None
        return softmax_loss(
            logits_BC, targets, weights_C=self._weights(), smoothing=o.label_smoothing, focal_gamma=gamma
        )

    def _weights(self) -> torch.Tensor | None:
        """Return n / (C * n_c) for each class, which averages 1 over the training examples; None when unweighted."""
        import torch

        if self.options.class_weights == "none":
            return None
        counts = torch.tensor(self.counts, dtype=torch.float64)
        return counts.sum() / (len(counts) * counts)

    def plain_loss(self, outputs: Array, targets: Array) -> float:
        """Return the mean negative log-probability of the true class."""
        import numpy as np

        chosen = outputs[np.arange(len(outputs)), targets.astype(int)]
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    def outputs(self, logits: Array) -> Array:
        """Return class probabilities, [N, C]."""
        from scipy.special import softmax

        return softmax(logits.astype("float64"), axis=1)  # type: ignore[no-any-return]

    def columns(self, outputs: Array) -> dict[str, list[Any]]:
        """Return prediction, confidence and probabilities."""
        best = outputs.argmax(1)
        return {
            "prediction": [self.names[i] for i in best],
            "confidence": outputs.max(1).tolist(),
            "probabilities": outputs.tolist(),
        }

    def decode(self, targets: Array) -> list[Any]:
        """Return class names."""
        return [self.names[int(i)] for i in targets]

    def scores(self, targets: Array, outputs: Array) -> dict[str, float]:
        """Return accuracy, macro-F1, MCC, AUROC, log loss and calibration error, as far as defined."""
        from finesmith.evaluate import metrics

        found = metrics.classification(targets.astype(int), outputs)
        return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}

    def details(self, targets: Array, outputs: Array) -> dict[str, Any]:
        """Return per-class figures, confusion and reliability."""
        from finesmith.evaluate import metrics

        return metrics.classification_details(targets.astype(int), outputs, list(self.names))

    def strata(self, labels: Sequence[Any]) -> list[Any]:
        """Stratify by class."""
        return [label_name(value) for value in labels]

    def summary(self, targets: Array) -> dict[str, Any]:
        """Count the examples of each class."""
        counts = Counter(self.decode(targets))
        return {"labels": {name: counts.get(name, 0) for name in self.names}}

    def zero_shot(self, similarity: Array) -> Array | None:
        """Return softmax(20 * cosine), as sentence encoders are trained; None where the names are bare numbers."""
        if all(name.replace(".", "").lstrip("-").isdigit() for name in self.names):
            return None
        return self.outputs(20.0 * similarity)


TASK: type[Task] = Classification
