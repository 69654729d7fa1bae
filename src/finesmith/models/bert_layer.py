"""One layer of BERT over a ragged batch on a CPU, forwards and backwards in one piece.

What torch would record as some forty operations is one here: queries, keys and values come from one product, scaling
and dropout's factor are folded into weights and products, nothing is copied that a view can show, and sums go into the
products that make them. The result is that of the layer in transformers; `tests/models/test_bert_layer.py` holds both
together in float64, with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finesmith.models.attention import Group
from finesmith.models.dropout import keep_mask

# Attention weights of so many values a token are kept for the way back; more would cost more memory than time.
KEPT_WEIGHTS = 4096
# Where nothing is remembered, longer sequences go to torch's own kernel, which never holds all their weights.
LONG = 128


@dataclass(frozen=True, slots=True)
class LayerRule:
    """How a layer runs.

    groups: where the sequences lie; heads; epsilons of the two norms; dropout of attention weights and of states (0
    while not training); first: int64 [B], the first token of each sequence where nothing else is asked for; remember:
    whether a way back may follow.
    """

    groups: tuple[Group, ...]
    heads: int
    epsilons: tuple[float, float]
    attention_dropout: float
    hidden_dropout: float
    first: Tensor | None = None
    remember: bool = True


def weights_of(layer: Any) -> list[Tensor] | None:
    """Return the sixteen tensors of a BERT layer in the order of `layer_states`; None where one is wrapped."""
    attention, output = layer.attention.self, layer.attention.output
    linears = [attention.query, attention.key, attention.value, output.dense]
    parts = [*linears, output.LayerNorm, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm]
    if not all(isinstance(part, nn.Linear | nn.LayerNorm) for part in parts):
        return None
    return [tensor for part in parts for tensor in (part.weight, part.bias)]


def layer_states(states: Tensor, weights: Sequence[Tensor], rule: LayerRule) -> Tensor:
    """Return the layer's output, [T, D], or [B, D] where `rule.first` asks for first tokens only.

    states: [T, D]. weights: weight and bias each of query, key, value, attention output, its norm, the feed-forward's
    two products, its norm (Devlin et al. 2019, arXiv:1810.04805; GELU in its exact form).
    """
    result: Tensor = _Layer.apply(states, rule, *weights)  # type: ignore[no-untyped-call]
    return result


@dataclass(slots=True)
class _Masks:
    """Which values dropout keeps, 1 or 0 in the type of the states (in bytes where they are many), and the factors."""

    attention: Tensor | None
    first: Tensor | None
    second: Tensor | None
    attention_factor: float
    hidden_factor: float


def _draw(rule: LayerRule, rows: int, width: int, like: Tensor) -> _Masks:
    masks = _Masks(None, None, None, 1.0, 1.0)
    if rule.attention_dropout:
        size = sum(part.size for part in _parts(rule))
        keep, masks.attention_factor = keep_mask([size], rule.attention_dropout)
        masks.attention = keep.to(like.dtype) if size <= KEPT_WEIGHTS * len(like) else keep
    if rule.hidden_dropout:
        keep, masks.hidden_factor = keep_mask([2, rows, width], rule.hidden_dropout)
        masks.first, masks.second = keep.to(like.dtype).unbind(0)
    return masks


@dataclass(frozen=True, slots=True)
class _Part:
    """One group: `count` sequences of one length, their queries, tokens and attention weights."""

    count: int
    queries: int
    length: int
    rows: slice
    tokens: slice
    weights: slice

    @property
    def size(self) -> int:
        return self.weights.stop - self.weights.start  # type: ignore[no-any-return]


def _parts(rule: LayerRule) -> Iterator[_Part]:
    row = weight = 0
    for first, count, length in rule.groups:
        queries = length if rule.first is None else 1
        size = rule.heads * count * queries * length
        rows, tokens = slice(row, row + count * queries), slice(first, first + count * length)
        yield _Part(count, queries, length, rows, tokens, slice(weight, weight + size))
        row, weight = rows.stop, weight + size


def _cut(x_THd: Tensor, at: slice, count: int, size: int) -> Tensor:
    """Return the matrices of one group, [count H, size, d]; a view where it holds one sequence."""
    x = x_THd[at]
    if count == 1:
        return x.transpose(0, 1)
    return x.view(count, size, *x.shape[1:]).transpose(1, 2).reshape(-1, size, x.shape[2])


def _put(out_THd: Tensor, at: slice, count: int, size: int, x: Tensor) -> None:
    """Write the matrices of one group, [count H, size, d], to their place."""
    out = out_THd[at]
    if count == 1:
        out.transpose(0, 1).copy_(x)
    else:
        out.view(count, size, *out.shape[1:]).transpose(1, 2).copy_(x.view(count, -1, size, x.shape[2]))


@dataclass(slots=True)
class _Joined:
    """The products of attention as two: queries, keys and values side by side, or queries of first tokens apart.

    Scaling is folded into the queries' weights, and dropout's factor into the values'.
    """

    weight: Tensor
    bias: Tensor
    scales: tuple[float, float, float]
    width: int

    def project(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, ...]:
        """Return queries [T or B, D], keys [T, D] and values [T, D] of the states `x`."""
        if first is None:
            return torch.addmm(self.bias, x, self.weight.t()).chunk(3, 1)
        d = self.width
        query = torch.addmm(self.bias[:d], x.index_select(0, first), self.weight[:d].t())
        return query, *torch.addmm(self.bias[d:], x, self.weight[d:].t()).chunk(2, 1)


def _join(weights: Sequence[Tensor], rule: LayerRule, value_factor: float) -> _Joined:
    width = weights[0].shape[0]
    scales = (float(width // rule.heads) ** -0.5, 1.0, value_factor)
    joined = torch.cat(list(weights[0:6:2])), torch.cat(list(weights[1:6:2]))
    for tensor in joined:
        for part, scale in zip(tensor.chunk(3), scales, strict=True):
            if scale != 1.0:
                part.mul_(scale)
    return _Joined(*joined, scales, width)


def _attend(
    projected: Sequence[Tensor], rule: LayerRule, mask: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor] | None]:
    """Return the context, [R, D], and the attention weights of each group where they are to be kept."""
    query, key, value = (x.unflatten(1, (rule.heads, -1)) for x in projected)  # type: ignore[no-untyped-call]
    out = query.new_empty(query.shape)
    kept: list[Tensor] = []
    for part in _parts(rule):
        q = _cut(query, part.rows, part.count, part.queries)
        k, v = (_cut(x, part.tokens, part.count, part.length) for x in (key, value))
        if part.length > LONG and not rule.remember and mask is None:
            attended = nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]
            _put(out, part.rows, part.count, part.queries, attended)
            continue
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
        if keep:
            kept.append(weights)
        if mask is not None:
            weights = weights * mask[part.weights].view(weights.shape)
        _put(out, part.rows, part.count, part.queries, torch.bmm(weights, v))
    return out.flatten(1), kept if keep else None


def _attend_backward(
    projected: Sequence[Tensor], upper: Tensor, rule: LayerRule, mask: Tensor | None, kept: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the queries, [R, D], and of keys and values side by side, or of all three, [T, 3 D]."""
    query, key, value = (x.unflatten(1, (rule.heads, -1)) for x in projected)  # type: ignore[no-untyped-call]
    upper = upper.unflatten(1, (rule.heads, -1))  # type: ignore[no-untyped-call]
    joined = upper.new_empty((len(key), 3 if rule.first is None else 2, *key.shape[1:]))
    *own, to_key, to_value = joined.unbind(1)
    to_query = own[0] if own else torch.empty_like(upper)
    for i, part in enumerate(_parts(rule)):
        q, g = (_cut(x, part.rows, part.count, part.queries) for x in (query, upper))
        k, v = (_cut(x, part.tokens, part.count, part.length) for x in (key, value))
        weights = kept[i] if kept is not None else torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
        seen, change = weights, torch.bmm(g, v.transpose(1, 2))
        if mask is not None:
            dropped = mask[part.weights].view(weights.shape)
            seen, change = weights * dropped, change.mul_(dropped)
        change = torch._softmax_backward_data(change, weights, -1, weights.dtype)
        _put(to_query, part.rows, part.count, part.queries, torch.bmm(change, k))
        _put(to_key, part.tokens, part.count, part.length, torch.bmm(change.transpose(1, 2), q))
        _put(to_value, part.tokens, part.count, part.length, torch.bmm(seen.transpose(1, 2), g))
    return to_query.flatten(1), joined.flatten(1)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer norm of `x`, its means and its inverse deviations."""
    return torch.native_layer_norm(x, [x.shape[1]], weight, bias, epsilon)


def _norm_backward(upper: Tensor, x: Tensor, saved: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Any:
    mean, inverse = saved
    return torch.ops.aten.native_layer_norm_backward(
        upper, x, [x.shape[1]], mean, inverse, weight, bias, [True, True, True]
    )


def _add_dropped(residual: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return residual + mask * x, in the place of `x` where there is no mask."""
    return x.add_(residual) if mask is None else torch.addcmul(residual, x, mask)


