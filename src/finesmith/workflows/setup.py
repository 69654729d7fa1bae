"""From a recipe and prepared data to a network on a device, tokens, and the settings that were still open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError, UserError
from finesmith.recipe import ADAPTERS, LORA_KINDS
from finesmith.workflows import adapting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.tokens import Tokens
    from finesmith.models.forward import Network, Pooling
    from finesmith.models.load import Base, LoadReport
    from finesmith.models.vocabulary import AddedWords
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.devices import Device
    from finesmith.train.memory import Shape
    from finesmith.workflows.prepare import Prepared


@dataclass(slots=True)
class Setup:
    """What training needs beside the data; every field that was inferred is in the resolved recipe."""

    device: Device
    base: Base
    network: Network
    report: LoadReport
    tokens: Tokens
    max_length: int
    model_limit: int
    metric: str
    pooling: Pooling
    learning_rate: float
    epochs: float
    evaluations: int
    micro_batch_size: int
    forecast: Mapping[str, Any]
    weights_key: str
    fingerprint: dict[str, str]
    cache: Path | None
    added_words: tuple[str, ...]
    adapter: Mapping[str, Any]
    why: dict[str, str]


def open_tokenizer(recipe: Recipe, base: Base) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the base model, without transformers where that can be.

    Raises ModelError where there is none or it cannot be read.
    """
    from finesmith.models.load import load_tokenizer
    from finesmith.models.native_tokenizer import native_tokenizer

    found = None if recipe.data.domain_words else native_tokenizer(base)
    return found or load_tokenizer(base)


def longest_sequence(base: Base, tokenizer: PreTrainedTokenizerBase, recipe: Recipe | None = None) -> int:
    """Return the most tokens a sequence may have: the least of what the model's parts and its tokenizer allow.

    A prompt that `recipe` has tuned takes places of its own.
    """
    from finesmith.models.forward import OFFSET_POSITIONS
    from finesmith.models.native_config import config_of

    config = config_of(base).get_text_config()
    limits = [int(tokenizer.model_max_length)]
    declared = config.to_dict().get("max_position_embeddings") or config.to_dict().get("n_positions")
    if declared:
        taken = config.pad_token_id + 1 if config.model_type in OFFSET_POSITIONS else 0
        prompt = recipe.method.prompt_tokens if recipe is not None and recipe.method.name == "prompt" else 0
        limits.append(int(declared) - taken - prompt)
    return min(limits)


def default_learning_rate(method: str, parameters: int) -> tuple[float, str]:
    """Return a peak learning rate for AdamW by method and model size, and the reason.

    Far below the rates of pre-training; small models bear more. docs/benchmarks.md shows what they reach.
    """
    size = "small" if parameters < 50e6 else "medium" if parameters < 600e6 else "large"
    rates = {
        "full": {"small": 1e-4, "medium": 3e-5, "large": 1e-5},
        "head_then_full": {"small": 5e-5, "medium": 2e-5, "large": 5e-6},
        **{kind: {"small": 1e-3, "medium": 3e-4, "large": 2e-4} for kind in LORA_KINDS},
        "ia3": {"small": 1e-2, "medium": 5e-3, "large": 3e-3},
        "prompt": {"small": 3e-2, "medium": 1e-2, "large": 1e-2},
        "features": {"small": 1.0, "medium": 1.0, "large": 1.0},
    }
    return rates[method][
        size
    ], f"the default of {method} for a {size} model ({parameters / 1e6:.0f} million parameters)"


