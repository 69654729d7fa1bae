"""Moments at which a run can be hurt: every call to the file system, every piece written, every backward pass.

For a process of its own: what is laid around the functions here is never taken away.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finesmith.data import token_cache
from finesmith.run import Run
from finesmith.train import checkpoint, checkpoint_files

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
SAVING = "in a save: "
Act = Callable[[str], None]


def die(*_: object) -> None:
    """End as in a loss of power: no handler runs and nothing is tidied."""
    os.kill(os.getpid(), signal.SIGKILL)


class Torn:
    """A file of events whose lines come in two pieces, with a moment between them."""

    def __init__(self, file: Any, tick: Act) -> None:
        self.file, self.tick = file, tick
        self.fileno, self.close = file.fileno, file.close

    def write(self, line: memoryview) -> int:
        half = int(self.file.write(line[: len(line) // 2]))
        self.tick("half an event " + bytes(line).split(b'"')[3].decode())
        return half + int(self.file.write(line[half:]))


class Ticks:
    """Calls `act` with the name of each moment that concerns files below `roots`; it may die or raise."""

    def __init__(self, roots: Sequence[Path], act: Act) -> None:
        self.roots = tuple(str(root) for root in roots)
        self.act = act
        self.saving = 0
        self.silent = False
        sys.addaudithook(self._audit)
        self._around_save()
        self._around_fsync()
        self._around_pieces()
        self._around_events()
        self._around_backward()

    def tick(self, what: str) -> None:
        if not self.silent:
            self.silent = True
            try:
                self.act(f"{SAVING if self.saving else ''}{what}")
            finally:
                self.silent = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.silent:
            return
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING) and not (mode and set(str(mode)) & set("wax+")):
                return
        elif event in CALLS:
            path = arguments[0]
        else:
            return
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if isinstance(name, str) and name.startswith(self.roots):
            self.tick(f"{event.removeprefix('os.')} {Path(name).name}")

    def _around_save(self) -> None:
        save = checkpoint.save

        def wrapper(*values: Any, **named: Any) -> Any:
            self.saving += 1
            try:
                return save(*values, **named)
            finally:
                self.saving -= 1

        checkpoint.save = wrapper

    def _around_fsync(self) -> None:
        fsync = os.fsync

        def wrapper(handle: int) -> None:
            self.tick("fsync")
            fsync(handle)

        os.fsync = wrapper

    def _around_pieces(self) -> None:
        for module, name, what in ((checkpoint_files, "write_part", "checkpoint"), (token_cache, "_write", "cache")):
            self._around_piece(module, name, what)

    def _around_piece(self, module: Any, name: str, what: str) -> None:
        write = getattr(module, name)

        def wrapper(handle: Any, piece: Any) -> None:
            # Half of it is there already when the disk or the process gives up.
            self.tick(f"write {what} {Path(handle.name).name} {len(piece)}")
            write(handle, piece[: len(piece) // 2])
            self.tick(f"half written {what} {Path(handle.name).name} {len(piece)}")
            write(handle, piece[len(piece) // 2 :])

        setattr(module, name, wrapper)

    def _around_events(self) -> None:
        begin, tick = Run.__init__, self.tick

        def wrapper(run: Run, folder: Path) -> None:
            begin(run, folder)
            run._events = Torn(run._events, tick)  # type: ignore[assignment]

        Run.__init__ = wrapper  # type: ignore[method-assign]

    def _around_backward(self) -> None:
        backward = torch.Tensor.backward

        def wrapper(tensor: torch.Tensor, *values: Any, **named: Any) -> None:
            self.tick("backward")
            backward(tensor, *values, **named)

        torch.Tensor.backward = wrapper
