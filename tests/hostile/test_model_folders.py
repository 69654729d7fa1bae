"""Model folders of strangers: code, links, sizes, headers, templates and patterns that a loader might trust."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import Attack, change, mentions

from finesmith.data.tokens import tokenize
from finesmith.errors import ModelError
from finesmith.models.save import save_classifier
from finesmith.workflows.seal import seal
from terminal import finesmith, reviews, write_csv

Copy = Callable[[], Path]


EVIL = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = "evil"
EvilModel, EvilTokenizer = BertForSequenceClassification, BertTokenizerFast
"""


def with_code(folder: Path, attack: Attack) -> Path:
    """Put Python files with the canary's payload into a model folder."""
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py", "evil.py"):
        (folder / name).write_text(EVIL.format(canary=str(attack.canary)), "utf-8")
    return folder


def handed_on(attack: Attack, folder: Path) -> Path:
    """Load a model folder and save it as a tuned model is saved; return where."""
    network = attack.load(folder)
    with attack.watched():
        save_classifier(network, attack.run / "model")
    return attack.run / "model"


# --- code ------------------------------------------------------------------------------------------------------------

AUTO = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModelForSequenceClassification": "modeling_evil.EvilModel",
    "AutoModel": "modeling_evil.EvilModel",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"],
}


def test_a_model_that_needs_its_own_code(attack: Attack, model: Copy) -> None:
    folder = with_code(model(), attack)
    change(folder / "config.json", auto_map=AUTO, model_type="evil", architectures=["EvilModel"])
    mentions(attack.refuse_model(folder), "config.json", "code of its own", "never runs")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_known_model_is_neither_run_nor_handed_on(file: str, attack: Attack, model: Copy) -> None:
    folder = with_code(model(), attack)
    change(folder / file, auto_map=AUTO)
    for path in handed_on(attack, folder).rglob("*"):
        assert path.suffix != ".py"
        assert path.suffix != ".json" or "evil" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    "name",
    ["EvilTokenizer", "modeling_evil.EvilTokenizer", "../evil.EvilTokenizer", "os.system", "TokenizersBackend.x"],
)
def test_a_tokenizer_class_of_its_own(name: str, attack: Attack, model: Copy) -> None:
    folder = with_code(model(), attack)
    (folder / "config.json").unlink()
    change(folder / "config.json", model_type="evil")
    change(folder / "tokenizer_config.json", tokenizer_class=name, auto_map={"AutoTokenizer": [name, name]})
    mentions(attack.refuse_model(folder), "cannot load the")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel@main:run"}])
def test_attention_code_from_a_hub(key: str, value: Any, attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", **{key: value})
    mentions(attack.refuse_model(folder), "config.json", key, "never runs")


def test_quantisation_code(attack: Attack, model: Copy) -> None:
    folder = model()
    change(
        folder / "config.json", quantization_config={"quant_method": "evil", "modules_to_not_convert": ["os.system"]}
    )
    mentions(attack.refuse_model(folder), "config.json", "quantised")


# --- other folders ---------------------------------------------------------------------------------------------------


def test_a_model_that_says_it_lies_elsewhere(attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", _name_or_path="/etc", name_or_path="evil/model", transformers_version="999")
    handed_on(attack, folder)


@pytest.mark.parametrize("base", ["/etc", "evil/base", "../elsewhere"])
def test_an_adapter_beside_a_model_leads_nowhere(base: str, attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=base, r=8, task_type="SEQ_CLS")
    mentions(attack.refuse_model(folder), "adapter_config.json", "remove")


@pytest.mark.parametrize(
    "weights",
    ["../outside.safetensors", "/etc/passwd", "model.bin", ["model.safetensors"], "../../x.safetensors.index.json"],
)
def test_weights_in_another_folder(weights: Any, attack: Attack, model: Copy) -> None:
    folder = model()
    shutil.copy(folder / "model.safetensors", attack.place / "outside.safetensors")
    change(folder / "config.json", transformers_weights=weights)
    mentions(attack.refuse_model(folder), "config.json", "transformers_weights")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "absent.safetensors", 7])