class _Layer(torch.autograd.Function):
    """`layer_states` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: LayerRule, *weights: Tensor) -> Tensor:
        """Run the layer, keeping what the way back needs."""
        wo, bo, g1, b1, wi, bi, wf, bf, g2, b2 = weights[6:]
        residual = x if rule.first is None else x.index_select(0, rule.first)
        masks = _draw(rule, len(residual), x.shape[1], x)
        factor = masks.hidden_factor
        joined = _join(weights, rule, masks.attention_factor)
        projected = joined.project(x, rule.first)
        keep = rule.remember and sum(part.size for part in _parts(rule)) <= KEPT_WEIGHTS * len(x)
        context, kept = _attend(projected, rule, masks.attention, keep)
        sum1 = _add_dropped(residual, torch.addmm(bo, context, wo.t(), beta=factor, alpha=factor), masks.first)
        middle, *norm1 = _norm(sum1, g1, b1, rule.epsilons[0])
        inner = torch.addmm(bi, middle, wi.t())
        active = nn.functional.gelu(inner)
        sum2 = _add_dropped(middle, torch.addmm(bf, active, wf.t(), beta=factor, alpha=factor), masks.second)
        out, *norm2 = _norm(sum2, g2, b2, rule.epsilons[1])
        ctx.save_for_backward(x, *weights)
        ctx.rule, ctx.masks, ctx.joined, ctx.kept = rule, masks, joined, kept
        ctx.states = (projected, context, sum1, norm1, middle, inner, active, sum2, norm2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the states and of every weight."""
        x, *weights = ctx.saved_tensors
        wo, _, g1, b1, wi, _, wf, _, g2, b2 = weights[6:]
        rule, masks, joined = ctx.rule, ctx.masks, ctx.joined
        projected, context, sum1, norm1, middle, inner, active, sum2, norm2 = ctx.states
        kept = ctx.kept
        ctx.states = ctx.kept = ctx.masks = ctx.joined = None
        factor = masks.hidden_factor
        to_sum2, to_g2, to_b2 = _norm_backward(gradients[0].contiguous(), sum2, norm2, g2, b2)
        to_out = to_sum2 if masks.second is None else to_sum2 * masks.second
        to_inner = torch.ops.aten.gelu_backward(_times(to_out, wf, factor), inner)
        to_wf, to_bf = _linear_gradients(to_out, active, factor)
        to_wi, to_bi = _linear_gradients(to_inner, middle)
        to_sum1, to_g1, to_b1 = _norm_backward(torch.addmm(to_sum2, to_inner, wi), sum1, norm1, g1, b1)
        to_context = to_sum1 if masks.first is None else to_sum1 * masks.first
        to_wo, to_bo = _linear_gradients(to_context, context, factor)
        to_query, to_joined = _attend_backward(projected, _times(to_context, wo, factor), rule, masks.attention, kept)
        to_x, to_attention = _joined_gradients(x, to_sum1, to_query, to_joined, joined, rule.first)
        return (
            to_x, None, *to_attention, to_wo, to_bo, to_g1, to_b1, to_wi, to_bi, to_wf, to_bf, to_g2, to_b2,
        )  # fmt: skip


