"""Open the test rows once, score everything on them, and judge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.tasks.corpus import Corpus, Encoded, Outcome, groups_of
from finesmith.types import SPLITS, Score, Split
from finesmith.workflows.compare import write_next
from finesmith.workflows.language.baselines import Fitted, strongest, untouched
from finesmith.workflows.language.fit import selecting

if TYPE_CHECKING:
    from finesmith.evaluate.advice import Evidence
    from finesmith.evaluate.measurement import Measurement
    from finesmith.evaluate.verdict import Verdict
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.language import Ints
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup
    from finesmith.workflows.training import Trained


@dataclass(frozen=True, slots=True)
class Opened:
    """The test rows, their tokens, and what the tuned network made of them."""

    corpus: Corpus
    encoded: Encoded
    outcome: Outcome


def compare(
    recipe: Recipe, run: Run, data: Gathered, setup: Setup, baselines: Sequence[Fitted], trained: Trained
) -> tuple[dict[str, Any], Opened]:
    """Write predictions, scores, baselines, verdict and the next recipe; return the verdict and the opened test."""
    from finesmith.models.adapter_kinds import before_tuning

    task = data.task
    test = data.test.open(run)
    corpora: dict[Split, Corpus] = {**data.corpora, "test": test}
    opened = task.narrow(task.encode(test, setup.network.tokenizer, setup.max_length), "test")
    if task.refers:
        with before_tuning(setup.network, untouched(recipe, data, setup)) as network:
            opened = task.begin(network, opened, cache=_cache(recipe, setup), key=setup.before_key)
    encoded = {**setup.encoded, "test": opened}
    outcomes = {split: task.answer(setup.network, encoded[split]) for split in SPLITS}
    measured = {split: task.measure(corpora[split], encoded[split], outcomes[split]) for split in SPLITS}
    scores: dict[str, Any] = {
        split: score_all(
            recipe, measured[split], corpora[split], task.answered(outcomes[split]), exactly=split == "train"
        )
        for split in SPLITS
    }
    scores["details"] = task.details(test, outcomes["test"])
    scores["by_source"] = {
        split: _by_source(recipe, data, measured[split], corpora[split], task.answered(outcomes[split]), split)
        for split in SPLITS[1:]
    }
    run.write_json("scores.json", scores)
    for split in SPLITS:
        _write_predictions(recipe, run, data, split, corpora[split], outcomes[split])
    rivals = _score_baselines(recipe, run, data, setup, baselines, corpora, encoded)
    groups = groups_of(test, len(measured["test"][setup.metric]), task.answered(outcomes["test"]))
    verdict = _judge(recipe, data, setup, baselines, rivals, trained, measured, scores, groups)
    run.write_json("verdict.json", verdict.to_json())
    write_next(recipe, run, _evidence(recipe, data, setup, baselines, trained, verdict, scores))
    return verdict.to_json(), Opened(test, encoded["test"], outcomes["test"])


def _cache(recipe: Recipe, setup: Setup) -> Path | None:
    # What PiSSA took out of the weights and puts back for this is theirs but for the last bits: not for other runs.
    return None if recipe.method.name == "pissa" else setup.cache


def _by_source(
    recipe: Recipe,
    data: Gathered,
    measured: Mapping[str, Measurement],
    corpus: Corpus,
    answered: Ints | None,
    split: Split,
) -> list[dict[str, Any]]:
    """Return every metric that is one of rows, on each source's rows of a split."""

    def score(rows: Ints) -> dict[str, Any]:
        chosen = set(rows.tolist())
        found: dict[str, Any] = {}
        for name, whole in measured.items():
            places = range(len(corpus)) if len(whole) == len(corpus) or answered is None else answered.tolist()
            at = [place for place, row in enumerate(places) if row in chosen]
            if len(places) == len(whole) and at:
                one = whole.take(at)
                groups = None if corpus.groups is None else [corpus.groups[places[place]] for place in at]
                found[name] = _with_interval(recipe, one, groups)
        return found

    return data.mixture.by_source(data.ids[split], score)


def score_all(
    recipe: Recipe,
    measured: Mapping[str, Measurement],
    corpus: Corpus,
    answered: Ints | None,
    *,
    exactly: bool = False,
) -> dict[str, Any]:
    """Return every metric with its interval; `exactly`: without one, as on training data, where it means nothing."""
    found: dict[str, Any] = {}
    for name, one in measured.items():
        if exactly:
            found[name] = None if one.value is None else asdict(Score(one.value))
        else:
            found[name] = _with_interval(recipe, one, groups_of(corpus, len(one), answered))
    return found


def _with_interval(recipe: Recipe, one: Measurement, groups: Sequence[str] | None) -> dict[str, Any] | None:
    from finesmith.evaluate.paired import interval

    score = interval(one, groups, recipe.evaluate.bootstrap_samples, recipe.train.seed)
    return None if score is None else asdict(score)


