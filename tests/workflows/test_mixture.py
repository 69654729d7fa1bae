"""Several sources: drawn by weight, never split across a border, and each scored by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import differences, events, plan, read, reviews, table, tuned, with_values, write_csv
from language_jobs import language_plan, sentences, write_conll
from sklearn import metrics

from finesmith.errors import DataError, FinesmithError, RecipeError
from finesmith.recipe import from_dict
from finesmith.run import Run
from finesmith.workflows.check import check
from finesmith.workflows.tune import resume
from terminal import finesmith


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_csv(folder / "films.csv", reviews(120, seed=1))
    # A copy of another source's row, but for a word: they must fall into one split.
    near = [(f"{text} indeed", label) for text, label in reviews(120, seed=1, words=8)[:20]]
    write_csv(folder / "books.csv", [*reviews(40, seed=2), *near])
    write_csv(folder / "few.csv", reviews(12, seed=3))
    write_conll(folder / "a.conll", sentences(60))
    write_conll(folder / "b.conll", sentences(40, seed=9))
    for name, seed in (("one", 4), ("two", 5)):
        texts = [text for text, _ in reviews(80, seed=seed, words=24)]
        (folder / f"{name}.txt").write_text("\n\n".join(" ".join(texts[at : at + 2]) for at in range(0, 80, 2)))
    return folder


def mixed(data: Path, model: Path, *names: str, weights: list[float] | None = None, **values: Any) -> dict[str, Any]:
    tree = plan(data / names[0], model, data / "cache", **values)
    return with_values(tree, {"data.train": [str(data / name) for name in names], "data.weights": weights})


@pytest.fixture(scope="module")
def run(data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = mixed(data, tiny_model, "films.csv", "books.csv", "few.csv", weights=[1, 2, 1], train__epochs=3)
    return tuned(tree, tmp_path_factory.mktemp("mixed") / "run")


def source_of(run: Path) -> dict[int, int]:
    """Return each id's source, by what stands in splits.parquet."""
    rows = table(run / "splits.parquet")
    names = [row["source"] for row in read(run, "data.json")["mixture"]]
    return {
        i: next(p for p, name in enumerate(names) if where.startswith(f"{name} row "))
        for i, where in zip(rows["id"], rows["where"], strict=True)
    }


