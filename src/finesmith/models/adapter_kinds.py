"""Adapters through peft: the body frozen, a few new numbers trained; LoRA and its kin, IA3 and prompt tuning.

Of every kind but prompt tuning the new numbers live inside the model's own layers, so a network runs as before, ragged
where it did. Prompt tuning puts vectors before every text, for which `prompted` is the way to run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from finesmith.errors import ModelError
from finesmith.models.patterns import NAME_REPEATS, slow

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

    from finesmith.models.forward import Network
    from finesmith.types import Batch

Kind = Literal["lora", "rslora", "dora", "pissa", "ia3", "prompt"]
Model = TypeVar("Model", bound="Network")
Purpose = Literal["sequence_classification", "token_classification", "causal", "masked", "seq2seq", "embedding"]

# What peft calls each purpose; it has no name for masked-language models.
TASK_TYPES: Mapping[Purpose, str | None] = {
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "causal": "CAUSAL_LM",
    "masked": None,
    "seq2seq": "SEQ_2_SEQ_LM",
    "embedding": "FEATURE_EXTRACTION",
}
# The purposes whose head has random first values, is trained whole and is saved beside the adapter.
NEW_HEADS: frozenset[Purpose] = frozenset({"sequence_classification", "token_classification"})
PROMPTED: frozenset[Purpose] = frozenset({"sequence_classification", "token_classification", "causal", "seq2seq"})

LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
DEFAULTS: Mapping[Kind, Mapping[str, Any]] = {
    "lora": LORA,
    # alpha / sqrt(r) is at the usual rank what alpha / r is for lora, so that the same learning rates suit both.
    "rslora": {**LORA, "lora_alpha": 8, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
    "pissa": {**LORA, "lora_alpha": 16, "init_lora_weights": "pissa"},
    "ia3": {},
    "prompt": {"num_virtual_tokens": 20},
}
# Options that say which kind it is, by the kind whose they are.
TELLING: Mapping[str, Kind] = {"use_rslora": "rslora", "use_dora": "dora", "init_lora_weights": "pissa"}
# Where IA3 goes, keys, values and what enters the last product of the feed-forward part (Liu et al. 2022,
# arXiv:2205.05638), in families that peft has no list for.
IA3_PLACES: Mapping[str, tuple[list[str], list[str]]] = {
    "camembert": (["key", "value", "output.dense"], ["output.dense"]),
    "distilbert": (["k_lin", "v_lin", "lin2"], ["lin2"]),
    "electra": (["key", "value", "output.dense"], ["output.dense"]),
    "smollm3": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "xlm-roberta": (["key", "value", "output.dense"], ["output.dense"]),
}
# PiSSA's first matrices stay with each layer under these names: what is saved is the way from them.
START_A, START_B = "pissa_start_A", "pissa_start_B"


def add_adapter(
    network: Network,
    kind: Kind,
    options: Mapping[str, Any],
    *,
    seed: int,
    purpose: Purpose = "sequence_classification",
    new_rows: Sequence[int] = (),
) -> Mapping[str, Any]:
    """Wrap the network's model with an adapter, in place; return the options in force.

    `options` are peft's own (LoraConfig, IA3Config or PromptTuningConfig). Modules of a new head and those with random
    first values are trained and saved whole beside the adapter, which would otherwise fit only the random numbers that
    it was made with. `new_rows` are rows of the embeddings to train too (of words added to the vocabulary), in the
    output embeddings as well.

    At this moment the model's outputs are those without the adapter (PiSSA: to rounding); prompt tuning changes them,
    and makes the network run one length at a time. Raises ModelError when the kind does not suit the model or the
    purpose, or when peft refuses the options.
    """
    import torch
    from peft import get_peft_model

    settings = {**DEFAULTS[kind], **options}
    _refuse_contradictions(kind, options)
    _refuse_slow(settings)
    if kind == "pissa":
        _refuse_rounding(network.classifier)
    if new_rows and kind in ("ia3", "prompt"):
        raise ModelError(
            f"data.domain_words adds vectors that must be trained, which method.name {kind} does not do; "
            "use lora, rslora, dora or pissa, or remove data.domain_words"
        )
    whole = sorted(_whole_modules(network, purpose) | set(settings.get("modules_to_save") or ()))
    if kind == "prompt":
        _refuse_prompt(network, purpose, whole, settings["num_virtual_tokens"])
    elif whole:
        settings["modules_to_save"] = whole
    given = {**settings, **_unsaid(kind, network.classifier, settings)}
    if new_rows:
        given["trainable_token_indices"] = _token_rows(network.classifier, new_rows)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            # peft adds names of its own to the lists it is given.
            config = _config(kind, TASK_TYPES[purpose], given)
            wrapped = get_peft_model(network.classifier, config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"method.lora is {_brief(options)}, which peft refuses: {str(error)[:400]}") from error
    doubts = [str(w.message).splitlines()[0] for w in told if issubclass(w.category, UserWarning)]
    if doubts:
        raise ModelError(f"method.lora is {_brief(options)}, which peft doubts: {doubts[0][:200]}")
    network.module = wrapped
    if kind == "pissa":
        _remember_start(wrapped)
    if kind == "prompt":
        _only_prompt_and_head(wrapped, purpose)
        _start_from_words(wrapped, seed)
        run_prompted(network)
    return settings


def run_prompted(network: Network) -> None:
    """Have a network that holds a tuned prompt run by its wrapper, one length at a time."""
    network.prompt = network.module.active_peft_config.num_virtual_tokens  # type: ignore[union-attr, assignment]
    network.ragged, network.grouped = False, True
    network.why = "one length at a time: prompt tuning puts vectors before every text, which has no ragged form"
    network.classifier.set_attn_implementation("sdpa" if network.classifier._supports_sdpa else "eager")


def _config(kind: Kind, task_type: str | None, given: Mapping[str, Any]) -> PeftConfig:
    from peft import IA3Config, LoraConfig, PromptTuningConfig

    kinds = {"ia3": IA3Config, "prompt": PromptTuningConfig}
    copied = {key: list(value) if isinstance(value, list) else value for key, value in given.items()}
    return kinds.get(kind, LoraConfig)(task_type=task_type, **copied)  # type: ignore[no-any-return]


def _refuse_contradictions(kind: Kind, options: Mapping[str, Any]) -> None:
    for key, other in TELLING.items():
        value = options.get(key)
        says = isinstance(value, str) and value.startswith("pissa") if other == "pissa" else value
        # LoRA took these switches before the kinds had names.
        allowed = kind == other or (kind == "lora" and other != "pissa") or (kind == "dora" and other == "rslora")
        if says and not allowed:
            raise ModelError(f"method.lora.{key} is {value!r}, but method.name is {kind}; set it to {other}")
        if key in options and not says and kind == other:
            raise ModelError(f"method.lora.{key} is {value!r}, but method.name is {kind}; remove the one or the other")


def _refuse_slow(settings: Mapping[str, Any]) -> None:
    for key in ("target_modules", "feedforward_modules"):
        pattern = settings.get(key)
        if isinstance(pattern, str) and slow(pattern, repeats=NAME_REPEATS):
            raise ModelError(
                f"method.lora.{key} is {pattern[:80]!r}, a pattern that could take for ever to match; "
                "list the names, as in [query, value]"
            )


def _refuse_rounding(model: nn.Module) -> None:
    """Refuse base weights of too few digits: what PiSSA takes out of them could not be put back."""
    import torch

    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype != torch.float32}
    if found:
        raise ModelError(
            f"method.name pissa takes its matrices out of the base weights, which are {', '.join(sorted(found))}; "
            "expected float32, where that does not round them: load the model in float32, or use lora"
        )


def _refuse_prompt(network: Network, purpose: Purpose, whole: Sequence[str], count: int) -> None:
    import inspect

    model = network.classifier
    why = None
    if purpose not in PROMPTED:
        why = f"peft has no prompt tuning for {purpose.replace('_', ' ')} models"
    elif "inputs_embeds" not in inspect.signature(model.forward).parameters:
        why = f"{type(model).__name__} takes no vectors in place of tokens"
    elif beyond := [name for name in whole if name.split(".")[0] not in ("classifier", "score")]:
        why = f"{', '.join(beyond[:3])} must be trained too, which prompt tuning does not do"
    if why is not None:
        raise ModelError(f"method.name is prompt, but {why}; use method.name=lora")
    most = model.config.to_dict().get("max_position_embeddings")
    if most is not None and not 0 < count < most:
        raise ModelError(f"method.prompt_tokens is {count}, expected 1 to {most - 1} for this model")


def _unsaid(kind: Kind, model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what peft must be told about the model and would only warn about, or not know."""
    from transformers.pytorch_utils import Conv1D

    if kind == "prompt":
        return {}
    unsaid: dict[str, Any] = {}
    if any(isinstance(module, Conv1D) for module in model.modules()):
        unsaid["fan_in_fan_out"] = True
    if kind == "ia3" and "target_modules" not in settings and model.config.model_type in IA3_PLACES:
        targets, inputs = IA3_PLACES[model.config.model_type]
        unsaid |= {"target_modules": list(targets), "feedforward_modules": list(inputs)}
    return unsaid


