"""What a terminal shows while a run goes on: notes, a bar with rate, loss and time left; nothing when piped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.text import Text

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


def show_rows(found: Mapping[str, Any]) -> None:
    """Print training rows as the model sees them, as examples.json holds them, on standard output.

    Colours tell what is learnt and what is special; where there are none, marks do.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    coloured = console.color_system is not None and not console.no_color

    def say(line: Text) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        if not line.plain.isascii() and encoding.lower().replace("-", "") != "utf8":
            line.plain = line.plain.encode(encoding, "backslashreplace").decode(encoding)
        console.print(line, soft_wrap=True)

    every = [token for row in found["examples"] for token in row["tokens"]]
    key: list[dict[str, Any]] = [{"text": "special token", "kind": "special"}]
    key += [{"text": "learnt", "kind": "supervised"}] if any(t["kind"] == "supervised" for t in every) else []
    key += [{"text": "token", "kind": "supervised", "label": "answer"}] if any("label" in t for t in every) else []
    say(Text(f"\n{len(found['examples'])} of {found['rows']:,} training rows as the model sees them"))
    legend = Text(found["meaning"])
    for each in key:
        legend.append("  ").append_text(_token(each, coloured, (True, True)))
    say(legend)
    for row in found["examples"]:
        say(Text(f"\n{printable(_about_row(row))}", style="bold" if coloured else ""))
        for line in _wrapped(row["tokens"], coloured, console.width - 2 if console.is_terminal else None):
            say(Text("  ").append_text(line))


STYLES = {
    "plain": "", "special": "cyan", "supervised": "bold green", "supervised special": "bold green reverse",
    "cut": "red", "skipped": "dim", "label": "magenta",
}  # fmt: skip
WHY = {"first": "among the first", "longest": "the longest", "cut": "cut"}


def _about_row(row: Mapping[str, Any]) -> str:
    """Return what stands above a row: its place, its size, what it teaches, and why it was chosen."""
    size = f"{row['length']} of {row['original_length']} tokens"
    parts = [size if row["original_length"] > row["length"] else f"{row['length']} tokens"]
    parts = [row["sort"], *parts] if "sort" in row else parts
    parts += [f"{row['supervised']} learnt"] if "supervised" in row else []
    parts += [WHY[why] for why in row["why"] if why != "cut"]
    parts += [f"answer: {row['target']}"] if "target" in row else []
    return f"{row['where']}: {', '.join(parts)}"


def _wrapped(tokens: Sequence[Mapping[str, Any]], coloured: bool, width: int | None) -> Iterator[Text]:
    """Yield the lines of a row: a line of the text ends one, and so does the edge of a terminal."""
    from rich.text import Text

    line = Text()
    learnt = [False, *(token["kind"] == "supervised" for token in tokens), False]
    for token, before, after in zip(tokens, learnt, learnt[2:], strict=False):
        unit = _token(token, coloured, (not before, not after))
        if width is not None and line.cell_len and line.cell_len + unit.cell_len + 1 > width:
            yield line
            line = Text()
        elif line.cell_len:
            line.append("|", style="dim" if coloured else "")
        line.append_text(unit)
        if str(token["text"]).endswith("↵"):
            yield line
            line = Text()
    if line.cell_len:
        yield line


def _token(token: Mapping[str, Any], coloured: bool, ends: tuple[bool, bool]) -> Text:
    """Return a token in its colours, or in marks; `ends`: whether it begins and ends a run of learnt tokens."""
    from rich.text import Text

    kind, special = token["kind"], token["kind"] == "special" or bool(token.get("special"))
    if kind in ("cut", "skipped"):
        told = f"{token['count']:,} tokens cut off" if kind == "cut" else f"… {token['count']:,} tokens …"
        return Text().append(told, style=STYLES[kind]) if coloured else Text(f"({told})")
    label = f"={token['label']}" if "label" in token else ""
    if coloured:
        style = STYLES["supervised special" if special and kind == "supervised" else kind]
        return Text().append(str(token["text"]), style=style).append(label, style=STYLES["label"])
    text = (f"«{token['text']}»" if special else str(token["text"])) + label
    if kind == "supervised":
        text = f"{'[' if ends[0] else ''}{text}{']' if ends[1] else ''}"
    return Text(text)
