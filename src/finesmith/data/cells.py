"""Understand the cells of a csv column: numbers, numbers with decimal commas, booleans, and lists."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

from finesmith.data.profiles import label_separator

if TYPE_CHECKING:
    import pyarrow as pa

DECIMAL = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$"
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_WITH_COMMA = r"^[-+]?(0|[1-9][0-9]{0,14}),[0-9]+$"
_MAYBE_COMMA = r"^[-+]?(0|[1-9][0-9]{0,14})(,[0-9]+)?$"
_THOUSANDS = r"^[-+]?[1-9][0-9]{0,2}(,[0-9]{3})?$"
_ABSENT_NUMBERS = ("NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null")
_BOOLEANS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))
_HEAD = 1000
_VARIED = 20_000
_LONGEST_LIST = 2000
_SIDE_BY_SIDE = re.compile(r"""['"]\s+['"]""")


def typed(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, str | None]:
    """Return a text column as integers, decimals, booleans or lists when every value is one, and what to say of it.

    Empty cells are null in such columns and stay empty text in others; numbers with leading zeros stay text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    head = _head(column, [""])
    if len(head) == 0:
        return column, None
    probable = pc.mean(pc.match_substring_regex(head, DECIMAL)).as_py()
    if probable >= 0.5:
        filled = column.filter(pc.not_equal(column, ""))
        numbers = filled.filter(pc.invert(pc.is_in(filled, value_set=pa.array(_ABSENT_NUMBERS))))
        for pattern, kind in ((_INTEGER, pa.int64()), (DECIMAL, pa.float64())):
            if len(numbers) and _all_match(numbers, pattern):
                blanks = pa.array(["", *_ABSENT_NUMBERS])
                emptied = pc.if_else(pc.is_in(column, value_set=blanks), pa.scalar(None, pa.string()), column)
                absent = len(filled) - len(numbers)
                said = f"is numeric; {absent} cells that say NA or NaN are read as missing" if absent else None
                return pc.cast(emptied, kind), said
        return column, None
    for pair in _BOOLEANS:
        if head[0].as_py() in pair and pc.all(pc.is_in(column, value_set=pa.array(["", *pair]))).as_py():
            emptied = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            return pc.cast(pc.utf8_lower(emptied), pa.bool_()), None
    lists = _lists(column, head)
    return (column, None) if lists is None else (lists, "holds lists written in brackets, which are read as lists")


def decimal_commas(table: pa.Table, *, separated: bool) -> tuple[pa.Table, list[str]]:
    """Write points for the commas of text columns whose every value is a number, and say so.

    `separated`: commas part the fields of the file. Then a column that can be read as lists of labels ("1,5": the
    labels 1 and 5) stays as it is; in other files it is numbers. Where every comma may part thousands nothing changes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    notes: list[str] = []
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        head = _head(column, ["", *_ABSENT_NUMBERS])
        if not len(head) or not _all_match(head, _MAYBE_COMMA):
            continue
        aside = pc.is_in(column, value_set=pa.array(["", *_ABSENT_NUMBERS]))
        filled = column.filter(pc.invert(aside))
        if not _all_match(filled, _MAYBE_COMMA):
            continue
        with_comma = filled.filter(pc.match_substring_regex(filled, _WITH_COMMA))
        if not len(with_comma):
            continue
        grouped, named = _all_match(filled, _THOUSANDS), f"column {name[:80]!r}"
        # An example of the form, not of the data: notes are kept where values must not be.
        shown = "1,500" if grouped else "1,5"
        pointed = shown.replace(",", ".")
        if grouped:
            notes.append(
                f"{named} holds values such as {shown}, which may be {pointed} or {shown.replace(',', '')}: they are "
                "left as they stand; write decimals with a point and thousands without a comma"
            )
            continue
        if separated and label_separator(Counter(filled.slice(0, _VARIED).to_pylist())) == ",":
            notes.append(
                f"{named} holds values such as {shown}, read as lists of labels; if they are numbers with decimal "
                f"commas, write {pointed}"
            )
            continue
        notes.append(
            f"{named} holds numbers with decimal commas: {shown} is read as {pointed}; if these are lists of labels, "
            "say so with --set data.separator=,"
        )
        changed = pc.replace_substring(pc.utf8_ltrim(column, "+"), ",", ".")
        table = table.set_column(place, name, pc.if_else(aside, column, changed))
    return table, notes


def _head(column: pa.ChunkedArray, aside: list[str]) -> pa.ChunkedArray:
    """Return the first values of a column that are none of those aside, without a pass over a long column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    taken = _HEAD
    while True:
        some = column.slice(0, taken)
        found = some.filter(pc.invert(pc.is_in(some, value_set=pa.array(aside))))
        if len(found) >= _HEAD or taken >= len(column):
            return found.slice(0, _HEAD)
        taken *= 8


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())


def _lists(column: pa.ChunkedArray, head: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of JSON or Python lists of texts or numbers as lists, null where a cell is blank, or None.

    Lists of decimals are vectors rather than labels, and stay as they are.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    bracketed = r"^\s*(\[[\s\S]*\]\s*)?$"
    if not _all_match(head, bracketed) or not _all_match(column, bracketed):
        return None
    if pc.max(pc.binary_length(column)).as_py() > _LONGEST_LIST:
        return None
    coded = pc.dictionary_encode(column).unify_dictionaries()
    parsed: list[list[Any] | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        for cell in coded.chunk(0).dictionary.to_pylist():
            found = _list(cell) if cell.strip() else None
            if found is None and cell.strip():
                return None
            parsed.append(found)
    if all(one is None for one in parsed):
        return None
    inside = [value for one in parsed if one for value in one]
    if any(isinstance(value, float) and not value.is_integer() for value in inside):
        return None
    kind = pa.string()
    if inside and all(isinstance(value, int | float) and abs(value) < 2**63 for value in inside):
        kind = pa.int64()
    if kind == pa.string():
        parsed = [None if one is None else [str(value) for value in one] for one in parsed]
    else:
        parsed = [None if one is None else [int(value) for value in one] for one in parsed]
    values = pa.array(parsed, pa.list_(kind))
    return pa.chunked_array([values.take(chunk.indices) for chunk in coded.chunks])


def _list(cell: str) -> list[Any] | None:
    """Return the list that a cell holds in the notation of JSON or Python, or None."""
    # Where neither occurs inside, single quotes only enclose, and JSON is read ten times as fast as Python.
    plain = '"' not in cell and "\\" not in cell
    try:
        found = json.loads(cell.replace("'", '"') if plain else cell)
    except (ValueError, RecursionError):
        # Texts side by side without a comma would be joined into one.
        if _SIDE_BY_SIDE.search(cell):
            return None
        try:
            found = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(found, list):
        return None
    return found if all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in found) else None
