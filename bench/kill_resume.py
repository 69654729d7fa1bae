"""Kill runs with SIGKILL at random moments, resume them, and compare all they leave with an uninterrupted run.

    python bench/kill_resume.py                      # 50 kills, tiny model (some minutes)
    python bench/kill_resume.py --model default      # the bundled model (an hour or more)
    python bench/kill_resume.py --kills 200 --seed 7

A third of the kills come at a random time, a third at a random call to the file system or backward pass, and the rest
inside a save; one in five is followed by a second kill while the run is resumed. The data is the bundled sample.
Compared are the SHA-256 of weights, optimiser and every other file, and every event, without times. The last line is
JSON: {"kills": n, "inside_save": n, "equal": n}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "workflows")]

import dying  # noqa: E402 - the machinery of the tests
from jobs import differences  # noqa: E402
from ticks import SAVING, Ticks, die  # noqa: E402

import finesmith  # noqa: E402
from tiny import write_tiny_bert  # noqa: E402

SAMPLE = Path(finesmith.__file__).parent / "samples" / "support_tickets.csv"
TRAINING = {"train.epochs": 2, "train.evaluations": 3, "train.micro_batch_size": 8, "guards.patience": 4}
METHODS: dict[str, dict[str, Any]] = {
    "full": {**TRAINING, "train.schedule": "plateau"},
    "lora": {**TRAINING, "method.name": "lora"},
    "features": {"method.name": "features"},
}
COMMON = {
    "data.max_rows": 240,
    "data.group": "customer_id",
    "evaluate.baselines": ["majority"],
    "evaluate.bootstrap_samples": 100,
}


class Bench:
    """Runs of every method, whole and broken, in processes forked from this one."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.model = str(write_tiny_bert(folder / "tiny")) if model == "tiny" else model
        self.whole: dict[str, Path] = {}
        self.ticks: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self, method: str) -> None:
        """Make the uninterrupted run, count its moments and take its time."""
        out = self.folder / method
        out.mkdir()

        def listing() -> None:
            seen: list[str] = []
            Ticks([out / "run", out / "cache"], seen.append)
            self._tune(method, out)
            (out / "ticks.json").write_text(json.dumps(seen))

        began = time.perf_counter()
        assert fork(listing) == 0, f"the uninterrupted run of {method} failed"
        self.seconds[method] = time.perf_counter() - began
        self.whole[method] = out / "run"
        self.ticks[method] = json.loads((out / "ticks.json").read_text())

    def broken(self, method: str, kind: str, draw: random.Random, out: Path) -> bool:
        """Kill a run at a moment of this kind; return whether it was inside a save."""
        out.mkdir()
        if kind == "time":
            delay = draw.uniform(0.02, 0.98) * self.seconds[method]
            fork(lambda: self._tune(method, out), delay)
            return any((out / "run").glob("checkpoints/**/*.tmp-*"))
        moments = [i for i, tick in enumerate(self.ticks[method]) if tick.startswith(SAVING) == (kind == "save")]
        moment = draw.choice(moments)
        fork(lambda: self._dying(out, moment, lambda: self._tune(method, out)))
        return kind == "save"

    def broken_again(self, draw: random.Random, out: Path) -> None:
        """Kill the run while it is resumed."""
        fork(lambda: self._dying(out, draw.randrange(200), lambda: resume(out)))

    def equal(self, method: str, out: Path) -> bool:
        """Resume, and return whether the run is as the uninterrupted one."""
        run = out / "run"
        if not (run / "recipe.yaml").exists():
            # It had not even written down what was asked for.
            shutil.rmtree(run, ignore_errors=True)
            done = fork(lambda: self._tune(method, out))
        elif finished(run):
            done = 0
        else:
            done = fork(lambda: resume(out))
        found = differences(self.whole[method], run) if done == 0 else [f"ended with {done}"]
        if found:
            print(f"  differs: {found}", flush=True)
        return not found

    def _tune(self, method: str, out: Path) -> None:
        from finesmith.recipe import load, replace
        from finesmith.workflows.tune import tune

        values = {**COMMON, **METHODS[method], "model.base": self.model, "output.cache": str(out / "cache")}
        tune(replace(load(str(SAMPLE)), values), out=str(out / "run"), command="finesmith tune")

    def _dying(self, out: Path, moment: int, work: Callable[[], None]) -> None:
        seen = 0

        def act(_: str) -> None:
            nonlocal seen
            seen += 1
            if seen == moment + 1:
                die()

        Ticks([out / "run", out / "cache"], act)
        work()


def resume(out: Path) -> None:
    from finesmith.workflows.tune import resume as resume_run

    resume_run(str(out / "run"))


def finished(run: Path) -> bool:
    from finesmith.run import read_state

    return read_state(run) == "finished"


def fork(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Do some work in a process of its own, killed after some seconds; return its status."""
    child = os.fork()
    if child == 0:
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
        except BaseException as error:
            Path(tempfile.gettempdir(), "kill_resume_error.txt").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="tiny", help="tiny, default (bundled), or a model folder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    dying.load_all()
    counts = {"kills": 0, "inside_save": 0, "equal": 0}
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        bench = Bench(Path(folder), asked.model)
        for method in METHODS:
            bench.prepare(method)
        for number in range(asked.kills):
            kind = ("save", "call", "time")[number % 3]
            method = draw.choice(["full", "lora"] if kind == "save" else list(METHODS))
            out = Path(folder) / f"kill-{number}"
            inside = bench.broken(method, kind, draw, out)
            if draw.random() < 0.2 and (out / "run" / "recipe.yaml").exists() and not finished(out / "run"):
                bench.broken_again(draw, out)
            same = bench.equal(method, out)
            shutil.rmtree(out)
            counts = {
                "kills": counts["kills"] + 1,
                "inside_save": counts["inside_save"] + inside,
                "equal": counts["equal"] + same,
            }
            print(f"{number + 1:3} {method:8} {kind:4} {'equal' if same else 'DIFFERENT'}", flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
