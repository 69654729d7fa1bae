"""The run folder: everything a run did, in plain files, written as it happens.

recipe.yaml            the resolved recipe: reruns the same run
run.json               state, times, versions, machine, error
events.jsonl           what happened, line by line
data.json audit.json splits.parquet      the data: sources, columns, counts, findings, which row went where
model.json baselines.json scores.json verdict.json next.json next-recipe.yaml
predictions/*.parquet  every split's predictions
checkpoints/           what a resume needs
model/                 the tuned model and its card
report.html            made from the above alone
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from finesmith import __version__
from finesmith.errors import RunError

State = Literal["running", "finished", "failed", "interrupted"]
Listener = Callable[[Mapping[str, Any]], None]

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "scikit-learn", "pyarrow")


def now() -> str:
    """Return the time now in ISO 8601, in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def default_folder(name: str) -> Path:
    """Return runs/NAME-DATE-TIME, not yet there."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")[:60] or "run"
    base = Path("runs") / f"{stem}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    folder, attempt = base, 2
    while folder.exists():
        folder, attempt = base.with_name(f"{base.name}-{attempt}"), attempt + 1
    return folder


class Run:
    """An open run folder. Holds its lock until `close`, so that no second process writes into it."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self.folder = folder
        self.listeners: list[Listener] = []
        self._muted = False
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
            self._events = (folder / "events.jsonl").open("ab")
        except Timeout:
            raise RunError(
                f"{folder} is in use by another finesmith process; wait for it or choose another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise RunError(f"cannot write into {folder}: {error.strerror or error}") from error

    @classmethod
    def create(cls, folder: Path, *, command: str) -> Run:
        """Make a new run folder.

        Raises RunError when it holds a run already, is not empty, or cannot be written.
        """
        if (folder / "run.json").exists():
            raise RunError(_occupied(folder, read_state(folder)))
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RunError(f"{folder} exists and is not an empty folder; choose another with --out")
        except OSError as error:
            raise RunError(
                f"cannot look into {folder}: {error.strerror or error}; choose another with --out"
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make the run folder {folder}: {error.strerror or error}; choose another with --out"
            ) from error
        run = cls(folder)
        run.write_json("run.json", {"finesmith": __version__, "state": "running", "started": now(), "command": command})
        run.update(machine=machine(), versions=versions())
        return run

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        """Open an interrupted run to go on with it.

        Raises RunError when there is no run, or it has finished.
        """
        state = read_state(folder)
        if state == "finished":
            raise RunError(f"{folder} has finished; there is nothing to resume. See {folder / 'report.html'}")
        run = cls(folder)
        run.update(state="running", error=None, resumed=now(), machine=machine(), versions=versions())
        return run

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        write_whole(self.folder / name, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        write_whole(self.folder / name, text)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json."""
        self.write_json("run.json", {**read_json(self.folder / "run.json"), **fields})

    def record(self, event: str, **fields: Any) -> None:
        """Append an event to events.jsonl and tell the listeners."""
        if self._muted:
            return
        line = {"event": event, "time": now(), **fields}
        self._events.write(json.dumps(plain(line), ensure_ascii=False).encode() + b"\n")
        self._events.flush()
        for listener in self.listeners:
            listener(line)

    def record_live(self, event: str, **fields: Any) -> None:
        """Tell the listeners only: progress that is not worth a line on disk."""
        if not self._muted:
            for listener in self.listeners:
                listener({"event": event, **fields})

    def mute(self) -> None:
        """Stop recording: what follows was recorded before the interruption."""
        self._muted = True

    def unmute(self, size: int) -> None:
        """Record again, after cutting events.jsonl to the `size` in bytes that the checkpoint knew."""
        self._muted = False
        os.ftruncate(self._events.fileno(), size)

    @property
    def events_size(self) -> int:
        """The size of events.jsonl in bytes."""
        return self._events.tell()

    def finish(self, state: State, *, seconds: float, error: Mapping[str, str] | None = None) -> None:
        """Write how the run ended."""
        before = float(read_json(self.folder / "run.json").get("seconds") or 0.0)
        self.update(state=state, finished=now(), seconds=before + seconds, error=error)

    def close(self) -> None:
        """Give the folder free."""
        self._events.close()
        self._lock.release()
        # The file stays: removing it could free the lock that another process has just taken.


def _occupied(folder: Path, state: str) -> str:
    """Return the message for a folder that cannot take a new run, by the state of the one in it."""
    ways = {
        "finished": "choose another folder with --out",
        "running": "it is still being written; choose another folder with --out",
    }
    again = f"go on with `finesmith resume {folder}`, or choose another folder with --out"
    return f"{folder} already holds a run ({state}); {ways.get(state, again)}"


def write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file.

    Raises RunError when the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or mend its permissions"
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises RunError when it is absent or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def read_state(folder: Path) -> str:
    """Return the state of a run; one whose process has gone without a word counts as interrupted.

    Raises RunError when the folder holds no run.
    """
    from filelock import FileLock, Timeout

    if not (folder / "run.json").is_file():
        raise RunError(f"{folder} is not a run folder (no run.json in it); `finesmith runs` lists those there are")
    about = read_json(folder / "run.json")
    if not isinstance(about, dict) or about.get("state") not in get_args(State):
        raise RunError(f"{folder / 'run.json'} is damaged: it does not say how the run ended")
    state = str(about["state"])
    if state != "running":
        return state
    try:
        with FileLock(folder / ".lock", timeout=0):
            return "interrupted"
    except (Timeout, OSError):
        return "running"


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become None, numpy values plain ones."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if "numpy" in sys.modules:
        import numpy as np

        if isinstance(value, np.generic | np.ndarray):
            return plain(value.tolist())
    return str(value)


def machine() -> dict[str, Any]:
    """Describe the machine, without anything that names it or its owner."""
    import psutil

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"finesmith": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


class Clock:
    """Measures wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began
