"""Read json, jsonl, parquet, xlsx and plain text into tables whose columns keep their types."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data import bounds
from finesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_LINES_AT_ONCE = 1000
_EXPECTED_JSON = 'expected a list of objects such as [{"text": "...", "label": "..."}]'


def read_text(text: str, name: str) -> tuple[pa.Table, list[str]]:
    """Return a table with one column, `text`: a row per line that is not blank.

    Raises:
        DataError: there is no such line.
    """
    import pyarrow as pa

    lines = [line.rstrip("\r") for line in _lines(text)]
    kept = [line for line in lines if line.strip()]
    if not kept:
        raise DataError(f"{name} is empty; expected one text per line")
    return pa.table({"text": pa.array(kept, pa.string())}), _blank_note(lines, kept)


def read_jsonl(text: str, name: str) -> tuple[pa.Table, list[str]]:
    """Return a table with a row per line, each line a JSON object.

    Raises:
        DataError: no rows, or a line that is not a JSON object.
    """
    lines = _lines(text)
    if len(lines) == 1 and text.lstrip().startswith("["):
        return read_json(text, name)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(lines), _LINES_AT_ONCE):
        some = lines[start : start + _LINES_AT_ONCE]
        rows += _objects_at_once(some) or _objects_one_by_one(some, start + 1, name)
    if not rows:
        raise DataError(f"{name} is empty; expected one JSON object per line")
    table, notes = table_from_rows(rows, name)
    return table, [*_blank_note(lines, rows), *notes]


def _objects_at_once(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the lines' objects parsed as one list, twice as fast as each alone, or None when anything is amiss."""
    try:
        rows = json.loads("[" + ",".join(lines) + "]")
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows) else None


def _objects_one_by_one(lines: Sequence[str], first: int, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name} line {number}, column {error.colno}: not valid JSON ({error.msg}); "
                "expected one JSON object per line",
                quote=line.strip(),
            ) from None
        except (RecursionError, ValueError):
            raise DataError(
                f"{name} line {number}: nested too deeply, or holds a number of thousands of digits; expected one "
                "object of plain values per line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{name} line {number} is {_kind(row)}, expected a JSON object such as "
                '{"text": "...", "label": "..."}',
                quote=line.strip(),
            )
        rows.append(row)
    return rows


