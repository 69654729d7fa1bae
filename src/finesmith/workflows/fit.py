"""Tune a network on prepared data: solve or train, evaluate, keep the best, stop in time, survive interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.types import Split
from finesmith.workflows.embed import embeddings
from finesmith.workflows.heads import fit_head
from finesmith.workflows.inference import Predictor
from finesmith.workflows.preflight import learns, trials
from finesmith.workflows.training import Job, train_job

if TYPE_CHECKING:
    import torch

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.checkpoint import Checkpoint
    from finesmith.train.loop import Plan
    from finesmith.types import Batch
    from finesmith.workflows.preflight import Preflight
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup


# For a head that is tuned on: weights so small that dropout and the first steps do not throw its logits about.
HEAD_L2 = (1e-2, 1e-1, 1.0)
HEAD_SPREAD = 0.3


@dataclass(slots=True)
class Fitted:
    """A tuned predictor and what happened: evaluations in order, the best step, and how long it took."""

    predictor: Predictor
    history: list[dict[str, Any]]
    best_step: int
    seconds: float
    stopped_early: bool = False


def fit(
    recipe: Recipe,
    run: Run,
    data: Prepared,
    setup: Setup,
    checkpoint: Checkpoint | None,
    *,
    begun: Callable[[], None] = lambda: None,
    guard: Preflight | None = None,
) -> Fitted:
    """Tune by the recipe's method, from `checkpoint` where there is one; `begun` is called after the first step.

    guard: runs its probes after the first step, before `begun`.

    A first signal that asks to stop is followed when the step is done and saved, a second one at once.
    Raises DivergenceError on a loss or gradient that is not finite; what was saved before stays.
    """
    began = time.perf_counter()
    if recipe.method.name == "features" or checkpoint is not None:
        begun()
    if recipe.method.name == "features":
        return _features(run, data, setup, began)
    if recipe.method.name == "head_then_full" and checkpoint is None:
        solve_head(run, data, setup)
    given = recipe, data, setup
    probed = guard.first_step(setup.network.module, lambda: learns(*given), lambda: trials(*given)) if guard else None

    def after_first_step(optimizer: Optimizer) -> None:
        if probed is not None:
            probed(optimizer)
        begun()

    done = train_job(recipe, run, _job(recipe, data, setup), checkpoint, began, after_first_step)
    return Fitted(Predictor(setup.network), done.history, done.best_step, done.seconds, done.stopped_early)


def _job(recipe: Recipe, data: Prepared, setup: Setup) -> Job:
    """Return what the loop needs of data and setup."""

    def score() -> tuple[float, float]:
        outputs = data.task.outputs(Predictor(setup.network).logits(setup.tokens, data.positions["validation"]))
        loss = data.task.plain_loss(outputs, data.targets["validation"])
        return loss, _validation_score(data, setup, outputs)

    return Job(
        network=setup.network,
        plan=plan_of(recipe, data, setup),
        loss_sum=loss_of(data, setup),
        score=score,
        metric=setup.metric,
        learning_rate=setup.learning_rate,
        evaluations=setup.evaluations,
        fingerprint=setup.fingerprint,
        where=data.where,
    )


def plan_of(recipe: Recipe, data: Prepared, setup: Setup) -> Plan:
    """Return the plan of training: a pure function of recipe and data."""
    from finesmith.data import batches
    from finesmith.train.loop import Plan

    t = recipe.train
    train, tokens = data.positions["train"], setup.tokens
    lengths = tokens.lengths()
    targets = targets_by_position(data, setup)
    per_epoch = batches.steps_per_epoch(len(train), t.batch_size)
    order = data.mixture.order(recipe, data.examples.ids[train])

    def make(step: int) -> tuple[Sequence[Batch], int]:
        chosen = train[batches.batch_positions(len(train), t.batch_size, seed=t.seed, step=step, order=order)]
        parts = batches.micro_batches(chosen, lengths, setup.micro_batch_size)
        ids = data.examples.ids
        device = setup.network.device
        return [batches.ragged(tokens, p, ids=ids, targets=targets, device=device) for p in parts], len(chosen)

    return Plan(max(1, round(per_epoch * setup.epochs)), per_epoch, make, t.max_grad_norm, t.seed)


def targets_by_position(data: Prepared, setup: Setup) -> torch.Tensor:
    """Return the training targets by position among all examples; other rows hold zeros and are never read."""
    import torch

    targets = data.task.tensor(data.targets["train"])
    whole = torch.zeros((len(setup.tokens), *targets.shape[1:]), dtype=targets.dtype)
    whole[torch.from_numpy(data.positions["train"])] = targets
    return whole


def loss_of(data: Prepared, setup: Setup) -> Callable[[Batch], tuple[torch.Tensor, int]]:
    """Return the function that sums the task's loss over a micro-batch."""
    import torch

    from finesmith.models import forward

    network, low = setup.network, setup.device.dtype == "bfloat16"

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        if batch.targets is None:
            raise ValueError("a training batch needs targets")
        with torch.autocast(network.device.type, torch.bfloat16, enabled=low):
            logits = forward.logits(network, batch)
        return data.task.loss(logits.float() if low else logits, batch.targets), len(batch.lengths)

    return loss_sum


