"""A disk that is full at any moment: one message, status 2, a folder that says failed and resumes to the same bits."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking import Jobs, assert_same
from jobs import PEFT_WARNING, differences, read, tuned
from ticks import SAVING

from finesmith.errors import RunError
from finesmith.run import BEGUN, Run, read_state
from finesmith.workflows.tune import resume

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
    pytest.mark.skipif(os.name == "nt", reason="the runs are made in forked processes"),
]
# What asks for new space.
ASKING = ("open", "mkdir", "rename", "fsync", "write", "half")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of what is resumed here; it takes a third of such a short run.
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


def sites(ticks: list[str], *, saving: bool) -> dict[str, int]:
    """Return one moment, drawn by chance, for each file that space is asked for, inside or outside of saves."""
    found: dict[str, list[int]] = {}
    for moment, tick in enumerate(ticks, 1):
        what = tick.removeprefix(SAVING)
        if tick.startswith(SAVING) == saving and what.startswith(ASKING):
            # An fsync has no name, but it follows what it flushes; sizes and process numbers make no other file.
            name = ticks[moment - 2] if what == "fsync" else what
            file = re.sub(r"[\d.]+tmp.*|\d+$", "", re.sub(r"step-\d+|[0-9a-f]{64}", "x", name)).split()[-1]
            found.setdefault(file, []).append(moment)
    draw = random.Random(0)
    return {file: draw.choice(moments) for file, moments in found.items()}


def hurt(jobs: Jobs, method: str, moment: int, folder: Path) -> tuple[Path, str, str]:
    """Run the command line with a disk that refuses one request; return run folder, status and what was said."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tree = jobs.tree(method, output__cache=str(folder / "cache"))
    status = jobs.ask(tree, folder / "run", "full disk", moment, report=True, said=folder / "said")
    return folder / "run", status, (folder / "said").read_text("utf-8")


def check_told(run: Path, status: str, said: str) -> None:
    assert status == "ended with 2", said
    assert said.count("finesmith: ") == 1, said
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert "report this" not in said
    hidden = {path.name for path in run.rglob(".*")}
    assert hidden <= {".lock"}, "nothing half done is left"


def test_full_at_a_request_for_each_file(jobs: Jobs, tmp_path: Path) -> None:
    ticks = jobs.ticks("features", report=True)
    found = sites(ticks, saving=False)
    always = {".run.json", ".report.html", "tokens.npy", "embeddings.npy", ".test.parquet", ".model.new", "note"}
    assert always <= found.keys()
    again = 0
    for file in [*sorted(always), *random.Random(1).sample(sorted(found.keys() - always), 16)]:
        moment = found[file]
        run, status, said = hurt(jobs, "features", moment, tmp_path / "hurt")
        if status == "ended with 0":
            # A folder that is there already needs no space; and a cache is a help, not a need.
            there = ticks[moment - 1].startswith("mkdir")
            assert there or file.endswith((".npy", "x", "manifest.json")), (file, said)
            assert differences(jobs.uninterrupted("features"), run) == [], file
            continue
        check_told(run, status, said)
        if not (run / "run.json").exists() or read_state(run) == "finished":
            # Nothing was learnt yet, so the folder went or can be taken again; or all is there but the report.
            begun = {path.name for path in run.iterdir()} if run.exists() else set()
            assert begun <= BEGUN or "report" in said
            continue
        about = read(run, "run.json")
        if file in (".run.json", ".reserve"):
            assert read_state(run) == "interrupted", "without room for last words it cannot say more"
        else:
            assert about["state"] == "failed", (file, said)
            assert "No space left on device" in about["error"]["message"]
        again += 1
        if again % 4 == 1:
            resume(str(run))
            assert_same(jobs.uninterrupted("features"), run)
    assert again > 8


def test_a_folder_where_no_run_could_begin_counts_as_empty(jobs: Jobs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moment = jobs.ticks("features").index("open .reserve") + 1
    assert jobs.ask(jobs.tree("features"), out, "full disk", moment, said=tmp_path / "said") == "ended with 2"
    assert {path.name for path in out.iterdir()} <= {".lock", "events.jsonl"}
    tuned(jobs.tree("features"), out)
    assert_same(jobs.uninterrupted("features"), out)


def test_full_inside_a_save(jobs: Jobs, tmp_path: Path) -> None:
    found = sites(jobs.ticks("full", report=True), saving=True)
    assert {"state.json", "tensors.safetensors", "manifest.json"} <= {name.strip(".") for name in found}
    for file in ("tensors.safetensors", "manifest.json"):
        run, status, said = hurt(jobs, "full", found[file], tmp_path / "hurt")
        check_told(run, status, said)
        assert "cannot save the checkpoint of step" in said
        assert "MB are free" in said
        assert read(run, "run.json")["state"] == "failed"
        resume(str(run))
        assert_same(jobs.uninterrupted("full"), run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free", [120, 200, 330, 480])
def test_a_disk_that_is_really_full(free: int, jobs: Jobs, small_disk: Path, tmp_path: Path) -> None:
    """Whatever library meets it: `free` KiB are left on it; the ballast goes before the run is resumed."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((900 - free) * 1024))
    tree = jobs.tree("full", output__cache=str(tmp_path / "cache"))
    run, said = small_disk / "run", tmp_path / "said"
    status = jobs.ask(tree, run, "full disk", 0, said=said)
    check_told(run, status, said.read_text("utf-8"))
    assert read(run, "run.json")["state"] == "failed"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    resume(str(run))
    assert_same(jobs.uninterrupted("full"), run)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_told_and_left(
    number: int, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = jobs.killed(jobs.tree("features"), tmp_path / "run", "event evaluation", 1)

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with pytest.raises(RunError, match=f"cannot write into {run}: {os.strerror(number)}; .* mend its permissions"):
        Run.reopen(run)
    with pytest.raises(RunError, match=os.strerror(number)):
        resume(str(run))
