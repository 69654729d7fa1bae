"""Ctrl-C, SIGTERM and SIGHUP: the step is finished and saved, a second signal leaves at once, and all of it resumes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs import differences, events, plan, read, reviews, tuned, write_csv

from finesmith.recipe import from_dict
from finesmith.run import Run
from finesmith.train import checkpoint_files
from finesmith.train.adamw import AdamW
from finesmith.workflows.inference import Predictor
from finesmith.workflows.signals import Stopped, Stopping
from finesmith.workflows.tune import resume, tune

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

STEPS = 16
LISTENED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send(number: int = signal.SIGTERM, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


class Job:
    """One small recipe, and a run of it that nothing interrupted."""

    def __init__(self, folder: Path, model: Path) -> None:
        data = write_csv(folder / "reviews.csv", reviews(90, seed=1))
        self.tree = plan(data, model, folder / "cache", train__epochs=2, model__dropout=0.2)
        self.tree["guards"] = {"early_stopping": False}
        self.whole = tuned(self.tree, folder / "whole")
        assert events(self.whole, "step")[-1]["step"] == STEPS

    def stopped(self, out: Path, listener: Callable[[Mapping[str, Any]], None] | None = None) -> Stopped:
        """Start the run, which must be stopped by a signal."""
        with pytest.raises(Stopped) as stop:
            tune(from_dict(self.tree), out=str(out), command="finesmith tune", listeners=[listener] if listener else [])
        assert read(out, "run.json")["state"] == "interrupted"
        assert any("finesmith resume" in note for note in stop.value.__notes__)
        return stop.value

    def resumed(self, out: Path) -> None:
        """Go on with the run, which must end as if nothing had happened."""
        resume(str(out))
        # Which checkpoints are still there depends on where it was interrupted.
        told = [name for name in differences(self.whole, out) if not name.startswith("checkpoints/")]
        assert told == []
        assert [event["step"] for event in events(out, "step")] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, quick: None) -> Job:
    return Job(tmp_path_factory.mktemp("signals"), tiny_model)


def saved(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def at_call(patch: pytest.MonkeyPatch, place: Any, name: str, count: int, act: Callable[[], None]) -> None:
    """Act before the `count`-th call of a function."""
    function, seen = getattr(place, name), 0

    def wrapper(*values: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            act()
        return function(*values, **named)

    patch.setattr(place, name, wrapper)


def at_step(number: int, act: Callable[[], None]) -> Callable[[Mapping[str, Any]], None]:
    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == number:
            act()

    return listen


def state_of(out: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = read(out / "checkpoints" / f"step-{step:08d}", "state.json")
    return found


# --- one signal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", LISTENED)
def test_a_signal_between_steps_saves_and_leaves(number: int, job: Job, tmp_path: Path) -> None:
    stop = job.stopped(tmp_path / "run", at_step(10, lambda: send(number)))
    assert (stop.number, stop.hurried, stop.exit_status) == (number, False, 128 + number)
    assert saved(tmp_path / "run")[-1] == 10
    assert events(tmp_path / "run")[-1]["step"] == 10, "the save of an interruption leaves no line"
    assert signal.Signals(number).name in read(tmp_path / "run", "run.json")["error"]["message"]
    job.resumed(tmp_path / "run")


def test_a_step_in_progress_is_finished(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        at_call(patch, AdamW, "step", 7, lambda: send(signal.SIGINT))
        job.stopped(tmp_path / "run", lambda e: said.append(e["message"]) if e["event"] == "stopping" else None)
    assert said == ["stopping: finishing the step and saving; press Ctrl-C again to leave at once"]
    assert saved(tmp_path / "run")[-1] == 7
    job.resumed(tmp_path / "run")


@pytest.mark.parametrize("evaluation", [2, 4])
def test_an_evaluation_is_left_and_made_again(
    evaluation: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The preflight asks once for the loss before training.
        at_call(patch, Predictor, "logits", evaluation + 1, send)
        job.stopped(tmp_path / "run")
    out, step = tmp_path / "run", 4 * evaluation
    assert len(events(out, "evaluation")) == evaluation - 1
    assert saved(out)[-1] == step
    assert state_of(out, step)["due"] is True
    job.resumed(out)


def test_a_save_in_progress_is_finished(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, checkpoint_files, "write_part", 12, send)
        job.stopped(tmp_path / "run")
    last = saved(tmp_path / "run")[-1]
    assert state_of(tmp_path / "run", last)["due"] is False
    assert events(tmp_path / "run", "step")[-1]["step"] == last, "no step more"
    job.resumed(tmp_path / "run")


@pytest.mark.parametrize("stage", ["model", "evaluation", "saving"])
def test_outside_training_it_ends_at_once(stage: str, job: Job, tmp_path: Path) -> None:
    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "stage" and event["name"] == stage:
            send()

    job.stopped(tmp_path / "run", listen)
    assert events(tmp_path / "run")[-1] == {**events(tmp_path / "run")[-1], "event": "stage", "name": stage}
    job.resumed(tmp_path / "run")


# --- a second one ---------------------------------------------------------------------------------------------------


def test_twice_within_a_step_leaves_at_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, AdamW, "step", 10, lambda: send(signal.SIGINT, times=2))
        stop = job.stopped(tmp_path / "run")
    assert stop.hurried
    assert saved(tmp_path / "run") == [4, 8]
    job.resumed(tmp_path / "run")


def test_again_while_the_interruption_is_saved(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def twice() -> None:
        send(signal.SIGINT)
        at_call(monkeypatch, checkpoint_files, "write_part", 3, lambda: send(signal.SIGINT))

    assert job.stopped(out, at_step(10, twice)).hurried
    monkeypatch.undo()
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["best", "step-00000004", "step-00000008"]
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
    job.resumed(out)


def test_again_while_the_end_is_written_down(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: reports.append(folder) or folder / "report.html")
        finish = Run.finish

        def interrupted(self: Run, *values: Any, **named: Any) -> None:
            send(signal.SIGINT, times=3)
            finish(self, *values, **named)

        patch.setattr(Run, "finish", interrupted)
        job.stopped(tmp_path / "run", at_step(10, send))
    assert reports == [], "whoever asks twice wants no report"
    job.resumed(tmp_path / "run")


def test_again_while_the_report_is_made(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: send(signal.SIGINT))
        job.stopped(tmp_path / "run", at_step(10, send))
    job.resumed(tmp_path / "run")


def test_a_run_that_has_finished_stays_finished(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: send())
        with pytest.raises(Stopped) as stop:
            tuned(job.tree, tmp_path / "run")
    assert stop.value.__notes__ == [
        f"The run has finished; only its report is missing: finesmith report {tmp_path / 'run'}"
    ]
    assert read(tmp_path / "run", "run.json")["state"] == "finished"
    assert differences(job.whole, tmp_path / "run") == []


# --- whose handlers they are ----------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in LISTENED]


def test_callers_get_their_handlers_back(job: Job, tmp_path: Path) -> None:
    before = handlers()
    during: list[Any] = []
    tune(from_dict(job.tree), out=str(tmp_path / "done"), listeners=[at_step(3, lambda: during.extend(handlers()))])
    assert handlers() == before
    assert all(isinstance(handler, Stopping) for handler in during)
    job.stopped(tmp_path / "stopped", at_step(3, send))
    assert handlers() == before

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        tune(from_dict(job.tree), out=str(tmp_path / "failed"), listeners=[at_step(3, fail)])
    assert handlers() == before


def test_a_handler_of_ones_own_and_what_is_ignored_stay(job: Job, tmp_path: Path) -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: taken.append(number)), signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        act = at_step(3, lambda: (send(signal.SIGINT), send(signal.SIGHUP)))
        tune(from_dict(job.tree), out=str(tmp_path / "run"), listeners=[act])
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert taken == [signal.SIGINT]
    assert read(tmp_path / "run", "run.json")["state"] == "finished", "as under nohup"


def test_another_thread_trains_without_taking_signals(job: Job, tmp_path: Path) -> None:
    before, during = handlers(), list[Any]()
    listener = at_step(3, lambda: during.extend(handlers()))
    work = threading.Thread(target=lambda: tune(from_dict(job.tree), out=str(tmp_path / "run"), listeners=[listener]))
    work.start()
    work.join()
    assert during == before
    assert read(tmp_path / "run", "run.json")["state"] == "finished"


# --- a process ------------------------------------------------------------------------------------------------------


def test_a_terminal_that_is_closed_interrupts_its_run(job: Job, tmp_path: Path) -> None:
    tree = {**job.tree, "train": {**job.tree["train"], "epochs": 200}}
    (tmp_path / "recipe.json").write_text(json.dumps(tree))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "finesmith", "tune", str(tmp_path / "recipe.json"), "--out", str(out)]
    process, terminal = pty.fork()
    if process == 0:
        os.execv(command[0], command)
    try:
        shown, until = b"", time.monotonic() + 120
        while not (out / "events.jsonl").exists() or b'"event": "step"' not in (out / "events.jsonl").read_bytes():
            assert time.monotonic() < until, shown
            if select.select([terminal], [], [], 0.01)[0]:
                shown += os.read(terminal, 65536)
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    except BaseException:
        os.kill(process, signal.SIGKILL)
        raise
    assert b"training" in shown, "it was a terminal: it showed a bar"
    assert os.WEXITSTATUS(status) == 129
    assert read(out, "run.json")["error"] == {"kind": "interrupted", "message": "stopped by SIGHUP"}
    assert saved(out)[-1] == events(out, "step")[-1]["step"]
