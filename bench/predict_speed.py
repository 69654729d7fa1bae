"""Compare `finesmith predict` with transformers' text-classification pipeline on the same model and rows.

    python bench/predict_speed.py [--slice 4000] [--rounds 3] [--threads 2] [--rows 100000 [--peer-rows 10000]]

The model is the bundled MiniLM, tuned for a moment; the pipeline loads the folder that finesmith saved. Both read a csv
of distinct sentences, in fp32 on the CPU; finesmith also writes its csv. The pipeline gets the rows as a generator,
truncation at the same length, and the best batch size of 1, 8, 32 and 64 on rows of its own. Rounds are interleaved,
each with fresh rows. Labels must be equal and scores within 1e-4. `--rows` is short for one round of so many; with
`--peer-rows` the pipeline, which would need half an hour, gets so many of them, half before finesmith's turn and half
after.

Sentences are film reviews and then prose from the shared data folder (`FINESMITH_SHARED`, or `../shared` beside the
repository); where that is absent, the bundled sample's texts joined anew. The last line is JSON: the median ratio by
the clock, and the same by processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
BATCH_SIZES = (1, 8, 32, 64)
TRAINING_ROWS = 600
TRIAL_ROWS = 256
LONGEST = 128


def sentences(count: int) -> list[str]:
    """Return distinct sentences of 3 to 60 words in an order that says nothing."""
    found: dict[str, None] = {}
    for text in _texts():
        if 3 <= len(text.split()) <= 60:
            found[text] = None
        if len(found) == count:
            break
    else:
        raise SystemExit(f"only {len(found):,} sentences were found, {count:,} are needed")
    rows = list(found)
    random.Random(0).shuffle(rows)
    return rows


def _texts() -> Iterator[str]:
    if not (SHARED / "data/film_reviews").is_dir():
        yield from _joined_samples()
        return
    for split in ("train", "validation", "test"):
        for line in (SHARED / f"data/film_reviews/{split}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["text"]
    with lzma.open(SHARED / "corpora/english.txt.xz", "rt", encoding="utf-8") as file:
        for line in file:
            yield from (part.strip() for part in re.split(r"(?<=[.!?])\s+", line))


def _joined_samples() -> Iterator[str]:
    import finesmith

    path = Path(finesmith.__file__).parent / "samples/support_tickets.csv"
    with path.open(encoding="utf-8", newline="") as file:
        pieces = [part for row in csv.DictReader(file) for part in re.split(r"(?<=[.!?])\s+", row["text"])]
    draw = random.Random(0)
    while True:
        yield " ".join(draw.choices(pieces, k=draw.randint(1, 4)))


def tune(texts: list[str], folder: Path) -> Path:
    """Return a run on whether a sentence is longer than the median: any task will do."""
    data = folder / "train.csv"
    middle = statistics.median(len(text) for text in texts)
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, "long" if len(text) > middle else "short"] for text in texts)
    settings = ["train.epochs=0.2", "evaluate.baselines=[majority]", f"data.max_length={LONGEST}"]
    words = [word for setting in settings for word in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "finesmith", "tune", str(data), "--out", str(folder / "run"), "-q", *words], check=True
    )
    return folder / "run"


def write_rows(texts: list[str], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "text"])
        writer.writerows(enumerate(texts))
    return path


@dataclass(frozen=True)
class Timed:
    """Rows per second of the clock and of the processor, and label and score of each row."""

    clock: float
    processor: float
    found: list[tuple[str, float]]


def timed(predict: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a function returns, and the seconds it took by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = predict()
    return result, time.perf_counter() - clock, time.process_time() - processor


def by_finesmith(model: Any, data: Path) -> Timed:
    from finesmith.deploy.export import write_tables
    from finesmith.workflows.apply import predictions

    out = data.with_suffix(".predicted.csv")
    rows, clock, processor = timed(lambda: write_tables(predictions(model, str(data)), str(out)))
    with out.open(encoding="utf-8", newline="") as file:
        found = [(row["prediction"], float(row["confidence"])) for row in csv.DictReader(file)]
    return Timed(rows / clock, rows / processor, found)


def by_pipeline(pipe: Any, data: Path, batch_size: int) -> Timed:
    def rows() -> Iterator[str]:
        with data.open(encoding="utf-8", newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))

    answers, clock, processor = timed(
        lambda: list(pipe(rows(), batch_size=batch_size, truncation=True, max_length=LONGEST))
    )
    found = [(each["label"], each["score"]) for each in answers]
    return Timed(len(found) / clock, len(found) / processor, found)


def together(parts: list[Timed]) -> Timed:
    """Return several runs as one."""
    rows = [len(part.found) for part in parts]
    clock = sum(count / part.clock for count, part in zip(rows, parts, strict=True))
    processor = sum(count / part.processor for count, part in zip(rows, parts, strict=True))
    return Timed(sum(rows) / clock, sum(rows) / processor, [one for part in parts for one in part.found])


def compare(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> float:
    """Return the largest difference of scores; stop where a label differs and is no tie."""
    gap = max(abs(mine[1] - its[1]) for mine, its in zip(one, other, strict=True))
    if gap > 1e-4:
        raise SystemExit(f"scores differ by {gap:.2g}")
    differ = [mine for mine, its in zip(one, other, strict=True) if mine[0] != its[0] and abs(mine[1] - 0.5) > 1e-4]
    if differ:
        raise SystemExit(f"{len(differ)} labels differ")
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=int, default=4000, help="rows a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, help="one round of so many rows")
    parser.add_argument("--peer-rows", type=int, help="with --rows: so many of them for the pipeline")
    chosen = parser.parse_args()
    size, rounds = (chosen.rows, 1) if chosen.rows else (chosen.slice, chosen.rounds)
    os.environ.update(OMP_NUM_THREADS=str(chosen.threads), TOKENIZERS_PARALLELISM="true")
    texts = sentences(TRAINING_ROWS + TRIAL_ROWS + rounds * size)
    with tempfile.TemporaryDirectory() as folder:
        run = tune(texts[:TRAINING_ROWS], Path(folder))
        measure(run, texts[TRAINING_ROWS:], size, rounds, chosen.threads, chosen.peer_rows)


def measure(run: Path, texts: list[str], size: int, rounds: int, threads: int, peer_rows: int | None) -> None:
    import torch
    from transformers import pipeline

    from finesmith.workflows.apply import load_run

    torch.set_num_threads(threads)
    model = load_run(str(run))
    pipe = pipeline("text-classification", model=str(run / "model"), device="cpu", dtype=torch.float32)
    trial = write_rows(texts[:TRIAL_ROWS], run.parent / "trial.csv")
    by_finesmith(model, trial)
    trials = {batch_size: by_pipeline(pipe, trial, batch_size).clock for batch_size in BATCH_SIZES}
    best = max(trials, key=lambda batch_size: trials[batch_size])
    print("pipeline, rows a second by batch size:", {k: round(v, 1) for k, v in trials.items()}, flush=True)
    rounds_of: list[tuple[Timed, Timed]] = []
    gap = 0.0
    for number in range(rounds):
        rows = texts[TRIAL_ROWS + number * size : TRIAL_ROWS + (number + 1) * size]
        data = write_rows(rows, run.parent / f"round{number}.csv")
        halves = [] if peer_rows is None else [slice(peer_rows // 2), slice(len(rows) - peer_rows // 2, None)]
        parts = [write_rows(rows[half], run.parent / f"half{i}.csv") for i, half in enumerate(halves)]
        before = [by_pipeline(pipe, part, best) for part in parts[:1]]
        ours = by_finesmith(model, data)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        after = [by_pipeline(pipe, part, best) for part in parts[1:]]
        theirs = together(before + after) if parts else by_pipeline(pipe, data, best)
        found = [one for half in halves for one in ours.found[half]] if parts else ours.found
        gap = max(gap, compare(found, theirs.found))
        rounds_of.append((ours, theirs))
        print(f"round {number + 1}: finesmith {ours.clock:.1f}, pipeline {theirs.clock:.1f} rows a second, "
              f"{ours.clock / theirs.clock:.2f}x; a processor second {ours.processor:.1f} and {theirs.processor:.1f}; "
              f"peak memory so far {memory:.0f} MB", flush=True)  # fmt: skip
    told = {
        "rows_per_second_ratio": round(statistics.median(o.clock / t.clock for o, t in rounds_of), 3),
        "processor_ratio": round(statistics.median(o.processor / t.processor for o, t in rounds_of), 3),
        "finesmith": round(statistics.median(o.clock for o, _ in rounds_of), 1),
        "pipeline": round(statistics.median(t.clock for _, t in rounds_of), 1),
        "batch_size": best, "rows": size * rounds, "threads": threads, "largest_gap": gap,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
