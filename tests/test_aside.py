"""Work in a forked process: what it returns, tells and raises, and that nothing of it outlives what it was for."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesmith import aside as module
from finesmith import errors
from finesmith.aside import Aside, ElsewhereError, Tell, may_fork
from finesmith.errors import (
    DataError,
    DivergenceError,
    FinesmithError,
    PreflightError,
    Problem,
    RecipeError,
    RunError,
    UserError,
)
from finesmith.workflows.ending import fault

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

Start = Callable[..., Aside[Any]]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return Aside, which forks whatever other tests loaded."""
    monkeypatch.setattr(module, "may_fork", lambda: True)
    return Aside


@pytest.fixture(params=["forked", "here", "not to be forked"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(module, "may_fork", lambda: request.param != "not to be forked")
    return lambda work, hear=None: Aside(work, hear, here=request.param == "here")


# --- what comes back --------------------------------------------------------------------------------------------------


def test_values_told_in_their_order_then_the_result(start: Start) -> None:
    def work(tell: Tell) -> dict[str, int]:
        for number in range(300):
            tell(("event", {"number": number}))
        return {"all": 300}

    heard: list[Any] = []
    with start(work, heard.append) as aside:
        assert aside.result() == {"all": 300}
        assert heard == [("event", {"number": number}) for number in range(300)]
        assert aside.result() is aside.result(), "it is kept, not made again"
    assert len(heard) == 300


def test_hear_says_when_it_is_done(start: Start) -> None:
    heard: list[Any] = []

    def work(tell: Tell) -> str:
        tell("first")
        tell("second")
        return "done"

    with start(work, heard.append) as aside:
        hears = [aside.hear() for _ in range(4)]
        assert aside.result() == "done"
    assert heard == ["first", "second"]
    assert hears == ([False, False, True, True] if aside.elsewhere else [True] * 4)


def test_it_is_elsewhere_only_where_it_may_be(forked: Start) -> None:
    with forked(lambda _: os.getpid()) as aside:
        assert aside.elsewhere
        assert aside.result() != os.getpid()
    with forked(lambda _: os.getpid(), here=True) as aside:
        assert not aside.elsewhere
        assert aside.result() == os.getpid()


def test_here_the_work_waits_until_it_is_asked_for() -> None:
    done: list[int] = []
    with Aside(lambda _: done.append(1), here=True):
        assert done == []
    assert done == [], "what nobody asked for is not done at all"


def test_no_fork_with_threads_or_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(module, "THREADED", ("a_module_that_nobody_has",))
    assert may_fork()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert not may_fork()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(module, "THREADED", ("json",))
    assert not may_fork()
    monkeypatch.setattr(module, "THREADED", ())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not may_fork()


def test_large_values_pass_both_ways_without_waiting_for_each_other(forked: Start) -> None:
    def work(tell: Tell) -> Any:
        tell(np.arange(25_000_000))  # 200 MB
        return np.arange(25_000_000, dtype=np.int64)[::-1].copy()

    heard: list[Any] = []
    with forked(work, heard.append) as aside:
        assert aside.result()[0] == 24_999_999
    assert heard[0].nbytes == 200_000_000
    assert heard[0][-1] == 24_999_999


def test_leaving_while_it_sends_a_large_value(forked: Start) -> None:
    with forked(lambda _: bytes(200_000_000)) as aside:
        time.sleep(0.1)
    assert gone(aside._process.pid)


# --- what is raised ---------------------------------------------------------------------------------------------------


class PicklesButComesNotBackError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class PicklesNotError(ValueError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.held = lambda: None


def raising(error: BaseException) -> Callable[[Tell], None]:
    def work(_: Tell) -> None:
        raise error

    return work


RAISED = [
    DataError("rows.csv, row 7: no label", quote="a text"),
    RecipeError([Problem("train.epochs", "is -1", "recipe.yaml", 3), Problem("data.text", "is missing")]),
    DivergenceError("the loss is not a number", [3, 5]),
    ValueError("told", 3),
    OSError(28, "No space left on device", "/a/file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    MemoryError(),
    KeyError("name"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_keeps_its_type_and_all_it_says(error: Exception, start: Start) -> None:
    with start(raising(error)) as aside, pytest.raises(type(error)) as caught:
        aside.result()
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert caught.value.args == error.args
    kept = {key: value for key, value in vars(caught.value).items() if key != "__notes__"}
    assert kept == {key: value for key, value in vars(error).items() if key != "__notes__"}
    assert not getattr(caught.value, "__notes__", []), "the command line shows notes: no traceback is one"


@pytest.mark.parametrize("error", [PicklesNotError("a message"), PicklesButComesNotBackError("a", "message")])
def test_an_error_that_cannot_come_back_has_one_of_its_name_and_message(error: Exception, forked: Start) -> None:
    with forked(raising(error)) as aside, pytest.raises(RuntimeError) as caught:
        aside.result()
    assert type(caught.value).__name__ == type(error).__name__
    assert str(caught.value) == str(error)


def test_a_panic_of_a_library_in_rust_stays_one(forked: Start) -> None:
    kind = type("PanicException", (BaseException,), {})
    with forked(raising(kind("no such pattern"))) as aside, pytest.raises(BaseException, match="no such") as caught:
        aside.result()
    assert type(caught.value).__name__ == "PanicException"
    assert not isinstance(caught.value, Exception), "the command line tells the two apart"


def test_a_value_that_cannot_pickle_is_an_error(forked: Start) -> None:
    with forked(lambda tell: tell(lambda: None)) as aside, pytest.raises(Exception, match=r"pickle|local object"):
        aside.result()
    with forked(lambda _: lambda: None) as aside, pytest.raises(Exception, match=r"pickle|local object"):
        aside.result()


def test_the_cause_says_where_it_was(forked: Start) -> None:
    with forked(raising(ValueError("told"))) as aside, pytest.raises(ValueError, match="told") as caught:
        aside.result()
    cause = caught.value.__cause__
    assert isinstance(cause, ElsewhereError)
    assert __file__ in str(cause)
    assert "in work" in str(cause)


def test_a_fault_is_named_by_its_own_place(start: Start) -> None:
    def work(_: Tell) -> None:
        errors.shortened(None, 5)  # type: ignore[arg-type]

    line = inspect.getsourcelines(errors.shortened)
    inside = range(line[1], line[1] + len(line[0]))
    with start(work) as aside, pytest.raises(TypeError) as caught:
        aside.result()
    kind, _, place = fault(caught.value).partition(" at ")
    file, _, number = place.rpartition(":")
    assert (kind, file) == ("TypeError", "errors.py")
    assert int(number) in inside


def test_an_error_after_values_comes_after_them(start: Start) -> None:
    def work(tell: Tell) -> None:
        tell(1)
        tell(2)
        raise DataError("bad")

    heard: list[int] = []
    with start(work, heard.append) as aside, pytest.raises(DataError, match="bad"):
        aside.result()
    assert heard == [1, 2]


KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FinesmithError)
]  # fmt: skip


def same(one: FinesmithError, other: FinesmithError) -> bool:
    return type(one) is type(other) and str(one) == str(other) and vars(one) == vars(other)


@given(message=st.text(max_size=3000), quote=st.text(max_size=200), kind=st.sampled_from(KINDS))
def test_every_error_of_ours_comes_back_as_it_was(message: str, quote: str, kind: type[Any]) -> None:
    if kind is RecipeError:
        error = kind([Problem("key", message, quote, 3), Problem(message, quote)])
    elif kind is DivergenceError:
        error = kind(message, range(3))
    else:
        error = kind(message, quote=quote)
    error.add_note("a note")
    copied = pickle.loads(pickle.dumps(error))
    assert same(error, copied)
    assert copied.exit_status == error.exit_status
    assert copied.__notes__ == ["a note"]


def test_the_kinds_tested_are_all_of_them() -> None:
    assert set(KINDS) == {
        FinesmithError, UserError, DataError, errors.ModelError, RunError, DivergenceError, PreflightError, RecipeError,
    }  # fmt: skip


# --- an end from outside ----------------------------------------------------------------------------------------------


def gone(*processes: int, within: float = 10.0) -> bool:
    """Whether no process of these numbers is left after a while."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not any(running(number) for number in processes):
            return True
        time.sleep(0.005)
    return False


def running(number: int) -> bool:
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_is_killed_is_told_of(forked: Start) -> None:
    heard: list[int] = []

    def work(tell: Tell) -> None:
        tell(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    with forked(work, heard.append) as aside, pytest.raises(FinesmithError, match="ended from outside") as caught:
        aside.result()
    assert "signal 9" in str(caught.value)
    assert "finesmith resume" in str(caught.value)
    assert type(caught.value) is FinesmithError
    assert gone(heard[0])


def test_a_process_that_leaves_is_told_of(forked: Start) -> None:
    with forked(lambda _: os._exit(3)) as aside, pytest.raises(FinesmithError, match=r"\(status 3\)"):
        aside.result()


def two_deep(tell: Tell) -> None:
    """Tell the numbers of this process and of one that it started aside, then wait for long."""

    def inner(tell_inner: Tell) -> None:
        tell_inner(os.getpid())
        time.sleep(60)

    tell(os.getpid())
    with Aside(inner, tell) as aside:
        aside.result()


def test_leaving_early_ends_the_work_and_what_it_started(forked: Start) -> None:
    heard: list[int] = []
    began = time.monotonic()
    with forked(two_deep, heard.append) as aside:
        while len(heard) < 2:
            aside.hear()
    assert time.monotonic() - began < 20
    assert len({*heard, os.getpid()}) == 3
    assert gone(*heard)


def test_the_work_dies_with_the_one_in_the_middle(forked: Start) -> None:
    heard: list[int] = []
    with forked(two_deep, heard.append) as aside:
        while len(heard) < 2:
            aside.hear()
        os.kill(heard[0], signal.SIGKILL)
        with pytest.raises(FinesmithError, match="signal 9"):
            aside.result()
        assert gone(*heard)


def test_an_error_on_the_way_ends_the_work(forked: Start) -> None:
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        if len(heard) == 2:
            raise KeyError(number)

    with pytest.raises(KeyError), forked(two_deep, hear) as aside:
        aside.result()
    assert len(heard) == 2
    assert gone(*heard)


PARENT = """
import os, signal, sys, time
from finesmith.aside import Aside
from finesmith.workflows.signals import Stopping

def deep(tell):
    tell(os.getpid())
    time.sleep(60)

def work(tell):
    tell(os.getpid())
    with Aside(deep, tell) as inner:
        inner.result()

os.sched_getaffinity = lambda _: {0, 1}
entered = sys.argv[1] == "entered"
print("said before", end="")  # still in the buffer when the process forks
try:
    with Stopping().listening():
        aside = Aside(work, lambda number: print("", number, end="", flush=True))
        assert aside.elsewhere
        if entered:
            aside.__enter__()
        try:
            aside.result()
        finally:
            if entered:
                aside.__exit__(None, None, None)
except KeyboardInterrupt as stop:
    print("", stop, end="")
    sys.exit(7)
"""


class Parent:
    """A process with one aside, and one aside of that; in a process group of its own."""

    def __init__(self, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, mode],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        said = ""
        while len(said.split()) < 4 or not said.split()[3].isdigit() or not self._two(said):
            piece = os.read(self.process.stdout.fileno(), 4096).decode()  # type: ignore[union-attr]
            assert piece, self.process.stderr.read()  # type: ignore[union-attr]
            said += piece
        self.said, self.children = said, [int(number) for number in said.split()[2:4]]

    def _two(self, said: str) -> bool:
        return [one.pid for one in psutil.Process(self.process.pid).children(recursive=True)] == [
            int(number) for number in said.split()[2:4]
        ]

    def end(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=25)
        return self.said + out, err


@pytest.mark.parametrize("mode", ["entered", "not entered"])
def test_nothing_outlives_a_parent_that_is_killed(mode: str) -> None:
    parent = Parent(mode)
    parent.process.kill()
    assert gone(*parent.children)
    assert parent.end()[1] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", ["entered", "not entered"])
def test_a_signal_to_all_of_them_is_the_parents_to_answer(number: signal.Signals, mode: str) -> None:
    parent = Parent(mode)
    began = time.monotonic()
    os.killpg(parent.process.pid, number)
    out, err = parent.end()
    assert time.monotonic() - began < 20, "nobody waited for the work"
    assert parent.process.returncode == 7
    first, second = parent.children
    assert out == f"said before {first} {second} stopped by {number.name}", "what was buffered is printed once"
    assert err == ""
    assert gone(*parent.children)


def test_a_signal_at_any_moment_leaves_one_message_and_no_process(tmp_path: Path) -> None:
    """Ctrl-C while the process starts: no second traceback, whatever had run by then."""
    said = []
    for delay in np.linspace(0, 0.02, 9):
        script = (
            "import os, sys, time, threading, signal\n"
            "from finesmith.aside import Aside\n"
            "from finesmith.workflows.signals import Stopping\n"
            "os.sched_getaffinity = lambda _: {0, 1}\n"
            "import multiprocessing.context, multiprocessing.connection, multiprocessing.popen_fork\n"
            "try:\n"
            "    with Stopping().listening():\n"
            f"        threading.Timer({delay}, lambda: os.killpg(0, signal.SIGINT)).start()\n"
            "        with Aside(lambda _: time.sleep(30)) as aside:\n"
            "            aside.result()\n"
            "except KeyboardInterrupt as stop:\n"
            "    print(stop)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            capture_output=True, text=True, start_new_session=True, timeout=25,
        )  # fmt: skip
        said.append((ended.returncode, ended.stdout, ended.stderr))
    assert said == [(0, "stopped by SIGINT\n", "")] * 9


def test_output_in_the_buffer_is_printed_once(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from finesmith.aside import Aside\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "print('once')\n"
        "print('once too', file=sys.stderr)\n"
        "with Aside(lambda _: print('inside')) as aside:\n"
        "    aside.result()\n"
        "    assert aside.elsewhere\n"
        "print('after')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert sorted(ended.stdout.splitlines()) == ["after", "inside", "once"]
    assert ended.stderr == "once too\n"


def test_processes_are_not_left_as_zombies(forked: Start) -> None:
    before = len(psutil.Process().children())
    for number in range(5):
        with forked(lambda _, number=number: json.dumps(number)) as aside:
            assert aside.result() == str(number)
    assert len(psutil.Process().children()) == before


def test_a_worker_of_a_pool_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    class Worker:
        daemon = True

    monkeypatch.setattr(module, "THREADED", ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert may_fork()
    monkeypatch.setattr(multiprocessing, "current_process", Worker)
    assert not may_fork()
    with Aside(lambda _: 3) as aside:
        assert not aside.elsewhere
        assert aside.result() == 3
