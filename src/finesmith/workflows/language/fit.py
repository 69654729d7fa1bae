"""Train a network on rows of tokens: what the shared loop needs to know of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.workflows import shown
from finesmith.workflows.training import Job, Trained, train_job

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.checkpoint import Checkpoint
    from finesmith.train.loop import Plan
    from finesmith.types import Batch
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup

    Ints = npt.NDArray[np.int64]

NAMED_AT_ONCE = 512


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
        loss_sum=loss_of(data, setup),
        score=lambda: _score(data, setup),
        metric=selecting(data, setup),
        learning_rate=setup.learning_rate,
        evaluations=setup.evaluations,
        fingerprint=setup.fingerprint,
        where=data.places,
    )

    def first(optimizer: Optimizer) -> None:
        begun(optimizer)
        shown.keep(recipe, run, lambda: shown.of_tokens(recipe, data, setup))

    began = time.perf_counter()
    if checkpoint is not None:
        shown.keep(recipe, run, lambda: shown.of_tokens(recipe, data, setup))
    return train_job(recipe, run, job, checkpoint, began, first)


def plan_of(recipe: Recipe, data: Gathered, setup: Setup) -> Plan:
    """Return the plan of training: a pure function of recipe and data."""
    from finesmith.data.batches import batch_positions, micro_batches
    from finesmith.train.loop import Plan

    t, task, encoded = recipe.train, data.task, setup.encoded["train"]
    lengths = encoded.rows.lengths()
    device, ids = setup.network.device, data.ids["train"]
    per_epoch = task.steps_per_epoch(encoded, t.batch_size)
    mixed = None if recipe.data.weights is None else data.mixture.order(recipe, _owners(data, setup, lengths))

    def make(step: int) -> tuple[Sequence[Batch], int]:
        epoch = step // per_epoch
        if mixed is None:
            chosen = task.order(encoded, t.batch_size, t.seed, step)
        else:
            chosen = batch_positions(len(lengths), t.batch_size, seed=t.seed, step=step, order=mixed)
        parts = micro_batches(chosen, lengths, setup.micro_batch_size)
        made = [task.batch(encoded, part, ids, epoch, t.seed, device) for part in parts]
        return task.prepared(setup.network, encoded, made), max(1, task.units(made))

    steps = max(1, round(per_epoch * setup.epochs))
    found = task.backward(setup.network, lambda: precision(setup))
    return Plan(steps, per_epoch, make, t.max_grad_norm, t.seed, found)


def _owners(data: Gathered, setup: Setup, lengths: Ints) -> Ints:
    """Return the id of the row that each training sequence is made from, as its batches name it."""
    import numpy as np

    if len(lengths) == len(data.ids["train"]):
        return data.ids["train"]

    def named(part: Ints) -> Ints:
        return np.asarray(data.task.batch(setup.encoded["train"], part, data.ids["train"], 0, 0, "cpu").ids)

    owners = np.empty(len(lengths), np.int64)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), NAMED_AT_ONCE):
        part = order[start : start + NAMED_AT_ONCE]
        names = named(part)
        # A row of two answers is two sequences of a batch, in the order of their lengths.
        owners[part] = names if len(names) == len(part) else [named(part[i : i + 1])[0] for i in range(len(part))]
    return owners


def loss_of(data: Gathered, setup: Setup) -> Callable[[Batch], tuple[torch.Tensor, int]]:
    """Return the function that sums the losses of a training micro-batch and counts their units."""
    encoded, network = setup.encoded["train"], setup.network

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        with precision(setup):
            return data.task.loss(network, encoded, batch)

    return loss_sum


def selecting(data: Gathered, setup: Setup) -> str:
    """Return the metric by which the best step is chosen."""
    return data.task.selecting or setup.metric


def precision(setup: Setup) -> AbstractContextManager[Any]:
    """Return the block in which the network computes with the numbers of the run."""
    import torch

    return torch.autocast(setup.network.device.type, torch.bfloat16, enabled=setup.device.dtype == "bfloat16")


def _score(data: Gathered, setup: Setup) -> tuple[float, float]:
    """Return the loss and the metric on validation.

    Raises DataError where the metric is undefined there.
    """
    corpus, encoded = data.corpora["validation"], setup.encoded["validation"]
    outcome, metric = data.task.predict(setup.network, encoded), selecting(data, setup)
    value = data.task.measure(corpus, encoded, outcome)[metric].value
    if value is None:
        if metric.startswith("span_"):
            # Nothing found where there is nothing to be found, or nothing found yet: the worst that can be.
            return outcome.loss, 0.0
        raise DataError(
            f"evaluate.metric is {metric}, which is undefined on the {len(corpus):,} validation rows; choose "
            f"another of {', '.join(data.task.metrics)}, or give validation more rows"
        )
    return outcome.loss, value
