"""What goes wrong on the user's side: one clear message, exit status 2, nothing lost, nothing that looks finished."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from terminal import finesmith, read_json, refused, reviews, write_csv, write_jsonl

FAST = ("--set", "method.name=features")


@pytest.fixture
def tune(tiny_model: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a call of `tune` that must be refused; no folder may say afterwards that it has finished."""

    def call(data: object, *words: object, out: str = "run", status: int = 2) -> str:
        said = refused("tune", data, "--model", tiny_model, "--out", tmp_path / out, *FAST, *words, status=status)
        for found in tmp_path.rglob("run.json"):
            assert read_json(found)["state"] == "failed"
            assert (found.parent / "report.html").is_file()
        return said

    return call


def mentions(said: str, *parts: str) -> None:
    assert [part for part in parts if part not in said] == [], said


# --- files ------------------------------------------------------------------------------------------------------


def test_a_missing_file(tune: Callable[..., str], tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", reviews(3))
    mentions(tune(tmp_path / "revews.csv"), "revews.csv: no such file", "nearest name there is", "reviews.csv")
    assert not (tmp_path / "run").exists(), "a folder that holds nothing is not left behind"


def test_a_mistyped_name_leaves_no_folder_behind(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("tune", "revews.csv", "--model", tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_is_not_installed(tune: Callable[..., str], small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    mentions(tune(small, "--set", "output.tensorboard=true"), "tensorboard", "finesmith[tensorboard]")


def test_a_folder_without_data(tune: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mentions(tune(tmp_path / "empty"), str(tmp_path / "empty"), "empty folder", "expected a data file")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "scan.pdf").write_bytes(b"%PDF")
    mentions(tune(tmp_path / "odd"), "scan.pdf", "name the file you mean")


def test_a_file_that_may_not_be_read(tune: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_csv(tmp_path / "secret.csv", reviews())
    opened = Path.open

    def guarded(path: Path, *words: Any, **named: Any) -> Any:
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *words, **named)

    monkeypatch.setattr(Path, "open", guarded)
    mentions(tune(file), "secret.csv", "permission denied", "make the file readable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permissions(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "secret.csv", reviews())
    file.chmod(0)
    mentions(tune(file), "secret.csv", "permission denied")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["bad.csv is empty", "expected a header such as text,label"]),
        (b"text,label\n", ["bad.csv has a header (text, label) but no rows"]),
        (bytes(range(256)) * 40, ["bad.csv", "NUL bytes", "binary"]),
        (b"text,label\na,b\nc\nd,e,f\n", ["bad.csv row 2 has 1 field, expected 2"]),
        (b"text,text\na,b\n", ["bad.csv", "'text' twice"]),
    ],
)
def test_a_file_that_is_no_table(
    content: bytes, parts: Sequence[str], tune: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    mentions(tune(tmp_path / "bad.csv"), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "head", "tail", "expected"),
    [
        ("big.csv", b"", b"", "the first line has 50,000,000 characters"),
        ("rows.csv", b'text,label\n"', b'",a\n', "row 1: column 'text' holds 50,000,000 characters"),
        ("big.jsonl", b'{"label": "a", "text": "', b'"}\n', "row 1: column 'text' holds 50,000,000 characters"),
    ],
)
def test_fifty_megabytes_in_one_line(
    name: str, head: bytes, tail: bytes, expected: str, tune: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(head + b"word " * 10_000_000 + tail)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    said = tune(tmp_path / name)
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000, "kilobytes"
    mentions(said, name, expected)
    assert len(said) < 500, "the line itself is not repeated"


# --- columns ----------------------------------------------------------------------------------------------------


def test_a_wrong_column_name(tune: Callable[..., str], small: Path) -> None:
    said = tune(small, "--set", "data.text=txet")
    mentions(said, "small.csv", "data.text is 'txet'", "is it 'text'?", "text, label")
    mentions(tune(small, "--set", "data.label=lable"), "data.label is 'lable'", "is it 'label'?")
    mentions(tune(small, "--set", "data.group=customer"), "data.group is 'customer'", "text, label")


def test_two_readings_of_the_label(tune: Callable[..., str], tmp_path: Path) -> None:
    rows = [(t, y, ["s", "m", "l"][i % 3]) for i, (t, y) in enumerate(reviews())]
    file = write_csv(tmp_path / "two.csv", rows, "text,colour,size")
    mentions(tune(file), "two.csv", "'colour'", "'size'", "--set data.label=colour or --set data.label=size")


def test_a_text_column_of_numbers(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "numbers.csv", [(7 * i, y) for i, (_, y) in enumerate(reviews())])
    mentions(tune(file), "numbers.csv", "no column of free text", "--set data.text=COLUMN")


def test_all_texts_empty(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "empty.csv", [("", y) for _, y in reviews()])
    mentions(tune(file), "empty.csv", "no column of free text")
    mentions(tune(file, "--set", "data.text=text"), "data.text is 'text', but that column has no values")


def test_all_texts_identical(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "same.csv", [("the same words", y) for _, y in reviews()])
    mentions(tune(file), "same.csv", "2 rows", "add rows")


def test_nobody_knows_which_column_is_the_label(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "none.csv", [(t, "") for t, _ in reviews()])
    mentions(tune(file), "none.csv", "no column that looks like a label", "label (no values)", "data.label=COLUMN")


# --- labels -----------------------------------------------------------------------------------------------------


def test_one_class_only(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "one.csv", [(t, "pos") for t, _ in reviews()])
    mentions(tune(file), "one.csv", "only the label 'pos' in 120 examples", "two classes or more")


@pytest.mark.parametrize("count", [3, 10])
def test_too_few_rows(count: int, tune: Callable[..., str], tmp_path: Path) -> None:
    said = tune(write_csv(tmp_path / "few.csv", reviews(count)))
    mentions(said, "few.csv", f"{count} ")
    assert "add rows" in said.lower()


def test_as_many_classes_as_rows(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "ids.csv", [(t, f"x{i}") for i, (t, _) in enumerate(reviews())])
    mentions(tune(file), "'label'", "120 distinct values in 120 rows", "data.label=")


def test_blank_labels_are_dropped_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    blanks = ["NaN", "", "nan", " ", "null", "#N/A"]
    rows = [(t, blanks[i // 2 % 6] if i % 20 < 6 else y) for i, (t, y) in enumerate(reviews())]
    file = write_csv(tmp_path / "blank.csv", rows)
    said = finesmith("tune", file, "--model", tiny_model, "--out", tmp_path / "run", *FAST)
    assert said.status == 0, said.err
    assert "36 rows (30.0 %) have no label [drop]" in said.err
    flow = {stage["stage"]: stage["rows"] for stage in read_json(tmp_path / "run" / "data.json")["flow"]}
    assert flow["dropped: missing_labels"] == -36
    assert flow["read"] == 120 == 36 + flow["train"] + flow["validation"] + flow["test"]
    assert read_json(tmp_path / "run" / "data.json")["labels"] == ["neg", "pos"]


def test_all_labels_nan(tune: Callable[..., str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "nan.csv", [(t, "NaN") for t, _ in reviews()])
    mentions(tune(file), "nan.csv", "none of the 120 rows can be used", "missing labels 120", "data.label=COLUMN")


def test_mixed_types_of_labels_are_told_and_kept_apart(tiny_model: Path, tmp_path: Path) -> None:
    values = [1, "good", True, None, 2.5]
    rows = [{"text": t, "label": values[i % 5]} for i, (t, _) in enumerate(reviews())]
    file = write_jsonl(tmp_path / "mixed.jsonl", rows)
    said = finesmith("tune", file, "--model", tiny_model, "--out", tmp_path / "run", *FAST)
    assert said.status == 0, said.err
    assert "mixed.jsonl: column 'label' mixes types (a number, text, true or false)" in said.err
    data = read_json(tmp_path / "run" / "data.json")
    assert len(data["labels"]) == 4
    assert {"1", "2.5", "good"} < set(data["labels"])


def test_words_where_numbers_belong(tune: Callable[..., str], small: Path) -> None:
    mentions(tune(small, "--set", "task=regression"), "small.csv", "none of the 120 rows can be used")


def test_one_class_written_two_ways(tune: Callable[..., str], tmp_path: Path) -> None:
    rows = [(t, y if i % 3 else y.upper()) for i, (t, y) in enumerate(reviews())]
    mentions(tune(write_csv(tmp_path / "case.csv", rows)), "case.csv", "'NEG' and 'neg' differ only in case")


def test_labels_of_the_test_file_that_training_does_not_know(
    tune: Callable[..., str], small: Path, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "test.csv", [("some text", "pos"), ("other text", "neutral"), ("a third", "neg")])
    said = tune(small, "--set", f"data.test={file}")
    mentions(said, "'neutral' at", "test.csv row 2", "'neg', 'pos'")


def test_a_test_file_without_the_label_column(tune: Callable[..., str], small: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "test.csv", reviews(9), "text,verdict")
    said = tune(small, "--set", f"data.test={file}")
    mentions(said, "test.csv has no column 'label', which the training data has", "text, verdict")


def test_a_split_column_with_another_word(tune: Callable[..., str], tmp_path: Path) -> None:
    rows = [(t, y, "train" if i < 80 else "vall") for i, (t, y) in enumerate(reviews())]
    file = write_csv(tmp_path / "split.csv", rows, "text,label,split")
    mentions(tune(file, "--set", "data.split=split"), "'vall' at", "split.csv row 81", "expected train, validation")


# --- recipes ----------------------------------------------------------------------------------------------------

ALL_WRONG = """\
task: clasification
data:
  train: small.csv
  texxt: a
  validation_fraction: 2
train:
  epochs: many
  learning_rate: 5
  seeed: 3
modle:
  base: x
"""


def test_every_mistake_of_a_recipe_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(ALL_WRONG, "utf-8")
    said = refused("tune", recipe, "--set", "guards.patience=soon", "--out", tmp_path / "run")
    for line, part in {
        1: "did you mean classification?",
        4: "unknown key data.texxt, did you mean data.text?",
        5: "data.validation_fraction is 2",
        7: "train.epochs is 'many'",
        8: "train.learning_rate is 5, expected 0 < learning_rate < 1",
        9: "did you mean train.seed?",
        10: "unknown key modle, did you mean model?",
    }.items():
        assert any(f"recipe.yaml:{line}: " in each and part in each for each in said.splitlines()), (line, said)
    assert "guards.patience is 'soon'" in said
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_yaml(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  train: [a, b\ntrain:\n  epochs: 3\n", "utf-8")
    mentions(refused("tune", recipe), "recipe.yaml:3: not valid YAML")
    mentions(refused("check", tmp_path / "absent.yaml"), "absent.yaml: there is no such recipe file")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], "'nonsense' is not key=value"),
        (["train.epoch=3"], "unknown key train.epoch, did you mean train.epochs?"),
        (["train.epochs=-1"], "train.epochs is -1"),
        (["evaluate.metric=rmse"], "choose one of accuracy, macro_f1"),
        (["data.max_length=4000"], "the base model takes at most 64 tokens"),
    ],
)
def test_settings_that_cannot_be(words: list[str], expected: str, tune: Callable[..., str], small: Path) -> None:
    mentions(tune(small, *(part for word in words for part in ("--set", word))), expected)


def test_data_named_twice(tune: Callable[..., str], small: Path, tmp_path: Path) -> None:
    mentions(tune(small, small), "given twice")
    mentions(tune(small, "--set", f"data.test={small}"), "which data.train reads too")
    mentions(tune(small, tmp_path / "x.yaml"), "x.yaml is a recipe; give it alone")


# --- folders ----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_into_a_folder_that_is_not_empty(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious", "utf-8")
    said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "full")
    mentions(said, str(tmp_path / "full"), "not an empty folder", "--out")
    assert contents(tmp_path) == {"full/thesis.txt": b"precious"}
    said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "full" / "thesis.txt")
    mentions(said, "thesis.txt", "--out")
    said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "full" / "thesis.txt" / "run")
    mentions(said, "thesis.txt/run", "--out")
    assert contents(tmp_path) == {"full/thesis.txt": b"precious"}


def test_a_finished_run_is_never_overwritten(tuned: Path, small: Path, tiny_model: Path) -> None:
    before = contents(tuned)
    said = refused("tune", small, "--model", tiny_model, "--out", tuned)
    mentions(said, str(tuned), "already holds a run (finished)", "--out")
    assert "resume" not in said, "there is nothing to resume"
    mentions(refused("resume", tuned), "has finished; there is nothing to resume", "report.html")
    assert contents(tuned) == before


def test_a_failed_run_can_be_resumed_once_its_data_are_mended(
    tune: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "data.csv", [(t, "pos") for t, _ in reviews()])
    mentions(tune(file), "only the label 'pos'", f"What was done is kept in {tmp_path / 'run'}", "report.html")
    again = refused("tune", file, "--model", tiny_model, "--out", tmp_path / "run")
    mentions(again, "already holds a run (failed)", "finesmith resume")
    mentions(refused("predict", tmp_path / "run", file), "has failed, so it has no model yet", "finesmith resume")
    write_csv(file, reviews())
    assert finesmith("resume", tmp_path / "run", "-q").status == 0
    assert read_json(tmp_path / "run" / "run.json")["state"] == "finished"


@pytest.mark.parametrize("command", ["resume", "report", "predict", "evaluate"])
def test_what_is_not_a_run_folder(command: str, small: Path, tmp_path: Path) -> None:
    rest = {"predict": [small], "evaluate": ["--data", small]}.get(command, [])
    for place in (tmp_path / "nowhere", tmp_path, small):
        mentions(refused(command, place, *rest), f"{place} is not a run folder", "finesmith runs")
    (tmp_path / "run.json").write_text("[]", "utf-8")
    mentions(refused(command, tmp_path, *rest), "run.json", "damaged")
    (tmp_path / "run.json").write_text('{"state": "fini', "utf-8")
    mentions(refused(command, tmp_path, *rest), "run.json cannot be read")


def test_a_run_in_use(tuned: Path, small: Path, tmp_path: Path) -> None:
    from finesmith.run import Run

    run = Run.create(tmp_path / "busy", command="test")
    try:
        mentions(refused("resume", tmp_path / "busy"), "in use by another finesmith process")
        mentions(refused("predict", tmp_path / "busy", small), "still running")
        mentions(refused("tune", small, "--out", tmp_path / "busy"), "already holds a run (running)")
    finally:
        run.close()


def test_a_model_folder_that_is_gone(tuned: Path, small: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "model")
    mentions(refused("predict", tmp_path / "copy", small), "its model folder is gone or damaged")


# --- predict and evaluate ---------------------------------------------------------------------------------------


def test_predict_on_a_file_without_the_text_column(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "other.csv", [("good film", 1)], "texts,x")
    mentions(refused("predict", tuned, file), "other.csv has no text column 'text'", "is it 'texts'?", "--text COLUMN")
    mentions(refused("predict", tuned, tmp_path / "absent.csv"), "absent.csv: no such file")
    mentions(refused("predict", tuned, file, "--text", "texts", "--text-pair", "x"), "one text, not a pair")


def test_output_that_cannot_be_written(tuned: Path, small: Path, tmp_path: Path) -> None:
    before = small.read_bytes()
    for out, part in {
        tmp_path / "x.xls": "expected a name ending in .csv, .jsonl, .parquet",
        tmp_path / "absent" / "x.csv": "does not exist",
        small: "is the file that is read",
    }.items():
        mentions(refused("predict", tuned, small, "-o", out), str(out), part)
    (tmp_path / "folder.csv").mkdir()
    mentions(refused("predict", tuned, small, "-o", tmp_path / "folder.csv"), "it is a folder")
    assert small.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_output_into_a_folder_without_permission(tuned: Path, small: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    mentions(refused("predict", tuned, small, "-o", tmp_path / "x.csv"), "permission denied")
    mentions(refused("tune", small, "--out", tmp_path / "run"), "cannot make the run folder")


def test_evaluate_on_labels_that_the_model_does_not_know(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "new.csv", [("good film", "pos"), ("so so", "neutral")])
    mentions(refused("evaluate", tuned, "--data", file), "'neutral' at", "new.csv row 2", "'neg', 'pos'")
    file = write_csv(tmp_path / "none.csv", [("good film", ""), ("so so", "")])
    mentions(refused("evaluate", tuned, "--data", file), "none.csv: column 'label' holds no labels in 2 rows")
    file = write_csv(tmp_path / "name.csv", [("good film", "pos")], "text,labels")
    mentions(refused("evaluate", tuned, "--data", file), "no label column 'label'", "is it 'labels'?", "--label COLUMN")


def test_runs_of_a_file(small: Path) -> None:
    mentions(refused("runs", small), "is a file; name the folder")


# --- base models ------------------------------------------------------------------------------------------------


def test_base_models_that_are_none(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "empty").mkdir()
    for base, parts in {
        tmp_path / "absent": ["model.base is", "absent", "not a folder"],
        small: ["model.base is", "not a folder"],
        tmp_path / "empty": ["empty holds no config.json"],
        pickled: ["no .safetensors weights", "pytorch_model.bin", "pickles can run code"],
        bare: ["cannot load the tokenizer of 'bare'"],
        broken: ["cannot load the model of 'broken'"],
        "no-such-model-anywhere": ["no-such-model-anywhere"],
    }.items():
        said = refused("tune", small, "--model", base, "--out", tmp_path / "run" / str(base)[-6:], *FAST)
        mentions(said, *parts)


def test_the_tokenizer_of_another_model(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_model, mixed)
    config = read_json(mixed / "config.json")
    tokenizer = read_json(mixed / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{i}": config["vocab_size"] + i for i in range(50)}
    (mixed / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    said = refused("tune", small, "--model", mixed, "--out", tmp_path / "run", *FAST)
    mentions(said, "tokenizer", str(config["vocab_size"]))


# --- during training --------------------------------------------------------------------------------------------


def poisoned(tiny_model: Path, folder: Path, word: str) -> Path:
    """Return a model whose vector of one word is not a number."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(word)] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_not_finite_stops_the_run(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    model, run = poisoned(tiny_model, tmp_path / "model", "late"), tmp_path / "run"
    said = refused("tune", small, "--model", model, "--out", run, "--set", "evaluate.baselines=[majority]")
    mentions(said, "training diverged at step 1 of", "the loss is nan", "train.learning_rate", str(run))
    record = read_json(run / "run.json")
    assert record["state"] == "failed"
    assert record["error"]["kind"] == "DivergenceError"
    assert "diverged at step 1" in (run / "report.html").read_text("utf-8")
    assert not (run / "verdict.json").exists()
    assert not (run / "model").exists()


def test_a_full_disk_is_not_our_fault(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/run/weights")

    monkeypatch.setattr("finesmith.workflows.fit.fit", full)
    said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "run")
    mentions(said, "/data/run/weights: No space left on device", "free some space", "What was done is kept")
    assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"


def test_too_little_memory_is_explained(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("finesmith.workflows.fit.fit", exhausted)
    said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "run")
    mentions(said, "not enough memory", "train.micro_batch_size=1")


def test_a_fault_of_ours_leaves_with_status_1(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.delenv("FINESMITH_TRACEBACK", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.workflows.fit.fit", broken)
        said = refused("tune", small, "--model", tiny_model, "--out", tmp_path / "run", status=1)
    mentions(said, "please report", "KeyError", "tune.py:", "FINESMITH_TRACEBACK=1", str(tmp_path / "run"))
    assert "surprise" not in said, "such a message may hold anything, and a pipe may lead into a log"
    error = read_json(tmp_path / "run" / "run.json")["error"]
    assert error["kind"] == "internal"
    assert re.fullmatch(r"KeyError at workflows/tune\.py:\d+", error["message"])
    assert "KeyError" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert finesmith("resume", tmp_path / "run", "-q").status == 0, "nothing is lost"


def test_a_fault_of_the_report_never_hides_the_error(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("finesmith.report.page.build", broken)
    file = write_csv(tmp_path / "one.csv", [(t, "pos") for t, _ in reviews()])
    said = refused("tune", file, "--model", tiny_model, "--out", tmp_path / "a")
    mentions(said, "only the label 'pos'", "report could not be made", "finesmith report")
    finished = finesmith("tune", small, "--model", tiny_model, "--out", tmp_path / "b", *FAST)
    assert finished.status == 1
    mentions(finished.complaint, "the run has finished", "report could not be made", "finesmith report")
    assert read_json(tmp_path / "b" / "run.json")["state"] == "finished"
    assert finesmith("predict", tmp_path / "b", small, "-q").status == 0
