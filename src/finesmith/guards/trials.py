"""Probes that run the network on a few rows, and undo whatever they did: weights, gradients, modes, random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

from finesmith.errors import DivergenceError, FinesmithError
from finesmith.guards.preflight import Probed
from finesmith.train.step import LossSum, backward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finesmith.models.token_heads import TokenNetwork
    from finesmith.types import Batch

# Returns a ragged batch of the rows at these places, ascending, of a few rows that are ordered by length.
Make = Callable[[Sequence[int]], "Batch"]
# Returns what a network answers to each row of a batch, one tensor a row.
Answers = Callable[["Batch"], Sequence["Tensor"]]

# Probes that change or compare weights do so with as many numbers, from the top of the model downwards.
MOST_NUMBERS = 2**23
# What rounding may do in float32, as a share of the numbers compared.
ROUNDING = 1e-5
# Of how far the changed row moved; rows that do not read each other move by nothing, or by the last bit.
LEAST_LEAK, NOISE = 1e-4, 2e-7
# Gradients of one batch and of its parts differ by less where sums are sums.
SAME_GRADIENT, SAME_COARSE = 1e-2, 0.15
# A tiny batch is fitted when its loss has fallen by this share, in so many steps at one of the rates tried; few steps
# first, for most models need no more. Bounded losses and adapters of few numbers fall slowly.
FALL = 0.05
TRIALS = ((8, (1.0, 10.0, 100.0, 1000.0)), (48, (0.1, 0.5, 2.0, 10.0, 100.0)))
# A few vectors before the text move the words that a frozen model expects by little.
LEAST_FALL = 0.005
SMALLEST_LOSS = 1e-3


@contextmanager
def undone(module: nn.Module, weights: Sequence[Tensor] = ()) -> Iterator[None]:
    """Put back `weights`, buffers, modes and random numbers afterwards, to the bit; gradients are forgotten."""
    import torch

    before = [(tensor, tensor.detach().clone()) for tensor in (*weights, *module.buffers())]
    modes = [(part, part.training) for part in module.modules()]
    cpu, cuda = torch.get_rng_state(), torch.cuda.is_initialized() and torch.cuda.get_rng_state_all()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in before:
                tensor.copy_(kept)
        for part, training in modes:
            part.training = training
        module.zero_grad(set_to_none=True)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def some_trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return trainable parameters by name, from the top downwards, as many as are compared or moved in a trial."""
    found: dict[str, nn.Parameter] = {}
    left = MOST_NUMBERS
    for name, parameter in reversed(list(module.named_parameters())):
        if parameter.requires_grad and (parameter.numel() <= left or not found):
            found[name] = parameter
            left -= parameter.numel()
    return found


def finite_on_longest(
    module: nn.Module, loss_sum: LossSum, longest: Sequence[Batch], units: int | None = None
) -> Probed:
    """Check that loss and gradient are finite on the longest sequences, in the precision of the run.

    units: by what the sum of their losses is divided, None for their number.
    """
    sequences = sum(len(batch.lengths) for batch in longest)
    tokens = max(int(batch.lengths.max()) for batch in longest)
    remedy = "Try --set train.precision=float32, or look at those rows"
    with undone(module):
        module.train()
        try:
            loss, _, _ = backward(loss_sum, longest, units or sequences, lambda _: None)
        except DivergenceError as error:
            return Probed("finite loss", False, str(error), remedy)
        norms = [float(p.grad.norm()) for p in module.parameters() if p.grad is not None]
    finite = all(math.isfinite(norm) for norm in norms)
    kind = "finite" if finite else "NON-FINITE"
    rows = f"{kind} gradients on {sequences} sequences of up to {tokens} tokens"
    return Probed("finite loss", finite, f"loss {loss:.4f}, {rows}", remedy)


def accumulation_equal(
    module: nn.Module, loss_sum: LossSum, cuts: Sequence[tuple[Sequence[Batch], int]], *, coarse: bool
) -> Probed:
    """Check that a batch gives the gradient that its parts give together.

    cuts: the same rows as micro-batches of two sizes, each with the number of supervised units; coarse: whether sums
    are made in half precision. Dropout is off, for it falls otherwise in other micro-batches.
    """
    import torch

    chosen = some_trainable(module)
    found: list[dict[str, Tensor]] = []
    for batches, units in cuts:
        with undone(module):
            module.eval()
            backward(loss_sum, batches, units, lambda _: None)
            found.append({n: p.grad.detach().clone() for n, p in chosen.items() if p.grad is not None})
    one, other = found
    size = max([float(g.abs().max()) for g in (*one.values(), *other.values())], default=0.0)
    nothing = torch.zeros(())
    gaps = [
        float((one.get(n, nothing.to(p.device)) - other.get(n, nothing.to(p.device))).abs().max())
        for n, p in chosen.items()
    ]
    gap = max(gaps, default=0.0) / max(size, 1e-12)
    counts = " and ".join(str(len(batches)) for batches, _ in cuts)
    return Probed(
        "accumulation",
        gap <= (SAME_COARSE if coarse else SAME_GRADIENT),
        f"the gradients of one batch in {counts} parts differ by {gap:.1e} of the largest",
        "A loss must return the sum over a micro-batch, divided once by the units of the whole batch",
    )


