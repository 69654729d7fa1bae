"""A linear head on frozen features, solved to convergence instead of trained by small steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    FloatArray = npt.NDArray[np.float64]

L2_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """weight [C, D] and bias [C] in float64, for raw features; l2: the penalty chosen; losses: validation's by l2."""

    weight: torch.Tensor
    bias: torch.Tensor
    l2: float
    losses: dict[float, float]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return features [N, D] times weights plus bias, [N, C], in float64."""
        return features.double() @ self.weight.T + self.bias


def fit_linear(
    features: torch.Tensor,
    targets: torch.Tensor,
    loss_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    outputs: int,
    validation: tuple[torch.Tensor, torch.Tensor],
    bias: bool = True,
    l2_grid: Sequence[float] = L2_GRID,
    least_spread: float = 0.0,
) -> LinearHead:
    """Minimise mean loss + l2/2 |W|^2 over standardised features by L-BFGS, for l2 from the strongest down.

    Weaker penalties are tried as long as validation loss falls; the best on validation is kept.
    features: [N, D]; targets: what `loss_sum(logits [N, C], targets)` takes. The features are scaled to unit variance
    inside and the scaling is folded into the returned head. Without `bias` they are scaled but not centred. A feature
    that varies less than `least_spread` of the typical one counts as varying so much, which bounds its weights.
    """
    import torch

    x = features.double()
    centre = x.mean(0) if bias else torch.zeros(x.shape[1], dtype=torch.float64)
    spread = _spread(x, least_spread)
    scaled = (x - centre) / spread
    held = ((validation[0].double() - centre) / spread, validation[1])
    theta = torch.zeros(outputs, x.shape[1] + 1, dtype=torch.float64).numpy().ravel()
    best: tuple[float, float, FloatArray] = (math.inf, l2_grid[0], theta)
    losses: dict[float, float] = {}
    # From the strongest penalty to weaker ones, each started from the solution before it.
    for l2 in sorted(l2_grid, reverse=True):
        theta = _solve(scaled, targets, loss_sum, outputs, l2, bias, theta)
        w, b = _split(torch.from_numpy(theta), outputs, bias)
        with torch.no_grad():
            losses[l2] = float(loss_sum(held[0] @ w.T + b, held[1])) / len(held[0])
        if losses[l2] >= best[0]:
            # Weaker penalties only fit the training data closer from here on.
            break
        best = (losses[l2], l2, theta)
    w, b = _split(torch.from_numpy(best[2]), outputs, bias)
    weight = w / spread
    return LinearHead(weight, b - weight @ centre, best[1], losses)


def _spread(x: torch.Tensor, least: float) -> torch.Tensor:
    """Return each feature's standard deviation, [D], none below `least` times their root mean square."""
    variance = x.var(0, unbiased=False)
    return variance.sqrt().clamp_min(max(least * float(variance.mean().sqrt()), 1e-6))


def _split(theta: torch.Tensor, outputs: int, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = theta.view(outputs, -1)
    return matrix[:, :-1], matrix[:, -1] if bias else matrix[:, -1] * 0


def _solve(
    features: torch.Tensor,
    targets: torch.Tensor,
    loss_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    outputs: int,
    l2: float,
    bias: bool,
    start: FloatArray,
) -> FloatArray:
    import torch
    from scipy.optimize import minimize

    def value_and_gradient(point: FloatArray) -> tuple[float, FloatArray]:
        theta = torch.from_numpy(point.copy()).requires_grad_()
        w, b = _split(theta, outputs, bias)
        loss = loss_sum(features @ w.T + b, targets) / len(features) + 0.5 * l2 * w.square().sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        return float(loss.detach()), gradient.numpy()

    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-11, "gtol": 1e-6}
    )
    return found.x  # type: ignore[no-any-return]
