"""Tables with a column that asks and one that answers, for tasks that put what is asked in words of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from finesmith.data.chat import Conversation, Fault, Turn, fault_of, refuse
from finesmith.errors import DataError, shortened
from finesmith.tasks.corpus import Reading

if TYPE_CHECKING:
    from finesmith.data.sources import Origin

T = TypeVar("T")

HALF = "\N{REPLACEMENT CHARACTER}"


class RowError(ValueError):
    """Why a row cannot be used."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rows of a file ask, and what they answer (None: not looked at). columns: their names by role."""

    asked: list[Any]
    answers: list[Any] | None
    columns: dict[str, str]
    places: Sequence[str]
    origins: Sequence[Origin]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.origins[0].name


def read_asked(
    source: str, reading: Reading, asking: Sequence[str], answering: Sequence[str], *, answered: bool = True
) -> Asked:
    """Read a table; its columns are those that the recipe names, else the first with a name of `asking`, `answering`.

    Raises DataError where there are none.
    """
    from finesmith.data.sources import read

    table = read([source], encoding=reading.encoding)
    names, first = table.table.column_names, table.origins[0]
    prompt = reading.prompt if answered or reading.prompt in names else None
    columns = {"prompt": _column(names, prompt or (None if answered else reading.text), asking, first.name)}
    if answered:
        columns["completion"] = _column(names, reading.completion, answering, first.name)
        if columns["prompt"] == columns["completion"]:
            raise DataError(f"{first.name} would be read from one column alone; name data.prompt and data.completion")
    told = " and ".join(f"{role} in column {name[:80]!r}" for role, name in columns.items())
    values = {role: table.table[name].to_pylist() for role, name in columns.items()}
    origins = [replace(first, notes=(*first.notes, told)), *table.origins[1:]]
    return Asked(values["prompt"], values.get("completion"), columns, table.places(), origins)


def _column(names: Sequence[str], named: str | None, usual: Sequence[str], source: str) -> str:
    if named is not None:
        if named not in names:
            raise DataError(f"{source} has no column {named[:80]!r}; it has {', '.join(names)[:200]}")
        return named
    known = {name.strip().lower(): name for name in reversed(names)}
    found = next((known[name] for name in usual if name in known), None)
    if found is None:
        raise DataError(
            f"{source} has no column called {', '.join(usual)}; it has {', '.join(names)[:200]}; name the columns "
            "with data.prompt and data.completion"
        )
    return found


def usable(table: Asked, make: Callable[[int], T], malformed: str | None) -> list[tuple[int, T]]:
    """Return what `make` makes of the rows, with their numbers; it raises RowError for those that cannot be used.

    Raises DataError for those, unless `malformed` is drop, and where none is left.
    """
    made, faults = [], []
    for number in range(len(table.asked)):
        try:
            made.append((number, make(number)))
        except RowError as error:
            faults.append(Fault(number, table.places[number], str(error)))
    if malformed != "drop" or not made:
        refuse(faults, len(table.asked))
    if not made:
        raise DataError(f"{table.name} holds no rows")
    return made


def text_of(value: Any, column: str) -> str:
    """Return a cell's text without white space around it. Raises RowError where it holds none."""
    if not isinstance(value, str):
        held = "nothing" if value is None else shortened(repr(value), 60)
        raise RowError(f"column {column[:80]!r} holds {held}, expected a text")
    if not value.strip():
        raise RowError(f"column {column[:80]!r} is empty, expected a text")
    if HALF in value:
        raise RowError(
            f"column {column[:80]!r} holds half of a character (a lone surrogate, or {HALF} itself); write it again"
        )
    return value.strip()


def round_of(number: int, question: str, answer: str | None) -> Conversation:
    """Return a conversation of one question, and its answer if it has one. Raises RowError where it can be none."""
    turns = [Turn("user", question), *([] if answer is None else [Turn("assistant", answer)])]
    if wrong := fault_of(turns, answered=answer is not None):
        raise RowError(wrong)
    return Conversation(tuple(turns), number)
