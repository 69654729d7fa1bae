"""Open the test split once, score everything on it, and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finesmith.errors import RecipeError
from finesmith.types import SPLITS, Score, Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.evaluate.advice import Advice, Evidence
    from finesmith.evaluate.verdict import Verdict
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.baselines import FittedBaseline
    from finesmith.workflows.fit import Fitted
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

    Array = npt.NDArray[np.float64]


def compare(
    recipe: Recipe, run: Run, data: Prepared, setup: Setup, baselines: Sequence[FittedBaseline], fitted: Fitted
) -> dict[str, Any]:
    """Write predictions, scores, baselines, verdict and the next recipe; return the verdict as in verdict.json."""
    outputs: dict[Split, Array] = {
        split: data.task.outputs(fitted.predictor.logits(setup.tokens, data.positions[split])) for split in SPLITS
    }
    targets = {**data.targets, "test": data.test.open(run)}
    scores: dict[str, Any] = {split: _scores(recipe, data, targets[split], outputs[split], split) for split in SPLITS}
    scores["details"] = data.task.details(targets["test"], outputs["test"])
    scores["by_source"] = {split: _by_source(recipe, data, targets, outputs, split) for split in SPLITS[1:]}
    run.write_json("scores.json", scores)
    for split in SPLITS:
        _write_predictions(recipe, run, data, split, targets[split], outputs[split])
    _write_baselines(recipe, run, data, baselines, targets)
    verdict = _judge(recipe, data, setup, baselines, fitted, targets["test"], outputs["test"], scores)
    content = verdict.to_json()
    run.write_json("verdict.json", content)
    seen = data.task.details(targets["validation"], outputs["validation"]).get("reliability")
    evidence = _evidence(recipe, data, setup, baselines, fitted, verdict, scores, seen)
    write_next(recipe, run, evidence)
    return content


def _groups(data: Prepared, split: Split) -> list[str] | None:
    groups = data.examples.groups
    return None if groups is None else [groups[i] for i in data.positions[split]]


def _by_source(
    recipe: Recipe, data: Prepared, targets: Mapping[Split, Array], outputs: Mapping[Split, Array], split: Split
) -> list[dict[str, Any]]:
    """Return every metric on each source's rows of a split."""
    groups = _groups(data, split)

    def score(at: npt.NDArray[np.int64]) -> dict[str, Any]:
        chosen = None if groups is None else [groups[i] for i in at]
        return _with_intervals(recipe, data, targets[split][at], outputs[split][at], chosen)

    return data.mixture.by_source(data.examples.ids[data.positions[split]], score)


def _scores(recipe: Recipe, data: Prepared, targets: Array, outputs: Array, split: Split) -> dict[str, Any]:
    """Return every metric with its interval; without one on training data, where it would mean nothing."""
    if split == "train":
        return {name: asdict(Score(value)) for name, value in data.task.scores(targets, outputs).items()}
    return _with_intervals(recipe, data, targets, outputs, _groups(data, split))


def _with_intervals(
    recipe: Recipe, data: Prepared, targets: Array, outputs: Array, groups: Sequence[str] | None
) -> dict[str, Any]:
    from finesmith.evaluate.statistics import bootstrap

    found = bootstrap(data.task.kind, targets, outputs, groups, recipe.evaluate.bootstrap_samples, recipe.train.seed)
    return {name: None if score is None else asdict(score) for name, score in found.items()}


def _write_predictions(recipe: Recipe, run: Run, data: Prepared, split: Split, targets: Array, outputs: Array) -> None:
    """Write what was predicted, beside the texts unless the recipe has them withheld."""
    examples = data.examples.take(data.positions[split])
    columns: dict[str, Any] = {"id": examples.ids}
    if not recipe.output.redact:
        columns["text"] = list(examples.texts)
        if examples.pairs is not None:
            columns["text_pair"] = list(examples.pairs)
    columns["label"] = data.task.decode(targets)
    columns |= data.task.columns(outputs)
    run.write_table(f"predictions/{split}.parquet", columns)


def _write_baselines(
    recipe: Recipe, run: Run, data: Prepared, baselines: Sequence[FittedBaseline], targets: Mapping[Split, Array]
) -> None:
    rows = []
    for baseline in baselines:
        splits = {s: o for s, o in baseline.outputs.items() if s in {"validation", "test"}}
        found = {split: _scores(recipe, data, targets[split], out, split) for split, out in splits.items()}
        rows.append({"name": baseline.title, "seconds": baseline.seconds, "skipped": baseline.skipped, "scores": found})
    run.write_json("baselines.json", rows)


def strongest(baselines: Sequence[FittedBaseline], metric: str) -> FittedBaseline:
    """Return the baseline that is best on validation; at least one was run (`require_rival`)."""
    from finesmith.evaluate.metrics import HIGHER_IS_BETTER

    ready = [b for b in baselines if b.skipped is None and b.validation is not None]
    if not ready:
        ready = [b for b in baselines if b.skipped is None]
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return max(ready, key=lambda b: sign * b.validation if b.validation is not None else float("-inf"))


