"""Cases of run folders: a command on a damaged one gives what the whole one gives, or one message tells why not."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fuzz.mutate import mutate_bytes, mutate_tree
from fuzz.oracle import Outcome, judge, require
from terminal import Said, finesmith, reviews, when_step, write_csv

READ_BY_REPORT = ("run.json", "events.jsonl", "recipe.yaml", "verdict.json", "data.json", "audit.json", "scores.json",
                  "examples.json",
                  "baselines.json", "next.json", "model.json", "predictions/test.parquet")  # fmt: skip
COMMANDS = ("report",) * 6 + ("runs",) * 4 + ("predict",) * 6 + ("evaluate",) * 2 + ("resume",) * 2


class Workshop:
    """What all cases share: finished and interrupted runs of a tiny model, and what commands say of them."""

    def __init__(self, folder: Path) -> None:
        from finesmith.console import Display
        from tiny import write_tiny_bert

        folder.mkdir(parents=True)
        self.model = write_tiny_bert(folder / "tiny-bert")
        self.data = write_csv(folder / "small.csv", reviews(80))
        self.more = write_csv(folder / "more.csv", reviews(30))
        self.cache = folder / "cache"
        self.runs = {"full": folder / "full", "features": folder / "features"}
        self._tune(self.runs["full"], "train.epochs=2")
        self._tune(self.runs["features"], "method.name=features")
        self.broken = folder / "broken"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Display, "__call__", when_step(4, _interrupt))
            self._tune(self.broken, "train.epochs=2", status=130)
        self.expected = {
            (name, command): self.call(command, run).out
            for name, run in self.runs.items()
            for command in ("predict", "evaluate")
        }
        whole = shutil.copytree(self.broken, folder / "resumed")
        require(finesmith("resume", whole, "--quiet").status == 0, "a run that nobody damaged cannot be resumed")
        self.weights = _sha256(whole / "model" / "model.safetensors")

    def _tune(self, out: Path, *sets: str, status: int = 0) -> None:
        given = ["evaluate.baselines=[majority]", "evaluate.bootstrap_samples=100", f"output.cache={self.cache}", *sets]
        words = [word for one in given for word in ("--set", one)]
        said = finesmith("tune", self.data, "--model", self.model, "--out", out, *words)
        require(said.status == status, said.err)

    def call(self, command: str, run: Path) -> Said:
        """Run a command on a run folder."""
        words: dict[str, Sequence[object]] = {
            "report": ("report", run),
            "runs": ("runs", run.parent, "--json"),
            "predict": ("predict", run, self.more, "--quiet"),
            "evaluate": ("evaluate", run, "--data", self.more, "--json"),
            "resume": ("resume", run, "--quiet"),
        }
        return finesmith(*words[command])


def _interrupt() -> None:
    raise KeyboardInterrupt


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_case(draw: random.Random, folder: Path, shop: Workshop) -> Outcome:
    """Damage a copy of a run, call a command on it, and judge what it says and leaves."""
    command = draw.choice(COMMANDS)
    name = "broken" if command == "resume" else draw.choice(list(shop.runs))
    run = shutil.copytree(shop.broken if command == "resume" else shop.runs[name], folder / "run-7")
    for _ in range(draw.choice([1, 1, 2])):
        _damage(draw, run, command)
    damaged = [path.name for path in run.iterdir() if path.suffix == ".json" and not _is_json(path)]
    said = shop.call(command, run)
    if said.status == 2:
        require(not said.out, f"it was refused, yet it printed {said.out[:200]!r}")
        judge(said.complaint, (run.name, shop.data.name, "data.", "model.base"))
        return Outcome("refused", said.complaint)
    require(said.status == 0, f"{command} ended with {said.status}: {said.err[-800:]}")
    if command == "report":
        page = (run / "report.html").read_text("utf-8")
        require(
            page.lower().startswith("<!doctype html>") and page.rstrip().endswith("</html>"), "the page is not whole"
        )
        silent = [each for each in damaged if each in READ_BY_REPORT and each not in page]
        require(not silent, f"{silent} are damaged and the report does not say so")
    elif command == "runs":
        found = json.loads(said.out)
        listed = [Path(row["folder"]).name for row in found]
        require(listed == [run.name] * (run / "run.json").exists(), f"listed {listed}")
        if found and "run.json" in damaged:
            require(found[0]["state"] == "damaged", f"run.json is damaged, the list says {found[0]}")
    elif command == "resume":
        require(_sha256(run / "model" / "model.safetensors") == shop.weights, "the resumed run has other weights")
    else:
        require(said.out == shop.expected[name, command], f"{command} silently gives something else")
    return Outcome("accepted", f"{command} {said.out[:100]}")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return True


def _damage(draw: random.Random, run: Path, command: str) -> None:
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    chosen: Callable[[Path], bool] = {
        "report": lambda path: path.relative_to(run).as_posix() in READ_BY_REPORT,
        "runs": lambda path: path.name in ("run.json", "verdict.json") and path.parent == run,
        "resume": lambda path: (
            path.name in ("run.json", "events.jsonl", "recipe.yaml", "data.json") or "checkpoints" in path.parts
        ),
    }.get(command, lambda path: "model" in path.parts or path.name in ("run.json", "data.json"))
    files = [path for path in files if chosen(path)]
    if not files:
        return
    file, what = draw.choice(files), draw.randrange(12)
    if what == 0:
        file.unlink()
    elif what == 1:
        raw, other = file.read_bytes(), draw.choice(files)
        file.write_bytes(other.read_bytes())
        other.write_bytes(raw)
    elif what == 2:
        file.unlink()
        file.mkdir()
    elif what == 3:
        file.unlink()
        file.symlink_to(draw.choice([Path("nowhere"), Path("/dev/null"), file.with_name(file.name), file.parent]))
    elif what < 8 and file.suffix in (".json", ".jsonl"):
        file.write_bytes(_changed_values(draw, file))
    else:
        file.write_bytes(mutate_bytes(draw, file.read_bytes()))


def _changed_values(draw: random.Random, file: Path) -> bytes:
    """Return the file's JSON, still well-formed, with other values."""
    lines = file.read_bytes().split(b"\n") if file.suffix == ".jsonl" else [file.read_bytes()]
    at = draw.randrange(len(lines))
    try:
        tree: Any = json.loads(lines[at])
    except (ValueError, RecursionError):
        return mutate_bytes(draw, file.read_bytes())
    lines[at] = json.dumps(mutate_tree(draw, tree)).encode()
    return b"\n".join(lines)
