"""A run that is killed at any moment and resumed ends with the same bits as one that never was."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import METHODS, Jobs, assert_same
from jobs import PEFT_WARNING, differences, events, read, tuned
from safetensors.torch import load_file, save_file
from ticks import SAVING

from finesmith.deploy.listing import list_runs
from finesmith.errors import RunError
from finesmith.recipe import from_dict, load, replace, to_yaml
from finesmith.report import page
from finesmith.run import read_state
from finesmith.workflows.tune import resume, tune

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL is what interrupts a run here"),
]

# How many random moments of a run of each method: anywhere, and inside a save.
RANDOM = {"full": (7, 5), "lora": (4, 4), "head_then_full": (2, 3), "features": (6, 0)}
# Moments that a random choice may miss: in the last one of these that fits the pattern.
CHOSEN = {
    "full": [
        "open .*run.json",
        "rename .*data.json",
        "half written cache tokens.npy",
        "rename .recipe.yaml",
        "half an event early_stop",
        "half an event best",
        "half an event test_opened",
        "rename .*scores.json",
        "rename .*test.parquet",
        "open config.json",
        "rename .model.new",
        "backward",
    ],
    "lora": ["half written cache embeddings.npy", "open .*adapter_config.json"],
    "head_then_full": ["half an event note"],
    "features": ["half written cache embeddings.npy", "open .*modules.json", "half an event stage"],
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


@pytest.mark.parametrize(
    ("method", "saving", "draw"),
    [
        (method, saving, draw)
        for method, counts in RANDOM.items()
        for saving, count in zip((False, True), counts, strict=True)
        for draw in range(count)
    ],
)
def test_killed_at_a_random_moment_and_resumed_is_the_same_to_the_bit(
    method: str, saving: bool, draw: int, jobs: Jobs, tmp_path: Path
) -> None:
    moments = [i for i, tick in enumerate(jobs.ticks(method)) if tick.startswith(SAVING) == saving]
    chosen = random.Random(f"{method} {saving} {draw}").choice(moments)
    kill_and_resume(jobs, method, chosen, tmp_path)


@pytest.mark.parametrize(("method", "pattern"), [(method, one) for method, some in CHOSEN.items() for one in some])
def test_killed_at_a_chosen_moment_and_resumed_is_the_same_to_the_bit(
    method: str, pattern: str, jobs: Jobs, tmp_path: Path
) -> None:
    moments = [i for i, tick in enumerate(jobs.ticks(method)) if re.search(pattern, tick)]
    kill_and_resume(jobs, method, moments[-1], tmp_path)


def kill_and_resume(jobs: Jobs, method: str, moment: int, folder: Path) -> None:
    tree = jobs.tree(method, output__cache=str(folder / "cache"))
    broken = jobs.killed(tree, folder / "broken", "tick", moment + 1)
    if (broken / "recipe.yaml").exists():
        resume(str(broken))
    else:
        # Nothing was decided yet, not even written down what was asked for.
        shutil.rmtree(broken)
        tuned(tree, broken)
    assert read(broken, "run.json")["state"] == "finished"
    assert_same(jobs.uninterrupted(method), broken)


def test_the_random_moments_are_enough() -> None:
    assert sum(map(sum, RANDOM.values())) >= 30
    assert sum(saving for _, saving in RANDOM.values()) >= 10
    assert RANDOM.keys() == METHODS.keys()


def test_the_report_half_made_is_made_again(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    moment = [i for i, tick in enumerate(jobs.ticks("features", report=True)) if "rename .report.html" in tick][-1]
    tree = jobs.tree("features", output__cache=str(tmp_path / "cache"))
    broken = jobs.killed(tree, tmp_path / "broken", "tick", moment + 1, report=True)
    assert not (broken / "report.html").exists()
    assert read_state(broken) == "finished"
    assert differences(jobs.uninterrupted("features"), broken) == []
    assert page.build(broken).is_file()


def test_the_uninterrupted_run_is_worth_interrupting(jobs: Jobs) -> None:
    """The guarantees above mean little unless dropout, plateau, early stopping and micro-batches really happened."""
    folder = jobs.uninterrupted("full")
    assert read(folder, "model.json")["dropout"]["hidden_dropout_prob"] == 0.2
    assert events(folder, "early_stop")
    assert any("plateau" in event["message"] for event in events(folder, "note"))
    best, last = events(folder, "trained")[0]["best_step"], events(folder, "step")[-1]["step"]
    assert 3 < best < last - 3
    assert jobs.ticks("full").count("backward") > 2 * last
    restored = load_file(folder / "model" / "model.safetensors")
    kept = load_file(folder / "checkpoints" / "best" / f"step-{best:08d}" / "tensors.safetensors")
    assert all(torch.equal(restored[name.removeprefix("model.")], tensor) for name, tensor in kept.items())


def test_killed_again_and_again(jobs: Jobs, tmp_path: Path) -> None:
    """In training, inside a save of the resumed run, in its preparation, and after training."""
    broken = jobs.killed(jobs.tree("full"), tmp_path / "broken", "event step", 6)
    jobs.killed(None, broken, "tick", 90)
    jobs.killed(None, broken, "tick", 12)
    jobs.killed(None, broken, "event trained", 1)
    resume(str(broken))
    assert_same(jobs.uninterrupted("full"), broken)


def test_checkpoints_between_evaluations_resume_too(jobs: Jobs, tmp_path: Path) -> None:
    tree = jobs.tree("full", output__checkpoint_minutes=1e-6)
    whole = tuned(tree, tmp_path / "whole")
    broken = jobs.killed(tree, tmp_path / "broken", "event step", 7)
    assert (broken / "checkpoints" / "step-00000006").is_dir()
    resume(str(broken))
    assert_same(whole, broken)


def test_damaged_newest_checkpoint_is_passed_over(jobs: Jobs, tmp_path: Path) -> None:
    broken = jobs.killed(jobs.tree("full"), tmp_path / "broken", "event step", 11)
    newest = max((broken / "checkpoints").glob("step-*"))
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    told: list[str] = []
    resume(str(broken), listeners=[lambda event: told.append(str(event.get("message")))])
    assert any("checkpoint refused" in message and newest.name in message for message in told)
    assert_same(jobs.uninterrupted("full"), broken)


def test_interrupted_by_the_user_says_so_and_resumes(jobs: Jobs, tmp_path: Path) -> None:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(from_dict(jobs.tree("full")), out=str(tmp_path / "broken"), listeners=[stop])
    assert read(tmp_path / "broken", "run.json")["state"] == "interrupted"
    resume(str(tmp_path / "broken"))
    assert_same(jobs.uninterrupted("full"), tmp_path / "broken")


def test_learning_rate_found_before_the_interruption_is_kept(jobs: Jobs, tmp_path: Path) -> None:
    tree = jobs.tree("full", train__learning_rate="auto", train__epochs=1, data__text=None, data__label=None)
    whole = tuned(tree, tmp_path / "whole")
    broken = jobs.killed(tree, tmp_path / "broken", "event step", 2)
    resume(str(broken))
    assert_same(whole, broken)
    assert len(events(broken, "lr_range")) == 1


@pytest.fixture(scope="module")
def halfway(jobs: Jobs) -> Path:
    """Return a folder with a run that was killed at step 9, beside its own data and model."""
    folder = jobs.folder / "halfway"
    folder.mkdir()
    shutil.copy(jobs.data, folder / "reviews.csv")
    shutil.copytree(jobs.model, folder / "model")
    tree = jobs.tree("full", data__train=str(folder / "reviews.csv"), model__base=str(folder / "model"))
    jobs.killed(tree, folder / "run", "event step", 9)
    return folder


@pytest.fixture
def broken(halfway: Path, tmp_path: Path) -> Path:
    """Return a run of one's own that was killed at step 9, its recipe naming the data and the model beside it."""
    shutil.copytree(halfway, tmp_path / "copy")
    recipe = tmp_path / "copy" / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace(str(halfway), str(tmp_path / "copy")), "utf-8")
    return tmp_path / "copy" / "run"


