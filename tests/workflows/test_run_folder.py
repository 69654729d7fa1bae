"""What a run folder promises: the test split opened once, counts that add up, figures that can be recomputed."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import PEFT_WARNING, events, plan, read, reviews, table, tuned, with_values, write_csv
from sklearn import metrics

from finesmith.errors import FinesmithError
from finesmith.recipe import flatten, load, to_dict
from finesmith.report import page

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

SPLITS = ("train", "validation", "test")
RUNS = ("full", "lora", "features", "regression", "multi-label")
BASELINES = ["majority", "tfidf", "features", "zero_shot"]


class Runs:
    """One run of every kind, made when first asked for."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.done: dict[str, Path] = {}
        draw = random.Random(0)
        faults = [("", "positive"), ("a film without a label", ""), *reviews(90, seed=1)[:3]]
        write_csv(folder / "classes.csv", [*reviews(90, seed=1), *faults])
        stars = [(t, draw.choice([4, 5]) if y == "positive" else draw.choice([1, 2])) for t, y in reviews(90, seed=2)]
        write_csv(folder / "stars.csv", stars)
        topics = [(t, y + draw.choice(["", ";plot", ";music"])) for t, y in reviews(90, seed=3)]
        write_csv(folder / "topics.csv", topics)

    def __getitem__(self, kind: str) -> Path:
        if kind not in self.done:
            data = {"regression": "stars.csv", "multi-label": "topics.csv"}.get(kind, "classes.csv")
            tree = plan(self.folder / data, self.model, self.folder / "cache", evaluate__baselines=BASELINES)
            if kind in {"regression", "multi-label"}:
                tree["task"] = kind
            if kind == "features":
                tree |= {"method": {"name": "features"}, "train": {}, "model": {"base": str(self.model)}}
            if kind == "lora":
                tree = with_values(tree, {"method.name": "lora", "train.learning_rate": 1e-2})
            self.done[kind] = tuned(tree, self.folder / kind)
        return self.done[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("run-folder"), tiny_model)


@pytest.mark.parametrize("kind", RUNS)
def test_test_split_is_opened_once_and_after_all_else(kind: str, runs: Runs) -> None:
    names = [event["event"] for event in events(runs[kind])]
    assert names.count("test_opened") == 1
    opened = names.index("test_opened")
    learning = {"step", "evaluation", "best", "checkpoint", "baseline", "trained", "lr_range", "early_stop"}
    assert learning.isdisjoint(names[opened:])
    assert events(runs[kind], "test_opened")[0]["examples"] == len(table(runs[kind] / "predictions/test.parquet")["id"])


@pytest.mark.parametrize("kind", RUNS)
def test_counts_add_up_from_the_file_to_the_batches(kind: str, runs: Runs) -> None:
    folder, data = runs[kind], read(runs[kind], "data.json")
    flow = {stage["stage"]: stage["rows"] for stage in data["flow"]}
    dropped = sum(rows for stage, rows in flow.items() if stage.startswith("dropped"))
    read_rows = sum(source["rows"] for source in data["sources"])
    assert flow["read"] == read_rows
    assert read_rows + dropped == sum(flow[split] for split in SPLITS)
    if kind == "full":
        assert dropped == -5, "an empty text, a missing label and three copies were planted"
    where = table(folder / "splits.parquet")
    counted = Counter(where["split"])
    assert {split: counted[split] for split in SPLITS} == {split: flow[split] for split in SPLITS}
    assert counted["dropped"] == -dropped
    for split in SPLITS:
        ids = [i for i, name in zip(where["id"], where["split"], strict=True) if name == split]
        assert table(folder / "predictions" / f"{split}.parquet")["id"] == ids
    steps = events(folder, "step")
    if kind != "features":
        assert sum(event["examples"] for event in steps if event["epoch"] <= 1) == flow["train"]
        assert [event["step"] for event in steps] == list(range(1, steps[0]["total"] + 1))


