"""Load a tuned model back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.errors import ModelError
from finesmith.models.adapter_files import require_base, wear
from finesmith.models.load import Base, Problem, find, load_classifier, load_tokenizer
from finesmith.models.screen import screen_tokenizer

if TYPE_CHECKING:
    import torch

    from finesmith.models.forward import Network


def reload_network(
    folder: Path,
    *,
    adapter_on: str | None,
    outputs: int,
    problem: Problem,
    labels: tuple[str, ...] | None,
    device: str,
    revision: str | None = None,
    base_sha256: str | None = None,
) -> Network:
    """Load the network of a saved model; `adapter_on` names the base model under an adapter, None for a whole model.

    `revision` is that of the base model, `base_sha256` the hash that its weights must have. Raises ModelError when
    folder or base model is missing or does not fit.
    """
    own = find(str(folder)) if adapter_on is None else find(adapter_on, revision)
    if adapter_on is not None:
        require_base(own, base_sha256, folder)
    tokenizer = load_tokenizer(find_tokenizer(folder))
    network, report = load_classifier(
        own, tokenizer, outputs=outputs, problem=problem, labels=labels, seed=0, device=device
    )
    if adapter_on is not None:
        wear(network, folder)
    else:
        # A linear head on features lies in a folder of its own; any other head is among the weights.
        lacking = report.missing if (folder / "2_Dense").is_dir() else report.missing + report.new
        if lacking:
            raise ModelError(f"{folder} lacks the weights {', '.join(lacking[:3])}; the folder is damaged")
    network.module.eval()
    return network


def find_tokenizer(folder: Path) -> Base:
    """Return the saved folder as a base, for its tokenizer alone.

    Raises ModelError when the tokenizer's files do not pass `screen_tokenizer`.
    """
    screen_tokenizer(folder)
    return Base(str(folder), folder.name, None, None, None)


def read_dense(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight [C, D] and bias [C] of a saved linear head.

    Raises ModelError when they are missing.
    """
    from safetensors.torch import load_file

    path = folder / "2_Dense" / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path} is missing; the model folder is damaged")
    tensors = load_file(path)
    return tensors["linear.weight"], tensors["linear.bias"]