def _write_predictions(
    recipe: Recipe, run: Run, data: Gathered, split: Split, corpus: Corpus, outcome: Outcome
) -> None:
    """Write what was predicted, beside the texts unless the recipe has them withheld."""
    quote = not recipe.output.redact
    columns: dict[str, Any] = {"id": data.ids[split]}
    if quote:
        columns |= {name: list(texts) for name, texts in corpus.columns_of_texts.items()}
    labels = data.task.label_column(corpus, quote=quote)
    if labels is not None:
        columns["label"] = labels
    run.write_table(f"predictions/{split}.parquet", columns | data.task.columns(corpus, outcome, quote=quote))


def _score_baselines(
    recipe: Recipe,
    run: Run,
    data: Gathered,
    setup: Setup,
    baselines: Sequence[Fitted],
    corpora: Mapping[Split, Corpus],
    encoded: Mapping[Split, Encoded],
) -> dict[str, tuple[Measurement, float]]:
    """Score every baseline on validation and test; return what each reaches on test, and its seconds, by title."""
    rows, rivals, answered = [], {}, dict[str, list[Any]]()
    for each in baselines:
        if each.baseline is None:
            rows.append({"name": each.title, "seconds": each.seconds, "skipped": each.skipped, "scores": {}})
            continue
        began, found = time.perf_counter(), {}
        for split in ("validation", "test"):
            outcome = each.baseline.answer(corpora[split], encoded[split])
            measured = data.task.measure(corpora[split], encoded[split], outcome)
            found[split] = score_all(recipe, measured, corpora[split], data.task.answered(outcome))
        if data.task.speaks and not recipe.output.redact:
            answered[each.title] = data.task.columns(corpora["test"], outcome, quote=True)["prediction"]
        seconds = each.seconds + time.perf_counter() - began
        rivals[each.title] = measured[setup.metric], seconds
        rows.append({"name": each.title, "seconds": seconds, "skipped": None, "scores": found})
    run.write_json("baselines.json", rows)
    if answered:
        run.write_table("predictions/baselines.parquet", {"id": data.ids["test"], **answered})
    return rivals


def _judge(
    recipe: Recipe,
    data: Gathered,
    setup: Setup,
    baselines: Sequence[Fitted],
    rivals: Mapping[str, tuple[Measurement, float]],
    trained: Trained,
    measured: Mapping[Split, Mapping[str, Measurement]],
    scores: Mapping[str, Any],
    groups: Sequence[str] | None,
) -> Verdict:
    from finesmith.evaluate.verdict import judge_measured, overfitting

    tuned, chosen = measured["test"][setup.metric], selecting(data, setup)
    train, validation = (scores[split][chosen] for split in ("train", "validation"))
    gap = None
    if train is not None and validation is not None:
        gap = overfitting(trained.history, train["value"], validation["value"], chosen)
    return judge_measured(
        task=data.task.name,
        tuned=tuned,
        baselines={title: one for title, (one, _) in rivals.items()},
        against=strongest(baselines, tuned.higher_is_better).title,
        baseline_seconds={title: seconds for title, (_, seconds) in rivals.items()},
        tuned_seconds=trained.seconds,
        overfitting=gap,
        groups=groups,
        seed=recipe.train.seed,
        resamples=recipe.evaluate.bootstrap_samples,
    )


def _evidence(
    recipe: Recipe,
    data: Gathered,
    setup: Setup,
    baselines: Sequence[Fitted],
    trained: Trained,
    verdict: Verdict,
    scores: Mapping[str, Any],
) -> Evidence:
    """Gather what advice rests on: training and validation alone, so that test answers steer no later run."""
    from finesmith.evaluate.advice import Evidence
    from finesmith.evaluate.metrics import HIGHER_IS_BETTER

    higher, chosen = HIGHER_IS_BETTER[setup.metric], selecting(data, setup)
    values = [(scores[split][chosen] or {}).get("value") or 0.0 for split in ("train", "validation")]
    reached = (scores["validation"][setup.metric] or {}).get("value") or 0.0
    rival, over, tokens = strongest(baselines, higher), verdict.overfitting, data.summary["tokens"]
    return Evidence(
        method=recipe.method.name,
        epochs=setup.epochs,
        learning_rate=setup.learning_rate,
        examples=len(data.corpora["train"]),
        test_size=data.test.size,
        seed=recipe.train.seed,
        train=values[0],
        validation=values[1],
        severity=over.severity if over else "none",
        last_is_best=bool(trained.history) and trained.history[-1]["step"] == trained.best_step,
        stopped_early=trained.stopped_early,
        rose=bool(over and over.began_at_step is not None),
        features_gap=None,
        smallest_detectable=verdict.comparison.smallest_detectable,
        gain=0.0 if rival.validation is None else (1.0 if higher else -1.0) * (reached - rival.validation),
        truncated_share=tokens["truncated_share"] or 0.0,
        max_length=setup.max_length,
        model_limit=setup.model_limit,
        task=data.task.name,
    )
