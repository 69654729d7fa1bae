"""Errors a person meets: each says what was found, what was expected and what to do.

`exit_status` is what the command line returns: 2 for something the user can mend, 1 for a fault of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finesmith.discreet import discreet

LONGEST_MESSAGE = 1300
LONGEST_NAME = 80


class FinesmithError(Exception):
    """Base of every error that finesmith raises on purpose.

    Its message may quote what stands in anybody's files: whatever could steer a terminal is replaced in it, and of a
    message that is too long the middle is left out; the home folder is ~ in it, and tokens are not in it. `quote` is
    what a row of the data says there: no part of the message, which is written into run folders and logs, but shown on
    a terminal.
    """

    exit_status = 1

    def __init__(self, message: str = "", *, quote: str = "") -> None:
        self.quote = printable(shortened(quote, LONGEST_NAME))
        super().__init__(printable(shortened(discreet(message), LONGEST_MESSAGE)))


class UserError(FinesmithError):
    """Something in the user's files, recipe, model or request that finesmith cannot go on with."""

    exit_status = 2


class DataError(UserError):
    """A data file, a row or a column is not what the task needs."""


class ModelError(UserError):
    """A base model cannot be found, verified or used for the task."""


class RunError(UserError):
    """A run folder is missing, unfinished, in use or damaged."""


class DivergenceError(UserError):
    """Training produced a loss or a gradient that is not a number; `ids` are the examples it happened on."""

    def __init__(self, message: str, ids: Sequence[int] = ()) -> None:
        self.ids = tuple(ids)
        super().__init__(message)


class PreflightError(UserError):
    """A probe found that training would go wrong; nothing was spent on it."""


def printable(text: str) -> str:
    """Return text without control characters, so that data cannot drive the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, length: int) -> str:
    """Return a text of at most `length` characters: of a longer one, its beginning and its end."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 5]} ... {text[-end:]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a recipe: the key, what is wrong with it and where it stands."""

    key: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        file = shortened(self.file or "", LONGEST_MESSAGE // 4)
        place = f"{file}:{self.line}: " if file and self.line else f"{file}: " if file else ""
        named = not self.key or self.key in self.message or self.key[: LONGEST_NAME // 2] in self.message
        said = self.message if named else f"{shortened(self.key, LONGEST_NAME)}: {self.message}"
        return f"{place}{shortened(said, LONGEST_MESSAGE // 2)}"


class RecipeError(UserError):
    """Everything wrong with a recipe, told at once; the message of very many is cut short, `problems` holds all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        shown = [
            line for i, line in enumerate(lines) if not i or sum(map(len, lines[: i + 1])) + i < LONGEST_MESSAGE - 50
        ]
        more = len(lines) - len(shown)
        super().__init__("\n".join([*shown, *([f"and {more} more; mend these first"] if more else [])]))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Problem, ...]], dict[str, Any]]:
        """Say how a copy is made: from the problems, not from their text."""
        return RecipeError, (self.problems,), self.__dict__
