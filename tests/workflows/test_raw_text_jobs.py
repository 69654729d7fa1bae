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
    more = {"pseudo_perplexity"} if job["task"] == "masked-text" else set()
    assert set(scores) == {"bits_per_byte", "perplexity"} | more
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


def pseudo(folder: Path, texts: list[str]) -> list[list[float]]:
    """Return the log probability of every token of texts, masked with the rest of its word, one pass for each."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for text in texts:
        inputs, logs = tokenizer(text, return_tensors="pt"), []
        words, ids = inputs.word_ids(0), inputs["input_ids"][0]
        for at, word in enumerate(words):
            if word is None or int(ids[at]) == tokenizer.unk_token_id:
                continue
            masked = ids.clone()
            masked[[place for place in range(at, len(ids)) if words[place] == word]] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=masked[None], attention_mask=inputs["attention_mask"]).logits[0, at]
            logs.append(float(logits.log_softmax(-1)[ids[at]]))
        found.append(logs)
    return found


def test_pseudo_perplexity_is_that_of_a_plain_loop(
    run: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if job["task"] != "masked-text":
        pytest.skip("a causal model predicts every token anyway")
    import numpy as np
    import torch

    from finesmith.models.language import load_language_model
    from finesmith.models.load import find, load_tokenizer
    from finesmith.tasks import masked_text
    from finesmith.workflows.language.apply import read_about

    rows = table(run / "predictions" / "test.parquet")
    expected = pseudo(run / "model", rows["text"])
    whole = [log for logs in expected for log in logs]
    scores, rivals = read(run, "scores.json"), read(run, "baselines.json")
    assert scores["details"]["one_by_one"] == {"tokens": len(whole), "of": len(whole)}
    assert scores["test"]["pseudo_perplexity"]["value"] == pytest.approx(np.exp(-np.mean(whole)), rel=1e-5)
    untuned = next(each for each in rivals if each["name"] == "untuned base model")["scores"]
    assert untuned["test"]["pseudo_perplexity"]["low"] > scores["test"]["pseudo_perplexity"]["high"]
    assert "pseudo_perplexity" not in untuned["validation"]
    for page in ("report.html", "model/README.md"):
        assert f"Pseudo-perplexity is of all {len(whole):,} tokens" in (run / page).read_text("utf-8")

    monkeypatch.setattr(masked_text, "DRAWN_TOKENS", 600)
    task = read_about(run / "model")[1]
    tokenizer = load_tokenizer(found := find(str(run / "model")))
    network, _ = load_language_model(found, tokenizer, kind="masked", labels=None, seed=0, dtype=torch.float64)
    corpus = task.of_texts(rows["text"], rows["text"])
    encoded = task.narrow(task.encode(corpus, tokenizer, 128), "scored")
    outcome = task.answer(network, encoded)
    # Without unknown words and special tokens inside, the k-th token drawn is the k-th of all that may be masked.
    order = np.flatnonzero(encoded.detail.text.maskable)
    drawn = np.isin(order, encoded.detail.drawn)
    assert 10 < drawn.sum() < 0.5 * len(whole)
    owners = np.repeat(np.arange(len(expected)), list(map(len, expected)))[drawn]
    sums = np.bincount(owners, weights=np.asarray(whole)[drawn], minlength=len(expected))
    assert outcome.answers.log_probabilities == pytest.approx(sums, rel=1e-9)
    measured = task.measure(corpus, encoded, outcome)["pseudo_perplexity"]
    told = task.answered(outcome)
    assert told is not None
    assert len(measured) == len(told) == len(set(owners.tolist()))
    assert measured.value == pytest.approx(np.exp(-np.asarray(whole)[drawn].mean()), rel=1e-9)


def test_the_saved_model_measures_as_the_run_did(run: Path, tmp_path: Path) -> None:
    rows = table(run / "predictions" / "test.parquet")
    (tmp_path / "t.txt").write_text("\n\n".join(rows["text"]), "utf-8")
    again = evaluate_file(str(run), str(tmp_path / "t.txt"))["scores"]
    for name, score in read(run, "scores.json")["test"].items():
        assert again[name]["value"] == pytest.approx(score["value"])
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
