"""What is done to the transformer blocks of a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from finesmith.models.forward import Network


def recompute_blocks(network: Network) -> None:
    """Have a network compute each of its blocks again on the way back, in place, so that less is kept.

    Raises ModelError where the blocks cannot be told.
    """
    network.recompute = True
    for block in called_blocks(network):
        # The class stays, and so do the names of the tensors.
        block.forward = partial(_again, block.forward, block)


def _again(forward: Callable[..., Any], block: nn.Module, /, *given: Any, **named: Any) -> Any:
    """Call a block; what it would write into a cache while training nobody reads, and it would write it twice."""
    import torch
    from transformers import Cache

    from finesmith.models.again import again

    if torch.is_grad_enabled():
        given = tuple(None if isinstance(one, Cache) else one for one in given)
        named = {name: None if isinstance(one, Cache) else one for name, one in named.items()}
    return again(forward, block, *given, **named)


def called_blocks(network: Network) -> list[Any]:
    """Return the blocks that run by being called as modules; none where `forward` goes through the layers itself.

    Raises ModelError where they cannot be told.
    """
    from torch import nn

    from finesmith.models.forward import runs_layers_itself

    if runs_layers_itself(network):
        return []
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = _outermost(network.classifier, GradientCheckpointingLayer)
    # Few families mark their blocks otherwise than by a list of them.
    found = found or [block for several in _outermost(network.classifier, nn.ModuleList) for block in several]
    if not found:
        raise ModelError(
            f"{type(network.classifier).__name__} has no list of layers; leave train.activation_checkpointing at false"
        )
    return found


def _outermost(model: nn.Module, kind: type[Any]) -> list[Any]:
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, kind) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found
