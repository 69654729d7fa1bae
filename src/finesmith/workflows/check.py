"""Audit and preflight without training: what is wrong, what would be done, how long it takes and what it needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError
from finesmith.recipe import LANGUAGE
from finesmith.run import Listener, Run, plain, read_json
from finesmith.workflows import shown
from finesmith.workflows.language import check as language
from finesmith.workflows.language.infer import with_task
from finesmith.workflows.recognise import recognised
from finesmith.workflows.seen import Seen
from finesmith.workflows.withhold import withheld

if TYPE_CHECKING:
    from finesmith.guards.preflight import Probed
    from finesmith.models.forward import Network
    from finesmith.recipe import Recipe
    from finesmith.train.loop import Plan
    from finesmith.types import Batch
    from finesmith.workflows.language.setup import Setup as LanguageSetup
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

TIMED_STEPS = 2
TIMED_SECONDS = 2.0
LOSS_TOKENS = 2048


def check(recipe: Recipe, *, show: bool = False, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Return findings, probes, plan and forecast; `ok` is False when training would be refused or go wrong.

    With `show`, `examples` are a few training rows as the model is fed them, texts included. Nothing is kept but the
    token cache. Raises FinesmithError for what stops a run before it starts.
    """
    if show and recipe.output.redact:
        raise UserError(
            "output.redact is true, which keeps the texts of rows from being shown; to see some all the same, add "
            "--set output.redact=false"
        )
    with tempfile.TemporaryDirectory(prefix="finesmith-check-") as folder:
        run = Run.create(Path(folder) / "check", command="check")
        # What is printed may end in a log: rows are named, not quoted.
        run.withhold = withheld
        run.listeners.extend(listeners)
        try:
            recipe, reason = with_task(recipe)
            recipe = recognised(recipe, run)
            seen = language.look(recipe, run, reason) if recipe.task in LANGUAGE else look(recipe, run)
            findings = read_json(run.folder / "audit.json")["findings"]
        finally:
            run.close()
    found = {
        "ok": all(probe.passed for probe in seen.probes),
        "task": seen.summary["task"],
        "flow": seen.summary["flow"],
        "splits": seen.summary["splits"],
        "findings": findings,
        "probes": [probe.as_json() for probe in seen.probes],
        "plan": seen.plan,
        "forecast": seen.forecast,
        **({"examples": seen.examples} if show else {}),
    }
    return {**plain(found), "lines": _lines(found, seen.probes)}


def look(recipe: Recipe, run: Run) -> Seen:
    """Prepare as `tune` does, probe and time."""
    data, setup = prepared(recipe, run)
    probes, forecast = preflight(recipe, data, setup), _forecast(recipe, data, setup)
    plan = plan_as_told(recipe, setup, setup.tokens.summary())
    return Seen(data.summary, probes, plan, forecast, shown.of_texts(data, setup))


def prepared(recipe: Recipe, run: Run) -> tuple[Prepared, Setup]:
    """Prepare data and network as `tune` does."""
    from finesmith.workflows.ahead import Ahead
    from finesmith.workflows.setup import set_up

    with Ahead(recipe, run) as ahead:
        base, tokenizer, data = ahead.data()
        setup = set_up(recipe, run, data, base, tokenizer)
        ahead.finish()
    return data, setup


def preflight(recipe: Recipe, data: Prepared, setup: Setup) -> list[Probed]:
    """Run every probe that applies to the method; the network is left as it was."""
    from finesmith.workflows.preflight import learns, looks, trials

    found = list(looks(recipe, data, setup))
    if recipe.method.name == "features":
        return found
    found += trials(recipe, data, setup, LOSS_TOKENS)
    if all(probe.passed for probe in found if probe.name == "finite loss"):
        found.append(learns(recipe, data, setup))
    return found


def _forecast(recipe: Recipe, data: Prepared, setup: Setup) -> dict[str, Any]:
    """Time a few real steps and return seconds of training and bytes of memory."""
    from finesmith.workflows.fit import loss_of, plan_of

    memory = {"memory_bytes": setup.forecast["total"], "memory_free_bytes": setup.forecast["free"]}
    if recipe.method.name == "features":
        return {"steps": 0, "seconds": None, **memory}
    plan, loss_sum = plan_of(recipe, data, setup), loss_of(data, setup)
    tokens = int(setup.tokens.lengths()[data.positions["train"]].sum())
    return {**timed(recipe, setup.network, plan, loss_sum, tokens / plan.steps_per_epoch), **memory}


