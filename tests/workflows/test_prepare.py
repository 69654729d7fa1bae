"""Every row is accounted for, from the files to the batches, however the splits are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from finesmith.errors import DataError, RunError
from finesmith.recipe import from_dict
from finesmith.run import Run
from finesmith.workflows.prepare import Prepared, prepare, tell_findings
from finesmith.workflows.rows import is_blank
from terminal import read_json, reviews, write_csv

ROWS = reviews(120)


@pytest.fixture
def prepared(tiny_model: Path, tmp_path: Path) -> Any:
    """Return a call that prepares data by a recipe's data section and checks that all counts agree."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def call(name: str = "run", **data: Any) -> tuple[Prepared, dict[str, str]]:
        task = data.pop("task", "auto")
        run = Run.create(tmp_path / name, command="test")
        try:
            found, rest = prepare(from_dict({"task": task, "data": data}), run, tokenizer, longest=64)
            tell_findings(run, found.findings, rest())
        finally:
            run.close()
        return found, check_counts(found, run.folder)

    return call


def check_counts(found: Prepared, folder: Path) -> dict[str, str]:
    """Assert that every file tells the same story; return the split of each row by its place."""
    summary = read_json(folder / "data.json")
    flow = {stage["stage"]: stage["rows"] for stage in summary["flow"]}
    read = sum(origin["rows"] for origin in summary["sources"])
    dropped = sum(rows for stage, rows in flow.items() if stage.startswith("dropped"))
    sizes = {split: flow[split] for split in ("train", "validation", "test")}
    assert flow["read"] == read
    assert read + dropped == sum(sizes.values()) == len(found.examples)
    table = pq.read_table(folder / "splits.parquet").to_pydict()
    assert table["id"] == list(range(read))
    assert len(set(table["where"])) == read, "each row has a place of its own"
    assert list(found.where) == table["where"]
    counted = Counter(table["split"])
    assert counted.pop("dropped", 0) == -dropped
    assert counted == sizes
    positions = np.concatenate([found.positions[split] for split in ("train", "validation", "test")])
    assert sorted(positions) == list(range(len(found.examples))), "no row is in two splits or in none"
    for split in ("train", "validation"):
        assert len(found.targets[split]) == sizes[split] == summary["splits"][split]["rows"]  # type: ignore[index]
    assert found.test.size == sizes["test"]
    if summary["task"] == "classification":
        for split, size in sizes.items():
            assert sum(summary["splits"][split]["labels"].values()) == size
    for split, at in found.positions.items():
        assert {table["split"][i] for i in found.examples.ids[at]} <= {split}
    return dict(zip(table["where"], table["split"], strict=True))


def split_of(splits: dict[str, str], file: str) -> list[str]:
    """Return the splits of a file's rows in their order."""
    return [split for where, split in splits.items() if f"{file} " in where]


def test_one_file_is_split(prepared: Any, tmp_path: Path) -> None:
    found, splits = prepared(train=str(write_csv(tmp_path / "a.csv", ROWS)))
    assert Counter(splits.values()) == {"train": 84, "validation": 18, "test": 18}
    assert all(n == 9 for n in read_json(tmp_path / "run/data.json")["splits"]["test"]["labels"].values())
    assert found.why["data.label"].startswith("column 'label' is named like a label")


def test_several_files_are_one(prepared: Any, tmp_path: Path) -> None:
    files = [str(write_csv(tmp_path / f"{i}.csv", ROWS[i * 40 : i * 40 + 40])) for i in range(3)]
    found, splits = prepared(train=files)
    whole, _ = prepared("whole", train=str(write_csv(tmp_path / "whole.csv", ROWS)))
    assert [origin["rows"] for origin in found.summary["sources"]] == [40, 40, 40]
    assert found.examples.texts == whole.examples.texts
    assert all((found.positions[s] == whole.positions[s]).all() for s in found.positions)
    assert split_of(splits, "1.csv")


def given(tmp_path: Path) -> dict[str, str]:
    parts = {"train": ROWS[:80], "validation": ROWS[80:100], "test": ROWS[100:]}
    return {split: str(write_csv(tmp_path / f"{split}.csv", rows)) for split, rows in parts.items()}


@pytest.mark.parametrize("named", [["validation", "test"], ["test"], ["validation"]])
def test_given_files_are_respected(named: Sequence[str], prepared: Any, tmp_path: Path) -> None:
    files = given(tmp_path)
    _, splits = prepared(train=files["train"], **{split: files[split] for split in named})
    for split in named:
        assert set(split_of(splits, f"{split}.csv")) == {split}
    rest = {"train", *({"validation", "test"} - set(named))}
    assert set(split_of(splits, "train.csv")) == rest


def test_a_folder_of_split_files(prepared: Any, tmp_path: Path) -> None:
    given(tmp_path / "folder")
    _, splits = prepared(train=str(tmp_path / "folder"))
    assert Counter(splits.values()) == {"train": 80, "validation": 20, "test": 20}