def test_an_index_of_weights_elsewhere(name: Any, attack: Attack, model: Copy) -> None:
    folder = model()
    shutil.copy(folder / "model.safetensors", attack.place / "outside.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    mentions(attack.refuse_model(folder), "model.safetensors.index.json", "expected files of this folder")


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file", "spm_file", "fast_tokenizer_files"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_tokenizer_that_names_a_file_elsewhere(key: str, relative: bool, attack: Attack, model: Copy) -> None:
    folder = model()
    secret = attack.place / "secret.txt"
    secret.write_text("a word of mine\n", "utf-8")
    named = "../secret.txt" if relative else str(secret)
    change(folder / "tokenizer_config.json", **{key: [named] if key.endswith("files") else named})
    mentions(attack.refuse_model(folder), "tokenizer_config.json", key, "outside of the folder")


LINKED = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "special_tokens_map.json", "README.md"]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_the_folder(name: str, attack: Attack, model: Copy) -> None:
    folder, secret = model(), attack.place / "secret"
    secret.write_text("mine\nalone\n", "utf-8")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    said = attack.refuse_model(folder)
    mentions(said, name, "leads out of the model folder")
    assert "alone" not in said


def test_the_links_of_the_hubs_own_cache_are_fine(attack: Attack, model: Copy) -> None:
    hub = attack.place / "hub" / "models--a--b"
    folder = hub / "snapshots" / "abc"
    shutil.copytree(model(), folder)
    (hub / "blobs").mkdir()
    for file in list(folder.iterdir()):
        file.rename(hub / "blobs" / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    handed_on(attack, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_pipe_in_place_of_a_file(name: str, attack: Attack, model: Copy) -> None:
    folder = model()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    mentions(attack.refuse_model(folder), name if name != "config.json" else "config.json")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/random", "/dev/stdin", "/proc/self/mem"])
def test_a_device_as_model(place: str, attack: Attack) -> None:
    mentions(attack.refuse_model(Path(place)), place, "not a folder")


def test_a_device_linked_into_a_model(attack: Attack, model: Copy) -> None:
    folder = model()
    (folder / "vocab.txt").symlink_to("/dev/zero")
    mentions(attack.refuse_model(folder), "vocab.txt", "leads out")


# --- sizes -----------------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 10**12, "hidden_size": 10**9, "num_hidden_layers": 10**9, "intermediate_size": 10**10,
    "max_position_embeddings": 10**12, "type_vocab_size": 10**10, "num_attention_heads": 10**9,
    "num_experts": 10**8, "some_new_size": 10**30,
}  # fmt: skip


@pytest.mark.parametrize("key", list(SIZES))
def test_an_absurd_size(key: str, attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", **{key: SIZES[key]})
    mentions(attack.refuse_model(folder), "config.json", key, "far more than the weights")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 8192), ("vocab_size", 10**6), ("num_hidden_layers", 900), ("intermediate_size", 10**6)],
)
def test_sizes_that_the_weights_do_not_have(key: str, value: int, attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", **{key: value})
    mentions(attack.refuse_model(folder, megabytes=400), "do not belong together")


def test_sizes_of_a_part(attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", text_config={"model_type": "bert", "vocab_size": 10**12})
    mentions(attack.refuse_model(folder), "vocab_size is 1,000,000,000,000")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [-5, 0, "many", None, 1.5, [], {"a": 1}, True, 1e300], ids=str)
def test_a_size_that_is_none(key: str, value: Any, attack: Attack, model: Copy) -> None:
    folder = model()
    change(folder / "config.json", **{key: value})
    with contextlib.suppress(ModelError):
        attack.load(folder, megabytes=400)


@pytest.mark.parametrize(
    "content", ["[]", "7", '"x"', "null", "{", "[" * 100_000, '{"a":' * 50_000, '{"model_type": 7}']
)
def test_a_config_that_is_none(content: str, attack: Attack, model: Copy) -> None:
    folder = model()
    (folder / "config.json").write_text(content, "utf-8")
    said = attack.refuse_model(folder)
    assert "config" in said


def test_a_config_of_many_megabytes(attack: Attack, model: Copy) -> None:
    folder = model()
    (folder / "config.json").write_text('{"a": "' + "x" * 40_000_000 + '"}', "utf-8")
    mentions(attack.refuse_model(folder, megabytes=200), "config.json", "bytes, expected at most")


@pytest.mark.parametrize("kind", ["Bert", "Albert", "GPT2", "Llama", "ModernBert"])
def test_honest_models_fit_their_own_weights(kind: str) -> None:
    import torch
    import transformers

    from finesmith.models.screen import Weights, fitting

    config = getattr(transformers, f"{kind}Config")()
    with torch.device("meta"):
        sizes = [tensor.numel() for tensor in transformers.AutoModel.from_config(config).state_dict().values()]
    fitting(Path("config.json"), config.to_dict(), Weights(len(sizes), sum(sizes), max(sizes)))


# --- headers ---------------------------------------------------------------------------------------------------------


def tensor(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS: dict[str, bytes] = {
    "length of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "length beyond the file": struct.pack("<Q", 10**8) + b"{}",
    "no length": b"\0\0",
    "length of 0": struct.pack("<Q", 0) + b"{}",
    "nothing": b"",
    "no JSON": struct.pack("<Q", 8) + b"{{{{{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
}
ENTRIES: dict[str, dict[str, Any] | str] = {
    "overlapping": {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)},
    "beyond the file": {"a": tensor([10**6], 0, 4 * 10**6)},
    "an overflowing shape": {"a": tensor([2**32, 2**32, 2**32], 0, 8)},
    "a shape of more than its bytes": {"a": tensor([10**9], 0, 8)},
    "a negative shape": {"a": tensor([-1], 0, 8)},
    "negative offsets": {"a": tensor([2], -8, 0)},
    "offsets backwards": {"a": tensor([2], 8, 0)},
    "offsets as text": {"a": tensor([2], "0", "8")},
    "an unknown type": {"a": tensor([2], 0, 8, "PICKLE")},
    "a hole": {"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)},
    "one name twice": '{"a": %s, "a": %s}' % (json.dumps(tensor([2], 0, 8)), json.dumps(tensor([1], 8, 12))),  # noqa: UP031
    "no entries": {"a": 7},
}
for name, entries in ENTRIES.items():
    raw = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    HEADERS[name] = struct.pack("<Q", len(raw)) + raw + b"\0" * 12


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_spoilt_header(name: str, attack: Attack, model: Copy) -> None:
    folder = model()
    (folder / "model.safetensors").write_bytes(HEADERS[name])
    said = attack.refuse_model(folder, megabytes=400)
    assert "header" in said or "weights" in said


# --- tokenizers ------------------------------------------------------------------------------------------------------

TEMPLATES = [
    "{% for i in range(10**12) %}{{ i }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ lipsum.__globals__['os'].popen('touch %s').read() }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_never_rendered_and_not_handed_on(template: str, attack: Attack, model: Copy) -> None:
    folder = model()
    template = template.replace("%s", str(attack.canary))
    change(folder / "tokenizer_config.json", chat_template=template)
    saved = handed_on(attack, folder)
    assert "{{" not in "".join(f.read_text("utf-8") for f in saved.glob("*.j*"))


def test_templates_whose_names_lead_out(attack: Attack, model: Copy) -> None:
    folder = model()
    named = [{"name": name, "template": "x"} for name in ("../../../planted", "/tmp/planted", "default")]
    change(folder / "tokenizer_config.json", chat_template=named)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "more.jinja").write_text("{{ evil }}", "utf-8")
    handed_on(attack, folder)
    assert not list(attack.place.rglob("planted*"))


def engine(folder: Path, **parts: Any) -> None:
    change(folder / "tokenizer.json", **parts)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


TEN = "xxxxxxxxxx"
STEPS: dict[str, dict[str, Any]] = {
    "one letter to a megabyte": {"normalizer": replace({"String": "a"}, "x" * 10**6)},
    "ten times ten times": {
        "normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": "."}, TEN) for _ in range(12)]}
    },
    "put before each": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "thousands of steps": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFD"}] * 5000}
    },
    "nested repeats": {"pre_tokenizer": split(r"([a-z]+)*!")},
    "repeated choice": {"pre_tokenizer": split(r"(a|a)*b")},
    "nested in a normaliser": {"normalizer": replace({"Regex": r"(\w+\s?)+$"}, "x")},
    "back references": {"pre_tokenizer": split(r"((.*)\2)+x")},
    "a pattern of a megabyte": {"pre_tokenizer": split("a?" * 500_000)},
    "a million marks a text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2] * 10**6, "tokens": ["[CLS]"] * 10**6}},
        }
    },
}


