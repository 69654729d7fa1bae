"""What every case of the fuzz is judged by: no traceback, no hang, and messages that a person can act on."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Of processor time, which other work on the machine does not stretch; a case that waits for nothing is stopped too.
LONGEST_CASE, LONGEST_WAIT = 20.0, 90.0
LONGEST_MESSAGE = 1500
# Only these signs may steer a terminal: a message is lines of text.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
VERBS = (
    "add|ask|bring|check|choose|close|convert|copy|correct|cut|delete|double|download|drop|empty|enter|expected|export|"
    "fill|free|give|go on|indent|install|keep|leave|look|lower|make|mend|move|name|needs?|open|pass|pick|put|quote|"
    "remove|rename|replace|report|restore|resume|run|save|see|set|show|split|start|state|take|try|tune|turn|unpack|"
    "use|wait|write"
)
# An order stands at the start of a sentence or a clause; a choice is offered in one of these ways.
REMEDY = re.compile(
    rf"(?:^|[;:,.(]\s|\b(?:or|and|to|please|then|first)\s)(?:{VERBS})\b"
    r"|\bexpected\b|\bdid you mean\b|\bis it '|\bthe keys\b|\bone of\b|\bat most\b|\bneeds\b|\btakes\b|\btake\b|"
    r"\bthe nearest name\b|`finesmith \w+|--\w+",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended when nothing was wrong with that: `accepted` or `refused`, and the words of the refusal."""

    ended: str
    said: str = ""


class FaultError(AssertionError):
    """What finesmith did that it must not do."""


class HangError(BaseException):
    """A case took longer than anything may; not an Exception, so that nobody swallows it."""


def require(holds: object, what: str) -> None:
    """Raise FaultError saying `what`, unless it holds."""
    if not holds:
        raise FaultError(what)


def judge(message: str, places: Sequence[str]) -> None:
    """Raise FaultError unless a message names one of `places` and a remedy, and is short and clean."""
    require(message.strip(), "the message is empty")
    require(
        len(message) < LONGEST_MESSAGE,
        f"the message has {len(message)} characters: {message[:300]!r} {message[-200:]!r}",
    )
    if steering := CONTROL.search(message):
        raise FaultError(f"the message holds the control character {steering[0]!r}: {message[:300]!r}")
    require(any(place in message for place in places), f"the message names none of {places}: {message!r}")
    require(REMEDY.search(message), f"the message offers no remedy: {message!r}")


@contextmanager
def limited(seconds: float = LONGEST_CASE, waited: float = LONGEST_WAIT) -> Iterator[None]:
    """Raise HangError in the main thread after so many seconds of work, or of waiting."""

    def stop(_: int, frame: FrameType | None) -> None:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        raise HangError(f"still running after {seconds:g} s of work or {waited:g} s, in {place}")

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        began = time.monotonic()
        yield
        require(time.monotonic() - began < waited, f"took {time.monotonic() - began:.0f} s")
        return
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, waited))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