def timed(
    recipe: Recipe, network: Network, plan: Plan, loss_sum: Callable[[Batch], Any], tokens: float
) -> dict[str, Any]:
    """Time a few real steps; `tokens`: how many a usual step has."""
    from finesmith.train.loop import train
    from finesmith.train.optimiser import Schedule
    from finesmith.workflows.training import new_optimizer

    seconds, began = [], time.perf_counter()
    schedule = Schedule("constant", plan.steps, 0)
    # A learning rate of 0: the steps cost what they cost, and the weights stay.
    for step in train(network.module, loss_sum, new_optimizer(recipe, network, 0.0), schedule, plan):
        # Batches differ in length: what the step would cost with the usual number of tokens.
        seconds.append(step.seconds * tokens / step.tokens)
        if len(seconds) == TIMED_STEPS or time.perf_counter() - began > TIMED_SECONDS:
            break
    # The first one also allocates, so the least is the fairest.
    each = min(seconds)
    return {"steps": plan.steps, "seconds": each * plan.steps, "seconds_per_step": each}


def plan_as_told(recipe: Recipe, setup: Setup | LanguageSetup, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return what would be done, as `check` tells it."""
    return {
        "method": recipe.method.name,
        "base": setup.base.name,
        "attention": setup.network.why,
        "metric": setup.metric,
        "learning_rate": None if recipe.method.name == "features" else setup.learning_rate,
        "epochs": setup.epochs,
        "batch_size": recipe.train.batch_size,
        "micro_batch_size": setup.micro_batch_size,
        "max_length": setup.max_length,
        "tokens": dict(tokens),
    }


def _lines(found: dict[str, Any], probes: Sequence[Probed]) -> list[str]:
    """Return the result for a terminal."""
    flow = "  ".join(f"{stage['stage']} {stage['rows']:,}" for stage in found["flow"])
    plan, forecast, tokens = found["plan"], found["forecast"], found["plan"]["tokens"]
    lines = ["", f"task    {found['task']}, judged by {plan['metric']}", f"rows    {flow}"]
    cut = f"{tokens['truncated_share']:.1%} of texts truncated at {plan['max_length']}"
    lines += [f"tokens  {tokens['fertility']:.2f} a word, {cut}"]
    rate = (
        "" if plan["learning_rate"] is None else f", learning rate {plan['learning_rate']:g}, {plan['epochs']:g} epochs"
    )
    lines += [f"plan    {plan['method']} on {plan['base']}{rate}", f"        {plan['attention']}", "", "audit"]
    worrying = [f for f in found["findings"] if f["severity"] != "info"]
    lines += [f"  {f['severity']:8} {f['kind']}: {f['message']} [{f['action']}]" for f in worrying] or [
        "  nothing stands out"
    ]
    lines += ["", "preflight"]
    lines += [f"  {probe.line()}" for probe in probes]
    if forecast["seconds"] is not None:
        lines += [
            "",
            f"forecast  {forecast['steps']:,} steps in about {_duration(forecast['seconds'])} on this machine",
        ]
    lines += ["", "ready to tune" if found["ok"] else "NOT ready: mend what is marked STOP"]
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _resolved(recipe: Recipe, run: Run) -> tuple[Recipe, dict[str, str]]:
    from finesmith.workflows.tune import resolve

    data, setup = prepared(recipe, run)
    return resolve(recipe, data, setup), setup.why


def infer_recipe(recipe: Recipe) -> str:
    """Return the recipe as commented YAML with every value that would be inferred, and why."""
    from finesmith.recipe import replace, to_yaml

    with tempfile.TemporaryDirectory(prefix="finesmith-init-") as folder:
        run = Run.create(Path(folder) / "init", command="init")
        try:
            recipe, reason = with_task(recipe)
            recipe = recognised(recipe, run)
            of_language = recipe.task in LANGUAGE
            resolved, why = language.resolved(recipe, run, reason) if of_language else _resolved(recipe, run)
        finally:
            run.close()
    # What depends on the moment stays open: free memory, and the range test that only a run makes.
    later: dict[str, Any] = {"train.micro_batch_size": recipe.train.micro_batch_size}
    if recipe.train.learning_rate == "auto":
        later["train.learning_rate"] = "auto"
    comments = {key: f"inferred: {reason}" for key, reason in why.items() if key not in later}
    header = "Written by finesmith init. Run it with: finesmith tune recipe.yaml"
    return to_yaml(replace(resolved, later), comments=comments, header=header)