def test_moved_data_and_model_are_the_same_data_and_model(broken: Path, jobs: Jobs) -> None:
    resume(str(broken))
    told = {name for name in differences(jobs.uninterrupted("full"), broken) if name != "events.jsonl"}
    named = {
        "data.json", "examples.json", "model.json", "splits.parquet", "model/finesmith.json", "model/seal.json"
    }  # fmt: skip
    assert told <= named, "they hold the names of files"


def edit(run: Path, **values: Any) -> None:
    recipe = replace(load(run / "recipe.yaml"), {key.replace("__", "."): value for key, value in values.items()})
    (run / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")


def change_data(run: Path) -> None:
    with (run.parent / "reviews.csv").open("a") as file:
        file.write("one more good film,positive\n")


def change_model(run: Path) -> None:
    file = run.parent / "model" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


CHANGES: dict[str, Callable[[Path], None]] = {
    "data was": change_data,
    "recipe train.batch_size was 8, is now 6": lambda run: edit(run, train__batch_size=6),
    "recipe train.learning_rate was 0.03, is now 0.005": lambda run: edit(run, train__learning_rate=5e-3),
    "recipe data.clean.whitespace was false, is now true": lambda run: edit(run, data__clean__whitespace=True),
    "base model was": change_model,
}


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("named", CHANGES)
def test_changed_conditions_are_refused_by_name_and_change_nothing_unless_forced(named: str, broken: Path) -> None:
    CHANGES[named](broken)
    before = contents(broken)
    with pytest.raises(RunError, match=re.escape(named)) as refused:
        resume(str(broken))
    assert "--force" in str(refused.value)
    assert refused.value.__notes__ == [f"Nothing in {broken} was changed"]
    after = contents(broken)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= WAITING
    resume(str(broken), force=True)
    assert read(broken, "run.json")["state"] == "finished"
    steps = [event["step"] for event in events(broken, "step")]
    assert steps == list(range(1, len(steps) + 1))


# What the killed process left and the next one cleared away.
WAITING = {".reserve"}


def test_other_versions_are_refused_by_name(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesmith.run import versions

    then = versions()["torch"]
    monkeypatch.setattr("finesmith.run.versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(RunError, match=re.escape(f"torch was {then}, is now 1.0")):
        resume(str(broken))


def test_changed_recipe_is_refused_where_there_is_no_checkpoint_yet(jobs: Jobs, tmp_path: Path) -> None:
    broken = jobs.killed(jobs.tree("features"), tmp_path / "broken", "event test_opened", 1)
    edit(broken, evaluate__bootstrap_samples=150)
    with pytest.raises(RunError, match=r"recipe evaluate\.bootstrap_samples was 100, is now 150"):
        resume(str(broken))
    resume(str(broken), force=True)
    assert read(broken, "run.json")["state"] == "finished"
    assert len(events(broken, "test_opened")) == 1


def test_second_process_on_one_folder_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    words = jobs.ask(jobs.tree("full"), tmp_path / "run", "pause at step", 3).split()
    assert words[:2] == ["paused", "as"]
    try:
        with pytest.raises(RunError, match="in use by another finesmith process"):
            resume(str(tmp_path / "run"))
        with pytest.raises(RunError, match="already holds a run"):
            tuned(jobs.tree("full"), tmp_path / "run")
    finally:
        os.kill(int(words[2]), signal.SIGKILL)
    for _ in range(200):
        if read_state(tmp_path / "run") == "interrupted":
            break
        time.sleep(0.05)
    assert [row["state"] for row in list_runs(tmp_path)] == ["interrupted"], "as after the kernel killed it"
    resume(str(tmp_path / "run"))
    assert_same(jobs.uninterrupted("full"), tmp_path / "run")


def test_finished_run_has_nothing_to_resume(jobs: Jobs) -> None:
    with pytest.raises(RunError, match="has finished; there is nothing to resume"):
        resume(str(jobs.uninterrupted("features")))
