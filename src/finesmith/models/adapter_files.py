"""Adapters on disk, in peft's form: written so that the untouched base model and peft alone give the same outputs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError
from finesmith.models.adapter_kinds import (
    START_A,
    START_B,
    TASK_TYPES,
    Purpose,
    is_pissa,
    lora_layers,
    run_prompted,
)
from finesmith.models.save import standard_attention
from finesmith.models.screen import SMALL_JSON, read_object, screen_adapter

if TYPE_CHECKING:
    from torch import Tensor

    from finesmith.models.forward import Network
    from finesmith.models.load import Base

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What peft keeps as sets, whose order differs from process to process.
UNORDERED = ("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save")
# What an adapter of each kind may say of itself; anything else could load code or files.
HARMLESS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "IA3": {"auto_mapping": (None,), "init_ia3_weights": (True, False, None)},
    "PROMPT_TUNING": {
        "auto_mapping": (None,),
        "prompt_tuning_init": ("RANDOM", None),
        "prompt_tuning_init_text": (None,),
        "tokenizer_name_or_path": (None,),
        "tokenizer_kwargs": (None, {}),
    },
}


def save_adapter(network: Network, folder: Path) -> None:
    """Save a network's adapter, its base model's configuration and its tokenizer.

    Of PiSSA the way from its first matrices is saved, as a LoRA of twice the rank on the untouched base weights. The
    configuration names the class of the whole model and the size of its vocabulary.
    """
    from peft import PeftModel

    module = network.module
    if not isinstance(module, PeftModel):
        raise ModelError("the network has no adapter to save; save the model whole")
    folder.mkdir(parents=True, exist_ok=True)
    with standard_attention(network):
        # Only rows that are trained are saved of the embeddings, not the whole of a table that has grown.
        module.save_pretrained(str(folder), save_embedding_layers=False)
        config = network.classifier.config
        config.architectures = [type(network.classifier).__name__]
        config.save_pretrained(folder)
    said = read_object(folder / CONFIG, SMALL_JSON)
    said["auto_mapping"] = None
    said |= {key: sorted(said[key]) for key in UNORDERED if isinstance(said.get(key), list)}
    if is_pissa(module):
        _as_lora(module, folder / WEIGHTS)
        said |= _doubled(said)
    (folder / CONFIG).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")
    network.tokenizer.save_pretrained(folder)
    # peft writes a README of its own; the model card takes its place.
    (folder / "README.md").unlink(missing_ok=True)


def _as_lora(module: Any, path: Path) -> None:
    """Rewrite PiSSA's matrices: B A - B0 A0 is the product of [B, -B0] and [A; A0]."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    names = {id(layer): name for name, layer in module.named_modules()}
    for layer in lora_layers(module):
        key = names[id(layer)]
        first, second = f"{key}.lora_A.weight", f"{key}.lora_B.weight"
        start_A, start_B = layer.get_buffer(START_A).cpu(), layer.get_buffer(START_B).cpu()
        tensors[first] = torch.cat([tensors[first], start_A]).contiguous()
        tensors[second] = torch.cat([tensors[second], -start_B], dim=1).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def _doubled(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of twice the rank with the same scaling."""
    grown = math.sqrt(2) if said.get("use_rslora") else 2
    ranks, alphas = said.get("rank_pattern") or {}, said.get("alpha_pattern") or {}
    return {
        "r": 2 * said["r"],
        "lora_alpha": grown * said["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in ranks.items()},
        "alpha_pattern": {name: grown * alpha for name, alpha in alphas.items()},
        "init_lora_weights": True,
    }


def screen_any_adapter(folder: Path) -> str:
    """Look at an adapter's own files; return peft's name of its kind.

    Raises ModelError when it has no safetensors weights, is of a kind that finesmith does not make, or asks for what an
    adapter must not.
    """
    path = folder / CONFIG
    said = read_object(path, SMALL_JSON)
    kind = str(said.get("peft_type"))
    if kind not in HARMLESS:
        screen_adapter(folder)
        return kind
    from finesmith.models.patterns import NAME_REPEATS, slow
    from finesmith.models.screen import _header, _plain_files

    _plain_files(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder / WEIGHTS} is missing; other forms of adapters are not opened (pickles can run code): "
            "copy it again"
        )
    _header(folder / WEIGHTS)
    wrong = [key for key, allowed in HARMLESS[kind].items() if said.get(key) not in allowed]
    for key in ("target_modules", "feedforward_modules", "exclude_modules"):
        if isinstance(said.get(key), str) and slow(said[key], repeats=NAME_REPEATS):
            wrong.append(key)
    count = said.get("num_virtual_tokens")
    if kind == "PROMPT_TUNING" and not (type(count) is int and 0 < count <= 100_000):
        wrong.append("num_virtual_tokens")
    if wrong:
        shown = json.dumps(said.get(wrong[0]))[:80]
        raise ModelError(
            f"{path}: {wrong[0]} is {shown}, which finesmith never writes; the adapter is damaged or not its own"
        )
    return kind


def purpose_of(folder: Path) -> Purpose:
    """Say what an adapter in `folder` is for, from its own configuration and the model's beside it.

    Raises ModelError when they do not say.
    """
    said = read_object(folder / CONFIG, SMALL_JSON).get("task_type")
    for purpose, name in TASK_TYPES.items():
        if name is not None and name == said:
            return purpose
    architectures = read_object(folder / "config.json", SMALL_JSON).get("architectures") or [""]
    if said is None and str(architectures[0]).endswith("ForMaskedLM"):
        return "masked"
    raise ModelError(
        f"{folder / CONFIG}: task_type is {str(said)[:80]!r}, expected one of "
        f"{', '.join(name for name in TASK_TYPES.values() if name)}; tune again with this version of finesmith"
    )


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Return the base model, grown to the adapter's vocabulary, with the adapter in `folder`.

    Raises ModelError when the adapter cannot be loaded whole.
    """
    from peft import PeftModel

    screen_any_adapter(folder)
    size = read_object(folder / "config.json", SMALL_JSON).get("vocab_size")
    if isinstance(size, int) and size > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(size, mean_resizing=False)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the adapter in {folder} cannot be loaded: {str(error)[:300]}") from error
    doubts = [str(w.message).splitlines()[0] for w in told if issubclass(w.category, UserWarning)]
    if doubts:
        raise ModelError(f"the adapter in {folder} cannot be loaded whole: {doubts[0][:300]}")
    if not trainable:
        wrapped.requires_grad_(False)
    return wrapped


def wear(network: Network, folder: Path) -> None:
    """Put the adapter in `folder` on a network that holds its base model.

    Raises ModelError when the adapter cannot be loaded whole.
    """
    network.module = load_adapter(network.classifier, folder)
    if network.module.active_peft_config.is_prompt_learning:  # type: ignore[union-attr]
        run_prompted(network)


def require_base(base: Base, sha256: str | None, folder: Path) -> None:
    """Refuse a base model that is not the one whose weights had this SHA-256 when the adapter was trained.

    Nothing can be said where either is not known: a hub id has no hash of its weights.

    Raises:
        ModelError: the base model is named.
    """
    if sha256 is not None and base.sha256 is not None and base.sha256 != sha256:
        raise ModelError(
            f"{base.name} is not the model that the adapter in {folder} was trained on: its weights have SHA-256 "
            f"{base.sha256[:16]}…, expected {sha256[:16]}…; bring the earlier weights back, or tune again"
        )


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a saved adapter, by peft's names."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)
