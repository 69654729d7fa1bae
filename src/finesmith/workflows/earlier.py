"""What an interrupted run left in its folder, and how the next process takes it up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.run import Run, read_json

if TYPE_CHECKING:
    from finesmith.train.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an interrupted run left behind.

    conditions: holds the fingerprint it began under, None where it may differ; stage: the last one it entered, whose
    line ends at byte `events` of events.jsonl; reasons: why its columns were chosen; threads: on how many it ran.
    """

    checkpoint: Checkpoint | None
    conditions: Checkpoint | None
    stage: str
    events: int
    reasons: dict[str, str]
    threads: int


def earlier_of(folder: Path, found: Checkpoint | None, force: bool) -> Earlier | None:
    """Return what can be gone on with; None where the run stopped before its recipe was resolved."""
    from finesmith.train.checkpoint import Checkpoint

    fingerprint = read_json(folder / "run.json").get("fingerprint")
    stage, end, size = "", 0, 0
    for line in (folder / "events.jsonl").read_bytes().splitlines(keepends=True):
        size += len(line)
        if line.startswith(b'{"event": "stage"') and line.endswith(b"\n"):
            stage, end = json.loads(line)["name"], size
    if found is None and (force or fingerprint is None):
        return None
    began = found or Checkpoint(folder, 0, {}, {}, fingerprint)
    reasons, threads = read_json(folder / "data.json")["reasons"], int(began.fingerprint["threads"])
    return Earlier(found, None if force else began, stage, end, reasons, threads)


def enter(run: Run, stage: str, earlier: Earlier | None) -> None:
    """Record that a stage begins; one that was interrupted without a checkpoint is recorded from there on again."""
    if earlier is not None and earlier.checkpoint is None and earlier.stage == stage:
        run.unmute(earlier.events)
    else:
        run.record("stage", name=stage)
