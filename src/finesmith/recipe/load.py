"""A recipe from what a person gives: a recipe file or a data path, and `--set` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finesmith.errors import Problem
from finesmith.recipe.check import Place, checked
from finesmith.recipe.keys import SECTION_KEY, keys, unknown
from finesmith.recipe.scalars import show
from finesmith.recipe.schema import Recipe
from finesmith.recipe.source import DEEPEST, RECIPE_SUFFIXES, Source, is_recipe_json, merged, parse_value, read


def load(path_or_data: str | Path, sets: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe of a recipe file, or of a data path, after the overrides `key=value` in `sets`.

    A .yaml, .yml or .toml file is a recipe, and a .json file whose keys are a recipe's sections; anything else is taken
    for `data.train`. A relative data or model path in a recipe is looked for beside the recipe first, then in the
    current directory; one given here or in `sets` belongs to the current directory.

    Raises RecipeError with every problem at once, each with its file and line.
    """
    path = Path(path_or_data)
    if is_recipe(path):
        source = read(path)
        source.tree = _beside(source.tree, path.parent)
    else:
        source = Source(tree={"data": {"train": str(path_or_data)}})
    problems = list(source.problems)
    tree, origins = source.tree, {}
    for words in sets:
        key, fault, value = _split(words)
        if not fault:
            try:
                tree = merged(tree, tuple(key.split(".")), value)
                origins[key] = f"--set {key}"
            except TypeError as error:
                section = str(error)
                remedy = f"; set {SECTION_KEY[section]} instead of {section}" if section in SECTION_KEY else ""
                fault = f"{key} cannot be set, because {section} is given as a plain value{remedy}"
        if fault:
            problems.append(Problem(key, fault, "--set"))

    def place(key: str) -> Place:
        given = next(
            (origins[k] for k in origins if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")), None
        )
        return ("--set", None) if given else (source.file, source.line(key))

    return checked(tree, place, problems)


def is_recipe(path: Path) -> bool:
    """Tell whether `load` takes a path for a recipe file rather than for data."""
    if path.suffix.lower() == ".json":
        return is_recipe_json(path, [key for key in keys() if "." not in key])
    return path.suffix.lower() in RECIPE_SUFFIXES


def _split(words: str) -> tuple[str, str, Any]:
    """Return the key, what is wrong (or an empty text) and the value of one `key=value`."""
    key, equals, text = words.partition("=")
    key = key.strip()
    if not equals or not key:
        return "", f"{show(words)} is not key=value; write for example --set train.epochs=3", None
    if not all(key.split(".")) or key.count(".") > DEEPEST:
        return key, unknown(key), None
    try:
        return key, "", parse_value(text)
    except ValueError as error:
        return key, f"{key} is {show(text)}: {error}; in a shell put quotes around the whole key=value", None


def _beside(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tree with each data or model path that exists beside the recipe leading there."""
    found = dict(tree)
    if folder == Path():
        return found
    for section, names in {"data": ("train", "validation", "test"), "model": ("base",)}.items():
        values = found.get(section)
        if isinstance(values, dict):
            changed = {name: _lead(values[name], folder) for name in names if name in values}
            found[section] = {**values, **changed}
    return found


def _lead(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_lead(item, folder) for item in value]
    if not isinstance(value, str) or not value or value == "default":
        return value
    try:
        return str(folder / value) if (folder / value).exists() else value
    except OSError:
        return value  # too long for a path: a hub id or a mistake that the reader explains
