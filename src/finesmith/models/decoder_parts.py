"""What a decoder layer does besides its large products, in few passes over memory, forwards and backwards.

A model's own modules write a new tensor at every operation and keep most of them for the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finesmith.models.attention import Layout

# Rows of queries in one product: enough to be quick, few enough that little above the diagonal is computed.
BLOCK = 128


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang and Sennrich, arXiv:1910.07467)."""
    result: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    """`rms_norm` and its gradients; keeps the input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Normalise."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        normal: Tensor = x * factor
        return normal.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of x and weight."""
        x, weight, factor = ctx.saved_tensors
        normal = x * factor
        of_weight = of_x = None
        if ctx.needs_input_grad[1]:
            of_weight = (upstream * normal).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            inner = upstream * weight
            along = torch.linalg.vecdot(inner, normal).div_(x.shape[-1]).unsqueeze(-1)
            of_x = inner.addcmul_(normal, along, value=-1).mul_(factor)
        return of_x, of_weight, None


@dataclass(frozen=True, slots=True)
class Part:
    """Queries that are computed together, `rows`, over the keys at `tokens`; `mask` is added, [rows, tokens]."""

    rows: slice
    tokens: slice
    mask: Tensor


def parts_of(layout: Layout, rows_S: Tensor, window: int | None, dtype: torch.dtype) -> list[Part]:
    """Cut the queries at the places `rows_S` (ascending, of a flat batch) into parts.

    Each token sees its own sequence up to itself, and at most `window` tokens where given. Short neighbours share a
    part, long sequences have several.
    """
    device = rows_S.device
    starts = layout.starts.tolist()
    owner = torch.bucketize(rows_S, layout.ends)
    counts = torch.bincount(owner, minlength=len(starts)).tolist()
    places = torch.arange(len(layout.positions), device=device)
    parts: list[Part] = []
    for begin, end, first in _runs(counts, layout.lengths, starts):
        rows = rows_S[begin:end]
        last = int(rows[-1]) + 1
        keys, own = places[first:last], layout.starts[owner[begin:end]][:, None]
        seen = (keys >= own) & (keys <= rows[:, None])
        if window is not None:
            seen &= keys > rows[:, None] - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        parts.append(Part(slice(begin, end), slice(first, last), mask))
    return parts


