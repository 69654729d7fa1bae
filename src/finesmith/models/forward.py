"""From a ragged batch to logits or embeddings, whichever way the model can run.

A classification head of transformers expects a padded rectangle. `READOUTS` holds, per family, how its head is applied
to one vector a sequence; a family that is not listed, or fails the numerical probe at load time, runs padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from finesmith.models.attention import Layout, layout_of, one_each, ragged_attention

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finesmith.models.load import Base
    from finesmith.types import Batch

Pooling = Literal["mean", "cls", "last"]
Readout = Callable[[Any, "Tensor", Layout], "Tensor"]


@dataclass(slots=True)
class Network:
    """A model ready to run on ragged batches.

    module: what is trained and saved (a peft wrapper or the classifier itself); classifier: the transformers model
    inside; ragged: whether it runs without padding, and `why` in one sentence; fresh: the tensors with random first
    values, by their names in the classifier; grouped: whether a model that is not ragged runs one length at a time,
    because padding would change what it answers; source: the base model, where finesmith's own modules run it;
    prompt: how many tuned vectors stand before every text; recompute: whether blocks are computed again on the way
    back; compiled: whether torch's compiler runs them while training.
    """

    module: nn.Module
    classifier: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ragged: bool
    why: str
    pad_id: int
    fresh: tuple[str, ...] = ()
    grouped: bool = False
    source: Base | None = None
    prompt: int = 0
    recompute: bool = False
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.module.parameters()).device


def _bert(model: Any, hidden_TD: Tensor, layout: Layout) -> Tensor:
    pooled = model.base_model.pooler(hidden_TD[layout.starts][:, None])
    return model.classifier(model.dropout(pooled))  # type: ignore[no-any-return]


def _first_token_head(model: Any, hidden_TD: Tensor, layout: Layout) -> Tensor:
    return model.classifier(hidden_TD[layout.starts][:, None])  # type: ignore[no-any-return]


def _distilbert(model: Any, hidden_TD: Tensor, layout: Layout) -> Tensor:
    return model.classifier(model.dropout(model.pre_classifier(hidden_TD[layout.starts]).relu()))  # type: ignore[no-any-return]


def _modernbert(model: Any, hidden_TD: Tensor, layout: Layout) -> Tensor:
    mean = model.config.classifier_pooling == "mean"
    pooled = pool(hidden_TD, layout, "mean") if mean else hidden_TD[layout.starts]
    return model.classifier(model.drop(model.head(pooled)))  # type: ignore[no-any-return]


def _last_token(model: Any, hidden_TD: Tensor, layout: Layout) -> Tensor:
    return model.score(hidden_TD[layout.ends])  # type: ignore[no-any-return]


READOUTS: dict[str, Readout] = {
    "bert": _bert,
    "camembert": _first_token_head,
    "electra": _first_token_head,
    "roberta": _first_token_head,
    "xlm-roberta": _first_token_head,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "gemma": _last_token,
    "gpt2": _last_token,
    "llama": _last_token,
    "mistral": _last_token,
    "phi3": _last_token,
    "qwen2": _last_token,
    "qwen3": _last_token,
    "smollm3": _last_token,
}

# Families whose position ids do not start at 0 but after the padding id.
OFFSET_POSITIONS = frozenset(
    {
        "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
        "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
# Encoders made of BERT's layers, whose head reads the first token only: see `_bert_states`.
BERT_LAYERS = frozenset({"bert", "camembert", "roberta", "xlm-roberta"})
DECODERS = frozenset(name for name, readout in READOUTS.items() if readout is _last_token)


def logits(network: Network, batch: Batch) -> Tensor:
    """Return the head's outputs, [B, C], in the order of the batch."""
    model = network.classifier
    if network.prompt:
        from finesmith.models.adapter_kinds import prompted

        return prompted(network, batch)
    if network.ragged:
        layout, readout = layout_of(batch.lengths), READOUTS[model.config.model_type]
        if runs_layers_itself(network):
            how = {"recompute": network.recompute, "compiled": network.compiled}
            states = _bert_states(model, batch, layout, first_only=True, **how)
            return readout(model, states, one_each(layout))
        return readout(model, ragged_hidden(model, batch, layout), layout)
    import torch

    return torch.cat([_padded_logits(network, part) for part in _parts(network, batch)])


def _padded_logits(network: Network, batch: Batch) -> Tensor:
    model: Any = network.classifier
    # transformers looks for the last token that is not padding, and so past a text's own end-of-text token where that
    # is what pads. The lengths know better.
    if any(name == "score" for name, _ in model.named_children()):
        hidden_BLD = model.base_model(**padded(network, batch), use_cache=False).last_hidden_state
        return model.score(hidden_BLD[range(len(batch.lengths)), batch.lengths - 1])  # type: ignore[no-any-return]
    return model(**padded(network, batch)).logits  # type: ignore[no-any-return]


def _parts(network: Network, batch: Batch) -> list[Batch]:
    """Return the batch whole, or cut where the length changes for a model that bears no padding."""
    from finesmith.types import Batch

    if not network.grouped:
        return [batch]
    parts, begin = [], 0
    for first, count, length in layout_of(batch.lengths).groups:
        rows, flat = slice(begin, begin + count), slice(first, first + count * length)
        segments = None if batch.segments is None else batch.segments[flat]
        parts.append(Batch(batch.tokens[flat], batch.lengths[rows], segments, None, batch.ids[rows]))
        begin += count
    return parts


