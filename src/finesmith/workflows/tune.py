"""The main job: from a recipe to a tuned model and a defended verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.errors import RunError
from finesmith.recipe import Recipe, load, replace, to_yaml, with_absolute_paths
from finesmith.run import Listener, Run, default_folder
from finesmith.workflows.ending import ending

if TYPE_CHECKING:
    from finesmith.train.checkpoint import Checkpoint
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
    recipe = load(path / "recipe.yaml")
    with ending(run, recipe):
        found = checkpoint.latest(path / "checkpoints", fingerprint=None)
        if found is None:
            run.unmute(0)
        else:
            for refused in found.refused:
                run.record_live("note", message=f"checkpoint refused: {refused}")
            run.record_live("note", message=f"going on from step {found.step}")
            run.mute()
        _story(recipe, run, found, force=force)
    return path


def _story(recipe: Recipe, run: Run, checkpoint: Checkpoint | None, *, force: bool = False) -> None:
    """Prepare, load, baselines, train, compare, finish."""
    from finesmith.models.load import find, load_tokenizer
    from finesmith.train.checkpoint import require_same
    from finesmith.workflows.baselines import fit_baselines
    from finesmith.workflows.compare import compare
    from finesmith.workflows.finish import finish
    from finesmith.workflows.fit import fit
    from finesmith.workflows.prepare import prepare
    from finesmith.workflows.setup import fingerprint, longest_sequence, require_known, set_up

    if checkpoint is None:
        run.write_text(
            "recipe.yaml",
            to_yaml(with_absolute_paths(recipe), header="As given; the run stopped before it was resolved."),
        )
    run.record("stage", name="data")
    base = find(recipe.model.base, recipe.model.revision)
    tokenizer = load_tokenizer(base)
    require_known(base, tokenizer)
    data = prepare(recipe, run, tokenizer, longest=longest_sequence(base, tokenizer))

    run.record("stage", name="model")
    setup = set_up(recipe, run, data, base, tokenizer)
    if checkpoint is None and recipe.train.learning_rate == "auto":
        _find_learning_rate(recipe, run, data, setup)
    resolved = _resolve(recipe, data, setup, run)
    setup.fingerprint = fingerprint(resolved, data, setup)
    if checkpoint is not None and not force:
        require_same(checkpoint, setup.fingerprint)
    run.update(task=data.task.name, fingerprint=setup.fingerprint)

    run.record("stage", name="baselines")
    baselines = fit_baselines(resolved, run, data, setup)

    run.record("stage", name="training")
    fitted = fit(resolved, run, data, setup, checkpoint)

    run.record("stage", name="evaluation")
    verdict = compare(resolved, run, data, setup, baselines, fitted)

    run.record("stage", name="saving")
    finish(resolved, run, data, setup, fitted)
    run.record("verdict", conclusion=verdict["conclusion"], better=verdict["better"])


def name_of(recipe: Recipe) -> str:
    """Return a short name for a run: that of the first training source."""
    first = recipe.data.train if isinstance(recipe.data.train, str) else recipe.data.train[0]
    return Path(first).name.split(".")[0]


def _resolve(recipe: Recipe, data: Prepared, setup: Setup, run: Run) -> Recipe:
    """Write every inferred value into the recipe, with its reason, and save it; it reruns this very run."""
    columns = data.summary["columns"]
    values = {
        "task": data.task.name,
        **{f"data.{name}": columns[name] for name in ("text", "text_pair", "label", "group", "split") if columns[name]},
        "data.max_length": setup.max_length,
        "evaluate.metric": setup.metric,
        "train.micro_batch_size": setup.micro_batch_size,
    }
    if recipe.method.name != "features":
        values["train.learning_rate"] = setup.learning_rate
    separator = data.task.state.get("options", {}).get("separator")
    if data.task.name == "multi-label" and separator:
        values["data.separator"] = separator
    resolved = replace(recipe, values)
    header = f"The resolved recipe of {run.folder.name}. Run it again with: finesmith tune recipe.yaml --out FOLDER"
    why = {key: f"inferred: {reason}" for key, reason in setup.why.items()}
    elsewhere = replace(with_absolute_paths(resolved), {"output.dir": None})
    run.write_text("recipe.yaml", to_yaml(elsewhere, comments=why, header=header))
    return resolved


def _find_learning_rate(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> None:
    """Run the learning-rate range test and take its suggestion."""
    from finesmith.train.lr_range import range_test
    from finesmith.workflows.fit import loss_of, new_optimizer, plan_of

    found = range_test(
        setup.network.module,
        loss_of(data, setup),
        new_optimizer(recipe, setup, setup.learning_rate),
        plan_of(recipe, data, setup),
    )
    run.record("lr_range", learning_rates=found.learning_rates, losses=found.losses, suggestion=found.suggestion)
    setup.learning_rate = found.suggestion
    setup.why["train.learning_rate"] = "the range test's suggestion: a third of the rate where the loss was lowest"
