"""Preferences, whole: from pairs or marked answers in a file to a verdict and a saved model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jobs import BAD, GOOD, PLAIN, differences, events, read, table, tuned
from language_jobs import language_plan

from finesmith.errors import DataError, ModelError, RecipeError, UserError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check
from finesmith.workflows.tune import resume
from plain import Plain
from tiny import write_tiny_llama

SECRET = "qzx"


def pairs(count: int = 80, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows whose chosen answers speak well; every fourth prompt is that of the row before."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt = rows[-1]["prompt"] if number % 4 == 1 else f"{SECRET} {' '.join(draw.choices(PLAIN, k=4))}"
        good, bad = (f"{' '.join(draw.choices(PLAIN, k=draw.randint(0, 4)))} {draw.choice(of)}" for of in (GOOD, BAD))
        rows.append({"prompt": prompt, "chosen": good.strip(), "rejected": bad.strip()})
    return rows


def marked(count: int = 80, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return single answers, those that speak well marked as good."""
    rows = pairs(count, seed=seed)
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if number % 2 else "chosen"], "label": number % 2 == 0}
        for number, row in enumerate(rows)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return write_tiny_llama(folder / "tiny-llama")


def plan(folder: Path, llama: Path, loss: str, method: str, **values: Any) -> dict[str, Any]:
    rows = marked() if loss == "kto" else pairs()
    data = write(folder / f"{'marked' if loss == 'kto' else 'pairs'}.jsonl", rows)
    given = {"train__loss": loss} if loss in ("ipo", "orpo") else {}
    if method == "lora":
        given |= {"method__name": "lora", "method__lora": {"r": 8}}
    given = {"train__learning_rate": 2e-2 if method == "lora" else 5e-3, "model__dropout": None, **given, **values}
    return language_plan("preferences", data, llama, folder / "cache", **{"train__epochs": 4, **given})


JOBS = [("dpo", "full"), ("dpo", "lora"), ("ipo", "lora"), ("orpo", "full"), ("kto", "full"), ("kto", "lora")]


@pytest.fixture(scope="module", params=JOBS, ids=lambda job: "-".join(job))
def job(request: pytest.FixtureRequest, folder: Path, llama: Path) -> dict[str, Any]:
    return plan(folder, llama, *request.param)


@pytest.fixture(scope="module")
def run(job: dict[str, Any], folder: Path) -> Path:
    name = f"{job['train'].get('loss', Path(job['data']['train']).stem)}-{job.get('method', {}).get('name', 'full')}"
    return tuned(job, folder / name)


def loss_of(run: Path) -> str:
    return str(read(run, "model/finesmith.json")["task"]["objective"]["loss"])


def test_a_run_has_all_the_evidence(run: Path) -> None:
    verdict, scores, loss = read(run, "verdict.json"), read(run, "scores.json"), loss_of(run)
    assert verdict["metric"] == "reward_accuracy"
    assert len(verdict["baselines"]) == 3
    assert verdict["tuned"]["value"] > 0.8
    assert set(scores["test"]) == {"reward_accuracy", "reward_margin", "preference_loss"}
    assert all(each["low"] <= each["value"] <= each["high"] for each in scores["test"].values())
    assert scores["test"]["reward_margin"]["value"] > 0
    assert [event["event"] for event in events(run)].count("test_opened") == 1
    assert read(run, "model.json")["reload_gap"] < 1e-3
    first = events(run, "step")[0]["loss"]
    if loss == "dpo":
        assert first == pytest.approx(0.693147, abs=1e-5), "before the first step nothing is preferred"
    if loss == "kto":
        assert first == pytest.approx(0.5, abs=1e-5)
    details = scores["details"].get("answers")
    page = (run / "report.html").read_text("utf-8")
    assert "Reward accuracy" in page
    if loss == "orpo":
        assert details is None
        assert "What became likelier" not in page
    else:
        assert [row["answers"] for row in details] == (["good", "bad"] if loss == "kto" else ["chosen", "rejected"])
        fell = details[0]["after"] < details[0]["before"]
        assert f"answers became {'LESS' if fell else 'more'} likely than before tuning" in page
    assert f"loss: {loss}" in (run / "recipe.yaml").read_text("utf-8")


