"""From a recipe and gathered rows to a network on a device, tokens, and the settings that were still open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError
from finesmith.tasks.language import Encoded, LanguageTask
from finesmith.types import Split
from finesmith.workflows.setup import (
    cache_folder,
    choose_device,
    duration,
    fit_memory,
    longest_sequence,
    model_facts,
    peak_learning_rate,
    weights_key,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.models.load import Base, LoadReport
    from finesmith.models.token_heads import TokenNetwork
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.devices import Device
    from finesmith.workflows.language.gather import Gathered


@dataclass(slots=True)
class Setup:
    """What training needs beside the rows; every field that was inferred is in the resolved recipe."""

    device: Device
    base: Base
    network: TokenNetwork
    report: LoadReport
    encoded: Mapping[Split, Encoded]
    max_length: int
    model_limit: int
    metric: str
    baselines: tuple[str, ...]
    learning_rate: float
    epochs: float
    evaluations: int
    micro_batch_size: int
    forecast: Mapping[str, Any]
    weights_key: str
    fingerprint: dict[str, str]
    cache: Path | None
    why: dict[str, str]


def set_up(
    recipe: Recipe,
    run: Run,
    data: Gathered,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    threads: int | None = None,
) -> Setup:
    """Load the network, prepare it for the method, make tokens, and settle what the recipe left open.

    `threads` is the number that an interrupted run began on. Raises ModelError or UserError for what the model or the
    machine cannot do.
    """
    from finesmith.models.adapter_kinds import add_adapter
    from finesmith.models.layers import freeze_lowest

    device = choose_device(recipe, threads)
    network, report = load_network(recipe, data, base, tokenizer, device)
    run.record("note", message=f"model {base.name}: {network.why}")
    task, options = data.task, dict[str, Any]()
    encoded = {name: task.encode(corpus, tokenizer, data.max_length) for name, corpus in data.corpora.items()}
    for name, rows in encoded.items():
        for note in rows.notes:
            run.record("note", message=f"{name}: {note}")
    if recipe.method.freeze_layers:
        freeze_lowest(network.classifier, recipe.method.freeze_layers)
    if recipe.method.name == "lora":
        options = dict(add_adapter(network, "lora", recipe.method.lora, seed=recipe.train.seed, purpose=task.purpose))
    why = dict(data.why)
    metric = _metric(recipe, data, why)
    rate = peak_learning_rate(recipe, report, why)
    epochs, evaluations = duration(recipe, len(encoded["train"].rows), why)
    micro, forecast = fit_memory(recipe, network, encoded["train"].rows.lengths(), device, output_width(network, task))
    if recipe.train.micro_batch_size is None:
        why["train.micro_batch_size"] = "the most that is forecast to fit into memory"
    facts = model_facts(recipe, base, network, report, device, forecast, options, None)
    run.write_json("model.json", {**facts, "head": task.kind})
    return Setup(
        device=device,
        base=base,
        network=network,
        report=report,
        encoded=encoded,
        max_length=data.max_length,
        model_limit=longest_sequence(base, tokenizer),
        metric=metric,
        baselines=baselines_of(recipe, data),
        learning_rate=rate,
        epochs=epochs,
        evaluations=evaluations,
        micro_batch_size=micro,
        forecast=forecast,
        weights_key=weights_key(base, ()),
        fingerprint={},
        cache=cache_folder(recipe),
        why=why,
    )


def output_width(network: TokenNetwork, task: LanguageTask) -> int:
    """Return how many values the head returns for every token; 0 where it is asked for a few tokens at a time only."""
    if task.labels is None and not network.split:
        return int(network.classifier.config.get_text_config().vocab_size)
    return len(task.labels or ())


def load_network(
    recipe: Recipe, data: Gathered, base: Base, tokenizer: PreTrainedTokenizerBase, device: Device
) -> tuple[TokenNetwork, LoadReport]:
    """Load the base model under the head that the task needs."""
    import torch

    from finesmith.models.language import load_language_model

    return load_language_model(
        base,
        tokenizer,
        kind=data.task.kind,
        labels=data.task.labels,
        seed=recipe.train.seed,
        dropout=recipe.model.dropout,
        attention=recipe.model.attention,
        dtype=torch.float32,
        device=device.device,
    )


def baselines_of(recipe: Recipe, data: Gathered) -> tuple[str, ...]:
    """Return the baselines that the recipe names, or all of the task's own where it names none."""
    from finesmith.recipe.schema import USUAL_BASELINES

    named = tuple(recipe.evaluate.baselines)
    return data.task.baselines if named == USUAL_BASELINES else named


def _metric(recipe: Recipe, data: Gathered, why: dict[str, str]) -> str:
    metrics = data.task.metrics
    if recipe.evaluate.metric is None:
        why["evaluate.metric"] = f"the default of {data.task.name}"
        return metrics[0]
    if recipe.evaluate.metric not in metrics:
        raise UserError(
            f"evaluate.metric is {recipe.evaluate.metric!r}, by which {data.task.name} cannot be judged; "
            f"choose one of {', '.join(metrics)}"
        )
    return recipe.evaluate.metric
