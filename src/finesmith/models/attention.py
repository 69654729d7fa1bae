"""Attention over ragged batches: no padding token is embedded, projected or fed to a feed-forward layer.

transformers lets a library register an attention function by name. Ours receives the projections of all tokens of a
batch, laid end to end, and a `Layout` that says where each sequence lies. Model code is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finesmith.models import varlen

if TYPE_CHECKING:
    import torch

RAGGED = "finesmith_ragged"

# A run of sequences of one length: first token, sequences, length.
Group = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sequences of a ragged batch lie.

    lengths: of each sequence, ascending. groups: the runs of equal lengths. starts and ends: int64 [B], the first and
    the last token of each sequence. positions: int64 [T] from 0 in each. edges: int32 [B + 1], where each sequence
    begins, and where the last one ends.
    """

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]
    starts: torch.Tensor
    ends: torch.Tensor
    positions: torch.Tensor
    edges: torch.Tensor


def layout_of(lengths: torch.Tensor) -> Layout:
    """Describe a batch of sequences of `lengths` (int64 [B])."""
    import torch

    ends = lengths.cumsum(0)
    starts = ends - lengths
    total = int(ends[-1]) if len(lengths) else 0
    positions = torch.arange(total, device=lengths.device) - torch.repeat_interleave(starts, lengths)
    sizes = tuple(lengths.tolist())
    groups: list[Group] = []
    first, i = 0, 0
    while i < len(sizes):
        j = i
        while j < len(sizes) and sizes[j] == sizes[i]:
            j += 1
        groups.append((first, j - i, sizes[i]))
        first += (j - i) * sizes[i]
        i = j
    return Layout(sizes, tuple(groups), starts, ends - 1, positions, _edges(ends))


def _edges(ends: torch.Tensor) -> torch.Tensor:
    """Return int32 [B + 1]: 0, and one past the last token of each sequence."""
    import torch

    return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)


def one_each(layout: Layout) -> Layout:
    """Describe a batch of which one token a sequence is left."""
    import torch

    count = len(layout.lengths)
    places = torch.arange(count, device=layout.starts.device)
    return Layout((1,) * count, ((0, count, 1),), places, places, torch.zeros_like(places), _edges(places + 1))


@cache
def register() -> None:
    """Make the ragged attention known to transformers under the name `RAGGED`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(RAGGED, ragged_attention)
    AttentionMaskInterface.register(RAGGED, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    ragged_layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of a flat batch.

    query: [1, H, T, D], or [1, H, B, D] with one query a sequence, which then sees all of it; key and value: [1, H or
    fewer, T, D]. Returns ([1, T or B, H, D], None). Every sequence sees itself only: causally where the module says
    so, within |i - j| < sliding_window where given.
    """
    import torch

    if attention_mask is not None:
        raise ValueError("ragged attention takes no mask; the model built one of its own")
    causal = bool(module.is_causal) if is_causal is None else is_causal
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads != heads:
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
    single = query.shape[2] != key.shape[2]
    kernel = varlen.kernel_for(query, value, dropout=dropout, single=single, window=sliding_window)
    if kernel is not None:
        how = varlen.How(scaling, causal, sliding_window, single)
        return varlen.attend(kernel, query[0], key[0], value[0], ragged_layout, how)[None], None
    if query.device.type == "cpu" and (torch.is_grad_enabled() or dropout):
        from finesmith.models.attend import Rule, attend

        scale = scaling if scaling is not None else float(query.shape[-1] ** -0.5)
        rule = Rule(ragged_layout.groups, scale, dropout, causal, sliding_window, single)
        # Under autocast the three may come in different types, as rotary embeddings widen two of them.
        dtype = torch.float32 if torch.is_autocast_enabled("cpu") else value.dtype
        query, key, value = query[0].to(dtype), key[0].to(dtype), value[0].to(dtype)
        return attend(query, key, value, rule).transpose(0, 1)[None], None
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]  # [T, H, D] each
    outputs, row = [], 0
    for first, count, length in ragged_layout.groups:
        rows, tokens = count if single else count * length, count * length
        q, k, v = flat[0][row : row + rows], flat[1][first : first + tokens], flat[2][first : first + tokens]
        outputs.append(_group(q, k, v, count, scaling, dropout, causal, sliding_window))
        row += rows
    return torch.cat(outputs)[None], None


def _group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    count: int,
    scaling: float | None,
    dropout: float,
    causal: bool,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend within `count` sequences of one length; query [count * rows, H, D], returned in the same shape."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (query, key, value))  # type: ignore[no-untyped-call]
    mask, length = None, k.shape[2]
    if sliding_window is not None and length > sliding_window:
        place = torch.arange(length, device=q.device)
        distance = place[:, None] - place[None, :]
        mask = distance.abs() < sliding_window
        if causal:
            mask &= distance >= 0
        causal = False
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)
