"""The preflight in whole runs: what it stops, what it leaves behind, and that it changes no bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import differences, events, plan, read, reviews, tuned, write_csv
from language_jobs import language_plan

from finesmith.errors import PreflightError
from finesmith.guards import moves
from finesmith.guards.preflight import WHY, Probed
from finesmith.recipe import from_dict
from finesmith.recipe import replace as with_values
from finesmith.run import Run
from finesmith.train.memory import estimate
from finesmith.workflows import fit, preflight
from finesmith.workflows.check import check, prepared
from finesmith.workflows.setup import memory_shape
from finesmith.workflows.tune import resume
from tiny import WORDS

BEFORE = ["label order", "labels", "leakage", "base weights", "beginning of text"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("preflight")
    return plan(write_csv(folder / "reviews.csv", reviews(60)), tiny_model, folder / "cache")


def test_every_probe_is_recorded_and_told(job: dict[str, Any], tmp_path: Path) -> None:
    run = tuned(job, tmp_path / "run")
    probes = read(run, "probes.json")["probes"]
    names = [probe["name"] for probe in probes]
    assert names[: len(BEFORE)] == BEFORE
    assert names[-6:] == [
        "finite loss",
        "initial loss",
        "accumulation",
        "neighbours",
        "alone and together",
        "tiny batch",
    ]
    assert "every tensor learns" in names
    assert all(probe["passed"] and probe["why"] == WHY[probe["name"]] for probe in probes)
    told = [event["event"] for event in events(run)]
    assert told.count("preflight") == 1
    assert told.index("preflight") == told.index("step") + 1
    page = (run / "report.html").read_text("utf-8")
    assert "none of them failed" in page
    assert WHY["neighbours"] in page


def test_a_rate_out_of_range_stops_before_the_first_step(job: dict[str, Any], tmp_path: Path) -> None:
    wrong = {**job, "train": {**job["train"], "learning_rate": 0.9}}
    with pytest.raises(PreflightError, match=r"preflight, learning rate: 0\.9; usual .* guards\.preflight=tell"):
        tuned(wrong, tmp_path / "run")
    run = tmp_path / "run"
    assert read(run, "run.json")["state"] == "failed"
    assert read(run, "run.json")["error"]["kind"] == "PreflightError"
    assert not events(run, "step")
    assert events(run, "preflight")[0]["failed"] == ["learning rate"]
    assert "Expected" in (run / "report.html").read_text("utf-8")
    found = check(from_dict(wrong))
    assert not found["ok"]
    assert [probe["name"] for probe in found["probes"] if not probe["passed"]] == ["learning rate"]
    goes_on = tuned({**wrong, "guards": {"preflight": "tell"}}, tmp_path / "told")
    assert any("preflight, learning rate" in event["message"] for event in events(goes_on, "note"))


def test_a_fault_after_the_first_step_stops_there_and_again_when_resumed(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fit.loss_of

    def mean_of_means(*given: Any) -> Any:
        whole = original(*given)

        def loss_sum(batch: Any) -> Any:
            loss, count = whole(batch)
            return loss / count, count

        return loss_sum

    monkeypatch.setattr(fit, "loss_of", mean_of_means)
    with pytest.raises(PreflightError, match="preflight, accumulation"):
        tuned(job, tmp_path / "run")
    assert len(events(tmp_path / "run", "step")) == 1
    with pytest.raises(PreflightError, match="preflight, accumulation"):
        resume(str(tmp_path / "run"))
    assert len(events(tmp_path / "run", "step")) == 1
    monkeypatch.undo()
    resume(str(tmp_path / "run"))
    assert read(tmp_path / "run", "run.json")["state"] == "finished"
    assert differences(tuned(job, tmp_path / "whole"), tmp_path / "run") == []


def test_a_run_without_trials_ends_with_the_same_bits(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = tuned(job, tmp_path / "probed")
    learnt = Probed("every tensor learns", True, "not looked at")
    monkeypatch.setattr(fit, "trials", lambda *_: iter(()))
    monkeypatch.setattr(moves.Watch, "probed", lambda *_: learnt)
    bare = tuned(job, tmp_path / "bare")
    assert set(differences(probed, bare)) == {"probes.json", "events.jsonl"}
    steps = [
        [{k: v for k, v in e.items() if k not in {"time", "seconds"}} for e in events(r, "step")]
        for r in (probed, bare)
    ]
    assert steps[0] == steps[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=draw.randint(8, 30))) for _ in range(40)), "utf-8")
    return path


def test_what_rows_say_is_shown_unless_texts_are_withheld(text: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = language_plan("masked-text", text, tiny_model, tmp_path / "cache", train__epochs=1, output__redact=True)
    secret = tuned(job, tmp_path / "secret")
    job["output"]["redact"] = False
    open_ = tuned(job, tmp_path / "open")
    shown = {
        run.name: [p["shows"] for p in read(run, "probes.json")["probes"] if p["shows"]] for run in (secret, open_)
    }
    assert shown["secret"] == []
    assert len(shown["open"]) == 1
    names = [probe["name"] for probe in read(open_, "probes.json")["probes"]]
    assert {"supervised share", "embeddings", "saving", "initial loss"} <= set(names)


def test_the_smallest_change_is_named(job: dict[str, Any], tmp_path: Path) -> None:
    recipe, run = from_dict(job), Run.create(tmp_path / "run", command="")
    _, setup = prepared(recipe, run)
    run.close()
    lengths, shape = np.full(40, 64), memory_shape(recipe, setup.network, 0)

    def with_room_for(size: int, length: int, recomputed: bool = False) -> str:
        free = estimate(replace(shape, recomputed=recomputed), [length] * size, free=0, dtype="float32").total
        setup.device = replace(setup.device, memory_free=free)
        return preflight.smallest_change(recipe, setup, lengths)

    assert with_room_for(2, 64) == "--set train.micro_batch_size=2 fits"
    again = "--set train.activation_checkpointing=true"
    assert with_room_for(1, 64, True) == f"{again} --set train.micro_batch_size=1 fits"
    assert with_room_for(1, 40, True) == f"{again} --set data.max_length=40 --set train.micro_batch_size=1 fits"
    recipe = with_values(recipe, {"train.activation_checkpointing": True})
    assert with_room_for(2, 64, True) == "--set train.micro_batch_size=2 fits"
    assert with_room_for(1, 40, True) == "--set data.max_length=40 --set train.micro_batch_size=1 fits"
    setup.device = replace(setup.device, memory_free=1000)
    assert "method.name=lora" in preflight.smallest_change(recipe, setup, lengths)
