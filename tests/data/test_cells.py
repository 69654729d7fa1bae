"""What a csv cell is taken for: decimal commas, and lists in brackets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.cells import typed
from finesmith.data.infer import profile
from finesmith.data.sources import Source, read

MARKS = [";", "\t", "|"]


def rated(tmp_path: Path, values: list[str], mark: str = ";", **settings: Any) -> Source:
    """Read texts with these ratings from a file whose fields are parted by `mark`."""
    cells = [f'"{value}"' if mark in value else value for value in values]
    rows = [f"a text about the film number {row}{mark}{cell}" for row, cell in enumerate(cells)]
    path = tmp_path / "rated.csv"
    path.write_text("\n".join([f"text{mark}rating", *rows]) + "\n", "utf-8")
    return read([str(path)], **settings)


def column_of(*cells: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, pa.string())])


@pytest.mark.parametrize("mark", MARKS)
def test_decimal_commas_are_numbers(mark: str, tmp_path: Path) -> None:
    source = rated(tmp_path, ["1", "1,5", "2", "2,5", "", "-0,25", "+3,0", "NA"] * 4, mark)
    assert source.table["rating"].to_pylist()[:8] == [1.0, 1.5, 2.0, 2.5, None, -0.25, 3.0, None]
    assert any("'rating' holds numbers with decimal commas: 1,5 is read as 1.5" in n for n in source.origins[0].notes)
    assert profile(source.table)[1].kind == "rating"


def test_all_different_decimal_commas_are_numbers_and_no_id(tmp_path: Path) -> None:
    source = rated(tmp_path, [f"{row},{row % 89:02d}" for row in range(128)])
    assert source.table["rating"].to_pylist()[127] == 127.38
    assert profile(source.table)[1].kind == "number"


def test_whole_columns_decide(tmp_path: Path) -> None:
    for values in (["1,5", "2", "3,5,1"], ["1,5", "good"], ["1", "2"], ["007,5", "1,5"], ["a", "b"]):
        source = rated(tmp_path, values * 4)
        assert not any("decimal" in note for note in source.origins[0].notes), values
        assert source.table["rating"].to_pylist()[: len(values)] in (values, [1, 2])


def test_what_may_be_thousands_is_left_and_said(tmp_path: Path) -> None:
    source = rated(tmp_path, ["1,500", "12,250", "900"] * 4)
    assert source.table["rating"].to_pylist()[0] == "1,500"
    assert any("may be 1.500 or 1500" in note for note in source.origins[0].notes)
    assert rated(tmp_path, ["1,500", "12,25", "900"] * 4).table["rating"].to_pylist()[:3] == [1.5, 12.25, 900.0]
    assert rated(tmp_path, ["0,500", "0,250", "1"] * 4).table["rating"].to_pylist()[:3] == [0.5, 0.25, 1.0]


def test_lists_of_labels_stay_where_commas_part_the_fields(tmp_path: Path) -> None:
    source = rated(tmp_path, ["1", "1,5", "2", "2,5"] * 8, ",")
    assert source.table["rating"].to_pylist()[:2] == ["1", "1,5"]
    assert any("read as lists of labels; if they are numbers" in note for note in source.origins[0].notes)
    assert profile(source.table)[1].kind == "list"
    unmistakable = rated(tmp_path, [f"{row},{row + 31}" for row in range(40)], ",")
    assert unmistakable.table["rating"].to_pylist()[1] == 1.32


def test_commas_stay_when_they_are_said_to_part_labels(tmp_path: Path) -> None:
    assert rated(tmp_path, ["1", "1,5"] * 4, commas=False).table["rating"].to_pylist()[:2] == ["1", "1,5"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (['["card", "late"]', "[]", '["late"]'], [["card", "late"], [], ["late"]]),
        (["['card', 'late']", " [ ] ", '["it\'s"]'], [["card", "late"], [], ["it's"]]),
        (["[1, 2]", "", "[3]"], [[1, 2], None, [3]]),
        (["[1, 2]", "['a']"], [["1", "2"], ["a"]]),
        (["[5.0]", "[1.0, 2]"], [[5], [1, 2]]),
    ],
)
def test_lists_in_brackets_are_lists(cells: list[str], expected: list[Any]) -> None:
    found, said = typed(column_of(*cells))
    assert found.to_pylist() == expected
    assert said is not None
    assert "lists" in said


@pytest.mark.parametrize(
    "cells",
    [
        ["[card]", "[late]"],
        ["[1, 2]", "no list"],
        ["['card' 'late']", "['card']"],
        ["[[1], [2]]", "[]"],
        ['[{"a": 1}]', "[]"],
        ["[True]", "[null]"],
        ["[0.25, 0.75]", "[1.0, 0.0]"],
        ["[NaN]", "[1]"],
        ["[" * 900 + "]" * 900],
        ["[__import__('os')]"],
        ['["' + "long " * 500 + '"]', "[]"],
    ],
)
def test_other_brackets_stay_text(cells: list[str]) -> None:
    assert typed(column_of(*cells)) == (column_of(*cells), None)


@given(st.lists(st.lists(st.text(max_size=8), max_size=4), min_size=1, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_written_lists_come_back(lists: list[list[str]], as_json: bool) -> None:
    lists = [[text.encode("utf-8", "ignore").decode() for text in one] for one in lists]
    found, _ = typed(column_of(*[json.dumps(one) if as_json else repr(one) for one in lists]))
    assert found.to_pylist() in (lists, [json.dumps(one) if as_json else repr(one) for one in lists])
    if as_json:
        assert found.to_pylist() == lists


def test_lists_of_labels_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    path.write_text("text,label\n" + 'the card came late,"[""card"", ""late""]"\nall is well,[]\n' * 10, "utf-8")
    source = read([str(path)])
    assert source.table["label"].to_pylist()[:2] == [["card", "late"], []]
    assert any("'label' holds lists written in brackets" in note for note in source.origins[0].notes)
    assert profile(source.table)[1].kind == "list"
