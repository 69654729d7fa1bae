"""Small jobs for the tests of tasks that answer for every token."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from jobs import PLAIN, with_values

COLOURS, THINGS = ("red", "blue", "green"), ("film", "story", "card", "app", "plot", "scene")
EXTRA = ("really", "very", "not", "and", "but", "this", "that", "bank", "order", "music", "acting", "late", "warm")
HERE = ("one", "two", "three", "four", "five", "six", "seven", "eight")
THERE = ("red", "blue", "green", "refund", "order", "late", "card", "bank")
OTHERS = tuple(word for word in PLAIN if word not in (*HERE, *THERE))
NAMES = {"PER": ("anna", "bruno", "clara"), "LOC": ("rome", "oslo", "lima")}


def sentences(count: int = 60, *, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Return tagged sentences whose names tell their tags."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        row = [(word, "O") for word in draw.choices(PLAIN, k=draw.randint(3, 7))]
        kind = draw.choice(sorted(NAMES))
        first, last = draw.sample(NAMES[kind], 2)
        at = draw.randint(0, len(row))
        row[at:at] = [(first, f"B-{kind}"), (last, f"I-{kind}")][: draw.randint(1, 2)]
        rows.append(row)
    return rows


def write_conll(path: Path, rows: list[list[tuple[str, str]]]) -> Path:
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in row) for row in rows), "utf-8")
    return path


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


def scored(count: int = 150, *, seed: int = 0) -> list[tuple[str, str, float]]:
    """Return texts, others that say as much of the same in other words, and how much, 0 to 5."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        said, same = draw.sample(range(len(HERE)), 3), draw.randint(0, 3)
        others = [each for each in range(len(HERE)) if each not in said]
        also = [*said[:same], *draw.sample(others, 3 - same)]
        texts = [
            " ".join([*(words[i] for i in chosen), *draw.choices(OTHERS, k=4)])
            for words, chosen in ((HERE, said), (THERE, also))
        ]
        rows.append((texts[0], texts[1], round(5 * same / 3, 1)))
    return rows


def labelled(count: int = 120, *, seed: int = 0) -> list[tuple[str, str]]:
    """Return sentences whose label their words tell in one of two ways."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        topic = i % 5
        word = draw.choice([HERE[topic], THERE[topic]])
        rows.append((" ".join([word, *draw.choices(OTHERS, k=6)]), f"topic {topic}"))
    return rows


def language_plan(task: str, data: Path | str, model: Path | str, cache: Path | str, **values: Any) -> dict[str, Any]:
    """Return a recipe that runs in a second or two; `values` are dotted keys with __ for the dot."""
    tree: dict[str, Any] = {
        "task": task,
        "data": {"train": str(data)},
        "model": {"base": str(model), "dropout": 0.1},
        "train": {"learning_rate": 1e-2, "epochs": 3, "evaluations": 1, "batch_size": 8, "micro_batch_size": 8},
        "evaluate": {"bootstrap_samples": 100},
        "output": {"cache": str(cache)},
    }
    return with_values(tree, {key.replace("__", "."): value for key, value in values.items()})


def conversations(count: int = 90, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows whose answers tell the colour of what was asked for."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        colour, thing = draw.choice(COLOURS), draw.choice(THINGS)
        asked = f"{' '.join(draw.choices(EXTRA, k=draw.randint(4, 7)))} the {thing} is {colour}"
        rows.append({"prompt": asked, "response": f"{colour} {thing}"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path
