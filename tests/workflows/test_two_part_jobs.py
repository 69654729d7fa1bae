"""Encoder-decoders by the same recipe: whole runs, what they save, and what other programs make of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, events, read, table, tuned
from language_jobs import conversations, language_plan, write_rows
from test_written_texts import summary_rows, written

import finesmith
from finesmith.errors import RecipeError, UserError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check
from finesmith.workflows.merge import merge
from finesmith.workflows.signals import Stopped
from finesmith.workflows.tune import resume, tune
from tiny import write_tiny_t5

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

# Runs where finesmith is not imported: loads each folder as its card says, and writes what it answers.
PLAIN = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

found = []
for case in json.load(open(sys.argv[1])):
    folder = case["folder"]
    model = AutoModelForSeq2SeqLM.from_pretrained(case["base"] or folder)
    if case["base"]:
        from peft import PeftModel
        model.generation_config = GenerationConfig.from_pretrained(folder)
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in case["prompts"]:
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"))[0]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    found.append(answers)
assert not any(name.startswith("finesmith") for name in sys.modules)
json.dump(found, open(sys.argv[2], "w"))
"""


class Runs:
    """A T5 tuned whole to summarise, and a BART tuned by LoRA to answer, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.t5, self.bart = write_tiny_t5(folder / "t5"), write_tiny_t5(folder / "bart", bart=True)
        rows = write_rows(folder / "summaries.jsonl", summary_rows(60))
        talks = write_rows(folder / "talks.jsonl", conversations(60))
        short: dict[str, Any] = {"evaluate__generated_rows": 6, "generation__max_new_tokens": 6}
        self.whole = language_plan("summarisation", rows, self.t5, folder / "cache", **short)
        lora = {"method__name": "lora", "evaluate__baselines": ["nearest"], "train__epochs": 4}
        beams = {"generation__strategy": "beam", "generation__beams": 2}
        self.adapted = language_plan("instruct", talks, self.bart, folder / "cache", **short, **lora, **beams)
        self.t5_run = tuned(self.whole, folder / "whole")
        # One report is enough to look at.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("finesmith.report.page.build", lambda run: run / "report.html")
            self.bart_run = tuned(self.adapted, folder / "adapted")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("two-part"))


def test_a_run_has_all_the_evidence(runs: Runs) -> None:
    for run in (runs.t5_run, runs.bart_run):
        assert read(run, "run.json")["state"] == "finished"
        probes = {each["name"]: each for each in read(run, "probes.json")["probes"]}
        assert all(each["passed"] for each in probes.values())
        names = {"shift", "stop token", "inference prompt", "neighbours", "alone and together", "generation", "saving"}
        assert names <= probes.keys()
        assert probes["shift"]["evidence"].endswith("are the tokens of their answer")
        assert read(run, "model.json")["head"] == "seq2seq"
        scores = read(run, "scores.json")
        assert scores["test"]["bits_per_byte"]["value"] < 4
        assert scores["details"]["written"]["rows"] == 6
        card = (run / "model" / "README.md").read_text("utf-8")
        assert "AutoModelForSeq2SeqLM" in card
        assert "apply_chat_template" not in card
        assert ("base.generation_config = " in card) == (run == runs.bart_run)
        assert not (run / "model" / "chat_template.jinja").exists()
    assert "ended by itself" in (runs.t5_run / "report.html").read_text("utf-8")
    verdict = read(runs.t5_run, "verdict.json")
    assert verdict["metric"] == "rouge_l"
    rivals = {each["name"]: each["skipped"] for each in read(runs.t5_run, "baselines.json")}
    assert rivals == {
        "untuned base model": None, "answer of the nearest training prompt": None, "first sentence of the text": None,
        "few_shot": "an encoder-decoder takes one prompt, and no examples before it",
    }  # fmt: skip
    notes = [event["message"] for event in events(runs.t5_run) if event["event"] == "note"]
    assert "model t5: padded: an encoder-decoder attends from one text to another" in notes
    recipe = (runs.t5_run / "recipe.yaml").read_text("utf-8")
    assert "template: none  # inferred: an encoder-decoder reads a prompt as it stands" in recipe
    shown = read(runs.t5_run, "examples.json")
    [answer] = {
        "".join(token["text"] + " " for token in each["tokens"] if token["kind"] == "supervised").strip()
        for each in shown["examples"][:1]
    }
    assert answer.startswith("the ")
    assert answer.endswith(" [SEP]")
    assert "label" not in json.dumps(shown["examples"][0]["tokens"])


def test_other_programs_load_what_was_saved_and_write_the_same(runs: Runs) -> None:
    merged = merge(str(runs.bart_run))
    assert merged["loads_with"] == "AutoModelForSeq2SeqLM"
    expected, cases = [], []
    for folder, run, base in (
        (runs.t5_run / "model", runs.t5_run, None), (runs.bart_run / "model", runs.bart_run, str(runs.bart)),
        (Path(merged["folder"]), runs.bart_run, None),
    ):  # fmt: skip
        asked, texts, _ = written(run)
        begin = "Summarise this text:\n\n" if run == runs.t5_run else ""
        cases.append({"folder": str(folder), "base": base, "prompts": [begin + text for text in asked]})
        expected.append(texts)
    job, found = runs.folder / "job.json", runs.folder / "answers.json"
    job.write_text(json.dumps(cases), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(job), str(found)], capture_output=True, text=True, check=False,
        cwd=runs.folder, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(found.read_text("utf-8")) == expected


def test_a_finished_run_predicts_and_evaluates_as_it_did(runs: Runs, tmp_path: Path) -> None:
    for run, column in ((runs.t5_run, "text"), (runs.bart_run, "prompt")):
        asked, texts, references = written(run)
        [found] = predict_file(str(run), str(write_rows(tmp_path / "asked.jsonl", [{column: each} for each in asked])))
        assert found.column("prediction").to_pylist() == texts
        assert finesmith.load(run).predict(asked[:1])[0]["prediction"] == texts[0]
        names = ("document", "summary") if run == runs.t5_run else ("prompt", "response")
        rows = [dict(zip(names, (a, b[0]), strict=True)) for a, b in zip(asked, references, strict=True)]
        scored = evaluate_file(str(run), str(write_rows(tmp_path / "rows.jsonl", rows)))["scores"]
        assert scored["rouge_l"]["value"] == pytest.approx(read(run, "scores.json")["test"]["rouge_l"]["value"])


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM is what stops a run here")
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("finesmith.report.page.build", lambda run: run / "report.html")
    # Dropout, which draws at every step, is on.
    with pytest.raises(Stopped):
        tune(from_dict(runs.whole), out=str(tmp_path / "run"), listeners=[stop])
    assert events(tmp_path / "run")[-1]["step"] == 5
    resume(str(tmp_path / "run"))
    assert table(tmp_path / "run" / "predictions" / "test.parquet") == table(
        runs.t5_run / "predictions" / "test.parquet"
    )
    for name in ("model/model.safetensors", "predictions/test.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (runs.t5_run / name).read_bytes()


def test_keys_that_an_encoder_decoder_leaves_unread_are_refused(runs: Runs) -> None:
    for key, value, said in (
        ("text", {"template": "plain"}, r"text\.template is plain, but the base model is an encoder-decoder"),
        ("text", {"loss": "all"}, r"text\.loss is 'all' but text\.template is 'none'.*causal model\.base"),
        ("evaluate", {"shots": 1}, r"evaluate\.shots is 1 but text\.template is 'none'"),
        ("model", {"base": str(runs.t5), "attention": "ragged"}, r"model\.attention is ragged, but t5"),
    ):
        with pytest.raises((UserError, RecipeError, finesmith.errors.ModelError), match=said):
            check(from_dict({**runs.whole, key: value}))


def test_concepts_and_a_check_before_training(runs: Runs, tmp_path: Path) -> None:
    sets = [{"concepts": text.split()[:3], "text": text} for text in (row["document"] for row in summary_rows(40))]
    plan = language_plan(
        "concept-to-text", write_rows(tmp_path / "sets.jsonl", sets), runs.bart, tmp_path / "cache",
        generation__max_new_tokens=6, evaluate__generated_rows=4,
    )  # fmt: skip
    seen = check(from_dict(plan))
    assert all(probe["passed"] for probe in seen["probes"]), seen["probes"]


def test_answers_that_do_not_begin_as_generation_does_are_stopped(runs: Runs, tmp_path: Path) -> None:
    base = tmp_path / "bart"
    shutil.copytree(runs.bart, base)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((base / name).read_text("utf-8"))
        (base / name).write_text(json.dumps({**said, "forced_bos_token_id": 9}), "utf-8")
    found = check(from_dict({**runs.adapted, "model": {"base": str(base)}}))
    failed = {probe["name"]: probe["evidence"] for probe in found["probes"] if not probe["passed"]}
    assert failed.keys() == {"inference prompt"}
    assert failed["inference prompt"].startswith("0 of 16 rows begin as inference will ask")
