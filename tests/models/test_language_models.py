"""Loading under heads that answer for every token: what is new, what is tied, how it runs, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_seq2seq import CONFIGS as TWO_PART
from test_token_loss import LENGTHS, make, rectangle
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from finesmith.errors import ModelError
from finesmith.models import decoder
from finesmith.models.language import load_language_model, load_seq2seq
from finesmith.models.load import find, load_tokenizer
from finesmith.models.token_loss import token_logits, token_loss
from finesmith.types import Batch
from tiny import bert_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 151, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def written(model: Any, folder: Path) -> Path:
    """Save a model with the tiny tokenizer."""
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def load(folder: Path | str, kind: Any, **options: Any) -> tuple[Any, Any]:
    base = find(str(folder))
    return load_language_model(base, load_tokenizer(base), kind=kind, seed=0, **options)


def test_a_masked_head_that_the_checkpoint_lacks_is_made_tied_and_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, **STILL)
    network, report = load(written(BertModel(config), tmp_path), "masked")
    model = network.classifier
    assert type(model) is BertForMaskedLM
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    new = {name.removeprefix("cls.predictions.") for name in report.new}
    assert new >= {"bias", "transform.dense.weight", "transform.LayerNorm.weight"}
    assert "decoder.weight" not in new
    assert report.missing == ()
    assert network.fresh == report.new
    assert network.ragged
    again, _ = load(tmp_path, "masked")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.classifier.parameters(), strict=True))


def test_the_bundled_encoder_learns_masked_words_from_an_untrained_head() -> None:
    base = find("default")
    tokenizer = load_tokenizer(base)
    network, report = load_language_model(base, tokenizer, kind="masked", seed=0, dropout=0.0)
    model: Any = network.classifier
    assert network.ragged
    assert network.split
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(name.startswith("cls.predictions.") for name in report.new)
    rows = tokenizer(["the cat sat on the [MASK].", "a contract is an agreement between two [MASK]."])["input_ids"]
    tokens = torch.tensor([token for row in rows for token in row])
    words = torch.tensor(tokenizer.convert_tokens_to_ids(["mat", "parties"]))
    targets = torch.full_like(tokens, -100)
    targets[tokens == tokenizer.mask_token_id] = words
    batch = Batch(tokens, torch.tensor([len(row) for row in rows]), None, targets, torch.arange(2))
    loss, count = token_loss(network, batch)
    assert count == 2
    assert float(loss.detach()) / count == pytest.approx(torch.tensor(len(tokenizer)).log().item(), abs=2.0)
    before = float(loss.detach())
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    assert float(token_loss(network, batch)[0].detach()) < before


def test_a_whole_checkpoint_loads_with_nothing_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    network, report = load(written(model, tmp_path), "causal")
    assert (report.new, report.missing, report.unexpected) == ((), (), ())
    assert (network.ragged, network.split, network.walked) == (True, True, True)
    assert network.why == "ragged: llama gives the same outputs with and without padding (probed on this model)"
    batch = make("causal")
    with torch.no_grad():
        expected = model(**{k: v for k, v in rectangle(batch, "causal").items() if k != "labels"}).logits
        assert torch.allclose(
            token_logits(network, Batch(batch.tokens, batch.lengths, None, None, batch.ids)),
            torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)]), atol=1e-5,
        )  # fmt: skip


def test_an_untied_head_that_is_missing_is_named(tmp_path: Path) -> None:
    _, report = load(written(LlamaModel(LlamaConfig(**SIZES, tie_word_embeddings=False)), tmp_path), "causal")
    assert report.new == ("lm_head.weight",)


def test_token_classes_get_a_head_of_their_number(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, **STILL, num_labels=9)
    network, report = load(written(BertModel(config), tmp_path), "token", labels=["O", "B-NAME", "I-NAME"])
    assert report.new == ("classifier.bias", "classifier.weight")
    assert network.classifier.config.id2label == {0: "O", 1: "B-NAME", 2: "I-NAME"}
    assert token_logits(network, make("token", share=1.0)).shape == (sum(LENGTHS), 3)
    with pytest.raises(ValueError, match="token classification needs them"):
        load(tmp_path, "token")
    with pytest.raises(ValueError, match="others do not"):
        load(tmp_path, "masked", labels=["a"])


def test_an_encoder_is_refused_as_a_causal_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sees the words it should predict"):
        load(written(BertForMaskedLM(BertConfig(**SIZES, **STILL)), tmp_path), "causal")


def test_kinds_that_a_family_lacks_are_refused(tmp_path: Path) -> None:
    llama = written(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "llama")
    with pytest.raises(ModelError, match="no form for masked-word prediction"):
        load(llama, "masked")
    base = find(str(llama))
    with pytest.raises(ModelError, match="is no encoder-decoder"):
        load_seq2seq(base, load_tokenizer(base), seed=0)


def test_dropout_is_set_or_refused(tmp_path: Path) -> None:
    network, _ = load(written(BertModel(BertConfig(**SIZES)), tmp_path), "masked", dropout=0.25)
    assert network.classifier.config.hidden_dropout_prob == 0.25


def test_ragged_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
    folder = written(GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)), tmp_path)
    network, _ = load(folder, "causal")
    assert (network.ragged, network.split) == (False, True)
    assert network.why == "padded: gpt_neox cannot run ragged (its family has no ragged form here)"
    with pytest.raises(ModelError, match="ragged, but gpt_neox cannot run so"):
        load(folder, "causal", attention="ragged")
    assert load(folder, "causal", attention="padded")[0].why == "padded, as the recipe asks"


def test_logits_that_are_scaled_in_an_unknown_way_come_from_the_model_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, bos_token_id=1, eos_token_id=2))
    network, _ = load(written(model, tmp_path), "causal")
    assert not network.split
    batch = make("causal")
    inputs = rectangle(batch, "causal")
    with torch.no_grad():
        loss, count = token_loss(network, batch)
        assert float(loss) / count == pytest.approx(float(model(**inputs).loss), rel=1e-5)


def test_a_walk_that_disagrees_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, tokens: Any, layout: Any, wanted: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(wanted), model.config.hidden_size)

    monkeypatch.setattr(decoder, "states", wrong)
    network, _ = load(written(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path), "causal")
    assert (network.ragged, network.walked) == (True, False)


def test_an_encoder_decoder_loads_with_its_head(tmp_path: Path) -> None:
    from transformers import BartForConditionalGeneration

    torch.manual_seed(0)
    folder = written(BartForConditionalGeneration(TWO_PART["bart"]), tmp_path)
    base = find(str(folder))
    network, report = load_seq2seq(base, load_tokenizer(base), seed=0)
    assert (report.new, report.missing) == ((), ())
    assert network.why == "padded: an encoder-decoder attends from one text to another"
    tokens = torch.tensor([5, 6, 7, 8, 9])
    targets = torch.tensor([-100, -100, -100, 8, 9])
    loss, count = token_loss(network, Batch(tokens, torch.tensor([5]), None, targets, torch.arange(1)))
    assert count == 2
    assert loss.isfinite()
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        load_language_model(base, load_tokenizer(base), kind="causal", seed=0)


def test_a_real_model_tells_stories(shared: Path) -> None:
    folder = shared / "models" / "stories260K" / "hf"
    base = find(str(folder))
    tokenizer = load_tokenizer(base)
    network, report = load_language_model(base, tokenizer, kind="causal", seed=0)
    assert report.new == ()
    assert network.walked
    story = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park."
    ids = torch.tensor(tokenizer(story)["input_ids"])
    targets = torch.cat([ids[1:], torch.tensor([-100])])
    with torch.no_grad():
        loss, count = token_loss(network, Batch(ids, torch.tensor([len(ids)]), None, targets, torch.arange(1)))
        plain = AutoModelForCausalLM.from_pretrained(folder)
        expected = plain(input_ids=ids[None], labels=ids[None]).loss
    assert float(loss) / count == pytest.approx(float(expected), rel=1e-5)
    assert float(loss) / count < 2
