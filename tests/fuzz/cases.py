"""The fuzz: kinds of cases, each made by a seed alone, run and judged one by one; a fault keeps its files."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import checkpoints, language, recipes, runs, tables
from fuzz.oracle import HangError, Outcome, limited

Case = Callable[[random.Random, Path], Outcome]
KINDS = ("recipes", "tables", "language", "checkpoints", "runs")


@dataclass
class Tally:
    """What came of the cases of one kind: how many, how they ended, and a paragraph for each fault."""

    kind: str
    cases: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        speed = self.cases / self.seconds if self.seconds else 0.0
        ended = ", ".join(f"{count:,} {name}" for name, count in sorted(self.ended.items()))
        return f"{self.kind}: {self.cases:,} cases ({ended}), {len(self.faults)} faults, {speed:.1f} cases a second"


def maker(kind: str, folder: Path) -> Case:
    """Return the function that runs a case of a kind; `folder` takes what all its cases share."""
    shared: Any
    if kind == "recipes":
        return recipes.run_case
    if kind == "tables":
        shared = tables.Workshop()
        return lambda draw, place: tables.run_case(draw, place, shared)
    if kind == "language":
        shared = language.Workshop()
        return lambda draw, place: language.run_case(draw, place, shared)
    if kind == "checkpoints":
        shared = checkpoints.write_checkpoints(folder / "whole")
        return lambda draw, place: checkpoints.run_case(draw, place, shared)
    shared = runs.Workshop(folder / "workshop")
    return lambda draw, place: runs.run_case(draw, place, shared)


def run_cases(
    kind: str, seeds: Iterable[int], case: Case, folder: Path, tally: Tally | None = None, *, keep: bool = True
) -> Tally:
    """Run a case for each seed, in a folder of its own that is removed again; `keep` the files of those that fail."""
    tally = tally or Tally(kind)
    for seed in seeds:
        place = folder / f"{kind}-{seed}"
        place.mkdir(parents=True)
        began = time.perf_counter()
        try:
            with limited():
                tally.ended[case(random.Random(f"{kind} {seed}"), place).ended] += 1
        except (Exception, HangError) as error:
            tally.ended["faulty"] += 1
            tally.faults.append(_told(kind, seed, place, error, keep))
        tally.seconds += time.perf_counter() - began
        tally.cases += 1
        shutil.rmtree(place, ignore_errors=True)
    return tally


def _told(kind: str, seed: int, place: Path, error: BaseException, keep: bool) -> str:
    """Say what happened in a case that went wrong, where its files are, and how to see it again."""
    kept = ""
    if keep:
        aside = tempfile.mkdtemp(prefix=f"finesmith-fuzz-{kind}-{seed}-")
        shutil.copytree(place, aside, symlinks=True, dirs_exist_ok=True)
        kept = f"its files are in {aside}; "
    frames = "".join(traceback.format_tb(error.__traceback__)[-4:])
    return (
        f"{kind} {seed}: {type(error).__name__}: {str(error)[:1000]}\n{frames}"
        f"{kept}again: python bench/long_fuzz.py --case {kind}:{seed}"
    )
