"""Logits, losses and log probabilities of the tokens that have a target, and of no others.

The head of a language model is a third to a half of all its products, and its logits most of its memory. So it is
applied to the supervised tokens only, and in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finesmith.models.attention import layout_of
from finesmith.models.forward import _parts, padded, ragged_hidden
from finesmith.models.token_heads import TokenNetwork, head_of, supervised

if TYPE_CHECKING:
    from torch import Tensor

    from finesmith.types import Batch


def token_loss(network: TokenNetwork, batch: Batch, *, chunk: int | None = None) -> tuple[Tensor, int]:
    """Return the sum of the cross-entropies of the supervised tokens of a batch, a scalar, and their number.

    `batch.targets` is int64 [T], -100 where nothing is supervised. At most `chunk` rows of logits exist at a time; by
    default as many as take 128 MB. The sum is 0, with a gradient of 0, where nothing is supervised.
    """
    from torch.nn.functional import cross_entropy

    from finesmith.models.cross_entropy import summed

    places, targets = _targets(batch)
    if not network.split or network.prompt:
        logits = _whole(network, batch, places)
        return cross_entropy(logits, targets, reduction="sum"), len(places)
    head = head_of(network)
    hidden = head.before(network.classifier, token_states(network, batch, places))
    return summed(hidden, head.linear, targets, head.cap, chunk or _piece(network, hidden)), len(places)


def token_log_probabilities(network: TokenNetwork, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """Return log p(target) of each supervised token, [S] in the order of the batch, with gradients where enabled."""
    from torch.nn.functional import cross_entropy

    from finesmith.models.cross_entropy import log_probabilities

    places, targets = _targets(batch)
    if not network.split or network.prompt:
        return -cross_entropy(_whole(network, batch, places), targets, reduction="none")
    head = head_of(network)
    hidden = head.before(network.classifier, token_states(network, batch, places))
    return log_probabilities(hidden, head.linear, targets, head.cap, chunk or _piece(network, hidden))


def token_logits(network: TokenNetwork, batch: Batch) -> Tensor:
    """Return the logits of each supervised token, [S, V] or [S, C]; of every token where the batch has no targets.

    An encoder-decoder needs targets.
    """
    places = supervised(batch)
    if not network.split or network.prompt:
        return _whole(network, batch, places)
    head = head_of(network)
    logits: Tensor = head.linear(head.before(network.classifier, token_states(network, batch, places)))
    return logits if head.cap is None else (logits / head.cap).tanh() * head.cap


def token_states(network: TokenNetwork, batch: Batch, places_S: Tensor) -> Tensor:
    """Return the last hidden states, after any final norm, of the tokens at `places_S` (ascending), [S, D].

    Of an encoder-decoder the places are those of all targets.
    """
    import torch

    if network.kind == "seq2seq":
        from finesmith.models.seq2seq import seq2seq_states

        return seq2seq_states(network, batch)
    model: Any = network.classifier
    if not network.ragged:
        options = {"use_cache": False} if network.kind == "causal" else {}
        hidden = []
        for part in _parts(network, batch):
            inputs = padded(network, part)
            hidden.append(model.base_model(**inputs, **options).last_hidden_state[inputs["attention_mask"].bool()])
        return torch.cat(hidden).index_select(0, places_S)
    layout = layout_of(batch.lengths)
    if network.walked:
        from finesmith.models.decoder import can_walk, states

        # With nothing to compute at the top there is nothing to walk for, and nothing that would hold a gradient.
        if can_walk(model) and len(places_S):
            return states(model, batch.tokens, layout, places_S, recompute=network.recompute)
    hidden_TD = ragged_hidden(model, batch, layout, recompute=network.recompute, compiled=network.compiled)
    return hidden_TD.index_select(0, places_S)


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.targets is not None
    places = supervised(batch)
    return places, batch.targets.index_select(0, places)


def _piece(network: TokenNetwork, hidden: Tensor) -> int:
    from finesmith.models.cross_entropy import piece_of

    config: Any = network.classifier.config
    vocabulary = config.num_labels if network.kind == "token" else config.get_text_config().vocab_size
    return piece_of(vocabulary, hidden.element_size())


def _whole(network: TokenNetwork, batch: Batch, places_S: Tensor) -> Tensor:
    """Return the logits at `places_S` as the model's own forward gives them, padded, [S, V]."""
    import torch

    if network.kind == "seq2seq":
        from finesmith.models.seq2seq import seq2seq_logits

        return seq2seq_logits(network, batch)
    if network.prompt:
        from finesmith.models.adapter_kinds import prompted

        return prompted(network, batch)[places_S]
    model: Any = network.classifier
    options = {"use_cache": False} if network.kind == "causal" else {}
    logits = []
    for part in _parts(network, batch):
        inputs = padded(network, part)
        logits.append(model(**inputs, **options).logits[inputs["attention_mask"].bool()])
    return torch.cat(logits)[places_S]