def neighbours_apart(module: nn.Module, answers: Answers, make: Make, count: int) -> Probed:
    """Check that no row of a batch answers otherwise when the tokens of another one change."""
    import torch

    if count < 2:
        return Probed("neighbours", True, "one row alone has none")
    moved = own = scale = 0.0
    with undone(module), torch.no_grad():
        module.eval()
        batch = make(range(count))
        plain = [row.double() for row in answers(batch)]
        scale = max(1.0, *(float(row.abs().max()) for row in plain if row.numel()))
        for changed in (0, count - 1):
            other = [row.double() for row in answers(_with_other_tokens(batch, changed))]
            gaps = [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(plain, other, strict=True)]
            own = max(own, gaps.pop(changed))
            moved = max(moved, *gaps)
    return Probed(
        "neighbours",
        moved <= max(LEAST_LEAK * own, NOISE * scale),
        f"with other tokens in one of {count} rows its answer moves by {own:.1e}, that of the others by {moved:.1e}",
        "The attention sees across rows; --set model.attention=padded",
    )


def _with_other_tokens(batch: Batch, row: int) -> Batch:
    """Return the batch with every token of a row, but its first, exchanged for another one that occurs in it."""
    from dataclasses import replace

    import torch

    known = torch.unique(batch.tokens)
    ends = batch.lengths.cumsum(0)
    first, end = int(ends[row] - batch.lengths[row]), int(ends[row])
    first += int(end - first > 1)
    tokens = batch.tokens.clone()
    tokens[first:end] = known[(torch.searchsorted(known, tokens[first:end]) + 1) % len(known)]
    return replace(batch, tokens=tokens)


def alone_and_together(module: nn.Module, answers: Answers, make: Make, count: int) -> Probed:
    """Check that rows of unequal lengths are answered in a batch as one by one: padding changes nothing."""
    import torch

    with undone(module), torch.no_grad():
        module.eval()
        together = [row.double() for row in answers(make(range(count)))]
        alone = [answers(make([place]))[0].double() for place in range(count)]
    values = torch.cat([row.flatten() for row in alone])
    spread = float(values.max() - values.min()) if len(values) else 0.0
    scale = max(1.0, float(values.abs().max())) if len(values) else 1.0
    gap = max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(together, alone, strict=True))
    return Probed(
        "alone and together",
        gap <= max(ROUNDING * scale, 1e-4 * spread),
        f"{count} rows of unequal lengths are answered in one batch as one by one, to {gap:.1e}",
        "The model minds its padding; --set model.attention=padded, and look at pad_token_id of its config",
    )


def generation_equal(module: nn.Module, generate: Callable[[Sequence[Sequence[int]]], Any], prompts: Any) -> Probed:
    """Check that prompts of unequal lengths are continued in one batch as one by one.

    generate: from prompts to the tokens that it adds to each.
    """
    with undone(module):
        together = [list(row) for row in generate(prompts)]
        alone = [list(generate([prompt])[0]) for prompt in prompts]
    odd = [place for place, (one, other) in enumerate(zip(alone, together, strict=True)) if one != other]
    return Probed(
        "generation",
        not odd,
        f"{len(prompts) - len(odd)} of {len(prompts)} prompts are continued in one batch as one by one",
        "A causal model must be padded on the left, with a mask and positions that leave the padding out; an encoder's "
        "mask must hide it",
    )


def tiny_batch_learnt(
    module: nn.Module,
    loss_sum: LossSum,
    make: Make,
    count: int,
    rate: float,
    *,
    softened: float = 0.0,
    fall: float = FALL,
    alone: bool = True,
) -> Probed:
    """Check that a few rows can be learnt: their loss falls by a clear share within a few steps, which are undone.

    rate: the recipe's learning rate, at which it is tried first, and then up to a thousand times higher: that a rate is
    too small for so few steps is no fault. Where all rows together do not, one alone must, where it has a loss of its
    own (`alone`): equal rows may have unlike labels. softened: the share of targets that is spread over all classes,
    which keeps the loss from falling; fall: by which share it must, where targets are not softened. A step
    moves each weight by the rate against the sign of its gradient, as the first step of Adam does.
    """
    share = fall * (1.0 - softened) ** 2
    told = ""
    chosen = list(some_trainable(module).values())
    parts = dict.fromkeys([tuple(range(count)), *([(count - 1,)] if alone else [])])
    for rows, (steps, factors) in product(parts, TRIALS):
        for factor in factors:
            with undone(module, chosen):
                module.eval()
                first, lowest = _descend(loss_sum, make(rows), chosen, rate * factor, share, steps)
            if not first >= 0 or not math.isfinite(first):
                return Probed("tiny batch", False, f"its loss is {first:.4f}, expected 0 or more", "Look at the loss")
            told = f"loss {first:.4f} fell to {lowest:.4f} on {len(rows)} rows at {rate * factor:.1g} (undone)"
            if lowest <= max((1.0 - share) * first, SMALLEST_LOSS):
                return Probed("tiny batch", True, told)
    return Probed(
        "tiny batch",
        False,
        told.replace(" fell ", " fell only "),
        "The loss does not follow the weights: look at what is frozen, at the targets, and at the loss's sign",
    )


