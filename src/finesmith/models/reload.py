"""Load a tuned model back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError
from finesmith.models.load import find, load_classifier, load_tokenizer

if TYPE_CHECKING:
    import torch

    from finesmith.models.forward import Network


def reload_network(
    folder: Path, *, adapter_on: str | None, outputs: int, problem: Any, labels: tuple[str, ...] | None, device: str
) -> Network:
    """Load the network of a saved model; `adapter_on` names the base model under an adapter, None for a whole model.

    Raises ModelError when the folder or the base model is missing or does not fit.
    """
    own = find(str(folder)) if adapter_on is None else find(adapter_on)
    tokenizer = load_tokenizer(find_tokenizer(folder))
    network, report = load_classifier(
        own, tokenizer, outputs=outputs, problem=problem, labels=labels, seed=0, device=device
    )
    if adapter_on is not None:
        from peft import PeftModel

        try:
            network.module = PeftModel.from_pretrained(network.classifier, str(folder))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the adapter in {folder} cannot be loaded: {str(error)[:300]}") from error
    elif report.missing:
        raise ModelError(f"{folder} lacks the weights {', '.join(report.missing[:3])}; the folder is damaged")
    network.module.eval()
    return network


def find_tokenizer(folder: Path) -> Any:
    """Return the saved folder as a base, for its tokenizer alone."""
    from finesmith.models.load import Base

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
