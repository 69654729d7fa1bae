"""Damaged run folders: what can be made good is passed over and made again, the rest is told in one message."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from breaking import Jobs, assert_same
from jobs import PEFT_WARNING, events, read, sha256, timeless

from finesmith.errors import FinesmithError, RunError
from finesmith.recipe import from_dict
from finesmith.workflows.tune import resume, tune

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL is what interrupts a run here"),
]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def killed(jobs: Jobs) -> Path:
    """Return a run killed after training: with checkpoints after its best step, of that step itself, and before."""
    return jobs.killed(jobs.tree("full", output__keep_checkpoints=9), jobs.folder / "damage", "event trained", 1)


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "run"))


def main(run: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def best_step(run: Path) -> int:
    return int(events(run, "best")[-1]["step"])


def best(run: Path) -> Path:
    return run / "checkpoints" / "best" / f"step-{best_step(run):08d}"


def resumed(run: Path) -> list[str]:
    """Resume; return what was said."""
    told: list[str] = []
    resume(str(run), listeners=[lambda event: told.append(str(event.get("message")))])
    return told


def same(jobs: Jobs, run: Path) -> None:
    # This run keeps more checkpoints than the uninterrupted one.
    for path in main(run):
        if not (jobs.uninterrupted("full") / "checkpoints" / path.name).exists():
            shutil.rmtree(path)
    for path in (run / "checkpoints" / "best").iterdir():
        if not (jobs.uninterrupted("full") / "checkpoints" / "best" / path.name).exists():
            shutil.rmtree(path)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("keep_checkpoints: 9", "keep_checkpoints: 2"), "utf-8")
    following = run / "next-recipe.yaml"
    following.write_text(following.read_text("utf-8").replace("keep_checkpoints: 9", "keep_checkpoints: 2"), "utf-8")
    assert_same(jobs.uninterrupted("full"), run)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(bytes(raw))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HURTS: dict[str, Callable[[Path], None]] = {
    "tensors flipped": lambda step: flip(step / "tensors.safetensors"),
    "state cut": lambda step: os.truncate(step / "state.json", 100),
    "manifest gone": lambda step: (step / "manifest.json").unlink(),
    "all gone": lambda step: [path.unlink() for path in step.iterdir()] and None,  # type: ignore[func-returns-value]
    "a folder for a file": lambda step: as_folder(step / "state.json"),
}


@pytest.mark.parametrize("hurt", HURTS)
def test_a_damaged_checkpoint_is_passed_over(hurt: str, run: Path, jobs: Jobs) -> None:
    newest, before = main(run)[:2]
    HURTS[hurt](newest)
    if hurt == "all gone":
        flip(before / "tensors.safetensors")
    told = " ".join(resumed(run))
    assert f"checkpoint refused: {newest.name}" in told
    assert f"going on from step {int(main(run)[-1].name[5:])}" not in told
    same(jobs, run)


@pytest.mark.parametrize("hurt", HURTS)
def test_damaged_best_weights_are_trained_again(hurt: str, run: Path, jobs: Jobs) -> None:
    """The newest checkpoints need them, so the best step's own checkpoint, which holds them too, is gone back to."""
    assert 0 < best_step(run) < int(main(run)[0].name[5:])
    HURTS[hurt](best(run))
    needed = f"checkpoint refused: {main(run)[0].name}: it needs best/{best(run).name}: "
    told = " ".join(resumed(run))
    assert needed in told
    assert f"going on from step {best_step(run)}" in told
    same(jobs, run)


def test_damaged_best_weights_without_their_own_checkpoint(run: Path, jobs: Jobs) -> None:
    """Then training goes back to before them, and the checkpoints after that, now of no use, are removed."""
    shutil.rmtree(run / "checkpoints" / best(run).name)
    flip(best(run) / "tensors.safetensors")
    told = " ".join(resumed(run))
    going = int(re.findall(r"going on from step (\d+)", told)[0])
    assert going < best_step(run)
    same(jobs, run)


def test_nothing_whole_left_is_told_and_trained_again_from_the_start(run: Path, jobs: Jobs) -> None:
    for step in main(run):
        flip(step / "state.json")
    with pytest.raises(RunError, match=r"no checkpoint can be used .* remove it to train again from the start"):
        resume(str(run))
    shutil.rmtree(run / "checkpoints")
    resume(str(run))
    same(jobs, run)


