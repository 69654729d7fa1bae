"""Two thousand damaged recipes, data files, checkpoints and run folders: an answer or one clear message, each time."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from fuzz import recipes
from fuzz.cases import KINDS, maker, run_cases

CASES = {"recipes": 1000, "tables": 550, "language": 200, "checkpoints": 150, "runs": 100}
# Neither all refused nor all accepted: the damage is neither too coarse nor too mild to tell anything.
ACCEPTED = {"recipes": 0.08, "tables": 0.2, "language": 0.15, "checkpoints": 0.5, "runs": 0.3}
SEED = 3_000_000


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cases out of the user's cache, off the network, and in a folder without data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FINESMITH_TRACEBACK", "1")
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def test_there_are_two_thousand_cases_of_every_kind() -> None:
    assert set(CASES) == set(KINDS)
    assert sum(CASES.values()) == 2000


def plant(kind: str, patch: pytest.MonkeyPatch) -> str:
    """Break finesmith where the cases of a kind must notice it; return what they will say."""
    if kind == "recipes":
        from finesmith.recipe import replace

        load = recipes.load
        patch.setattr(recipes, "load", lambda *given: replace(load(*given), {"data.train": "other.csv"}))
        return "stands in the file|in the file and|read as data"
    if kind == "tables":
        from finesmith.data import formats, sources

        read_lines = formats.read_jsonl
        patch.setattr(sources, "read_jsonl", lambda text, name: read_lines(text[: text.rindex("{")], name))
        return "rows were read, the file has"
    if kind == "language":
        from finesmith.data import columns

        fields = columns._fields
        patch.setattr(columns, "_fields", lambda lines, tabbed: fields(lines[:-4], tabbed))
        return "other words than stand in the file"
    from finesmith.train import checkpoint

    patch.setattr(checkpoint, "_verify", functools.partial(checkpoint._verify, hashing=False))
    return "was loaded, whole are"


@pytest.mark.parametrize(("kind", "cases"), [("recipes", 60), ("tables", 60), ("language", 60), ("checkpoints", 60)])
def test_a_fault_that_was_planted_is_found(
    kind: str, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = maker(kind, tmp_path)
    said = plant(kind, monkeypatch)
    tally = run_cases(kind, range(SEED, SEED + cases), case, tmp_path / "cases", keep=False)
    assert [fault for fault in tally.faults if re.search(said, fault)], tally.faults[:3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_traceback_no_hang_and_no_silence(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = run_cases(kind, range(SEED, SEED + CASES[kind]), maker(kind, tmp_path), tmp_path / "cases")
    with capsys.disabled():
        print(f"\nfuzz of {tally}")
    assert not tally.faults, "\n\n".join(tally.faults[:5])
    assert tally.cases == CASES[kind]
    accepted = tally.ended["accepted"] / tally.cases
    assert ACCEPTED[kind] <= accepted < 0.97, f"{accepted:.0%} of the cases were accepted"
