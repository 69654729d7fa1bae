"""Audit and preflight of a task that answers for every token, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finesmith.workflows import shown
from finesmith.workflows.seen import Seen

if TYPE_CHECKING:
    from finesmith.guards.preflight import Probed
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


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
    from finesmith.workflows.language.preflight import learns, looks, trials

    found = [*looks(recipe, data, setup), *trials(recipe, data, setup)]
    if all(probe.passed for probe in found if probe.name == "finite loss"):
        found.append(learns(recipe, data, setup))
    return found
