"""From a recipe and gathered rows to a network on a device, tokens, and the settings that were still open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError
from finesmith.recipe.conflicts import value_of
from finesmith.tasks.corpus import Encoded
from finesmith.tasks.language import LanguageTask
from finesmith.types import Split
from finesmith.workflows import adapting
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

    from finesmith.models.forward import Network
    from finesmith.models.load import Base, LoadReport
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.devices import Device
    from finesmith.workflows.language.gather import Gathered


@dataclass(slots=True)
class Setup:
    """What training needs beside the rows; every field that was inferred is in the resolved recipe."""

    device: Device
    base: Base
    network: Network
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
    before_key: str
    fingerprint: dict[str, str]
    cache: Path | None
    adapter: Mapping[str, Any]
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
    from finesmith.models.encoder import Encoder
    from finesmith.models.layers import freeze_lowest

    device = choose_device(recipe, threads)
    network, report = load_network(recipe, data, base, tokenizer, device)
    run.record("note", message=f"model {base.name}: {network.why}")
    task = data.task
    encoded = {name: task.encode(corpus, tokenizer, data.max_length) for name, corpus in data.corpora.items()}
    for name, rows in encoded.items():
        for note in rows.notes:
            run.record("note", message=f"{name}: {note}")
    # Nothing is added or frozen yet, and a checkpoint is restored later: these are the weights before tuning.
    key = before_key(base, network, device)
    encoded = {name: task.begin(network, rows, cache=cache_folder(recipe), key=key) for name, rows in encoded.items()}
    if recipe.method.freeze_layers:
        freeze_lowest(network.classifier, recipe.method.freeze_layers)
    options = adapting.put_adapter(recipe, network, "seq2seq" if task.head == "seq2seq" else task.purpose)
    adapting.prepare_blocks(recipe, network)
    encoded = {name: task.narrow(rows, name) for name, rows in encoded.items()}
    settled = {key: reason for key, (value, reason) in task.settled.items() if value_of(recipe, key) != value}
    why = {**data.why, **settled}
    if recipe.data.weights is not None and len(encoded["train"].rows) != len(data.ids["train"]):
        counted = data.summary["mixture"]
        data.summary["mixture"] = data.mixture.redrawn(recipe, counted, len(encoded["train"].rows))
        run.write_json("data.json", data.summary)
    metric = _metric(recipe, data, why)
    rate = peak_learning_rate(recipe, report, why, task.rate_scale)
    epochs, evaluations = duration(recipe, len(encoded["train"].rows), why)
    micro, forecast = fit_memory(recipe, network, encoded["train"].rows.lengths(), device, output_width(network, task))
    if recipe.train.micro_batch_size is None:
        why["train.micro_batch_size"] = "the most that is forecast to fit into memory"
    pooling = network.pooling if isinstance(network, Encoder) else None
    facts = model_facts(recipe, base, network, report, device, forecast, options, pooling)
    run.write_json("model.json", {**facts, "head": task.head})
    return Setup(
        device=device,
        base=base,
        network=network,
        report=report,
        encoded=encoded,
        max_length=data.max_length,
        model_limit=longest_sequence(base, tokenizer, recipe),
        metric=metric,
        baselines=baselines_of(recipe, data),
        learning_rate=rate,
        epochs=epochs,
        evaluations=evaluations,
        micro_batch_size=micro,
        forecast=forecast,
        weights_key=weights_key(base, (), adapting.start_of(recipe, network)),
        before_key=key,
        fingerprint={},
        cache=cache_folder(recipe),
        adapter=adapting.in_recipe(recipe),
        why=why,
    )


def output_width(network: Network, task: LanguageTask) -> int:
    """Return how many values the head returns for every token; 0 where it is asked for a few tokens at a time only."""
    from finesmith.models.token_heads import TokenNetwork

    width = len(task.labels or ())
    if not width and isinstance(network, TokenNetwork) and (network.prompt or not network.split):
        return int(network.classifier.config.get_text_config().vocab_size)
    return width


def before_key(base: Base, network: Network, device: Device) -> str:
    """Name the weights before tuning and all by which a machine could compute otherwise with them."""
    from finesmith.run import versions

    how = f"{device.device} {device.threads} threads, {next(network.module.parameters()).dtype}, {network.why}"
    return f"{weights_key(base, ())}; {how}; {json.dumps(versions(), sort_keys=True)}"


def load_network(
    recipe: Recipe, data: Gathered, base: Base, tokenizer: PreTrainedTokenizerBase, device: Device
) -> tuple[Network, LoadReport]:
    """Load the base model under the head that the task needs."""
    import torch

    return data.task.load(
        base,
        tokenizer,
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
        why["evaluate.metric"] = data.task.why_metric
        return metrics[0]
    if recipe.evaluate.metric not in metrics:
        raise UserError(
            f"evaluate.metric is {recipe.evaluate.metric!r}, by which {data.task.name} cannot be judged; "
            f"choose one of {', '.join(metrics)}"
        )
    return recipe.evaluate.metric
