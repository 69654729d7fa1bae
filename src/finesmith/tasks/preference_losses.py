"""Losses on preferred and rejected answers, from the log-probabilities of whole answers.

Everything here is a function of sums: `policy` and `reference` are log p(answer | prompt), summed over the answer's
tokens, under the model in training and under the one it started from. Every loss is returned row by row.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.errors import DataError, UserError
from finesmith.run import whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]


def sums_by_row(values_S: Tensor, rows_S: Tensor, count: int) -> Tensor:
    """Return the sum of each row's values, [count]; rows_S names the row of each value.

    Raises DataError when a row has none: an answer without supervised tokens has no preference.
    """
    import torch

    tokens = torch.bincount(rows_S, minlength=count)
    empty = (tokens == 0).nonzero()[:, 0].tolist()
    if empty:
        raise DataError(
            f"rows {empty[:20]} of this batch have no supervised token left, so no log-probability; "
            "raise data.max_length or drop these rows"
        )
    return torch.zeros(count, dtype=values_S.dtype, device=values_S.device).index_add(0, rows_S, values_S)


# --- losses ----------------------------------------------------------------------------------------------------------


def dpo_loss(policy: Pair, reference: Pair, *, beta: float = 0.1, smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta h) of each pair, [N], with h how much more the policy prefers than the reference.

    policy and reference: (chosen, rejected), [N] each; h = (policy - reference) of chosen minus that of rejected
    (Rafailov et al. 2023, arXiv:2305.18290, equation 7). smoothing: the share of pairs whose preference is taken to be
    the wrong way round (conservative DPO). Raises UserError when beta or smoothing is out of range.
    """
    from torch.nn.functional import logsigmoid

    _above_zero("beta", beta)
    if not 0 <= smoothing < 0.5:
        raise UserError(f"preference label smoothing is {smoothing}, expected 0 <= smoothing < 0.5")
    logits = beta * _preference(policy, reference)
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def ipo_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> Tensor:
    """Return (h - 1 / (2 beta))^2 of each pair, [N] (Azar et al. 2023, arXiv:2310.12036, equation 17).

    beta is the paper's tau and h as for `dpo_loss`. Raises UserError when beta is not above zero.
    """
    _above_zero("beta", beta)
    return (_preference(policy, reference) - 1 / (2 * beta)).square()


