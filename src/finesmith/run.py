"""The run folder: everything a run did, in plain files, written as it happens.

recipe.yaml            the resolved recipe: reruns the same run
run.json               state, times, versions, machine, error
events.jsonl           what happened, line by line
data.json audit.json splits.parquet      the data: sources, columns, counts, findings, which row went where
model.json probes.json baselines.json scores.json verdict.json next.json next-recipe.yaml
predictions/*.parquet  every split's predictions
checkpoints/           what a resume needs
model/                 the tuned model and its card
report.html            made from the above alone
"""

from __future__ import annotations

import copy
import errno
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from finesmith import __version__
from finesmith.discreet import discreet, discreet_values
from finesmith.errors import RunError

AGAIN = "copy it back from where it is whole, or tune again"

State = Literal["running", "finished", "failed", "interrupted"]
Listener = Callable[[Mapping[str, Any]], None]

# What an event holds for the screen only: pieces of the user's texts.
FOR_THE_SCREEN = frozenset({"shows"})
# Files written while it is still open whether a resume goes on, and space for saying how a run ended on a full disk.
HELD, RESERVE, RESERVE_BYTES = ".held", ".reserve", 64 * 1024
# What a process that could not even begin may leave: such a folder counts as empty.
BEGUN = frozenset({".lock", RESERVE, "events.jsonl"})
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO})
LOCK_SECONDS = 0.3

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
        # Set by the workflow: what is left out of a file, by its name.
        self.withhold: Callable[[str, Any], Any] = lambda _, value: value
        self.holding = False
        self._muted = False
        self._tell: Callable[[tuple[str, dict[str, Any]]], None] | None = None
        self._pending: dict[str, Any] = {}
        self._lock = FileLock(folder / ".lock")
        try:
            # Whoever only looks at the state of a run holds the lock for a moment.
            self._lock.acquire(timeout=LOCK_SECONDS)
            self._events = (folder / "events.jsonl").open("ab", buffering=0)
            self._size = os.fstat(self._events.fileno()).st_size
            (folder / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))
        except Timeout:
            raise RunError(
                f"{folder} is in use by another finesmith process; wait for it or choose another --out"
            ) from None
        except OSError as error:
            (folder / RESERVE).unlink(missing_ok=True)
            self._lock.release()
            raise RunError(
                f"cannot write into {folder}: {error.strerror or error}; free some space or mend its permissions"
            ) from error

    @classmethod
    def create(cls, folder: Path, *, command: str) -> Run:
        """Make a new run folder.

        Raises RunError when it holds a run already, is not empty, or cannot be written.
        """
        try:
            if (folder / "run.json").exists():
                raise RunError(_occupied(folder, read_state(folder)))
            if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - BEGUN):
                raise RunError(f"{folder} exists and is not an empty folder; choose another with --out")
        except OSError as error:
            raise RunError(
                f"cannot look into {folder}: {error.strerror or error}; choose another with --out"
            ) from error
        except ValueError as error:
            raise RunError(f"{folder} is no name of a folder ({error}); choose another with --out") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise RunError(f"cannot make the run folder {folder}: {why or error}; choose another with --out") from error
        run = cls(folder)
        if (folder / "run.json").exists():
            run.close()
            raise RunError(_occupied(folder, read_state(folder)))
        about = {"finesmith": __version__, "state": "running", "started": now(), "command": discreet(command)}
        try:
            run.write_json("run.json", {**about, "machine": machine(), "versions": versions()})
        except RunError:
            run.close()
            raise
        return run

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        """Open an interrupted run to go on with it; nothing in it changes before `release`.

        Raises RunError when there is no run, or it has finished.
        """
        read_state(folder)
        run = cls(folder)
        if read_json(folder / "run.json")["state"] == "finished":
            run.close()
            raise RunError(f"{folder} has finished; there is nothing to resume. See {folder / 'report.html'}")
        run._discard()
        run.holding = True
        run.update(state="running", error=None, resumed=now(), machine=machine(), versions=versions())
        return run

    def release(self) -> None:
        """Put the files that were written since `reopen` into their places: the run goes on."""
        if not self.holding:
            return
        self.holding = False
        held = self.folder / HELD
        for path in sorted(path for path in held.rglob("*") if path.is_file()):
            path.replace(self.folder / path.relative_to(held))
        self._discard()
        for leftover in (*self.folder.glob(".*.tmp"), *self.folder.glob("*/.*.tmp")):
            leftover.unlink(missing_ok=True)
        self.update(**self._pending)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        kept = plain(self.withhold(name, value))
        self.write_text(name, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        write_whole(self._place(name), text)

    def write_table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Write columns as a parquet file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with whole(self._place(name)) as beside:
            pq.write_table(pa.table(columns), beside)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json."""
        if self.holding:
            self._pending |= fields
        else:
            # No state may be on the disk before the events that led to it.
            self.sync_events()
            self.write_json("run.json", {**read_json(self.folder / "run.json"), **fields})

    def record(self, event: str, **fields: Any) -> None:
        """Append an event to events.jsonl, its line whole or not at all, and tell the listeners.

        Raises RunError when the disk is full.
        """
        if self._tell is not None:
            self._tell((event, fields))
            return
        if self._muted:
            return
        line = {"event": event, "time": now(), **fields}
        kept = discreet_values(plain({key: value for key, value in line.items() if key not in FOR_THE_SCREEN}))
        rest = memoryview(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
        end = self._size + len(rest)
        try:
            while rest:
                rest = rest[self._events.write(rest) :]
        except OSError as error:
            os.ftruncate(self._events.fileno(), self._size)
            raise RunError(
                f"cannot write {self.folder / 'events.jsonl'}: {error.strerror or error}; free some space or mend its "
                "permissions"
            ) from error
        self._size = end
        for listener in self.listeners:
            listener(line)

    def record_live(self, event: str, **fields: Any) -> None:
        """Tell the listeners only: progress that is not worth a line on disk."""
        if not self._muted:
            for listener in self.listeners:
                listener({"event": event, **fields})

    def relay(self, tell: Callable[[tuple[str, dict[str, Any]]], None]) -> Run:
        """Return this run for a process beside this one: files are written there, events told to be recorded here."""
        other = copy.copy(self)
        other._tell = tell
        return other

    def mute(self) -> None:
        """Stop recording: what follows was recorded before the interruption."""
        self._muted = True

    def unmute(self, size: int) -> None:
        """Record again, after cutting events.jsonl to the `size` in bytes that the checkpoint knew."""
        self.release()
        self._muted = False
        self._size = min(size, self._size)
        os.ftruncate(self._events.fileno(), self._size)

    def sync_events(self) -> int:
        """Flush events.jsonl to the disk and return its size in bytes."""
        os.fsync(self._events.fileno())
        return self._size

    def finish(self, state: State, *, seconds: float, error: Mapping[str, str] | None = None) -> None:
        """Write how the run ended, on a full disk too; a resume that was refused leaves everything as it was."""
        if self.holding:
            return
        (self.folder / RESERVE).unlink(missing_ok=True)
        before = float(read_json(self.folder / "run.json").get("seconds") or 0.0)
        self.update(state=state, finished=now(), seconds=before + seconds, error=discreet_values(error))

    def close(self) -> None:
        """Give the folder free."""
        self._events.close()
        (self.folder / RESERVE).unlink(missing_ok=True)
        self._discard()
        self._lock.release()
        # The file stays: removing it could free the lock that another process has just taken.

    def _place(self, name: str) -> Path:
        return self.folder / HELD / name if self.holding else self.folder / name

    def _discard(self) -> None:
        shutil.rmtree(self.folder / HELD, ignore_errors=True)


def _occupied(folder: Path, state: str) -> str:
    """Return the message for a folder that cannot take a new run, by the state of the one in it."""
    ways = {
        "finished": "choose another folder with --out",
        "running": "it is still being written; choose another folder with --out",
    }
    again = f"go on with `finesmith resume {folder}`, or choose another folder with --out"
    return f"{folder} already holds a run ({state}); {ways.get(state, again)}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; then flush it to the disk and rename it, so that none sees half a file.

    Raises RunError when the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or mend its permissions"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str | bytes) -> None:
    """Write beside and rename, so that a reader never sees half a file.

    Raises RunError when the disk is full or the folder cannot be written.
    """
    with whole(path) as beside:
        beside.write_bytes(text.encode() if isinstance(text, str) else text)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` to fill; then flush it to the disk and put it in the place of `path`."""
    beside, old = (path.with_name(f".{path.name}.{kind}") for kind in ("new", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for inner in beside.rglob("*"):
            sync(inner)
        sync(beside)
        if path.exists():
            path.rename(old)
        beside.rename(path)
        sync(path.parent)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk, where the system can (Windows: files alone)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_trouble(error: BaseException) -> str | None:
    """Return in words what the disk refused; None where the error is about something else."""
    # Libraries written in Rust give the system's number in their text only.
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number not in DISK:
        return None
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{place}{os.strerror(number)}"


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises RunError when it is absent or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing; is {path.parent} a run folder? {AGAIN}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {str(error)[:200]}; it is damaged: {AGAIN}") from error


def refuse_links(folder: Path) -> None:
    """Refuse a run folder with links that lead out of it, pipes or devices: reading and writing would follow them.

    Raises:
        RunError: the first of them is named.
    """
    home = folder.resolve()
    for place, inner, files in os.walk(folder):
        for path in (Path(place, name) for name in [*inner, *files]):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # a file that was being written has its own name now
            leads_out = stat.S_ISLNK(mode) and not Path(os.path.realpath(path)).is_relative_to(home)
            if leads_out or not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a link that leads out of the run folder" if leads_out else "not an ordinary file"
                raise RunError(f"{path} is {what}, and nothing is read or written through it; remove it")


def read_state(folder: Path) -> str:
    """Return the state of a run; one whose process has gone without a word counts as interrupted.

    Raises RunError when the folder holds no run.
    """
    from filelock import FileLock, Timeout

    refuse_links(folder)
    if not (folder / "run.json").is_file():
        raise RunError(f"{folder} is not a run folder (no run.json in it); `finesmith runs` lists those there are")
    about = read_json(folder / "run.json")
    if not isinstance(about, dict) or about.get("state") not in get_args(State):
        raise RunError(f"{folder / 'run.json'} is damaged: it does not say how the run ended; {AGAIN}")
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
