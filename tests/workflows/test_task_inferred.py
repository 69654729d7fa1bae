"""A recipe that names no task: tagged words and raw text are known by their files, and it is said why."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import events, tuned
from language_breaking import write_text
from language_jobs import language_plan, sentences, write_conll

from finesmith.errors import DataError, UserError
from finesmith.recipe import from_dict, load
from finesmith.workflows.check import check, infer_recipe
from finesmith.workflows.language.infer import with_task
from tiny import write_tiny_llama


def plan(data: Path, model: Path | str = "default", **values: Any) -> dict[str, Any]:
    tree = language_plan("auto", data, model, "none", **values)
    tree["model"].pop("dropout")
    return tree


def meant(data: Path, model: Path | str = "default", **values: Any) -> tuple[str, str | None]:
    recipe, why = with_task(from_dict(plan(data, model, **values)))
    return recipe.task, why


@pytest.mark.parametrize("name", ["a.conll", "a.iob2", "a.CONLL", "a.bio.gz"])
def test_a_file_of_words_with_tags(name: str, tmp_path: Path) -> None:
    task, why = meant(write_conll(tmp_path / name, sentences(3)))
    assert task == "token-classification"
    assert name in str(why)


ROWS: dict[str, tuple[Any, str]] = {
    "lists": ({"id": 3, "tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}, "token-classification"),
    "numbers": ({"words": ["a", "b"], "tags": [0, 3]}, "token-classification"),
    "spans": ({"text": "a b", "entities": [{"start": 0, "end": 1, "label": "X"}]}, "token-classification"),
    "lists of other lengths": ({"tokens": ["a", "b"], "tags": ["x"]}, "auto"),
    "labels beside spans": ({"text": "a", "label": "x", "entities": [{"start": 0, "end": 1, "label": "X"}]}, "auto"),
    "a text with its tags": ({"text": "a b", "tags": ["x", "y"]}, "auto"),
    "a class": ({"text": "a b", "label": "x"}, "auto"),
    "no object": ([1, 2], "auto"),
}


@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_the_first_row_says_it(what: str, form: str, tmp_path: Path) -> None:
    row, task = ROWS[what]
    path = tmp_path / f"a.{form}"
    path.write_text(json.dumps(row) + "\n" if form == "jsonl" else json.dumps([row, row], indent=2), "utf-8-sig")
    assert meant(path)[0] == task


@pytest.mark.parametrize("text", ["", "{", "[", "7", "[" * 100_000, '{"tokens": [' + "1, " * 200_000])
def test_a_file_that_cannot_be_looked_into_is_left_to_its_reader(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    assert meant(tmp_path / "a.jsonl") == ("auto", None)
    assert meant(tmp_path / "absent.jsonl") == ("auto", None)


def test_prose_is_what_the_base_model_learns(tiny_model: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    llama = write_tiny_llama(tmp_path / "llama")
    assert meant(text, llama)[0] == "causal-text"
    masked = Path(shutil.copytree(tiny_model, tmp_path / "masked"))
    config = json.loads((masked / "config.json").read_text("utf-8"))
    (masked / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}), "utf-8")
    assert meant(text, masked)[0] == "masked-text"
    with pytest.raises(DataError, match=r"BertModel.*task=causal-text.*task=masked-text"):
        meant(text, tiny_model)
    assert meant(text, llama, data__label="kind")[0] == "auto"


def test_a_task_that_is_named_is_not_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    recipe = from_dict({**plan(write_text(tmp_path / "text.txt"), tiny_model), "task": "masked-text"})
    assert with_task(recipe) == (recipe, None)


def test_the_run_says_it_and_its_recipe_reruns_it(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"tokens": [w for w, _ in row], "tags": [t for _, t in row]} for row in sentences(40)]
    random.Random(0).shuffle(rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run = tuned(plan(tmp_path / "a.jsonl", tiny_model, train__epochs=1), tmp_path / "run")
    notes = [event["message"] for event in events(run, "note")]
    assert any(note.startswith("task token-classification: the first row of a.jsonl holds") for note in notes)
    assert "inferred: the first row" in (run / "recipe.yaml").read_text("utf-8")
    assert load(run / "recipe.yaml").task == "token-classification"
    assert check(from_dict(plan(tmp_path / "a.jsonl", tiny_model)))["task"] == "token-classification"
    assert "task: token-classification" in infer_recipe(from_dict(plan(tmp_path / "a.jsonl", tiny_model)))


def test_what_the_inferred_task_does_not_read_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = write_conll(tmp_path / "a.conll", sentences(40))
    with pytest.raises(UserError, match=r"method\.name is features"):
        tuned({**plan(path, tiny_model), "method": {"name": "features"}, "train": {}}, tmp_path / "run")
