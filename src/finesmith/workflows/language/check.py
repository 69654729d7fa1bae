"""Audit and preflight of a task that answers for every token, without training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finesmith.workflows import shown
from finesmith.workflows.seen import Seen

if TYPE_CHECKING:
    from finesmith.guards.preflight import Probed
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.corpus import Encoded
    from finesmith.types import Batch
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup

PROBE_ROWS = 16
PROBE_TOKENS = 512


def look(recipe: Recipe, run: Run, reason: str | None = None) -> Seen:
    """Prepare as `tune` does, probe and time."""
    from finesmith.workflows.check import plan_as_told, timed
    from finesmith.workflows.language.fit import loss_of, plan_of
    from finesmith.workflows.language.story import begin

    data, setup = begin(recipe, run, None, reason)
    probes = preflight(recipe, data, setup)
    plan = plan_of(recipe, data, setup)
    usual = int(setup.encoded["train"].rows.lengths().sum()) / plan.steps_per_epoch
    forecast = {
        **timed(recipe, setup.network, plan, loss_of(data, setup), usual),
        "memory_bytes": setup.forecast["total"],
        "memory_free_bytes": setup.forecast["free"],
    }
    told = plan_as_told(recipe, setup, data.summary["tokens"])
    return Seen(data.summary, probes, told, forecast, shown.of_tokens(recipe, data, setup))


def resolved(recipe: Recipe, run: Run, reason: str | None = None) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe with every inferred value in it, and why."""
    from finesmith.workflows.language.story import begin, resolve

    data, setup = begin(recipe, run, None, reason)
    return resolve(recipe, data, setup), setup.why


def preflight(recipe: Recipe, data: Gathered, setup: Setup) -> list[Probed]:
    """Run every probe that applies; the network is left as it was."""
    from finesmith.guards import preflight as probes
    from finesmith.workflows.language.fit import loss_of
    from finesmith.workflows.setup import default_learning_rate
    from finesmith.workflows.training import new_optimizer

    network, labels = setup.network, data.task.labels
    usual, _ = default_learning_rate(recipe.method.name, setup.report.parameters)
    found = [
        probes.memory_fits(dict(setup.forecast), setup.micro_batch_size, recipe.train.batch_size),
        probes.learning_rate_in_range(setup.learning_rate, usual * data.task.rate_scale, recipe.method.name),
    ]
    if labels is not None:
        order = {int(i): name for i, name in (network.classifier.config.id2label or {}).items()}
        found.insert(0, probes.label_order(labels, order))
    loss_sum, longest = loss_of(data, setup), [_longest(data, setup)]
    found.append(probes.finite_on_longest(network.module, loss_sum, longest))
    if not found[-1].passed:
        return found
    if labels is not None:
        loss = data.task.predict(network, _some(data, setup)).loss
        found.append(probes.initial_loss(loss, math.log(len(labels)), head_is_new=bool(setup.report.new)))
    found.append(
        probes.every_tensor_learns(
            network.module, loss_sum, longest, lambda: new_optimizer(recipe, network, max(setup.learning_rate, 1e-4))
        )
    )
    return found


def _longest(data: Gathered, setup: Setup) -> Batch:
    """Return the longest training rows, as many as one micro-batch holds: at most 16, and 2 or 512 tokens."""
    import numpy as np

    encoded = setup.encoded["train"]
    lengths = encoded.rows.lengths()
    order = np.argsort(lengths, kind="stable")[::-1][: min(setup.micro_batch_size, PROBE_ROWS)]
    chosen = order[: max(2, int((lengths[order].cumsum() <= PROBE_TOKENS).sum()))][::-1]
    chosen = data.task.probed(encoded, chosen)
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    made = data.task.batch(encoded, chosen, data.ids["train"], 0, 0, setup.network.device)
    return data.task.prepared(setup.network, encoded, [made])[0]


def _some(data: Gathered, setup: Setup) -> Encoded:
    """Return the first validation rows as tokens."""
    few = data.task.take(data.corpora["validation"], range(min(PROBE_ROWS, len(data.corpora["validation"]))))
    return data.task.encode(few, setup.network.tokenizer, setup.max_length)
