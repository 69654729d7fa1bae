"""BERT under a classification head, read straight from its folder, without transformers.

Importing transformers' BERT takes longer than reading data and taking the first step. So the plain case has modules of
its own: the same tensors by the same names, run by `forward` as any other BERT. Whatever is not plain (another family,
other files, a tensor that is missing) is left to transformers. When the model is saved `as_transformers` puts the
weights into transformers' own class, and the saved folder is proven by loading it again with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from finesmith.models.load import LoadReport, load_config, pad_id_of
from finesmith.models.native_config import NativeConfig, native_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finesmith.models.forward import Network
    from finesmith.models.load import Base, Problem

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
HEAD = ("classifier.bias", "classifier.weight")


class _Linear(nn.Linear):
    """A linear map whose weights are still to come."""

    def reset_parameters(self) -> None:
        """Leave the weights open."""


class _Embedding(nn.Embedding):
    """A table whose rows are still to come."""

    def reset_parameters(self) -> None:
        """Leave the rows open."""


class _Part(nn.Module):
    """A module that only holds others: `forward` reads what they hold."""

    def __init__(self, /, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class _Embeddings(nn.Module):
    """Word, position and segment vectors, summed, normalised, dropped."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__()
        c = config.values
        width = c["hidden_size"]
        self.word_embeddings = _Embedding(c["vocab_size"], width, padding_idx=config.pad_token_id)
        self.position_embeddings = _Embedding(c["max_position_embeddings"], width)
        self.token_type_embeddings = _Embedding(c["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=c["layer_norm_eps"])
        self.dropout = nn.Dropout(c["hidden_dropout_prob"])

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the first states of a flat batch, [1, T, D]; ids are [1, T]."""
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings(kinds)
        states: Tensor = self.dropout(self.LayerNorm(summed + self.position_embeddings(position_ids)))
        return states


class _Attention(nn.Module):
    """The projections of self-attention."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__()
        width = config.values["hidden_size"]
        self.num_attention_heads = int(config.values["num_attention_heads"])
        self.query, self.key, self.value = (_Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(config.values["attention_probs_dropout_prob"])


def _output(config: NativeConfig, inputs: int) -> _Part:
    width = config.values["hidden_size"]
    return _Part(
        dense=_Linear(inputs, width),
        LayerNorm=nn.LayerNorm(width, eps=config.values["layer_norm_eps"]),
        dropout=nn.Dropout(config.values["hidden_dropout_prob"]),
    )


def _layer(config: NativeConfig) -> _Part:
    width, inner = config.values["hidden_size"], config.values["intermediate_size"]
    return _Part(
        attention=_Part(self=_Attention(config), output=_output(config, width)),
        intermediate=_Part(dense=_Linear(width, inner)),
        output=_output(config, inner),
    )


class _Pooler(nn.Module):
    """A dense layer on each sequence's first state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = _Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Return the pooled states, [B, D], of states [B, L, D]."""
        return torch.tanh(self.dense(states[:, 0]))


class NativeBert(nn.Module):
    """BERT with a classification head; the names of its tensors are those of transformers' class."""

    base_model_prefix = "bert"

    def __init__(self, config: NativeConfig) -> None:
        super().__init__()
        self.config, self.num_labels = config, config.num_labels
        width = config.values["hidden_size"]
        self.bert = _Part(
            embeddings=_Embeddings(config),
            encoder=_Part(layer=nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))),
            pooler=_Pooler(width),
        )
        self.dropout = nn.Dropout(config.values["hidden_dropout_prob"])
        self.classifier = _Linear(width, config.num_labels)

    @property
    def base_model(self) -> nn.Module:
        """The encoder without its head."""
        return self.bert


def native_classifier(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    outputs: int,
    problem: Problem,
    labels: Sequence[str] | None,
    seed: int,
    dropout: float | None = None,
) -> tuple[Network, LoadReport] | None:
    """Load a plain BERT under a new head of `outputs` numbers a sequence, as float32 on the CPU.

    Returns None for what is not plain, which transformers then loads, or says what is wrong with.
    """
    from finesmith.models.forward import Network

    config = native_config(base)
    if config is None:
        return None
    config.num_labels, config.problem_type = outputs, problem
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    if dropout is not None:
        config.values |= dict.fromkeys(DROPOUTS, dropout)
    model = NativeBert(config)
    tensors, unexpected = _tensors(Path(base.location), model)
    if tensors is None:
        return None
    new = () if HEAD[0] in tensors else HEAD
    if new:
        torch.manual_seed(seed)
        weight = torch.empty(outputs, config.values["hidden_size"])
        tensors |= {HEAD[0]: torch.zeros(outputs), HEAD[1]: weight.normal_(0.0, config.values["initializer_range"])}
    model.load_state_dict(tensors, assign=True)
    model.eval()
    if config.values["type_vocab_size"] < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    report = LoadReport(
        architecture="BertForSequenceClassification",
        parameters=sum(p.numel() for p in model.parameters()),
        loaded=len(tensors) - len(new),
        missing=(),
        unexpected=unexpected,
        new=new,
    )
    why = "ragged: a plain BERT, run by finesmith's own layers"
    # It has what finesmith asks of transformers' models, until `as_transformers` takes its place.
    alike = cast("PreTrainedModel", model)
    return Network(model, alike, tokenizer, True, why, pad_id_of(tokenizer), fresh=new, source=base), report


def _tensors(folder: Path, model: NativeBert) -> tuple[dict[str, Tensor] | None, tuple[str, ...]]:
    """Return the tensors of a folder under the model's names, and the names it has no place for.

    None where one of the body is missing, of another shape or no number, or where a head was made for another task or
    is half there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError):
        return None, ()
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    prefix = "" if any(name.startswith("bert.") for name in found) else "bert."
    named = {prefix + name if prefix + name in wanted else name: tensor for name, tensor in found.items()}
    kept = {
        name: tensor.float() if tensor.dtype != torch.float32 else tensor.clone()
        for name, tensor in named.items()
        if name in wanted and tensor.shape == wanted[name] and tensor.is_floating_point()
    }
    if any(name not in kept for name in wanted if name.startswith("bert.")):
        return None, ()
    if any(name in named and name not in kept for name in wanted) or (HEAD[0] in kept) != (HEAD[1] in kept):
        return None, ()
    others = sorted(name for name in named if name not in wanted and not name.endswith("embeddings.position_ids"))
    return kept, tuple(others)


def as_transformers(network: Network) -> None:
    """Put the weights of a native model into transformers' class, in place; any other network stays as it is."""
    native, base = network.module, network.source
    if not isinstance(native, NativeBert) or base is None:
        return
    from transformers import AutoModelForSequenceClassification

    from finesmith.models.attention import RAGGED, register

    config: Any = load_config(base)
    own = native.config
    config.num_labels, config.problem_type = own.num_labels, own.problem_type
    if own.id2label:
        config.id2label, config.label2id = dict(own.id2label), dict(own.label2id)
    for key in DROPOUTS:
        setattr(config, key, own.values.get(key))
    model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(native.state_dict(), assign=True)
    register()
    model.set_attn_implementation(RAGGED)
    network.classifier = network.module = model.train(native.training)
