"""Runs recipes in processes that die at a moment, as in a loss of power: no handler runs and nothing is tidied.

Reads one request a line, forks (so that the libraries are loaded once) and answers how the process ended.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from jobs import tuned
from ticks import Ticks, die
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

import finesmith.report.page
from finesmith.data import batches
from finesmith.run import Run
from finesmith.workflows.tune import resume


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


def at_batch(count: int) -> None:
    """Die before the `count`-th batch that is only predicted: in an evaluation, or in what comes after training."""
    in_length_order, seen = batches.in_length_order, 0

    def wrapper(*values: Any) -> Iterator[Any]:
        nonlocal seen
        for places in in_length_order(*values):
            seen += 1
            if seen == count:
                die()
            yield places

    batches.in_length_order = wrapper


def arrange(asked: dict[str, Any]) -> list[str]:
    """Make this process die, wait, or meet a full disk at the `count`-th time of a moment; return the moments so far.

    moment: "event NAME" and "pause at NAME" count the events recorded; "tick" and "full disk" the ticks (see there);
    "batch" the batches predicted.
    """
    moment, count, seen = asked["moment"], asked["count"], []
    if moment.startswith("event "):
        at_event(moment.removeprefix("event "), count, die)
    elif moment.startswith("pause at "):
        at_event(moment.removeprefix("pause at "), count, pause)
    elif moment == "batch":
        at_batch(count)
    else:

        def act(tick: str) -> None:
            seen.append(tick)
            if len(seen) == count and moment == "tick":
                die()
            if len(seen) == count and moment == "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        Ticks([Path(root) for root in asked["roots"]], act)
    return seen


def work(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    if not asked["report"]:
        finesmith.report.page.build = lambda folder: folder / "report.html"
    seen = arrange(asked)
    if asked["said"] is not None:
        as_command(asked)
    elif asked["tree"] is None:
        resume(asked["out"])
    else:
        tuned(asked["tree"], Path(asked["out"]))
    if asked["moment"] == "none":
        Path(asked["list"]).write_text(json.dumps(seen))


def as_command(asked: dict[str, Any]) -> None:
    """Run the command line, what it says going to the file `said`; leave with its status."""
    from finesmith.cli import main
    from finesmith.recipe import from_dict, to_yaml

    recipe = Path(asked["said"]).with_suffix(".yaml")
    recipe.write_text(to_yaml(from_dict(asked["tree"])), "utf-8")
    sys.argv = ["finesmith", "tune", str(recipe), "--out", asked["out"], "-q"]
    sys.stdout = io.StringIO()
    sys.stderr = Path(asked["said"]).open("w", encoding="utf-8")  # noqa: SIM115 - this process ends with it
    try:
        main()
    except SystemExit as left:
        sys.stderr.flush()
        os._exit(int(left.code or 0))


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