def _descend(
    loss_sum: LossSum, batch: Batch, weights: Sequence[Tensor], rate: float, share: float, steps: int
) -> tuple[float, float]:
    """Take a few steps down; return the loss before them and the lowest one met."""
    import torch

    first, lowest = math.nan, math.inf
    for step in range(steps + 1):
        for weight in weights:
            weight.grad = None
        loss, count = loss_sum(batch)
        value = float(loss.detach()) / max(1, count)
        if step == 0:
            first = value
        if not math.isfinite(value):
            break
        lowest = min(lowest, value)
        if lowest <= max((1.0 - share) * first, SMALLEST_LOSS) or step == steps:
            break
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight in weights:
                if weight.grad is not None:
                    weight -= rate * weight.grad.sign()
    return first, lowest


def added_words_learn(
    module: nn.Module,
    loss_sum: LossSum,
    batch: Batch,
    table: nn.Parameter,
    added: Sequence[int],
    *,
    owners: Sequence[int] | None = None,
) -> Probed:
    """Check that the rows of `table` that belong to added words of a batch get a gradient.

    owners: the token of each row of the table, where it holds those of some tokens only.
    """
    import torch

    present = sorted(set(added) & set(batch.tokens.tolist()))
    with undone(module):
        module.eval()
        loss, _ = loss_sum(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        places = [token if owners is None else owners.index(token) for token in present]
        rows = None if table.grad is None else table.grad[torch.tensor(places, dtype=torch.long, device=table.device)]
        told = 0 if rows is None else int((rows != 0).any(dim=1).sum())
    return Probed(
        "added words",
        told == len(present),
        f"{told} of {len(present)} added words of a batch get a gradient",
        "Their vectors must be trained: use --set method.name=full, or leave data.domain_words out",
    )


def survives_saving(
    module: nn.Module, answers: Callable[[], Sequence[Tensor]], again: Callable[[], Sequence[Tensor]], what: str
) -> Probed:
    """Check that a model that was saved and loaded again answers as this one; `again` saves, loads and answers."""
    name, remedy = "saving", "What is trained would be lost; look at tie_word_embeddings and vocab_size of its config"
    with undone(module):
        module.eval()
        before = [row.detach().double().cpu() for row in answers()]
        try:
            after = [row.detach().double().cpu() for row in again()]
        except FinesmithError as error:
            return Probed(name, False, f"{what}: {error}", remedy)
    scale = max(1.0, *(float(row.abs().max()) for row in before if row.numel()))
    gap = max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(before, after, strict=True))
    return Probed(name, gap <= 1e-4 * scale, f"{what}: answers differ by {gap:.1e}", remedy)


def loss_by_its_own_forward(network: TokenNetwork, rows: Sequence[Batch]) -> float:
    """Return the mean cross-entropy that the model's own forward gives to the targets of batches of one row each."""
    import torch
    from torch.nn.functional import cross_entropy

    from finesmith.models.forward import padded
    from finesmith.models.seq2seq import seq2seq_logits

    model: Any = network.classifier
    options = {"use_cache": False} if network.kind == "causal" else {}

    def told(row: Batch) -> tuple[Tensor, Tensor]:
        assert row.targets is not None
        on = row.targets != -100
        if network.kind == "seq2seq":
            return seq2seq_logits(network, row).float(), row.targets[on]
        return model(**padded(network, row), **options).logits[0][on].float(), row.targets[on]

    before = model.config._attn_implementation
    with undone(network.module), torch.no_grad():
        model.eval()
        model.set_attn_implementation("eager")
        try:
            parts = [told(row) for row in rows]
        finally:
            model.set_attn_implementation(before)
        return float(cross_entropy(torch.cat([logits for logits, _ in parts]), torch.cat([row for _, row in parts])))


def mean_loss(module: nn.Module, loss_sum: LossSum, batches: Sequence[Batch]) -> float:
    """Return the mean loss of batches without dropout."""
    import torch

    with undone(module), torch.no_grad():
        module.eval()
        found = [loss_sum(batch) for batch in batches]
    return sum(float(loss) for loss, _ in found) / max(1, sum(count for _, count in found))