@pytest.mark.parametrize("kind", RUNS)
def test_every_number_of_the_verdict_stands_in_the_scores(kind: str, runs: Runs) -> None:
    verdict, scores, baselines = (read(runs[kind], f"{name}.json") for name in ("verdict", "scores", "baselines"))
    metric = verdict["metric"]
    assert _standing(verdict["tuned"]) == _scored(scores["test"][metric])
    by_name = {baseline["name"]: baseline for baseline in baselines}
    for baseline in verdict["baselines"]:
        found = by_name.pop(baseline["name"])
        assert _standing(baseline) == _scored(found["scores"]["test"].get(metric))
    assert all(baseline["skipped"] for baseline in by_name.values()), "only what was skipped is not in the verdict"
    against = next(b for b in verdict["baselines"] if b["name"] == verdict["gain"]["against"])
    sign = -1 if metric in {"rmse", "mae", "log_loss"} else 1
    assert verdict["gain"]["value"] == pytest.approx(sign * (verdict["tuned"]["value"] - against["value"]), abs=1e-12)
    assert verdict["overfitting"]["train"] == scores["train"][metric]["value"]
    assert verdict["overfitting"]["validation"] == scores["validation"][metric]["value"]
    assert verdict["test_size"] == len(table(runs[kind] / "predictions/test.parquet")["id"])


def _standing(model: Mapping[str, Any]) -> Any:
    # Both are computed from the same resamples, but for one metric and for all at once, which rounds differently.
    return pytest.approx([model["value"], *(model["interval"] or [None, None])], rel=1e-12, abs=1e-14)


def _scored(score: Mapping[str, Any] | None) -> list[float | None]:
    return [None] * 3 if score is None else [score["value"], score["low"], score["high"]]


@pytest.mark.parametrize("kind", ["full", "lora", "features"])
@pytest.mark.parametrize("split", SPLITS)
def test_scores_are_recomputed_from_the_predictions(kind: str, split: str, runs: Runs) -> None:
    found, rows = read(runs[kind], "scores.json")[split], table(runs[kind] / "predictions" / f"{split}.parquet")
    said = {name: score["value"] for name, score in found.items() if score is not None}
    names = read(runs[kind], "data.json")["labels"]
    odds = np.array([[row[name] for name in names] if isinstance(row, dict) else row for row in rows["probabilities"]])
    assert rows["prediction"] == [names[i] for i in odds.argmax(1)]
    assert rows["confidence"] == pytest.approx(odds.max(1))
    assert said["accuracy"] == pytest.approx(metrics.accuracy_score(rows["label"], rows["prediction"]))
    assert said["macro_f1"] == pytest.approx(metrics.f1_score(rows["label"], rows["prediction"], average="macro"))
    assert said["mcc"] == pytest.approx(metrics.matthews_corrcoef(rows["label"], rows["prediction"]))
    assert said["auroc"] == pytest.approx(metrics.roc_auc_score([y == names[1] for y in rows["label"]], odds[:, 1]))
    assert said["log_loss"] == pytest.approx(metrics.log_loss(rows["label"], odds, labels=names))


@pytest.mark.parametrize("split", SPLITS)
def test_regression_scores_are_recomputed_from_the_predictions(split: str, runs: Runs) -> None:
    folder = runs["regression"]
    found, rows = read(folder, "scores.json")[split], table(folder / "predictions" / f"{split}.parquet")
    true, said = np.array(rows["label"], float), np.array(rows["prediction"], float)
    assert found["rmse"]["value"] == pytest.approx(metrics.root_mean_squared_error(true, said))
    assert found["mae"]["value"] == pytest.approx(metrics.mean_absolute_error(true, said))
    assert found["r2"]["value"] == pytest.approx(metrics.r2_score(true, said))


@pytest.mark.parametrize("kind", RUNS)
def test_saved_model_is_the_evaluated_one(kind: str, runs: Runs) -> None:
    gap = read(runs[kind], "model.json")["reload_gap"]
    assert 0 <= gap < 1e-5
    assert events(runs[kind], "saved")[0]["reload_gap"] == gap


@pytest.mark.parametrize("kind", ["full", "features"])
def test_next_recipe_loads_and_runs(kind: str, runs: Runs, tmp_path: Path) -> None:
    given, following = load(runs[kind] / "recipe.yaml"), load(runs[kind] / "next-recipe.yaml")
    here, there = flatten(given), flatten(following)
    changed = {key for key in there if here.get(key) != there[key]} - {"train.micro_batch_size"}
    advised = next(a["changes"] for a in read(runs[kind], "next.json")["advice"] if a["changes"])
    assert changed == set(advised), "the next recipe is this one with the first advice, and nothing else"
    folder = tuned(to_dict(following), tmp_path / "next")
    assert read(folder, "run.json")["state"] == "finished"


