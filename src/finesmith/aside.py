"""Work in a process of its own, while this one imports what takes long."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from finesmith.errors import FinesmithError

T = TypeVar("T")
Tell = Callable[[Any], None]

# Libraries that keep threads, which a forked process would wait for in vain.
THREADED = ("torch",)
# Signals that ask to stop are for this process alone to answer; the other ends with it.
ASKING = tuple(number for number in signal.Signals if number.name in {"SIGINT", "SIGTERM", "SIGHUP"})


class ElsewhereError(Exception):
    """The cause of an error that came from the other process: its traceback there, `frames` the files and lines."""

    def __init__(self, told: str, frames: list[tuple[str, int | None]]) -> None:
        self.frames = frames
        super().__init__(f"\n{told}")


class Aside(Generic[T]):
    """A function at work in a forked process, or here and later where the system or the libraries do not bear that.

    The function gets `tell`, which sends a value to `hear` in this process, and returns a value; both must pickle.
    `here` keeps it in this process whatever the system bears. Use it as a context: leaving ends the work.
    """

    def __init__(
        self, work: Callable[[Tell], T], hear: Callable[[Any], None] | None = None, *, here: bool = False
    ) -> None:
        self._work, self._hear = work, hear or (lambda _: None)
        self._process: Any = None
        self._done = False
        if not here and may_fork():
            self._start()

    def __enter__(self) -> Aside[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._received.close()

    @property
    def elsewhere(self) -> bool:
        """Whether another process does the work."""
        return self._process is not None

    def hear(self) -> bool:
        """Wait for the next value told, or for the end of the work; return whether the work is done.

        Raises as `result` does.
        """
        if not self._done:
            self._receive()
        return self._done

    def result(self) -> T:
        """Wait for the work and return its value; calling it again returns the same.

        Raises what the work raised, its cause being the traceback in the other process (something of the same name and
        message where it does not pickle); FinesmithError when that process was ended from outside.
        """
        while not self._done:
            self._receive()
        return self._value

    def _start(self) -> None:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        self._received, sent = context.Pipe(duplex=False)
        # Not a daemon: it may have work aside of its own.
        self._process = context.Process(target=_run, args=(self._work, self._received, sent, os.getpid()), daemon=False)
        sys.stdout.flush()
        sys.stderr.flush()
        # Whoever leaves before the context is entered does not wait for the work either.
        atexit.register(self._process.kill)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        try:
            self._process.start()
            sent.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _receive(self) -> None:
        if self._process is None:
            self._value, self._done = self._work(self._hear), True
            return
        try:
            kind, value = self._received.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"status {code}"
            raise FinesmithError(
                f"the process that prepared the data was ended from outside ({how}); where memory ran out, free some "
                "or use fewer rows, then start again, or go on with `finesmith resume`"
            ) from None
        if kind == "told":
            self._hear(value)
        elif kind == "raised":
            error, cause = _unpacked(*value)
            raise error from cause
        else:
            self._value, self._done = value, True


def may_fork() -> bool:
    """Whether work aside gains time and is safe: Linux, more than one core, no library with threads loaded yet."""
    if sys.platform != "linux" or any(name in sys.modules for name in THREADED):
        return False
    from multiprocessing import current_process

    if current_process().daemon:  # a worker of somebody's pool, which may have no children
        return False
    return len(os.sched_getaffinity(0)) > 1


def _run(work: Callable[[Tell], Any], received: Any, sent: Any, parent: int) -> None:
    """Do the work in the forked process and send what comes of it."""
    received.close()
    _die_with(parent)
    try:
        sent.send(("done", work(lambda value: sent.send(("told", value)))))
    except BaseException as error:
        sent.send(("raised", _packed(error)))


def _packed(error: BaseException) -> tuple[bytes, str, bool, str, str, list[tuple[str, int | None]]]:
    """Return what `_unpacked` makes an error from; not every error that pickles comes back."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    try:
        whole = pickle.dumps(error)
        pickle.loads(whole)
    except Exception:
        whole = b""
    told = "".join(traceback.format_exception(error))
    return whole, type(error).__name__, isinstance(error, Exception), str(error), told, frames


def _unpacked(
    whole: bytes, name: str, usual: bool, message: str, told: str, frames: list[tuple[str, int | None]]
) -> tuple[BaseException, ElsewhereError]:
    """Return the error, or one of its name and message, and its cause."""
    error = pickle.loads(whole) if whole else type(name, (RuntimeError if usual else BaseException,), {})(message)
    return error, ElsewhereError(told, frames)


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that ends; leave Ctrl-C and its like to the parent."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    import ctypes

    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