def _runs(counts: list[int], lengths: tuple[int, ...], starts: list[int]) -> list[tuple[int, int, int]]:
    """Return (first query, one past the last, first key) of each part."""
    runs: list[tuple[int, int, int]] = []
    row = held = 0
    for count, length, start in zip(counts, lengths, starts, strict=True):
        if count == 0:
            held = 0
            continue
        if held and held + length <= BLOCK:
            begin, _, first = runs.pop()
            runs.append((begin, row + count, first))
            held += length
        else:
            pieces = max(1, round(count / BLOCK))
            edges = [row + count * i // pieces for i in range(pieces + 1)]
            runs += [(edges[i], edges[i + 1], start) for i in range(pieces)]
            held = length if pieces == 1 else BLOCK
        row += count
    return runs


@dataclass(frozen=True, slots=True)
class Turn:
    """Rotary positions of some tokens: cosines and signed sines, [1, S, D], the sines of the first half negative."""

    cosines: Tensor
    sines: Tensor

    def forwards(self, x_SHD: Tensor) -> Tensor:
        """Rotate (Su and others, arXiv:2104.09864); returns [H, S, D]."""
        return _turned(x_SHD.transpose(0, 1), self.cosines, self.sines)

    def back(self, x_HSD: Tensor) -> Tensor:
        """Rotate back, which is the gradient; returns [S, H * D]."""
        half = x_HSD.shape[-1] // 2
        # The sines' sign follows the half that is written, and rotating back is rotating by the other sign.
        sines = torch.cat([self.sines[..., half:], self.sines[..., :half]], -1)
        return _turned(x_HSD, self.cosines, sines).transpose(0, 1).flatten(1)


def turn_of(cosines_SD: Tensor, sines_SD: Tensor, scale: float = 1.0) -> Turn:
    """Prepare a rotation by the angles whose (co)sines repeat in both halves; `scale` multiplies what is rotated."""
    half = cosines_SD.shape[-1] // 2
    signed = torch.cat([-sines_SD[:, :half], sines_SD[:, half:]], -1)
    return Turn(cosines_SD[None] * scale, signed[None] * scale)


def _turned(x_HSD: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x_HSD.shape[-1] // 2
    out = torch.empty(x_HSD.shape, dtype=x_HSD.dtype, device=x_HSD.device)
    torch.mul(x_HSD, cosines, out=out)
    out[..., :half].addcmul_(x_HSD[..., half:], sines[..., :half])
    out[..., half:].addcmul_(x_HSD[..., :half], sines[..., half:])
    return out


def attend_causally(
    query_SE: Tensor, key_TE: Tensor, value_TE: Tensor, turns: tuple[Turn, Turn], parts: list[Part]
) -> Tensor:
    """Rotate queries and keys and return softmax(query key^T) value within each sequence, [S, H * D].

    query: [S, H * D] of the tokens that `parts` were made for; key and value: [T, K * D] with K dividing H. The first
    turn, that of the queries, holds the scale of the scores too.
    """
    result: Tensor = _Attend.apply(query_SE, key_TE, value_TE, turns, parts)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    """`attend_causally` and its gradients; weights are computed again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, turns: tuple[Turn, Turn], parts: list[Part]
    ) -> Tensor:
        """Attend, part by part."""
        width = turns[0].cosines.shape[-1]
        q, k = (turn.forwards(x.view(len(x), -1, width)) for x, turn in zip((query, key), turns, strict=True))
        v = value.view(len(value), -1, width).transpose(0, 1).contiguous()
        out = torch.empty_like(q)
        for part in parts:
            keys, values = k[:, part.tokens], v[:, part.tokens]
            weights = _weights(_by_key(q[:, part.rows], len(k)), keys, part.mask)
            out[:, part.rows] = torch.bmm(weights, values).view(len(q), -1, width)
        ctx.save_for_backward(q, k, v)
        ctx.turns, ctx.parts = turns, parts
        return out.transpose(0, 1).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of query, key and value."""
        q, k, v = ctx.saved_tensors
        heads, _, width = q.shape
        above = upstream.view(len(upstream), heads, width).transpose(0, 1).contiguous()
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for part in ctx.parts:
            rows, keys, values = _by_key(q[:, part.rows], len(k)), k[:, part.tokens], v[:, part.tokens]
            gradient = _by_key(above[:, part.rows], len(k))
            weights = _weights(rows, keys, part.mask)
            change = torch.bmm(gradient, values.transpose(1, 2))
            change = torch._softmax_backward_data(change, weights, -1, weights.dtype)
            of_q[:, part.rows] = torch.bmm(change, keys).view(heads, -1, width)
            of_k[:, part.tokens] += torch.bmm(change.transpose(1, 2), rows)
            of_v[:, part.tokens] += torch.bmm(weights.transpose(1, 2), gradient)
        turned = ctx.turns[0].back(of_q), ctx.turns[1].back(of_k)
        return *turned, of_v.transpose(0, 1).flatten(1), None, None


def _by_key(x_HnD: Tensor, key_heads: int) -> Tensor:
    """Lay the queries of all heads that share a key head below each other: [H, n, D] -> [K, H / K * n, D]."""
    return x_HnD.reshape(key_heads, -1, x_HnD.shape[-1])


def _weights(rows: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Return the attention weights, [K, H / K * n, m], for a mask [n, m]."""
    if rows.shape[1] == len(mask):
        scores = torch.baddbmm(mask[None], rows, keys.transpose(1, 2))
    else:
        scores = torch.bmm(rows, keys.transpose(1, 2))
        scores.view(len(rows), -1, *mask.shape).add_(mask)
    return torch.softmax(scores, -1)


def lora(x: Tensor, base: nn.Linear, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return base(x) + scale * x down^T up^T (Hu and others, arXiv:2106.09685), for x [S, D]."""
    result: Tensor = _Lora.apply(x, base.weight, base.bias, down, up, scale)  # type: ignore[no-untyped-call]
    return result


class _Lora(torch.autograd.Function):
    """`lora` and its gradients, the adapter's share added in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """Compute both paths."""
        narrow = x @ down.t()
        out = nn.functional.linear(x, weight, bias).addmm_(narrow, up.t(), alpha=scale)
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all that asks for one."""
        x, weight, down, up, narrow = ctx.saved_tensors
        needs = ctx.needs_input_grad
        of_narrow = (upstream @ up).mul_(ctx.scale)
        return (
            (upstream @ weight).addmm_(of_narrow, down) if needs[0] else None,
            upstream.t() @ x if needs[1] else None,
            upstream.sum(0) if needs[2] else None,
            of_narrow.t() @ x if needs[3] else None,
            (upstream.t() @ narrow).mul_(ctx.scale) if needs[4] else None,
            None,
        )
