"""Conversations: formats found, rows read, every malformed row told once with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finesmith.data.chat import MOST_CHARACTERS, Conversation, Turn, fault_of, refuse
from finesmith.data.chat_formats import convert, detect
from finesmith.errors import DataError

USER = {"role": "user", "content": "Q"}
REPLY = {"role": "assistant", "content": "A"}
CALL = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "c1"}


def calling(function: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": function}]}


def read(rows: list[dict[str, Any]], **named: str) -> list[Conversation]:
    found = convert(rows, detect(rows, **named), [f"file.jsonl row {i}" for i in range(1, len(rows) + 1)])
    refuse(found.faults, len(rows))
    return list(found.conversations)


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"prompt": "p", "completion": "c"}, "pair", [("user", "p"), ("assistant", "c")]),
        ({"Question": "p", "Answer": "c", "id": 7}, "pair", [("user", "p"), ("assistant", "c")]),
        ({"problem": "p", "solution": "c"}, "pair", [("user", "p"), ("assistant", "c")]),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            "alpaca",
            [("user", "i\n\nx"), ("assistant", "o")],
        ),
        (
            {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["a", "b"]]},
            "alpaca",
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i"), ("assistant", "o")],
        ),
        ({"instruction": "i", "context": None, "response": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        ({"messages": [{"role": "developer", "content": "s"}, USER, REPLY]}, "messages",
         [("system", "s"), ("user", "Q"), ("assistant", "A")]),
        ({"messages": json.dumps([USER, REPLY])}, "messages", [("user", "Q"), ("assistant", "A")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {**REPLY, "name": None}]},
         "messages",
         [("user", "Q"), ("assistant", "A")]),
        ({"prompt": [USER], "completion": [REPLY]}, "pair", [("user", "Q"), ("assistant", "A")]),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", [("user", "p"), ("assistant", "c")]),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY]}, "preference", [("user", "Q"), ("assistant", "A")]),
    ],
)  # fmt: skip
def test_formats(row: dict[str, Any], kind: str, expected: list[tuple[str, str]]) -> None:
    layout = detect([row])
    assert layout.kind == kind
    assert layout.reason
    assert said(read([row])[0]) == expected


def test_tool_calls_become_what_templates_read() -> None:
    tools = json.dumps([{"name": "f", "parameters": {"type": "object"}}])
    (openai, sharegpt) = (
        read([{"messages": [USER, CALL, RESULT, REPLY], "tools": tools}])[0],
        read(
            [
                {
                    "conversations": [
                        {"from": "human", "value": "Q"},
                        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                        {"from": "observation", "value": "42"},
                        {"from": "gpt", "value": "A"},
                    ],
                    "tools": tools,
                }
            ]
        )[0],
    )
    assert openai.tools == ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)
    assert openai.messages()[1] == {
        "role": "assistant", "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}],
    }  # fmt: skip
    assert openai.messages()[2]["tool_call_id"] == "c1"
    assert [turn.role for turn in sharegpt.turns] == ["user", "assistant", "tool", "assistant"]
    assert sharegpt.turns[1].calls[0].arguments == {"x": 1}


def test_weights_and_prompts_are_not_trained() -> None:
    assert [t.trained for t in read([{"messages": [USER, {**REPLY, "weight": 0}, USER, REPLY]}])[0].turns][1::2] == [
        False, True,
    ]  # fmt: skip
    given = {"prompt": [USER, REPLY, USER], "completion": [REPLY]}
    assert [t.trained for t in read([given])[0].turns][1::2] == [False, True]


def test_answers_marked_false_are_left_out_and_counted() -> None:
    rows = [{"messages": [USER, REPLY], "label": i % 2 == 0} for i in range(5)]
    layout = detect(rows)
    found = convert(rows, layout, ["x"] * 5)
    assert "left out" in layout.reason
    assert found.disliked == (1, 3)
    assert [c.id for c in found.conversations] == [0, 2, 4]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"content": "x"}, REPLY], "turn 1 has no role"),
        ([{"role": "narrator", "content": "x"}, REPLY], "unknown role"),
        ([{"role": ["user"], "content": "x"}, REPLY], "unknown role"),
        ([{**USER, "colour": 3}, REPLY], "unknown key 'colour'"),
        ([{"role": "user", "content": "  \n"}, REPLY], r"turn 1 \(user\) is empty"),
        ([USER, {"role": "assistant", "content": ""}], r"turn 2 \(assistant\) is empty"),
        ([USER, {"role": "assistant"}], r"turn 2 \(assistant\) has no content"),
        ([{"role": "system", "content": "s"}] * 2 + [USER, REPLY], "two system turns"),
        ([USER, {"role": "system", "content": "s"}, REPLY], "must be the first"),
        ([USER, CALL, USER, REPLY], "call of tool 'f' before turn 3"),
        ([USER, REPLY, RESULT, REPLY], "result without a call"),
        ([USER, CALL, {**RESULT, "tool_call_id": "zz"}, REPLY], "answers call 'zz'"),
        ([USER], "no assistant turn"),
        ([REPLY, USER, REPLY], "starts with an assistant turn"),
        ([USER, REPLY, USER], "ends with a turn of the user"),
        ([USER, USER, REPLY], "both of the user"),
        ([], "has no turns"),
        ([{"role": "user", "content": "a\ud800b"}, REPLY], "lone surrogate"),
        ([USER, calling({"name": "f", "arguments": {"x": "\udc80"}})], "JSON"),
        ([USER, calling({"name": "f", "arguments": "{x"})], "not valid JSON"),
        ([USER, calling({"arguments": {}})], "has no name"),
        ([USER, {"role": "assistant", "content": "x" * 1_000_000}], "1,000,001 characters"),
        ([{"role": "user", "content": 3}, REPLY], "expected a text"),
        ([{"role": "user", "content": [{"type": "image", "url": "u"}]}, REPLY], "only parts of text"),
        (["hello", REPLY], "turn 1 is a text"),
        ("hello", "expected a list of turns"),
        (None, "holds nothing"),
        ([USER, {**REPLY, "weight": 3}], "weight 3"),
        ([USER, {**REPLY, "weight": 0}], "none of its assistant turns"),
        ("[" * 100_000, "not valid JSON"),
    ],
)  # fmt: skip
def test_each_malformed_row_is_named(turns: Any, message: str) -> None:
    rows = [{"messages": [USER, REPLY]}, {"messages": turns}, {"messages": [USER, REPLY]}]
    found = convert(rows, detect(rows), [f"file.jsonl row {i}" for i in (1, 2, 3)])
    assert [c.id for c in found.conversations] == [0, 2]
    assert len(found.faults) == 1
    with pytest.raises(DataError, match=message) as caught:
        refuse(found.faults, 3)
    assert "file.jsonl row 2: " in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "narrator" not in str(caught.value), "a message is written down where texts may be withheld"
    assert ("narrator" in caught.value.quote) == ("narrator" in str(turns))


def test_all_faults_are_told_at_once_the_first_few_named() -> None:
    rows = [{"messages": [USER, REPLY]}] + [{"messages": [USER]}] * 9
    found = convert(rows, detect(rows), [f"row {i}" for i in range(10)])
    with pytest.raises(DataError, match=r"(?s)9 of 10 rows.*row 1: .*row 2: .*row 3: .*and 6 more"):
        refuse(found.faults, 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "completion": "c"}, "column 'prompt' is empty"),
        ({"prompt": "p", "completion": {"a": 1}}, "holds an object"),
        ({"instruction": "i", "output": True}, "true or false"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "x"}]}, "has no content"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "no pair"),
        ({"messages": [USER, REPLY], "tools": "nonsense"}, "not valid JSON"),
        ({"messages": [USER, REPLY], "tools": [{"description": "d"}]}, "has no name"),
    ],
)
def test_cells_of_wrong_types(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read([row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "causal-text"),
        ({"question": "q", "answer": "a", "problem": "p", "solution": "s"}, "several pairs"),
        ({"messages": [], "conversations": []}, "several columns"),
    ],
)
def test_what_cannot_be_told_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        detect([row])
    with pytest.raises(DataError, match="no column 'zz'"):
        detect([row], messages="zz")


def test_named_columns_are_obeyed() -> None:
    row = {"q": "a", "r": "b", "log": [USER, REPLY]}
    assert said(read([row], prompt="q", completion="r")[0]) == [("user", "a"), ("assistant", "b")]
    assert said(read([row], messages="log")[0]) == [("user", "Q"), ("assistant", "A")]


def test_a_prompt_needs_no_answer() -> None:
    assert fault_of([Turn("user", "Q")], answered=False) is None
    assert "characters" in (fault_of([Turn("user", "x" * (MOST_CHARACTERS + 1))], answered=False) or "")


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [("alpaca_en_demo", "alpaca", 999), ("identity", "alpaca", 91), ("glaive_toolcall_en_demo", "sharegpt", 300),
     ("dpo_en_demo", "preference", 300), ("kto_en_demo", "messages", 150)],
)  # fmt: skip
def test_shared_files_go_through(shared: Path, name: str, kind: str, rows: int) -> None:
    given = json.loads((shared / "data" / "instruct_llamafactory" / f"{name}.json").read_text())
    layout = detect(given)
    found = convert(given, layout, [f"row {i}" for i in range(len(given))])
    assert layout.kind == kind
    assert not found.faults
    assert len(found.conversations) + len(found.disliked) == len(given)
    assert len(found.conversations) == rows
