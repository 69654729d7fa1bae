"""Preferences: every form of file, and rows that say nothing or contradict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finesmith.data.preferences import read_marked, read_preferences
from finesmith.errors import DataError

USER = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Because."}
BAD = {"role": "assistant", "content": "No."}


def places(rows: Sequence[Any]) -> list[str]:
    return [f"p.json row {number}" for number in range(1, len(rows) + 1)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"instruction": "Why?", "input": "", "Chosen": "Because.", "Rejected": "No."},
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "Because."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
)
def test_every_form_says_the_same(row: dict[str, Any]) -> None:
    found = read_preferences([row], places([row]))
    assert len(found) == 1
    assert found.chosen[0].messages() == [USER, GOOD]
    assert found.rejected[0].messages() == [USER, BAD]
    assert [turn.trained for turn in found.chosen[0].turns] == [False, True]
    assert "preference" in found.reason


def test_only_what_follows_the_common_turns_is_trained() -> None:
    before = [{"role": "system", "content": "Be kind."}, USER, GOOD, {"role": "user", "content": "And?"}]
    row = {"chosen": [*before, GOOD], "rejected": [*before, BAD]}
    found = read_preferences([row], places([row]))
    assert [turn.trained for turn in found.chosen[0].turns] == [False, False, False, False, True]
    assert [turn.trained for turn in found.rejected[0].turns] == [False, False, False, False, True]


def test_identical_answers_are_left_out_or_refused() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    found = read_preferences(rows, places(rows))
    assert (len(found), found.identical) == (1, (1,))
    with pytest.raises(DataError, match=r"p.json row 2: chosen and rejected are the same"):
        read_preferences(rows, places(rows), identical="refuse")
    with pytest.raises(DataError, match="in all of the 1 rows chosen and rejected are the same"):
        read_preferences(rows[1:], places(rows[1:]))


def test_identical_answers_are_kept_where_somebody_else_counts_them() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    found = read_preferences(rows, places(rows), identical="keep")
    assert (len(found), found.rows, found.identical) == (2, (0, 1), (0,))
    assert [turn.trained for turn in found.chosen[0].turns] == [False, True]
    with pytest.raises(DataError, match="in all of the 1 rows chosen and rejected are the same"):
        read_preferences(rows[:1], places(rows[:1]), identical="keep")


def test_malformed_rows_are_left_out_where_that_is_asked_for() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good, {"prompt": "a", "chosen": "", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": ""}, good]
    assert read_preferences(rows, places(rows), malformed="drop").rows == (0, 3)
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        read_preferences(rows[1:3], places(rows[1:3]), malformed="drop")
    marked = [{"prompt": "a", "completion": "b", "label": mark} for mark in (True, "perhaps", False)]
    found = read_marked([*marked, {"prompt": "a", "completion": "", "label": True}], places(range(4)), malformed="drop")
    assert (found.rows, found.good) == ((0, 2), (True, False))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": None}, "row 2: rejected: "),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "row 2: .*empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "row 2: rejected: .*empty"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "row 2: "),
        ({"prompt": "a", "chosen": [{"role": "robot", "content": "x"}], "rejected": "c"}, "row 2: .*unknown role"),
        ({"prompt": "a", "chosen": [USER, GOOD], "rejected": [{**USER, "content": "How?"}, BAD]}, "differ before the"),
        ({"prompt": "a", "chosen": 3, "rejected": {"role": "user", "content": "x"}}, "row 2: "),
        ({"prompt": "a", "chosen": "bad \ud800", "rejected": "c"}, "row 2: .*half of a character"),
        (
            {"prompt": "", "chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
            "row 2: chosen is only the beginning of the other answer",
        ),
    ],
)
def test_malformed_rows_are_named(row: dict[str, Any], said: str) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, row]
    with pytest.raises(DataError, match=said):
        read_preferences(rows, places(rows))


def test_rows_that_are_no_preferences_are_refused() -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match="the rows hold no preferences"):
        read_preferences(rows, places(rows))
    with pytest.raises(DataError, match="no column says whether an answer is good"):
        read_marked(rows, places(rows))
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "label": True}]
    with pytest.raises(DataError, match="pairs of answers"):
        read_marked(rows, places(rows))


@pytest.mark.parametrize("marks", [(True, False), (1, 0), ("true", "False"), ("1", "0"), (1.0, 0.0)])
def test_answers_marked_good_or_bad(marks: tuple[Any, Any]) -> None:
    rows = [{"prompt": "Why?", "completion": each, "label": mark} for each, mark in zip("bc", marks, strict=True)]
    found = read_marked(rows, places(rows))
    assert found.good == (True, False)
    assert [conversation.turns[-1].content for conversation in found.conversations] == ["b", "c"]
    turns = [{"messages": [USER, GOOD, USER, BAD], "kto_tag": mark} for mark in marks]
    marked = read_marked(turns, places(turns))
    assert [turn.trained for turn in marked.conversations[0].turns] == [False, False, False, True]


def test_faulty_marks_are_named() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": mark} for mark in (True, "perhaps")]
    with pytest.raises(DataError, match=r"p.json row 2: column 'label' holds neither true nor false") as raised:
        read_marked(rows, places(rows))
    assert "perhaps" not in str(raised.value), "a message is written down where texts may be withheld"
    assert "perhaps" in raised.value.quote
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "", "label": False}]
    with pytest.raises(DataError, match=r"p.json row 2: "):
        read_marked(rows, places(rows))


def test_the_files_of_peers(shared: Path) -> None:
    folder = shared / "data" / "instruct_llamafactory"
    rows = json.loads((folder / "dpo_en_demo.json").read_text())
    found = read_preferences(rows, places(rows))
    assert len(found) + len(found.identical) == 300
    for one, other in zip(found.chosen, found.rejected, strict=True):
        assert one.turns[:-1] == other.turns[:-1]
        assert one.id == other.id
    assert found.chosen[0].turns[0].content == rows[0]["conversations"][0]["value"]
    rows = json.loads((folder / "kto_en_demo.json").read_text())
    marked = read_marked(rows, places(rows))
    assert marked.good == tuple(row["label"] for row in rows)
    assert all(turns.turns[-1].trained for turns in marked.conversations)
