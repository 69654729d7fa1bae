"""Dropout whose random numbers cost little.

On a CPU torch draws one slow number after another, which takes longer than some matrix products. Here 16 random bits a
value come from SFC64 (numpy), seeded from torch's own generator: whoever fixes torch's seed fixes these too. The share
that is dropped is right to 1/131,072, and what is kept is scaled by that very share, so the mean stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 65536


def keep_mask(shape: Sequence[int], dropout: float) -> tuple[Tensor, float]:
    """Draw which values stay, uint8 of `shape` with 1 for each, and by what those must be multiplied."""
    dropped = min(LEVELS - 1, round(dropout * LEVELS))
    count = int(np.prod(shape, dtype=np.int64))
    seed = int(torch.empty((), dtype=torch.int64).random_())
    raw = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    keep = torch.from_numpy(raw).view(tuple(shape)) >= dropped - LEVELS // 2
    return keep.view(torch.uint8), LEVELS / (LEVELS - dropped)


class _Drop(torch.autograd.Function):
    """Multiply by a mask and a factor, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        """Return `x` with some values zero and the others scaled."""
        keep, ctx.factor = keep_mask(x.shape, dropout)
        ctx.save_for_backward(keep)
        return (x * keep).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of `x`."""
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.factor), None


class CpuDropout(nn.Module):
    """What nn.Dropout computes, from quicker random numbers. p: the share that is dropped."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop values while training; return `x` itself otherwise."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        dropped: Tensor = _Drop.apply(x, self.p)  # type: ignore[no-untyped-call]
        return dropped


def quicken_dropout(module: nn.Module) -> int:
    """Replace every nn.Dropout inside `module` by a `CpuDropout`; return how many there were."""
    replaced = 0
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, CpuDropout(child.p).train(child.training))
                replaced += 1
    return replaced
