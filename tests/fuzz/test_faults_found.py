"""What the fuzz found and was mended, one small case each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finesmith.data.formats import column_of
from finesmith.data.sources import read
from finesmith.deploy.listing import list_runs
from finesmith.errors import DataError, FinesmithError, ModelError, RecipeError, RunError
from finesmith.recipe import from_dict, load, to_yaml
from finesmith.report import folder as report_folder
from finesmith.workflows.seal import require_sealed, seal
from fuzz.oracle import judge


def refusal(kind: type[FinesmithError], call: Any, *values: Any, places: tuple[str, ...], **named: Any) -> str:
    with pytest.raises(kind) as error:
        call(*values, **named)
    judge(str(error.value), places)
    return str(error.value)


# --- messages ---------------------------------------------------------------------------------------------------


def test_a_message_is_short_and_cannot_steer_a_terminal() -> None:
    said = str(ModelError("begin \x1b[2J\r\u202e\ud800 " + "x" * 70_000 + " ; choose another"))
    assert len(said) < 1500
    assert said.startswith("begin ")
    assert said.endswith("; choose another")
    assert all(character.isprintable() for character in said)
    assert str(RunError("two\nlines")) == "two\nlines"


def test_very_many_mistakes_of_a_recipe_are_cut_and_counted() -> None:
    with pytest.raises(RecipeError) as error:
        from_dict({"data": {"train": "a.csv"}, **{f"wrong_{i}_{'x' * 70}": i for i in range(100)}})
    assert len(error.value.problems) == 100
    shown = str(error.value).splitlines()
    assert shown[-1] == f"and {100 - len(shown) + 1} more; mend these first"
    assert len(str(error.value)) < 1500


def test_a_key_of_a_hundred_thousand_characters_is_not_repeated() -> None:
    with pytest.raises(RecipeError) as error:
        from_dict({"data": {"train": "a.csv", "x" * 100_000: 1}})
    assert len(str(error.value)) < 500


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("r.json", '{"data": {"train": "a.csv"}, "train": {"\\ud83d": 1}}', ("half of a character",)),
        ("r.json", '{"data": {"train": "a.csv"}, "\\udfff": {"seed": 1}}', ("half of a character",)),
        ("r.yaml", "data: {train: a.csv}\n\x1a\n", ("r.yaml:2", "U+001A", "remove it")),
        ("r.yaml", "data: a: b\n", ("r.yaml:1", "put quotes around")),
        ("r.yaml", "a: " + "[" * 50, ("nested more than 20", "expected sections")),
        ("r.toml", "data = \n", ("r.toml:1", "mend the line")),
    ],
)
def test_recipes_that_broke_the_reader_or_got_no_remedy(
    name: str, content: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    said = refusal(RecipeError, load, tmp_path / name, places=(name,))
    assert [part for part in parts if part not in said] == [], said


@pytest.mark.parametrize("name", ["R.TOML", "R.JSON"])
def test_the_ending_of_a_recipe_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    content = '[data]\ntrain = "a.csv"\n' if name == "R.TOML" else '{"data": {"train": "a.csv"}}'
    (tmp_path / name).write_text(content, "utf-8")
    assert load(tmp_path / name).data.train == "a.csv"


def test_a_number_of_hundreds_of_digits_is_written_and_read_back(tmp_path: Path) -> None:
    recipe = from_dict({"data": {"train": "a.csv", "max_rows": 10**400}})
    (tmp_path / "r.yaml").write_text(to_yaml(recipe), "utf-8")
    assert load(tmp_path / "r.yaml") == recipe


def test_a_json_recipe_with_a_misspelt_section_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"dta": {"train": "a.csv", "split_seed": 3}}', "utf-8")
    assert "did you mean data" in refusal(RecipeError, load, tmp_path / "r.json", places=("r.json",))


# --- data -------------------------------------------------------------------------------------------------------


def test_halves_of_emoji_among_mixed_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "a", "label": 1}, {"text": "b", "label": ["\ud800", {"\udc00": 2}]}]), "utf-8")
    table = read([str(path)]).table
    assert table["label"].to_pylist() == ["1", '["\ufffd", {"\ufffd": 2}]']


def test_half_of_an_emoji_in_the_name_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text\\ud800": "a"}\n{"text\\ud800": "b"}\n', "utf-8")
    assert "rename it" in refusal(DataError, read, [str(path)], places=("rows.jsonl",))


def test_true_among_decimals_is_not_one() -> None:
    array, notes = column_of([1.5, True, None])
    assert array.to_pylist() == ["1.5", "true", None]
    assert notes == ["mixes types (a number, true or false) and is read as text"]
    array, notes = column_of([float("nan"), True, False])
    assert array.to_pylist() == [None, True, False]
    assert notes == ["holds 1 NaN, read as missing"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""), ("a.parquet", b"PAR1" * 20), ("a.xlsx", b"PK\x03\x04" + bytes(60)), ("a.json", b"[1, 2"),
        ("a.json", b"[" * 100_000), ("a.jsonl", b'{"a": 1' + b"0" * 5000 + b"}\n{}\n"), ("a.csv", b"\xff\xfea\0\0\0"),
        ("a.txt", b"a\1\2\3\4\5\6\xff" * 9),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_say_what_to_do(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(DataError, read, [str(tmp_path / name)], places=(name,))


@pytest.mark.parametrize("name", ["neg.txt", "pos.txt"])
def test_a_link_to_itself_among_the_files_of_the_classes(name: str, tmp_path: Path) -> None:
    for each in ("neg.txt", "pos.txt", "so.txt"):
        (tmp_path / each).write_text("a text\n" * 3, "utf-8")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    try:
        assert read([str(tmp_path)]).table["label"].unique().to_pylist() == sorted({"neg", "pos", "so"} - {name[:3]})
    except DataError as error:
        judge(str(error), (name, tmp_path.name))


def test_numbers_too_large_to_square_are_audited() -> None:
    import numpy as np

    from finesmith.data.audit import audit
    from finesmith.data.near_duplicates import cluster
    from finesmith.tasks.regression import Regression
    from finesmith.types import Examples

    texts = ["the same text", "the same text", "another one", "and a third"]
    examples = Examples(np.arange(4), texts, None, [1e308, -1e308, 2.0, 3.0])
    kinds = [found.kind for found in audit(examples, clusters=lambda: cluster(texts), kind="number")]
    assert "missing_labels" not in kinds, "they are numbers, and no warning of an overflow was raised"
    assert Regression(1.0, 0.0).summary(np.array([1e308, -1e308]))["summary"]["max"] == 1e308


# --- run folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "2_Dense/model.safetensors", "README.md"):
        (folder / name).write_bytes(name.encode() * 50)
    seal(folder)
    require_sealed(folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "2_Dense/model.safetensors", "seal.json"])
@pytest.mark.parametrize("how", ["bit", "cut", "gone", "folder", "link", "loop"])
def test_a_model_of_which_a_file_changed_is_not_used(name: str, how: str, model: Path) -> None:
    file = model / name
    raw = bytearray(file.read_bytes())
    if how == "bit":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif how == "cut":
        file.write_bytes(raw[:-1] if name != "seal.json" else raw[:-3])
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how in ("link", "loop"):
            (model / "elsewhere").write_bytes(raw)
            file.symlink_to(model / "elsewhere" if how == "link" and name != "seal.json" else file)
    refusal(RunError, require_sealed, model, places=(file.name,))


def test_what_people_write_beside_a_model_is_theirs(model: Path) -> None:
    (model / "README.md").write_text("my notes", "utf-8")
    (model / "notes.txt").write_text("more", "utf-8")
    require_sealed(model)
    shutil.rmtree(model)
    refusal(RunError, require_sealed, model, places=("model",))


@pytest.mark.parametrize("verdict", ["[]", "7", '{"tuned": 3}', '{"tuned": {"value": "x"}}', "[" * 100_000, ""])
@pytest.mark.parametrize("about", ['{"state": "finished", "error": "x"}', '{"state": "failed", "started": {}}'])
def test_runs_are_listed_whatever_their_files_hold(verdict: str, about: str, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "run.json").write_text(about, "utf-8")
    (folder / "verdict.json").write_text(verdict, "utf-8")
    (row,) = list_runs(tmp_path)
    assert row["value"] is None
    assert (row["state"] == "damaged") == (not verdict.startswith("{"))
    assert row["state"] != "damaged" or "verdict.json" in row["error"]


@pytest.mark.parametrize("name", ["data.json", "baselines.json", "run.json"])
@pytest.mark.parametrize("content", [b"", b"7", b"null", b"[1" * 9, b"\xff", "folder", "link"])
def test_a_report_names_every_file_that_it_had_to_leave_out(name: str, content: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content == "folder":
        file.mkdir()
    elif content == "link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        assert isinstance(content, bytes)
        file.write_bytes(content)
    problems = report_folder.read(tmp_path).problems
    assert [problem for problem in problems if name in problem] != []
