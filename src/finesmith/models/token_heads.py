"""Heads that answer for every token: next words, masked words, and classes of tokens.

A head is taken apart into what happens to one token's hidden state and a last linear map, so that both can be computed
for chosen tokens only. `HEADS` lists the families for which that is known; for others `language` tries what holds for
most, and where the numbers disagree the model's own forward answers for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finesmith.models.forward import DECODERS, Network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finesmith.types import Batch

Kind = Literal["causal", "masked", "token", "seq2seq"]
Before = Callable[[Any, "Tensor"], "Tensor"]


@dataclass(slots=True)
class TokenNetwork(Network):
    """A network whose head answers for every token.

    kind: what it answers; split: whether the head can be computed for chosen tokens only; walked: whether a CPU runs
    its layers through `decoder` (less work in the top layer, fewer passes over memory); start: of an encoder-decoder
    the token that its decoder begins with, and one that must follow, if so.
    """

    kind: Kind = "causal"
    split: bool = False
    walked: bool = False
    start: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """before: what is done to hidden states, [S, D] -> [S, E]; linear: the module that makes [S, V] of it; cap: the
    soft cap of the logits, cap * tanh(logits / cap), or None.
    """

    before: Before
    linear: nn.Module
    cap: float | None


def _nothing(_: Any, hidden_SD: Tensor) -> Tensor:
    return hidden_SD


def _dropout(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.dropout(hidden_SD)  # type: ignore[no-any-return]


def _bert_words(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden_SD)  # type: ignore[no-any-return]


def _roberta_words(model: Any, hidden_SD: Tensor) -> Tensor:
    from torch.nn.functional import gelu

    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden_SD)))  # type: ignore[no-any-return]


def _distilbert_words(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden_SD)))  # type: ignore[no-any-return]


def _electra_words(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.generator_predictions(hidden_SD)  # type: ignore[no-any-return]


def _modernbert_words(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.head(hidden_SD)  # type: ignore[no-any-return]


def _t5_words(model: Any, hidden_SD: Tensor) -> Tensor:
    scaled: Tensor = hidden_SD * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden_SD
    return scaled


def _umt5_words(model: Any, hidden_SD: Tensor) -> Tensor:
    scaled: Tensor = hidden_SD * model.model_dim**-0.5 if model.config.tie_word_embeddings else hidden_SD
    return scaled


def _modernbert_classes(model: Any, hidden_SD: Tensor) -> Tensor:
    return model.drop(model.head(hidden_SD))  # type: ignore[no-any-return]


MASKED: dict[str, Before] = {
    "bert": _bert_words,
    "camembert": _roberta_words,
    "distilbert": _distilbert_words,
    "electra": _electra_words,
    "modernbert": _modernbert_words,
    "roberta": _roberta_words,
    "xlm-roberta": _roberta_words,
}
HEADS: dict[Kind, dict[str, Before]] = {
    "causal": dict.fromkeys(sorted(DECODERS), _nothing),
    "masked": MASKED,
    "token": {
        **dict.fromkeys(sorted(DECODERS | set(MASKED)), _dropout),
        "modernbert": _modernbert_classes,
    },
    "seq2seq": {"longt5": _t5_words, "t5": _t5_words, "umt5": _umt5_words},
}
# Where a family is not listed: tried, and kept only if the numbers agree with the model's own forward.
USUAL: dict[Kind, Before] = {"causal": _nothing, "token": _dropout, "seq2seq": _nothing}
# Configurations name the cap so; families that scale their logits otherwise fail the probe and answer as a whole.
CAPPED = "final_logit_softcapping"


def head_of(network: TokenNetwork) -> Head:
    """Return the parts of a network's head.

    Raises LookupError where they are not known for its family.
    """
    model: Any = network.classifier
    before = HEADS[network.kind].get(model.config.model_type) or USUAL[network.kind]
    if network.kind == "token":
        parts = dict(model.named_children())
        return Head(before, parts["classifier"] if "classifier" in parts else parts["score"], None)
    linear = model.get_output_embeddings()
    if linear is None:
        raise LookupError(f"{type(model).__name__} names no output embeddings")
    return Head(before, linear, model.config.get_text_config().to_dict().get(CAPPED))


def supervised(batch: Batch) -> Tensor:
    """Return the places of the tokens that have a target, int64 [S], ascending; all where the batch has no targets."""
    import torch

    if batch.targets is None:
        return torch.arange(len(batch.tokens), device=batch.tokens.device)
    return (batch.targets != -100).nonzero()[:, 0]
