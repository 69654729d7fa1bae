"""Preferences: two answers to one prompt of which one is better (DPO, ORPO), or answers marked good or bad (KTO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from finesmith.data.chat import Conversation, Fault, Turn, refuse
from finesmith.data.chat_formats import Layout, convert, detect
from finesmith.errors import DataError, shortened

MARKS = ("label", "kto_tag", "desirable", "thumbs_up")
_TRUE = frozenset({"true", "yes", "good", "1", "desirable"})
_FALSE = frozenset({"false", "no", "bad", "0", "undesirable"})


@dataclass(frozen=True, slots=True)
class Preferences:
    """Pairs of conversations that agree up to the answer, the better and the worse; only the answer is trained.

    rows: the positions of those that are here; identical: positions of rows whose answers are the same. `reason` says
    how the rows were read.
    """

    chosen: tuple[Conversation, ...]
    rejected: tuple[Conversation, ...]
    reason: str
    rows: tuple[int, ...] = ()
    identical: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True, slots=True)
class Marked:
    """Conversations whose last answer is good or bad; only that answer is trained.

    rows: the positions of those that are here. `reason` says how they were read.
    """

    conversations: tuple[Conversation, ...]
    good: tuple[bool, ...]
    reason: str
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.conversations)


def read_preferences(
    rows: Sequence[Mapping[str, Any]],
    where: Sequence[str],
    *,
    identical: Literal["drop", "keep", "refuse"] = "drop",
    malformed: Literal["stop", "drop"] = "stop",
) -> Preferences:
    """Read rows with `chosen` and `rejected`, and the prompt beside them or at the beginning of both.

    Prompt and answers may be texts, or turns of role and content or of from and value. Rows whose two answers are equal
    teach nothing: they are listed, and left out, kept or refused.

    Raises:
        DataError: the columns are not those of preferences, no row is left, or one that is not to be dropped is
            malformed or its two conversations differ before the answer; `where` names rows.
    """
    layout = detect(rows)
    if layout.kind != "preference":
        raise DataError(
            f"the rows hold no preferences ({layout.reason}); expected the columns prompt, chosen and rejected"
        )
    worse_column = next(column for row in rows for column in row if column.strip().lower() == "rejected")
    mirrored = Layout(layout.kind, {**layout.columns, "chosen": worse_column}, layout.reason)
    better, worse = convert(rows, layout, where), convert(rows, mirrored, where)
    faults = {fault.position: replace(fault, message=f"rejected: {fault.message}") for fault in worse.faults}
    faults |= {fault.position: fault for fault in better.faults}
    if malformed == "stop":
        refuse(_in_order(faults), len(rows))
    others = {each.id: each for each in worse.conversations}
    pairs: list[tuple[Conversation, Conversation]] = []
    same: list[int] = []
    for one in better.conversations:
        position = one.id
        if (other := others.get(position)) is None:
            continue
        common = _common(one.turns, other.turns)
        if common == len(one.turns) == len(other.turns):
            same.append(position)
            if identical != "keep":
                continue
            common = _last_answer(one.turns)
        if wrong := _answers_wrong(one.turns[common:], other.turns[common:]):
            faults[position] = Fault(position, where[position], wrong)
            continue
        pairs.append((_only_from(one, common), _only_from(other, common)))
    if identical == "refuse":
        faults |= {each: Fault(each, where[each], "chosen and rejected are the same") for each in same}
    if malformed == "stop" or not pairs:
        refuse(_in_order(faults), len(rows))
    if not len(pairs) > (len(same) if identical == "keep" else 0):
        raise DataError(
            f"in all of the {len(rows)} rows chosen and rejected are the same; expected a better and a worse"
        )
    return Preferences(
        tuple(one for one, _ in pairs),
        tuple(other for _, other in pairs),
        layout.reason.partition(";")[0],
        tuple(one.id for one, _ in pairs),
        tuple(same),
    )


def read_marked(
    rows: Sequence[Mapping[str, Any]], where: Sequence[str], *, malformed: Literal["stop", "drop"] = "stop"
) -> Marked:
    """Read rows with a prompt and a completion, or with turns that end with an answer, and a mark: good or bad.

    The mark is a column named label, kto_tag, desirable or thumbs_up that holds true and false, 1 and 0, or such words.

    Raises:
        DataError: there is no mark, no row is left, or one that is not to be dropped is malformed; `where` names rows.
    """
    layout = detect(rows)
    if layout.kind == "preference":
        raise DataError(f"the rows hold pairs of answers ({layout.reason}), not answers marked good or bad")
    names = {column.strip().lower(): column for row in rows for column in row}
    column = next((names[name] for name in MARKS if name in names), None)
    if column is None:
        shown = ", ".join(repr(shortened(name, 40)) for name in list(names.values())[:12])
        raise DataError(f"no column says whether an answer is good ({shown}); expected one of {', '.join(MARKS)}")
    plain = {role: name for role, name in layout.columns.items() if role != "liked"}
    found = convert(rows, Layout(layout.kind, plain, layout.reason), where)
    good = [_mark(row.get(column)) for row in rows]
    faults = {
        position: Fault(
            position,
            where[position],
            f"column {shortened(column, 40)!r} holds neither true nor false",
            repr(str(rows[position].get(column))[:80]),
        )
        for position, mark in enumerate(good)
        if mark is None
    }
    faults |= {fault.position: fault for fault in found.faults}
    kept = [each for each in found.conversations if each.id not in faults]
    if malformed == "stop" or not kept:
        refuse(_in_order(faults), len(rows))
    marks = tuple(bool(good[each.id]) for each in kept)
    conversations = tuple(_only_from(each, _last_answer(each.turns)) for each in kept)
    reason = f"{layout.reason.partition(';')[0]}; column {column!r} says which answers are good"
    return Marked(conversations, marks, reason, tuple(each.id for each in kept))


def _in_order(faults: Mapping[int, Fault]) -> list[Fault]:
    return [faults[position] for position in sorted(faults)]


def _common(one: Sequence[Turn], other: Sequence[Turn]) -> int:
    """Return how many turns both begin with."""
    alike = (_plain(first) == _plain(second) for first, second in zip(one, other, strict=False))
    return next((number for number, same in enumerate(alike) if not same), min(len(one), len(other)))


def _plain(turn: Turn) -> Turn:
    """Return the turn as it is compared: its training mark says nothing about what was said."""
    return replace(turn, trained=True)


def _answers_wrong(one: Sequence[Turn], other: Sequence[Turn]) -> str | None:
    """Say why what follows the common turns is not an answer each, or return None."""
    for name, turns in (("chosen", one), ("rejected", other)):
        if not turns:
            return f"{name} is only the beginning of the other answer; expected two whole conversations"
        if turns[0].role != "assistant":
            return (
                f"chosen and rejected differ before the answer (at a turn of the {turns[0].role}); expected the same "
                "prompt in both"
            )
    return None


def _only_from(conversation: Conversation, first: int) -> Conversation:
    """Return the conversation with nothing trained before turn `first` (from 0)."""
    turns = tuple(replace(turn, trained=number >= first) for number, turn in enumerate(conversation.turns))
    return replace(conversation, turns=turns)


def _last_answer(turns: Sequence[Turn]) -> int:
    """Return where the last answer begins: after the last turn that is a person's."""
    return next(number for number in range(len(turns), 0, -1) if turns[number - 1].role in ("user", "system"))


def _mark(value: Any) -> bool | None:
    said = str(value).strip().lower().removesuffix(".0")
    return True if said in _TRUE else False if said in _FALSE else None
