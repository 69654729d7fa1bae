"""Links, pipes, devices and names that lead out of a run folder or a folder of data, and names that say more."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import FAST, Attack, change, mentions

from terminal import finesmith, reviews, write_csv

MINE = "this stays as it is\n"


@pytest.fixture
def theirs(attack: Attack, finished: Path) -> Path:
    """Return a copy of a finished run, outside of what may be written."""
    return Path(shutil.copytree(finished, attack.place / "theirs"))


@pytest.fixture
def mine(attack: Attack) -> Path:
    """Return a folder with a file that nobody may change or show."""
    folder = attack.place / "mine"
    folder.mkdir()
    (folder / "secret.json").write_text(json.dumps({"secret": MINE}), "utf-8")
    (folder / "secret.txt").write_text(MINE, "utf-8")
    return folder


def interrupted(folder: Path) -> Path:
    change(folder / "run.json", state="interrupted")
    return folder


def each_command(attack: Attack, folder: Path, small: Path) -> Iterator[str]:
    """Call every command that opens a run; all must refuse."""
    for words in (
        ("predict", folder, small, "-q"), ("evaluate", folder, "--data", small), ("report", folder), ("resume", folder),
    ):  # fmt: skip
        yield attack.refuse(*words)


FILES = ["events.jsonl", ".lock", "run.json", "report.html", "verdict.json", "data.json", "recipe.yaml", ".reserve"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("state", ["finished", "interrupted", "running"])
def test_a_file_of_a_run_that_leads_out(
    name: str, state: str, attack: Attack, theirs: Path, mine: Path, small: Path
) -> None:
    change(theirs / "run.json", state=state)
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to(mine / "secret.json")
    for said in each_command(attack, theirs, small):
        mentions(said, name, "leads out of the run folder")
        assert "stays" not in said
    assert "stays" not in attack.call("runs", attack.place).out


FOLDERS = ["model", "checkpoints", "predictions", "evaluations", "tensorboard", ".held", "model/deeper"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_run_that_leads_out(name: str, attack: Attack, theirs: Path, mine: Path, small: Path) -> None:
    if (theirs / name).is_dir():
        (theirs / name).rename(mine / "moved")
    (theirs / name).symlink_to(mine / "moved" if (mine / "moved").exists() else mine)
    for said in each_command(attack, interrupted(theirs), small):
        mentions(said, name, "leads out of the run folder")


@pytest.mark.parametrize("name", ["model/config.json", "predictions/test.parquet", "model/model.safetensors"])
def test_a_file_deep_in_a_run_that_leads_out(name: str, attack: Attack, theirs: Path, mine: Path, small: Path) -> None:
    (theirs / name).rename(mine / "moved")
    (theirs / name).symlink_to(mine / "moved")
    for said in each_command(attack, theirs, small):
        mentions(said, name, "leads out of the run folder")


@pytest.mark.parametrize("name", ["run.json", "verdict.json", "events.jsonl", ".lock", "model/finesmith.json"])
def test_a_pipe_in_a_run(name: str, attack: Attack, theirs: Path, small: Path) -> None:
    (theirs / name).unlink(missing_ok=True)
    os.mkfifo(theirs / name)
    for said in each_command(attack, theirs, small):
        mentions(said, name, "not an ordinary file")
    assert attack.call("runs", attack.place).status == 0


def test_a_link_in_a_circle(attack: Attack, theirs: Path, small: Path) -> None:
    (theirs / "a").symlink_to(theirs / "b")
    (theirs / "b").symlink_to(theirs / "a")
    (theirs / "self").symlink_to(theirs)
    said = attack.call("report", theirs, writes=[theirs])
    assert said.status in {0, 2}


def test_a_run_folder_that_is_a_link_itself_works(attack: Attack, theirs: Path, small: Path) -> None:
    (attack.place / "link").symlink_to(theirs)
    assert attack.call("predict", attack.place / "link", small, "-q").status == 0


@pytest.mark.parametrize("out", ["link", "dangling", "file", "/dev/null", "/dev/zero", "file/inside", "\0", "x" * 300])
def test_a_place_where_no_run_can_be(out: str, attack: Attack, mine: Path, small: Path, tiny_model: Path) -> None:
    (attack.place / "link").symlink_to(mine)
    (attack.place / "dangling").symlink_to(attack.place / "nowhere" / "deeper")
    (attack.place / "file").write_text(MINE, "utf-8")
    place = out if out.startswith("/") else f"{attack.place}/{out}"
    # To try to make a folder where none can be is no harm: nothing is there afterwards.
    attack.refuse("tune", small, "--model", tiny_model, "--out", place, *FAST, tries=place)
    assert not (attack.place / "nowhere").exists()
    assert {path.name for path in mine.iterdir()} == {"secret.json", "secret.txt"}


def test_a_recipes_output_folder_never_takes_what_is_there(
    attack: Attack, mine: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = attack.place / "inner" / "recipe.json"
    recipe.parent.mkdir()
    for place in ("../mine", str(mine), "..", ".", "../inner/../mine"):
        monkeypatch.chdir(recipe.parent)
        recipe.write_text(json.dumps({"data": {"train": str(small)}, "output": {"dir": place}}), "utf-8")
        mentions(attack.refuse("tune", recipe), "not an empty folder")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder link", "device", "process", "circle"])
def test_data_that_is_no_file(kind: str, attack: Attack) -> None:
    place = attack.place / "data.csv"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = Path.cwd()
            os.chdir(attack.place)
            server.bind("data.csv")
            os.chdir(before)
    elif kind == "folder link":
        place.symlink_to(attack.place)
    elif kind == "circle":
        place.symlink_to(place)
    else:
        place.symlink_to({"device": "/dev/zero", "process": "/proc/self/fd"}[kind])
    mentions(attack.refuse_data(place), "data.csv")


def test_a_folder_of_data_with_links_out(attack: Attack, mine: Path) -> None:
    folder = attack.place / "reviews"
    folder.mkdir()
    (folder / "pos.txt").write_text("good film\n", "utf-8")
    (folder / "neg.txt").symlink_to(mine / "secret.txt")
    said = attack.refuse_data(folder)
    mentions(said, "neg.txt", "leads out of")
    assert "stays" not in said


def test_a_folder_of_classes_with_links_out(attack: Attack, mine: Path) -> None:
    for label in ("pos", "neg"):
        (attack.place / "reviews" / label).mkdir(parents=True)
        (attack.place / "reviews" / label / "1.txt").write_text("good film\n", "utf-8")
    (attack.place / "reviews" / "neg" / "2.txt").symlink_to(mine / "secret.txt")
    mentions(attack.refuse_data(attack.place / "reviews"), "2.txt", "leads out of")


def test_a_folder_of_data_with_pipes(attack: Attack) -> None:
    (attack.place / "reviews").mkdir()
    os.mkfifo(attack.place / "reviews" / "pos.txt")
    os.mkfifo(attack.place / "reviews" / "neg.txt")
    attack.refuse_data(attack.place / "reviews")


NAMES = ["a\nit says all is well.csv", "\x1b[2J\x1b]0;owned\x07.csv", "a\u202evsc.csv", "=1+1.csv", "-rf.csv",
         "<script>alert(1)</script>.csv", "a b'; touch canary;'.csv", "$(touch canary).csv", "\udcff.csv"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_whose_name_says_more(
    name: str, attack: Attack, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = attack.place / name.replace("/", "_")
    write_csv(file, [(text, "pos") for text, _ in reviews(40)])
    monkeypatch.chdir(attack.place)
    said = attack.tune(file, tiny_model)
    assert not [line for line in said.splitlines() if line.startswith("it says all is well")], said
    events = attack.run / "events.jsonl"
    for event in events.read_text("utf-8").splitlines() if events.exists() else ():
        json.loads(event)


def test_output_through_a_link_replaces_the_link(attack: Attack, theirs: Path, mine: Path, small: Path) -> None:
    out = attack.place / "results" / "out.csv"
    out.parent.mkdir()
    out.symlink_to(mine / "secret.txt")
    said = attack.call("predict", theirs, small, "-o", out, writes=[out.parent])
    assert said.status == 0, said.err
    assert (mine / "secret.txt").read_text("utf-8") == MINE


def test_data_named_by_what_a_shell_would_run(
    attack: Attack, theirs: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = attack.place / "$(touch canary);`touch canary`.csv"
    shutil.copy(small, name)
    monkeypatch.chdir(attack.place)
    said = attack.call("evaluate", theirs, "--data", name, writes=[theirs])
    assert said.status == 0, said.err
    assert finesmith("runs", attack.place).status == 0
