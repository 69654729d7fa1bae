"""Causal and masked text, whole: from raw text to a verdict in bits per byte and a model that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import differences, events, read, table, tuned
from language_breaking import write_text
from language_jobs import language_plan

import finesmith
from finesmith.errors import DataError, RecipeError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check
from finesmith.workflows.tune import resume
from plain import Plain
from tiny import write_tiny_llama

BASELINES = {
    "causal-text": {"untuned base model", "byte 6-grams"},
    "masked-text": {"untuned base model", "how frequent each piece is"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module", params=sorted(BASELINES))
def job(request: pytest.FixtureRequest, text: Path, llama: Path, tiny_model: Path) -> dict[str, Any]:
    model = llama if request.param == "causal-text" else tiny_model
    dropout = {} if request.param == "masked-text" else {"model__dropout": None}
    return language_plan(request.param, text, model, text.parent / "cache", train__epochs=12, **dropout)


@pytest.fixture(scope="module")
def run(job: dict[str, Any], text: Path) -> Path:
    return tuned(job, text.parent / job["task"])


def test_a_run_has_all_the_evidence(run: Path, job: dict[str, Any]) -> None:
    verdict = read(run, "verdict.json")
    assert verdict["metric"] == "bits_per_byte"
    assert {each["name"] for each in verdict["baselines"]} == BASELINES[job["task"]]
    untuned = next(each for each in verdict["baselines"] if each["name"] == "untuned base model")
    assert 0 < verdict["tuned"]["value"] < untuned["value"]
    assert [event["event"] for event in events(run)].count("test_opened") == 1
    scores = read(run, "scores.json")["test"]
    assert set(scores) == {"bits_per_byte", "perplexity"}
    assert scores["bits_per_byte"]["low"] < scores["bits_per_byte"]["value"] < scores["bits_per_byte"]["high"]
    page = (run / "report.html").read_text("utf-8")
    assert "Bits per byte" in page
    assert "lower is better" in page
    assert read(run, "model.json")["reload_gap"] < 1e-3


PLAIN_LIBRARIES = """
import json, math, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
bits = []
for text in texts:
    ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].double().log_softmax(-1)
    bits.append(-float(logs.gather(1, ids[0, 1:, None]).sum()) / math.log(2) / len(text.encode()))
assert not any(name.startswith("finesmith") for name in sys.modules)
print(json.dumps(bits))
"""


def test_plain_transformers_gives_the_same_bits_per_byte(run: Path, job: dict[str, Any], plain: Plain) -> None:
    if job["task"] != "causal-text":
        pytest.skip("masked text is measured by masks of its own")
    rows = table(run / "predictions" / "test.parquet")
    out = plain(PLAIN_LIBRARIES, str(run / "model"), json.dumps(rows["text"]))
    assert json.loads(out) == pytest.approx(rows["bits_per_byte"], rel=1e-4)


def test_the_saved_model_measures_as_the_run_did(run: Path, tmp_path: Path) -> None:
    rows = table(run / "predictions" / "test.parquet")
    (tmp_path / "t.txt").write_text("\n\n".join(rows["text"]), "utf-8")
    value = read(run, "scores.json")["test"]["bits_per_byte"]["value"]
    assert evaluate_file(str(run), str(tmp_path / "t.txt"))["scores"]["bits_per_byte"]["value"] == pytest.approx(value)
    [found] = predict_file(str(run), str(tmp_path / "t.txt"))
    assert found.column("perplexity").to_pylist() == pytest.approx(rows["perplexity"])
    assert len(finesmith.load(run).predict(rows["text"][:2])) == 2


def test_an_interrupted_run_ends_with_the_same_bits(
    run: Path, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import training

    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        tuned(job, tmp_path / "again")
    monkeypatch.setattr(training, "_save", save)
    resume(str(tmp_path / "again"))
    told = [name for name in differences(run, tmp_path / "again") if not name.startswith("evaluations/")]
    assert told == []


def test_check_probes_without_training(job: dict[str, Any]) -> None:
    found = check(from_dict({**job, "train": {**job["train"], "learning_rate": 1e-3}}))
    assert found["ok"], found["probes"]


@pytest.mark.parametrize(("key", "value"), [("rate", 0.3), ("whole_words", False)])
def test_masks_are_only_for_masked_text(key: str, value: Any, text: Path) -> None:
    with pytest.raises(RecipeError, match=rf"mask\.{key}"):
        from_dict({**language_plan("causal-text", text, "x", "y"), "mask": {key: value}})


def test_a_single_test_document_is_refused_before_anything_is_trained(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the film is good", "utf-8")
    with pytest.raises(DataError, match="the test split holds 1 documents, too few"):
        tuned({**job, "data": {**job["data"], "test": str(tmp_path / "one.txt")}}, tmp_path / "run")