def _validation_score(data: Prepared, setup: Setup, outputs: Any) -> float:
    """Return the metric that selects, on validation.

    Raises DataError where it is undefined there.
    """
    targets = data.targets["validation"]
    value = data.task.scores(targets, outputs).get(setup.metric)
    if value is None:
        others = ", ".join(name for name in data.task.metrics if name != setup.metric)
        raise DataError(
            f"evaluate.metric is {setup.metric}, which is undefined on the {len(targets):,} validation rows (only one "
            f"class there, or all answers equal); choose another ({others}), or give validation more rows"
        )
    return value


def _features(run: Run, data: Prepared, setup: Setup, began: float) -> Fitted:
    """Compute every embedding once, then solve a linear head on them."""
    import torch

    network, pooling = setup.network, setup.pooling
    embedded = embeddings(run, data, setup)
    run.record("note", message=f"embeddings {'taken from the cache' if embedded.cached else 'computed'}")
    features = torch.from_numpy(embedded.values)
    names: tuple[Split, ...] = ("train", "validation")
    parts = {name: features[torch.from_numpy(data.positions[name])] for name in names}
    task = data.task
    head = fit_head(data, parts)
    outputs = {name: task.outputs(head.logits(part).numpy()) for name, part in parts.items()}
    entry = {
        "step": 1,
        "epoch": 1.0,
        "train_loss": task.plain_loss(outputs["train"], data.targets["train"]),
        "validation_loss": task.plain_loss(outputs["validation"], data.targets["validation"]),
        "metric": setup.metric,
        "value": _validation_score(data, setup, outputs["validation"]),
    }
    run.record("evaluation", **entry)
    run.record("note", message=f"linear head solved; L2 penalty {head.l2:g} chosen on validation loss")
    seconds = time.perf_counter() - began + embedded.saved
    known = (setup.tokens, embedded.values)
    return Fitted(Predictor(network, head, pooling, known), [entry], 1, seconds)


def solve_head(run: Run, data: Prepared, setup: Setup) -> None:
    """Solve the head's last linear layer on frozen features and write it into the network (LP-FT).

    Kumar et al. 2022 (arXiv:2202.10054): a head that fits before the body moves distorts the features less.
    """
    import torch

    from finesmith.models import forward
    from finesmith.models.layers import capture_input, final_linear
    from finesmith.workflows.inference import run as run_network

    network, last = setup.network, final_linear(setup.network.classifier)

    def into_head(batch: Batch) -> torch.Tensor:
        with capture_input(last) as seen:
            forward.logits(network, batch)
        return seen[0]

    names: tuple[Split, ...] = ("train", "validation")
    parts = {
        name: torch.from_numpy(run_network(network, setup.tokens, data.positions[name], into_head)) for name in names
    }
    task = data.task
    head = fit_head(data, parts, bias=last.bias is not None, l2_grid=HEAD_L2, least_spread=HEAD_SPREAD)
    with torch.no_grad():
        last.weight.copy_(head.weight)
        if last.bias is not None:
            last.bias.copy_(head.bias)
    outputs = task.outputs(head.logits(parts["validation"]).numpy())
    value = _validation_score(data, setup, outputs)
    run.record("note", message=f"head solved on frozen features: validation {setup.metric} {value:.4f}")
