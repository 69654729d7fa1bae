"""Attention within the sequences of a flat batch on a GPU, in one call of torch's variable-length kernel.

The kernel takes numbers of two bytes and has no dropout; whatever it does not take runs as `attention` says. Before it
is relied on it has to give, on this very device, what the plain way gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from finesmith.models.attention import Layout
    from finesmith.models.forward import Network

# What flash attention computes: heads of so many numbers at most, in steps of eight.
WIDEST, STEP = 256, 8
# Two-byte numbers have 8 bits of precision, of which sums lose a few.
TOLERANCE = 0.08
Kernel = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class How:
    """How to attend. window: |i - j| < window; single: whether each sequence has one query, which sees all of it."""

    scaling: float | None
    causal: bool
    window: int | None
    single: bool


def kernel_for(query: Tensor, value: Tensor, *, dropout: float, single: bool, window: int | None) -> Kernel | None:
    """Return the kernel where it can compute this: a GPU, two-byte numbers, no dropout; otherwise None.

    query and value: [1, H, T, D].
    """
    import torch

    kind = query.device.type
    if kind != "cuda" or dropout or (single and window is not None):
        return None
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return None if why_not(query.device, dtype, query.shape[-1]) is not None else _kernel()


def attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: How) -> Tensor:
    """Return softmax(query key^T scaling) value within each sequence, [T, H, D], or [B, H, D] where `rule.single`.

    query: [H, T, D], or [H, B, D] where `rule.single`; key and value: [H, T, D], all in the type that the kernel takes
    or, under autocast, in any.
    """
    import torch

    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    q, k, v = (part.to(dtype).transpose(0, 1).contiguous() for part in (query, key, value))
    longest = max(layout.lengths)
    edges = torch.arange(len(layout.lengths) + 1, dtype=torch.int32, device=q.device) if rule.single else layout.edges
    before = -1 if rule.window is None else rule.window - 1
    sees = (before, 0 if rule.causal else before) if not rule.single else (-1, -1)
    found: Tensor = kernel(
        q, k, v, edges, layout.edges, 1 if rule.single else longest, longest, scale=rule.scaling, window_size=sees
    )
    return found


@cache
def why_not(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Return why the kernel is not used on a device for heads of `width` numbers; None where it is."""
    import torch

    if device.type != "cuda":
        return "it needs a CUDA GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes numbers of two bytes, not {str(dtype).removeprefix('torch.')}"
    if width > WIDEST or width % STEP:
        return f"heads are {width} wide, and it takes multiples of {STEP} up to {WIDEST}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    try:
        gap = largest_gap(_kernel(), device, dtype, width)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return None if gap <= TOLERANCE else f"it differs by {gap:.2g} from what it should compute"


def told(network: Network, dtype: torch.dtype) -> str:
    """Say in a few words what computes attention when a network is trained in numbers of `dtype`."""
    if not network.ragged:
        return "as transformers has it"
    if network.device.type == "cpu":
        return "finesmith's own, on a CPU"
    config = network.classifier.config.get_text_config()
    width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    reason = why_not(network.device, dtype, int(width))
    if reason is not None:
        return f"a call for each length ({reason})"
    return "one variable-length call a layer, where no dropout acts in it"


def _kernel() -> Kernel:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def largest_gap(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Return how far the kernel lies from float32 sums on a few short sequences, gradients too, by every rule.

    A share of the largest number. Draws no random numbers.
    """
    import torch

    from finesmith.models.attention import layout_of

    layout = layout_of(torch.tensor([3, 7, 7, 12], device=device))
    tokens, heads = sum(layout.lengths), 2
    gaps: list[Tensor] = []
    places = torch.arange(heads * tokens * width, device=device, dtype=torch.float32).view(heads, tokens, width)
    # As good as random, about 1 wide, and the same every time.
    wide = [(torch.sin(places * 12.9898 + step) * 43758.5453).frac() * 2 for step in range(4)]
    upper = wide.pop()
    rules = [How(None, causal, window, False) for causal in (False, True) for window in (None, 4)]
    for rule in [*rules, How(0.2, False, None, True)]:
        asked = layout.starts if rule.single else slice(None)
        results = []
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for number in (dtype, torch.float32):
                given = (wide[0][:, asked], *wide[1:])
                leaves = [part.to(dtype).to(number).detach().requires_grad_() for part in given]
                run = partial(attend, kernel) if number is dtype else _plainly
                found = run(leaves[0], leaves[1], leaves[2], layout, rule)
                weights = upper[:, asked].transpose(0, 1).to(found.dtype)
                results.append([found.detach(), *torch.autograd.grad((found * weights).sum(), leaves)])
        gaps += [(a.float() - b).abs().max() / b.abs().max() for a, b in zip(*results, strict=True)]
    return float(torch.stack(gaps).max())


def _plainly(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: How) -> Tensor:
    """Attend by one product over all tokens under a mask; in the shapes of `attend`."""
    import torch

    owner = torch.repeat_interleave(torch.tensor(layout.lengths, device=query.device))
    rows = layout.starts if rule.single else torch.arange(len(owner), device=query.device)
    seen = owner[rows][:, None] == owner[None]
    distance = rows[:, None] - torch.arange(len(owner), device=query.device)[None]
    if rule.causal and not rule.single:
        seen &= distance >= 0
    if rule.window is not None:
        seen &= distance.abs() < rule.window
    scale = rule.scaling if rule.scaling is not None else float(query.shape[-1] ** -0.5)
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return (torch.softmax(scores, -1) @ value).transpose(0, 1)
