"""Losses summed over a batch, shared by the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def softmax_loss(
    logits_BC: Tensor, targets_B: Tensor, *, weights_C: Tensor | None, smoothing: float, focal_gamma: float | None
) -> Tensor:
    """Return the summed cross-entropy of classes.

    smoothing: the share of each target spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    focal_gamma: examples are weighted by (1 - p)^gamma of their true class (Lin et al. 2017, arXiv:1708.02002).
    weights_C: a factor for each example, by its true class.
    """
    logs_BC = logits_BC.log_softmax(-1)
    true_B = logs_BC.gather(1, targets_B[:, None])[:, 0]
    loss_B = -((1 - smoothing) * true_B + smoothing * logs_BC.mean(-1))
    if focal_gamma is not None:
        loss_B = loss_B * _missing(true_B) ** focal_gamma
    if weights_C is not None:
        loss_B = loss_B * weights_C.to(loss_B)[targets_B]
    return loss_B.sum()


def sigmoid_loss(
    logits_BC: Tensor, targets_BC: Tensor, *, positive_C: Tensor | None, smoothing: float, focal_gamma: float | None
) -> Tensor:
    """Return the binary cross-entropy of independent labels: mean over an example's labels, summed over examples.

    positive_C: a factor for each label's positives. smoothing moves targets towards one half.
    """
    import torch
    from torch.nn.functional import logsigmoid

    hit, miss = logsigmoid(logits_BC), logsigmoid(-logits_BC)
    positive = torch.ones_like(logits_BC[0]) if positive_C is None else positive_C.to(logits_BC)
    if focal_gamma is not None:
        hit, miss = hit * _missing(hit) ** focal_gamma, miss * _missing(miss) ** focal_gamma
    soft = targets_BC.to(logits_BC) * (1 - smoothing) + smoothing / 2
    return -(soft * positive * hit + (1 - soft) * miss).mean(-1).sum()


def squared_loss(outputs_B1: Tensor, targets_B: Tensor) -> torch.Tensor:
    """Return the summed squared error of one output a sequence."""
    return (outputs_B1[:, 0] - targets_B.to(outputs_B1)).square().sum()


def _missing(log_probability: Tensor) -> Tensor:
    """Return 1 - p, kept above zero: a power below one has no finite slope at zero."""
    return (-log_probability.expm1()).clamp_min(1e-12)