def embed(network: Network, batch: Batch, pooling: Pooling) -> Tensor:
    """Return one vector a sequence, [B, D], pooled from the last hidden states of the encoder."""
    model = network.classifier
    layout = layout_of(batch.lengths)
    if network.ragged:
        how = {"recompute": network.recompute, "compiled": network.compiled}
        return pool(ragged_hidden(model, batch, layout, **how), layout, pooling)
    import torch

    hidden = []
    for part in _parts(network, batch):
        inputs = padded(network, part)
        hidden.append(model.base_model(**inputs).last_hidden_state[inputs["attention_mask"].bool()])
    return pool(torch.cat(hidden), layout, pooling)


def pool(hidden_TD: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """Reduce the hidden states of a flat batch to one vector a sequence, [B, D]."""
    if pooling == "cls":
        return hidden_TD[layout.starts]
    if pooling == "last":
        return hidden_TD[layout.ends]
    means = [
        hidden_TD[first : first + count * length].unflatten(0, (count, length)).mean(1)  # type: ignore[no-untyped-call]
        for first, count, length in layout.groups
    ]
    import torch

    return torch.cat(means)


def runs_layers_itself(network: Network) -> bool:
    """Whether layers of BERT are run one by one here; other models call their layers themselves."""
    return network.ragged and _has_bert_layers(network.classifier)


def _has_bert_layers(model: PreTrainedModel) -> bool:
    return model.config.model_type in BERT_LAYERS and not model.config.is_decoder


def ragged_hidden(
    model: PreTrainedModel, batch: Batch, layout: Layout, *, recompute: bool = False, compiled: bool = False
) -> Tensor:
    """Run the encoder or decoder without its head on a flat batch; returns the last hidden states, [T, D].

    recompute and compiled: as in a network, for layers of BERT; those that a model calls are seen to in `blocks`.
    """
    if _has_bert_layers(model):
        return _bert_states(model, batch, layout, first_only=False, recompute=recompute, compiled=compiled)
    inputs = _inputs(model, batch, layout)
    options = {"use_cache": False} if model.config.model_type in DECODERS else {}
    return model.base_model(**inputs, **options, ragged_layout=layout).last_hidden_state[0]  # type: ignore[no-any-return]


def _inputs(model: PreTrainedModel, batch: Batch, layout: Layout) -> dict[str, Tensor]:
    positions = layout.positions
    if model.config.model_type in OFFSET_POSITIONS:
        positions = positions + model.config.pad_token_id + 1
    inputs = {"input_ids": batch.tokens[None], "position_ids": positions[None]}
    if batch.segments is not None:
        inputs["token_type_ids"] = batch.segments[None]
    return inputs


def _bert_states(
    model: Any, batch: Batch, layout: Layout, *, first_only: bool, recompute: bool, compiled: bool
) -> Tensor:
    """Return the last hidden states of an encoder of BERT's layers, [T, D], or each sequence's first one only, [B, D].

    A head that reads nothing else needs no more of the top layer: keys and values of every token, but one query, one
    projection and one feed-forward a sequence. With six layers that saves a seventh of all products.
    """
    import torch

    from finesmith.models.again import again

    states = model.base_model.embeddings(**_inputs(model, batch, layout))[0]
    layers = list(model.base_model.encoder.layer)
    for layer in layers:
        first = layout.starts if first_only and layer is layers[-1] else None
        apart = compiled and layer.training and torch.is_grad_enabled()
        whole = model.config.hidden_act == "gelu" and not apart
        run = partial(_bert_layer, layer, layout=layout, first=first, whole=whole)
        states = again(run, layer, states) if recompute else run(states)
    return states  # type: ignore[no-any-return]


def _bert_layer(layer: Any, states: Tensor, *, layout: Layout, first: Tensor | None, whole: bool) -> Tensor:
    """Run one layer, in one piece where it can be and is `whole`: of the one activation that `bert_layer` has."""
    import torch

    attention, output = layer.attention.self, layer.attention.output
    if whole and states.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        from finesmith.models.bert_layer import LayerRule, layer_states, weights_of

        weights = weights_of(layer)
        if weights is not None:
            epsilons = output.LayerNorm.eps, layer.output.LayerNorm.eps
            dropouts = (attention.dropout.p, output.dropout.p) if layer.training else (0.0, 0.0)
            heads = attention.num_attention_heads
            rule = LayerRule(layout.groups, heads, epsilons, dropouts[0], dropouts[1], first, torch.is_grad_enabled())
            return layer_states(states, weights, rule)
    if first is None:
        return layer(states[None], ragged_layout=layout)[0]  # type: ignore[no-any-return]
    hidden, rows = states[None], states[None].index_select(1, first)

    def by_head(projected: Tensor) -> Tensor:
        return projected.unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]

    context, _ = ragged_attention(
        attention,
        by_head(attention.query(rows)),
        by_head(attention.key(hidden)),
        by_head(attention.value(hidden)),
        None,
        ragged_layout=layout,
        scaling=attention.scaling,
        dropout=attention.dropout.p if attention.training else 0.0,
    )
    return layer.feed_forward_chunk(output(context.flatten(2), rows))[0]  # type: ignore[no-any-return]


def padded(network: Network, batch: Batch) -> dict[str, Tensor]:
    """Return the batch as a right-padded rectangle with its mask, for models that need one."""
    import torch

    count, longest = len(batch.lengths), int(batch.lengths.max())
    mask = torch.arange(longest, device=batch.lengths.device)[None] < batch.lengths[:, None]
    ids = torch.full((count, longest), network.pad_id, dtype=torch.long, device=batch.tokens.device)
    ids[mask] = batch.tokens
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if batch.segments is not None:
        segments = torch.zeros_like(ids)
        segments[mask] = batch.segments
        inputs["token_type_ids"] = segments
    return inputs
