"""Plain values as a person writes them: numbers, booleans and text, read and shown one way everywhere."""

from __future__ import annotations

import json
import re
from typing import Any

SHOWN = 80

_NULL = re.compile(r"(?:~|null|Null|NULL)?")
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_A_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LONGEST_NUMBER = 300
# As many digits as Python turns into a number, so that one from a JSON recipe is written and read back.
_LONGEST_WHOLE = 4300


def parse_scalar(text: str) -> Any:
    """Return what an unquoted YAML scalar means: None, a boolean, a number, or the text itself.

    Follows YAML 1.2 (so `no` is text and `2e-5` a number), with underscores allowed in numbers. A whole number with a
    leading zero, a date and a time stay text.
    """
    if _NULL.fullmatch(text):
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if len(text) > _LONGEST_NUMBER:
        return int(text) if len(text) <= _LONGEST_WHOLE and _WHOLE.fullmatch(text) else text
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NOT_A_NUMBER.fullmatch(text):
        return float(text.replace(".", ""))
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9_]+", text):
        return float(text.replace("_", ""))
    return text


def number(value: Any) -> Any:
    """Return the number that a text spells; anything else unchanged, for the schema to judge."""
    if isinstance(value, str):
        meant = parse_scalar(value.strip())
        return meant if isinstance(meant, (int, float)) and not isinstance(meant, bool) else value
    return value


def whole_number(value: Any) -> Any:
    """Return the whole number that a text or a float such as 1e5 spells; anything else unchanged."""
    meant = number(value)
    return int(meant) if isinstance(meant, float) and meant.is_integer() else meant


def truth(value: Any) -> Any:
    """Return the boolean that yes, no, on, off, true or false spells; anything else unchanged."""
    return _YES_NO.get(value.strip().lower(), value) if isinstance(value, str) else value


def column_name(value: Any) -> Any:
    """Return a whole number as the column name that it spells; anything else unchanged."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def show(value: Any) -> str:
    """Return a value as an error message shows it: YAML-like, printable, at most 80 characters."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return clip(f"'{value}'")
    try:
        return clip(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError:
        return f"a {type(value).__name__} too large to show"


def clip(text: str) -> str:
    """Return a text made printable and cut to 80 characters."""
    cut = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
