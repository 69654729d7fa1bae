"""Compute a function anew on the way back, so that of all that it makes only its inputs are kept.

Chen et al. 2016 (arXiv:1604.06174). The second time sees the random numbers and the number types of the first, so
losses and gradients stay as they are. Parameters of the function are inputs here: where they alone are trained, as in
the lowest block of a model with an adapter, a gradient flows all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def again(function: Callable[..., Any], block: nn.Module, /, *given: Any, **named: Any) -> Any:
    """Return function(*given, **named), of which nothing is kept for the way back but the inputs.

    block: holds every parameter that the function reads. Tensors may stand anywhere in the inputs and in what is
    returned. Without gradients the function is just called.
    """
    if not torch.is_grad_enabled():
        return function(*given, **named)
    leaves, shape = tree_flatten((given, named))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    inputs = [leaves[i] for i in places]
    for i in places:
        leaves[i] = None
    parameters = [p for p in block.parameters() if p.requires_grad]
    if not inputs and not parameters:
        return function(*given, **named)
    call = _Call(function, leaves, shape, places, parameters)
    found = _Again.apply(call, *inputs, *parameters)  # type: ignore[no-untyped-call]
    assert call.returned is not None
    return tree_unflatten(list(found), call.returned)


@dataclass(slots=True)
class _Call:
    """A function with its inputs, those at `places`, which may have gradients, left out.

    returned: the form of what it returns.
    """

    function: Callable[..., Any]
    leaves: list[Any]
    shape: TreeSpec
    places: list[int]
    parameters: list[nn.Parameter]
    returned: TreeSpec | None = None

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, inputs, strict=True):
            leaves[place] = tensor
        given, named = tree_unflatten(leaves, self.shape)
        found, self.returned = tree_flatten(self.function(*given, **named))
        return found


class _Again(torch.autograd.Function):
    """`again` and its gradients."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Any, ...]:
        """Compute, and keep the inputs."""
        inputs = tensors[: len(call.places)]
        device = tensors[0].device
        ctx.call, ctx.conditions = call, _Conditions.of(device)
        ctx.set_materialize_grads(False)
        # Parameters are in `call`; here they are kept so that a change in between does not pass unseen.
        ctx.save_for_backward(*tensors)
        # Some layers go another way where no gradients are wanted, and round otherwise on it.
        with torch.enable_grad(), ctx.conditions.number_types():
            found = call.run(_leaves(inputs))
        results = tuple(one.detach() if isinstance(one, Tensor) else one for one in found)
        pairs = zip(found, results, strict=True)
        ctx.mark_non_differentiable(*(b for a, b in pairs if isinstance(a, Tensor) and not a.requires_grad))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute once more, and go back through it."""
        call: _Call = ctx.call
        tensors = ctx.saved_tensors
        inputs = _leaves(tensors[: len(call.places)])
        with torch.enable_grad(), ctx.conditions.randomness(), ctx.conditions.number_types():
            outputs = call.run(inputs)
        ends = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and isinstance(output, Tensor) and output.requires_grad
        ]
        starts = [*inputs, *call.parameters]
        wanted = [start for start, needed in zip(starts, ctx.needs_input_grad[1:], strict=True) if needed]
        found = iter(
            torch.autograd.grad([end for end, _ in ends], wanted, [gradient for _, gradient in ends], allow_unused=True)
            if ends
            else [None] * len(wanted)
        )
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What a computation depends on beside its inputs: random numbers, and the types that autocast computes in."""

    device: torch.device
    on_cpu: Tensor
    on_device: Tensor | None
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device) -> _Conditions:
        """Take down those of now."""
        kind = device.type
        there = torch.cuda.get_rng_state(device) if kind == "cuda" else None
        if kind == "mps":
            there = torch.mps.get_rng_state()
        return cls(
            device, torch.get_rng_state(), there, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        )

    def number_types(self) -> torch.autocast:
        """Return the block in which the same types are chosen, and no cast is kept."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocast, cache_enabled=False)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Draw the same random numbers in the block; afterwards those go on that were to come."""
        now = _Conditions.of(self.device)
        self._seed()
        try:
            yield
        finally:
            now._seed()

    def _seed(self) -> None:
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.on_device, self.device)
        elif self.on_device is not None:
            torch.mps.set_rng_state(self.on_device)
