"""Cross-entropy over a large vocabulary, in pieces: no more than one piece of the logits exists at any time.

`summed` makes the gradients while it has a piece's logits at hand, as the sum of losses has one upstream number for
all; `log_probabilities` gives each token its own upstream gradient and so computes the logits again on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Bytes of logits at a time: large enough for fast products, small enough to stay out of the way.
PIECE_BYTES = 2**27


def piece_of(vocabulary: int, size: int) -> int:
    """Return how many tokens make up a piece, for numbers of `size` bytes."""
    return max(16, PIECE_BYTES // (vocabulary * size))


def summed(hidden_SD: Tensor, linear: nn.Module, targets_S: Tensor, cap: float | None, piece: int) -> Tensor:
    """Return the sum of -log softmax(linear(hidden))[target], a scalar in at least float32."""
    if type(linear) is not nn.Linear:
        return -_through(hidden_SD, linear, targets_S, cap, piece).sum()
    if torch.is_grad_enabled():
        loss: Tensor = _Summed.apply(hidden_SD, linear.weight, linear.bias, targets_S, cap, piece)  # type: ignore[no-untyped-call]
        return loss
    return -log_probabilities(hidden_SD, linear, targets_S, cap, piece).sum()


def log_probabilities(hidden_SD: Tensor, linear: nn.Module, targets_S: Tensor, cap: float | None, piece: int) -> Tensor:
    """Return log softmax(linear(hidden))[target] of each token, [S] in at least float32."""
    if type(linear) is not nn.Linear:
        return _through(hidden_SD, linear, targets_S, cap, piece)
    found: Tensor = _Each.apply(hidden_SD, linear.weight, linear.bias, targets_S, cap, piece)  # type: ignore[no-untyped-call]
    return found


def _through(hidden_SD: Tensor, linear: nn.Module, targets_S: Tensor, cap: float | None, piece: int) -> Tensor:
    """Do it by calling the module, as adapters need, and computing each piece again on the way back."""

    def one(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = _wide(linear(hidden))
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]

    parts = (
        checkpoint(one, hidden_SD[at], targets_S[at], use_reentrant=False) for at in _pieces(len(targets_S), piece)
    )
    return torch.cat([_wide(hidden_SD.new_zeros(0)), *parts])


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _Products:
    """The products of a linear head in the type that autocast, or else its weight, asks for."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> None:
        kind = hidden.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.hidden, self.weight = hidden.to(self.dtype), weight.to(self.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.cap = cap
        self.buffer = weight.new_empty(0)

    def logits(self, at: slice) -> Tensor:
        """Return the logits of some tokens, [n, V]; each call reuses the memory of the last."""
        hidden = self.hidden[at]
        count = len(hidden) * len(self.weight)
        if self.buffer.numel() < count or self.buffer.dtype != self.dtype:
            self.buffer = torch.empty(count, dtype=self.dtype, device=hidden.device)
        out = self.buffer[:count].view(len(hidden), -1)
        if self.bias is None:
            torch.mm(hidden, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        logits = _wide(out)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def change(self, logits: Tensor, targets: Tensor, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return -log p of the targets, [n], and, in place of the logits, its gradient times `upstream`, [n, V]."""
        at = targets[:, None]
        top, chosen = logits.amax(-1, keepdim=True), logits.gather(1, at)
        slope = None if self.cap is None else 1 - (logits / self.cap).square_()
        gradient = torch.softmax(logits, -1, out=logits)
        # The largest share is exp(0) over the sum, so this is exact where the target's own share underflows.
        losses = top - gradient.amax(-1, keepdim=True).log_() - chosen
        gradient.scatter_(1, at, gradient.gather(1, at).sub_(1))
        if upstream is not None:
            gradient.mul_(upstream[:, None])
        return losses[:, 0], gradient if slope is None else gradient.mul_(slope)


def _pieces(count: int, piece: int) -> Iterator[slice]:
    for begin in range(0, count, piece):
        yield slice(begin, min(begin + piece, count))


class _Gradients:
    """Gradients of hidden states, weight and bias, summed piece by piece in at least float32."""

    def __init__(self, products: _Products, needs: tuple[bool, ...]) -> None:
        hidden, weight = products.hidden, products.weight
        wide = torch.float64 if products.dtype == torch.float64 else torch.float32
        self.products = products
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        made = torch.empty_like if len(hidden) else torch.zeros_like
        self.weight = made(weight, dtype=wide) if needs[1] else None
        self.bias = weight.new_zeros(len(weight), dtype=wide) if needs[2] and products.bias is not None else None

    def add(self, at: slice, gradient: Tensor) -> None:
        narrow, products = gradient.to(self.products.dtype), self.products
        if self.hidden is not None:
            torch.mm(narrow, products.weight, out=self.hidden[at])
        if self.weight is not None:
            if self.weight.dtype == narrow.dtype:
                # Times 0 for the first piece: what stood there is not read.
                self.weight.addmm_(narrow.t(), products.hidden[at], beta=1 if at.start else 0)
            elif not at.start:
                self.weight.copy_(narrow.t() @ products.hidden[at])
            else:
                self.weight.add_(narrow.t() @ products.hidden[at])
        if self.bias is not None:
            self.bias.add_(gradient.sum(0))


class _Summed(torch.autograd.Function):
    """The sum of cross-entropies, with gradients made on the way there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None, piece: int
    ) -> Tensor:
        """Return the sum; keep the gradients."""
        products = _Products(hidden, weight, bias, cap)
        gradients = _Gradients(products, ctx.needs_input_grad)
        total = targets.new_zeros((), dtype=torch.float64 if products.dtype == torch.float64 else torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for at in _pieces(len(targets), piece):
                losses, gradient = products.change(products.logits(at), targets[at], None)
                total += losses.sum()
                gradients.add(at, gradient)
        ctx.types = (hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what was kept, in its place; autograd refuses a second way back."""
        kept = zip(ctx.saved_tensors, ctx.types, strict=True)
        return (*(None if x is None else x.mul_(upstream[0]).to(dtype) for x, dtype in kept), None, None, None)


class _Each(torch.autograd.Function):
    """The log probability of each target."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None, piece: int
    ) -> Tensor:
        """Return log p of each target; keep the inputs."""
        products = _Products(hidden, weight, bias, cap)
        with torch.autocast(hidden.device.type, enabled=False):
            found = [_log_p(products.logits(at), targets[at]) for at in _pieces(len(targets), piece)]
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.cap, ctx.piece, ctx.dtype = cap, piece, products.dtype
        return torch.cat(found) if found else _wide(hidden.new_zeros(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the logits again, piece by piece."""
        hidden, weight, bias, targets = ctx.saved_tensors
        kind = hidden.device.type
        with torch.autocast(kind, dtype=ctx.dtype, enabled=ctx.dtype != weight.dtype):
            products = _Products(hidden, weight, bias, ctx.cap)
        gradients = _Gradients(products, ctx.needs_input_grad)
        for at in _pieces(len(targets), ctx.piece):
            _, gradient = products.change(products.logits(at), targets[at], -upstream[0][at])
            gradients.add(at, gradient)
        return (
            None if gradients.hidden is None else gradients.hidden.to(hidden.dtype),
            None if gradients.weight is None else gradients.weight.to(weight.dtype),
            None if gradients.bias is None else gradients.bias.to(bias.dtype),
            None, None, None,
        )  # fmt: skip


def _log_p(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
