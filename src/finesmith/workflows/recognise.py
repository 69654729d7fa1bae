"""Take a file of conversations for what it is, where no task is named and no other reading fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.recipe import Recipe, replace
from finesmith.workflows.rows import as_list

if TYPE_CHECKING:
    from finesmith.data.infer import ColumnProfile
    from finesmith.run import Run

HEAD = 1 << 20
ROWS = 200


def recognised(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with the task instruct where it names none and its data are conversations and nothing else.

    What can be read as labelled texts stays that. A file whose columns have no names of conversations is not opened
    beyond its head.
    """
    d = recipe.data
    if recipe.task != "auto" or any((d.text, d.text_pair, d.label, d.separator)):
        return recipe
    first = as_list(d.train)[0]
    reason = _reason(first, d.encoding) if _could_be(first) else None
    if reason is None:
        return recipe
    run.record("note", message=f"task instruct: {reason}")
    return replace(recipe, {"task": "instruct"})


def _could_be(source: str) -> bool:
    """Whether the names of a file's columns, as its head shows them, are those of conversations."""
    from finesmith.data.chat_formats import detect

    try:
        detect([dict.fromkeys(_names(Path(source)))])
    except DataError:
        return False
    return True


def _names(path: Path) -> Sequence[str]:
    """Return the names of a plain file's columns; none where its head does not tell."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return ()
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError, ValueError):
            return ()
    if suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        return ()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD)
    except OSError:
        return ()  # whoever reads it all says why
    if suffix in (".csv", ".tsv"):
        names = head.partition("\n")[0].strip().split("," if suffix == ".csv" else "\t")
        return [name.strip('"\ufeff ') for name in names]
    try:
        row: Any = json.JSONDecoder().raw_decode(head.lstrip("\ufeff \t\r\n["))[0]
    except (ValueError, RecursionError):
        return ()
    return list(row) if isinstance(row, dict) else ()


def _reason(source: str, encoding: str | None) -> str | None:
    """Say why the rows are conversations; None where they are not, or can be read as labelled texts too."""
    from finesmith.data.chat_formats import convert, detect
    from finesmith.data.infer import profile
    from finesmith.data.sources import read

    try:
        table = read([source], encoding=encoding, max_rows=ROWS)
        rows = table.table.to_pylist()
        layout = detect(rows)
        found = convert(rows, layout, table.places())
    except DataError:
        return None
    marked = layout.kind == "preference" or "liked" in layout.columns
    if marked or not found.conversations or _labelled(profile(table.table)):
        return None
    return layout.reason


def _labelled(profiles: Sequence[ColumnProfile]) -> bool:
    """Whether the columns can be read as texts with labels."""
    from finesmith import tasks
    from finesmith.data.infer import find_columns
    from finesmith.tasks.protocol import LabelColumn

    try:
        columns = find_columns(profiles)
        label = next((each for each in profiles if each.name == columns.label), None)
        if label is None:
            return False
        tasks.choose(LabelColumn(label.name, label.kind, label.distinct, label.rows, label.separator))
    except DataError:
        return False
    return True
