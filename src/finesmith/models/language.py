"""Load base weights under a head that answers for every token, and decide how it runs by trying on the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import ModelError
from finesmith.models.attention import RAGGED, register
from finesmith.models.encoder import Encoder, pooling_of, vectors
from finesmith.models.load import (
    Base,
    LoadReport,
    _cannot_load,
    _reads_segments,
    _report,
    load_config,
    pad_id_of,
    set_dropout,
)
from finesmith.models.probe import NO_PADDING, _tolerance, choose_attention, probe_batch
from finesmith.models.runner import decoder_start
from finesmith.models.seq2seq import choose_parts
from finesmith.models.token_heads import HEADS, Kind, TokenNetwork
from finesmith.models.token_loss import token_logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finesmith.types import Batch

Attention = Literal["auto", "ragged", "padded"]
Loaded = Kind | Literal["encoder"]
WORDS: dict[Loaded, str] = {
    "causal": "next-token prediction",
    "masked": "masked-word prediction",
    "token": "token classification",
    "seq2seq": "text-to-text tuning",
    "encoder": "embeddings",
}
REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)


def load_language_model(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: Kind,
    labels: Sequence[str] | None = None,
    seed: int,
    dropout: float | None = None,
    attention: Attention = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[TokenNetwork, LoadReport]:
    """Load base weights under a head that predicts next words, masked words or one of `labels` for each token.

    Of the kind "seq2seq" it is an encoder-decoder, which writes words that follow another text.
    A head that the checkpoint lacks is made with weights that `seed` fixes, its last map tied to the input embeddings
    for words, and named in the report. `attention` "auto" runs ragged where a probe on this very model shows that it
    answers as transformers does, else padded. Raises ModelError when the model cannot be loaded or cannot do this.
    """
    if (kind == "token") != (labels is not None):
        raise ValueError(f"labels are {labels!r}, but kind is {kind!r}; token classification needs them, others do not")
    if kind == "seq2seq":
        how: dict[str, Any] = {"attention": attention, "dtype": dtype, "device": device}
        return load_seq2seq(base, tokenizer, seed=seed, dropout=dropout, **how)
    config = load_config(base)
    if config.is_encoder_decoder:
        fitting = "a decoder" if kind == "causal" else "an encoder"
        raise ModelError(
            f"{base.name} is an encoder-decoder ({config.model_type}), but {WORDS[kind]} needs {fitting}; name one in "
            "model.base"
        )
    if labels is not None:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    model, report = _load(base, config, tokenizer, kind, seed=seed, dropout=dropout, dtype=dtype, device=device)
    fresh = report.missing + report.new
    network = TokenNetwork(model, model, tokenizer, False, "", pad_id_of(tokenizer), fresh=fresh, kind=kind)
    choose_token_attention(network, attention)
    return network, report


def load_seq2seq(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dropout: float | None = None,
    attention: Attention = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[TokenNetwork, LoadReport]:
    """Load an encoder-decoder with its language head; it runs padded, as its cross-attention asks.

    Raises ModelError when the model cannot be loaded, is none, or does not say what its answers begin with.
    """
    config = load_config(base)
    if not config.is_encoder_decoder:
        raise ModelError(f"{base.name} ({config.model_type}) is no encoder-decoder; load it as a causal model")
    if attention == "ragged":
        raise ModelError(
            f"model.attention is ragged, but {base.name} is an encoder-decoder, which runs padded; use auto"
        )
    model, report = _load(base, config, tokenizer, "seq2seq", seed=seed, dropout=dropout, dtype=dtype, device=device)
    network = TokenNetwork(
        model, model, tokenizer, False, "", pad_id_of(tokenizer), fresh=report.missing + report.new, kind="seq2seq",
        start=decoder_start(model),
    )  # fmt: skip
    choose_parts(network)
    return network, report


def load_encoder(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: Literal["auto", "mean", "cls", "last"] = "auto",
    seed: int,
    dropout: float | None = None,
    attention: Attention = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[Encoder, LoadReport]:
    """Load a base model without a head, to make one vector of each text.

    `pooling` "auto" is what the base model declares, else the last token of a decoder and the mean of an encoder.
    Raises ModelError when the model cannot be loaded or cannot do this.
    """
    config = load_config(base)
    if config.is_encoder_decoder:
        raise ModelError(f"{base.name} is an encoder-decoder ({config.model_type}); embeddings need one of the two")
    model, report = _load(base, config, tokenizer, "encoder", seed=seed, dropout=dropout, dtype=dtype, device=device)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        # Nothing is padded here; other programs that load the saved encoder pad.
        tokenizer.pad_token = tokenizer.eos_token
    network = Encoder(
        model, model, tokenizer, False, "", pad_id_of(tokenizer), fresh=report.missing + report.new,
        pooling=pooling_of(pooling, base, model.config.model_type),
    )  # fmt: skip
    choose_attention(network, attention, vectors)
    return network, report


def _load(
    base: Base,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    kind: Loaded,
    *,
    seed: int,
    dropout: float | None,
    dtype: torch.dtype | None,
    device: str,
) -> tuple[Any, LoadReport]:
    import torch

    if dropout is not None:
        set_dropout(config, dropout, base)
    torch.manual_seed(seed)
    model, info = _from_pretrained(base, config, dtype or torch.float32, kind)
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        # Known to whoever loads the saved model; not to the model made above, whose embedding of that id would freeze.
        text.pad_token_id = pad_id_of(tokenizer)
    if not _reads_segments(model.config):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    model.to(device)
    return model, _report(model, info, base)


def _from_pretrained(base: Base, config: PreTrainedConfig, dtype: torch.dtype, kind: Loaded) -> tuple[Any, Any]:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoModelForTokenClassification,
    )
    from transformers.utils import logging

    autos: dict[Loaded, Any] = {
        "causal": AutoModelForCausalLM,
        "masked": AutoModelForMaskedLM,
        "token": AutoModelForTokenClassification,
        "seq2seq": AutoModelForSeq2SeqLM,
        "encoder": AutoModel,
    }
    if type(config) not in autos[kind]._model_mapping:
        raise ModelError(
            f"{base.name} ({config.model_type}) has no form for {WORDS[kind]} in transformers; name another model.base"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return autos[kind].from_pretrained(  # type: ignore[no-any-return]
            base.location,
            config=config,
            revision=base.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(_cannot_load(base, "model", error)) from error
    finally:
        logging.set_verbosity(verbosity)


def choose_token_attention(network: TokenNetwork, wanted: Attention) -> None:
    """Choose how a network runs: its head on chosen tokens only, without padding, in few passes; each if it agrees.

    What must be met is transformers' own answer to each sequence alone. Raises ModelError when "ragged" was asked for
    and is not possible, and when a model for next words looks at the words that follow.
    """
    from finesmith.models.decoder import WALKED

    model, family = network.classifier, network.classifier.config.model_type
    training, before = model.training, model.config._attn_implementation
    model.eval()  # type: ignore[no-untyped-call]
    try:
        batch = probe_batch(network)
        network.grouped = True
        expected = _logits(network, batch)
        if network.kind == "causal":
            _refuse_to_look_ahead(network, batch, expected)
        network.split = True
        network.split = _gap(network, batch, expected) is None
        network.grouped = False
        network.grouped = _gap(network, batch, expected, least=1e-4) is not None
        problem = None if family in HEADS[network.kind] else "its family has no ragged form here"
        if not network.split:
            problem = problem or "its head gives other outputs on chosen tokens alone"
        if wanted != "padded" and problem is None:
            register()
            model.set_attn_implementation(RAGGED)
            network.ragged = True
            problem = _gap(network, batch, expected)
            if problem is not None:
                network.ragged = False
                model.set_attn_implementation(before)
        if network.ragged and family in WALKED:
            network.walked = True
            network.walked = _gap(network, batch, expected) is None
    finally:
        model.train(training)
    _say(network, wanted, problem)


def _say(network: TokenNetwork, wanted: Attention, problem: str | None) -> None:
    """Write down why the network runs as it does."""
    family, mind = network.classifier.config.model_type, NO_PADDING if network.grouped else ""
    if network.ragged:
        network.grouped = False
        network.why = f"ragged: {family} gives the same outputs with and without padding (probed on this model)"
    elif wanted == "ragged":
        raise ModelError(f"model.attention is ragged, but {family} cannot run so: {problem}; use auto or padded")
    elif wanted == "padded":
        network.why = "padded, as the recipe asks" + mind
    else:
        network.why = f"padded: {family} cannot run ragged ({problem})" + mind


def _logits(network: TokenNetwork, batch: Batch) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return token_logits(network, batch)


def _gap(network: TokenNetwork, batch: Batch, expected: torch.Tensor, least: float = 0.0) -> str | None:
    """Compare the logits of all tokens, and of every other one, with those expected; return what is wrong, or None."""
    from dataclasses import replace

    import torch

    some = torch.arange(len(batch.tokens), device=batch.tokens.device) % 2 - 1
    half = replace(batch, targets=torch.where(some == 0, 0, -100))
    try:
        gaps = [(_logits(network, batch) - expected).abs().max(), (_logits(network, half) - expected[1::2]).abs().max()]
    except REFUSALS as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    gap = float(max(gaps))
    return None if gap <= max(least, _tolerance(expected)) else f"outputs differ by {gap:.2g}"


def _refuse_to_look_ahead(network: TokenNetwork, batch: Batch, expected: torch.Tensor) -> None:
    """Raise ModelError where a later token changes the answer to an earlier one."""
    from dataclasses import replace

    tokens = batch.tokens.clone()
    tokens[-1] = tokens[-2]
    change = float((_logits(network, replace(batch, tokens=tokens)) - expected)[:-1].abs().max())
    if not change <= _tolerance(expected):
        raise ModelError(
            f"{type(network.classifier).__name__} sees the words it should predict: changing the last token moved an "
            f"earlier answer by {change:.2g}. It is an encoder; tune it on masked text, or name a causal model"
        )
