"""Losses for sentence embeddings, and the gradient of a batch too large to hold at once.

Every loss returns a sum and the number of rows it is over. Embeddings need not be of unit length: cosines are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finesmith.errors import DivergenceError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finesmith.types import Batch

Summed = tuple["Tensor", int]


def cosines(left_ND: Tensor, right_MD: Tensor) -> Tensor:
    """Return the cosine of every pair, [N, M]."""
    from torch.nn.functional import normalize

    return normalize(left_ND, dim=1) @ normalize(right_MD, dim=1).T


def ranking_loss(
    anchors_ND: Tensor,
    positives_ND: Tensor,
    negatives_MD: Tensor | None = None,
    *,
    temperature: float = 0.05,
) -> Summed:
    """Return the cross-entropy of finding each anchor's positive among all positives and hard negatives.

    This is InfoNCE over a batch (van den Oord et al. 2018, arXiv:1807.03748; Henderson et al. 2017, arXiv:1705.00652),
    with logits cosine / temperature. Raises UserError when the temperature is not above zero.
    """
    import torch
    from torch.nn.functional import cross_entropy

    _positive("temperature", temperature)
    candidates = positives_ND if negatives_MD is None else torch.cat([positives_ND, negatives_MD])
    logits = cosines(anchors_ND, candidates) / temperature
    count = len(anchors_ND)
    target = torch.arange(count, device=logits.device)
    return cross_entropy(logits, target, reduction="sum"), count


def triplet_loss(anchors_ND: Tensor, positives_ND: Tensor, negatives_ND: Tensor, *, margin: float = 0.5) -> Summed:
    """Return how far each negative is from being `margin` further away than the positive, summed.

    max(0, d(anchor, positive) - d(anchor, negative) + margin), as in Schroff et al. 2015 (arXiv:1503.03832) with
    d = 1 - cosine. Raises UserError when the margin is not above zero.
    """
    from torch.nn.functional import cosine_similarity

    _positive("margin", margin)
    near_N, far_N = (cosine_similarity(anchors_ND, other_ND) for other_ND in (positives_ND, negatives_ND))
    return (far_N - near_N + margin).clamp_min(0).sum(), len(anchors_ND)


def supervised_contrastive_loss(embeddings_ND: Tensor, labels_N: Tensor, *, temperature: float = 0.07) -> Summed:
    """Return the loss that draws sentences of one label together, summed over those that have a fellow in the batch.

    For row i with fellows P(i): -1/|P(i)| sum over p in P(i) of log softmax over all a != i of cosine(i, a) /
    temperature, taken at p (Khosla et al. 2020, arXiv:2004.11362, the form with the sum outside of the logarithm).
    Rows without a fellow are others' negatives only and are not counted. Raises UserError when the temperature is not
    above zero.
    """
    import torch

    _positive("temperature", temperature)
    logits = cosines(embeddings_ND, embeddings_ND) / temperature
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    fellows = (labels_N[None] == labels_N[:, None]).to(logits.device) & ~itself
    logs = logits.masked_fill(itself, -math.inf).log_softmax(1).masked_fill(~fellows, 0.0)
    sizes = fellows.sum(1)
    kept = sizes > 0
    # Of a batch without fellows the sum is an empty one, with a gradient of zeros.
    return -(logs[kept].sum(1) / sizes[kept]).sum(), int(kept.sum())


def similarity_loss(left_ND: Tensor, right_ND: Tensor, targets_N: Tensor) -> Summed:
    """Return the summed squared error of each pair's cosine against its target in [-1, 1]."""
    from torch.nn.functional import cosine_similarity

    found_N = cosine_similarity(left_ND, right_ND)
    return (found_N - targets_N.to(found_N)).square().sum(), len(found_N)


def nested_loss(
    loss: Callable[[Sequence[Tensor]], Summed], embeddings: Sequence[Tensor], widths: Sequence[int]
) -> Summed:
    """Return the mean of a loss over embeddings cut to their first `widths` numbers.

    It makes every such beginning an embedding by itself (Kusupati et al. 2022, arXiv:2205.13147). Raises UserError
    when a width is not between 1 and the width of the embeddings.
    """
    full = embeddings[0].shape[1]
    wrong = [width for width in widths if not 1 <= width <= full]
    if wrong or not widths:
        raise UserError(f"nested widths are {list(widths)[:20]}, expected one or more whole numbers from 1 to {full}")
    parts = [loss([each[:, :width] for each in embeddings]) for width in widths]
    total = parts[0][0]
    for part, _ in parts[1:]:
        total = total + part
    return total / len(parts), parts[0][1]


def cached_backward(
    encode: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    loss: Callable[[Tensor], Summed],
    units: int | None,
    seed: Callable[[int], None],
) -> tuple[float, int, int]:
    """Accumulate the gradient of a loss that needs all embeddings at once, with the activations of one micro-batch.

    Every micro-batch is encoded without gradients; the loss of all embeddings gives the gradient at each; then every
    micro-batch is encoded again and that gradient taken further (Gao et al. 2021, arXiv:2101.06983). The outcome is the
    gradient of loss / units over the whole batch, dropout included, because `seed(i)` fixes the random numbers of
    micro-batch i and is called before both of its passes.

    encode: a micro-batch to embeddings [b, D]; loss: all embeddings, in the order of `batches`, to (sum, count); units:
    what to divide by, or None for that count. Returns (mean loss, sequences, tokens), as train.step.backward does.
    Raises DivergenceError, naming the examples, when the loss is not finite.
    """
    import torch

    parts = []
    with torch.no_grad():
        for i, batch in enumerate(batches):
            seed(i)
            parts.append(encode(batch))
    sizes = [len(part) for part in parts]
    embeddings = torch.cat(parts).requires_grad_()
    total, count = loss(embeddings)
    value = float(total.detach())
    if not math.isfinite(value):
        ids = torch.cat([batch.ids for batch in batches]).tolist()
        raise DivergenceError(f"the loss is {value} in a batch of examples with ids {ids[:20]}", ids)
    sequences, tokens = (sum(map(len, part)) for part in ([b.lengths for b in batches], [b.tokens for b in batches]))
    if not count:
        return 0.0, sequences, tokens
    divisor = count if units is None else units
    (total / divisor).backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    for i, (batch, slope) in enumerate(zip(batches, embeddings.grad.split(sizes), strict=True)):  # type: ignore[no-untyped-call]
        seed(i)
        encode(batch).backward(slope)  # type: ignore[no-untyped-call]
    return value / divisor, sequences, tokens


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} is {value}, expected a number above 0; 0.05 is usual for pairs of sentences")