def _whole_modules(network: Network, purpose: Purpose) -> set[str]:
    """Return the modules that hold a new head, or tensors that were not loaded, where peft does not see them itself.

    A module that holds the embeddings of a language model is none of them: a copy would come untied.
    """
    from finesmith.models.layers import head_names

    heads: set[str] = set()
    if purpose in NEW_HEADS:
        heads = {name.split(".")[0] for name in head_names(network.classifier)}
    fresh = {name.rpartition(".")[0] for name in network.fresh if name.split(".")[0] not in heads}
    tables = {name for name, _ in _tables(network.classifier)}
    fresh = {name for name in fresh if not any(table == name or table.startswith(f"{name}.") for table in tables)}
    # Of sequence classifiers peft knows the heads of these names before it looks for places; of others only after.
    known = {"classifier", "score"} if purpose == "sequence_classification" else set()
    return (heads | fresh) - known - {""}


def _tables(model: Any) -> list[tuple[str, Any]]:
    """Return the input embeddings and, where there are any, the output embeddings, with their names."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [(name, module) for end in ends for name, module in model.named_modules() if module is end]


def _token_rows(model: Any, rows: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows to train by the name of their table, a tied table once.

    Raises ModelError for an output layer with a bias, which peft's layer for trained rows leaves out.
    """
    (first, table), *outputs = _tables(model)
    found = {first: sorted(rows)}
    for name, output in outputs:
        if output.bias is not None:
            raise ModelError(
                f"data.domain_words adds vectors that must be trained, but peft drops the bias of {name} when it does "
                "so beside an adapter; use method.name=full, or remove data.domain_words"
            )
        if output.weight is not table.weight:
            found[name] = sorted(rows)
    return found


