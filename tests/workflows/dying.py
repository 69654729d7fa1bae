"""Runs recipes in processes that die at a moment, as in a loss of power: no handler runs and nothing is tidied.

Reads one request a line, forks (so that the libraries are loaded once) and answers how the process ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from jobs import tuned
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

import finesmith.report.page
from finesmith.models import save
from finesmith.run import Run
from finesmith.train import checkpoint, checkpoint_files
from finesmith.workflows.tune import resume


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pause(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def at_event(name: str, count: int, then: Callable[[], None]) -> None:
    record, seen = Run.record, 0

    def wrapper(self: Run, event: str, **fields: Any) -> None:
        nonlocal seen
        muted = self._muted
        record(self, event, **fields)
        seen += event == name and not muted
        if event == name and seen == count:
            then()

    Run.record = wrapper


def around_publishing(count: int, *, before: bool) -> None:
    publish, seen = checkpoint._publish, 0

    def wrapper(temporary: Path, target: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == count and before:
            die()
        publish(temporary, target)
        if seen == count:
            die()

    checkpoint._publish = wrapper


def inside_a_save(count: int) -> None:
    seen = 0

    def torn(handle: Any, part: Any) -> None:
        nonlocal seen
        seen += 1
        handle.write(part[: len(part) // 2] if seen == count else part)
        if seen == count:
            handle.flush()
            die()

    checkpoint_files.write_part = torn


def while_writing_scores() -> None:
    write = Run.write_json

    def torn(self: Run, name: str, value: Any) -> None:
        if name == "scores.json":
            (self.folder / ".scores.json.1.tmp").write_text("{")
            die()
        write(self, name, value)

    Run.write_json = torn


def arrange(moment: str, count: int) -> None:
    """Make this process die at the `count`-th time of a moment."""
    if moment.startswith("event "):
        at_event(moment.removeprefix("event "), count, die)
    elif moment == "pause at step":
        at_event("step", count, pause)
    elif moment == "inside a save":
        inside_a_save(count)
    elif moment.endswith("publishing"):
        around_publishing(count, before=moment.startswith("before"))
    elif moment == "while writing scores":
        while_writing_scores()
    elif moment == "model half saved":
        save.standard_attention.__exit__ = die
    else:
        raise ValueError(moment)


def work(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    finesmith.report.page.build = lambda folder: folder / "report.html"
    arrange(asked["moment"], asked["count"])
    if asked["tree"] is None:
        resume(asked["out"])
    else:
        tuned(asked["tree"], Path(asked["out"]))


def answer(asked: dict[str, Any]) -> str:
    child = os.fork()
    if child == 0:
        try:
            work(asked)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return f"paused as {child}"
    return f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"ended with {os.WEXITSTATUS(status)}"


def load_all() -> None:
    """Load what a run needs, so that no child has to; nothing is computed, because threads do not survive a fork."""
    import importlib
    import pkgutil

    import finesmith

    for module in pkgutil.walk_packages(finesmith.__path__, "finesmith."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("pyarrow.csv", "pyarrow.parquet", "scipy.optimize", "scipy.stats", "ftfy", "phonenumbers"):
        importlib.import_module(name)
    from finesmith.data.language import detect

    detect("a text in the language of this sentence")


if __name__ == "__main__":
    load_all()
    for line in sys.stdin:
        print(answer(json.loads(line)), flush=True)
