"""Tasks that answer for every token: hostile files, labels, model folders; texts that must not leave."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from attacks import Attack, change, mentions
from test_injection import Elements, orders

from finesmith.workflows.seal import seal
from terminal import NEUTRAL, finesmith, read_json
from tiny import write_tiny_llama

NER, CAUSAL, MASKED = "token-classification", "causal-text", "masked-text"
FAST = ("--set", "train.epochs=1", "--set", "evaluate.bootstrap_samples=100", "--set", "data.encoding=utf-8")
SCRIPT, ESCAPE = "<script>alert(1)</script>", "\x1b]0;owned\x07"
LABELS = (f"=cmd|'/C_calc'!A0{SCRIPT}", f"{ESCAPE}\"onload='x'|a|b|![x](http://evil/x.png)")
SECRETS = tuple(f"qz{''.join(random.Random(i).choices('bcdfghjkmnpqrstvwz', k=12))}" for i in range(60))


def lines_of(labels: tuple[str, ...], secrets: tuple[str, ...] = ("anna",)) -> str:
    """Return sentences in columns, a span in each, its word a secret."""
    draw, sentences = random.Random(0), []
    for i in range(60):
        words = draw.choices(NEUTRAL, k=6)
        rows = [f"{word}\tO" for word in words]
        rows.insert(i % 5, f"{secrets[i % len(secrets)]}\tB-{labels[i % len(labels)]}")
        sentences.append("\n".join(rows))
    return "\n\n".join(sentences) + "\n"


def texts_of(secrets: tuple[str, ...]) -> str:
    draw = random.Random(1)
    return "\n\n".join(f"{' '.join(draw.choices(NEUTRAL, k=12))} {secret} {i}" for i, secret in enumerate(secrets))


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {NER: tiny_model, MASKED: tiny_model, CAUSAL: write_tiny_llama(tmp_path_factory.mktemp("llama"))}


def tuned(task: str, data: Path, model: Path, out: Path, *sets: str) -> Path:
    words = [word for one in (f"task={task}", *sets) for word in ("--set", one)]
    said = finesmith("tune", data, "--model", model, "--out", out, *FAST, *words)
    assert said.status == 0, said.err
    (out.parent / f"{out.name}.said").write_text(said.out + said.err, "utf-8")
    return out


@pytest.fixture(scope="module")
def injected(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose labels are markup, formulas and orders to a terminal."""
    place = tmp_path_factory.mktemp("injected")
    (place / "da<svg>ta.conll").write_text(lines_of(LABELS, ("anna", f"=HYPERLINK(1){SCRIPT}")), "utf-8")
    return tuned(NER, place / "da<svg>ta.conll", models[NER], place / "r<b>un")


def test_labels_and_words_are_no_markup_and_no_orders(injected: Path, attack: Attack) -> None:
    assert finesmith("report", injected).status == 0
    for page in (injected / "report.html", injected / "model" / "README.md"):
        text = page.read_text("utf-8")
        found = Elements()
        found.feed(text.split("---\n", 2)[-1])
        theirs = {"script", "img", "iframe", "object", "embed"} | ({"svg"} if page.suffix == ".md" else set())
        assert not found.names & theirs, found.names
        assert not [name for name in found.attributes if name.startswith("on")]
        assert orders(text.replace("\n", "")) == []
    assert orders((injected.parent / "r<b>un.said").read_text("utf-8").replace("\n", "")) == []
    data = next(injected.parent.glob("da*"))
    said = attack.call("evaluate", injected, "--data", data, "--json", writes=[injected])
    assert said.status == 0, said.err
    assert json.loads(said.out)["metric"] == "span_f1"
    assert orders(said.out.replace("\n", "")) == []
    for line in (injected / "events.jsonl").read_text("utf-8").splitlines():
        json.loads(line)