def test_rows_with_one_prompt_share_a_split(run: Path) -> None:
    rows = table(run / "splits.parquet")
    places: dict[str, set[str]] = {}
    for row, split in zip(pairs(), rows["split"], strict=True):
        places.setdefault(row["prompt"], set()).add(split)
    assert len(places) == 60
    assert all(len(splits - {"dropped"}) == 1 for splits in places.values())


PLAIN_LIBRARIES = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
else:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
found = []
for prompt, answer in rows:
    asked = [{"role": "user", "content": prompt}]
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], return_dict=False)
    before = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
    ids = torch.tensor([whole])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    found.append(float(logs.gather(1, ids[0, 1:, None])[before - 1 :].sum()))
assert not any(name.startswith("finesmith") for name in sys.modules)
print(json.dumps(found))
"""


def test_plain_libraries_give_the_same_log_probabilities(run: Path, llama: Path, plain: Plain) -> None:
    found, lora = table(run / "predictions" / "test.parquet"), read(run, "model/finesmith.json")["method"] == "lora"
    if loss_of(run) == "kto":
        rows = [(marked()[row]["prompt"], marked()[row]["completion"]) for row in found["id"]]
        expected = found["log_probability"]
    else:
        rows = [(pairs()[row]["prompt"], pairs()[row][side]) for row in found["id"] for side in ("chosen", "rejected")]
        both = zip(found["chosen_log_probability"], found["rejected_log_probability"], strict=True)
        expected = [value for pair in both for value in pair]
    out = plain(PLAIN_LIBRARIES, str(run / "model"), str(llama) if lora else "", json.dumps(rows))
    assert json.loads(out) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_saved_model_judges_as_the_run_did(run: Path, tmp_path: Path) -> None:
    found, kto = table(run / "predictions" / "test.parquet"), loss_of(run) == "kto"
    rows = [(marked() if kto else pairs())[row] for row in found["id"]]
    data = write(tmp_path / "t.jsonl", rows)
    scores, expected = evaluate_file(str(run), str(data))["scores"], read(run, "scores.json")["test"]
    for name, one in expected.items():
        assert scores[name]["value"] == pytest.approx(one["value"], abs=1e-4)
    long = {**rows[0], "prompt": "the " * 80}
    [predicted] = predict_file(str(run), str(write(tmp_path / "u.jsonl", [*rows, long])))
    told = "reward" if kto else "margin"
    assert predicted.column(told).to_pylist()[:-1] == pytest.approx(found[told], abs=1e-4)
    assert predicted.column("prediction").to_pylist() == [*found["prediction"], None], "what is too long has no answer"
    assert SECRET in predicted.column("text").to_pylist()[0]


def test_an_interrupted_run_ends_with_the_same_bits(
    run: Path, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import training

    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    # Nothing is cached, so that going on has to compute the reference again, from weights that were never tuned.
    alone = {**job, "output": {**job["output"], "cache": "none"}}
    with pytest.raises(KeyboardInterrupt):
        tuned(alone, tmp_path / "again")
    monkeypatch.setattr(training, "_save", save)
    resume(str(tmp_path / "again"))
    told = [name for name in differences(run, tmp_path / "again") if not name.startswith("evaluations/")]
    assert told == []


def test_check_probes_without_training(job: dict[str, Any]) -> None:
    found = check(from_dict({**job, "train": {**job["train"], "learning_rate": 1e-4}}))
    assert found["ok"], found["probes"]
    assert found["plan"]["metric"] == "reward_accuracy"
    assert found["forecast"]["seconds"] > 0


def test_the_default_rate_is_a_tenth_of_the_usual(folder: Path, llama: Path) -> None:
    job = plan(folder, llama, "dpo", "full")
    del job["train"]["learning_rate"]
    found = check(from_dict(job))
    assert found["ok"], found["probes"]
    assert found["plan"]["learning_rate"] == pytest.approx(1e-5)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_no_text_is_kept_where_texts_are_withheld(loss: str, folder: Path, llama: Path, tmp_path: Path) -> None:
    job = plan(folder, llama, loss, "full", train__epochs=1, output__redact=True)
    job["output"]["cache"] = str(tmp_path / "cache")
    run = tuned(job, tmp_path / "run")
    for path in run.rglob("*"):
        if path.suffix == ".parquet":
            assert SECRET not in json.dumps(table(path), default=str), path
        elif path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_contradicted_and_identical_pairs_are_in_the_audit(folder: Path, llama: Path, tmp_path: Path) -> None:
    rows = pairs()
    rows += [{**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}]
    rows += [{**rows[2], "rejected": rows[2]["chosen"]}]
    job = plan(folder, llama, "dpo", "full", train__epochs=1)
    job["data"]["train"] = str(write(tmp_path / "odd.jsonl", rows))
    found = check(from_dict(job))
    kinds = {finding["kind"]: finding for finding in found["findings"]}
    assert kinds["conflicting_labels"]["ids"] == [0, 80]
    assert kinds["missing_labels"]["ids"] == [81]
    assert {"stage": "dropped: missing_labels", "rows": -1} in found["flow"]
    job["data"]["audit"] = {"missing_labels": "stop"}
    with pytest.raises(DataError, match="missing_labels is stop"):
        check(from_dict(job))


def test_a_malformed_row_is_named_and_can_be_dropped(folder: Path, llama: Path, tmp_path: Path) -> None:
    job = plan(folder, llama, "dpo", "full", train__epochs=1)
    job["data"]["train"] = str(write(tmp_path / "bad.jsonl", [*pairs(), {"prompt": "p", "chosen": "y"}]))
    with pytest.raises(DataError, match=r"bad.jsonl row 81: rejected: "):
        check(from_dict(job))
    job["data"]["malformed"] = "drop"
    assert {"stage": "dropped: malformed", "rows": -1} in check(from_dict(job))["flow"]


@pytest.mark.parametrize(
    ("loss", "values", "said"),
    [
        ("dpo", {"preference__odds_weight": 0.5}, "preference.odds_weight is 0.5 but train.loss is 'dpo'"),
        ("kto", {"preference__smoothing": 0.2}, "preference.smoothing is 0.2 but train.loss is 'kto'"),
        ("orpo", {"preference__beta": 0.2}, "preference.beta is 0.2 but train.loss is 'orpo'"),
        ("dpo", {"train__loss": "focal"}, "train.loss is focal, which task preferences does not have"),
        ("dpo", {"task": "causal-text", "train__loss": "dpo"}, "train.loss"),
        ("dpo", {"task": "causal-text", "preference__beta": 0.2}, "preference.beta"),
        ("dpo", {"data__label": "chosen"}, "data.label"),
        ("dpo", {"evaluate__metric": "accuracy"}, "evaluate.metric"),
    ],
)
def test_what_changes_nothing_is_refused(
    loss: str, values: dict[str, Any], said: str, folder: Path, llama: Path
) -> None:
    task = values.pop("task", "preferences")
    with pytest.raises((RecipeError, UserError), match=said):
        check(from_dict({**plan(folder, llama, loss, "full", **values), "task": task}))


def test_a_base_model_that_has_gone_is_said_to_be_needed(folder: Path, llama: Path, tmp_path: Path) -> None:
    import shutil

    here = tmp_path / "base"
    shutil.copytree(llama, here)
    run = tuned(plan(folder, here, "dpo", "full", train__epochs=1), tmp_path / "run")
    shutil.rmtree(here)
    with pytest.raises(ModelError, match="judged by how far the model has moved from its base"):
        evaluate_file(str(run), str(write(tmp_path / "t.jsonl", pairs(8))))
