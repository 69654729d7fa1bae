"""One optimiser step: losses are summed over all micro-batches and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from finesmith.errors import DivergenceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from finesmith.types import Batch

# Sums the losses of a micro-batch's supervised units (examples or tokens) and counts them.
LossSum = Callable[["Batch"], tuple["torch.Tensor", int]]
# Accumulates the gradient of a step, as `backward` does.
Backward = Callable[[LossSum, Sequence["Batch"], int, Callable[[int], None]], tuple[float, int, int]]


def backward(
    loss_sum: LossSum, batches: Iterable[Batch], units: int, seed: Callable[[int], None]
) -> tuple[float, int, int]:
    """Accumulate the gradient of (sum of losses) / units over micro-batches; return (mean loss, examples, tokens).

    `units` is the number of supervised units of the whole batch, over all micro-batches and devices: dividing by it
    makes accumulation equal to the large batch whatever the lengths. `seed(i)` fixes the random numbers of
    micro-batch i. Raises DivergenceError, naming the examples, when a loss is not finite.
    """
    total, examples, tokens = 0.0, 0, 0
    for i, batch in enumerate(batches):
        seed(i)
        loss, _ = loss_sum(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            ids = batch.ids.tolist()
            raise DivergenceError(f"the loss is {value} in examples with ids {ids[:20]}", ids)
        (loss / units).backward()  # type: ignore[no-untyped-call]
        del loss  # or its graph would live through the next micro-batch
        total += value
        examples += len(batch.lengths)
        tokens += len(batch.tokens)
    return total / units, examples, tokens


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scale gradients so that their joint norm is at most `max_norm`; return the norm before.

    Raises DivergenceError when the norm is not finite.
    """
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    value = float(norm)
    if not math.isfinite(value):
        raise DivergenceError(f"the gradient's norm is {value}")
    if value > max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    return value
