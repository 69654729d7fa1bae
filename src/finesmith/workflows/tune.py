"""The main job: from a recipe to a tuned model and a defended verdict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import RecipeError, RunError
from finesmith.recipe import LANGUAGE, Recipe, flatten, load, replace, to_yaml, with_absolute_paths
from finesmith.run import Listener, Run, default_folder
from finesmith.workflows import shown
from finesmith.workflows.earlier import Earlier, earlier_of, enter
from finesmith.workflows.ending import ending
from finesmith.workflows.language.infer import with_task
from finesmith.workflows.recognise import recognised

if TYPE_CHECKING:
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup


def tune(recipe: Recipe, *, out: str | None = None, command: str = "", listeners: Sequence[Listener] = ()) -> Path:
    """Do everything a recipe asks for in a new run folder; return the folder.

    Raises FinesmithError with one clear message for what the user can mend; the folder then says so and keeps
    everything done so far.
    """
    folder = Path(out or recipe.output.dir or default_folder(name_of(recipe)))
    run = Run.create(folder, command=command or " ".join(sys.argv))
    run.listeners.extend(listeners)
    with ending(run, recipe):
        _story(recipe, run, None)
    return folder


def resume(folder: str, *, force: bool = False, listeners: Sequence[Listener] = ()) -> Path:
    """Go on with an interrupted run from its last good checkpoint; return the folder.

    Raises RunError when there is nothing to resume, or when recipe, data, base model or library versions changed
    (`force` goes on all the same).
    """
    from finesmith.train import checkpoint

    path = Path(folder)
    run = Run.reopen(path)
    run.listeners.extend(listeners)
    if not (path / "recipe.yaml").is_file():
        run.close()
        raise RunError(
            f"{folder} holds no recipe.yaml; it stopped before anything was decided: start it again with tune"
        )
    try:
        recipe = load(path / "recipe.yaml")
    except RecipeError:
        run.close()
        raise
    with ending(run, recipe):
        found = checkpoint.latest(path / "checkpoints", fingerprint=None)
        earlier = earlier_of(path, found, force)
        found = earlier.checkpoint if earlier else None
        if earlier is None:
            run.unmute(0)
            run.update(fingerprint=None)
            run.record_live("note", message="nothing was trained before the interruption; beginning anew")
        else:
            for refused in found.refused if found else ():
                run.record_live("note", message=f"checkpoint refused: {refused}")
            place = f"step {found.step}" if found else f"the stage {earlier.stage}"
            run.record_live("note", message=f"going on from {place}")
            run.mute()
        _story(recipe, run, earlier)
    return path


def _story(recipe: Recipe, run: Run, earlier: Earlier | None) -> None:
    """Prepare, load, train, baselines, compare, finish; tasks that answer for every token have a story of their own."""
    from finesmith.workflows.ahead import Ahead
    from finesmith.workflows.baselines import fit_baselines
    from finesmith.workflows.compare import compare
    from finesmith.workflows.finish import finish
    from finesmith.workflows.fit import fit
    from finesmith.workflows.preflight import before_training
    from finesmith.workflows.setup import set_up

    if earlier is None:
        run.write_text(
            "recipe.yaml",
            to_yaml(with_absolute_paths(recipe), header="As given; the run stopped before it was resolved."),
        )
    recipe, reason = with_task(recipe)
    recipe = recognised(recipe, run)
    if recipe.task in LANGUAGE:
        from finesmith.workflows.language.story import story

        story(recipe, run, earlier, reason)
        return
    enter(run, "data", earlier)
    with Ahead(recipe, run) as ahead:
        base, tokenizer, data = ahead.data()
        if earlier is not None:
            data.summary["reasons"] = earlier.reasons

        enter(run, "model", earlier)
        setup = set_up(recipe, run, data, base, tokenizer, threads=earlier.threads if earlier else None)
        resolved = _settle(recipe, run, data, setup, earlier)

        enter(run, "training", earlier)
        checkpoint = earlier.checkpoint if earlier else None
        guard = before_training(resolved, run, data, setup) if checkpoint is None else None

        def begun() -> None:
            ahead.finish()
            shown.keep(resolved, run, lambda: shown.of_texts(data, setup))

        fitted = fit(resolved, run, data, setup, checkpoint, begun=begun, guard=guard)

    enter(run, "baselines", earlier)
    baselines = fit_baselines(resolved, run, data, setup)

    enter(run, "evaluation", earlier)
    verdict = compare(resolved, run, data, setup, baselines, fitted)

    enter(run, "saving", earlier)
    finish(resolved, run, data, setup, fitted)
    run.record("verdict", conclusion=verdict["conclusion"], better=verdict["better"])


def _settle(recipe: Recipe, run: Run, data: Prepared, setup: Setup, earlier: Earlier | None) -> Recipe:
    """Return the recipe with nothing open in it, written down; refuse what cannot be judged or gone on with."""
    from finesmith.train.checkpoint import require_same
    from finesmith.workflows.baselines import require_rival
    from finesmith.workflows.setup import fingerprint

    run.record("note", message=setup.tokens.told())
    if recipe.train.learning_rate == "auto":
        _find_learning_rate(recipe, run, data, setup)
    resolved = resolve(recipe, data, setup)
    setup.fingerprint = fingerprint(resolved, data.summary, setup.weights_key, setup.device)
    if earlier is not None and earlier.conditions is not None:
        require_same(earlier.conditions, setup.fingerprint)
    require_rival(resolved, data, setup)
    run.update(task=data.task.name, fingerprint=setup.fingerprint)
    if earlier is None or flatten(resolved) != flatten(recipe):
        save_recipe(resolved, run, setup.why)
    return resolved


def name_of(recipe: Recipe) -> str:
    """Return a short name for a run: that of the first training source."""
    first = recipe.data.train if isinstance(recipe.data.train, str) else recipe.data.train[0]
    return Path(first).name.split(".")[0]


def resolve(recipe: Recipe, data: Prepared, setup: Setup) -> Recipe:
    """Return the recipe with every inferred value in it; it reruns this very run."""
    columns = data.summary["columns"]
    values: dict[str, Any] = {
        "task": data.task.name,
        **{f"data.{name}": columns[name] for name in ("text", "text_pair", "label", "group", "split") if columns[name]},
        "data.max_length": setup.max_length,
        "evaluate.metric": setup.metric,
        **setup.adapter,
    }
    if recipe.method.name != "features":
        values |= {"train.learning_rate": setup.learning_rate, "train.micro_batch_size": setup.micro_batch_size}
        values |= {"train.epochs": setup.epochs, "train.evaluations": setup.evaluations}
    separator = data.task.state.get("options", {}).get("separator")
    if data.task.name == "multi-label" and separator:
        values["data.separator"] = separator
    return replace(recipe, values)


def save_recipe(resolved: Recipe, run: Run, reasons: Mapping[str, str]) -> None:
    """Save the resolved recipe with the reason for every inferred value."""
    header = f"The resolved recipe of {run.folder.name}. Run it again with: finesmith tune recipe.yaml --out FOLDER"
    why = {key: f"inferred: {reason}" for key, reason in reasons.items()}
    run.write_text(
        "recipe.yaml",
        to_yaml(replace(with_absolute_paths(resolved), {"output.dir": None}), comments=why, header=header),
    )


def _find_learning_rate(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> None:
    """Run the learning-rate range test and take its suggestion."""
    from finesmith.workflows.fit import loss_of, plan_of
    from finesmith.workflows.training import find_rate

    setup.learning_rate, setup.why["train.learning_rate"] = find_rate(
        recipe, run, setup.network, loss_of(data, setup), setup.learning_rate, plan_of(recipe, data, setup)
    )
