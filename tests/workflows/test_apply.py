"""A finished run on other files: in slices, equal texts once, whole or nothing, read as the recipe said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import write_csv

from finesmith.deploy.export import write_tables
from finesmith.errors import ModelError
from finesmith.workflows import apply, inference
from terminal import finesmith, refused, reviews


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tune(data: Path, model: Path, folder: Path, *settings: str) -> Path:
    words = [word for setting in ("train.epochs=1", "evaluate.baselines=[majority]", *settings)
             for word in ("--set", setting)]  # fmt: skip
    said = finesmith("tune", data, "--model", model, "--out", folder, *words, "-q")
    assert said.status == 0, said.err
    return folder


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return tune(write_csv(folder / "train.csv", reviews()), tiny_model, folder / "run")


def predicted(run: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    assert finesmith("predict", run, data, "-q", "-o", out).status == 0
    if out.suffix == ".parquet":
        return pq.read_table(out).to_pylist()  # type: ignore[no-any-return]
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return list(csv.DictReader(io.StringIO(out.read_text("utf-8"))))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_slices_give_what_the_whole_gives_in_the_order_of_the_file(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_csv(tmp_path / "d.csv", sorted(reviews(50), key=lambda row: len(row[0])))
    whole = predicted(run, data, tmp_path / f"whole.{form}")
    taken: list[int] = []
    outputs = apply.TunedModel.outputs

    def spy(self: apply.TunedModel, texts: list[str], *rest: Any) -> Any:
        taken.append(len(texts))
        return outputs(self, texts, *rest)

    monkeypatch.setattr(apply, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(apply.TunedModel, "outputs", spy)
    parts = predicted(run, data, tmp_path / f"parts.{form}")
    assert taken == [7] * 7 + [1]
    assert [row["text"] for row in parts] == [row["text"] for row in whole] == [text for text, _ in
            sorted(reviews(50), key=lambda row: len(row[0]))]  # fmt: skip
    assert [row["prediction"] for row in parts] == [row["prediction"] for row in whole]
    confidences = [np.array([float(row["confidence"]) for row in rows]) for rows in (parts, whole)]
    np.testing.assert_allclose(*confidences, atol=1e-6)


def test_equal_texts_are_answered_once_and_alike(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = apply.load_run(str(run))
    texts = [text for text, _ in reviews(9)]
    alone = model.outputs(texts)
    read: list[int] = []
    forward = inference.run

    def spy(network: Any, tokens: Any, positions: Any, *rest: Any) -> Any:
        read.append(len(positions))
        return forward(network, tokens, positions, *rest)

    monkeypatch.setattr(inference, "run", spy)
    counted: list[int] = []
    order = [3, 0, 3, 8, 8, 1, 0, 2, 3]
    found = model.outputs([texts[i] for i in order], None, counted.append)
    assert read == [5]
    assert sum(counted) == len(order)
    np.testing.assert_allclose(found, alone[order], atol=1e-6)
    assert (found[0] == found[2]).all()


def test_no_rows_are_no_fault(run: Path) -> None:
    assert len(apply.load_run(str(run)).outputs([])) == 0


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_fault_in_a_later_slice_leaves_nothing_behind(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_csv(tmp_path / "d.csv", reviews(30))
    outputs, calls = apply.TunedModel.outputs, []

    def fails(self: apply.TunedModel, *values: Any) -> Any:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise ModelError("the model's outputs are not numbers")
        return outputs(self, *values)

    monkeypatch.setattr(apply, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(apply.TunedModel, "outputs", fails)
    old = tmp_path / f"old.{form}"
    old.write_text("what was there before")
    refused("predict", run, data, "-o", old)
    assert old.read_text() == "what was there before"
    refused("predict", run, data, "-o", tmp_path / f"new.{form}")
    refused("predict", run, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.csv", old.name]
    assert len(calls) == 9


def test_types_stay_where_a_slice_has_only_empty_lists(tmp_path: Path) -> None:
    tables = [pa.table({"prediction": apply._column(lists)}) for lists in ([[], []], [["a"], []])]
    assert write_tables(iter(tables), str(tmp_path / "p.parquet")) == 4
    assert pq.read_table(tmp_path / "p.parquet").to_pydict() == {"prediction": [[], [], ["a"], []]}


def test_the_recipes_encoding_is_used_for_other_files(tiny_model: Path, tmp_path: Path) -> None:
    rows = [(f"{text} — слово", label) for text, label in reviews(60)]
    data = write_csv(tmp_path / "d.csv", rows)
    cyrillic = tmp_path / "koi.csv"
    cyrillic.write_text(data.read_text("utf-8").replace("—", "-"), "koi8-r")
    run = tune(cyrillic, tiny_model, tmp_path / "run", "data.encoding=koi8-r")
    assert all("слово" in row["text"] for row in predicted(run, cyrillic, tmp_path / "p.jsonl"))
    assert finesmith("evaluate", run, "--data", cyrillic).status == 0

    said = finesmith("predict", run, data, "--encoding", "utf-8", "-o", tmp_path / "q.jsonl", "-q")
    assert said.status == 0, said.err
    assert "— слово" in json.loads((tmp_path / "q.jsonl").read_text("utf-8").splitlines()[0])["text"]
    assert finesmith("evaluate", run, "--data", data, "--encoding", "utf-8").status == 0
    assert "--encoding" in refused("predict", run, cyrillic, "--encoding", "utf-8")


def test_labels_parted_by_commas_are_no_decimals_in_other_files(tiny_model: Path, tmp_path: Path) -> None:
    rows = [(text, ("1,2", "2,3", "1,3")[i % 3]) for i, (text, _) in enumerate(reviews(60))]
    data = write_csv(tmp_path / "d.csv", rows)
    run = tune(data, tiny_model, tmp_path / "run", "task=multi-label", "data.separator=','")
    said = finesmith("evaluate", run, "--data", data, "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["examples"] == 60
