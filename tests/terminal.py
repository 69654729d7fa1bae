"""The command line called in this process, and small files to call it on."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POSITIVE = ["good", "great", "fun", "warm", "bright", "love", "like", "enjoy", "clever", "moving"]
NEGATIVE = ["bad", "awful", "dull", "cold", "dark", "hate", "boring", "silly", "broken", "late"]
NEUTRAL = ["the", "a", "film", "movie", "story", "is", "was", "really", "very", "not", "and", "plot", "music", "scene"]


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The error message: everything from `finesmith: ` on."""
        return self.err[self.err.index("finesmith: ") :]


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def finesmith(*words: object, terminal: bool = False) -> Said:
    """Run the command line as a shell would, with standard output and error caught."""
    from finesmith.cli import main

    out, err, before = Screen() if terminal else io.StringIO(), Screen() if terminal else io.StringIO(), sys.argv
    sys.argv = ["finesmith", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            main()
        raise AssertionError("main returned; it must leave with an exit status")
    except SystemExit as left:
        status = left.code or 0
    finally:
        sys.argv = before
    assert isinstance(status, int)
    return Said(status, out.getvalue(), err.getvalue())


def refused(*words: object, status: int = 2) -> str:
    """Run a command that must fail with one clear message; return the message."""
    said = finesmith(*words)
    assert said.status == status, said
    assert said.err.count("finesmith: ") == 1, said.err
    assert "Traceback" not in said.err, said.err
    assert said.out == "", said.out
    assert len(said.complaint) < 1500, said.complaint
    return said.complaint


def reviews(count: int = 120) -> list[tuple[str, str]]:
    """Return `count` different texts that are plainly pos or neg, in turn."""
    draw, rows = random.Random(0), []
    for i in range(count):
        words = draw.choices(NEUTRAL, k=5) + draw.choices(POSITIVE if i % 2 else NEGATIVE, k=3)
        draw.shuffle(words)
        rows.append((" ".join([*words, str(i)]), "pos" if i % 2 else "neg"))
    return rows


def write_csv(path: Path, rows: Iterable[Sequence[Any]], header: str = "text,label") -> Path:
    """Write rows (without commas in them) under a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join([f"{header}\n", *(",".join(map(str, row)) + "\n" for row in rows)]), "utf-8")
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def events(folder: Path) -> list[dict[str, Any]]:
    """Return what a run recorded."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def when_step(step: int, act: Callable[[], None]) -> Callable[[Any, dict[str, Any]], None]:
    """Return a replacement for `Display.__call__` that acts when a training step is shown."""

    def show(_: Any, event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            act()

    return show
