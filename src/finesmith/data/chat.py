"""Conversations: who said what, which rules a conversation keeps, and the faults of rows that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from finesmith.errors import DataError, shortened

Role = Literal["system", "user", "assistant", "tool"]

# Some hundred thousand tokens: more than any model that fits one machine is tuned on.
MOST_CHARACTERS = 500_000
MOST_TURNS = 2000
_NAMED_FAULTS = 3
_USUAL_TURNS = 50


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the assistant asks for: its name, its arguments (plain JSON values) and an id, if it has one."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. `calls` and `reasoning` are the assistant's; `answers` is the id of the call a tool's turn answers.

    `trained` says whether an assistant's turn is to be imitated, or only stands before what is.
    """

    role: Role
    content: str
    calls: tuple[Call, ...] = ()
    answers: str | None = None
    name: str | None = None
    reasoning: str = ""
    trained: bool = True

    def is_plain(self) -> bool:
        """Whether the turn says something, and nothing but a text."""
        content = self.content
        return not (self.calls or self.reasoning or self.name or self.answers or not content or content.isspace())

    def message(self) -> dict[str, Any]:
        """Return the turn as chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                    **({"id": call.id} if call.id is not None else {}),
                }
                for call in self.calls
            ]
        if self.answers is not None:
            message["tool_call_id"] = self.answers
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning:
            message |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and the row it stands in (`id`); `tools` are the JSON schemas of what the assistant may call."""

    turns: tuple[Turn, ...]
    id: int
    tools: tuple[Mapping[str, Any], ...] = ()

    def messages(self) -> list[dict[str, Any]]:
        """Return all turns as chat templates read them."""
        return [turn.message() for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be used: its position among the rows given, its place in the user's words, and what is wrong.

    quote: what stands there, which is no part of the message.
    """

    position: int
    where: str
    message: str
    quote: str = ""

    def __str__(self) -> str:
        return f"{shortened(self.where, 120)}: {self.message}"


def refuse(faults: Sequence[Fault], rows: int) -> None:
    """Stop when there are faults, telling how many rows have one and naming the first few.

    Raises:
        DataError: `faults` is not empty.
    """
    if not faults:
        return
    shown = "\n".join(shortened(str(fault), 300) for fault in faults[:_NAMED_FAULTS])
    more = len(faults) - _NAMED_FAULTS
    count = f"{len(faults):,} of {rows:,} rows cannot be used:\n" if len(faults) > 1 else ""
    rest = f"\nand {more:,} more" if more > 0 else ""
    remedy = f"mend or remove {'them' if len(faults) > 1 else 'the row'}"
    raise DataError(f"{count}{shown}{rest}\n{remedy}", quote=faults[0].quote)


def fault_of(turns: Sequence[Turn], *, answered: bool = True) -> str | None:
    """Say what is wrong with a conversation, or return None.

    One system turn at most, and first; then user and assistant take turns; every tool call but those of the last turn
    is followed by its result, every result follows its call; no turn of a person or of the assistant says nothing.
    With `answered` the last turn is the assistant's and at least one of its turns is trained; without, it is a prompt.
    """
    plain = len(turns) <= _USUAL_TURNS and all(turn.is_plain() for turn in turns)
    if plain and sum([len(turn.content) for turn in turns]) <= MOST_CHARACTERS:
        return _fault_of_plain(tuple([(turn.role, turn.trained) for turn in turns]), answered)
    return _fault_of(turns, answered)


@lru_cache(maxsize=1000)
def _fault_of_plain(turns: tuple[tuple[Role, bool], ...], answered: bool) -> str | None:
    """Say what is wrong with a conversation of texts alone: that is a matter of who speaks."""
    return _fault_of([Turn(role, "x", trained=trained) for role, trained in turns], answered)


def _fault_of(turns: Sequence[Turn], answered: bool) -> str | None:
    if not turns:
        return "it has no turns; expected at least a user's and an assistant's"
    if len(turns) > MOST_TURNS:
        return f"it has {len(turns):,} turns, expected at most {MOST_TURNS:,}; cut the conversation into several rows"
    awaited: list[Call] = []
    for number, turn in enumerate(turns, 1):
        said = f"turn {number} ({turn.role})"
        wrong = _order(turns, number, awaited) or _tool_order(turn, awaited, said)
        if wrong:
            return wrong
        if turn.role != "tool" and not turn.calls and not turn.content.strip():
            return f"{said} is empty; give it a text or remove the row"
        if turn.role == "assistant":
            awaited = list(turn.calls)
    characters = sum(len(turn.content) + len(turn.reasoning) for turn in turns)
    if characters > MOST_CHARACTERS:
        return f"it holds {characters:,} characters, expected at most {MOST_CHARACTERS:,}; cut it into several rows"
    if answered and not any(turn.role == "assistant" for turn in turns):
        return "it has no assistant turn, so there is nothing to learn from it"
    if answered and turns[-1].role != "assistant":
        return f"it ends with a turn of the {turns[-1].role}, expected an assistant's answer; add it or drop the turn"
    if answered and not any(turn.trained for turn in turns if turn.role == "assistant"):
        return "none of its assistant turns is to be trained (weight 0), so there is nothing to learn from it"
    return None


def _order(turns: Sequence[Turn], number: int, awaited: Sequence[Call]) -> str | None:
    """Say why a turn may not stand where it does; `number` counts from 1."""
    turn = turns[number - 1]
    before = turns[number - 2].role if number > 1 else None
    said = f"turn {number} ({turn.role})"
    if turn.role == "system" and number > 1:
        if turns[0].role == "system":
            return f"it has two system turns, turn 1 and turn {number}, expected one at most; join them"
        return f"{said} stands after others; a system turn must be the first"
    if turn.role == "assistant" and before in (None, "system"):
        return f"it starts with an assistant turn (turn {number}); expected a user's before it"
    if turn.role != "tool" and awaited:
        return (
            f"the call of tool {_quoted(awaited[0].name)} before {said} has no result; add a tool turn after the call"
        )
    if turn.role in ("user", "assistant") and turn.role == before:
        return f"turns {number - 1} and {number} are both of the {turn.role}; join them"
    return None


def _tool_order(turn: Turn, awaited: list[Call], said: str) -> str | None:
    """Say why a tool's turn answers no call; take the call it answers from those awaited."""
    if turn.role != "tool":
        return None
    if not awaited:
        return f"{said} is a tool's result without a call before it"
    ids = [call.id for call in awaited]
    if turn.answers is None or ids[0] is None:
        awaited.pop(0)
    elif turn.answers in ids:
        awaited.pop(ids.index(turn.answers))
    else:
        return f"{said} answers call {_quoted(turn.answers)}, which the assistant did not make"
    return None


def _quoted(name: str) -> str:
    return repr(shortened(name, 60))
