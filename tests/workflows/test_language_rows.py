"""What all language tasks promise of the files that they are given: several forms of them, and how much was cut."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from language_jobs import conversations, language_plan, sentences, triplets, write_conll, write_rows

from finesmith.errors import DataError, ModelError
from finesmith.recipe import from_dict, load
from finesmith.workflows.check import check
from finesmith.workflows.tune import tune
from tiny import write_tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def tagged(path: Path, names: tuple[str, str], *, seed: int) -> Path:
    rows = [{names[0]: [w for w, _ in row], names[1]: [t for _, t in row]} for row in sentences(40, seed=seed)]
    return write_rows(path, rows)


def files(task: str, folder: Path) -> tuple[Path, Path]:
    """Return training rows and test rows whose columns have other names."""
    if task == "embeddings":
        return tuple(  # type: ignore[return-value]
            write_csv(folder / f"{seed}.csv", header, [row[:2] for row in triplets(50, seed=seed)])
            for seed, header in enumerate([("anchor", "positive"), ("query", "passage")])
        )
    if task == "token-classification":
        return tuple(  # type: ignore[return-value]
            tagged(folder / f"{seed}.jsonl", names, seed=seed)
            for seed, names in enumerate([("tokens", "ner_tags"), ("words", "tags")])
        )
    return tuple(  # type: ignore[return-value]
        write_rows(folder / f"{seed}.jsonl", [{name: row["prompt"]} for row in conversations(40, seed=seed)])
        for seed, name in enumerate(["text", "content"])
    )


@pytest.mark.parametrize("task", ["embeddings", "token-classification", "causal-text"])
def test_a_run_on_files_with_other_columns_can_be_run_again(
    task: str, tiny_model: Path, llama: Path, tmp_path: Path
) -> None:
    train, test = files(task, tmp_path)
    plan = language_plan(
        task, train, llama if task == "causal-text" else tiny_model, tmp_path / "cache",
        data__test=str(test), train__epochs=1,
    )  # fmt: skip
    first = tune(from_dict(plan), out=str(tmp_path / "first"))
    assert load(first / "recipe.yaml").data.text is None, "no one name is that of both files"
    again = tune(load(first / "recipe.yaml"), out=str(tmp_path / "again"))
    scores = [json.loads((folder / "scores.json").read_text("utf-8"))["test"] for folder in (first, again)]
    assert scores[0] == scores[1]


def test_what_is_cut_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "pairs.csv", ("anchor", "positive"), [row[:2] for row in triplets(60)])
    plan = language_plan("embeddings", data, tiny_model, "none", data__max_length=8, train__epochs=1)
    told = json.loads((tune(from_dict(plan), out=str(tmp_path / "run")) / "data.json").read_text("utf-8"))["tokens"]
    # Seven words of one token each, and the two tokens around them.
    assert told["truncated_rows"] == told["rows"] == 120
    assert told["truncated_share"] == 1.0


@pytest.mark.parametrize("task", ["instruct", "preferences", "embeddings", "token-classification"])
def test_two_rows_are_too_few_for_a_split(task: str, tiny_model: Path, llama: Path, tmp_path: Path) -> None:
    rows = [{**row, "chosen": "good", "rejected": "bad"} for row in conversations(2)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    if task == "embeddings":
        data = write_csv(tmp_path / "rows.csv", ("anchor", "positive"), [row[:2] for row in triplets(2)])
    if task == "token-classification":
        data = write_conll(tmp_path / "rows.conll", sentences(2))
    base = llama if task in ("instruct", "preferences") else tiny_model
    with pytest.raises(DataError, match=r"2 .* count as 2 independent ones.*add some") as refused:
        tune(from_dict(language_plan(task, data, base, "none")), out=str(tmp_path / "run"))
    assert "documents" not in str(refused.value)
    assert data.name in str(refused.value)


def test_rows_that_are_no_preferences_are_named(llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "asked.jsonl", conversations(20))
    with pytest.raises(DataError, match=r"asked\.jsonl holds no preferences: its columns are prompt, response"):
        tune(from_dict(language_plan("preferences", data, llama, "none")), out=str(tmp_path / "run"))
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": str(i), "chosen": "a", "rejected": "a"} for i in range(20)])
    with pytest.raises(DataError, match=r"same\.jsonl: in all of the 20 rows"):
        tune(from_dict(language_plan("preferences", same, llama, "none")), out=str(tmp_path / "run"))


def test_an_encoder_cannot_answer(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "asked.jsonl", conversations(20))
    with pytest.raises(ModelError, match=r"name a causal model as model\.base"):
        tune(from_dict(language_plan("instruct", data, tiny_model, "none")), out=str(tmp_path / "run"))


def test_too_many_rows_left_out_for_their_length_are_told(llama: Path, tmp_path: Path) -> None:
    rows = conversations(60)
    long = [
        {**row, "prompt": f"{row['prompt']} {'very ' * 40}{number}"}
        for number, row in enumerate(conversations(90, seed=1))
    ]
    data = write_rows(tmp_path / "rows.jsonl", [*rows, *long])
    found = check(from_dict(language_plan("instruct", data, llama, "none", data__max_length=32)))
    probe = next(one for one in found["probes"] if one["name"] == "answers survive")
    assert not probe["passed"]
    assert "left out" in probe["evidence"]
    assert not found["ok"]


def test_nothing_is_advised_that_the_recipe_refuses(llama: Path, tmp_path: Path) -> None:
    rows = [{**row, "response": f"<b>{row['response']}</b>"} for row in conversations(40)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = check(from_dict(language_plan("instruct", data, llama, "none")))
    html = next(one for one in found["findings"] if one["kind"] == "html")
    assert html["remedy"] == "`data.audit.html: drop` leaves them out"


def test_rows_of_the_other_form_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    from finesmith.tasks.corpus import Reading, Speech
    from finesmith.tasks.preference_losses import Objective
    from finesmith.tasks.preferences import Preferences

    marked = [{**row, "label": number % 2 == 0} for number, row in enumerate(conversations(4))]
    corpus = Preferences.read_unlabelled([str(write_rows(tmp_path / "marked.jsonl", marked))], Reading())
    with pytest.raises(DataError, match="was tuned on pairs"):
        Preferences(Objective("dpo"), Speech()).encode(corpus, None, 8)  # type: ignore[arg-type]


def test_a_named_column_of_questions_is_read_and_no_other(tmp_path: Path) -> None:
    from finesmith.tasks.corpus import Reading
    from finesmith.tasks.instruct import Instruct

    rows = [{"prompt": "this one", "response": "said", "other": f"that one {number}"} for number in range(3)]
    data = str(write_rows(tmp_path / "asked.jsonl", rows))
    assert list(Instruct.read_unlabelled([data], Reading()).texts) == ["this one"] * 3
    assert list(Instruct.read_unlabelled([data], Reading(text="other")).texts) == [row["other"] for row in rows]
    with pytest.raises(DataError, match=r"has no column 'nope'.*--text COLUMN"):
        Instruct.read_unlabelled([data], Reading(text="nope"))
