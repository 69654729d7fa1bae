"""How long a chat template may take: what counts is its own time, and more turns may take longer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finesmith.data.chat_sandbox import TemplateSlowError, compile_template

SOURCE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def renders(turns: int, seconds: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render on a clock of this thread's time that goes on so many seconds with each rendering."""
    now = [0.0]

    class Turns(list[Any]):
        def __iter__(self) -> Any:
            now[0] += seconds
            return super().__iter__()

    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    # A template is compiled once, so another text for each case.
    render = compile_template(f"{SOURCE}{turns} {seconds}")
    for _ in range(times):
        render({"messages": Turns([{"content": "x"}] * turns)})


@pytest.mark.parametrize(("turns", "seconds", "slow"), [(2, 0.01, False), (2, 0.1, True), (400, 0.1, False)])
def test_a_template_may_take_the_longer_the_more_turns_there_are(
    turns: int, seconds: float, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:
        with pytest.raises(TemplateSlowError, match=r"0\.02 seconds for a conversation and 0\.0005 for each"):
            renders(turns, seconds, 200, monkeypatch)
    else:
        renders(turns, seconds, 200, monkeypatch)


def test_a_busy_machine_makes_no_template_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock on the wall runs on while other processes have the processor."""
    hours = iter(range(0, 3600 * 10**6, 3600))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(hours)))
    render = compile_template(SOURCE + "!")
    assert [render({"messages": [{"content": "x"}]}) for _ in range(100)] == ["x!"] * 100
