"""AdamW through torch's fused kernel.

`torch.optim` imports torch's compiler before it takes its first step, which takes longer than reading the data. The
kernel under it needs none of that. The result is that of `torch.optim.AdamW(fused=True)` to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Optimizer(Protocol):
    """What training asks of an optimiser; those of `torch.optim` have it too."""

    param_groups: list[dict[str, Any]]
    state: Any

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or set them to zero."""

    def step(self) -> Any:
        """Move every parameter that has a gradient."""


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over groups of parameters.

    param_groups: each with `params`, `lr` and `weight_decay`, as in `torch.optim`. state: by parameter, `step` (a
    float32 scalar), `exp_avg` and `exp_avg_sq`, there from the first step on that gives the parameter a gradient.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param_groups = [{**group, "betas": betas, "eps": eps, "fused": True} for group in groups]
        self.state: Any = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or set them to zero."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        import torch

        with torch.no_grad():
            for group in self.param_groups:
                self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        import torch

        # One call for each kind of tensor, as the kernel wants it.
        kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for parameters in kinds.values():
            states = [self.state.setdefault(p, {}) or self._begin(p) for p in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _begin(self, parameter: torch.Tensor) -> dict[str, Any]:
        import torch

        fresh: dict[str, Any] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        self.state[parameter] = fresh
        return fresh
