"""The gradient of an embedding table on a CPU, without clearing the whole table at every step.

A step meets a few hundred of tens of thousands of words, yet torch clears a gradient of the table's size each time.
Here one such tensor is kept, and only the rows that the step before had touched are cleared.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

# Smaller tables are cleared in no time.
WORTH_KEEPING = 1_000_000


class KeptEmbedding(nn.Embedding):
    """What nn.Embedding computes, with a gradient that is kept from step to step, zero outside the rows `touched`.

    table: the parameter [V, D], of which this is the only user; padding: the row without a gradient, or None.
    """

    def __init__(self, table: Tensor, padding: int | None) -> None:
        rows, width = table.shape
        super().__init__(rows, width, padding, _weight=table)
        self.weight = nn.Parameter(table, requires_grad=table.requires_grad)
        self.total: Tensor | None = None
        self.touched: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the table, [..., D]."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        rows: Tensor = _Rows.apply(input.reshape(-1), self.weight, self)  # type: ignore[no-untyped-call]
        return rows.view(*input.shape, -1)

    def add_gradient(self, tokens: Tensor, upper: Tensor) -> None:
        """Add the gradients of the rows `tokens`, [T, D], to the table's."""
        if self.weight.grad is None:
            if self.total is None:
                self.total = torch.zeros_like(self.weight)
            for rows in self.touched:
                self.total.index_fill_(0, rows, 0.0)
            self.touched = []
            self.weight.grad = self.total
        self.touched.append(tokens)
        self.weight.grad.index_add_(0, tokens, upper)
        if self.padding_idx is not None:
            self.weight.grad[self.padding_idx] = 0.0


class _Rows(torch.autograd.Function):
    """Take rows of a table; their gradients go to the kept tensor."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, owner: KeptEmbedding) -> Tensor:
        """Return the rows `tokens` [T] of `table`."""
        ctx.save_for_backward(tokens)
        ctx.owner = owner
        return embedding(tokens, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        """Add to the table's gradient in place."""
        (tokens,) = ctx.saved_tensors
        ctx.owner.add_gradient(tokens, gradients[0])
        return None, None, None


def keep_gradients(module: nn.Module) -> int:
    """Replace every large embedding of `module` whose table nothing else uses; return how many there were."""
    users = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    replaced = 0
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.Embedding) or child.max_norm is not None or child.scale_grad_by_freq:
                continue
            # Some families scale the rows in a forward of their own.
            if child.sparse or type(child).forward is not nn.Embedding.forward:
                continue
            if child.weight.numel() >= WORTH_KEEPING and users[id(child.weight)] == 1:
                setattr(parent, name, KeptEmbedding(child.weight, child.padding_idx).train(child.training))
                replaced += 1
    return replaced
