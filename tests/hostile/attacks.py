"""Watch what a command does while it is attacked: what it runs, writes, remembers, says, and how long it takes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from finesmith.errors import FinesmithError
from terminal import Said, finesmith

SECONDS = 20
# Others may share the machine: seconds are those of the processor; waiting for nothing has a limit of its own.
WAITING = 100
MEGABYTES = 1500
ESCAPE = 4 * 2**30
FAST = ("--set", "method.name=features", "--set", "evaluate.baselines=[majority]")

RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen"}
TALKS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DANGEROUS = {"os", "posix", "nt", "subprocess", "shutil", "builtins", "runpy", "pty", "webbrowser", "importlib"}

_seen: list[str] | None = None
_allowed: tuple[str, ...] = ()


def _listen(event: str, details: tuple[Any, ...]) -> None:
    """Note what no refused artefact may cause. An audit hook stays for the process's life, so it is armed by a list."""
    if _seen is None or threading.current_thread() is not threading.main_thread():
        return
    if event in RUNS or event in TALKS:
        _seen.append(f"{event} {str(details)[:200]}")
    elif event == "pickle.find_class" and str(details[0]).split(".")[0] in DANGEROUS:
        _seen.append(f"{event} {details}")
    elif event == "import" and "evil" in str(details[0]):
        _seen.append(f"import of {details[0]}")
    elif event == "open" and isinstance(details[2], int) and details[2] & WRITING and isinstance(details[0], str):
        if os.path.isdir(details[0]):  # noqa: PTH112
            return  # a file without a name, gone when it is closed
        _note_outside(event, os.path.realpath(details[0]))
    elif event in CHANGES and isinstance(details[0], str | Path):
        opened = [number for number in details[1:] if isinstance(number, int) and number > 2]
        # Removing a whole folder names what is in it beside the number of the folder, opened.
        parent = Path(f"/proc/self/fd/{opened[-1]}") if event in {"os.remove", "os.rmdir"} and opened else Path()
        path = parent / details[0]
        _note_outside(event, str(Path(os.path.realpath(path.parent)) / path.name))


def _note_outside(event: str, place: str) -> None:
    if _seen is not None and not place.startswith(_allowed):
        _seen.append(f"{event} {place}")


sys.addaudithook(_listen)


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


def pickled(canary: Path, protocol: int = 4) -> bytes:
    """Return a pickle that makes the canary when it is loaded."""
    return pickle.dumps(Payload(canary), protocol)


