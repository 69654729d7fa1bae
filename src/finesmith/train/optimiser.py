"""AdamW with decay only where it belongs, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from finesmith.train.adamw import Optimizer

# What adapters add that is no matrix of a product: factors that begin at 1, and vectors of words.
NOT_SHRUNK = (".ia3_l.", ".trainable_tokens_delta.")
ScheduleName = Literal["linear", "cosine", "constant", "plateau"]


def parameter_groups(
    module: nn.Module, *, learning_rate: float, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters of `module` by weight decay and learning rate.

    Weight decay applies to matrices that multiply activations. It does not apply to biases and norms, nor to
    embeddings: decoupled decay would shrink the vectors of words that never occur in the data, undoing pre-training.
    Nor does it apply to the factors of IA3, which change nothing at 1 and not at 0.
    `scales` multiplies the learning rate by parameter name. Groups come in a fixed order.
    """
    from torch import nn

    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings and not any(n in name for n in NOT_SHRUNK)
        scale = 1.0 if scales is None else scales.get(name, 1.0)
        groups.setdefault((weight_decay if decays else 0.0, learning_rate * scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr": rate, "base_lr": rate}
        for (decay, rate), members in sorted(groups.items(), reverse=True)
    ]


def layer_scales(depths: Mapping[str, int], decay: float) -> dict[str, float]:
    """Return the learning-rate factor of each parameter: `decay` to the power of its distance from the top.

    Howard and Ruder 2018 (arXiv:1801.06146), discriminative fine-tuning.
    """
    top = max(depths.values(), default=0)
    return {name: decay ** (top - depth) for name, depth in depths.items()}


@dataclass(slots=True)
class Schedule:
    """The learning rate's multiplier at each step: a linear warm-up, then the chosen form.

    `linear` and `cosine` end at 0 after `steps`; `constant` stays; `plateau` halves after `patience` evaluations
    without improvement, told through `observe`. The state is plain numbers, saved with every checkpoint.
    """

    name: ScheduleName
    steps: int
    warmup_steps: int
    patience: int = 1
    factor: float = 0.5
    state: dict[str, float] = field(default_factory=lambda: {"scale": 1.0, "best": math.inf, "bad": 0.0})

    def multiplier(self, step: int) -> float:
        """Return the factor for optimiser step `step` (from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.name == "linear":
            return max(0.0, 1.0 - done)
        if self.name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.state["scale"]

    def observe(self, loss: float) -> bool:
        """Take in a validation loss; return whether the plateau schedule has just lowered the rate."""
        if self.name != "plateau":
            return False
        if loss < self.state["best"] - 1e-4 * abs(loss):
            self.state.update(best=loss, bad=0.0)
            return False
        self.state["bad"] += 1
        if self.state["bad"] <= self.patience:
            return False
        self.state.update(scale=self.state["scale"] * self.factor, bad=0.0)
        return True


def set_rate(optimizer: Optimizer, multiplier: float) -> float:
    """Set every group's learning rate to its base times `multiplier`; return the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
    return float(max(group["lr"] for group in optimizer.param_groups))
