"""What is done to the transformer blocks of a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError, UserError

if TYPE_CHECKING:
    from torch import nn

    from finesmith.models.forward import Network


def compile_blocks(network: Network) -> None:
    """Have torch's compiler make one piece, or a few, of each block for training, in place.

    Blocks are compiled at the first step, once for batches of all shapes. Evaluating and writing go on without. Comes
    before `recompute_blocks`. Raises ModelError where the blocks cannot be told, and UserError where a CPU's code
    cannot be compiled because there is no C++ compiler.
    """
    import torch
    from transformers import AttentionInterface

    from finesmith.models.attention import RAGGED, ragged_attention
    from finesmith.models.forward import runs_layers_itself
    from finesmith.models.token_heads import TokenNetwork

    if network.device.type == "cpu":
        _require_compiler()
    # What is attended to depends on the lengths of every batch, so attention stands between two compiled pieces.
    AttentionInterface.register(RAGGED, torch.compiler.disable(ragged_attention))  # type: ignore[no-untyped-call]
    model: Any = network.classifier
    blocks = model.base_model.encoder.layer if runs_layers_itself(network) else called_blocks(network)
    for block in blocks:
        # The same random numbers as without, so that dropout drops the same.
        quick = torch.compile(block.forward, dynamic=True, options={"fallback_random": True})
        block.forward = partial(_compiled, block.forward, quick, block)
    network.compiled = True
    if isinstance(network, TokenNetwork):
        network.walked = False


def _compiled(
    forward: Callable[..., Any], quick: Callable[..., Any], block: nn.Module, /, *given: Any, **named: Any
) -> Any:
    """Call a block as it was compiled, where it is trained."""
    import torch
    from torch._dynamo.exc import TorchDynamoException

    if not (block.training and torch.is_grad_enabled()):
        return forward(*given, **named)
    try:
        return quick(*given, **named)
    except TorchDynamoException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"train.compile is true, but torch could not compile a {type(block).__name__}: {lines[0][:200]}; "
            "leave train.compile at false"
        ) from error


def _require_compiler() -> None:
    import os
    import shutil

    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name):
        raise UserError(
            "train.compile is true, but no C++ compiler is there, which torch needs on a CPU; install g++, or leave "
            "train.compile at false"
        )


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
            f"{type(network.classifier).__name__} has no list of layers; leave train.activation_checkpointing and "
            "train.compile at false"
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