def test_batches_hold_each_source_by_its_weight(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    from finesmith.workflows.check import prepared
    from finesmith.workflows.fit import plan_of

    recipe = from_dict(mixed(data, tiny_model, "films.csv", "books.csv", "few.csv", weights=[1, 2, 1]))
    folder = Run.create(tmp_path / "run", command="test")
    ready, setup = prepared(recipe, folder)
    folder.close()
    steps = plan_of(recipe, ready, setup)
    sources, count = ready.mixture.of, len(ready.positions["train"])
    trained = set(ready.examples.ids[ready.positions["train"]].tolist())
    drawn: list[int] = []
    for epoch in range(4):
        first = epoch * steps.steps_per_epoch
        ids = [
            int(i)
            for step in range(first, first + steps.steps_per_epoch)
            for batch in steps.batches(step)[0]
            for i in batch.ids
        ]
        assert len(ids) == count, "an epoch has as many draws as without weights"
        assert set(ids) <= trained
        by_source = Counter(int(sources[i]) for i in ids)
        for place, weight in enumerate((1, 2, 1)):
            assert abs(by_source[place] - count * weight / 4) < 1
        drawn += ids
    for place in range(3):
        times = Counter(i for i in drawn if sources[i] == place)
        assert max(times.values()) - min(times.values()) <= 1
        assert set(times) == {i for i in trained if sources[i] == place}


def test_the_run_says_how_often_each_source_is_drawn(run: Path, data: Path) -> None:
    mixture = read(run, "data.json")["mixture"]
    assert [row["source"] for row in mixture] == [str(data / name) for name in ("films.csv", "books.csv", "few.csv")]
    assert [row["weight"] for row in mixture] == [1, 2, 1]
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    assert sum(row["draws"] for row in mixture) == flow["train"]
    for split in ("train", "validation", "test"):
        assert sum(row[split] for row in mixture) == flow[split]
    first = [event for event in events(run, "step") if event["epoch"] <= 1]
    assert sum(event["examples"] for event in first) == flow["train"]


def test_near_copies_in_two_sources_share_a_split(run: Path) -> None:
    rows = table(run / "splits.parquet")
    split = dict(zip(rows["id"], rows["split"], strict=True))
    # Rows 0 to 19 of the first source and the last twenty of the second are the same but for a word.
    pairs = [(i, 120 + 40 + i) for i in range(20)]
    assert [pair for pair in pairs if split[pair[0]] != split[pair[1]]] == []


def test_each_source_is_scored_by_itself(run: Path) -> None:
    scores, sources = read(run, "scores.json"), source_of(run)
    names = [row["source"] for row in read(run, "data.json")["mixture"]]
    for split in ("validation", "test"):
        rows = table(run / "predictions" / f"{split}.parquet")
        found = {row["source"]: row for row in scores["by_source"][split]}
        for place, name in enumerate(names):
            at = [k for k, i in enumerate(rows["id"]) if sources[i] == place]
            if not at:
                assert name not in found
                continue
            assert found[name]["rows"] == len(at)
            if len(at) < 10:
                assert found[name]["scores"] is None
                assert "too few rows" in found[name]["note"]
                continue
            truth, said = [rows["label"][k] for k in at], [rows["prediction"][k] for k in at]
            score = found[name]["scores"]["accuracy"]
            assert score["value"] == pytest.approx(metrics.accuracy_score(truth, said))
            assert score["low"] <= score["value"] <= score["high"]
    assert any("note" in row for split in scores["by_source"].values() for row in split), "few.csv has few rows"
    page = (run / "report.html").read_text("utf-8")
    assert "By source" in page
    assert "Draws an epoch" in page
    assert "too few rows" in page or len(scores["by_source"]["test"]) < 3


def test_without_weights_every_row_is_drawn_once_and_sources_are_still_scored(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tuned(mixed(data, tiny_model, "films.csv", "books.csv"), tmp_path / "run")
    mixture = read(folder, "data.json")["mixture"]
    assert all("draws" not in row for row in mixture)
    assert {row["source"] for row in read(folder, "scores.json")["by_source"]["test"]} == {
        str(data / "films.csv"), str(data / "books.csv"),
    }  # fmt: skip
    assert "Draws an epoch" not in (folder / "report.html").read_text("utf-8")
    single = tuned(plan(data / "films.csv", tiny_model, data / "cache"), tmp_path / "single")
    assert read(single, "data.json")["mixture"] == []
    assert "By source" not in (single / "report.html").read_text("utf-8")


def test_an_interrupted_run_draws_on_as_if_nothing_had_happened(
    run: Path, data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import training

    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    tree = mixed(data, tiny_model, "films.csv", "books.csv", "few.csv", weights=[1, 2, 1], train__epochs=3)
    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        tuned(tree, tmp_path / "again")
    monkeypatch.setattr(training, "_save", save)
    resume(str(tmp_path / "again"))
    assert differences(run, tmp_path / "again") == []


@pytest.mark.parametrize(
    ("task", "names"), [("token-classification", ("a.conll", "b.conll")), ("masked-text", ("one.txt", "two.txt"))]
)
def test_sources_of_sentences_and_documents_are_weighted_and_scored(
    task: str, names: tuple[str, str], data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from finesmith.workflows.language.fit import plan_of
    from finesmith.workflows.language.story import begin

    tree = language_plan(task, data / names[0], tiny_model, data / "cache", train__epochs=1)
    # So short that a document makes several sequences: they are what is drawn.
    values = {"data.max_length": 24} if task == "masked-text" else {}
    sources = [str(data / name) for name in names]
    tree = with_values(tree, {"data.train": sources, "data.weights": [1, 3], **values})
    recipe = from_dict(tree)
    folder = Run.create(tmp_path / "run", command="test")
    gathered, setup = begin(recipe, folder)
    folder.close()
    steps, count = plan_of(recipe, gathered, setup), len(setup.encoded["train"].rows)
    ids = [int(i) for step in range(steps.steps_per_epoch) for batch in steps.batches(step)[0] for i in batch.ids]
    drawn = Counter(gathered.places[i].split(" ")[0] for i in ids)
    assert sum(drawn.values()) == count
    assert abs(drawn[sources[1]] - count * 3 / 4) < 1
    told = {row["source"]: row["draws"] for row in gathered.summary["mixture"]}
    assert told == {name: drawn[name] for name in sources}

    run = tuned(tree, tmp_path / "whole")
    scores, metric = read(run, "scores.json"), read(run, "verdict.json")["metric"]
    found = {row["source"]: row for row in scores["by_source"]["test"]}
    assert {row["source"]: row["draws"] for row in read(run, "data.json")["mixture"]} == told
    sizes = {row["source"]: row["test"] for row in read(run, "data.json")["mixture"]}
    assert {name: row["rows"] for name, row in found.items()} == {name: size for name, size in sizes.items() if size}
    for row in found.values():
        assert (row["scores"] is None) == (row["rows"] < 10)
        if row["scores"]:
            assert row["scores"][metric]["low"] <= row["scores"][metric]["value"] <= row["scores"][metric]["high"]


def test_scores_of_a_source_are_those_of_its_rows_measured_alone() -> None:
    from dataclasses import asdict
    from types import SimpleNamespace

    from finesmith.evaluate.measurement import mean_of
    from finesmith.evaluate.paired import interval
    from finesmith.tasks.corpus import Corpus
    from finesmith.workflows.language.compare import _by_source
    from finesmith.workflows.mixture import mixture_of

    values, groups = np.arange(40) % 7 / 7, [f"g{i // 2}" for i in range(40)]
    corpus = Corpus([""] * 40, None, groups, [], [], {}, [], None)
    recipe = from_dict({"data": {"train": ["x", "y"]}, "evaluate": {"bootstrap_samples": 200}})
    ids = np.arange(40)
    data: Any = SimpleNamespace(mixture=mixture_of([(["x", "y"], [(0, 25), (1, 15)])]), ids={"test": ids})
    # One metric of all rows, one of every other row, as of answers that were written to some of them.
    answered = np.arange(0, 40, 2)
    measured = {"all": mean_of("all", values), "some": mean_of("some", values[answered])}
    found = _by_source(recipe, data, measured, corpus, answered, "test")
    assert [(row["source"], row["rows"]) for row in found] == [("x", 25), ("y", 15)]
    for row, mine in zip(found, (ids[:25], ids[25:]), strict=True):
        for name, rows in (("all", mine), ("some", np.intersect1d(mine, answered))):
            alone = interval(mean_of(name, values[rows]), [groups[i] for i in rows], 200, 0)
            assert alone is not None
            assert row["scores"][name] == asdict(alone)


@pytest.mark.parametrize(
    ("train", "weights", "said"),
    [
        ("a.csv", [2], "data.train names one source"),
        (["a.csv"], [2], "data.train names one source"),
        (["a.csv", "b.csv"], [1], "names 2 sources; expected one number for each"),
        (["a.csv", "b.csv"], [1, 2, 3], "names 2 sources; expected one number for each"),
        (["a.csv", "b.csv"], [1, 0], r"data\.weights"),
        (["a.csv", "b.csv"], [1, -2], r"data\.weights"),
        (["a.csv", "b.csv"], [1, float("nan")], r"data\.weights"),
        (["a.csv", "b.csv"], [1, float("inf")], r"data\.weights"),
        (["a.csv", "b.csv"], [1, "much"], r"data\.weights"),
        (["a.csv", "b.csv"], [1, True], r"data\.weights"),
        (["a.csv", "b.csv"], "2", r"data\.weights"),
        (["a.csv", "b.csv"], [], r"data\.weights"),
    ],
)
def test_weights_that_mean_nothing_are_refused(train: Any, weights: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        from_dict({"data": {"train": train, "weights": weights}})


def test_a_frozen_head_reads_no_weights() -> None:
    with pytest.raises(RecipeError, match=r"data\.weights.*method\.name is"):
        from_dict({"data": {"train": ["a.csv", "b.csv"], "weights": [1, 2]}, "method": {"name": "features"}})


def test_a_source_that_would_never_be_drawn_is_named(data: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match=r"few\.csv: data\.weights gives it the weight 1e-06.*raise its weight"):
        check(from_dict(mixed(data, tiny_model, "films.csv", "few.csv", weights=[1, 1e-6])))


def test_a_source_whose_rows_are_all_copies_is_named(data: Path, tiny_model: Path) -> None:
    write_csv(data / "copies.csv", reviews(120, seed=1)[:30])
    with pytest.raises(
        FinesmithError, match=r"copies\.csv: data\.weights gives it.*none of its rows can be trained on"
    ):
        check(from_dict(mixed(data, tiny_model, "films.csv", "copies.csv", weights=[1, 1])))


def test_weights_are_given_on_the_command_line(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ("--model", tiny_model, "--set", "data.weights=[3, 1]", "--set", f"output.cache={tmp_path}")
    said = finesmith("init", data / "films.csv", data / "books.csv", *words)
    assert said.status == 0, said.err
    assert "weights: [3.0, 1.0]" in said.out
    refused = finesmith("init", data / "films.csv", *words)
    assert refused.status == 2
    assert "names one source" in refused.err
