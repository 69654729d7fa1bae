"""The same recipe on the same data gives the same bits; what should not matter does not, and the seed does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, differences, events, plan, read, reviews, table, tuned, write_csv

from finesmith.recipe import flatten, load, to_dict

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

METHODS: dict[str, dict[str, Any]] = {
    "full": {"evaluate__baselines": ["majority", "tfidf", "features"]},
    "lora": {"method__name": "lora", "train__learning_rate": 1e-2, "method__lora": {"r": 4, "lora_dropout": 0.1}},
    "head_then_full": {"method__name": "head_then_full"},
}


class Jobs:
    """Runs of one data set, made when first asked for."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.data = write_csv(folder / "reviews.csv", reviews(90, seed=1))
        self.first: dict[str, Path] = {}

    def tree(self, cache: str = "cache", data: Path | None = None, **values: Any) -> dict[str, Any]:
        return plan(data or self.data, self.model, self.folder / cache, **values)

    def run(self, method: str) -> Path:
        if method not in self.first:
            self.first[method] = tuned(self.tree(**METHODS[method]), self.folder / f"first-{method}")
        return self.first[method]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("same-bits"), tiny_model)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_equal_in_every_file(method: str, jobs: Jobs, tmp_path: Path) -> None:
    first, second = jobs.run(method), tuned(jobs.tree(**METHODS[method]), tmp_path / "second")
    assert differences(first, second) == []
    for page in ("recipe.yaml", "next-recipe.yaml"):
        here, there = ((folder / page).read_text("utf-8").splitlines()[1:] for folder in (first, second))
        assert here == there
    listed = [{p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (first, second)]
    assert listed[0] == listed[1]


@pytest.mark.parametrize("method", METHODS)
def test_resolved_recipe_reruns_the_same_run(method: str, jobs: Jobs, tmp_path: Path) -> None:
    first = jobs.run(method)
    resolved = load(first / "recipe.yaml")
    second = tuned(to_dict(resolved), tmp_path / "second")
    # Why a column was chosen is now "named in the recipe", which the notes and data.json say.
    assert set(differences(first, second)) <= {"data.json", "events.jsonl"}
    assert _numbers(first) == _numbers(second)
    assert flatten(load(second / "recipe.yaml")) == flatten(resolved)


def _numbers(folder: Path) -> list[dict[str, Any]]:
    kinds = ("step", "evaluation", "best", "baseline", "trained", "saved")
    return [{k: v for k, v in e.items() if k not in {"time", "seconds"}} for e in events(folder, *kinds)]


def test_inferred_values_rerun_the_same_run(jobs: Jobs, tmp_path: Path) -> None:
    open_settings = {
        f"train__{key}": None for key in ("learning_rate", "epochs", "evaluations", "micro_batch_size")
    } | {"data__text": None, "data__label": None, "train__batch_size": 32}
    first = tuned(jobs.tree(**open_settings), tmp_path / "first")
    second = tuned(to_dict(load(first / "recipe.yaml")), tmp_path / "second")
    assert set(differences(first, second)) <= {"data.json", "events.jsonl"}
    assert _numbers(first) == _numbers(second)
    written = (first / "recipe.yaml").read_text("utf-8")
    for key in ("text", "label", "learning_rate", "epochs", "micro_batch_size", "max_length", "metric"):
        assert any(line.strip().startswith(f"{key}: ") and "# inferred: " in line for line in written.splitlines()), key


def test_another_seed_gives_other_weights_on_the_same_split(jobs: Jobs, tmp_path: Path) -> None:
    first = jobs.run("full")
    second = tuned(jobs.tree(**METHODS["full"], train__seed=1), tmp_path / "second")
    changed = differences(first, second)
    assert "model/model.safetensors" in changed
    assert "events.jsonl" in changed
    assert "splits.parquet" not in changed


def test_order_of_rows_does_not_decide_their_split(jobs: Jobs, tmp_path: Path) -> None:
    rows = reviews(90, seed=1)
    random.Random(0).shuffle(rows)
    shuffled = write_csv(tmp_path / "shuffled.csv", rows)
    second = tuned(jobs.tree(data=shuffled), tmp_path / "second")
    assert differences(jobs.run("full"), second) != []
    for split in ("train", "validation", "test"):
        here, there = (table(f / "predictions" / f"{split}.parquet")["text"] for f in (jobs.run("full"), second))
        assert sorted(here) == sorted(there)


def test_added_rows_leave_the_others_where_they_were(jobs: Jobs, tmp_path: Path) -> None:
    longer = write_csv(tmp_path / "longer.csv", [*reviews(90, seed=1), *reviews(30, seed=8)])
    second = tuned(jobs.tree(data=longer), tmp_path / "second")
    before = {text: split for split in ("train", "validation", "test")
              for text in table(jobs.run("full") / "predictions" / f"{split}.parquet")["text"]}  # fmt: skip
    after = {text: split for split in ("train", "validation", "test")
             for text in table(second / "predictions" / f"{split}.parquet")["text"]}  # fmt: skip
    moved = [text for text, split in before.items() if after[text] != split]
    assert len(moved) <= 0.15 * len(before), "only rows at the border of a split may move when its share is kept"


@pytest.mark.parametrize("method", ["full", "features"])
def test_cache_changes_nothing_and_says_when_it_served(
    method: str, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = jobs.tree("fresh-" + method, evaluate__baselines=["majority"])
    if method == "features":
        tree |= {"method": {"name": "features"}, "train": {}, "model": {"base": str(jobs.model)}}
    first = tuned(tree, tmp_path / "first")
    second = tuned(tree, tmp_path / "second")
    third = tuned({**tree, "output": {"cache": "none"}}, tmp_path / "third")
    assert differences(first, second) == []
    assert differences(first, third) == []
    assert _served(first) == _served(third) == {"tokens": False, "embeddings": False}
    assert _served(second) == {"tokens": True, "embeddings": method == "features"}


def _served(folder: Path) -> dict[str, bool]:
    notes = [event["message"] for event in events(folder, "note")]
    return {what: any(note == f"{what} taken from the cache" for note in notes) for what in ("tokens", "embeddings")}


def test_other_arithmetic_does_not_take_embeddings_from_the_cache(jobs: Jobs, tmp_path: Path) -> None:
    tree = jobs.tree("arithmetic") | {"method": {"name": "features"}, "train": {}, "model": {"base": str(jobs.model)}}
    tuned(tree, tmp_path / "ragged")
    padded = tuned(tree | {"model": {"base": str(jobs.model), "attention": "padded"}}, tmp_path / "padded")
    assert _served(padded) == {"tokens": True, "embeddings": False}
    assert read(padded, "model.json")["attention"]["kind"] == "padded"
