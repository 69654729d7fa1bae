"""What simpler methods reach on the same splits, the base model without any tuning among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError
from finesmith.types import Split
from finesmith.workflows.embed import Embedded, embeddings, untouched
from finesmith.workflows.heads import fit_head

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

    Outputs = Mapping[Split, npt.NDArray[np.float64]]
    # Outputs, and the seconds that a cache saved.
    Made = tuple[Outputs, float]

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


class BaseModel:
    """The base model without any tuning, loaded when first asked for; its embeddings are computed once."""

    def __init__(self, recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> None:
        self.setup: Callable[[], Setup] = cache(lambda: untouched(recipe, data, setup))
        self.embedded: Callable[[], Embedded] = cache(lambda: embeddings(run, data, self.setup()))


def fit_baselines(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> list[FittedBaseline]:
    """Fit every baseline that the recipe names on the training split; score it on validation only."""
    base = BaseModel(recipe, run, data, setup)
    makers: dict[str, Callable[[], Made]] = {
        "majority": lambda: (_majority(data, setup.metric), 0.0),
        "tfidf": lambda: (_tfidf(recipe, data, setup.metric), 0.0),
        "features": lambda: _features(data, base),
        "zero_shot": lambda: _zero_shot(data, base),
    }
    fitted = []
    for name in recipe.evaluate.baselines:
        began = time.perf_counter()
        run.record_live("baseline_start", name=TITLES[name])
        skipped = _impossible(name, recipe, data, setup)
        outputs, saved = ({}, 0.0) if skipped else makers[name]()
        seconds = time.perf_counter() - began + saved
        value = None
        if skipped is None:
            value = data.task.scores(data.targets["validation"], outputs["validation"]).get(setup.metric)
        run.record("baseline", name=TITLES[name], metric=setup.metric, value=value, skipped=skipped, seconds=seconds)
        fitted.append(FittedBaseline(name, TITLES[name], outputs, seconds, value, skipped))
    return fitted


def require_rival(recipe: Recipe, data: Prepared, setup: Setup) -> None:
    """Refuse, before hours of training, a recipe of whose baselines none can be run.

    Raises UserError.
    """
    if all(_impossible(name, recipe, data, setup) for name in recipe.evaluate.baselines):
        raise UserError(
            "no baseline could be run, so there is nothing to compare the tuned model with; "
            "name one with --set evaluate.baselines=[majority,tfidf]"
        )


def _impossible(name: str, recipe: Recipe, data: Prepared, setup: Setup) -> str | None:
    """Return why a baseline cannot be run here, if so."""
    import numpy as np

    if name == "features" and recipe.method.name == "features":
        return "it is the method being tuned"
    if name == "zero_shot":
        names = data.task.head.labels
        if setup.base.pooling is None:
            return "the base model is not a sentence encoder, so texts cannot be compared with label names"
        if names is None or data.task.zero_shot(np.zeros((1, len(names)))) is None:
            return "the labels have no names with a meaning to compare with"
    return None


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


def _features(data: Prepared, base: BaseModel) -> Made:
    import torch

    embedded = base.embedded()
    values = torch.from_numpy(embedded.values)
    parts = {split: values[torch.from_numpy(at)] for split, at in data.positions.items()}
    task = data.task
    head = fit_head(data, parts)
    outputs: Outputs = {split: task.outputs(head.logits(parts[split]).numpy()) for split in ("validation", "test")}
    return outputs, embedded.saved


def _zero_shot(data: Prepared, base: BaseModel) -> Made:
    """Compare each text with the labels' names in the space of a sentence encoder."""
    import numpy as np

    from finesmith.data.tokens import tokenize
    from finesmith.models import forward
    from finesmith.workflows.inference import run as run_network

    setup = base.setup()
    words = [name.replace("_", " ").replace("-", " ") for name in data.task.head.labels or ()]
    tokens = tokenize(words, None, setup.network.tokenizer, max_length=setup.max_length, cache=None)
    labels = run_network(
        setup.network, tokens, np.arange(len(words)), lambda b: forward.embed(setup.network, b, setup.pooling)
    )
    embedded = base.embedded()
    values = embedded.values
    result: dict[Split, Any] = {}
    for split in ("validation", "test"):
        similarity = _unit(values[data.positions[split]]) @ _unit(labels).T
        result[split] = data.task.zero_shot(similarity)
    return result, embedded.saved


def _unit(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
