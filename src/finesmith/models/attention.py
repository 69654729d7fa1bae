"""Attention over ragged batches: no padding token is embedded, projected or fed to a feed-forward layer.

transformers lets a library register an attention function by name. Ours receives the projections of all tokens of a
batch, laid end to end, and a `Layout` that says where each sequence lies. Model code is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RAGGED = "finesmith_ragged"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sequences of a ragged batch lie.

    lengths: of each sequence, ascending. groups: (first token, sequences, length) for each run of equal lengths.
    starts and ends: int64 [B], the first and the last token of each sequence. positions: int64 [T] from 0 in each.
    """

    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, int], ...]
    starts: torch.Tensor
    ends: torch.Tensor
    positions: torch.Tensor


def layout_of(lengths: torch.Tensor) -> Layout:
    """Describe a batch of sequences of `lengths` (int64 [B])."""
    import torch

    ends = lengths.cumsum(0)
    starts = ends - lengths
    total = int(ends[-1]) if len(lengths) else 0
    positions = torch.arange(total, device=lengths.device) - torch.repeat_interleave(starts, lengths)
    sizes = tuple(lengths.tolist())
    groups: list[tuple[int, int, int]] = []
    first, i = 0, 0
    while i < len(sizes):
        j = i
        while j < len(sizes) and sizes[j] == sizes[i]:
            j += 1
        groups.append((first, j - i, sizes[i]))
        first += (j - i) * sizes[i]
        i = j
    return Layout(sizes, tuple(groups), starts, ends - 1, positions)


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

    query: [1, H, T, D]; key and value: [1, H or fewer, T, D]. Returns ([1, T, H, D], None).
    Every sequence sees itself only: causally where the module says so, within |i - j| < sliding_window where given.
    """
    import torch

    if attention_mask is not None:
        raise ValueError("ragged attention takes no mask; the model built one of its own")
    causal = bool(module.is_causal) if is_causal is None else is_causal
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads != heads:
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]  # [T, H, D] each
    outputs = [_group(flat, group, scaling, dropout, causal, sliding_window) for group in ragged_layout.groups]
    return torch.cat(outputs)[None], None


def _group(
    flat: list[torch.Tensor],
    group: tuple[int, int, int],
    scaling: float | None,
    dropout: float,
    causal: bool,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend within the sequences of one length; returns [count * length, H, D]."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    first, count, length = group
    tokens = count * length
    q, k, v = (part[first : first + tokens].unflatten(0, (count, length)).transpose(1, 2) for part in flat)  # type: ignore[no-untyped-call]
    mask = None
    if sliding_window is not None and length > sliding_window:
        place = torch.arange(length, device=q.device)
        distance = place[:, None] - place[None, :]
        mask = distance.abs() < sliding_window
        if causal:
            mask &= distance >= 0
        causal = False
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)