def test_report_is_built_from_a_copy_that_was_moved_elsewhere(runs: Runs, tmp_path: Path) -> None:
    whole = page.build(runs["full"]).read_text("utf-8")
    copied = tmp_path / "elsewhere" / runs["full"].name
    shutil.copytree(runs["full"], copied)
    (copied / "report.html").unlink()
    assert page.build(copied).read_text("utf-8") == whole


@pytest.mark.parametrize("stage", ["data", "model", "baselines", "training", "evaluation", "saving"])
def test_report_is_built_from_a_run_that_stopped_at_any_stage(stage: str, runs: Runs, tmp_path: Path) -> None:
    """Stop a real run when it enters the stage, by an interruption that leaves the folder as it is then."""
    from finesmith.recipe import from_dict
    from finesmith.workflows.tune import tune

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "stage" and event["name"] == stage:
            raise KeyboardInterrupt

    tree = plan(runs.folder / "classes.csv", runs.model, runs.folder / "cache")
    with pytest.raises(KeyboardInterrupt):
        tune(from_dict(tree), out=str(tmp_path / "run"), listeners=[stop])
    text = page.build(tmp_path / "run").read_text("utf-8")
    assert "interrupted" in text.lower()
    assert ("verdict.json" in {p.name for p in (tmp_path / "run").iterdir()}) == (stage == "saving")


def test_metric_without_a_value_on_validation_stops_with_one_message(runs: Runs, tmp_path: Path) -> None:
    """Validation of one class has no AUROC; this ended as a KeyError."""
    rows = [(t, y, "train" if i < 60 else "test") for i, (t, y) in enumerate(reviews(80, seed=1))]
    rows += [(t, y, "validation") for t, y in reviews(30, seed=4) if y == "positive"]
    data = write_csv(tmp_path / "d.csv", rows, ("text", "label", "part"))
    tree = plan(data, runs.model, runs.folder / "cache", data__split="part", evaluate__metric="auroc")
    with pytest.raises(FinesmithError, match=r"auroc.*undefined.*validation"):
        tuned(tree, tmp_path / "run")


def test_training_seconds_are_counted_once_where_it_stopped_early(runs: Runs, tmp_path: Path) -> None:
    """Seconds of a run that stopped early were counted twice."""
    tree = with_values(
        plan(runs.folder / "classes.csv", runs.model, runs.folder / "cache"),
        {"train.learning_rate": 0.5, "train.epochs": 6, "guards.patience": 1, "guards.preflight": "tell"},
    )
    folder = tuned(tree, tmp_path / "run")
    assert events(folder, "early_stop")
    stamps = {e["event"]: e["time"] for e in events(folder) if e["event"] == "trained"}
    began = next(e["time"] for e in events(folder, "stage") if e["name"] == "training")
    from datetime import datetime

    wall = (datetime.fromisoformat(stamps["trained"]) - datetime.fromisoformat(began)).total_seconds()
    seconds = read(folder, "verdict.json")["tuned"]["seconds"]
    assert math.isclose(seconds, wall, rel_tol=0.1, abs_tol=0.05)


def test_every_json_file_is_valid_json_without_nan(runs: Runs) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in runs["full"].rglob("*.json"):
        json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_advice_puts_back_what_it_leaves_without_effect() -> None:
    """Advice to leave LoRA was dropped when the recipe set options of the adapter."""
    from finesmith.recipe import from_dict
    from finesmith.workflows.compare import _changed

    lora = from_dict({"data": {"train": "d.csv"}, "method": {"name": "lora", "lora": {"r": 4}}})
    changed = _changed(lora, {"method.name": "full"})
    assert changed is not None
    assert flatten(changed) == flatten(from_dict({"data": {"train": "d.csv"}}))
    given = from_dict({"data": {"train": "d.csv", "test": "t.csv"}})
    assert _changed(given, {"data.test_fraction": 0.3}) is None, "advice that cannot be followed is not given"