def _times(upper: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Return factor * upper weight."""
    if factor == 1.0:
        return upper @ weight
    return torch.addmm(upper.new_empty(1), upper, weight, beta=0, alpha=factor)


def _linear_gradients(upper: Tensor, x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear map's weight, [N, K], and bias, [N], from those of its outputs, [T, N]."""
    weight, bias = _times(upper.t(), x, factor), upper.sum(0)
    return weight, bias if factor == 1.0 else bias.mul_(factor)


def _joined_gradients(
    x: Tensor, residual: Tensor, to_query: Tensor, to_joined: Tensor, joined: _Joined, first: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the states and of the weights and biases of query, key and value."""
    d = joined.width
    if first is None:
        to_weight, to_bias = _linear_gradients(to_joined, x)
        to_x = torch.addmm(residual, to_joined, joined.weight)
    else:
        query_weight, query_bias = _linear_gradients(to_query, x.index_select(0, first))
        rest_weight, rest_bias = _linear_gradients(to_joined, x)
        to_weight, to_bias = torch.cat([query_weight, rest_weight]), torch.cat([query_bias, rest_bias])
        to_x = to_joined @ joined.weight[d:]
        to_x.index_add_(0, first, torch.addmm(residual, to_query, joined.weight[:d]))
    found = []
    for weight, bias, scale in zip(to_weight.chunk(3), to_bias.chunk(3), joined.scales, strict=True):
        found += [weight, bias] if scale == 1.0 else [weight * scale, bias * scale]
    return to_x, found