def orpo_loss(policy: Pair, lengths: Pair, *, weight: float = 0.1) -> Tensor:
    """Return the chosen answer's loss a token less weight log sigmoid(log odds ratio) of each pair, [N].

    odds = p / (1 - p) of p, the geometric mean of an answer's token probabilities (Hong et al. 2024, arXiv:2403.07691,
    equations 3 to 7; weight is its lambda). There is no reference model. Raises UserError when weight is negative or
    not finite.
    """
    from torch.nn.functional import logsigmoid

    if not (weight >= 0 and math.isfinite(weight)):
        raise UserError(f"the weight of ORPO's odds ratio is {weight}, expected 0 or more; 0.1 is usual")
    chosen, rejected = (p / n.to(p) for p, n in zip(policy, lengths, strict=True))
    return -chosen - weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    divergence: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return weight - value of each single answer, good or bad, [N] (Ethayarajh et al. 2024, arXiv:2402.01306).

    value = weight sigmoid(beta (r - z)) of a desirable answer and weight sigmoid(beta (z - r)) of another, with
    r = policy - reference and z = `divergence` of `kto_divergence` (equation 8). policy and reference: [N]; desirable:
    bool [N]. Raises UserError when beta or a weight is not above zero.
    """
    import torch

    for name, value in (("beta", beta), ("desirable_weight", desirable_weight)):
        _above_zero(name, value)
    _above_zero("undesirable_weight", undesirable_weight)
    away = policy - reference - divergence.detach()
    sign = torch.full_like(away, -1).masked_fill(desirable, 1)
    weights = torch.full_like(away, undesirable_weight).masked_fill(desirable, desirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where x is large.
    return weights * torch.sigmoid(-beta * sign * away)


def kto_divergence(policy_mismatched: Tensor, reference_mismatched: Tensor) -> Tensor:
    """Return the estimate of KL(policy || reference) of one batch: max(0, mean(policy - reference)), without gradient.

    Both are the log-probabilities, [N], of each prompt's *mismatched* answer, that of another row (`mismatched`;
    section 4.1 of the paper).
    """
    return (policy_mismatched - reference_mismatched).mean().clamp_min(0).detach()


def mismatched(count: int) -> list[int]:
    """Return which row's answer goes with each prompt for KTO's divergence: row i takes that of row i + 1.

    The last row takes the first one's answer. Raises UserError for a single row, whose only answer matches.
    """
    if count < 2:
        raise UserError("KTO estimates its divergence from other rows' answers; give at least 2 rows")
    return [(row + 1) % count for row in range(count)]


def _preference(policy: Pair, reference: Pair) -> Tensor:
    return (policy[0] - policy[1]) - (reference[0] - reference[1])


def log_odds(log_p: Tensor) -> Tensor:
    """Return log(p / (1 - p)), with the digits of 1 - p kept wherever p lies."""
    import torch

    small = log_p < -math.log(2)
    # Each branch is computed where it is exact; the other is given a harmless value, so that no gradient is NaN.
    tail = torch.log1p(-torch.where(small, log_p, -1.0).exp())
    head = torch.log(-torch.expm1(torch.where(small, -1.0, log_p)))
    return log_p - torch.where(small, tail, head)


def _above_zero(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"preference {name} is {value}, expected a number above 0")


# --- the objective a recipe chose -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Objective:
    """Which loss, by name (dpo, ipo, orpo or kto), and the numbers that the losses take."""

    loss: str
    beta: float = 0.1
    smoothing: float = 0.0
    odds_weight: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def refers(self) -> bool:
        """Whether the loss compares with the model before tuning."""
        return self.loss != "orpo"

    def of_pairs(self, policy: Pair, reference: Pair | None, lengths: Pair) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair, [N], and by how much the chosen answer's reward is above the other's, [N].

        Rewards are beta (policy - reference); for ORPO the log odds, which need no reference.
        """
        if self.loss == "orpo":
            chosen, rejected = (log_odds(p / n.to(p)) for p, n in zip(policy, lengths, strict=True))
            return orpo_loss(policy, lengths, weight=self.odds_weight), (chosen - rejected).detach()
        assert reference is not None
        margins = self.beta * _preference(policy, reference).detach()
        if self.loss == "ipo":
            return ipo_loss(policy, reference, beta=self.beta), margins
        return dpo_loss(policy, reference, beta=self.beta, smoothing=self.smoothing), margins

    def of_marked(self, policy: Tensor, reference: Tensor, good: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each marked answer, [N], and how far its reward is on the right side, [N].

        The reward is beta (policy - reference - divergence); right is above 0 for a good answer, below for another.
        """
        losses = kto_loss(
            policy, reference, good, divergence, beta=self.beta, desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )  # fmt: skip
        rewards = self.beta * (policy - reference - divergence).detach()
        return losses, rewards.where(good, -rewards)


# A recipe that names no loss of preferences: their rows choose one.
UNNAMED = Objective("cross_entropy")


# --- the reference, computed once ------------------------------------------------------------------------------------


def reference_key(model: str, arrays: Mapping[str, npt.NDArray[np.generic]], settings: Mapping[str, str]) -> str:
    """Return a SHA-256 of everything that reference log-probabilities depend on.

    model: the hash of the reference's weights. arrays: the token ids, offsets and targets, by name. settings: whatever
    else changes the numbers (number type, kind of answers, library versions), by name.
    """
    import json

    digest = hashlib.sha256(json.dumps([model, sorted(settings.items())]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_reference(folder: Path, key: str, values: Iterable[float]) -> Path:
    """Write reference log-probabilities under their key, whole or not at all; return the file.

    Raises DataError when one is not finite, RunError when the disk is full.
    """
    import numpy as np

    array = np.fromiter(values, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise DataError(
            f"the reference model's log-probability of row {int(wrong[0])} is {array[wrong[0]]}, expected a finite "
            "number; its weights may be damaged: try another model.base"
        )
    path = folder / f"reference-{key}.npz"
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, values=array)
    return path


def load_reference(folder: Path, key: str, count: int) -> npt.NDArray[np.float64] | None:
    """Return the `count` log-probabilities saved under a key; None where there are none yet, or damaged ones."""
    import numpy as np

    path = folder / f"reference-{key}.npz"
    if not zipfile.is_zipfile(path):
        return None
    try:
        # The form has a checksum of its own, which reading compares.
        with np.load(path, allow_pickle=False) as kept:
            array = kept["values"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    if array.dtype != np.float64 or array.shape != (count,) or not np.isfinite(array).all():
        return None
    return array  # type: ignore[no-any-return]
