"""From plain values to a checked recipe, with everything that is wrong told at once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from finesmith.errors import Problem, RecipeError
from finesmith.recipe.conflicts import conflicts
from finesmith.recipe.keys import LORA_OPTIONS, SECTION_KEY, keys, unknown, usual
from finesmith.recipe.scalars import clip, show, whole_number
from finesmith.recipe.schema import Recipe

Place = tuple[str | None, int | None]

_SURROGATE = re.compile("[\ud800-\udfff]")
# A list of names that is longer is counted where one of them is offered.
LONGEST_LIST = 100


def from_dict(tree: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested plain values.

    Raises RecipeError with every problem: unknown keys, wrong values, and settings that contradict each other or would
    change nothing.
    """
    return checked(tree, lambda _: (None, None))


def checked(tree: Mapping[str, Any], place: Callable[[str], Place], earlier: Sequence[Problem] = ()) -> Recipe:
    """Do what `from_dict` does; `place` tells the file and line of a key, `earlier` are problems already found."""
    plain, broken = _tidy(tree)
    faults = {
        key: f"{clip(key)} holds half of a character, as a broken emoji leaves it; expected a word" for key in broken
    }
    faults |= _lora_faults(plain)
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        faults |= _faults(error, plain)
        for key in faults:
            _remove(plain, key.split("."))
        plain.setdefault("data", {}).setdefault("train", "?")
        recipe = Recipe.model_validate(plain)
    for conflict in conflicts(recipe):
        if not _touches(conflict.keys, faults):
            faults.setdefault(conflict.keys[0], conflict.message)
    problems = [*earlier, *(Problem(key, message, *place(key)) for key, message in faults.items())]
    if problems:
        raise RecipeError(sorted(problems, key=lambda p: (p.file or "", p.line or 0)))
    return recipe


def _tidy(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Copy the tree's sections; return them and the keys left out, because they are not whole characters.

    An empty section (a heading whose keys are commented out) counts as absent.
    """
    broken = []

    def section(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for name, value in values.items():
            known = keys().get(f"{prefix}{name}")
            if value is None and (f"{prefix}{name}" == "method.lora" or (known and known.section)):
                continue
            if _SURROGATE.search(name):
                broken.append(f"{prefix}{name}")
                continue
            copy[name] = section(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        return copy

    plain = section(tree, "")
    plain.setdefault("data", {})
    return plain, broken


def _faults(error: ValidationError, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told: set[str] = set()
    details = error.errors(include_url=False, include_context=False)
    # Of the branches of a union that fail, the one that points at an item of a list says most.
    for detail in sorted(details, key=lambda d: not any(isinstance(part, int) for part in d["loc"])):
        location = detail["loc"]
        key = _schema_key(location)
        name = ".".join(map(str, location))
        if detail["type"] == "extra_forbidden":
            dotted = f"{name} is written with a dot; write {name.rpartition('.')[2]} in the section it belongs to"
            yield name, dotted if name in keys() else unknown(name)
        elif key not in told:
            told.add(key)
            yield key, _explain(key, _value(tree, key.split(".")), detail["type"], location)


def _schema_key(location: Sequence[int | str]) -> str:
    """Return the longest start of a pydantic location that is a key; the rest are branches of a union and indices."""
    name = ""
    for part in location:
        longer = f"{name}.{part}" if name else str(part)
        if longer not in keys():
            break
        name = longer
    return name


def _explain(key: str, value: Any, kind: str, location: Sequence[int | str]) -> str:
    known = keys()[key]
    if kind == "missing":
        return f"{key} is missing, expected {known.accepts}; for example train: reviews.csv under data:"
    if known.section:
        remedy = f"; did you mean {SECTION_KEY[key]}?" if key in SECTION_KEY else ""
        return f"{key} is {show(value)}, expected a section of keys{remedy}"
    index = next((part for part in location if isinstance(part, int)), None)
    name, expected = key, known.accepts
    if isinstance(value, list) and index is not None:
        name, expected, value = f"{key}[{index}]", known.item, value[index]
    hint = usual(key)
    if isinstance(value, str) and (close := difflib.get_close_matches(value.lower(), known.choices, 1)):
        hint = f"; did you mean {close[0]}?"
        expected = expected if len(expected) <= LONGEST_LIST else f"one of {len(known.choices)} names"
    elif isinstance(value, (bool, int, float)) and kind == "string_type" and not known.choices:
        hint = "; if that is the text, put it in quotes"
    return f"{name} is {show(value)}, expected {expected}{hint}"


def _lora_faults(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options = _value(tree, ["method", "lora"])
    if not isinstance(options, Mapping):
        return
    for name, value in options.items():
        key = f"method.lora.{name}"
        if name not in LORA_OPTIONS:
            yield key, unknown(key)
        elif not _finite(value):
            yield key, f"{key} is {show(value)}, expected finite numbers"
        elif expected := _lora_expectation(name, value):
            yield key, f"{key} is {show(value)}, expected {expected}"


def _lora_expectation(name: str, value: Any) -> str | None:
    """Return what an option should have been, or None when it is well or peft's to judge."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "r" and not (numeric and isinstance(whole_number(value), int) and value >= 1):
        return "a whole number, r >= 1; a usual value is 16"
    if name == "lora_alpha" and not (numeric and value > 0):
        return "lora_alpha > 0; a usual value is twice r"
    if name == "lora_dropout" and not (numeric and 0 <= value < 1):
        return "0 <= lora_dropout < 1"
    if name == "target_modules" and not (
        (isinstance(value, str) and value)
        or (isinstance(value, list) and value and all(isinstance(item, str) for item in value))
    ):
        return "all-linear, a pattern, or a list of module names such as [query, value]"
    return None


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _value(tree: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _remove(tree: dict[str, Any], path: Sequence[str]) -> None:
    """Remove the value at a path; an unknown key may itself contain dots."""
    inside: Any = tree
    for depth, part in enumerate(path):
        if not isinstance(inside, dict):
            return
        rest = ".".join(path[depth:])
        if rest in inside:
            del inside[rest]
            return
        inside = inside.get(part)


def _touches(involved: Collection[str], faulty: Collection[str]) -> bool:
    return any(
        key == bad or key.startswith(f"{bad}.") or bad.startswith(f"{key}.") for key in involved for bad in faulty
    )