def test_predictions_are_written_whole_and_formulas_told(injected: Path, attack: Attack) -> None:
    data = next(injected.parent.glob("da*"))
    attack.run.mkdir()
    for ending in ("csv", "jsonl", "parquet"):
        said = attack.call("predict", injected, data, "-o", attack.run / f"out.{ending}")
        assert said.status == 0, said.err
    told = attack.call("predict", injected, data, "-o", attack.run / "again.csv").err
    mentions(told, "begin like formulas", "written as they are")
    rows = [json.loads(line) for line in (attack.run / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 60
    assert pq.read_table(attack.run / "out.parquet").column("text").to_pylist() == [row["text"] for row in rows]


# --- texts that must not leave ---------------------------------------------------------------------------------------


def content(path: Path) -> str:
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pydict(), default=str)
    return path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("task", [NER, CAUSAL, MASKED])
def test_a_redacted_run_folder_holds_no_text(task: str, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / ("data.conll" if task == NER else "data.txt")
    data.write_text(lines_of(("PER", "LOC"), SECRETS) if task == NER else texts_of(SECRETS), "utf-8")
    whole = tuned(task, data, models[task], tmp_path / "whole", "train.epochs=1")
    kept = "".join(content(path) for path in (whole / "predictions").glob("*"))
    assert sum(secret in kept for secret in SECRETS) >= 50, "the search finds what is there"
    # Only where they may be does a run hold texts that it may keep.
    for path in (path for path in whole.rglob("*") if path.is_file()):
        if not path.relative_to(whole).as_posix().startswith(("predictions", "report.html", "audit.json")):
            assert not [secret for secret in SECRETS if secret in content(path)], path
    redacted = tuned(task, data, models[task], tmp_path / "redacted", "output.redact=true", "output.tensorboard=true")
    for path in (path for path in redacted.rglob("*") if path.is_file()):
        assert not [secret for secret in SECRETS if secret in content(path)], path
    told = "".join((tmp_path / f"{name}.said").read_text("utf-8") for name in ("whole", "redacted"))
    assert not [secret for secret in SECRETS if secret in told]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conll", "anna\tO\nSECRET\n"), ("a.conll", "anna O\nSECRET B-PER O\n"), ("a.conll", "a\tO\nSECRET\t\n"),
        ("a.jsonl", '{"text": "SECRET b", "entities": [{"start": 1, "end": 3, "label": "PER"}]}\n'),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["SECRET"], "tags": "O"}\n'),
        ("a.jsonl", '{"text": "SECRET", "entities": [{"begin": 1}]}\n'),
        ("a.jsonl", '{"text": "SECRET", "entities": "no list"}\n'),
        ("a.jsonl", '{"text": {"SECRET": 1}, "entities": []}\n'),
    ],
)  # fmt: skip
def test_a_message_quotes_no_row(name: str, text: str, attack: Attack, tiny_model: Path) -> None:
    (attack.place / name).write_text(text, "utf-8")
    said = attack.tune(attack.place / name, tiny_model, *FAST, "--set", f"task={NER}", "--set", "method.name=full",
                       "--set", "evaluate.baselines=[majority]")  # fmt: skip
    assert "SECRET" not in said
    mentions(said, name)


# --- files -----------------------------------------------------------------------------------------------------------


def one_line(attack: Attack) -> Path:
    (attack.place / "a.txt").write_text("word " * 400_000, "utf-8")
    return attack.place / "a.txt"


def long_word(attack: Attack) -> Path:
    (attack.place / "a.conll").write_text(lines_of(("PER",)) + f"\n{'x' * 1_000_000}\tO\n", "utf-8")
    return attack.place / "a.conll"


def no_blank_lines(attack: Attack) -> Path:
    (attack.place / "a.conll").write_text(lines_of(("PER",)).replace("\n\n", "\n") * 40, "utf-8")
    return attack.place / "a.conll"


def binaries(attack: Attack) -> Path:
    folder = attack.place / "folder"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\x7fELF\0\0\1\2" * 99)
    return folder


def link_out(attack: Attack) -> Path:
    folder = attack.place / "folder"
    folder.mkdir()
    (folder / "a.txt").symlink_to("/etc/hostname")
    return folder


