"""What an interrupted run left in its folder, and how the next process takes it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import RunError
from finesmith.run import Run, read_json

if TYPE_CHECKING:
    from finesmith.train.checkpoint import Checkpoint

# Made again by every resume, to see whether data and model are those that the run began with.
PREPARING = ("data", "model")


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an interrupted run left behind.

    checkpoint: goes on from there; None: from the end of training's preparation, `stage` being the last one that is
    recorded whole, in the first `events` bytes of events.jsonl; conditions: holds the fingerprint it began under, None
    where it may differ; reasons: why its columns were chosen; threads: on how many it ran.
    """

    checkpoint: Checkpoint | None
    conditions: Checkpoint | None
    stage: str
    events: int
    reasons: dict[str, str]
    threads: int


def earlier_of(folder: Path, found: Checkpoint | None, force: bool) -> Earlier | None:
    """Return what can be gone on with; None where the run stopped before its recipe was resolved.

    `found` is the newest checkpoint that verifies. One that does not belong to this run, or of whose time the events
    are gone, gives way to an older one; not with `force`. Raises RunError when the folder is damaged.
    """
    from finesmith.train.checkpoint import Checkpoint, latest

    fingerprint = _fingerprint(folder, force)
    if found is None and fingerprint is None:
        return None
    events = (folder / "events.jsonl").read_bytes()
    if found is not None and not force and _misfit(found, fingerprint, events):
        found = latest(folder / "checkpoints", fingerprint=None, misfit=lambda one: _misfit(one, fingerprint, events))
    began = found or Checkpoint(folder, 0, {}, {}, fingerprint or {})
    stage, end = ("", 0) if found else _first_stage(folder, events)
    threads = began.fingerprint.get("threads", "")
    if not threads.isdecimal():
        raise _damaged(folder, "run.json does not say on how many threads it ran")
    return Earlier(found, None if force else began, stage, end, _reasons(folder, force), int(threads))


def enter(run: Run, stage: str, earlier: Earlier | None) -> None:
    """Record that a stage begins.

    After data and model it is known that an interrupted run goes on: from a checkpoint, or by recording again from
    the first stage after them.
    """
    if earlier is not None and run.holding and stage not in PREPARING:
        from finesmith.train.checkpoint import forget_later

        if earlier.checkpoint is not None:
            forget_later(earlier.checkpoint)
        run.release()
        if earlier.checkpoint is None:
            run.unmute(earlier.events)
            if earlier.stage == stage:
                # Its line stands there.
                return
    run.record("stage", name=stage)


def _fingerprint(folder: Path, force: bool) -> dict[str, str] | None:
    """Return what the run began under; None before that was known, and where it does not matter."""
    found = _mapping(read_json(folder / "run.json")).get("fingerprint")
    if found is None or force:
        return None
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged(folder, "run.json has a fingerprint that is none")
    return {str(key): value for key, value in found.items()}


def _reasons(folder: Path, force: bool) -> dict[str, str]:
    try:
        found = _mapping(read_json(folder / "data.json")).get("reasons")
    except RunError:
        found = None
    if isinstance(found, Mapping):
        return {str(key): str(value) for key, value in found.items()}
    if force:
        return {}
    raise _damaged(folder, "data.json does not say why its columns were chosen")


def _misfit(found: Checkpoint, fingerprint: Mapping[str, str] | None, events: bytes) -> str:
    """Return why a checkpoint does not belong to this run and its events; empty when it does."""
    then, now = found.fingerprint, fingerprint or {}
    if then != now:
        odd = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        return f"it is not of this run as it began ({', '.join(odd)[:80]}); resume with --force takes it"
    size = found.state.get("events")
    kept = events[:size] if isinstance(size, int) and size <= len(events) else b""
    steps = kept.rfind(b'{"event": "step"')
    line = kept[steps : kept.find(b"\n", steps) + 1] if steps >= 0 else b""
    if not kept.endswith(b"\n") or _mapping(_parsed(line)).get("step") != found.step:
        return f"events.jsonl does not tell of step {found.step}; resume with --force goes on without"
    return ""


def _first_stage(folder: Path, events: bytes) -> tuple[str, int]:
    """Return the first stage after data and model, and where its line ends; the model where that one had not begun.

    Raises RunError when events.jsonl does not reach so far.
    """
    size, stage = 0, ""
    lines = events.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        # The process ended while it wrote this line.
        lines.pop()
    for number, line in enumerate(lines, 1):
        size += len(line)
        event = _mapping(_parsed(line))
        if not event:
            raise _damaged(folder, f"line {number:,} of events.jsonl is damaged")
        if event.get("event") == "stage":
            stage = str(event.get("name"))
            if stage not in PREPARING:
                break
    if stage in {"", PREPARING[0]}:
        raise _damaged(folder, "events.jsonl was cut: it does not tell what the run had done")
    return stage, size


def _damaged(folder: Path, what: str) -> RunError:
    return RunError(f"{folder}: {what}; put the file back from a copy, or go on without it: finesmith resume --force")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
