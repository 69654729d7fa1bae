"""The main job of a task that answers for every token: from a recipe to a tuned model and a defended verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finesmith.recipe import flatten, replace
from finesmith.workflows.earlier import enter

if TYPE_CHECKING:
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.workflows.earlier import Earlier
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


def story(recipe: Recipe, run: Run, earlier: Earlier | None) -> None:
    """Gather, load, train, baselines, compare, finish."""
    from finesmith.workflows.language.baselines import fit_baselines
    from finesmith.workflows.language.compare import compare
    from finesmith.workflows.language.finish import finish
    from finesmith.workflows.language.fit import fit

    enter(run, "data", earlier)
    data, setup = begin(recipe, run, earlier)
    resolved = _settle(recipe, run, data, setup, earlier)

    enter(run, "training", earlier)
    checkpoint = earlier.checkpoint if earlier else None
    begun = _look(resolved, run, data, setup) if checkpoint is None else lambda _: None
    trained = fit(resolved, run, data, setup, checkpoint, begun)

    enter(run, "baselines", earlier)
    baselines = fit_baselines(resolved, run, data, setup)

    enter(run, "evaluation", earlier)
    verdict, opened = compare(resolved, run, data, setup, baselines, trained)

    enter(run, "saving", earlier)
    finish(resolved, run, data, setup, opened)
    run.record("verdict", conclusion=verdict["conclusion"], better=verdict["better"])


def _look(recipe: Recipe, run: Run, data: Gathered, setup: Setup) -> Callable[[Optimizer], None]:
    """Run the probes that need no step; return what runs the others after the first one.

    Raises PreflightError when one does not pass.
    """
    from finesmith.workflows.language.preflight import learns, looks, trials
    from finesmith.workflows.preflight import Preflight

    guard, given = Preflight(recipe, run), (recipe, data, setup)
    guard.hear(looks(*given))
    return guard.first_step(setup.network.module, lambda: learns(*given), lambda: trials(*given))


def begin(recipe: Recipe, run: Run, earlier: Earlier | None = None) -> tuple[Gathered, Setup]:
    """Gather the rows and set the model up."""
    from finesmith.models.load import find, load_tokenizer
    from finesmith.workflows.language.gather import gather
    from finesmith.workflows.language.setup import set_up
    from finesmith.workflows.setup import longest_sequence, require_known

    base = find(recipe.model.base, recipe.model.revision)
    tokenizer = load_tokenizer(base)
    require_known(base, tokenizer)
    data = gather(recipe, run, tokenizer, longest=longest_sequence(base, tokenizer))
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
        **{f"data.{role}": name for role, name in data.summary["columns"].items()},
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
        recipe, run, setup.network, loss_of(setup), setup.learning_rate, plan_of(recipe, data, setup)
    )