def set_up(
    recipe: Recipe,
    run: Run,
    data: Prepared,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    threads: int | None = None,
) -> Setup:
    """Load the network, prepare it for the method, tokenise, and settle what the recipe left open.

    `threads` is the number that an interrupted run began on: sums are split over threads, so going on with as many
    gives the same bits on whatever the environment offers now.

    Raises ModelError or UserError for what the model or the machine cannot do.
    """
    from finesmith.data.tokens import tokenize
    from finesmith.models.dropout import quicken_dropout
    from finesmith.models.embedding import keep_gradients

    device = choose_device(recipe, threads)
    network, report = load_network(recipe, data, base, tokenizer, device)
    run.record("note", message=f"model {base.name}: {network.why}")
    added = _add_words(recipe, run, data, network)
    words = added.words if added else ()
    max_length = int(data.summary["max_length"])
    cache = cache_folder(recipe)
    tokens = data.tokens if not words else None
    if tokens is None:
        tokens = tokenize(data.examples.texts, data.examples.pairs, tokenizer, max_length=max_length, cache=cache)
    run.write_json("data.json", {**data.summary, "tokens": {**tokens.summary(), "added_words": words}})
    options = _apply_method(recipe, network, added.rows if added else ())
    adapting.prepare_blocks(recipe, network)
    if device.device == "cpu":
        if not recipe.train.compile:
            quicken_dropout(network.module)
        keep_gradients(network.module)
    why = dict(data.why)
    metric = _metric(recipe, data, why)
    rate = peak_learning_rate(recipe, report, why)
    epochs, evaluations = duration(recipe, len(data.positions["train"]), why)
    micro, forecast = fit_memory(recipe, network, tokens.lengths()[data.positions["train"]], device)
    if recipe.train.micro_batch_size is None:
        why["train.micro_batch_size"] = "the most that is forecast to fit into memory"
    setup = Setup(
        device=device,
        base=base,
        network=network,
        report=report,
        tokens=tokens,
        max_length=max_length,
        model_limit=longest_sequence(base, tokenizer, recipe),
        metric=metric,
        pooling=_pooling(recipe, base, network),
        learning_rate=rate,
        epochs=epochs,
        evaluations=evaluations,
        micro_batch_size=micro,
        forecast=forecast,
        weights_key=weights_key(base, words, adapting.start_of(recipe, network)),
        fingerprint={},
        cache=cache,
        added_words=words,
        adapter=adapting.in_recipe(recipe),
        why=why,
    )
    run.write_json("model.json", model_facts(recipe, base, network, report, device, forecast, options, setup.pooling))
    return setup


def choose_device(recipe: Recipe, threads: int | None) -> Device:
    """Choose where to train, and make it repeat itself."""
    from finesmith.train.devices import choose, keep_freed_memory, set_determinism

    device = choose(recipe.train.precision)
    device = replace(device, threads=threads or device.threads)
    set_determinism(recipe.train.seed, device.threads)
    keep_freed_memory()
    return device


def load_network(
    recipe: Recipe, data: Prepared, base: Base, tokenizer: PreTrainedTokenizerBase, device: Device
) -> tuple[Network, LoadReport]:
    """Load the base model under the head that the task needs."""
    import torch

    from finesmith.models.load import load_classifier
    from finesmith.models.native import native_classifier

    head = data.task.head
    wanted: dict[str, Any] = {
        "outputs": head.outputs,
        "problem": head.problem,
        "labels": head.labels,
        "seed": recipe.train.seed,
        "dropout": recipe.model.dropout,
    }
    if _may_be_native(recipe, device):
        native = native_classifier(base, tokenizer, **wanted)
        if native is not None:
            return native
    return load_classifier(
        base,
        tokenizer,
        **wanted,
        attention=recipe.model.attention,
        dtype=torch.float32,
        device=device.device,
    )


def _may_be_native(recipe: Recipe, device: Device) -> bool:
    """Whether nothing in the recipe needs transformers' own modules: an adapter, added words, compiling, a GPU."""
    return (
        device.device == "cpu"
        and device.dtype == "float32"
        and recipe.method.name not in ADAPTERS
        and recipe.model.attention != "padded"
        and not recipe.data.domain_words
        and not recipe.train.compile
    )


def weights_key(base: Base, words: Sequence[str], parts: str | None = None) -> str:
    """Name the weights that training starts from: the base model's and the words added to it, which are private.

    `parts` is the hash of what was taken out of them, if so: a resume must find the same.
    """
    added = hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:16] if words else "none"
    key = f"{base.sha256 or base.location}@{base.revision} words {added}"
    return f"{parts[:16]} taken out of {key}" if parts else key


def cache_folder(recipe: Recipe) -> Path | None:
    """Return the folder of cached tokens and embeddings; None where the recipe says "none"."""
    if recipe.output.cache == "none":
        return None
    if recipe.output.cache is not None:
        return Path(recipe.output.cache).expanduser()
    import os

    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "finesmith"


