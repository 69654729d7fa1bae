"""Pickles run code when they are loaded. Under whatever name one comes, it is refused or left alone."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import Attack, mentions, pickled

from finesmith.data.tokens import tokenize
from finesmith.models.load import find, load_tokenizer
from finesmith.models.save import save_classifier
from finesmith.workflows.seal import seal
from terminal import reviews

DATA = [
    "csv",
    "tsv",
    "txt",
    "json",
    "jsonl",
    "parquet",
    "xlsx",
    "csv.gz",
    "jsonl.gz",
    "npy",
    "pkl",
    "safetensors",
    "pt",
]


@pytest.mark.parametrize("ending", DATA)
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_named_as_data(ending: str, protocol: int, attack: Attack) -> None:
    file = attack.place / f"reviews.{ending}"
    content = pickled(attack.canary, protocol)
    file.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    mentions(attack.refuse_data(file), file.name)


def test_a_pickle_is_refused_on_the_command_line(attack: Attack, model: Callable[[], Path], small: Path) -> None:
    file, folder = attack.place / "reviews.csv", model()
    file.write_bytes(pickled(attack.canary))
    mentions(attack.tune(file, folder), "reviews.csv", "pickle")
    (folder / "model.safetensors").write_bytes(pickled(attack.canary))
    mentions(attack.tune(small, folder), "safetensors header")


def test_a_zip_of_pickles_as_torch_writes_it(attack: Attack) -> None:
    file = attack.place / "reviews.xlsx"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(attack.canary))
    mentions(attack.refuse_data(file), "reviews.xlsx", "cannot be read as an Excel workbook")


def test_numpy_objects_named_as_csv(attack: Attack) -> None:
    import numpy as np

    file = attack.place / "reviews.csv"
    with file.open("wb") as handle:
        np.save(handle, np.array([attack], dtype=object), allow_pickle=True)
    mentions(attack.refuse_data(file), "reviews.csv", "NumPy array")


def test_a_parquet_file_with_a_pickled_type(attack: Attack) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickled(attack.canary),
    }
    texts, labels = zip(*reviews(), strict=True)
    fields = [pa.field("text", pa.string(), metadata=extension), pa.field("label", pa.string())]
    table = pa.table([pa.array(texts), pa.array(labels)], schema=pa.schema(fields))
    parquet.write_table(table, attack.place / "reviews.parquet")
    assert attack.read(attack.place / "reviews.parquet").table.num_rows == 120, "the column itself is plain text"


WEIGHTS = ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "tf_model.h5", "flax_model.msgpack"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_pickled_weights(name: str, attack: Attack, model: Callable[[], Path]) -> None:
    folder = model()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickled(attack.canary))
    mentions(attack.refuse_model(folder), "no .safetensors weights")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_named_safetensors(protocol: int, attack: Attack, model: Callable[[], Path]) -> None:
    folder = model()
    (folder / "model.safetensors").write_bytes(pickled(attack.canary, protocol))
    mentions(attack.refuse_model(folder), "model.safetensors", "safetensors header")


BESIDE = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "head.joblib"]


def test_pickles_beside_good_weights_are_left_alone(attack: Attack, model: Callable[[], Path], small: Path) -> None:
    folder = model()
    for name in BESIDE:
        (folder / name).write_bytes(pickled(attack.canary))
    network = attack.load(folder)
    with attack.watched():
        save_classifier(network, attack.run / "model")
    assert not {path.name for path in attack.run.rglob("*")} & set(BESIDE), "and not handed on"


TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize("name", TOKENIZER)
def test_a_pickle_in_place_of_a_tokenizer_file(name: str, attack: Attack, model: Callable[[], Path]) -> None:
    folder = model()
    (folder / name).write_bytes(pickled(attack.canary))
    mentions(attack.refuse_model(folder), name)


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt"])
def test_a_pickle_as_the_only_vocabulary(name: str, attack: Attack, model: Callable[[], Path]) -> None:
    folder = model()
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(pickled(attack.canary))
    mentions(attack.refuse_model(folder), "tokenizer")


def test_a_pickle_named_config(attack: Attack, model: Callable[[], Path]) -> None:
    folder = model()
    (folder / "config.json").write_bytes(pickled(attack.canary))
    mentions(attack.refuse_model(folder), "config.json", "not valid JSON")


def test_an_adapter_of_pickles(attack: Attack, adapted: Path, small: Path) -> None:
    folder = attack.place / "theirs"
    shutil.copytree(adapted, folder)
    (folder / "model" / "adapter_model.safetensors").unlink()
    (folder / "model" / "adapter_model.bin").write_bytes(pickled(attack.canary))
    seal(folder / "model")
    mentions(attack.refuse("predict", folder, small), "adapter_model.safetensors")


def test_pickles_in_a_run_folder_are_left_alone(attack: Attack, finished: Path, small: Path) -> None:
    shutil.copytree(finished, attack.run)
    for place in ("", "model", "predictions", "checkpoints"):
        (attack.run / place).mkdir(exist_ok=True)
        for name in BESIDE:
            (attack.run / place / name).write_bytes(pickled(attack.canary))
    for words in (["predict", attack.run, small], ["report", attack.run], ["evaluate", attack.run, "--data", small]):
        assert attack.call(*words).status == 0


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_that_is_a_pickle(name: str, attack: Attack, finished: Path) -> None:
    shutil.copytree(finished, attack.run)
    about = json.loads((attack.run / "run.json").read_text("utf-8"))
    (attack.run / "run.json").write_text(json.dumps({**about, "state": "interrupted"}), "utf-8")
    shutil.rmtree(attack.run / "checkpoints", ignore_errors=True)
    checkpoint = attack.run / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    for each in ("tensors.safetensors", "state.json", "manifest.json"):
        (checkpoint / each).write_bytes(pickled(attack.canary) if each == name else b"{}")
    mentions(attack.refuse("resume", attack.run), "step-00000001", "no checkpoint can be used")


def test_token_caches_of_objects_are_made_again(attack: Attack, tiny_model: Path) -> None:
    import hashlib

    import numpy as np

    tokenizer, cache = load_tokenizer(find(str(tiny_model))), attack.run / "cache"
    first = tokenize(["a good film", "a bad film"], None, tokenizer, max_length=32, cache=cache).tokens.tolist()
    for manifest in cache.glob("*/manifest.json"):
        content = json.loads(manifest.read_text("utf-8"))["content"]
        for name in content["files"]:
            file = manifest.parent / name
            np.save(file, np.array([attack.canary], dtype=object), allow_pickle=True)
            file.write_bytes(file.read_bytes() + pickled(attack.canary))
            raw = file.read_bytes()
            content["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        body = json.dumps(content, sort_keys=True)
        whole = {"content": content, "sha256": hashlib.sha256(body.encode()).hexdigest()}
        manifest.write_text(json.dumps(whole, sort_keys=True), "utf-8")
    with attack.watched():
        again = tokenize(["a good film", "a bad film"], None, tokenizer, max_length=32, cache=cache)
    assert again.tokens.tolist() == first
    assert not again.cached
