"""Read the turns of a conversation, its tool calls and its tools from what stands in a row's cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finesmith.data.chat import Call, Role, Turn
from finesmith.errors import shortened

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
CALLING = frozenset({"function_call", "tool_call"})
_SPEAKERS = ("system", "user", "assistant")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KEYS = frozenset({"role", "content", "from", "value", "name", "weight", "tool_calls", "tool_call_id", "function_call"})
_KNOWN = _KEYS | set(_REASONING) | {"refusal", "audio", "annotations"}


class MalformedError(ValueError):
    """A row is not a conversation; the message says why, without the row's name; `quote` is what stands there."""

    def __init__(self, message: str, *, quote: str = "") -> None:
        self.quote = quote
        super().__init__(message)


def only_text(value: Any, column: str, *, missing: str | None = None) -> str:
    """Return a cell that must hold text; `missing` stands for an empty cell.

    Raises:
        MalformedError: it holds something else, or nothing where nothing may be missing.
    """
    if isinstance(value, str):
        return value
    if value is None:
        if missing is not None:
            return missing
        raise MalformedError(f"column {_quoted(column)} is empty, expected a text")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise MalformedError(f"column {_quoted(column)} holds {_kind(value)}, expected a text")


def read_turns(value: Any, column: str, *, trained: bool = True) -> list[Turn]:
    """Return the turns of a cell that holds a list of them, or the JSON text of one.

    Raises:
        MalformedError: it does not, or one of the turns is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, f"column {_quoted(column)}")
    if not isinstance(value, list | tuple):
        raise MalformedError(f"column {_quoted(column)} holds {_kind(value)}, expected a list of turns")
    return [read_turn(turn, number, trained=trained) for number, turn in enumerate(value, 1)]


def read_history(value: Any, column: str) -> list[Turn]:
    """Return the turns of earlier rounds, each a pair of question and answer.

    Raises:
        MalformedError: a round is not a pair of texts.
    """
    if isinstance(value, str) and value.strip():
        value = _json(value, f"column {_quoted(column)}")
    turns: list[Turn] = []
    for number, pair in enumerate(value or (), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise MalformedError(f"round {number} of column {_quoted(column)} is no pair of question and answer")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def read_turn(turn: Any, number: int, *, trained: bool = True) -> Turn:
    """Return one turn, of role and content or of from and value; `number`, from 1, names it in messages.

    Raises:
        MalformedError: its role is missing or unknown, it has an unknown key, or a value is of the wrong kind.
    """
    if type(turn) is dict and len(turn) == 2 and type(turn.get("content")) is str and turn.get("role") in _SPEAKERS:
        return Turn(turn["role"], turn["content"], trained=trained)
    if not isinstance(turn, Mapping):
        raise MalformedError(f"turn {number} is {_kind(turn)}, expected an object with role and content")
    given = {key: value for key, value in turn.items() if value is not None}
    if unknown := [key for key in given if key not in _KNOWN]:
        raise MalformedError(
            f"turn {number} has the unknown key {_quoted(unknown[0])}; known are {', '.join(sorted(_KEYS))}"
        )
    named = given.get("role", given.get("from"))
    if named is None:
        raise MalformedError(f"turn {number} has no role; expected 'role' and 'content', or 'from' and 'value'")
    if not isinstance(named, str) or (named not in ROLES and named not in CALLING):
        raise MalformedError(
            f"turn {number} has an unknown role; known are {', '.join([*ROLES, *CALLING])}", quote=_quoted(named)
        )
    content = _content(given.get("content", given.get("value")), number)
    if named in CALLING:
        return Turn("assistant", "", calls=_calls(_json(content, f"the tool call of turn {number}"), number))
    role = ROLES[named]
    calls = _calls([*_listed(given.get("tool_calls"), number), *_listed(given.get("function_call"), number)], number)
    if calls and role != "assistant":
        raise MalformedError(f"turn {number} ({role}) calls a tool, which only the assistant does")
    if not calls and not content and "content" not in given and "value" not in given:
        raise MalformedError(f"turn {number} ({role}) has no content")
    weight = given.get("weight", 1)
    if weight not in (0, 1):
        raise MalformedError(f"turn {number} has weight {_quoted(weight)}, expected 0 or 1")
    return Turn(
        role,
        content,
        calls=calls,
        answers=_optional(given, "tool_call_id", number),
        name=_optional(given, "name", number),
        reasoning=next((_content(given[key], number) for key in _REASONING if key in given), ""),
        trained=trained and weight == 1,
    )


def _optional(given: Mapping[str, Any], key: str, number: int) -> str | None:
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedError(f"{key} of turn {number} is {_kind(value)}, expected a text")
    return value


def _content(value: Any, number: int) -> str:
    """Return a turn's text, which may be cut into parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise MalformedError(f"the content of turn {number} is {_kind(value)}, expected a text")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise MalformedError(f"a part of turn {number} is {_quoted(kind)}; only parts of text can be used")
        texts.append(text)
    return "".join(texts)


def _listed(value: Any, number: int) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = _json(value, f"the tool calls of turn {number}")
    return list(value) if isinstance(value, list | tuple) else [value]


def _calls(value: Any, number: int) -> tuple[Call, ...]:
    calls = []
    for call in value if isinstance(value, list | tuple) else [value]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
            raise MalformedError(
                f"a tool call of turn {number} has no name; expected a function's name and its arguments"
            )
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str) and arguments.strip():
            arguments = _json(arguments, f"the arguments of {_quoted(inner['name'])} in turn {number}")
        elif isinstance(arguments, Mapping):
            arguments = _without_none(arguments)
        arguments = arguments or {}
        if not isinstance(arguments, Mapping):
            raise MalformedError(
                f"the arguments of {_quoted(inner['name'])} in turn {number} are no object of names and values"
            )
        _must_be_json(arguments, f"the arguments of {_quoted(inner['name'])} in turn {number}")
        if "id" in call and not isinstance(call["id"], str | None):
            raise MalformedError(f"the id of a tool call of turn {number} is {_kind(call['id'])}, expected a text")
        calls.append(Call(inner["name"], arguments, call.get("id")))
    return tuple(calls)


def read_tools(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row as JSON schemas of functions, each under `function` as chat templates expect.

    Raises:
        MalformedError: the cell holds no list of objects with a name.
    """
    written = isinstance(value, str)
    if written:
        value = _json(value, f"column {_quoted(column)}") if value.strip() else []
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise MalformedError(f"column {_quoted(column)} holds {_kind(value)}, expected a list of tools")
    tools: list[Mapping[str, Any]] = []
    for number, tool in enumerate(value, 1):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise MalformedError(
                f"tool {number} of column {_quoted(column)} has no name; expected the schema of a function"
            )
        found = tool if "function" in tool else {"type": "function", "function": tool}
        tools.append(found if written else _without_none(found))
    _must_be_json(tools, f"column {_quoted(column)}")
    return tuple(tools)


def _must_be_json(value: Any, what: str) -> None:
    """Refuse what a template could not write into a text: other values than JSON's, half characters."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{what} cannot be written as JSON: {ascii(str(error))[:80]}") from error


def _without_none(value: Any) -> Any:
    """Return plain values without the keys that a table's column type added as empty ones."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_without_none(each) for each in value]
    return value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is not valid JSON: {shortened(str(error), 80)}") from error


def _quoted(value: Any) -> str:
    return ascii(value) if len(ascii(value)) <= 60 else f"{ascii(value)[:57]}..."


def _kind(value: Any) -> str:
    names = {type(None): "nothing", dict: "an object", list: "a list", bool: "true or false", str: "a text"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