def _add_words(recipe: Recipe, run: Run, data: Prepared, network: Network) -> AddedWords | None:
    from finesmith.models.vocabulary import add_words, broken_words

    wanted = recipe.data.domain_words
    if not wanted:
        return None
    if recipe.method.name in {"features", "ia3", "prompt"}:
        raise UserError(
            f"data.domain_words adds vectors that must be trained, which method {recipe.method.name} does not do; "
            "use --set method.name=full or lora, or remove data.domain_words"
        )
    texts = [data.examples.texts[i] for i in data.positions["train"]]
    words = broken_words(texts, network.tokenizer, count=wanted) if isinstance(wanted, int) else wanted
    added = add_words(network.classifier, network.tokenizer, words)
    run.record("note", message=f"added {len(added.words)} words to the vocabulary")
    return added


def _apply_method(recipe: Recipe, network: Network, new_rows: Sequence[int]) -> Mapping[str, Any]:
    """Freeze, wrap or leave the network as the method asks; return the adapter's options in force."""
    from finesmith.models.layers import freeze_lowest

    if recipe.method.freeze_layers:
        freeze_lowest(network.classifier, recipe.method.freeze_layers)
    if recipe.method.name == "features":
        network.module.requires_grad_(False)
    return adapting.put_adapter(recipe, network, "sequence_classification", new_rows)


def _metric(recipe: Recipe, data: Prepared, why: dict[str, str]) -> str:
    if recipe.evaluate.metric is None:
        why["evaluate.metric"] = f"the default of {data.task.name}"
        return data.task.default_metric
    judged = [name for name in data.task.metrics if name != "calibration_error"]
    if recipe.evaluate.metric not in judged:
        raise UserError(
            f"evaluate.metric is {recipe.evaluate.metric!r}, by which {data.task.name} cannot be judged; "
            f"choose one of {', '.join(judged)}"
        )
    if recipe.evaluate.metric in NEEDS_CONTRAST and data.test.distinct < 2:
        raise UserError(
            f"evaluate.metric is {recipe.evaluate.metric}, which is undefined on a test split with one answer only; "
            "choose another metric, or a test split that holds more than one"
        )
    return recipe.evaluate.metric


# Undefined where all targets are equal.
NEEDS_CONTRAST = frozenset({"auroc", "mcc", "spearman", "pearson", "r2"})


def peak_learning_rate(recipe: Recipe, report: LoadReport, why: dict[str, str], scale: float = 1.0) -> float:
    """Return the learning rate that the recipe names, or the default of method and size, with the reason in `why`.

    scale: times the usual rates, for a task that needs others.
    """
    rate = recipe.train.learning_rate
    if isinstance(rate, float):
        return rate
    default, reason = default_learning_rate(recipe.method.name, report.parameters)
    why["train.learning_rate"] = reason if scale == 1 else f"{scale:g} times {reason}, as {recipe.task} needs"
    return default * scale


FEWEST_UPDATES = 250
EVALUATIONS = 8


