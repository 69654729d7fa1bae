"""Run the decoder of Llama and its kin on a flat batch on a CPU, and compute at the top only what a head will read.

The weights stay in the model's own modules; adapters in their place are honoured. The families that are built so stand
in `WALKED`, and `language` compares the numbers on the very model before it relies on this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finesmith.models.again import again
from finesmith.models.attention import Layout
from finesmith.models.decoder_parts import Part, Turn, attend_causally, lora, parts_of, rms_norm, turn_of

WALKED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})


def can_walk(model: Any) -> bool:
    """Whether `states` computes what the model would now: not with dropout, checkpointing or low precision."""
    config = model.config
    return bool(
        model.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not model.base_model.layers[0].gradient_checkpointing
        and not (model.training and config.attention_dropout)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's queries stand: the rotations of queries and keys, and the parts for each width of window."""

    turns: tuple[Turn, Turn]
    parts: dict[int | None, list[Part]]


def states(model: Any, tokens_T: Tensor, layout: Layout, wanted_S: Tensor, *, recompute: bool = False) -> Tensor:
    """Return the last hidden states, after the final norm, of the tokens at the places `wanted_S`, [S, D].

    The top layer computes keys and values of every token, and all else for the wanted ones. recompute: compute layers
    again on the way back.
    """
    body = model.base_model
    hidden = body.embed_tokens(tokens_T)
    cosines, sines = (x[0].to(hidden.dtype) for x in body.rotary_emb(hidden[None], position_ids=layout.positions[None]))
    windows = [_window(layer, model.config) for layer in body.layers]
    everywhere = torch.arange(len(tokens_T), device=tokens_T.device)
    scale = float(body.layers[0].self_attn.scaling)
    keys = turn_of(cosines, sines)

    def place(rows: Tensor, needed: set[int | None]) -> _Place:
        turns = turn_of(cosines[rows], sines[rows], scale), keys
        return _Place(turns, {window: parts_of(layout, rows, window, hidden.dtype) for window in needed})

    def through(layer: Any, states: Tensor, window: int | None, rows: Tensor | None, at: _Place) -> Tensor:
        run = partial(_layer, layer, wanted_S=rows, turns=at.turns, parts=at.parts[window])
        return again(run, layer, states) if recompute else run(states)

    *lower, top = zip(body.layers, windows, strict=True)
    if lower:
        full = place(everywhere, set(windows[:-1]))
        for layer, window in lower:
            hidden = through(layer, hidden, window, None, full)
    return _norm(body.norm, through(top[0], hidden, top[1], wanted_S, place(wanted_S, {top[1]})))


def _window(layer: Any, config: Any) -> int | None:
    """Return how many tokens a layer's queries see, or None for all."""
    attention = layer.self_attn
    if config.model_type == "mistral":
        return config.sliding_window  # type: ignore[no-any-return]
    return attention.sliding_window if config.model_type in {"qwen2", "qwen3"} else None


def _layer(
    layer: Any, hidden_TD: Tensor, *, wanted_S: Tensor | None, turns: tuple[Turn, Turn], parts: list[Part]
) -> Tensor:
    attention = layer.self_attn
    normal = _norm(layer.input_layernorm, hidden_TD)
    key, value = _linear(attention.k_proj, normal), _linear(attention.v_proj, normal)
    if wanted_S is not None:
        hidden_TD, normal = hidden_TD.index_select(0, wanted_S), normal.index_select(0, wanted_S)
    query = _linear(attention.q_proj, normal)
    if "q_norm" in attention._modules:
        query, key = _by_head(attention.q_norm, query), _by_head(attention.k_norm, key)
    context = attend_causally(query, key, value, turns, parts)
    hidden_TD = hidden_TD + _linear(attention.o_proj, context)
    return hidden_TD + _feed_forward(layer.mlp, _norm(layer.post_attention_layernorm, hidden_TD))


def _feed_forward(mlp: Any, x: Tensor) -> Tensor:
    return _linear(mlp.down_proj, mlp.act_fn(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x))


def _by_head(norm: nn.Module, x_SE: Tensor) -> Tensor:
    """Normalise each head's share of [S, H * D]."""
    width = len(norm.weight)  # type: ignore[arg-type]
    return _norm(norm, x_SE.view(len(x_SE), -1, width)).flatten(1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    # Anything else in its place, a wrapper of peft say, is called; and the models' own go by float32 in other types.
    if type(norm).__name__ not in NORMS or x.dtype != torch.float32:
        return norm(x)  # type: ignore[no-any-return]
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer or whatever stands in its place; a plain LoRA layer in fewer passes than peft's own."""
    if type(module) is nn.Linear or type(module).__module__ != "peft.tuners.lora.layer":
        return module(x)  # type: ignore[no-any-return]
    name = _plain_adapter(module)
    if name is None:
        return module(x)  # type: ignore[no-any-return]
    layer: Any = module
    return lora(x, layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _plain_adapter(layer: Any) -> str | None:
    """Return the name of the one adapter that acts, if it is LoRA as first described and all in one number type."""
    if type(layer.base_layer) is not nn.Linear or layer.disable_adapters or layer.merged or layer.fan_in_fan_out:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return None
    name: str = active[0]
    drop = layer.lora_dropout[name]
    silent = type(drop) is nn.Identity or not drop.training or drop.p == 0
    plain = name not in layer.lora_variant and not layer.lora_bias[name] and silent
    same = layer.lora_A[name].weight.dtype == layer.lora_B[name].weight.dtype == layer.base_layer.weight.dtype
    return name if plain and same else None
