"""Attention within the sequences of a flat batch on a CPU, forwards and backwards in one piece.

Nothing is padded, and nothing is kept for the way back but the inputs and one byte a weight where dropout acts: the
weights are computed again, which costs less than the memory for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finesmith.models.attention import Group
from finesmith.models.dropout import keep_mask


@dataclass(frozen=True, slots=True)
class Rule:
    """How to attend. groups: where the sequences lie; single: whether each has one query instead of one a token."""

    groups: tuple[Group, ...]
    scaling: float
    dropout: float
    causal: bool
    window: int | None
    single: bool


def attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return softmax(query key^T scaling) value within each sequence.

    query: [H, T, D], or [H, B, D] where `rule.single`; key and value: [H, T, D]. Returns the shape of `query`.
    """
    result: Tensor = _Attend.apply(query, key, value, rule)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True, slots=True)
class _Part:
    """One group as batched matrices: H heads times n sequences, of `queries` rows and `length` columns."""

    tokens: slice
    rows: slice
    weights: slice
    queries: int
    length: int

    def of(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return this group's query, [H n, queries, D], key and value, [H n, length, D]."""
        rows = _cut(query, self.rows, self.queries)
        return rows, _cut(key, self.tokens, self.length), _cut(value, self.tokens, self.length)


def _parts(rule: Rule, heads: int) -> Iterator[_Part]:
    row = weight = 0
    for first, count, length in rule.groups:
        queries = 1 if rule.single else length
        rows, size = count * queries, heads * count * queries * length
        tokens = slice(first, first + count * length)
        yield _Part(tokens, slice(row, row + rows), slice(weight, weight + size), queries, length)
        row, weight = row + rows, weight + size


def _cut(x: Tensor, at: slice, size: int) -> Tensor:
    """[H, T, D] -> [H n, size, D]: the sequences of one group, without a copy where there is only one."""
    return x[:, at].reshape(-1, size, x.shape[2])


def _put(out: Tensor, at: slice, x: Tensor) -> None:
    """Write [H n, size, D] into its place in `out`, [H, T, D]."""
    heads, _, width = out.shape
    out[:, at] = x.view(heads, -1, width)


def _weights(query: Tensor, key: Tensor, rule: Rule) -> Tensor:
    """Return the attention weights, [H n, queries, length]."""
    length = key.shape[1]
    narrow = rule.causal or (rule.window is not None and length > rule.window)
    if narrow and not rule.single:
        scores = torch.baddbmm(_mask(length, rule, query), query, key.transpose(1, 2), alpha=rule.scaling)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(rule.scaling)
    return torch.softmax(scores, -1)


def _mask(length: int, rule: Rule, like: Tensor) -> Tensor:
    """Return what is added to the scores: 0 where a token may look, -inf elsewhere, [1, queries, length]."""
    place = torch.arange(length)
    distance = place[:, None] - place[None]
    seen = distance.abs() < (length if rule.window is None else rule.window)
    if rule.causal:
        seen &= distance >= 0
    return torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, -torch.inf)[None]


class _Attend(torch.autograd.Function):
    """`attend` and its gradients."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attend, group by group, in the type of the inputs even under autocast, as backward runs outside it."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        parts = list(_parts(rule, query.shape[0]))
        keep, factor = keep_mask([parts[-1].weights.stop], rule.dropout) if rule.dropout else (None, 1.0)
        out = torch.empty(query.shape, dtype=query.dtype)
        with torch.autocast("cpu", enabled=False):
            for part in parts:
                q, k, v = part.of(query, key, value)
                weights = _weights(q, k, rule)
                if keep is not None:
                    weights *= keep[part.weights].view(weights.shape)
                _put(out, part.rows, torch.bmm(weights, v))
        ctx.save_for_backward(query, key, value, *([] if keep is None else [keep]))
        ctx.rule, ctx.factor = rule, factor
        return out.mul_(factor) if keep is not None else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors
        rule, factor = ctx.rule, ctx.factor
        results = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        upper = gradients[0].contiguous()
        for part in _parts(rule, query.shape[0]):
            q, k, v = part.of(query, key, value)
            gradient = _cut(upper, part.rows, part.queries)
            weights = _weights(q, k, rule)
            seen, change = weights, torch.bmm(gradient, v.transpose(1, 2))
            if kept:
                keep = kept[0][part.weights].view(weights.shape)
                gradient, seen, change = gradient * factor, weights * keep, change.mul_(keep).mul_(factor)
            change = torch._softmax_backward_data(change, weights, -1, weights.dtype).mul_(rule.scaling)
            _put(results[0], part.rows, torch.bmm(change, k))
            _put(results[1], part.tokens, torch.bmm(change.transpose(1, 2), q))
            _put(results[2], part.tokens, torch.bmm(seen.transpose(1, 2), gradient))
        return results[0], results[1], results[2], None
