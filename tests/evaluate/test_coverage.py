"""Concepts are found in every inflection, and not where they are absent."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from finesmith.errors import UserError
from finesmith.evaluate.coverage import coverage, covered


@pytest.mark.parametrize(
    ("concept", "word"),
    [
        ("stand", "stood"),
        ("pet", "petting"),
        ("shake", "shook"),
        ("leave", "left"),
        ("shelf", "shelves"),
        ("build", "building"),
        ("carry", "carries"),
        ("lie", "lying"),
        ("Dog", "DOGS"),
        ("box", "boxes"),
        ("skiing", "ski"),
        ("child", "children"),
        ("dance", "dancing"),
        ("man", "man's"),
    ],
)
def test_inflections_count(concept: str, word: str) -> None:
    assert covered(f"So the {word}, it is.", [concept]) == [concept]


@pytest.mark.parametrize(
    ("concept", "word"), [("see", "seed"), ("be", "bed"), ("cat", "category"), ("art", "party"), ("safe", "saves")]
)
def test_other_words_do_not(concept: str, word: str) -> None:
    assert covered(word, [concept]) == []


def test_shares_order_phrases_and_languages() -> None:
    assert covered("ran home with dogs", ["dog", "cat", "run"]) == ["dog", "run"]
    assert covered("two ice creams", ["ice cream"]) == ["ice cream"]
    assert covered("cream on ice", ["ice cream"]) == []
    assert covered("los perros corrían", ["perro", "correr", "gato"], language="es") == ["perro", "correr"]
    ours = coverage(["a dog ran", "nothing", "dog"], [["dog", "run", "cat"], ["dog"], ["dog", "dog"]])
    assert ours.per_example == pytest.approx([2 / 3, 0, 1])
    assert ours.value == pytest.approx(5 / 9)


def test_human_references_cover_their_concepts_and_those_of_others_do_not(shared: Path) -> None:
    lines = (shared / "data" / "commongen" / "commongen.dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[::3]]
    concepts = [[part.rsplit("_", 1)[0] for part in row["concept_set"].split("#")] for row in rows]
    own = [row["scene"][0] for row in rows]
    assert coverage(own, concepts).value >= 0.995
    others = random.Random(0).sample(own, len(own))
    assert coverage(others, concepts).value <= 0.05


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="row 1: expected a list of at least one concept"):
        coverage(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="1 predictions for 2"):
        coverage(["a"], [["a"], ["b"]])
    with pytest.raises(UserError, match="language is 'xx'"):
        covered("a", ["b"], language="xx")