def duration(recipe: Recipe, examples: int, why: dict[str, str]) -> tuple[float, int]:
    """Return epochs and evaluations per epoch: few examples are seen more often, early stopping guards the rest."""
    epochs = recipe.train.epochs
    if epochs is None:
        epochs = float(min(10, max(2, -(-FEWEST_UPDATES * recipe.train.batch_size // examples))))
        few = f"{examples:,} examples are few" if epochs > 2 else f"{examples:,} examples are plenty"
        why["train.epochs"] = (
            f"{few} for at least {FEWEST_UPDATES} updates of {recipe.train.batch_size} in 2 to 10 epochs"
        )
    evaluations = recipe.train.evaluations
    if evaluations is None:
        evaluations = max(1, round(EVALUATIONS / epochs))
        why["train.evaluations"] = f"about {EVALUATIONS} in the whole training"
    return epochs, evaluations


def _pooling(recipe: Recipe, base: Base, network: Network) -> Pooling:
    from finesmith.models.forward import DECODERS

    if recipe.method.pooling != "auto":
        return recipe.method.pooling
    if base.pooling in {"mean", "cls", "last"}:
        return base.pooling  # type: ignore[return-value]
    return "last" if network.classifier.config.model_type in DECODERS else "mean"


def fit_memory(
    recipe: Recipe, network: Network, lengths: npt.NDArray[np.int64], device: Device, output_width: int = 0
) -> tuple[int, Mapping[str, Any]]:
    """Return the micro-batch that fits into the memory that is free now, and the forecast for it in bytes.

    lengths: of the training rows, in tokens; output_width: how many values the head returns for every token, if so.
    """
    from finesmith.train.memory import estimate, micro_batch

    lengths = lengths + network.prompt
    shape = memory_shape(recipe, network, output_width)
    free, dtype, padded = device.memory_free, device.dtype, not network.ragged
    asked = recipe.train.micro_batch_size
    if asked is None:
        found = micro_batch(
            shape, lengths=lengths, batch_size=recipe.train.batch_size, free=free, dtype=dtype, padded=padded
        )
        return found.size, found.estimate.as_json()
    longest = sorted(lengths.tolist(), reverse=True)[:asked]
    return asked, estimate(shape, longest, free=free, dtype=dtype, padded=padded).as_json()


def memory_shape(recipe: Recipe, network: Network, output_width: int) -> Shape:
    """Return what the memory of training this network depends on."""
    from finesmith.train.memory import shape_of

    parameters = [(p.numel(), p.requires_grad) for p in network.module.parameters()]
    shape = shape_of(
        network.classifier.config.get_text_config(),
        parameters=sum(n for n, _ in parameters),
        trainable=sum(n for n, on in parameters if on),
        output_width=output_width,
        adapter_width=adapting.kept_per_token(recipe, network),
    )
    return replace(shape, recomputed=recipe.train.activation_checkpointing)


PATHS = ("data.train", "data.validation", "data.test", "model.base")


def fingerprint(resolved: Recipe, summary: Mapping[str, Any], weights: str, device: Device) -> dict[str, str]:
    """Return what must be the same for a resume: the resolved recipe, data, base model, library versions, threads.

    Sources and base model count by content, so a moved file is the same file.
    """
    from finesmith.recipe import flatten
    from finesmith.run import versions

    flat = {k: v for k, v in flatten(resolved).items() if not k.startswith("output.") and k not in PATHS}
    sources = [source["sha256"] for source in summary["sources"]]
    return {
        **{f"recipe {key}": json.dumps(value, default=str) for key, value in flat.items()},
        "data": hashlib.sha256(json.dumps(sources).encode()).hexdigest(),
        "base model": weights,
        "device": f"{device.device} {device.dtype}",
        "threads": str(device.threads),
        **versions(),
    }


def model_facts(
    recipe: Recipe,
    base: Base,
    network: Network,
    report: LoadReport,
    device: Device,
    forecast: Mapping[str, Any],
    options: Mapping[str, Any],
    pooling: str | None,
) -> dict[str, Any]:
    """Return the content of `model.json`."""
    import torch

    from finesmith.models import varlen

    dtype = torch.bfloat16 if device.dtype == "bfloat16" else torch.float32
    counts = [(p.numel(), p.requires_grad) for p in network.module.parameters()]
    return {
        "base": base.name,
        "base_sha256": base.sha256,
        "revision": base.revision,
        "architecture": report.architecture,
        "parameters": report.parameters,
        "trainable": sum(n for n, on in counts if on),
        "method": recipe.method.name,
        "method_options": dict(options),
        "attention": {
            "kind": "ragged" if network.ragged else "padded",
            "why": network.why,
            "kernel": varlen.told(network, dtype),
        },
        "precision": device.dtype,
        "activation_checkpointing": network.recompute,
        "compiled": network.compiled,
        "device": asdict(device),
        "pooling": pooling,
        "dropout": dropout_of(network),
        "memory": forecast,
        "loaded": report.loaded,
        "missing": report.missing,
        "unexpected": report.unexpected,
        "new": report.new,
    }


def dropout_of(network: Network) -> dict[str, float]:
    """Return every dropout probability of the model's configuration."""
    from finesmith.models.load import DROPOUT_KEYS

    config = network.classifier.config.to_dict()
    return {key: config[key] for key in DROPOUT_KEYS if config.get(key) is not None}


def require_known(base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError when the tokenizer makes ids that the model has no vectors for."""
    from finesmith.models.native_config import config_of

    rows, words = config_of(base).get_text_config().vocab_size, len(tokenizer)
    if words > rows:
        raise ModelError(
            f"the tokenizer of {base.name} knows {words:,} tokens, but the model has {rows:,} vectors; "
            "they do not belong together: name another model.base"
        )
