"""What simpler methods reach on the same splits, before any tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.types import Split
from finesmith.workflows.embed import embeddings, untouched
from finesmith.workflows.heads import fit_head

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

    Outputs = Mapping[Split, npt.NDArray[np.float64]]
    # Outputs, why there are none, and the seconds that a cache saved.
    Made = tuple[Outputs, str | None, float]

TITLES = {
    "majority": "most frequent answer",
    "tfidf": "TF-IDF + linear model",
    "features": "frozen features + linear head",
    "zero_shot": "base model, zero-shot",
}


@dataclass(frozen=True, slots=True)
class FittedBaseline:
    """A baseline's outputs for validation and test (made without looking at test labels), or why there are none."""

    name: str
    title: str
    outputs: Outputs
    seconds: float
    validation: float | None
    skipped: str | None = None


def fit_baselines(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> list[FittedBaseline]:
    """Fit every baseline that the recipe names on the training split; score it on validation only."""
    makers: dict[str, Callable[[], Made]] = {
        "majority": lambda: (_majority(data, setup.metric), None, 0.0),
        "tfidf": lambda: (_tfidf(recipe, data, setup.metric), None, 0.0),
        "features": lambda: _features(recipe, run, data, base),
        "zero_shot": lambda: _zero_shot(run, data, base),
    }
    fitted = []
    base = untouched(recipe, data, setup)
    for name in recipe.evaluate.baselines:
        began = time.perf_counter()
        run.record_live("baseline_start", name=TITLES[name])
        outputs, skipped, saved = makers[name]()
        seconds = time.perf_counter() - began + saved
        value = None
        if skipped is None:
            value = data.task.scores(data.targets["validation"], outputs["validation"]).get(setup.metric)
        run.record("baseline", name=TITLES[name], metric=setup.metric, value=value, skipped=skipped, seconds=seconds)
        fitted.append(FittedBaseline(name, TITLES[name], outputs, seconds, value, skipped))
    return fitted


def _texts(data: Prepared, split: Split) -> tuple[list[str], list[str] | None]:
    at = data.positions[split]
    pairs = data.examples.pairs
    return [data.examples.texts[i] for i in at], None if pairs is None else [pairs[i] for i in at]


def _majority(data: Prepared, metric: str) -> Outputs:
    from finesmith.evaluate.baselines import majority

    kind, classes = data.task.kind, data.task.head.outputs
    targets = data.targets["train"].astype(int) if kind == "single" else data.targets["train"]
    return {
        split: majority(targets, len(data.positions[split]), kind, classes, metric=metric)
        for split in ("validation", "test")
    }


def _tfidf(recipe: Recipe, data: Prepared, metric: str) -> Outputs:
    from finesmith.evaluate.baselines import tfidf_linear

    kind = data.task.kind
    whole = {s: t.astype(int) if kind == "single" else t for s, t in data.targets.items()}
    texts = {split: _texts(data, split) for split in ("train", "validation", "test")}
    found = tfidf_linear(
        texts["train"],
        whole["train"],
        {"validation": texts["validation"], "test": texts["test"]},
        kind,
        classes=data.task.head.outputs if kind == "single" else None,
        validation=(texts["validation"], whole["validation"]),
        seed=recipe.train.seed,
        metric=metric,
        balanced=kind != "number" and recipe.train.class_weights == "balanced",
    )
    return {split: found.predictions[split] for split in ("validation", "test")}


def _features(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> Made:
    import torch

    if recipe.method.name == "features":
        return {}, "it is the method being tuned", 0.0
    embedded = embeddings(run, data, setup)
    values = torch.from_numpy(embedded.values)
    parts = {split: values[torch.from_numpy(at)] for split, at in data.positions.items()}
    task = data.task
    head = fit_head(data, parts)
    return (
        {split: task.outputs(head.logits(parts[split]).numpy()) for split in ("validation", "test")},
        None,
        embedded.saved,
    )


def _zero_shot(run: Run, data: Prepared, setup: Setup) -> Made:
    """Compare each text with the labels' names in the space of a sentence encoder."""
    import numpy as np

    from finesmith.data.tokens import tokenize
    from finesmith.models import forward
    from finesmith.workflows.inference import run as run_network

    names = data.task.head.labels
    if setup.base.pooling is None:
        return {}, "the base model is not a sentence encoder, so texts cannot be compared with label names", 0.0
    if names is None or data.task.zero_shot(np.zeros((1, len(names)))) is None:
        return {}, "the labels have no names with a meaning to compare with", 0.0
    words = [name.replace("_", " ").replace("-", " ") for name in names]
    tokens = tokenize(words, None, setup.network.tokenizer, max_length=setup.max_length, cache=None)
    labels = run_network(
        setup.network, tokens, np.arange(len(names)), lambda b: forward.embed(setup.network, b, setup.pooling)
    )
    embedded = embeddings(run, data, setup)
    values = embedded.values
    result: dict[Split, Any] = {}
    for split in ("validation", "test"):
        similarity = _unit(values[data.positions[split]]) @ _unit(labels).T
        result[split] = data.task.zero_shot(similarity)
    return result, None, embedded.saved


def _unit(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
