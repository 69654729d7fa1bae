"""Depth of each parameter: what freezing the lowest layers and per-layer learning rates need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finesmith.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> list[str]:
    """Return the qualified names of the model's transformer blocks, lowest first.

    Raises ModelError when the blocks cannot be told (no list of `num_hidden_layers` modules).
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{i}" for i in range(count)]
    raise ModelError(
        f"cannot tell the layers of {type(model).__name__} (expected a list of {count} modules); "
        "leave method.layer_decay at 1 and method.freeze_layers at 0"
    )


def depths(model: PreTrainedModel) -> dict[str, int]:
    """Map each parameter's name to its depth: 0 embeddings, 1 to L the blocks, L + 1 whatever follows, the head too."""
    names = blocks(model)
    places = {f"{name}.": i + 1 for i, name in enumerate(names)}
    embedding_ids = _embedding_parameters(model)
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        inside = [depth for prefix, depth in places.items() if name.startswith(prefix)]
        found[name] = inside[0] if inside else 0 if id(parameter) in embedding_ids else len(names) + 1
    return found


def _embedding_parameters(model: PreTrainedModel) -> set[int]:
    """Return the ids of parameters that belong to modules called before the first block: embeddings and their norms."""
    from torch import nn

    owners: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if "embed" in last:
            owners.append(module)
    return {id(p) for owner in owners for p in owner.parameters()}


def freeze_lowest(model: PreTrainedModel, count: int) -> list[str]:
    """Freeze the embeddings and the lowest `count` blocks; return the names of what was frozen.

    Raises ModelError when the model has fewer blocks.
    """
    total = len(blocks(model))
    if count > total:
        raise ModelError(f"method.freeze_layers is {count}, but the model has {total} layers; expected 0 to {total}")
    frozen = [name for name, depth in depths(model).items() if depth <= count]
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def head_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters outside the pre-trained body: the task's head."""
    prefix = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(prefix)]


def final_linear(model: PreTrainedModel) -> nn.Linear:
    """Return the linear layer whose outputs are the logits.

    Raises ModelError when the head has none.
    """
    from torch import nn

    prefix = f"{model.base_model_prefix}."
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(prefix) and module.out_features == model.num_labels
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear layer with {model.num_labels} outputs in its head")
    return found[-1]


@contextmanager
def capture_input(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the first argument of every call to `module` while the block runs."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