def _judge(
    recipe: Recipe,
    data: Prepared,
    setup: Setup,
    baselines: Sequence[FittedBaseline],
    fitted: Fitted,
    targets: Array,
    outputs: Array,
    scores: Mapping[str, Any],
) -> Verdict:
    from finesmith.evaluate.verdict import judge, overfitting

    ready = [b for b in baselines if b.skipped is None]
    gap = overfitting(
        fitted.history,
        scores["train"][setup.metric]["value"],
        scores["validation"][setup.metric]["value"],
        setup.metric,
    )
    return judge(
        task=data.task.name,
        kind=data.task.kind,
        metric=setup.metric,
        targets=targets,
        tuned=outputs,
        baselines={b.title: b.outputs["test"] for b in ready},
        against=strongest(baselines, setup.metric).title,
        baseline_seconds={b.title: b.seconds for b in ready},
        tuned_seconds=fitted.seconds,
        overfitting=gap,
        groups=_groups(data, "test"),
        seed=recipe.train.seed,
        resamples=recipe.evaluate.bootstrap_samples,
    )


def write_next(recipe: Recipe, run: Run, evidence: Evidence) -> None:
    """Write what to try next, and the first of it as a recipe that runs."""
    from finesmith.evaluate.advice import advise
    from finesmith.recipe import to_yaml, with_absolute_paths

    advice = advise(evidence)
    runnable: list[Advice] = []
    recipes = []
    for one in advice:
        changed = _changed(recipe, one.changes)
        if changed is None:
            continue
        runnable.append(one)
        if one.changes:
            recipes.append((one, changed))
    run.write_json(
        "next.json",
        {"advice": [{"change": _setting(one.changes), "changes": one.changes, "why": one.why} for one in runnable]},
    )
    if recipes:
        first, changed = recipes[0]
        header = (
            f"What to try next after {run.folder.name}: {first.why}. Its test rows were opened by that run: for a "
            "final claim, test on new ones."
        )
        comments = dict.fromkeys(first.changes, "changed")
        run.write_text("next-recipe.yaml", to_yaml(with_absolute_paths(changed), comments=comments, header=header))


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe with `changes`; what they leave without effect goes back to its default. None: not a recipe."""
    from finesmith.recipe import from_dict, replace
    from finesmith.recipe.conflicts import value_of

    values = {**changes, "output.dir": None, "train.micro_batch_size": None}
    try:
        return replace(recipe, values)
    except RecipeError as error:
        defaults = from_dict({"data": {"train": "?"}})
        idle = [problem.key for problem in error.problems if problem.key not in changes]
        values |= {key: value_of(defaults, key) for key in idle}
    try:
        return replace(recipe, values)
    except RecipeError:
        return None


def _setting(changes: Mapping[str, Any]) -> str:
    """Return changes as a person would type them after --set."""
    shown = {key: "null" if value is None else value for key, value in changes.items()}
    return " ".join(f"--set {key}={value}" for key, value in shown.items())


def _evidence(
    recipe: Recipe,
    data: Prepared,
    setup: Setup,
    baselines: Sequence[FittedBaseline],
    fitted: Fitted,
    verdict: Verdict,
    scores: Mapping[str, Any],
    reliability: Sequence[Mapping[str, Any]] | None,
) -> Evidence:
    """Gather what advice rests on: training and validation alone, so that test answers steer no later run."""
    from finesmith.evaluate.advice import Evidence
    from finesmith.evaluate.metrics import HIGHER_IS_BETTER

    sign = 1.0 if HIGHER_IS_BETTER[setup.metric] else -1.0
    validation = scores["validation"][setup.metric]["value"]
    frozen = next((b.validation for b in baselines if b.name == "features" and b.validation is not None), None)
    counts = [n for n in (data.summary["splits"]["train"].get("labels") or {}).values() if n]
    over, rival = verdict.overfitting, strongest(baselines, setup.metric)
    tokens = setup.tokens.summary()
    return Evidence(
        method=recipe.method.name,
        epochs=setup.epochs,
        learning_rate=setup.learning_rate,
        examples=len(data.positions["train"]),
        test_size=data.test.size,
        seed=recipe.train.seed,
        train=scores["train"][setup.metric]["value"],
        validation=validation,
        severity=over.severity if over else "none",
        last_is_best=bool(fitted.history) and fitted.history[-1]["step"] == fitted.best_step,
        stopped_early=fitted.stopped_early,
        rose=bool(over and over.began_at_step is not None),
        features_gap=None if frozen is None else sign * (validation - frozen),
        smallest_detectable=verdict.comparison.smallest_detectable,
        gain=0.0 if rival.validation is None else sign * (validation - rival.validation),
        overconfidence=_overconfidence(reliability),
        truncated_share=tokens["truncated_share"],
        max_length=setup.max_length,
        model_limit=setup.model_limit,
        imbalance=max(counts) / min(counts) if counts else 1.0,
        class_weights=recipe.train.class_weights,
        label_smoothing=recipe.train.label_smoothing,
        task=data.task.name,
    )


def _overconfidence(bins: Sequence[Mapping[str, Any]] | None) -> float | None:
    """Return mean stated confidence minus share correct over the bins of a reliability curve."""
    rows = sum(bin_["rows"] for bin_ in bins or ())
    if not bins or not rows:
        return None
    return float(sum((bin_["confidence"] - bin_["accuracy"]) * bin_["rows"] for bin_ in bins) / rows)
