"""Audit and preflight of a task that answers for every token, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finesmith.workflows.seen import Seen

if TYPE_CHECKING:
    from finesmith.guards.preflight import Probed
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


def look(recipe: Recipe, run: Run) -> Seen:
    """Prepare as `tune` does, probe and time."""
    from finesmith.workflows.check import plan_as_told, timed
    from finesmith.workflows.language.fit import loss_of, plan_of
    from finesmith.workflows.language.story import begin

    data, setup = begin(recipe, run)
    probes = preflight(recipe, data, setup)
    usual = float(setup.encoded["train"].rows.lengths().mean())
    forecast = {
        **timed(recipe, setup.network, plan_of(recipe, data, setup), loss_of(setup), usual),
        "memory_bytes": setup.forecast["total"],
        "memory_free_bytes": setup.forecast["free"],
    }
    return Seen(data.summary, probes, plan_as_told(recipe, setup, data.summary["tokens"]), forecast)


def resolved(recipe: Recipe, run: Run) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe with every inferred value in it, and why."""
    from finesmith.workflows.language.story import begin, resolve

    data, setup = begin(recipe, run)
    return resolve(recipe, data, setup), setup.why


def preflight(recipe: Recipe, data: Gathered, setup: Setup) -> list[Probed]:
    """Run every probe that applies; the network is left as it was."""
    from finesmith.workflows.language.preflight import learns, looks, trials

    found = [*looks(recipe, data, setup), *trials(recipe, data, setup)]
    if all(probe.passed for probe in found if probe.name == "finite loss"):
        found.append(learns(recipe, data, setup))
    return found