def _remember_start(wrapped: nn.Module) -> None:
    """Keep PiSSA's first matrices as buffers that move with the layer and are in no checkpoint."""
    for layer in lora_layers(wrapped):
        for name, factors in ((START_A, layer.lora_A), (START_B, layer.lora_B)):
            layer.register_buffer(name, factors["default"].weight.detach().clone(), persistent=False)


def _only_prompt_and_head(wrapped: nn.Module, purpose: Purpose) -> None:
    """Freeze what peft leaves trainable beside a prompt: the output layer of a language model, say."""
    for name, parameter in wrapped.named_parameters():
        head = purpose in NEW_HEADS and ".modules_to_save." in name
        parameter.requires_grad_(name.startswith("prompt_encoder.") or head)


def _start_from_words(wrapped: Any, seed: int) -> None:
    """Start the vectors of a prompt from those of tokens drawn at random (Lester et al. 2021, arXiv:2104.08691)."""
    import torch

    vectors, words = wrapped.prompt_encoder["default"].embedding.weight, wrapped.word_embeddings.weight
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(words), (len(vectors),), generator=generator)
    with torch.no_grad():
        vectors.copy_(words[drawn.to(words.device)])


def lora_layers(module: nn.Module) -> list[Any]:
    """Return the layers that LoRA, or a kind of it, has replaced."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def kept_per_token(module: nn.Module) -> int:
    """Return how many values the adapters of a module keep of every token for the way back.

    Read off peft 0.21's layers: LoRA keeps its few inner values, and a copy of its input where that is dropped out;
    DoRA keeps its own output and the layer's beside them; IA3 keeps what it scales.
    """
    from peft.tuners.ia3 import IA3Layer
    from torch import nn

    kept = 0
    for layer in lora_layers(module):
        for name, inner in layer.lora_A.items():
            silent = isinstance(layer.lora_dropout[name], nn.Identity) or layer.lora_dropout[name].p == 0
            kept += layer.r[name] + (0 if silent else inner.in_features)
            kept += 2 * layer.out_features if name in layer.lora_variant else 0
    for layer in module.modules():
        if isinstance(layer, IA3Layer):
            kept += layer.in_features if layer.is_feedforward else layer.out_features
    return kept


def start_of(module: nn.Module) -> str:
    """Return the SHA-256 of the matrices that PiSSA took out of the base weights."""
    import hashlib

    digest = hashlib.sha256()
    for layer in lora_layers(module):
        for name in (START_A, START_B):
            digest.update(layer.get_buffer(name).cpu().numpy().data)
    return digest.hexdigest()


def is_pissa(module: nn.Module) -> bool:
    """Whether the module holds PiSSA matrices over base weights that lack them."""
    return any(START_A in dict(layer.named_buffers(recurse=False)) for layer in lora_layers(module))


@contextmanager
def adapter_off(network: Network) -> Iterator[None]:
    """Let the network compute what its base model did, as long as the block runs.

    New heads and new embeddings are those before training. What is trainable is the same afterwards. Raises ModelError
    for a network without an adapter.
    """
    from peft import PeftModel

    if not isinstance(network.module, PeftModel):
        raise ModelError("the network has no adapter to switch off; keep a copy of the base model as the reference")
    module = network.module
    trainable = {id(p): p.requires_grad for p in module.parameters()}
    try:
        if is_pissa(module) or module.active_peft_config.is_prompt_learning:
            with _without_auxiliaries(module), _swapped(module):
                # Without its wrapper the model puts nothing before a text. peft's own switch fails on classifiers.
                network.module = network.classifier if module.active_peft_config.is_prompt_learning else module
                yield
        else:
            with module.disable_adapter():
                yield
    finally:
        network.module = module
        for parameter in module.parameters():
            parameter.requires_grad_(trainable[id(parameter)])


@contextmanager
def before_tuning(network: Model, load: Callable[[], Model]) -> Iterator[Model]:
    """Yield a network as it was before tuning: the same with its adapter off, or else what `load` returns."""
    if _has_adapter(network):
        with adapter_off(network):
            yield network
    else:
        yield load()


def _has_adapter(network: Network) -> bool:
    # Without an adapter peft, which takes seconds to import, was never needed.
    return "peft" in sys.modules and isinstance(network.module, sys.modules["peft"].PeftModel)


@contextmanager
def _without_auxiliaries(module: nn.Module) -> Iterator[None]:
    """Put the heads and embeddings from before training in the places of the trained ones."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrappers = [each for each in module.modules() if isinstance(each, AuxiliaryTrainingWrapper)]
    for wrapper in wrappers:
        wrapper.enable_adapters(False)
    try:
        yield
    finally:
        for wrapper in wrappers:
            wrapper.enable_adapters(True)


