"""A run that is killed at any moment and resumed ends with the same bits as one that never was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import PEFT_WARNING, differences, events, plan, read, reviews, tuned, with_values, write_csv
from safetensors.torch import load_file, save_file

from finesmith.errors import RunError
from finesmith.recipe import from_dict, load, replace, to_yaml
from finesmith.run import read_state
from finesmith.workflows.tune import resume, tune

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL is what interrupts a run here"),
]

FULL = {
    "train.schedule": "plateau",
    "train.epochs": 5,
    "train.learning_rate": 1e-2,
    "train.micro_batch_size": 3,
    "guards.patience": 3,
    "model.dropout": 0.2,
}
METHODS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": {
        **FULL,
        "evaluate.baselines": ["majority", "features"],
        "method.name": "lora",
        "method.lora": {"r": 4, "lora_dropout": 0.2},
    },
    "head_then_full": {**FULL, "method.name": "head_then_full", "method.layer_decay": 0.7, "train.learning_rate": 3e-3},
    "features": {"method.name": "features", "evaluate.baselines": ["majority"]},
}
# The moments at which a run is killed: before, just after and inside a save, after the best, after training.
KILLS = {
    "full": [
        ("event step", 2),
        ("event step", 9),
        ("event step", 22),
        ("inside a save", 8),
        ("before publishing", 3),
        ("after publishing", 2),
        ("event best", 2),
        ("event early_stop", 1),
        ("event test_opened", 1),
        ("while writing scores", 1),
        ("model half saved", 1),
    ],
    "lora": [("event step", 9), ("model half saved", 1)],
    "head_then_full": [("event step", 1), ("event step", 9)],
    "features": [("event baseline", 1), ("event evaluation", 1), ("event test_opened", 1)],
}


class Jobs:
    """One uninterrupted run per method, and processes that die while doing the same."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.data = write_csv(folder / "reviews.csv", reviews(90, seed=1))
        self.whole: dict[str, Path] = {}
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "dying.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()

    def tree(self, method: str, **values: Any) -> dict[str, Any]:
        tree = with_values(plan(self.data, self.model, self.folder / "cache"), METHODS[method])
        if method == "features":
            tree["train"], tree["model"] = {}, {"base": str(self.model)}
        return with_values(tree, {key.replace("__", "."): value for key, value in values.items()})

    def uninterrupted(self, method: str) -> Path:
        if method not in self.whole:
            self.whole[method] = tuned(self.tree(method), self.folder / method)
        return self.whole[method]

    def killed(self, tree: Mapping[str, Any] | None, out: Path, moment: str, count: int) -> Path:
        """Run a recipe (None: resume `out`) in another process that is killed at the moment; return its folder."""
        assert self.ask(tree, out, moment, count) == f"killed by {signal.SIGKILL.value}"
        return out

    def ask(self, tree: Mapping[str, Any] | None, out: Path, moment: str, count: int) -> str:
        """Return how the process ended."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {"tree": tree, "out": str(out), "moment": moment, "count": count, "threads": torch.get_num_threads()}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Jobs]:
    found = Jobs(tmp_path_factory.mktemp("resume"), tiny_model)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


@pytest.mark.parametrize(
    ("method", "moment", "count"), [(method, *kill) for method, kills in KILLS.items() for kill in kills]
)
def test_killed_and_resumed_is_the_same_to_the_bit(
    method: str, moment: str, count: int, jobs: Jobs, tmp_path: Path
) -> None:
    whole = jobs.uninterrupted(method)
    broken = jobs.killed(jobs.tree(method), tmp_path / "broken", moment, count)
    assert read(broken, "run.json")["state"] == "running"
    resume(str(broken))
    assert read(broken, "run.json")["state"] == "finished"
    assert_same(whole, broken)


def assert_same(whole: Path, resumed: Path) -> None:
    """Compare all that two run folders record; the recipes say the same, with the same reasons."""
    assert differences(whole, resumed) == []
    for page in ("recipe.yaml", "next-recipe.yaml"):
        here, there = ((folder / page).read_text("utf-8").splitlines() for folder in (whole, resumed))
        assert here[1:] == there[1:]
    steps = [event["step"] for event in events(resumed, "step")]
    assert steps == list(range(1, len(steps) + 1))
    assert [event["event"] for event in events(resumed)].count("test_opened") == 1


def test_the_uninterrupted_run_is_worth_interrupting(jobs: Jobs) -> None:
    """The guarantees above mean little unless dropout, plateau, early stopping and micro-batches really happened."""
    folder = jobs.uninterrupted("full")
    assert read(folder, "model.json")["dropout"]["hidden_dropout_prob"] == 0.2
    assert events(folder, "early_stop")
    assert any("plateau" in event["message"] for event in events(folder, "note"))
    best, last = events(folder, "trained")[0]["best_step"], events(folder, "step")[-1]["step"]
    assert 0 < best < 22 < last, "a run killed at step 22 must have its best behind it"
    restored = load_file(folder / "model" / "model.safetensors")
    kept = load_file(folder / "checkpoints" / "best" / f"step-{best:08d}" / "tensors.safetensors")
    assert all(torch.equal(restored[name.removeprefix("model.")], tensor) for name, tensor in kept.items())


def test_interrupted_twice(jobs: Jobs, tmp_path: Path) -> None:
    broken = jobs.killed(jobs.tree("full"), tmp_path / "broken", "event step", 6)
    jobs.killed(None, broken, "before publishing", 4)
    jobs.killed(None, broken, "event early_stop", 1)
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
    broken = jobs.killed(jobs.tree("full"), tmp_path / "broken", "event step", 15)
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
    assert told <= {"data.json", "model.json", "splits.parquet", "model/finesmith.json"}, "names of files, nothing else"


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
    "recipe train.learning_rate was 0.01, is now 0.005": lambda run: edit(run, train__learning_rate=5e-3),
    "recipe data.clean.whitespace was false, is now true": lambda run: edit(run, data__clean__whitespace=True),
    "base model was": change_model,
}


@pytest.mark.parametrize("named", CHANGES)
def test_changed_conditions_are_refused_by_name_unless_forced(named: str, broken: Path) -> None:
    CHANGES[named](broken)
    before = (broken / "events.jsonl").read_bytes()
    with pytest.raises(RunError, match=re.escape(named)) as refused:
        resume(str(broken))
    assert "--force" in str(refused.value)
    assert (broken / "events.jsonl").read_bytes() == before
    resume(str(broken), force=True)
    assert read(broken, "run.json")["state"] == "finished"
    steps = [event["step"] for event in events(broken, "step")]
    assert steps == list(range(1, len(steps) + 1))


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
    resume(str(tmp_path / "run"))
    assert_same(jobs.uninterrupted("full"), tmp_path / "run")


def test_finished_run_has_nothing_to_resume(jobs: Jobs) -> None:
    with pytest.raises(RunError, match="has finished; there is nothing to resume"):
        resume(str(jobs.uninterrupted("features")))