def read_json(text: str, name: str) -> tuple[pa.Table, list[str]]:
    """Return the rows of a JSON document: a list of objects, objects by key, columns, or a list under one key.

    Raises:
        DataError: not valid JSON (line and column named), a key given twice, or none of those forms.
    """
    if not text.strip():
        raise DataError(f"{name} is empty; {_EXPECTED_JSON}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            times = Counter(key for key, _ in pairs)
            twice = next(key for key in found if times[key] > 1)
            raise DataError(
                f"{name}: key {_short(twice)!r} stands twice in one object, so one value would be lost; rename one"
            )
        return found

    try:
        document = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            table, notes = read_jsonl(text, name)
            return table, ["one object per line, although the name ends in .json", *notes]
        raise DataError(
            f"{name} line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); mend it there, or copy "
            "the file again if it was cut off"
        ) from None
    except (RecursionError, ValueError):
        raise DataError(
            f"{name}: nested too deeply, or holds a number of thousands of digits; {_EXPECTED_JSON}"
        ) from None
    rows, notes = _rows_of(document, name)
    if not rows:
        raise DataError(f"{name} holds no rows; {_EXPECTED_JSON}")
    table, more = table_from_rows(rows, name)
    return table, [*notes, *more]


def _rows_of(document: Any, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    if isinstance(document, list):
        return _objects(document, name), []
    if not isinstance(document, dict):
        raise DataError(f"{name} holds {_kind(document)}; {_EXPECTED_JSON}")
    values = list(document.values())
    tables = [
        key for key, value in document.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(tables) > 1:
        shown = ", ".join(tables)[:80]
        raise DataError(
            f"{name} holds several lists of objects ({shown}); save each as its own file and name them apart"
        )
    if tables and not all(isinstance(value, list) and len(value) == len(document[tables[0]]) for value in values):
        return _objects(document[tables[0]], f"{name}, {tables[0]!r}"), [f"the rows stand under the key {tables[0]!r}"]
    if tables and len(document) == 1:
        return _objects(document[tables[0]], f"{name}, {tables[0]!r}"), [f"the rows stand under the key {tables[0]!r}"]
    if values and all(isinstance(value, dict) for value in values):
        return _keyed(document, name)
    if values and all(isinstance(value, list) for value in values):
        lengths = {key: len(value) for key, value in document.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{key}: {length}" for key, length in lengths.items())[:120]
            raise DataError(f"{name}: its columns have different lengths ({shown}); every column needs a value per row")
        rows = [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
        return rows, ["an object of columns"]
    keys = _short(", ".join(document)) or "(none)"
    raise DataError(f"{name} holds one object with the keys {keys}; {_EXPECTED_JSON}")


def _objects(values: list[Any], name: str) -> list[dict[str, Any]]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise DataError(
                f'{name} row {number} is {_kind(value)}, expected an object such as {{"text": "...", "label": "..."}}',
                quote=str(value)[:200],
            )
    return values


def _keyed(document: dict[str, dict[str, Any]], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of an object of objects: rows by key, or (as pandas writes) columns by row number."""
    inner = next(iter(document.values()))
    numbers = [str(row) for row in range(len(inner))]
    if numbers and all(list(column) == numbers for column in document.values()):
        rows = [{key: column[row] for key, column in document.items()} for row in numbers]
        return rows, ["an object of columns, each by row number"]
    if any("key" in row for row in document.values()):
        raise DataError(f"{name}: rows stand under their keys, but have a field 'key' themselves; rename that field")
    return [{"key": key, **row} for key, row in document.items()], ["the keys of the object are the column key"]


def read_parquet(path: Path, name: str) -> tuple[pa.Table, list[str]]:
    """Return the table of a parquet file.

    Raises:
        DataError: not a parquet file, or it holds no rows.
    """
    import pyarrow as pa

    try:
        table = bounds.read_bounded(path, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = "permission denied" if isinstance(error, PermissionError) else str(error).splitlines()[0][:120]
        raise DataError(f"{name}: cannot be read as parquet ({reason}); make or copy the file again") from None
    if table.num_rows == 0:
        raise DataError(
            f"{name} holds no rows; its columns are {', '.join(table.column_names)[:80] or '(none)'}; expected one row "
            "per example"
        )
    return plain(table, name)


def plain(table: pa.Table, name: str) -> tuple[pa.Table, list[str]]:
    """Return a table with ordinary types: dictionaries unfolded, class numbers named, decimals as floats.

    Raises:
        DataError: two columns have one name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names_by_column, times = _class_names(table), Counter(table.column_names)
    notes, columns = [], []
    for field in table.schema:
        column = table[field.name] if times[field.name] == 1 else None
        if column is None:
            raise DataError(f"{name}: two columns are named {field.name[:80]!r}; give every column its own name")
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = pc.cast(column, kind.value_type)
        elif pa.types.is_decimal(kind):
            column = pc.cast(column, pa.float64())
        elif pa.types.is_integer(kind) and field.name in names_by_column:
            names = names_by_column[field.name]
            inside = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
            positions = pc.if_else(inside, pc.cast(column, pa.int64()), pa.scalar(None, pa.int64()))
            column = pc.take(pa.array(names, pa.string()), positions)
            notes.append(f"the numbers of column {field.name!r} are replaced by the class names stored with them")
        if column.type in (pa.large_string(), pa.string_view()):
            column = pc.cast(column, pa.string())
        columns.append(column)
    return pa.table(columns, names=table.column_names), notes


def _class_names(table: pa.Table) -> dict[str, list[str]]:
    """Return the class names that Hugging Face `datasets` stores beside a column of class numbers."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    if not stored:
        return {}
    try:
        features = json.loads(stored)["info"]["features"]
        return {
            column: [str(each) for each in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_xlsx(path: Path, name: str) -> tuple[pa.Table, list[str]]:
    """Return the first sheet that holds anything; its first row is the header.

    Raises:
        DataError: openpyxl is missing, not a workbook, no rows, or a faulty header.
    """
    try:
        import openpyxl
    except ImportError:
        raise DataError(f"{name}: reading Excel files needs openpyxl; run: pip install 'finesmith[excel]'") from None
    try:
        with zipfile.ZipFile(path) as archive:
            bounds.refuse_workbook_bomb(archive, name, path.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
                sheets = {sheet.title: _sheet_rows(sheet, name) for sheet in workbook.worksheets}
                workbook.close()
    except PermissionError:
        raise DataError(f"{name}: permission denied; make the file readable (chmod u+r) and try again") from None
    except DataError:
        raise
    except Exception as error:  # openpyxl lets the errors of its XML and zip readers through
        raise DataError(
            f"{name}: cannot be read as an Excel workbook ({str(error)[:80]}); save it again, or as csv"
        ) from None
    filled = {title: rows for title, rows in sheets.items() if rows}
    if not filled:
        raise DataError(f"{name} is empty; expected a header such as text, label and one row per example")
    title, (header, *rows) = next(iter(filled.items()))
    others = [other for other in filled if other != title]
    notes = [f"only sheet {title!r} is read; the workbook also holds {', '.join(others)[:80]}"] if others else []
    place = f"{name}, sheet {title!r}"
    used = [any(row[position] is not None for row in rows) for position in range(len(header))]
    for position, cell in enumerate(header):
        if cell is None and used[position]:
            raise DataError(f"{place}: column {position + 1} has values but no name in the header; name every column")
    names = [(position, str(cell).strip()) for position, cell in enumerate(header) if cell is not None]
    twice = [label for label, times in Counter(label for _, label in names).items() if times > 1]
    if twice:
        raise DataError(f"{place}: the header names column {twice[0][:80]!r} twice; give every column its own name")
    if not rows:
        shown = ", ".join(label for _, label in names)[:80]
        raise DataError(f"{place} has a header ({shown}) but no rows; expected one row per example")
    table, more = table_from_rows([{label: row[position] for position, label in names} for row in rows], name)
    return table, [*notes, *more]


def _sheet_rows(sheet: Any, name: str) -> list[tuple[Any, ...]]:
    sheet.reset_dimensions()
    rows = [
        tuple(row)
        for row in bounds.within_cells(sheet.iter_rows(values_only=True), name)
        if any(cell is not None for cell in row)
    ]
    width = max((len(row) for row in rows), default=0)
    return [row + (None,) * (width - len(row)) for row in rows]


def table_from_rows(rows: Sequence[dict[str, Any]], name: str) -> tuple[pa.Table, list[str]]:
    """Return rows as a table, columns in order of first appearance, and notes on absent and mixed values."""
    import pyarrow as pa

    names: dict[str, int] = {}
    for row in rows:
        for key in row:
            names[key] = names.get(key, 0) + 1
    if not names:
        raise DataError(f"{name}: its rows have no fields; {_EXPECTED_JSON}")
    bounds.refuse_wide(list(names), len(rows), sum(names.values()), name)
    notes, columns = [], []
    if broken := [key for key in names if _whole(key) != key]:
        raise DataError(f"{name}: the field {_whole(_short(broken[0]))!r} holds half of a broken character; rename it")
    for key, present in names.items():
        if present < len(rows):
            notes.append(f"column {_short(key)!r} is absent from {len(rows) - present} of {len(rows)} rows")
        array, more = column_of([row.get(key) for row in rows])
        columns.append(array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))
        notes += [f"column {_short(key)!r} {each}" for each in more]
    return pa.table(columns, names=list(names)), notes


def column_of(values: list[Any]) -> tuple[pa.Array | pa.ChunkedArray, list[str]]:
    """Return values as one Arrow column; what has no common type becomes text, and a note says so."""
    import pyarrow as pa

    notes: list[str] = []
    try:
        return _strict_array(values), notes
    except UnicodeEncodeError:
        values = [_whole(value) for value in values]
        notes.append("holds halves of emoji or other broken characters, shown as \ufffd")
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        absent = sum(isinstance(value, float) and value != value for value in values)
        if absent:
            values = [None if isinstance(value, float) and value != value else value for value in values]
            notes.append(f"holds {absent} NaN, read as missing")
    try:
        return _strict_array(values), notes
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        kinds = sorted({_kind(value) for value in values if value is not None})
        notes.append(f"mixes types ({', '.join(kinds)}) and is read as text")
        return pa.array([None if value is None else _whole(as_text(value)) for value in values], pa.string()), notes


def _strict_array(values: list[Any]) -> pa.Array | pa.ChunkedArray:
    """Return values as Arrow's own choice of column, which would also take true for 1.0 among decimals.

    Raises TypeError when it did.
    """
    import pyarrow as pa

    found = pa.array(values)
    if pa.types.is_floating(found.type) and any(isinstance(value, bool) for value in values):
        raise TypeError("booleans among numbers")
    return found


def as_text(value: Any) -> str:
    """Return a value as the text a person would write for it; lists and objects as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=str)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return value


def _lines(text: str) -> list[str]:
    """Return the lines of a text; only line feeds (and lone carriage returns of old files) end a line."""
    lines = text.split("\n") if "\n" in text else text.split("\r")
    return lines[:-1] if lines and not lines[-1] else lines


def _blank_note(lines: Sequence[str], kept: Sequence[Any]) -> list[str]:
    blank = len(lines) - len(kept)
    return [f"{blank} blank line{'s' if blank > 1 else ''} skipped"] if blank else []


def _kind(value: Any) -> str:
    for kind, what in (
        (bool, "true or false"),
        (str, "text"),
        ((int, float), "a number"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, kind):
            return what
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    shown = str(value).strip()
    return shown if len(shown) <= 80 else shown[:77] + "..."
