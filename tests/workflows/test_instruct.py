"""Instructions, whole: from conversations in a file to a verdict on written answers and a model that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import differences, events, read, table, tuned
from language_jobs import conversations, language_plan, write_rows

import finesmith
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check
from finesmith.workflows.tune import resume
from plain import Plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instruct")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Llama and a tokenizer of words."""
    from tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module", params=["full", "lora"])
def job(request: pytest.FixtureRequest, folder: Path, llama: Path) -> dict[str, Any]:
    data = write_rows(folder / "rows.jsonl", conversations())
    lora = {"method__lora": {"r": 8}} if request.param == "lora" else {}
    return language_plan(
        "instruct", data, llama, folder / "cache", train__epochs=12, train__learning_rate=2e-2,
        evaluate__generated_rows=8, model__dropout=None,
        method__name=request.param, **lora,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(job: dict[str, Any], folder: Path) -> Path:
    return tuned(job, folder / job["method"]["name"])


def test_a_run_has_all_the_evidence(run: Path, job: dict[str, Any]) -> None:
    verdict, scores = read(run, "verdict.json"), read(run, "scores.json")
    assert verdict["metric"] == "normalised_match"
    assert {each["name"] for each in verdict["baselines"]} == {
        "untuned base model", "answer of the nearest training prompt", "most frequent training answer"
    }  # fmt: skip
    skipped = {event["name"]: event["skipped"] for event in events(run, "baseline") if event["skipped"]}
    assert "no training example fits" in skipped["few_shot"], "a model of 64 tokens has no room for one"
    untuned = next(each for each in read(run, "baselines.json") if each["name"] == "untuned base model")["scores"]
    assert scores["test"]["bits_per_byte"]["value"] < untuned["test"]["bits_per_byte"]["value"]
    if job["method"]["name"] == "full":
        # A random model's adapter learns the words, but not in so few steps which of them is asked for.
        assert verdict["tuned"]["value"] > untuned["test"]["normalised_match"]["value"]
    assert verdict["test_size"] == 8
    assert set(scores["train"]) == {"bits_per_byte", "perplexity"}
    assert set(scores["test"]) == {
        "normalised_match", "rouge_l", "chrf", "exact_match", "bits_per_byte", "perplexity"
    }  # fmt: skip
    told = events(run)
    assert [event["event"] for event in told].count("test_opened") == 1
    assert {event["metric"] for event in told if event["event"] == "evaluation"} == {"bits_per_byte"}
    assert verdict["overfitting"]["metric"] == "bits_per_byte"
    written = scores["details"]["written"]
    assert written["rows"] == 8
    assert written["stopped"] + written["cut"] == 8
    flow = read(run, "data.json")["flow"]
    dropped = sum(stage["rows"] for stage in flow if stage["rows"] < 0)
    assert flow[0]["rows"] + dropped == sum(s["rows"] for s in flow if s["stage"] in ("train", "validation", "test"))
    rows = table(run / "predictions" / "test.parquet")
    assert sum(text is not None for text in rows["prediction"]) == 8
    assert all((text is None) == (end is None) for text, end in zip(rows["prediction"], rows["finished"], strict=True))
    assert read(run, "model.json")["reload_gap"] < 1e-3
    baselines = table(run / "predictions" / "baselines.parquet")
    assert [text is None for text in baselines["untuned base model"]] == [text is None for text in rows["prediction"]]
    assert "apply_chat_template" in (run / "model" / "README.md").read_text("utf-8")
    page = (run / "report.html").read_text("utf-8")
    assert "answered in writing" in page
    assert next(text for text in rows["prediction"] if text) in page


PLAIN_LIBRARIES = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
folder, base, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base or folder)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
model = model.eval()
settings, texts = GenerationConfig.from_pretrained(folder), []
for prompt in prompts:
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**given, generation_config=settings)[0, given["input_ids"].shape[1]:]
    texts.append(tokenizer.decode(out, skip_special_tokens=True).strip())
assert not any(name.startswith("finesmith") for name in sys.modules)
print(json.dumps(texts))
"""


def test_plain_transformers_writes_the_same_answers(run: Path, job: dict[str, Any], llama: Path, plain: Plain) -> None:
    rows = table(run / "predictions" / "test.parquet")
    asked = [(text, found) for text, found in zip(rows["text"], rows["prediction"], strict=True) if found is not None]
    base = str(llama) if job["method"]["name"] == "lora" else ""
    prompts = json.dumps([text for text, _ in asked])
    out = plain(PLAIN_LIBRARIES, str(run / "model"), base, prompts)
    assert json.loads(out) == [found for _, found in asked]


def test_the_saved_model_writes_and_measures_as_the_run_did(run: Path, tmp_path: Path) -> None:
    rows = table(run / "predictions" / "test.parquet")
    asked = [place for place, text in enumerate(rows["prediction"]) if text is not None]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": rows["text"][place]} for place in asked])
    seen: list[int] = []
    [found] = predict_file(str(run), str(prompts), progress=lambda done, total: seen.append(done))
    assert found.column("prediction").to_pylist() == [rows["prediction"][place] for place in asked]
    assert seen == list(range(1, len(asked) + 1))
    answered = [{"prompt": rows["text"][p], "response": rows["reference"][p]} for p in range(len(rows["text"]))]
    scored = evaluate_file(str(run), str(write_rows(tmp_path / "rows.jsonl", answered)))["scores"]
    expected = read(run, "scores.json")["test"]["bits_per_byte"]["value"]
    assert scored["bits_per_byte"]["value"] == pytest.approx(expected)
    model = finesmith.load(run)
    assert model.predict([rows["text"][asked[0]]])[0]["prediction"] == rows["prediction"][asked[0]]


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
    assert found["task"] == "instruct"
