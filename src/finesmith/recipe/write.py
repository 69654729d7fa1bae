"""Recipes as plain values and as commented YAML that reads back to an equal recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesmith.recipe.check import from_dict
from finesmith.recipe.keys import keys
from finesmith.recipe.scalars import parse_scalar
from finesmith.recipe.schema import Recipe
from finesmith.recipe.source import merged

_LONGEST_COMMENT = 200
_WIDEST_LIST = 90
_BARE = re.compile(r"(?:[A-Za-z_]|/|\.\.?/)[A-Za-z0-9_./-]*", re.ASCII)
# Read as booleans or null by YAML 1.1 programs; quoted so that every reader agrees.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_dict(recipe: Recipe, only_set: bool = False) -> dict[str, Any]:
    """Return a recipe as nested plain values, or only what was set in it."""
    return recipe.model_dump(mode="python", exclude_unset=only_set)


def flatten(recipe: Recipe, only_set: bool = False) -> dict[str, Any]:
    """Return a recipe's values under dotted keys, `method.lora` option by option."""
    flat: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = prefix + name
            if key == "method.lora" or (key in keys() and keys()[key].section):
                walk(value, f"{key}.")
            else:
                flat[key] = value

    walk(to_dict(recipe, only_set), "")
    return flat


def replace(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the values under these dotted keys, checked anew.

    Raises RecipeError when the result is not a valid recipe.
    """
    tree = to_dict(recipe, only_set=True)
    for key, value in values.items():
        tree = merged(tree, tuple(key.split(".")), value)
    return from_dict(tree)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with every data and model path that exists made absolute, so that it runs from anywhere."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(Path(value).resolve()) if isinstance(value, str) and _exists(value) else value

    flat = flatten(recipe)
    paths = {key: flat[key] for key in ("data.train", "data.validation", "data.test", "model.base")}
    moved = {key: absolute(value) for key, value in paths.items() if value != "default"}
    return replace(recipe, {key: value for key, value in moved.items() if value != paths[key]})


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:
        return False  # too long for a path


def to_yaml(recipe: Recipe, comments: Mapping[str, str] | None = None, header: str = "", only_set: bool = False) -> str:
    """Write a recipe as YAML that `load` reads back to an equal recipe.

    `comments` says why, by dotted key, one line each; `header` opens the file; `only_set` leaves out what was not set.
    Raises ValueError when a comment's key is not in the schema.
    """
    comments = comments or {}
    if strange := [key for key in comments if key not in keys() and not key.startswith("method.lora.")]:
        raise ValueError(f"comments for keys that are not in the schema: {', '.join(strange)}")
    lines = [f"# {_sanitised(line)}".rstrip() for line in header.splitlines()]
    _emit(to_dict(recipe, only_set), "", lines, comments)
    return "\n".join(lines) + "\n"


def _emit(values: Mapping[str, Any], prefix: str, lines: list[str], comments: Mapping[str, str]) -> None:
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        key = prefix + name
        why = f"  # {_sanitised(comments[key])}" if comments.get(key) else ""
        if not prefix and lines and isinstance(value, dict):
            lines.append("")
        if isinstance(value, dict) and value and (key == "method.lora" or key in keys()):
            lines.append(f"{indent}{_scalar(name)}:{why}")
            _emit(value, f"{key}.", lines, comments)
        elif isinstance(value, list) and len(flow(value)) > _WIDEST_LIST:
            lines.append(f"{indent}{_scalar(name)}:{why}")
            lines += [f"{indent}  - {flow(item)}" for item in value]
        else:
            lines.append(f"{indent}{_scalar(name)}: {flow(value)}{why}")


def flow(value: Any) -> str:
    """Write a value on one line of YAML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(name)}: {flow(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # YAML 1.1 programs take 2e-05 for text and 2.0e-05 for a number.
        mantissa, exponent, power = repr(value).partition("e")
        return f"{mantissa}{'.0' if exponent and '.' not in mantissa else ''}{exponent}{power}"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _RESERVED and parse_scalar(text) == text:
        return text
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if 0x20 <= code < 0x7F or (character.isprintable() and code > 0xA0 and code != 0xFEFF):
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _sanitised(text: str) -> str:
    """Return a comment as one line of printable characters, at most 200."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= _LONGEST_COMMENT else f"{line[: _LONGEST_COMMENT - 3]}..."
