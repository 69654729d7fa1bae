"""Which task that answers for every token a recipe means that names none: by its first file, and its base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.recipe import replace
from finesmith.workflows.rows import as_list

if TYPE_CHECKING:
    from finesmith.recipe import Recipe

COLUMNS_OF_WORDS = frozenset({".conll", ".iob", ".iob2", ".bio"})
ROWS = frozenset({".jsonl", ".ndjson", ".json"})
PROSE = frozenset({".txt", ".text", ".md"})
# A first row is looked for in so much of a file.
PEEKED = 2**18
MASKED, CAUSAL = ("ForMaskedLM",), ("ForCausalLM", "LMHeadModel")


def with_task(recipe: Recipe) -> tuple[Recipe, str | None]:
    """Return the recipe with the task that its data speak for, and why; as it is where it names one or none is meant.

    Raises DataError for prose of which the base model does not say whether next or masked words are to be learnt.
    """
    if recipe.task != "auto":
        return recipe, None
    path = Path(as_list(recipe.data.train)[0])
    ending = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if not path.is_file():
        return recipe, None
    if ending in COLUMNS_OF_WORDS:
        return _tagged(recipe, f"{path.name} ends as files of words with a tag each do")
    if ending in ROWS and (found := _tagged_row(path)):
        return _tagged(recipe, f"the first row of {path.name} holds {found}")
    if ending in PROSE and recipe.data.label is None and len(as_list(recipe.data.train)) == 1:
        return _prose(recipe, path)
    return recipe, None


def _tagged(recipe: Recipe, reason: str) -> tuple[Recipe, str]:
    return replace(recipe, {"task": "token-classification"}), reason


def _tagged_row(path: Path) -> str | None:
    """Say what speaks for tagged words in the first row of a file; None where nothing does, or there is none."""
    from finesmith.data.infer import LABEL_NAMES
    from finesmith.tasks.token_classification import TAG_COLUMNS, WORD_COLUMNS

    row = _first_row(path)
    for words in (name for name in WORD_COLUMNS if name in row):
        for tags in (name for name in TAG_COLUMNS if name in row and name != words):
            if _are(row[words], str) and _are(row[tags], str, int) and len(row[words]) == len(row[tags]):
                return f"a list of words ({words}) and a list of as many tags ({tags})"
            others = LABEL_NAMES & row.keys() - {tags}
            if isinstance(row[words], str) and _are(row[tags], dict) and not others and "start" in row[tags][0]:
                return f"a text ({words}) and its spans ({tags})"
    return None


def _are(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) in kinds for value in values)


def _first_row(path: Path) -> Mapping[str, Any]:
    """Return the first object of a file of JSON, empty where it cannot be had; whoever reads it all says why."""
    if path.suffix.lower() == ".gz":
        return {}
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            found, _ = json.JSONDecoder().raw_decode(file.read(PEEKED).lstrip(" \r\n\t["))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _prose(recipe: Recipe, path: Path) -> tuple[Recipe, str]:
    """Take the text as raw text for the kind of model that the base is."""
    from finesmith.models.load import find
    from finesmith.models.native_config import config_of

    base = find(recipe.model.base, recipe.model.revision)
    named = [str(name) for name in config_of(base).to_dict().get("architectures") or ()]
    for task, endings in (("masked-text", MASKED), ("causal-text", CAUSAL)):
        if named and named[0].endswith(endings):
            what = f"{path.name} is text without labels, and the base model is of the kind {named[0]}"
            return replace(recipe, {"task": task}), what
    raise DataError(
        f"{path} is text without labels, which can be read in more than one way, and the base model "
        f"({', '.join(named)[:80] or 'of no named kind'}) does not say which: --set task=causal-text (a model of next "
        "words) or --set task=masked-text (an encoder, which guesses masked words); for a task with labels name a file "
        "that has some"
    )
