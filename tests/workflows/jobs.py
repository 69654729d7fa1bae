"""Small jobs for the tests of the main story: data, recipes, runs, and what a run folder records apart from times."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import WORDS

GOOD, BAD = ("good", "great", "fun", "warm", "clever"), ("bad", "awful", "dull", "cold", "boring")
PLAIN = tuple(word for word in WORDS if word not in (*GOOD, *BAD))


def reviews(count: int = 100, *, seed: int = 0, words: int = 8) -> list[tuple[str, str]]:
    """Return texts with a label that their words tell, mostly."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        good = i % 2 == 1
        said = good if draw.random() < 0.9 else not good
        text = [*draw.choices(PLAIN, k=draw.randint(words // 2, words)), *draw.sample(GOOD if said else BAD, 2)]
        draw.shuffle(text)
        rows.append((" ".join(text), "positive" if good else "negative"))
    return rows


def write_csv(path: Path, rows: Iterable[Sequence[Any]], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def plan(data: Path | str, model: Path | str, cache: Path | str, **values: Any) -> dict[str, Any]:
    """Return a recipe, as plain values, that runs in a second; `values` are dotted keys with __ for the dot."""
    tree: dict[str, Any] = {
        "data": {"train": str(data), "text": "text", "label": "label"},
        "model": {"base": str(model), "dropout": 0.1},
        "train": {"learning_rate": 3e-3, "epochs": 1, "evaluations": 2, "batch_size": 8, "micro_batch_size": 8},
        "evaluate": {"baselines": ["majority"], "bootstrap_samples": 100},
        "output": {"cache": str(cache)},
    }
    return with_values(tree, {key.replace("__", "."): value for key, value in values.items()})


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with these values under dotted keys; None for a whole section removes it."""
    result = copy.deepcopy(dict(tree))
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is REMOVED:
            inner.pop(last, None)
        else:
            inner[last] = value
    return result


REMOVED = object()
# peft 0.19 reads a name that transformers 5.23 has renamed, and takes the biases of LoRA for matrices.
PEFT_WARNING = "ignore:.*(is_gradient_checkpointing|have invalid shape)"


def tuned(tree: Mapping[str, Any], out: Path) -> Path:
    """Run a recipe; return its folder."""
    from finesmith.recipe import from_dict
    from finesmith.workflows.tune import tune

    return tune(from_dict(tree), out=str(out), command="finesmith tune")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the events of these kinds (of all, where none is named), in order."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if not kinds or line["event"] in kinds]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pydict()  # type: ignore[no-any-return]


# How long things took, and what depends on that or on the memory that happened to be free.
TIMED = {"time", "seconds", "started", "finished", "resumed", "memory_free", "free", "fits"}
CHEAPER = re.compile(r"(; [^;]* is| and) [\d.,]+ times cheaper")
CACHE_NOTES = ("tokens taken", "texts tokenised", "embeddings taken", "embeddings computed", "the cache cannot keep")


def timeless(value: Any) -> Any:
    """Return plain values without anything that a clock decided."""
    if isinstance(value, Mapping):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMED}
    if isinstance(value, list):
        return [timeless(inner) for inner in value if not _is_cache_note(inner)]
    return CHEAPER.sub("", value) if isinstance(value, str) else value


def _is_cache_note(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("message", "")).startswith(CACHE_NOTES)


def recorded(folder: Path) -> dict[str, Any]:
    """Return what a run folder records, file by file, without times, the recipe, and pages made from the rest."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith(".") or name in ECHOES or path.name in {"manifest.json"}:
            continue
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text("utf-8")))
        elif path.suffix == ".jsonl":
            found[name] = timeless(events(folder))
        elif path.suffix == ".parquet":
            found[name] = table(path)
        else:
            found[name] = sha256(path)
    run = found.get("run.json")
    if run is not None:
        found["run.json"] = {key: value for key, value in run.items() if key in {"state", "error", "task"}}
    for name in [name for name in found if name.startswith("checkpoints/") and name.endswith("state.json")]:
        found[name].pop("events", None)
    return found


# Copies of the recipe, and pages made from the other files.
ECHOES = {"recipe.yaml", "next-recipe.yaml", "next.json", "report.html", "model/README.md"}


def differences(one: Path, other: Path) -> list[str]:
    """Name the recorded files that differ between two run folders, or are in one of them only."""
    here, there = recorded(one), recorded(other)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