@pytest.mark.parametrize("kept", [9, 1])
def test_best_weights_damaged_while_it_runs(kept: int, jobs: Jobs, tmp_path: Path) -> None:
    """The best step's own checkpoint stands in while it is kept; else the run stops and says what to do."""
    out = tmp_path / "run"

    def damage(event: Mapping[str, Any]) -> None:
        if event["event"] == "early_stop":
            flip(best(out) / "tensors.safetensors")

    recipe = from_dict(jobs.tree("full", output__keep_checkpoints=kept))
    if kept == 1:
        with pytest.raises(RunError, match=r"the weights of step \d+ are lost .* resume the run"):
            tune(recipe, out=str(out), listeners=[damage])
        with pytest.raises(RunError, match=r"it needs best/step-\d+: .* remove it to train again from the start"):
            resume(str(out))
        shutil.rmtree(out / "checkpoints")
        resume(str(out))
    else:
        tune(recipe, out=str(out), listeners=[damage])
    whole = jobs.uninterrupted("full")
    for name in ("model/model.safetensors", "predictions/test.parquet", "verdict.json"):
        if name.endswith("json"):
            assert timeless(read(out, name)) == timeless(read(whole, name))
        else:
            assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_checkpoint_of_another_run_is_passed_over(run: Path, jobs: Jobs, tmp_path: Path) -> None:
    other = jobs.killed(jobs.tree("full", train__seed=5), tmp_path / "other", "event step", 7)
    foreign = main(other)[0]
    for step in main(run):
        if step.name >= foreign.name:
            shutil.rmtree(step)
    shutil.copytree(foreign, run / "checkpoints" / foreign.name)
    resume(str(run))
    same(jobs, run)


def test_best_weights_of_another_run_are_passed_over(run: Path, jobs: Jobs) -> None:
    manifest = best(run) / "manifest.json"
    elder = sorted((run / "checkpoints" / "best").iterdir())[0]
    shutil.copy(elder / "tensors.safetensors", best(run) / "tensors.safetensors")
    content = json.loads(manifest.read_text())["content"]
    content["files"]["tensors.safetensors"] = json.loads((elder / "manifest.json").read_text())["content"]["files"][
        "tensors.safetensors"
    ]
    from finesmith.train.checkpoint import _manifest_bytes

    manifest.write_bytes(_manifest_bytes(content))
    assert "is not the one that was written" in " ".join(resumed(run))
    same(jobs, run)


def test_a_torn_last_event_is_cut_off(run: Path, jobs: Jobs) -> None:
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    resume(str(run))
    same(jobs, run)


def test_lost_events_send_training_back_to_the_last_checkpoint_they_tell_of(run: Path, jobs: Jobs) -> None:
    raw = (run / "events.jsonl").read_bytes()
    (run / "events.jsonl").write_bytes(raw[: len(raw) * 3 // 4])
    resume(str(run))
    same(jobs, run)


def write(name: str, content: str | None) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink()
        if content is not None:
            (run / name).write_text(content, "utf-8")

    return change


def without(name: str, key: str, value: Any = None) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        content = read(run, name)
        (run / name).write_text(json.dumps({**content, key: value}), "utf-8")

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no run.json": (write("run.json", None), r"not a run folder \(no run\.json"),
    "empty run.json": (write("run.json", ""), r"run\.json .*(damaged|cannot be read)"),
    "a list in run.json": (write("run.json", "[]"), r"run\.json is damaged"),
    "no state": (without("run.json", "state", "asleep"), r"run\.json is damaged"),
    "fingerprint": (without("run.json", "fingerprint", [1]), r"run\.json has a fingerprint that is none.*--force"),
    "no recipe.yaml": (write("recipe.yaml", None), r"holds no recipe\.yaml"),
    "half a recipe.yaml": (write("recipe.yaml", "data: {train"), r"recipe\.yaml"),
    "no data.json": (write("data.json", None), r"data\.json does not say why.*--force"),
    "half a data.json": (write("data.json", '{"task": '), r"data\.json does not say why.*--force"),
    "a list in data.json": (write("data.json", "[1]"), r"data\.json does not say why.*--force"),
    "no events": (write("events.jsonl", None), r"events\.jsonl does not tell of step \d+; resume with --force"),
    "other events": (write("events.jsonl", "rubbish\n" * 5000), r"events\.jsonl does not tell of step"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_folder_is_told_in_one_message(damage: str, run: Path) -> None:
    change, message = DAMAGES[damage]
    change(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".reserve"}
    with pytest.raises(FinesmithError, match=message) as told:
        resume(str(run))
    assert len(str(told.value)) < 1400
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path for path in before if after.get(path) != before[path]} == set()


@pytest.mark.parametrize("damage", ["no data.json", "fingerprint", "no events"])
def test_force_goes_on_without_what_is_lost(damage: str, run: Path) -> None:
    DAMAGES[damage][0](run)
    resume(str(run), force=True)
    assert read(run, "run.json")["state"] == "finished"


@pytest.mark.parametrize("cut", ["no events", "half a line"])
def test_events_lost_where_there_is_no_checkpoint(cut: str, jobs: Jobs, tmp_path: Path) -> None:
    run = jobs.killed(jobs.tree("features"), tmp_path / "run", "event evaluation", 1)
    (run / "events.jsonl").write_text("" if cut == "no events" else '{"event": "stage", "na', "utf-8")
    with pytest.raises(RunError, match=r"events\.jsonl was cut.*--force"):
        resume(str(run))
    resume(str(run), force=True)
    # What was inferred before is now named in the recipe, so the notes differ; the model does not.
    names = ("2_Dense/model.safetensors", "model.safetensors")
    assert all(
        sha256(run / "model" / name) == sha256(jobs.uninterrupted("features") / "model" / name) for name in names
    )
    assert len(events(run, "test_opened")) == 1
