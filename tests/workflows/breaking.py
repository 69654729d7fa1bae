"""Runs that are broken at a moment, and what they must equal in the end."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jobs import differences, events, plan, reviews, tuned, with_values, write_csv

import finesmith

# Small, and yet with dropout, micro-batches, a plateau and an early stop behind the best step.
FULL = {
    "train.schedule": "plateau",
    "train.epochs": 4,
    "train.learning_rate": 3e-2,
    "train.micro_batch_size": 3,
    "evaluate.metric": "log_loss",
    "guards.patience": 2,
    "model.dropout": 0.2,
}
METHODS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": {
        **FULL,
        "train.epochs": 2,
        "evaluate.baselines": ["majority", "features"],
        "method.name": "lora",
        "method.lora": {"r": 4, "lora_dropout": 0.2},
    },
    "head_then_full": {
        **FULL,
        "train.epochs": 2,
        "method.name": "head_then_full",
        "method.layer_decay": 0.7,
        "train.learning_rate": 3e-3,
    },
    "features": {"method.name": "features", "evaluate.baselines": ["majority"]},
}


class Jobs:
    """One uninterrupted run per method, and processes that break while doing the same."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.data = write_csv(folder / "reviews.csv", reviews(64, seed=1))
        here = Path(__file__).parent
        # The very finesmith that is tested here, wherever another one is installed.
        paths = [str(here), str(here.parent), str(Path(finesmith.__file__).parent.parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "dying.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()

    def tree(self, method: str, **values: Any) -> dict[str, Any]:
        """Return the recipe of a method; `values` are dotted keys with __ for the dot."""
        tree = with_values(plan(self.data, self.model, self.folder / "cache"), METHODS[method])
        if method == "features":
            tree["train"], tree["model"] = {}, {"base": str(self.model)}
        return with_values(tree, {key.replace("__", "."): value for key, value in values.items()})

    @functools.cache  # noqa: B019 - as many entries as methods, for as long as the tests of a file run
    def uninterrupted(self, method: str) -> Path:
        return tuned(self.tree(method), self.folder / method)

    @functools.cache  # noqa: B019
    def ticks(self, method: str, *, report: bool = False) -> list[str]:
        """Return every moment of a run whose caches are empty, in order."""
        out = self.folder / f"{method}-ticks-{report}"
        out.mkdir()
        tree = self.tree(method, output__cache=str(out / "cache"))
        assert self.ask(tree, out / "run", "none", report=report) == "ended with 0"
        return list(json.loads((out / "run.ticks").read_text()))

    def killed(self, tree: Mapping[str, Any] | None, out: Path, moment: str, count: int, **more: Any) -> Path:
        """Run a recipe (None: resume `out`) in another process that is killed at the moment; return its folder."""
        assert self.ask(tree, out, moment, count, **more) == f"killed by {signal.SIGKILL.value}"
        return out

    def ask(
        self,
        tree: Mapping[str, Any] | None,
        out: Path,
        moment: str,
        count: int = 0,
        *,
        report: bool = False,
        said: Path | None = None,
    ) -> str:
        """Return how the process ended. report: make one; said: use the command line, which writes there."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {
            "tree": tree, "out": str(out), "moment": moment, "count": count, "threads": torch.get_num_threads(),
            "roots": [str(out), str(out.parent / "cache")], "list": str(out.with_suffix(".ticks")), "report": report,
            "said": None if said is None else str(said),
        }  # fmt: skip
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()


def assert_same(whole: Path, resumed: Path) -> None:
    """Compare all that two run folders record; the recipes say the same, with the same reasons."""
    found = differences(whole, resumed)
    assert found == [], str(found)
    for page in ("recipe.yaml", "next-recipe.yaml"):
        here, there = (
            [line for line in (folder / page).read_text("utf-8").splitlines()[1:] if "cache:" not in line]
            for folder in (whole, resumed)
        )
        assert here == there
    steps = [event["step"] for event in events(resumed, "step")]
    assert steps == list(range(1, len(steps) + 1))
    assert [event["event"] for event in events(resumed)].count("test_opened") == 1
    hidden = {path.name for path in resumed.iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}, "nothing half done is left"
