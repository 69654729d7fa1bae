"""The learning-rate range test: raise the rate exponentially over a few steps and see where the loss falls fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finesmith.errors import DivergenceError
from finesmith.train.loop import Plan, mix
from finesmith.train.optimiser import set_rate
from finesmith.train.step import LossSum, clip_gradients

if TYPE_CHECKING:
    from torch import nn

    from finesmith.train.adamw import Optimizer


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The rates tried, the smoothed loss at each, and the rate suggested."""

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def range_test(
    module: nn.Module,
    loss_sum: LossSum,
    optimizer: Optimizer,
    plan: Plan,
    *,
    lowest: float = 1e-6,
    highest: float = 1e-1,
    steps: int = 60,
    smoothing: float = 0.9,
) -> RangeTest:
    """Try rates from `lowest` to `highest` and suggest one; the module's weights are put back as they were.

    Smith 2017 (arXiv:1506.01186). The suggestion is a third of the rate at which the smoothed loss was lowest before
    it rose, which for AdamW with warm-up and decay is a safe peak. `optimizer` is used up: make a new one to train.
    Raises DivergenceError when not even the first loss is finite.
    """
    import torch

    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
    top = max(group["base_lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["base_lr"] /= top
    rates: list[float] = []
    smoothed: list[float] = []
    average, best = 0.0, math.inf
    try:
        for i, (rate, loss) in enumerate(_ramp(module, loss_sum, optimizer, plan, lowest, highest, steps)):
            average = smoothing * average + (1 - smoothing) * loss
            value = average / (1 - smoothing ** (i + 1))
            rates.append(rate)
            smoothed.append(value)
            best = min(best, value)
            if i > steps // 4 and value > 2 * best + 0.1:
                break
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        module.zero_grad(set_to_none=True)
    if not smoothed:
        raise DivergenceError(
            f"the learning-rate range test met a loss or gradient that is not finite at its first rate, {lowest:g}, "
            "with the weights untouched; look at the data, or try --set train.precision=float32"
        )
    lowest_at = min(range(len(smoothed)), key=smoothed.__getitem__)
    suggestion = float(f"{rates[lowest_at] / 3:.2g}")
    return RangeTest(tuple(rates), tuple(smoothed), suggestion)


def _ramp(
    module: nn.Module,
    loss_sum: LossSum,
    optimizer: Optimizer,
    plan: Plan,
    lowest: float,
    highest: float,
    steps: int,
) -> Iterator[tuple[float, float]]:
    """Take one step at each rate and yield (rate, loss before the step); end at the first loss that is not finite."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    module.train()
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
        optimizer.zero_grad(set_to_none=True)
        batches, units = plan.batches(step % max(1, plan.steps))
        try:
            loss, _, _ = plan.backward(loss_sum, batches, units, _seeder(plan.seed, step))
            clip_gradients(parameters, plan.max_grad_norm)
        except DivergenceError:
            return
        set_rate(optimizer, rate)
        optimizer.step()
        yield rate, loss


def _seeder(seed: int, step: int) -> Callable[[int], None]:
    """Return the function that fixes torch's random numbers for a micro-batch of this trial step."""

    def fix(micro: int) -> None:
        import torch

        torch.manual_seed(mix(seed, step, micro, 1))

    return fix
