"""Train a network on rows of tokens: what the shared loop needs to know of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finesmith.errors import DataError
from finesmith.workflows.training import Job, Trained, train_job

if TYPE_CHECKING:
    import torch

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.checkpoint import Checkpoint
    from finesmith.train.loop import Plan
    from finesmith.types import Batch
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


def fit(
    recipe: Recipe,
    run: Run,
    data: Gathered,
    setup: Setup,
    checkpoint: Checkpoint | None,
    begun: Callable[[Optimizer], None],
) -> Trained:
    """Tune by the recipe's method, from `checkpoint` where there is one; the best weights are in the network then.

    `begun` is called after the first step.
    """
    job = Job(
        network=setup.network,
        plan=plan_of(recipe, data, setup),
        loss_sum=loss_of(setup),
        score=lambda: _score(data, setup),
        metric=setup.metric,
        learning_rate=setup.learning_rate,
        evaluations=setup.evaluations,
        fingerprint=setup.fingerprint,
        where=data.places,
    )
    return train_job(recipe, run, job, checkpoint, time.perf_counter(), begun)


def plan_of(recipe: Recipe, data: Gathered, setup: Setup) -> Plan:
    """Return the plan of training: a pure function of recipe and data."""
    from finesmith.data import batches
    from finesmith.train.loop import Plan

    t, task, encoded = recipe.train, data.task, setup.encoded["train"]
    lengths = encoded.rows.lengths()
    count, device, ids = len(lengths), setup.network.device, data.ids["train"]
    per_epoch = batches.steps_per_epoch(count, t.batch_size)

    def make(step: int) -> tuple[Sequence[Batch], int]:
        epoch = step // per_epoch
        chosen = batches.batch_positions(count, t.batch_size, seed=t.seed, step=step)
        parts = batches.micro_batches(chosen, lengths, setup.micro_batch_size)
        made = [task.batch(encoded, part, ids, epoch, t.seed, device) for part in parts]
        return made, max(1, sum(int((batch.targets != -100).sum()) for batch in made if batch.targets is not None))

    return Plan(max(1, round(per_epoch * setup.epochs)), per_epoch, make, t.max_grad_norm, t.seed)


def loss_of(setup: Setup) -> Callable[[Batch], tuple[torch.Tensor, int]]:
    """Return the function that sums the losses of a micro-batch's targets and counts these."""
    import torch

    from finesmith.models.token_loss import token_loss

    network, low = setup.network, setup.device.dtype == "bfloat16"

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        with torch.autocast(network.device.type, torch.bfloat16, enabled=low):
            return token_loss(network, batch)

    return loss_sum


def _score(data: Gathered, setup: Setup) -> tuple[float, float]:
    """Return the loss and the metric on validation.

    Raises DataError where the metric is undefined there.
    """
    corpus, encoded = data.corpora["validation"], setup.encoded["validation"]
    outcome = data.task.predict(setup.network, encoded)
    value = data.task.measure(corpus, encoded, outcome)[setup.metric].value
    if value is None:
        if setup.metric.startswith("span_"):
            # Nothing found where there is nothing to be found, or nothing found yet: the worst that can be.
            return outcome.loss, 0.0
        raise DataError(
            f"evaluate.metric is {setup.metric}, which is undefined on the {len(corpus):,} validation rows; choose "
            f"another of {', '.join(data.task.metrics)}, or give validation more rows"
        )
    return outcome.loss, value
