"""Encoder-decoders on ragged batches: losses, probabilities and gradients are transformers' own, row by row."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    T5Config,
    UMT5Config,
)

from finesmith.errors import ModelError
from finesmith.guards.preflight import embeddings_fit
from finesmith.models.language import load_language_model, load_seq2seq
from finesmith.models.layers import depths, freeze_lowest
from finesmith.models.load import find, load_tokenizer
from finesmith.models.runner import decoder_start
from finesmith.models.save import save_classifier
from finesmith.models.seq2seq import ONE_BY_ONE, choose_parts, seq2seq_logits
from finesmith.models.token_heads import TokenNetwork
from finesmith.models.token_loss import token_log_probabilities, token_logits, token_loss
from finesmith.types import Batch
from tiny import write_tiny_t5

VOCABULARY = 101
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
T5 = {"d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0} | IDS
BART = {
    "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3, "bos_token_id": 1,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "dropout": 0.0, "decoder_start_token_id": 2,
} | IDS  # fmt: skip
CONFIGS = {
    "t5": T5Config(**T5, dropout_rate=0.0),
    "t5 gated": T5Config(**T5, dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": MT5Config(**T5, dropout_rate=0.0),
    "umt5": UMT5Config(**T5, dropout_rate=0.0),
    "bart": BartConfig(**BART),
    "pegasus": PegasusConfig(**BART | {"decoder_start_token_id": 0}),
    "marian": MarianConfig(**BART | {"decoder_start_token_id": 0}),
}
# Source and answer of each row.
SIZES = [(1, 1), (4, 2), (3, 5), (9, 1), (5, 7)]


def build(name: str, seed: int) -> tuple[TokenNetwork, Any]:
    """Return a network and an untouched copy of its model, in float64, with a head of its own bias where it has one."""
    torch.manual_seed(seed)
    model: Any = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(CONFIGS[name])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(model)
    network = TokenNetwork(model, model, None, False, "", 0, kind="seq2seq", start=decoder_start(model))  # type: ignore[arg-type]
    choose_parts(network)
    return network, plain


def rows_of(seed: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], Batch]:
    """Return sources with answers, and the same as a batch."""
    torch.manual_seed(100 + seed)
    rows = [(torch.randint(3, VOCABULARY, (a,)), torch.randint(3, VOCABULARY, (b,))) for a, b in SIZES]
    tokens = torch.cat([part for row in rows for part in row])
    targets = torch.cat([torch.cat([torch.full_like(source, -100), answer]) for source, answer in rows])
    sizes = torch.tensor([sum(size) for size in SIZES])
    return rows, Batch(tokens, sizes, None, targets, torch.arange(len(rows)))


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).detach().abs().max()) <= 1e-8 * max(1.0, float(expected.detach().abs().max()))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_and_every_gradient_are_those_of_each_row_alone(name: str, seed: int, whole: bool) -> None:
    network, plain = build(name, seed)
    assert (network.split, network.grouped) == (True, False)
    network.split = not whole
    rows, batch = rows_of(seed)
    found, count = token_loss(network, batch, chunk=3)
    expected = sum(plain(input_ids=source[None], labels=answer[None]).loss * len(answer) for source, answer in rows)
    assert count == sum(answer for _, answer in SIZES)
    assert near(found, expected)  # type: ignore[arg-type]
    found.backward()
    expected.backward()  # type: ignore[union-attr]
    wanted = dict(plain.named_parameters())
    for parameter_name, parameter in network.module.named_parameters():
        if parameter.requires_grad:
            assert near(parameter.grad, wanted[parameter_name].grad), parameter_name  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_each_answer_has_the_probability_that_transformers_gives_it(name: str) -> None:
    network, plain = build(name, 0)
    network.module.eval()
    plain.eval()
    rows, batch = rows_of(0)
    logits = torch.cat([plain(input_ids=source[None], labels=answer[None]).logits[0] for source, answer in rows])
    answers = torch.cat([answer for _, answer in rows])
    assert near(token_logits(network, batch), logits)
    assert near(seq2seq_logits(network, batch), logits)
    expected = logits.log_softmax(-1).gather(1, answers[:, None])[:, 0]
    assert near(token_log_probabilities(network, batch), expected)


def test_logits_with_a_bias_of_their_own_are_left_to_the_model() -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(CONFIGS["marian"])).double()
    model.final_logits_bias.normal_()
    network = TokenNetwork(model, model, None, False, "", 0, kind="seq2seq", start=decoder_start(model))  # type: ignore[arg-type]
    choose_parts(network)
    assert not network.split
    rows, batch = rows_of(0)
    expected = sum(model(input_ids=source[None], labels=answer[None]).loss * len(answer) for source, answer in rows)
    assert near(token_loss(network, batch)[0], expected)  # type: ignore[arg-type]


def test_a_model_that_sees_padding_reads_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, plain = build("t5", 0)
    encode = network.classifier.encoder.forward  # type: ignore[operator]
    monkeypatch.setattr(
        network.classifier.encoder, "forward", lambda attention_mask=None, **inputs: encode(**inputs), raising=True
    )
    choose_parts(network)
    assert network.grouped
    assert network.why.endswith(ONE_BY_ONE)
    rows, batch = rows_of(0)
    expected = sum(plain(input_ids=source[None], labels=answer[None]).loss * len(answer) for source, answer in rows)
    assert near(token_loss(network, batch)[0], expected)  # type: ignore[arg-type]


def test_a_row_without_an_answer_or_a_source_is_named() -> None:
    network, _ = build("bart", 0)
    _, batch = rows_of(0)
    bare = torch.full_like(batch.tokens, -100)
    for targets, said in ((bare, "example 0 has 2 tokens of source and 0 of answer"), (batch.tokens, "0 .* and 2 of")):
        with pytest.raises(ValueError, match=said):
            token_loss(network, Batch(batch.tokens, batch.lengths, None, targets, batch.ids))


def test_two_tables_that_t5_calls_tied_are_told_apart(tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    folder = write_tiny_t5(tmp_path / "t5")
    torch.manual_seed(0)
    config = T5Config.from_pretrained(folder, scale_decoder_outputs=False)
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    base = find(str(folder))
    tokenizer = load_tokenizer(base)
    network, _ = load_language_model(base, tokenizer, kind="seq2seq", seed=0)
    assert network.split
    assert not network.classifier.config.scale_decoder_outputs
    assert embeddings_fit(network.classifier, len(tokenizer), ()).passed
    save_classifier(network, tmp_path / "saved")
    again: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 9]])}
    assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_what_an_encoder_decoder_cannot_do_is_said(tmp_path: Path) -> None:
    base = find(str(write_tiny_t5(tmp_path / "t5")))
    with pytest.raises(ModelError, match=r"model\.attention is ragged, but t5 is an encoder-decoder"):
        load_seq2seq(base, load_tokenizer(base), seed=0, attention="ragged")
    config = json.loads((tmp_path / "t5" / "config.json").read_text("utf-8"))
    settings = tmp_path / "t5" / "generation_config.json"
    kept = settings.read_text("utf-8")
    (tmp_path / "t5" / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": None}), "utf-8")
    settings.unlink()
    with pytest.raises(ModelError, match=r"names no decoder_start_token_id.*config\.json"):
        load_seq2seq(base, load_tokenizer(base), seed=0)
    settings.write_text(kept, "utf-8")
    network, _ = load_seq2seq(base, load_tokenizer(base), seed=0, dropout=0.3)
    assert {part.p for part in network.module.modules() if isinstance(part, torch.nn.Dropout)} == {0.3}


def test_mbart_is_given_the_language_that_begins_its_answers() -> None:
    torch.manual_seed(0)
    config = MBartConfig(**BART | {"decoder_start_token_id": 2})
    model: Any = AutoModelForSeq2SeqLM.from_config(config).double()
    network = TokenNetwork(model, model, None, False, "", 0, kind="seq2seq", start=decoder_start(model))  # type: ignore[arg-type]
    choose_parts(network)
    # As its tokenizer writes targets: the language, the words, the end; the model itself puts the end first.
    answer, source = torch.tensor([50, 7, 8, 2]), torch.tensor([9, 10, 2, 60])
    batch = Batch(
        torch.cat([source, answer]), torch.tensor([8]), None, torch.cat([torch.full_like(source, -100), answer]),
        torch.arange(1),
    )  # fmt: skip
    expected = model(input_ids=source[None], labels=answer[None]).loss * 4
    assert near(token_loss(network, batch)[0], expected)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_layers_of_the_encoder_are_the_lowest(name: str) -> None:
    network, _ = build(name, 0)
    found = depths(network.classifier)
    layers = network.classifier.config.num_hidden_layers
    for parameter, depth in found.items():
        # T5's table of distances counts as embeddings.
        if "decoder" in parameter and "embed" not in parameter and "relative" not in parameter:
            assert depth == layers + 1, parameter
    freeze_lowest(network.classifier, 1)
    frozen = {parameter for parameter, p in network.classifier.named_parameters() if not p.requires_grad}
    assert any("shared" in parameter for parameter in frozen)
    blocks = {parameter for parameter in frozen if "block.0" in parameter or "layers.0" in parameter}
    assert blocks - {parameter for parameter in blocks if "relative" in parameter} == {
        p for p in found if "encoder." in p and ("block.0" in p or "layers.0" in p) and "relative" not in p
    }
