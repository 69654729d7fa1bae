"""From a recipe to what is done to a loaded network before it is trained: the one way for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from finesmith.recipe import ADAPTERS, LORA_KINDS

if TYPE_CHECKING:
    from finesmith.models.adapter_kinds import Kind, Purpose
    from finesmith.models.forward import Network
    from finesmith.recipe import Recipe

# What is imported for an adapter takes seconds, so nothing is where the method is none.


def put_adapter(recipe: Recipe, network: Network, purpose: Purpose, new_rows: Sequence[int] = ()) -> Mapping[str, Any]:
    """Put the adapter of the recipe's method on a network, where it is one; return the options in force.

    Raises ModelError when it does not suit the model.
    """
    if recipe.method.name not in ADAPTERS:
        return {}
    from finesmith.models.adapter_kinds import add_adapter

    kind = cast("Kind", recipe.method.name)
    options = {"num_virtual_tokens": recipe.method.prompt_tokens} if kind == "prompt" else recipe.method.lora
    return add_adapter(network, kind, options, seed=recipe.train.seed, purpose=purpose, new_rows=new_rows)


def prepare_blocks(recipe: Recipe, network: Network) -> None:
    """Do to the blocks of a network what the recipe asks for, once the method has put in what it adds."""
    if recipe.train.compile:
        from finesmith.models.blocks import compile_blocks

        compile_blocks(network)
    if recipe.train.activation_checkpointing:
        from finesmith.models.blocks import recompute_blocks

        recompute_blocks(network)


def in_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what the resolved recipe says of a kind of LoRA: its usual options, and those that were given."""
    if recipe.method.name not in LORA_KINDS:
        return {}
    from finesmith.models.adapter_kinds import DEFAULTS, TELLING

    usual = DEFAULTS[cast("Kind", recipe.method.name)]
    options = {**{key: value for key, value in usual.items() if key not in TELLING}, **recipe.method.lora}
    return {f"method.lora.{key}": value for key, value in options.items()}


def start_of(recipe: Recipe, network: Network) -> str | None:
    """Return the hash of what PiSSA took out of the base weights; None for other methods."""
    if recipe.method.name != "pissa":
        return None
    from finesmith.models import adapter_kinds

    return adapter_kinds.start_of(network.module)


def kept_per_token(recipe: Recipe, network: Network) -> int:
    """Return how many values the adapter keeps of every token for the way back."""
    if recipe.method.name not in ADAPTERS:
        return 0
    from finesmith.models import adapter_kinds

    return adapter_kinds.kept_per_token(network.module)
