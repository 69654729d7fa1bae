"""What a terminal shows while a run goes on: notes, a bar with rate, loss and time left; nothing when piped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SEVERITY = {"error": "red", "warning": "yellow", "info": "dim"}


class Display:
    """Listens to a run's events and shows them on standard error.

    On a terminal: coloured notes and a live bar. Elsewhere: plain lines for what matters, no bar, and no piece of the
    data's texts. quiet: nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self._gone = False
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._latest: dict[str, Any] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event; a terminal that has gone is no reason to stop."""
        if self._gone:
            return
        try:
            self._show(event)
        except (OSError, SystemExit):  # rich leaves the program where a pipe is closed
            self._gone = True

    def _show(self, event: Mapping[str, Any]) -> None:
        kind = str(event["event"])
        known: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "stage": self._stage,
            "note": lambda e: self._say(str(e["message"]), "dim"),
            "audit": self._audit,
            "baseline": self._baseline,
            "step": self._step,
            "embedding": lambda e: self._bar("embedding", int(e["done"]), int(e["total"]), "texts", ""),
            "evaluation": self._evaluation,
            "early_stop": lambda e: self._say(f"stopped early: {e['message']}", "yellow"),
            "test_opened": lambda e: self._say(f"test split opened ({e['examples']:,} examples)", "dim"),
            "lr_range": lambda e: self._say(f"learning-rate range test suggests {e['suggestion']:g}", "dim"),
            "verdict": self._verdict,
            "stopping": lambda e: self._say(str(e["message"]), "bold yellow"),
        }
        if kind in known:
            known[kind](event)

    def bar(self, name: str, unit: str) -> Callable[[int, int], None]:
        """Return the function that moves a bar: it takes how many are done, and of how many."""
        return lambda done, total: self._bar(name, done, total, unit, "")

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            with contextlib.suppress(OSError, SystemExit):  # the terminal may have gone
                self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _say(self, text: str, style: str = "") -> None:
        # A line stays a line where nobody looks at it on a screen.
        self.console.print(printable(discreet(text)), style=style or None, markup=False, soft_wrap=not self.live)

    def _audit(self, event: Mapping[str, Any]) -> None:
        shows = f": {event['shows']}" if self.live and event.get("shows") else ""
        self._say(f"audit: {event['message']}{shows}", SEVERITY[str(event["severity"])])

    def _stage(self, event: Mapping[str, Any]) -> None:
        self.close()
        self._say(str(event["name"]), "bold")

    def _baseline(self, event: Mapping[str, Any]) -> None:
        self.close()
        if event["skipped"]:
            self._say(f"baseline {event['name']}: skipped, {event['skipped']}", "dim")
        elif event["value"] is not None:
            self._say(f"baseline {event['name']}: validation {event['metric']} {event['value']:.4f}")

    def _evaluation(self, event: Mapping[str, Any]) -> None:
        self._latest["value"] = f"{event['metric']} {event['value']:.4f}"
        self._say(
            f"step {event['step']}: train loss {event['train_loss']:.4f}, validation loss "
            f"{event['validation_loss']:.4f}, {event['metric']} {event['value']:.4f}"
        )

    def _step(self, event: Mapping[str, Any]) -> None:
        told = f"loss {event['loss']:.4f} {self._latest.get('value', '')}"
        self._bar("training", int(event["step"]), int(event["total"]), "steps", told)

    def _verdict(self, event: Mapping[str, Any]) -> None:
        self.close()
        self.console.print()
        self._say(str(event["conclusion"]), "bold green" if event["better"] else "bold yellow")

    def _bar(self, name: str, done: int, total: int, unit: str, told: str) -> None:
        if not self.live:
            return
        if self._progress is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[told]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, completed=0, rate="", told="")
        task = self._progress.tasks[self._progress.task_ids.index(self._tasks[name])]
        rate = f"{task.speed:.1f} {unit}/s" if task.speed else ""
        self._progress.update(self._tasks[name], completed=done, total=total, rate=rate, told=told)


def complain(message: str, *, private: str = "") -> None:
    """Print an error to standard error; `private`, which may hold the user's data, on a terminal only.

    Nobody hears it where the terminal has gone.
    """
    told = "\n".join(filter(None, (message, private if sys.stderr.isatty() else "")))
    with contextlib.suppress(OSError):
        sys.stderr.write(f"finesmith: {printable(discreet(told))}\n")
        sys.stderr.flush()
