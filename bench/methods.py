"""Every method on real data from its raw files: test scores with intervals, baselines beside them.

    python bench/methods.py                      # everything (about an hour on 2 cores)
    python bench/methods.py film_reviews         # one data set
    python bench/methods.py film_reviews:full    # one run

Data is looked for in FINESMITH_SHARED or ../shared. The last line is JSON with all figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import finesmith

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA = SHARED / "data"

SAMPLE = Path(finesmith.__file__).parent / "samples" / "support_tickets.csv"

SOURCES: dict[str, dict[str, Any]] = {
    "support_tickets": {"data.train": str(SAMPLE), "data.group": "customer_id"},
    "film_reviews": {
        "data.train": str(DATA / "film_reviews/train.jsonl"),
        "data.validation": str(DATA / "film_reviews/validation.jsonl"),
        "data.test": str(DATA / "film_reviews/test.jsonl"),
    },
    "banking77": {
        "data.train": str(DATA / "banking77/train.csv"),
        "data.test": str(DATA / "banking77/test.csv"),
    },
    "medical_sections": {"data.train": str(DATA / "medical_pubmedqa/sections.jsonl")},
}

# The setting of the reference trainer: one epoch, 5e-5, 50 warm-up steps of 267, nothing stopped early.
REFERENCE = {
    "train.learning_rate": 5e-5, "train.epochs": 1, "train.warmup": 50 / 267, "guards.early_stopping": False,
    "data.max_length": 128, "data.audit.exact_duplicates": "keep", "data.audit.leakage": "keep",
}  # fmt: skip

METHODS: dict[str, dict[str, Any]] = {
    "reference": REFERENCE,
    "full": {},
    "lora": {"method.name": "lora"},
    "features": {"method.name": "features"},
    "head_then_full": {"method.name": "head_then_full"},
}


def runs(chosen: list[str]) -> list[tuple[str, str]]:
    """Return (source, method) pairs that were asked for; `reference` is for film_reviews alone."""
    every = [(s, m) for s in SOURCES for m in METHODS if m != "reference" or s == "film_reviews"]
    if not chosen:
        return every
    return [(s, m) for s, m in every if s in chosen or f"{s}:{m}" in chosen]


def measure(source: str, method: str, folder: Path) -> dict[str, Any]:
    """Tune once and return the figures of the verdict."""
    began = time.perf_counter()
    settings = {**SOURCES[source], **METHODS[method]}
    if method != "features":
        settings["evaluate.baselines"] = ["majority", "tfidf"]
    data = settings.pop("data.train")
    run = finesmith.tune(data, out=folder, settings=settings)
    verdict, scores = run.verdict, run.scores
    metric = verdict["metric"]
    return {
        "source": source,
        "method": method,
        "metric": metric,
        "validation": scores["validation"][metric]["value"],
        "test": verdict["tuned"]["value"],
        "interval": verdict["tuned"]["interval"],
        "against": verdict["gain"]["against"],
        "gain": verdict["gain"]["value"],
        "gain_interval": verdict["gain"]["interval"],
        "p_value": verdict["gain"]["p_value"],
        "better": verdict["better"],
        "baselines": {b["name"]: b["value"] for b in verdict["baselines"]},
        "train_seconds": verdict["tuned"]["seconds"],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run what was asked for and print a table and one line of JSON."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for source, method in runs(sys.argv[1:]):
            row = measure(source, method, Path(scratch) / f"{source}-{method}")
            rows.append(row)
            low, high = row["interval"] or (float("nan"),) * 2
            print(
                f"{source:17} {method:15} validation {row['validation']:.4f}  test {row['test']:.4f} "
                f"({low:.4f} to {high:.4f})  gain {row['gain']:+.4f} over {row['against']}, p {row['p_value']:.3g}  "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    print(json.dumps({"runs": rows}))


if __name__ == "__main__":
    main()