class Attack:
    """A place with a canary beside it, and the calls that must be survived there."""

    def __init__(self, place: Path, cache: Path) -> None:
        self.place = place
        self.cache = cache
        self.canary = place / "canary"
        self.run = place / "run"

    def refuse(self, *words: object, status: int = 2, **limits: Any) -> str:
        """Call the command line, which must refuse with one clear message; return the message."""
        said = self.call(*words, **limits)
        assert said.status == status, said
        assert said.err.count("finesmith: ") == 1, said.err
        assert len(said.complaint) < 2000, said.complaint
        assert said.out == "", said.out
        return said.complaint

    def tune(self, data: object, model: object, *words: object, **limits: Any) -> str:
        """Call `tune`, which must refuse."""
        return self.refuse("tune", data, "--model", model, "--out", self.run, *FAST, *words, **limits)

    def load(self, folder: Path, **limits: Any) -> Any:
        """Load a model folder as every command does; return its network."""
        from finesmith.models.load import find, load_classifier, load_tokenizer
        from finesmith.workflows.setup import require_known

        with self.watched(**limits):
            base = find(str(folder))
            tokenizer = load_tokenizer(base)
            require_known(base, tokenizer)
            labels = ["no", "yes"]
            problem = "single_label_classification"
            return load_classifier(base, tokenizer, outputs=2, problem=problem, labels=labels, seed=0)[0]

    def refuse_model(self, folder: Path, **limits: Any) -> str:
        """Load a model folder, which must be refused with one clear message; return the message."""
        return self._refused(lambda: self.load(folder, **limits))

    def refuse_reload(self, folder: Path, **limits: Any) -> str:
        """Load the model of a run, which must be refused with one clear message; return the message."""
        from finesmith.workflows.apply import load_model

        with self.watched(**limits):
            return self._refused(lambda: load_model(folder))

    def refuse_recipe(self, path: Path, *sets: str, **limits: Any) -> str:
        """Load a recipe and what it names, which must be refused with one clear message; return the message."""
        from finesmith.recipe import load
        from finesmith.workflows.rows import read_rows

        with self.watched(**limits):
            return self._refused(lambda: read_rows(load(path, sets)))

    def read(self, *sources: object, **limits: Any) -> Any:
        """Read data as every command does; return the source."""
        from finesmith.data.sources import read

        with self.watched(**limits):
            return read([str(source) for source in sources])

    def refuse_data(self, *sources: object, **limits: Any) -> str:
        """Read data, which must be refused with one clear message; return the message."""
        return self._refused(lambda: self.read(*sources, **limits))

    @staticmethod
    def _refused(act: Callable[[], object]) -> str:
        with pytest.raises(FinesmithError) as caught:
            act()
        said = str(caught.value)
        assert caught.value.exit_status == 2, said
        assert 0 < len(said) < 2000, said
        assert all(character == "\n" or character.isprintable() for character in said), repr(said)
        return said

    def call(self, *words: object, writes: Sequence[Path] = (), **limits: Any) -> Said:
        """Call the command line and hold it to every limit."""
        with self.watched(writes=writes, **limits):
            said = finesmith(*words)
        assert "Traceback" not in said.err, said.err
        assert "an error of finesmith itself" not in said.err, said.err
        assert all(character == "\n" or character.isprintable() for character in said.err), repr(said.err)
        return said

    @contextlib.contextmanager
    def watched(
        self, *, seconds: float = SECONDS, megabytes: float = MEGABYTES, writes: Sequence[Path] = (), tries: str = ""
    ) -> Iterator[None]:
        """Hold the code inside to the limits; nothing runs, nothing changes outside the run folder and `writes`.

        A folder may be attempted at `tries`, which must come to nothing.
        """
        global _seen, _allowed
        before = snapshot(self.place, but=[self.run, *writes])
        roots = [self.run, self.cache, Path("/dev/null"), Path(sys.prefix), *writes]
        # The preflight saves the network once into a folder of its own and removes it.
        scratch = str(Path(tempfile.gettempdir()).resolve() / "finesmith-probe-")
        _allowed = (*(os.path.realpath(root) for root in roots), scratch)
        began = time.process_time()
        with _bounded(seconds, megabytes):
            _seen = []
            try:
                yield
            finally:
                seen, _seen = _seen, None
        assert time.process_time() - began < seconds
        assert not self.canary.exists(), "code from the artefact was run"
        assert [each for each in seen if not (tries and each.startswith(f"os.mkdir {tries}"))] == [], seen
        assert snapshot(self.place, but=[self.run, *writes]) == before


class TooLongError(BaseException):
    """The time was up."""


@contextlib.contextmanager
def _bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Stop the code inside after some seconds, and before it can take the machine's memory; then judge its peak."""

    def stop(*_: object) -> None:
        raise TooLongError(f"not done after {seconds} seconds")

    started = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ESCAPE, limits[1]))
    timers = {signal.SIGALRM: (signal.ITIMER_REAL, WAITING), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {kind: signal.signal(kind, stop) for kind in timers}
    for timer, most in timers.values():
        signal.setitimer(timer, most)
    try:
        yield
    finally:
        for kind, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(kind, before[kind])
        resource.setrlimit(resource.RLIMIT_AS, limits)
    taken = (_memory("VmHWM") - started) / 2**20
    assert taken < megabytes, f"{taken:,.0f} MB more than before"


def _memory(name: str) -> int:
    """Return a figure of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def snapshot(place: Path, but: Sequence[Path]) -> dict[str, tuple[int, int, int, str]]:
    """Return kind, size, time of change and target of everything under a folder, but for some folders and files."""
    found = {}
    left_out = {str(path) for path in but}
    for folder, inner, files in os.walk(place):
        inner[:] = [name for name in inner if os.path.join(folder, name) not in left_out]  # noqa: PTH118
        for name in [*inner, *files]:
            path = Path(folder, name)
            if str(path) in left_out:
                continue
            about = path.lstat()
            plain = stat.S_ISREG(about.st_mode)
            target = str(path.readlink()) if path.is_symlink() else ""
            found[str(path)] = (
                stat.S_IFMT(about.st_mode),
                *((about.st_size, about.st_mtime_ns) if plain else (0, 0)),
                target,
            )
    return found


def change(file: Path, **values: Any) -> None:
    """Set values in a JSON file."""
    file.write_text(json.dumps({**(json.loads(file.read_text("utf-8")) if file.exists() else {}), **values}), "utf-8")


def mentions(said: str, *parts: str) -> None:
    """Assert that a message holds every part."""
    assert [part for part in parts if part not in said] == [], said
