"""Probes that run before the first step on the user's own model, data and plan: wrong training is refused.

Each probe is a small function that returns a `Finding`; `passed` says whether training may go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.errors import DivergenceError
from finesmith.train.step import LossSum, backward

if TYPE_CHECKING:
    from torch import nn

    from finesmith.train.adamw import Optimizer
    from finesmith.types import Batch


@dataclass(frozen=True, slots=True)
class Probed:
    """What one probe found: its name, whether it passed, the evidence in a sentence, and what to do."""

    name: str
    passed: bool
    evidence: str
    remedy: str = ""

    def line(self) -> str:
        """Return the result as one line for a terminal."""
        return f"{'ok  ' if self.passed else 'STOP'}  {self.name}: {self.evidence}" + (
            f". {self.remedy}" if not self.passed and self.remedy else ""
        )


def finite_on_longest(module: nn.Module, loss_sum: LossSum, longest: Sequence[Batch]) -> Probed:
    """Check that loss and gradient are finite on the longest sequences, in the precision of the run."""
    module.train()
    module.zero_grad(set_to_none=True)
    units = sum(len(batch.lengths) for batch in longest)
    tokens = max(int(batch.lengths.max()) for batch in longest)
    try:
        loss, _, _ = backward(loss_sum, longest, units, lambda _: None)
        norms = [float(p.grad.norm()) for p in module.parameters() if p.grad is not None]
    except DivergenceError as error:
        return Probed("finite loss", False, str(error), "Try --set train.precision=float32, or look at those rows")
    finally:
        module.zero_grad(set_to_none=True)
    finite = all(math.isfinite(norm) for norm in norms)
    return Probed(
        "finite loss",
        finite,
        f"loss {loss:.4f}, {'finite' if finite else 'NON-FINITE'} gradients on {units} sequences "
        f"of up to {tokens} tokens",
        "Try --set train.precision=float32",
    )


def initial_loss(loss: float, expected: float, *, head_is_new: bool) -> Probed:
    """Check that an untrained head starts near the loss of knowing nothing (ln of the number of classes)."""
    near = not head_is_new or loss < 2.0 * expected + 0.5
    return Probed(
        "initial loss",
        near,
        f"{loss:.3f} before training, {expected:.3f} for answers that know nothing",
        "The labels may not be in the head's order, or the base model's weights were not loaded",
    )


def every_tensor_learns(
    module: nn.Module, loss_sum: LossSum, batches: Sequence[Batch], make_optimizer: Callable[[], Optimizer]
) -> Probed:
    """Check in a trial step, which is undone, that what is trainable moves and what is frozen does not."""
    import torch

    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.train()
    module.zero_grad(set_to_none=True)
    optimizer = make_optimizer()
    try:
        units = sum(len(batch.lengths) for batch in batches)
        # Up to two steps: an adapter's second factor starts at zero, so the first one has no gradient before it moved.
        for _ in range(2):
            backward(loss_sum, batches, units, lambda _: None)
            optimizer.step()
            still = [n for n, p in module.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
            if not any(not _may_rest(name) for name in still):
                break
        moved = [n for n, p in module.named_parameters() if not p.requires_grad and not torch.equal(p, before[n])]
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(before[name])
        module.zero_grad(set_to_none=True)
    trainable = sum(1 for _, p in module.named_parameters() if p.requires_grad)
    idle = [name for name in still if not _may_rest(name)]
    evidence = f"{trainable - len(still)} of {trainable} trainable tensors moved in a trial step (undone)"
    if idle:
        evidence += f"; at rest: {', '.join(idle[:3])}"
    if moved:
        evidence += f"; frozen but moved: {', '.join(moved[:3])}"
    return Probed(
        "every tensor learns",
        not idle and not moved and trainable > 0,
        evidence,
        "Some weights get no gradient: check method.lora.target_modules and method.freeze_layers",
    )


def _may_rest(name: str) -> bool:
    """Whether a tensor may get no gradient by construction.

    Token types and positions never used, words added that the rows at hand lack, a pooler that no head reads, and the
    biases of keys, which shift all of a query's scores alike and so change nothing.
    """
    resting = ("token_type_embeddings", "position_embeddings", "pooler", "trainable_tokens")
    keys = ("key.bias", "k_proj.bias", "k_lin.bias", "key_proj.bias", "attn.k.bias")
    return any(part in name for part in resting) or name.endswith(keys)


def learning_rate_in_range(learning_rate: float, usual: float, method: str) -> Probed:
    """Check the peak learning rate against the range for the method and the model's size."""
    low, high = usual / 100, usual * 20
    return Probed(
        "learning rate",
        low <= learning_rate <= high,
        f"{learning_rate:g}; usual for {method} here is about {usual:g}",
        f"Expected {low:g} to {high:g}: --set train.learning_rate={usual:g}, or auto to find one",
    )


def memory_fits(forecast: dict[str, Any], micro_batch_size: int, batch_size: int) -> Probed:
    """Check the forecast of memory against what is free."""
    need, free = forecast["total"] / 2**30, forecast["free"] / 2**30
    return Probed(
        "memory",
        bool(forecast["fits"]),
        f"about {need:.1f} GB for {micro_batch_size} of {batch_size} sequences at a time, {free:.1f} GB free",
        "Shorten data.max_length, use --set method.name=lora, or a smaller base model",
    )


def label_order(head_labels: Sequence[str] | None, model_labels: dict[int, str]) -> Probed:
    """Check that the head's outputs carry the task's labels in the task's order."""
    if head_labels is None:
        return Probed("label order", True, "one number, no labels")
    found = [model_labels.get(i) for i in range(len(head_labels))]
    same = found == list(head_labels)
    return Probed("label order", same, f"{len(head_labels)} labels, {'as in' if same else 'NOT as in'} the data")
