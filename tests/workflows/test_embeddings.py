"""Embeddings, whole: from texts that belong together to a verdict and an encoder that others load."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import PEFT_WARNING, PLAIN, differences, events, read, table, tuned, with_values, write_csv
from language_jobs import language_plan

import finesmith
from finesmith.errors import DataError, RecipeError, UserError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check, infer_recipe
from finesmith.workflows.tune import resume, tune

TASK = "embeddings"
HERE = ("one", "two", "three", "four", "five", "six", "seven", "eight")
THERE = ("red", "blue", "green", "refund", "order", "late", "card", "bank")
OTHERS = tuple(word for word in PLAIN if word not in (*HERE, *THERE))


def triplets(count: int = 120, *, seed: int = 0) -> list[tuple[str, str, str]]:
    """Return texts, others that say the same in other words, and others that nearly do."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        said = draw.sample(range(len(HERE)), 3)
        unlike = [*said[:2], draw.choice([each for each in range(len(HERE)) if each not in said])]
        rows.append(
            tuple(
                " ".join([*(words[i] for i in chosen), *draw.choices(OTHERS, k=4)])
                for words, chosen in ((HERE, said), (THERE, said), (THERE, unlike))
            )
        )
    return rows  # type: ignore[return-value]


def labelled(count: int = 120, *, seed: int = 0) -> list[tuple[str, str]]:
    """Return sentences whose label their words tell in one of two ways."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        topic = i % 5
        word = draw.choice([HERE[topic], THERE[topic]])
        rows.append((" ".join([word, *draw.choices(OTHERS, k=6)]), f"topic {topic}"))
    return rows


def write(folder: Path, kind: str, *, seed: int = 0) -> Path:
    if kind == "labelled":
        return write_csv(folder / f"{kind}.csv", labelled(seed=seed), ("text", "category"))
    rows = triplets(seed=seed)
    if kind == "triplets":
        return write_csv(folder / f"{kind}.csv", rows, ("anchor", "positive", "negative"))
    return write_csv(folder / f"{kind}.csv", [row[:2] for row in rows], ("query", "passage"))


def a_plan(data: Path, model: Path, **values: Any) -> dict[str, Any]:
    return language_plan(TASK, data, model, data.parent / "cache", **{"model__dropout": 0.0, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def runs(folder: Path, tiny_model: Path) -> dict[str, Path]:
    """One run of each kind of data."""
    found = {}
    for kind in ("pairs", "triplets", "labelled"):
        tree = a_plan(write(folder, kind), tiny_model, train__epochs=6, train__batch_size=16, train__micro_batch_size=16)
        found[kind] = tuned(with_values(tree, {"train.learning_rate": 5e-3}), folder / f"run-{kind}")
    return found


@pytest.mark.parametrize("kind", ["pairs", "triplets", "labelled"])
def test_a_run_has_all_the_evidence(kind: str, runs: dict[str, Path]) -> None:
    run = runs[kind]
    verdict = read(run, "verdict.json")
    assert verdict["task"] == TASK
    assert verdict["metric"] == "ndcg@10"
    assert verdict["better"], verdict["conclusion"]
    assert {each["name"] for each in verdict["baselines"]} == {"untuned base model", "TF-IDF"}
    assert set(read(run, "scores.json")["test"]) >= {"ndcg@10", "accuracy@1", "mrr", "map"}
    losses = [event["validation_loss"] for event in events(run, "evaluation")]
    assert losses[-1] < losses[0]
    names = [event["event"] for event in events(run)]
    assert names.count("test_opened") == 1
    assert names.index("test_opened") > max(at for at, name in enumerate(names) if name == "step")
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    lost = sum(rows for rows in flow.values() if rows < 0)
    assert flow["read"] + lost == flow["train"] + flow["validation"] + flow["test"]
    assert "nDCG@10" in (run / "report.html").read_text("utf-8")
    card = (run / "model" / "README.md").read_text("utf-8")
    assert "SentenceTransformer(" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert read(run, "model.json")["reload_gap"] < 1e-5