@contextmanager
def _swapped(module: nn.Module) -> Iterator[None]:
    """Put PiSSA's first matrices in place of the trained ones: without any the base weights are not whole."""
    layers = lora_layers(module)
    pairs = [(layer.lora_A["default"].weight, layer.get_buffer(START_A)) for layer in layers]
    pairs += [(layer.lora_B["default"].weight, layer.get_buffer(START_B)) for layer in layers]
    trained = [weight.data for weight, _ in pairs]
    for weight, start in pairs:
        weight.data = start
    try:
        yield
    finally:
        for (weight, _), data in zip(pairs, trained, strict=True):
            weight.data = data


def prompted(network: Network, batch: Batch) -> Tensor:
    """Return the outputs of a network under prompt tuning: [B, C], or [T, C] of a model with an output a token.

    Sequences of one length run together, without padding. The outputs of the prompt's own places are left out.
    """
    import torch
    from transformers.utils import logging

    from finesmith.models.attention import layout_of

    outputs: list[Tensor] = []
    # It warns that padding is not told from vectors; there is none.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    for first, count, length in layout_of(batch.lengths).groups:
        span = slice(first, first + count * length)
        inputs = {"input_ids": batch.tokens[span].view(count, length)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if batch.segments is not None:
            inputs["token_type_ids"] = batch.segments[span].view(count, length)
        found: Tensor = network.module(**inputs).logits
        outputs.append(found if found.dim() == 2 else found[:, -length:].flatten(0, 1))
    logging.set_verbosity(verbosity)
    return torch.cat(outputs)


def _brief(options: Mapping[str, Any]) -> str:
    shown = str(dict(options))
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
