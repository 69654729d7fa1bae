"""Tasks: one file each. `protocol.py` says what a task must be able to do; this page finds them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError, UserError

if TYPE_CHECKING:
    from finesmith.tasks.language import LanguageTask
    from finesmith.tasks.protocol import LabelColumn, Task


# Files beside the tasks: what a task must be able to do, and losses that several share.
NO_TASKS = frozenset(
    {
        "protocol", "language", "corpus", "documents", "dialogues", "answers", "answer_rivals", "answer_scores",
        "writing", "asked_tables", "losses", "contrastive", "encoded_texts", "compared_answers", "preference_losses",
        "preference_rivals", "embedding_rows", "two_part",
    }
)  # fmt: skip


def names() -> list[str]:
    """Return the names of all tasks, in the order in which they are asked whether a label column is theirs."""
    modules = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in NO_TASKS]
    return sorted(module.replace("_", "-") for module in modules)


def get(name: str) -> type[Task]:
    """Return the task of classes or numbers called `name`.

    Raises UserError, listing the choices, when there is none.
    """
    if name not in names():
        raise UserError(f"there is no task {name!r}; choose one of {', '.join(names())}")
    found: type[Task] = importlib.import_module(f"finesmith.tasks.{name.replace('-', '_')}").TASK
    return found


def language_task(name: str) -> type[LanguageTask]:
    """Return the task called `name`, one that answers for every token."""
    found: type[LanguageTask] = importlib.import_module(f"finesmith.tasks.{name.replace('-', '_')}").TASK
    return found


def choose(column: LabelColumn) -> tuple[type[Task], str]:
    """Return the one task that the label column speaks for, and why, as a sentence.

    Raises DataError when no task or more than one fits.
    """
    from finesmith.tasks.protocol import Task

    asked = [task for task in map(get, names()) if issubclass(task, Task)]
    fits = [(task, reason) for task in asked if (reason := task.fits(column)) is not None]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        raise DataError(
            f"no task fits the label column {column.name!r} ({column.describe()}); "
            f"name one with --set task=NAME ({', '.join(names())}) or another column with --set data.label=NAME"
        )
    choices = "; ".join(f"--set task={task.name} ({reason})" for task, reason in fits)
    raise DataError(f"the label column {column.name!r} can be read in more than one way: {choices}")


def restore(state: dict[str, Any]) -> Task:
    """Rebuild a task from what `Task.state` returned."""
    return get(state["name"]).from_state(state)


__all__: Sequence[str] = ("choose", "get", "language_task", "names", "restore")
