"""Errors a person meets: each says what was found, what was expected and what to do.

`exit_status` is what the command line returns: 2 for something the user can mend, 1 for a fault of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FinesmithError(Exception):
    """Base of every error that finesmith raises on purpose."""

    exit_status = 1


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


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a recipe: the key, what is wrong with it and where it stands."""

    key: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return (
            f"{place}{self.key}: {self.message}"
            if self.key and self.key not in self.message
            else f"{place}{self.message}"
        )


class RecipeError(UserError):
    """Everything wrong with a recipe, told at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
