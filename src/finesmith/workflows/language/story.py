"""The main job of a task that answers for every token: from a recipe to a tuned model and a defended verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finesmith.recipe import flatten, replace
from finesmith.workflows.earlier import enter

if TYPE_CHECKING:
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.earlier import Earlier
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


def story(recipe: Recipe, run: Run, earlier: Earlier | None, reason: str | None = None) -> None:
    """Gather, load, train, baselines, compare, finish; `reason`: why it is this task where the recipe named none."""
    from finesmith.workflows.language.baselines import fit_baselines
    from finesmith.workflows.language.compare import compare
    from finesmith.workflows.language.finish import finish
    from finesmith.workflows.language.fit import fit
    from finesmith.workflows.language.preflight import before_training

    enter(run, "data", earlier)
    data, setup = begin(recipe, run, earlier, reason)
    resolved = _settle(recipe, run, data, setup, earlier)

    enter(run, "training", earlier)
    checkpoint = earlier.checkpoint if earlier else None
    begun = before_training(resolved, run, data, setup) if checkpoint is None else lambda _: None
    trained = fit(resolved, run, data, setup, checkpoint, begun)

    enter(run, "baselines", earlier)
    baselines = fit_baselines(resolved, run, data, setup)

    enter(run, "evaluation", earlier)
    verdict, opened = compare(resolved, run, data, setup, baselines, trained)

    enter(run, "saving", earlier)
    finish(resolved, run, data, setup, opened)
    run.record("verdict", conclusion=verdict["conclusion"], better=verdict["better"])


def begin(
    recipe: Recipe, run: Run, earlier: Earlier | None = None, reason: str | None = None
) -> tuple[Gathered, Setup]:
    """Gather the rows and set the model up."""
    from finesmith import tasks
    from finesmith.models.load import find, load_tokenizer
    from finesmith.models.native_config import config_of
    from finesmith.workflows.language.gather import gather
    from finesmith.workflows.language.setup import set_up
    from finesmith.workflows.setup import longest_sequence, require_known

    if reason is not None:
        run.record("note", message=f"task {recipe.task}: {reason}")
    base = find(recipe.model.base, recipe.model.revision)
    tokenizer = load_tokenizer(base, template=tasks.language_task(recipe.task).speaks)
    require_known(base, tokenizer)
    two_part = bool(config_of(base).is_encoder_decoder)
    data = gather(recipe, run, tokenizer, longest=longest_sequence(base, tokenizer, recipe), two_part=two_part)
    if reason is not None:
        data.why["task"] = reason
    enter(run, "model", earlier)
    return data, set_up(recipe, run, data, base, tokenizer, threads=earlier.threads if earlier else None)


def resolve(recipe: Recipe, data: Gathered, setup: Setup) -> Recipe:
    """Return the recipe with every inferred value in it; it reruns this very run."""
    values: dict[str, Any] = {
        "data.max_length": setup.max_length,
        "evaluate.metric": setup.metric,
        "evaluate.baselines": list(setup.baselines),
        "train.learning_rate": setup.learning_rate,
        "train.micro_batch_size": setup.micro_batch_size,
        "train.epochs": setup.epochs,
        "train.evaluations": setup.evaluations,
        **setup.adapter,
        **{f"data.{role}": name for role, name in data.summary["columns"].items()},
        **{key: value for key, (value, _) in data.task.settled.items()},
    }
    return replace(recipe, values)


def _settle(recipe: Recipe, run: Run, data: Gathered, setup: Setup, earlier: Earlier | None) -> Recipe:
    """Return the recipe with nothing open in it, written down; refuse what cannot be gone on with."""
    from finesmith.train.checkpoint import require_same
    from finesmith.workflows.setup import fingerprint
    from finesmith.workflows.tune import save_recipe

    if recipe.train.learning_rate == "auto":
        _find_learning_rate(recipe, run, data, setup)
    resolved = resolve(recipe, data, setup)
    setup.fingerprint = fingerprint(resolved, data.summary, setup.weights_key, setup.device)
    if earlier is not None and earlier.conditions is not None:
        require_same(earlier.conditions, setup.fingerprint)
    run.update(task=data.task.name, fingerprint=setup.fingerprint)
    if earlier is None or flatten(resolved) != flatten(recipe):
        save_recipe(resolved, run, setup.why)
    return resolved


def _find_learning_rate(recipe: Recipe, run: Run, data: Gathered, setup: Setup) -> None:
    """Run the learning-rate range test and take its suggestion."""
    from finesmith.workflows.language.fit import loss_of, plan_of
    from finesmith.workflows.training import find_rate

    setup.learning_rate, setup.why["train.learning_rate"] = find_rate(
        recipe, run, setup.network, loss_of(data, setup), setup.learning_rate, plan_of(recipe, data, setup)
    )
