"""A merged model is a plain one that answers as the adapter on its base did, or there is none."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter_kinds import CLASSES, CONFIGS, PLACES, SMALL, alone, draw, gap, network_of, shake
from transformers import AutoModel

from finesmith.errors import ModelError
from finesmith.models import merge as room
from finesmith.models.adapter_files import load_adapter, save_adapter
from finesmith.models.adapter_kinds import Kind, Purpose, add_adapter
from finesmith.models.merge import MergeReport, merge
from finesmith.models.vocabulary import add_words
from finesmith.types import Batch
from tiny import bert_tokenizer

BATCHES = [draw([2, 5, 5, 9]), draw([3])]


def write_base(folder: Path, name: str, purpose: Purpose, *, words: int | None = None) -> Path:
    """Write a base model of a family; a classifier's without its head."""
    config = copy.deepcopy(CONFIGS[name])
    if words is not None:
        config.vocab_size = words
    torch.manual_seed(0)
    model = CLASSES[purpose].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    body = model.base_model if purpose in ("sequence_classification", "token_classification") else model
    body.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def write_adapter(
    folder: Path,
    base: Path,
    kind: Kind,
    purpose: Purpose,
    *,
    options: dict[str, Any] | None = None,
    words: bool = False,
) -> Path:
    """Write an adapter that moves the outputs of its base."""
    torch.manual_seed(1)
    model = CLASSES[purpose].from_pretrained(base, num_labels=3)
    network = network_of(model.eval(), bert_tokenizer())
    network.fresh = ("pre_classifier.weight",) if model.config.model_type == "distilbert" else ()
    rows: tuple[int, ...] = ()
    if words:
        rows = add_words(model, network.tokenizer, ["zyxwv"]).rows
    add_adapter(network, kind, options or SMALL[kind], seed=0, purpose=purpose, new_rows=rows)
    save_adapter(shake(network), folder)
    return folder


def made(tmp_path: Path, name: str, purpose: Purpose, kind: Kind, **more: Any) -> tuple[str, Path, Path]:
    base = write_base(tmp_path / "base", name, purpose, words=more.pop("size", None))
    return str(base), write_adapter(tmp_path / "adapter", base, kind, purpose, **more), tmp_path / "merged"


def together(base: str, adapter: Path, purpose: Purpose) -> Any:
    model = CLASSES[purpose].from_pretrained(base, num_labels=3)
    return load_adapter(model, adapter).eval()


EVERY: tuple[Kind, ...] = ("lora", "rslora", "dora", "pissa", "ia3")
SAMPLE: list[tuple[Kind, str, Purpose]] = [
    (kind, name, purpose)
    for name, purpose in PLACES
    for kind in (
        EVERY if name == "llama tied" or (name, purpose) == ("bert", "sequence_classification") else ("dora", "ia3")
    )
]


@pytest.mark.parametrize(("kind", "name", "purpose"), SAMPLE)
def test_a_merged_model_is_plain_and_answers_the_same(kind: Kind, name: str, purpose: Purpose, tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, name, purpose, kind)
    report = merge(base, adapter, out, batches=BATCHES, dtype=torch.float32)
    expected = alone(together(base, adapter, purpose), BATCHES[0])
    plain = CLASSES[purpose].from_pretrained(out)
    assert type(plain).__name__ == report.architecture
    assert gap(alone(plain.eval(), BATCHES[0]), expected) <= 1e-4
    assert report.gap <= report.tolerance == 1e-4
    assert report.moved > 1e-2, "the adapter must do something for the proof to mean anything"
    assert (report.sequences, report.tokens) == (5, 24)
    assert report.tied == (name in ("llama tied", "gpt2", "t5") or purpose == "masked") or purpose not in (
        "causal", "masked", "seq2seq",
    )  # fmt: skip
    assert not list(out.glob("adapter*"))
    assert (out / "tokenizer.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, "llama", "causal", "lora")
    report = merge(base, adapter, out, batches=BATCHES, dtype=dtype)
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert report.dtype == str(dtype).removeprefix("torch.")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factors, key = load_file(adapter / "adapter_model.safetensors"), "model.layers.0.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{key}.lora_{letter}.weight"].to(wide) for letter in "AB")
    weight = load_file(Path(base) / "model.safetensors")[f"{key}.weight"].to(wide)
    expected = (weight + 2 * b @ a).to(dtype)
    assert float((tensors[f"{key}.weight"] - expected).abs().max()) <= torch.finfo(dtype).eps