@pytest.mark.parametrize("name", list(STEPS))
def test_a_tokenizer_that_never_ends(name: str, attack: Attack, model: Copy) -> None:
    folder = model()
    engine(folder, **STEPS[name])
    mentions(attack.refuse_model(folder, megabytes=400), "tokenizer.json", "name another model")


@pytest.mark.parametrize("parts", [
    {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"}},
    {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
    {"pre_tokenizer": split(r".*.*.*.*.*.*.*.*.*.*x")},
    {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 10**15, "vocab": {"[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[PAD]": 0}}},
    {"added_tokens": [{"id": 2**31, "content": "x", "single_word": False, "lstrip": False, "rstrip": False,
                       "normalized": True, "special": False}]},
    {"model": {"type": "WordPiece", "vocab": {"[UNK]": 2**32 - 1}, "unk_token": "[UNK]",
               "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}},
    {"version": "9.0"},
    {"model": None},
    {"decoder": {"type": "Evil", "code": "import os"}},
], ids=["padding", "truncation", "polynomial", "words", "id", "vocabulary", "version", "model", "decoder"])  # fmt: skip
def test_settings_of_a_tokenizer(parts: dict[str, Any], attack: Attack, model: Copy) -> None:
    folder = model()
    engine(folder, **parts)
    with contextlib.suppress(ModelError):
        network = attack.load(folder, megabytes=400)
        with attack.watched(megabytes=400):
            tokenize(["a film", "x" * 5000], None, network.tokenizer, max_length=64, cache=None)


def test_a_pattern_that_gives_up_on_a_text(attack: Attack, model: Copy) -> None:
    folder = model()
    engine(folder, pre_tokenizer=split(r".*.*.*.*.*.*.*[0-9][0-9]"))
    rows = [(f"{text.rsplit(maxsplit=1)[0]} {i % 10} " * 40, label) for i, (text, label) in enumerate(reviews(90))]
    file = write_csv(attack.place / "long.csv", rows)
    mentions(attack.tune(file, folder), "the tokenizer gave up", "name another model")


# --- adapters --------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, Any] = {
    "r": 10**9, "rank_pattern": {"query": 10**9}, "megatron_config": {"a": 1}, "layer_replication": [[0, 10**9]],
    "init_lora_weights": "pissa_niter_1000000", "target_modules": "(.*)*x", "peft_type": "XLORA",
    "auto_mapping": {"parent_library": "evil", "base_model_class": "EvilModel"},
    "loftq_config": {"loftq_bits": 4}, "exclude_modules": "(a+)+$",
}  # fmt: skip


@pytest.mark.parametrize("key", list(ADAPTERS))
def test_an_adapter_that_asks_for_more(key: str, attack: Attack, adapted: Path) -> None:
    folder = attack.place / "theirs"
    shutil.copytree(adapted, folder)
    change(folder / "model" / "adapter_config.json", megatron_core="evil", **{key: ADAPTERS[key]})
    mentions(attack.refuse_reload(folder / "model"), "adapter_config.json")


@pytest.mark.parametrize("base", ["/etc", "../../..", "/dev/zero", "evil/base", 7, None, ["a"]])
def test_an_adapter_on_another_base(base: Any, attack: Attack, adapted: Path) -> None:
    folder = attack.place / "theirs"
    shutil.copytree(adapted, folder)
    change(folder / "model" / "finesmith.json", base=base)
    change(folder / "model" / "adapter_config.json", base_model_name_or_path="/etc")
    attack.refuse_reload(folder / "model")


def test_an_adapter_with_code_and_links(attack: Attack, adapted: Path, small: Path) -> None:
    folder = attack.place / "theirs"
    shutil.copytree(adapted, folder)
    with_code(folder / "model", attack)
    change(folder / "model" / "config.json", auto_map=AUTO)
    change(folder / "model" / "tokenizer_config.json", auto_map=AUTO)
    seal(folder / "model")
    assert attack.call("predict", folder, small, "-q").status == 0
    (folder / "model" / "adapter_model.safetensors").rename(attack.place / "weights")
    (folder / "model" / "adapter_model.safetensors").symlink_to(attack.place / "weights")
    attack.refuse("predict", folder, small)


WRONG: list[tuple[str, Any]] = [
    ("task", []), ("task", {"name": "__import__('os')"}), ("task", None), ("method", "evil"), ("max_length", 10**12),
    ("max_length", "x"), ("max_length", -1), ("cleaning", {"evil": 1}), ("cleaning", {"lemmatise": "../../evil"}),
    ("cleaning", 7), ("text", 7), ("pooling", "os.system"), ("revision", "../../x"), ("metric", []), ("text_pair", 7),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_models_own_record_that_is_wrong(key: str, value: Any, attack: Attack, finished: Path, small: Path) -> None:
    folder = attack.place / "theirs"
    shutil.copytree(finished, folder)
    change(folder / "model" / "finesmith.json", **{key: value})
    seal(folder / "model")
    said = attack.call("predict", folder, small, "-q")
    assert said.status in {0, 2}, said
    assert said.status == 0 or said.err.count("finesmith: ") == 1


def test_patterns_in_a_recipe_that_never_end(attack: Attack, tiny_model: Path, small: Path) -> None:
    words = ("--set", "method.name=lora", "--set", "method.lora.target_modules='(.*)*x'", "--set", "train.epochs=1")
    said = attack.refuse("tune", small, "--model", tiny_model, "--out", attack.run, *words)
    mentions(said, "target_modules")
    assert finesmith("runs", attack.place).status == 0
