"""What a saved model says about itself, checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import RunError
from finesmith.recipe import ADAPTERS
from finesmith.run import Run, read_json

if TYPE_CHECKING:
    from finesmith.tasks.protocol import Task

_KINDS: Mapping[str, tuple[type, ...]] = {
    "task": (dict,),
    "method": (str,),
    "base": (str,),
    "revision": (str, type(None)),
    "base_sha256": (str, type(None)),
    "max_length": (int,),
    "cleaning": (dict,),
    "reading": (dict,),
    "text": (str,),
    "text_pair": (str, type(None)),
    "label": (str,),
    "metric": (str,),
}
LONGEST = 2**24
METHODS = frozenset({"full", "head_then_full", "features", *ADAPTERS})
POOLINGS = frozenset({"mean", "cls", "last"})


def read_about(folder: Path) -> tuple[dict[str, Any], Task]:
    """Return what `finesmith.json` of a model folder holds, and its task.

    Raises RunError when it is missing, or a value is not of the kind that finesmith writes.
    """
    from finesmith import tasks
    from finesmith.data.clean import Cleaning

    path = folder / "finesmith.json"
    about = read_json(path)
    if not isinstance(about, dict):
        raise damaged(path, "", about)
    for key, kinds in _KINDS.items():
        if not isinstance(about.get(key), kinds) or isinstance(about.get(key), bool):
            raise damaged(path, key, about.get(key))
    for key, known in {"method": METHODS, "pooling": POOLINGS}.items():
        if about.get(key) not in known:
            raise damaged(path, key, about.get(key))
    if not 0 < about["max_length"] <= LONGEST:
        raise damaged(path, "max_length", about["max_length"])
    if not about["cleaning"].keys() <= {field.name for field in fields(Cleaning)}:
        raise damaged(path, "cleaning", about["cleaning"])
    if about["reading"].keys() != {"encoding", "commas"}:
        raise damaged(path, "reading", about["reading"])
    try:
        return about, tasks.restore(about["task"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(path, "task", about["task"]) from None


def damaged(path: Path, key: str, value: object) -> RunError:
    """Return the error for a value that finesmith would not have written."""
    return RunError(
        f"{path} is damaged: {key or 'it'} is {str(value)[:80]!r}, which finesmith does not write; copy the model "
        "folder back from where it is whole, or tune again"
    )


def is_model(folder: Path) -> bool:
    """Whether a folder is a model folder by itself, and no run."""
    return (folder / "finesmith.json").is_file() and not (folder / "run.json").exists()


def keep_evaluation(folder: str, name: str, result: Mapping[str, Any]) -> None:
    """Write scores on other data into the run folder; a model folder by itself stays as it is."""
    if is_model(Path(folder)):
        return
    run = Run(Path(folder))
    try:
        run.write_json(f"evaluations/{name}.json", result)
    finally:
        run.close()