def half_character(attack: Attack) -> Path:
    rows = [{"text": f"{text} \ud800", "entities": []} for text in texts_of(SECRETS).split("\n\n")]
    (attack.place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return attack.place / "a.jsonl"


FILES: dict[str, tuple[str, Callable[[Attack], Path], str]] = {
    "one giant line": (MASKED, one_line, "a.txt"),
    "a sentence that is the file": (NER, no_blank_lines, "3"),
    "binaries in a folder": (MASKED, binaries, "folder/a.txt: holds a program"),
    "a link out of a folder": (MASKED, link_out, "leads out of"),
    "halves of characters": (NER, half_character, "two tags"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_cannot_be_used_get_one_message(what: str, attack: Attack, tiny_model: Path) -> None:
    task, make, said = FILES[what]
    words = ("--set", f"task={task}", "--set", "method.name=full", "--set", "evaluate.baselines=[base]")
    if task == NER:
        words = (*words[:-1], "evaluate.baselines=[majority]")
    mentions(attack.tune(make(attack), tiny_model, *words), said)


def test_a_word_of_a_megabyte_counts_as_one(attack: Attack, tiny_model: Path) -> None:
    words = ("--set", f"task={NER}", *FAST)
    said = attack.call("tune", long_word(attack), "--model", tiny_model, "--out", attack.run, *words)
    assert said.status == 0, said.err
    splits = read_json(attack.run / "data.json")["splits"]
    assert sum(part["rows"] for part in splits.values()) == 61
    assert splits["train"]["rows"] > 30, "its characters do not decide who is tested"


# --- model folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("finished")
    (place / "a.conll").write_text(lines_of(("PER", "LOC")), "utf-8")
    (place / "a.txt").write_text(texts_of(SECRETS), "utf-8")
    return {
        task: tuned(task, place / ("a.conll" if task == NER else "a.txt"), models[task], place / task)
        for task in (NER, CAUSAL, MASKED)
    }


O_ONLY = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
ABOUTS: list[tuple[str, dict[str, Any]]] = [
    (NER, {"task": {"name": ["x"], "labels": O_ONLY, "scheme": "IOB2"}}),
    (NER, {"task": {"name": NER, "labels": O_ONLY[::-1], "scheme": "IOB2"}}),
    (NER, {"task": {"name": NER, "labels": O_ONLY[:3], "scheme": "IOB2"}}),
    (NER, {"task": {"name": NER, "labels": "OBLIP", "scheme": "IOB2"}}),
    (NER, {"task": {"name": NER, "labels": O_ONLY, "scheme": ["IOB2"]}}),
    (NER, {"task": {"name": "../../evil", "labels": O_ONLY, "scheme": "IOB2"}}),
    (NER, {"metric": SCRIPT}), (NER, {"metric": "bits_per_byte"}), (NER, {"max_length": 10**30}),
    (NER, {"max_length": 65}), (NER, {"max_length": True}), (NER, {"max_length": 2}), (NER, {"method": ["full"]}),
    (NER, {"reading": {}}), (NER, {"reading": {"encoding": 7, "text": None, "label": None, "separator": None}}),
    (CAUSAL, {"task": {"name": CAUSAL, "overlap": float("inf")}}), (CAUSAL, {"task": {"name": CAUSAL, "overlap": -3}}),
    (CAUSAL, {"task": {"name": CAUSAL, "overlap": 10**9}}), (CAUSAL, {"task": {"name": CAUSAL, "overlap": True}}),
    (MASKED, {"task": {"name": MASKED, "overlap": 0, "rate": float("nan"), "whole_words": True}}),
    (MASKED, {"task": {"name": MASKED, "overlap": 0, "rate": 7.0, "whole_words": True}}),
    (MASKED, {"task": {"name": MASKED, "overlap": 0, "rate": 0.2, "whole_words": "yes"}}),
    (CAUSAL, {"task": {"name": MASKED, "overlap": 0, "rate": 0.2, "whole_words": True}, "max_length": 30}),
    (NER, {"method": "lora", "base": "x" * 100_000}), (NER, {"method": "lora", "base": "/etc"}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ABOUTS)))
def test_what_a_model_says_of_itself(number: int, attack: Attack, finished: dict[str, Path]) -> None:
    task, values = ABOUTS[number]
    shutil.copytree(finished[task], attack.run)
    change(attack.run / "model" / "finesmith.json", **values)
    seal(attack.run / "model")
    data = finished[task].parent / ("a.conll" if task == NER else "a.txt")
    attack.refuse("predict", attack.run, data)


@pytest.mark.parametrize("name", ["finesmith.json", "model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_that_changed_is_not_used(name: str, attack: Attack, finished: dict[str, Path]) -> None:
    shutil.copytree(finished[NER], attack.run)
    raw = bytearray((attack.run / "model" / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (attack.run / "model" / name).write_bytes(bytes(raw))
    mentions(attack.refuse("predict", attack.run, finished[NER].parent / "a.conll"), name, "not as it was saved")


PLANTED: dict[str, dict[str, Any]] = {
    "scores.json": {"test": {"span_f1": {"value": 10**400, "low": SCRIPT}}, "details": {"per_class": [{"label": SCRIPT}]}},  # noqa: E501
    "data.json": {"labels": [SCRIPT, 7, None], "splits": {"train": {"rows": SCRIPT, "labels": [SCRIPT]}}, "tokens": 3},
    "model.json": {"head": [SCRIPT], "base": SCRIPT},
    "verdict.json": {"conclusion": SCRIPT + ESCAPE, "task": SCRIPT, "metric": "span_f1", "tuned": [1]},
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_record_that_was_planted(name: str, attack: Attack, finished: dict[str, Path]) -> None:
    shutil.copytree(finished[NER], attack.run)
    change(attack.run / name, **PLANTED[name])
    assert attack.call("report", attack.run).status == 0
    found = Elements()
    found.feed((attack.run / "report.html").read_text("utf-8"))
    assert not found.names & {"script", "img", "iframe", "object", "embed"}
    assert orders(attack.call("runs", attack.place).out.replace("\n", "")) == []


def test_words_are_tagged_in_a_file_that_has_no_tags(attack: Attack, finished: dict[str, Path]) -> None:
    attack.run.mkdir()
    (attack.place / "new.conll").write_text("anna\nsat\n\nthe\nfilm\n", "utf-8")
    said = attack.call("predict", finished[NER], attack.place / "new.conll", "-o", attack.run / "out.parquet")
    assert said.status == 0, said.err
    assert [len(row) for row in pq.read_table(attack.run / "out.parquet").column("tags").to_pylist()] == [2, 2]


def test_a_number_that_no_json_can_hold_is_none(finished: dict[str, Path]) -> None:
    for task in (CAUSAL, MASKED):
        for path in finished[task].rglob("*.json"):
            if "tokenizer" not in path.name:
                json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in a file"))
        assert read_json(finished[task] / "scores.json")["test"]["bits_per_byte"]["value"] > 0
