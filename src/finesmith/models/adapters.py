"""Adapters through peft: the body frozen, small matrices and the head trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError

if TYPE_CHECKING:
    from finesmith.models.forward import Network

DEFAULTS: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def add_lora(network: Network, options: Mapping[str, Any], *, seed: int) -> Mapping[str, Any]:
    """Wrap the network's model with LoRA and train its head in full; return the options in force.

    `options` are peft's own (`LoraConfig`). Raises ModelError when peft refuses them or finds nothing to adapt.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    settings = {**DEFAULTS, **options}
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            config = LoraConfig(task_type=TaskType.SEQ_CLS, **settings)
            wrapped = get_peft_model(network.classifier, config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"method.lora is {dict(options)}, which peft refuses: {error}") from error
    doubts = [str(w.message).splitlines()[0] for w in told if issubclass(w.category, UserWarning)]
    if doubts:
        raise ModelError(f"method.lora is {dict(options)}, which peft doubts: {doubts[0][:200]}")
    network.module = wrapped
    return settings
