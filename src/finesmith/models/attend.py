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

    query: [T, H, D], or [B, H, D] where `rule.single`; key and value: [T, H, D]. Returns the shape of `query`.
    """
    result: Tensor = _Attend.apply(query, key, value, rule)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True, slots=True)
class _Part:
    """One group as batched matrices: n sequences times H heads, of `queries` rows and `length` columns."""

    tokens: slice
    rows: slice
    weights: slice
    count: int
    queries: int
    length: int


def _parts(rule: Rule, heads: int) -> Iterator[_Part]:
    rows = weights = 0
    for first, count, length in rule.groups:
        queries = 1 if rule.single else length
        size = count * heads * queries * length
        yield _Part(
            slice(first, first + count * length), slice(rows, rows + count * queries), slice(weights, weights + size),
            count, queries, length,
        )  # fmt: skip
        rows, weights = rows + count * queries, weights + size


def _by_head(x: Tensor, count: int) -> Tensor:
    """[n L, H, D] -> [n H, L, D], contiguous."""
    tokens, heads, width = x.shape
    return x.reshape(count, tokens // count, heads, width).transpose(1, 2).reshape(count * heads, -1, width)


def _by_token(out: Tensor, x: Tensor, count: int) -> None:
    """Write [n H, L, D] into `out`, [n L, H, D]."""
    tokens, heads, width = out.shape
    out.view(count, tokens // count, heads, width).copy_(x.view(count, heads, -1, width).transpose(1, 2))


def _weights(query: Tensor, key: Tensor, rule: Rule) -> Tensor:
    """Return the attention weights, [n H, queries, length]."""
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
        """Attend, group by group."""
        heads = query.shape[1]
        parts = list(_parts(rule, heads))
        keep, factor = keep_mask([parts[-1].weights.stop], rule.dropout) if rule.dropout else (None, 1.0)
        out = torch.empty(query.shape, dtype=query.dtype)
        for part in parts:
            q, k, v = (
                _by_head(x[at], part.count)
                for x, at in ((query, part.rows), (key, part.tokens), (value, part.tokens))
            )  # fmt: skip
            weights = _weights(q, k, rule)
            if keep is not None:
                weights *= keep[part.weights].view(weights.shape)
            _by_token(out[part.rows], torch.bmm(weights, v), part.count)
        ctx.save_for_backward(query, key, value, *([] if keep is None else [keep]))
        ctx.rule, ctx.factor = rule, factor
        return out.mul_(factor) if keep is not None else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors
        rule, factor = ctx.rule, ctx.factor
        results = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        for part in _parts(rule, query.shape[1]):
            places = (part.rows, part.tokens, part.tokens)
            q, k, v = (_by_head(x[at], part.count) for x, at in zip((query, key, value), places, strict=True))
            gradient = _by_head(gradients[0][part.rows], part.count)
            weights = _weights(q, k, rule)
            seen, change = weights, torch.bmm(gradient, v.transpose(1, 2))
            if kept:
                keep = kept[0][part.weights].view(weights.shape)
                gradient, seen, change = gradient * factor, weights * keep, change.mul_(keep).mul_(factor)
            grad_value = torch.bmm(seen.transpose(1, 2), gradient)
            change = torch._softmax_backward_data(change, weights, -1, weights.dtype).mul_(rule.scaling)
            grads = (torch.bmm(change, k), torch.bmm(change.transpose(1, 2), q), grad_value)
            for result, at, grad in zip(results, places, grads, strict=True):
                _by_token(result[at], grad, part.count)
        return results[0], results[1], results[2], None
