"""Adapters through peft: the body frozen, small matrices and the head trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError
from finesmith.models.patterns import NAME_REPEATS, slow

if TYPE_CHECKING:
    from finesmith.models.forward import Network

DEFAULTS: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def add_lora(network: Network, options: Mapping[str, Any], *, seed: int) -> Mapping[str, Any]:
    """Wrap the network's model with LoRA and train its head in full; return the options in force.

    The head's modules and those with random first values are trained and saved whole beside the adapter, which would
    otherwise fit only the random numbers that it was made with. `options` are peft's own (`LoraConfig`). Raises
    ModelError when peft refuses them or finds nothing to adapt.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    settings = {**DEFAULTS, **options}
    if isinstance(settings["target_modules"], str) and slow(settings["target_modules"], repeats=NAME_REPEATS):
        raise ModelError(
            f"method.lora.target_modules is {settings['target_modules'][:80]!r}, a pattern that could take for ever to "
            "match; list the names, as in [query, value]"
        )
    whole = sorted(_whole_modules(network) | set(settings.get("modules_to_save") or ()))
    if whole:
        settings["modules_to_save"] = whole
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            # peft adds names of its own to the list it is given.
            config = LoraConfig(task_type=TaskType.SEQ_CLS, **{**settings, "modules_to_save": list(whole) or None})
            wrapped = get_peft_model(network.classifier, config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"method.lora is {dict(options)}, which peft refuses: {error}") from error
    doubts = [str(w.message).splitlines()[0] for w in told if issubclass(w.category, UserWarning)]
    if doubts:
        raise ModelError(f"method.lora is {dict(options)}, which peft doubts: {doubts[0][:200]}")
    network.module = wrapped
    return settings


def _whole_modules(network: Network) -> set[str]:
    """Return the modules that hold the head, or tensors that were not loaded, where peft does not see them itself."""
    from finesmith.models.layers import head_names

    heads = {name.split(".")[0] for name in head_names(network.classifier)}
    fresh = {name.rpartition(".")[0] for name in network.fresh if name.split(".")[0] not in heads}
    return (heads | fresh) - {"classifier", "score", ""}
