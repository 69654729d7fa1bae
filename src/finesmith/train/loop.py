"""The training loop: a generator of steps. The caller evaluates, saves, logs and stops between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finesmith.errors import DivergenceError
from finesmith.train.optimiser import Schedule, set_rate
from finesmith.train.step import Backward, LossSum, backward, clip_gradients

if TYPE_CHECKING:
    from torch import nn

    from finesmith.train.adamw import Optimizer
    from finesmith.types import Batch


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimiser step. step counts from 1; epoch is fractional; loss is the batch's mean."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    examples: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the loop needs to know: how many steps, which batches, how to count them.

    batches(step): the micro-batches of optimiser step `step` (from 0), and the number of supervised units in them;
    backward: how the gradient over them is found.
    """

    steps: int
    steps_per_epoch: int
    batches: Callable[[int], tuple[Sequence[Batch], int]]
    max_grad_norm: float
    seed: int
    backward: Backward = backward


def train(
    module: nn.Module,
    loss_sum: LossSum,
    optimizer: Optimizer,
    schedule: Schedule,
    plan: Plan,
    *,
    start: int = 0,
) -> Iterator[Step]:
    """Train from optimiser step `start` to `plan.steps`, yielding after each one.

    Everything random in a step follows from (plan.seed, step, micro-batch), so a loop started at step n on restored
    weights and optimiser goes on exactly as the uninterrupted one. Raises DivergenceError on a loss or gradient that
    is not finite, before the weights are touched.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, plan.steps):
        began = time.perf_counter()
        module.train()
        optimizer.zero_grad(set_to_none=True)
        batches, units = plan.batches(step)
        try:
            loss, examples, tokens = plan.backward(loss_sum, batches, units, _seeder(plan.seed, step))
        except DivergenceError as error:
            raise _diverged(step, plan, str(error), error.ids) from None
        try:
            norm = clip_gradients(parameters, plan.max_grad_norm)
        except DivergenceError as error:
            ids = [i for batch in batches for i in batch.ids.tolist()]
            raise _diverged(step, plan, f"{error} over examples with ids {sorted(ids)[:20]}", ids) from None
        rate = set_rate(optimizer, schedule.multiplier(step))
        optimizer.step()
        seconds = time.perf_counter() - began
        yield Step(step + 1, (step + 1) / plan.steps_per_epoch, loss, rate, norm, examples, tokens, seconds)


def _diverged(step: int, plan: Plan, what: str, ids: Sequence[int]) -> DivergenceError:
    return DivergenceError(
        f"training diverged at step {step + 1} of {plan.steps}: {what}. The weights before it are kept. "
        "Lower train.learning_rate (a tenth is a good try), or look at those rows",
        ids,
    )


def _seeder(seed: int, step: int) -> Callable[[int], None]:
    """Return the function that fixes torch's random numbers for a micro-batch of this step."""

    def fix(micro: int) -> None:
        import torch

        number = mix(seed, step, micro)
        if torch.cuda.is_initialized() or torch.backends.mps.is_available():  # type: ignore[no-untyped-call]
            torch.manual_seed(number)
        else:
            # Without a GPU torch.manual_seed only adds a trace of the stack, at every call.
            torch.default_generator.manual_seed(number)

    return fix


def mix(*parts: int) -> int:
    """Mix integers into one 63-bit seed (splitmix64 steps: Steele, Lea and Flood 2014)."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + part) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