def test_a_folder_of_classes(prepared: Any, tmp_path: Path) -> None:
    for label in ("pos", "neg"):
        path = tmp_path / "classes" / f"{label}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(text for text, each in ROWS if each == label), "utf-8")
    found, _ = prepared(train=str(tmp_path / "classes"))
    assert found.task.head.labels == ("neg", "pos")
    assert found.summary["flow"][0]["rows"] == 120


@pytest.mark.parametrize("words", [("train", "validation", "test"), ("Training", "dev", "TEST")])
def test_a_split_column_is_respected(words: Sequence[str], prepared: Any, tmp_path: Path) -> None:
    names = [words[0] if i < 70 else words[1] if i < 95 else words[2] for i in range(120)]
    rows = [(t, y, name) for (t, y), name in zip(ROWS, names, strict=True)]
    _, splits = prepared(train=str(write_csv(tmp_path / "s.csv", rows, "text,label,split")))
    assert list(splits.values()) == ["train"] * 70 + ["validation"] * 25 + ["test"] * 25


def test_a_split_column_without_validation_takes_it_from_train(prepared: Any, tmp_path: Path) -> None:
    rows = [(t, y, "train" if i < 90 else "test") for i, (t, y) in enumerate(ROWS)]
    _, splits = prepared(train=str(write_csv(tmp_path / "s.csv", rows, "text,label,split")))
    assert list(splits.values())[90:] == ["test"] * 30
    assert set(list(splits.values())[:90]) == {"train", "validation"}


def test_a_group_stays_in_one_split(prepared: Any, tmp_path: Path) -> None:
    rows = [(t, y, f"c{i // 6}") for i, (t, y) in enumerate(ROWS)]
    file = str(write_csv(tmp_path / "g.csv", rows, "text,label,customer"))
    found, splits = prepared(train=file, group="customer")
    homes: dict[str, set[str]] = {}
    for (_, _, group), split in zip(rows, splits.values(), strict=True):
        homes.setdefault(group, set()).add(split)
    assert all(len(home) == 1 for home in homes.values())
    assert found.summary["columns"]["group"] == "customer"


def test_rows_without_a_group_are_groups_of_their_own(prepared: Any, tmp_path: Path) -> None:
    rows = [(t, y, "" if i % 2 else f"c{i // 6}") for i, (t, y) in enumerate(ROWS)]
    parts = [str(write_csv(tmp_path / f"{i}.csv", rows[i * 60 : i * 60 + 60], "text,label,customer")) for i in (0, 1)]
    found, _ = prepared(train=parts, group="customer")
    blank = [group for group in found.examples.groups or () if ".csv row" in group]
    assert len(set(blank)) == len(blank) == 60


def test_what_is_dropped_is_counted_by_reason(prepared: Any, tmp_path: Path) -> None:
    rows = [*ROWS, ("", "pos"), ("  ", "neg"), ("a new text", ""), ("another new text", "NaN"), ROWS[0], ROWS[0]]
    found, splits = prepared(train=str(write_csv(tmp_path / "d.csv", rows)))
    flow = {stage["stage"]: stage["rows"] for stage in found.summary["flow"]}
    assert flow["dropped: empty"] == -2
    assert flow["dropped: missing_labels"] == -2
    assert flow["dropped: exact_duplicates"] == -2
    assert list(splits.values())[120:] == ["dropped"] * 6


def test_copies_between_given_splits_are_dropped_from_train(prepared: Any, tmp_path: Path) -> None:
    train = str(write_csv(tmp_path / "train.csv", ROWS[:100]))
    test = str(write_csv(tmp_path / "test.csv", ROWS[95:]))
    found, splits = prepared(train=train, test=test)
    assert split_of(splits, "train.csv")[95:] == ["dropped"] * 5
    assert {"stage": "dropped: leakage", "rows": -5} in found.summary["flow"]


@pytest.mark.parametrize("action", ["keep", "drop"])
def test_a_group_in_two_given_splits_is_told(action: str, prepared: Any, tmp_path: Path) -> None:
    rows = [(t, y, f"c{i // 6}") for i, (t, y) in enumerate(ROWS)]
    header = "text,label,customer"
    train = str(write_csv(tmp_path / "train.csv", rows[:100], header))
    test = str(write_csv(tmp_path / "test.csv", rows[100:], header))
    found, splits = prepared(train=train, test=test, group="customer", audit={"group_leakage": action})
    leak = next(one for one in found.findings if one.kind == "group_leakage")
    assert (leak.ids, leak.severity) == ((96, 97, 98, 99), "error")
    assert leak.details["ways"] == {"train to test": 4}
    assert (set(split_of(splits, "train.csv")[96:]) == {"dropped"}) == (action == "drop")


