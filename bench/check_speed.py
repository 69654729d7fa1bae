"""Time `finesmith check` on 10,000 rows: the whole command, from process start to its end, with nothing cached.

    python bench/check_speed.py [--rounds 3] [--rows 10000] [--threads 2] [--parts]

Needs the shared data folder: `FINESMITH_SHARED`, or `../shared` beside the repository. The rows are film reviews, as
csv. `--parts` also prints how long each part of the audit takes on the same rows, in a process that has its imports
behind it. The last line is JSON: the median of the rounds, and the processor time of the median round.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def write_rows(target: Path, rows: int) -> int:
    """Write the first `rows` film reviews as csv; return how many there were."""
    lines = [
        line
        for split in ("train", "validation", "test")
        for line in (SHARED / f"data/film_reviews/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ][:rows]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(json.loads(line) for line in lines)
    return len(lines)


def time_command(data: Path, threads: int) -> tuple[float, float]:
    """Return the seconds on the clock and of the processor that the command takes with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": str(threads)}
        # Modules are compiled once, as for any user, not again in every process.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-m", "finesmith", "check", str(data), "--json"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not json.loads(said.stdout)["ok"]:
        raise SystemExit(f"check found the data or the plan wanting:\n{said.stdout[:2000]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_parts(data: Path) -> dict[str, float]:
    """Return the seconds that reading, grouping copies and each check of the audit take."""
    from finesmith.data import audit, near_duplicates
    from finesmith.data.audit_rows import look_at
    from finesmith.data.sources import read
    from finesmith.types import Examples

    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *values: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = function(*values, **named)
        seconds[name] = round(time.perf_counter() - began, 3)
        return result

    import numpy as np
    import scipy.sparse.csgraph  # noqa: F401

    table = timed("read", read, [str(data)]).table
    texts, labels = table.column("text").to_pylist(), table.column("label").to_pylist()
    joined = timed("normalise", lambda: [near_duplicates.normalise(text) for text in texts])
    clusters = timed("near-duplicates", near_duplicates.cluster, joined)
    examples = Examples(np.arange(len(texts)), texts, labels=labels)
    options = {"clusters": clusters, "splits": None, "lengths": None, "max_length": None}
    rows = timed("look at rows", lambda: look_at(examples, kind="category", **options))
    for name, check in audit.CHECKS.items():
        timed(name, check.run, rows, check.default)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "reviews.csv"
        rows = write_rows(data, chosen.rows)
        if chosen.parts:
            for name, seconds in sorted(time_parts(data).items(), key=lambda part: -part[1]):
                print(f"{seconds:8.3f} s  {name}")
        rounds = []
        for number in range(chosen.rounds):
            rounds.append(time_command(data, chosen.threads))
            print(f"round {number + 1}: {rounds[-1][0]:.2f} s, processor {rounds[-1][1]:.2f} s", flush=True)
    middle = statistics.median_low(rounds)
    seconds = round(statistics.median(each[0] for each in rounds), 2)
    result = {"seconds": seconds, "rows": rows, "processor_seconds": round(middle[1], 2), "threads": chosen.threads}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
