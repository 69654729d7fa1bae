"""Choose the next token from logits, and say whether rounding could have changed the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Logits of one sequence computed in batches of different shapes were seen to differ by 18 units in the last place of
# the largest of them (small Llama, float32, cached against uncached); two of them, with room for deeper models.
ROUNDING_UNITS = 512


@dataclass(frozen=True, slots=True)
class Warp:
    """How a distribution is reshaped before a token is drawn from it."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def tolerance(scores: Tensor) -> Tensor:
    """Return how far apart two scores of a row [..., V] must lie for their order not to depend on rounding, [..., 1].

    Zero for number types below float32, whose rounding decides too often to be told apart.
    """
    import torch

    if scores.dtype not in (torch.float32, torch.float64):
        return torch.zeros_like(scores[..., :1])
    # Also for float64: some families compute their attention in float32 whatever the weights are.
    unit = torch.finfo(torch.float32).eps * ROUNDING_UNITS
    return scores.masked_fill(scores.isinf(), 0.0).abs().amax(-1, keepdim=True) * unit


def penalised(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen (bool, the shape of scores) less likely.

    Scores above zero are divided by the penalty, others multiplied (Keskar et al. 2019, arXiv:1909.05858).
    """
    return scores.where(~seen, (scores / penalty).where(scores > 0, scores * penalty))


def greatest(scores_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token of the greatest score in each row, [B], and whether no other comes near it.

    Of equal scores that with the smallest id is taken.
    """
    best, second = scores_BV.topk(2, -1).values.unbind(-1)
    return scores_BV.argmax(-1), best - second > tolerance(scores_BV)[:, 0]


def drawn(scores_BV: Tensor, keys_B: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Draw a token for each row, [B], and return whether rounding could not have led to another one.

    The draw is the greatest of score / temperature + Gumbel noise among the tokens that `warp` keeps, which are
    distributed as softmax says (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). The noise of a token is a
    function of the row's key and the token's id, so a small change of scores seldom changes the draw.
    """
    scaled = scores_BV.double() / warp.temperature
    slack = tolerance(scores_BV).double() / warp.temperature
    noisy = scaled + gumbel(keys_B, scaled.shape[-1])
    kept, certain, possible = _kept(scaled, slack, warp)
    choice = noisy.masked_fill(~kept, -float("inf")).argmax(-1)
    rivals = noisy.masked_fill(~possible, -float("inf"))
    own = rivals.gather(1, choice[:, None])
    others = rivals.scatter(1, choice[:, None], -float("inf")).amax(-1, keepdim=True)
    return choice, (certain.gather(1, choice[:, None]) & (own - others > slack))[:, 0]


def _kept(scores: Tensor, slack: Tensor, warp: Warp) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens the warp keeps, which it surely keeps, and which it might keep, each bool [B, V].

    top_k keeps the k greatest scores and those equal to the least of them; top_p then the most likely tokens until
    their probabilities reach p, and those equal to the least of them (Holtzman et al. 2020, arXiv:1904.09751).
    """
    import torch

    kept = certain = possible = scores > -float("inf")
    ordered = scores.sort(-1, descending=True).values if warp.top_k or warp.top_p else scores
    if warp.top_k is not None and warp.top_k < scores.shape[-1]:
        least, first_out = ordered[:, warp.top_k - 1, None], ordered[:, warp.top_k, None]
        kept = kept & (scores >= least)
        certain = certain & (scores > first_out + slack)
        possible = possible & (scores >= least - slack)
    if warp.top_p is not None and warp.top_p < 1.0:
        weights = (scores - scores.masked_fill(~kept, -float("inf")).logsumexp(-1, keepdim=True)).exp()
        chances = weights.where(kept, 0.0)
        # What rounding may do to a sum of probabilities, and what tokens weigh of which top_k may be in doubt.
        doubt = 2 * slack + 2 * weights.where(possible & ~certain, 0.0).sum(-1, keepdim=True)
        sorted_chances, order = chances.sort(-1, descending=True)
        before = sorted_chances.cumsum(-1) - sorted_chances
        values = scores.gather(1, order).masked_fill(sorted_chances == 0, -float("inf"))
        values = torch.nn.functional.pad(values, (0, 1), value=-float("inf"))

        def rank_of(mass: Tensor | float) -> Tensor:
            """Return how many tokens reach the mass: the most likely one is kept however small it is."""
            return ((before < mass) & (sorted_chances > 0)).sum(-1, keepdim=True).clamp_min(1)

        kept = kept & (scores >= values.gather(1, rank_of(warp.top_p) - 1))
        certain = certain & (scores > values.gather(1, rank_of(warp.top_p - doubt)) + slack)
        possible = possible & (scores >= values.gather(1, rank_of(warp.top_p + doubt) - 1) - slack)
    return kept, certain, possible


def keys(seed: int, ids: Tensor, positions: Tensor) -> Tensor:
    """Mix the seed, the prompts' ids and the positions of their next tokens into a key a row, int64 [B]."""
    import torch

    start = torch.full_like(ids, _signed(seed & 0xFFFFFFFFFFFFFFFF))
    return _mixed(_mixed(_mixed(start) + ids) + positions)


def gumbel(keys_B: Tensor, count: int) -> Tensor:
    """Return standard Gumbel noise, float64 [B, count]: a function of each key and the column."""
    import torch

    columns = torch.arange(1, count + 1, device=keys_B.device) * _signed(0x9E3779B97F4A7C15)
    bits = _mixed(keys_B[:, None] + columns) >> 12 & (1 << 52) - 1
    uniform = (bits.double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()


def _mixed(values: Tensor) -> Tensor:
    """Scatter 64-bit integers (the finaliser of splitmix64: Steele, Lea and Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return values ^ (values >> 31 & (1 << 33) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