def test_the_audit_sees_labels_as_the_task_reads_them(prepared: Any, tmp_path: Path) -> None:
    blanks = [(t, f"{y} " if i % 5 == 0 else y) for i, (t, y) in enumerate(ROWS)]
    found, _ = prepared(train=str(write_csv(tmp_path / "a.csv", [*blanks, (ROWS[0][0], "neg")])))
    kinds = {one.kind: one for one in found.findings}
    assert "conflicting_labels" not in kinds
    assert "imbalance" not in kinds
    assert len(kinds["exact_duplicates"].ids) == 1
    assert "one of 2 labels" in found.why["task"]


def test_the_audit_sees_lists_of_labels(prepared: Any, tmp_path: Path) -> None:
    draw = ["refund|card", "card|late", "late", "card", "refund | late", ""]
    rows = [(t, draw[i % 6]) for i, (t, _) in enumerate(ROWS)]
    file = str(write_csv(tmp_path / "m.csv", [*rows, (ROWS[0][0], "card|refund")]))
    run, _ = prepared(train=file, task="multi-label", separator="|")
    kinds = {one.kind: one for one in run.findings}
    assert "conflicting_labels" not in kinds
    assert len(kinds["exact_duplicates"].ids) == 1
    assert "small_classes" not in kinds
    assert run.task.head.labels == ("card", "late", "refund")


def test_lists_in_brackets_are_labels(prepared: Any, tmp_path: Path) -> None:
    draw = ["['card']", "\"['card', 'late']\"", "[]", "['late']"]
    file = str(write_csv(tmp_path / "b.csv", [(t, draw[i % 4]) for i, (t, _) in enumerate(ROWS)]))
    found, _ = prepared(train=file)
    assert found.task.name == "multi-label"
    assert found.task.head.labels == ("card", "late")
    assert len(found.examples) == 120


def test_decimal_commas_make_a_regression(prepared: Any, tmp_path: Path) -> None:
    stars = ["1", "1,5", "2", "2,5"]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(["text;rating", *(f"{t};{stars[i % 4]}" for i, (t, _) in enumerate(ROWS))]), "utf-8")
    found, _ = prepared(train=str(path))
    assert found.task.name == "regression"
    assert set(found.targets["train"]) == {1.0, 1.5, 2.0, 2.5}
    lists, _ = prepared("lists", train=str(path), separator=",", task="multi-label")
    assert lists.task.head.labels == ("1", "2", "5")


def test_numbers_that_cannot_be_read_are_refused_when_many(prepared: Any, tmp_path: Path) -> None:
    rows = [(t, "n.a." if i % 5 < 2 else i % 7) for i, (t, _) in enumerate(ROWS)]
    file = str(write_csv(tmp_path / "n.csv", rows))
    with pytest.raises(
        DataError, match=r"n.csv: 48 labels in column 'label' are not numbers, such as those at .*row 1"
    ) as refused:
        prepared(train=file, task="regression")
    assert "n.a." not in str(refused.value), "a cell that is no number may hold anything: it is not for run.json"
    assert refused.value.quote.startswith("'n.a.'")
    few = [(t, "n.a." if i < 4 else i % 7) for i, (t, _) in enumerate(ROWS)]
    found, _ = prepared("few", train=str(write_csv(tmp_path / "few.csv", few)), task="regression")
    assert len(found.examples) == 116


def test_max_rows_counts_what_was_read(prepared: Any, tmp_path: Path) -> None:
    _, splits = prepared(train=str(write_csv(tmp_path / "a.csv", ROWS)), max_rows=60)
    assert len(splits) == 60


def test_the_test_labels_open_once(prepared: Any, tmp_path: Path) -> None:
    found, _ = prepared(train=str(write_csv(tmp_path / "a.csv", ROWS)))
    assert "test" not in found.targets
    run = Run.create(tmp_path / "other", command="test")
    try:
        assert len(found.test.open(run)) == 18
        with pytest.raises(RunError, match="opened before"):
            found.test.open(run)
    finally:
        run.close()


def test_a_file_whose_training_rows_all_leak(prepared: Any, tmp_path: Path) -> None:
    files = given(tmp_path)
    copies = str(write_csv(tmp_path / "copies.csv", ROWS[:80]))
    with pytest.raises(DataError, match=r"train.csv: .*(train 0|at least 8)"):
        prepared(train=files["train"], validation=files["validation"], test=copies)


@pytest.mark.parametrize("value", [None, "", "  ", "NaN", "nan", "<NA>", "#N/A", "NULL", float("nan")])
def test_blank_labels(value: Any) -> None:
    assert is_blank(value)


@pytest.mark.parametrize("value", ["none", "NA", "n/a", "0", 0, False, [], ["a"], "nano"])
def test_labels_that_only_look_blank(value: Any) -> None:
    assert not is_blank(value)