@pytest.mark.parametrize(("name", "tied"), [("llama tied", True), ("llama", False), ("gpt2", True)])
def test_new_words_are_in_the_merged_model(name: str, tied: bool, tmp_path: Path) -> None:
    tokenizer: Any = bert_tokenizer()
    purpose: Purpose = "causal"
    base, adapter, out = made(tmp_path, name, purpose, "lora", size=len(tokenizer), words=True)
    new = len(tokenizer)
    batch = draw([4, 4])
    batch.tokens[[1, 6]] = new
    report = merge(base, adapter, out, batches=[batch], dtype=torch.float32)
    plain = CLASSES[purpose].from_pretrained(out).eval()
    assert plain.config.vocab_size == new + 1
    assert gap(alone(plain, batch), alone(together(base, adapter, purpose), batch)) <= 1e-4
    assert report.tied == tied
    from transformers import AutoTokenizer

    assert new in AutoTokenizer.from_pretrained(out)("the zyxwv")["input_ids"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
    ],
)
def test_tied_embeddings_under_an_adapter(options: dict[str, Any], kept: bool, tmp_path: Path) -> None:
    """peft merges the change of one end into both, or that of both twice: see its issues 2018 and 2777."""
    from peft import LoraConfig, get_peft_model

    base, out = write_base(tmp_path / "base", "llama tied", "causal"), tmp_path / "out"
    network = network_of(CLASSES["causal"].from_pretrained(base), bert_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.module = get_peft_model(network.classifier, LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    save_adapter(shake(network), tmp_path / "adapter")
    if not kept:
        with pytest.raises(ModelError, match="cannot be loaded whole: Model has `tie_word_embeddings"):
            merge(str(base), tmp_path / "adapter", out, batches=BATCHES, dtype=torch.float32)
        assert not out.exists()
        return
    report = merge(str(base), tmp_path / "adapter", out, batches=BATCHES, dtype=torch.float32)
    assert report.tied
    assert report.moved > 1e-2
    assert gap(alone(CLASSES["causal"].from_pretrained(out).eval()), alone(network.module.eval())) <= 1e-4


@pytest.mark.parametrize(("kind", "words"), [("pissa", True), ("dora", False)])
def test_a_real_model_is_merged(kind: Kind, words: bool, shared: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared / "models" / "stories260K" / "hf"
    model = CLASSES["causal"].from_pretrained(folder)
    network = network_of(model.eval(), AutoTokenizer.from_pretrained(folder))
    rows = add_words(model, network.tokenizer, ["dragonfly"]).rows if words else ()
    add_adapter(network, kind, {"r": 4}, seed=0, purpose="causal", new_rows=rows)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    save_adapter(network, tmp_path / "adapter")
    ids = torch.tensor(network.tokenizer("One day a dragonfly met a big dog in the park.")["input_ids"])
    assert not words or rows[0] in ids
    batch = Batch(ids, torch.tensor([len(ids)]), None, None, torch.arange(1))
    report = merge(str(folder), tmp_path / "adapter", tmp_path / "out", batches=[batch], dtype=torch.float32)
    assert report.gap < 1e-4 < report.moved
    plain = CLASSES["causal"].from_pretrained(tmp_path / "out").eval()
    assert gap(alone(plain, batch), alone(network.module.eval(), batch)) <= 1e-4


def test_the_layout_of_sentence_transformers_comes_along(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    words: Any = bert_tokenizer()
    base = write_base(tmp_path / "base", "bert", "masked", words=len(words))
    torch.manual_seed(1)
    network = network_of(AutoModel.from_pretrained(base).eval(), bert_tokenizer())
    add_adapter(network, "dora", SMALL["dora"], seed=0, purpose="embedding")
    save_adapter(shake(network), tmp_path / "adapter")
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    (tmp_path / "adapter" / "modules.json").write_text(json.dumps(modules), "utf-8")
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (tmp_path / "adapter" / "1_Pooling").mkdir()
    (tmp_path / "adapter" / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    report = merge(str(base), tmp_path / "adapter", tmp_path / "out", batches=BATCHES, dtype=torch.float32)
    assert report.loads_with == "AutoModel"
    assert report.moved > 1e-2
    texts = ["the film was good", "one two three"]
    found = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    wrapped = load_adapter(AutoModel.from_pretrained(base), tmp_path / "adapter").eval()
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([network.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = wrapped(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(torch.from_numpy(vector), expected, atol=1e-5)

    modules[1]["path"] = "../base"
    (tmp_path / "adapter" / "modules.json").write_text(json.dumps(modules), "utf-8")
    refused(tmp_path, "names '../base', which is no folder beside it", str(base), tmp_path / "adapter", tmp_path / "b")
    (tmp_path / "adapter" / "modules.json").write_text("{", "utf-8")
    refused(tmp_path, "is no list of modules", str(base), tmp_path / "adapter", tmp_path / "c")


# --- refusals: nothing is left behind --------------------------------------------------------------------------------


def refused(tmp_path: Path, message: str, *arguments: Any, **more: Any) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelError, match=message):
        merge(*arguments, **{"batches": BATCHES, "dtype": torch.float32, **more})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_merged_model_that_answers_otherwise_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, out = made(tmp_path, "llama", "causal", "lora")
    whole = room._copy_tokenizer

    def spoil(*arguments: Any) -> None:
        whole(*arguments)
        path = arguments[2] / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1.0
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(room, "_copy_tokenizer", spoil)
    refused(tmp_path, "does not come back from its folder.*down_proj", base, adapter, out)
    monkeypatch.setattr(room, "_same_tensors", lambda _, folder, *__: CLASSES["causal"].from_pretrained(folder).eval())
    refused(tmp_path, "loaded from its folder, answers otherwise .* nothing was written", base, adapter, out)


def test_a_merge_that_lost_the_adapter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, out = made(tmp_path, "llama", "causal", "lora")
    monkeypatch.setattr(room, "_merged", lambda wrapped, _: wrapped.unload())
    refused(tmp_path, "before it was written, answers otherwise", base, adapter, out)


def test_a_gap_that_is_no_number_is_no_proof() -> None:
    with pytest.raises(ModelError, match="differ by nan"):
        room._refuse_gap(float("nan"), 1e-4, "")


def test_what_cannot_be_merged_says_so(tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, "bert", "sequence_classification", "prompt")
    refused(tmp_path, "which no plain model can hold", base, adapter, out)
    refused(tmp_path, "exists; choose another", base, adapter, adapter)
    refused(tmp_path, "no texts were given", base, adapter, out, batches=[])
    refused(tmp_path, "finesmith never writes|is missing", base, Path(base), out)


def test_a_quantised_base_is_refused_and_an_adapter_from_one_is_merged(tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, "llama", "causal", "lora")
    path, said = adapter / "config.json", {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "quantization_config": said}), "utf-8")
    assert merge(base, adapter, out, batches=BATCHES, dtype=torch.float32).gap <= 1e-4
    assert "quantization_config" not in json.loads((out / "config.json").read_text("utf-8"))
    path = Path(base) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "quantization_config": said}), "utf-8")
    refused(tmp_path, "the weights are quantised", base, adapter, tmp_path / "again")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, "bert", "sequence_classification", "lora")
    other = write_base(tmp_path / "other", "llama", "sequence_classification")
    refused(tmp_path, "was made on a bert, but other is a llama", str(other), adapter, out)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop("base_model.model.classifier.weight")
    save_file(tensors, path)
    refused(tmp_path, r"neither base nor the adapter in .* holds classifier\.weight", base, adapter, out)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, out = made(tmp_path, "llama", "causal", "lora")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "_copy_tokenizer", full)
    refused(tmp_path, "cannot write .*No space left", base, adapter, out)


def test_transformers_alone_loads_it_in_a_process_without_finesmith_or_peft(tmp_path: Path) -> None:
    base, adapter, out = made(tmp_path, "bert", "sequence_classification", "dora")
    report = merge(base, adapter, out, batches=BATCHES, dtype=torch.float32)
    code = """
import json, sys
sys.modules["peft"] = sys.modules["finesmith"] = None
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
rows = json.loads(sys.argv[2])
print(json.dumps([model(input_ids=torch.tensor([row])).logits[0].tolist() for row in rows]))
"""
    rows = [row.tolist() for row in BATCHES[0].tokens.split(BATCHES[0].lengths.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), json.dumps(rows)],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.tensor(json.loads(done.stdout)).flatten()
    expected = alone(together(base, adapter, "sequence_classification"), BATCHES[0]).flatten()
    assert gap(found, expected) <= 1e-4
    assert isinstance(report, MergeReport)
