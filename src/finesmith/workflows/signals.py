"""Signals that ask a program to stop: Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = tuple(number for number in signal.Signals if number.name in {"SIGINT", "SIGTERM", "SIGHUP"})


class Stopped(KeyboardInterrupt):
    """A signal stopped the program. hurried: it was not the first, so nothing more is to be saved."""

    def __init__(self, number: int, *, hurried: bool) -> None:
        self.number, self.hurried = number, hurried
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_status(self) -> int:
        """What a shell expects of a program that this signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class Stopping:
    """Takes the signals that ask to stop: raises Stopped at once, or first notes some of them.

    `say` is called with the number of a signal that is noted. Only the main thread can take signals; elsewhere nothing
    ever asks to stop.
    """

    def __init__(self, say: Callable[[int], None] | None = None) -> None:
        self.asked: list[int] = []
        self._say = say
        self._patience = 0.0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal."""
        del frame
        self.asked.append(number)
        if len(self.asked) > self._patience:
            raise Stopped(number, hurried=len(self.asked) > 1)
        if self._say is not None:
            self._say(number)

    @contextmanager
    def listening(self, patience: float = 0) -> Iterator[None]:
        """Take the signals, noting so many before one raises, and give their handlers back in the end.

        What the caller ignores (as nohup does) stays ignored, and a handler of one's own for Ctrl-C stays in force.
        """
        before = {}
        self._patience = patience
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                found = signal.getsignal(number)
                own = number == signal.SIGINT and not (
                    found is signal.default_int_handler or isinstance(found, Stopping)
                )
                if found is not None and found is not signal.SIG_IGN and not own:
                    before[number] = found
                    signal.signal(number, self)
        try:
            yield
        finally:
            for number, found in before.items():
                signal.signal(number, found)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Note nothing within: what is done here can be left at any point."""
        self.here()
        with self._with_patience(0):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note every signal within: what is done here is short and must be whole."""
        with self._with_patience(math.inf):
            yield

    @contextmanager
    def _with_patience(self, patience: float) -> Iterator[None]:
        before, self._patience = self._patience, patience
        try:
            yield
        finally:
            self._patience = before

    def here(self) -> None:
        """Raise Stopped if a signal was noted: this is a good place to stop."""
        if self.asked:
            raise Stopped(self.asked[-1], hurried=len(self.asked) > 1)
