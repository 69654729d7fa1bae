"""Take conversations, preferences and texts that belong together for what they are, where no task is named."""

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
    """Return the recipe with the task that its columns speak for, where it names none.

    That is embeddings for anchors with positives, preferences for answers of which one is better or that are marked
    good or bad, and instruct for conversations. What can be read as labelled texts stays that. A file whose columns
    have no such names is not opened beyond its head.
    """
    d = recipe.data
    if recipe.task != "auto" or any((d.text, d.text_pair, d.label, d.separator)):
        return recipe
    first = as_list(d.train)[0]
    names = _names(Path(first))
    found = _related(names) or (_spoken(first, d.encoding) if _could_be(names) else None)
    if found is None:
        return recipe
    task, reason = found
    run.record("note", message=f"task {task}: {reason}")
    return replace(recipe, {"task": task})


def _related(names: Sequence[str]) -> tuple[str, str] | None:
    columns = {name.strip().lower(): name for name in names}
    if not {"anchor", "positive"} <= columns.keys():
        return None
    return "embeddings", f"columns {columns['anchor']!r} and {columns['positive']!r} hold texts that belong together"


def _could_be(names: Sequence[str]) -> bool:
    """Whether names of columns are those of conversations, or of answers that are compared."""
    from finesmith.data.chat_formats import detect

    try:
        detect([dict.fromkeys(names)])
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


def _spoken(source: str, encoding: str | None) -> tuple[str, str] | None:
    """Return the task of rows that are conversations, and why; None where they are none, or labelled texts too."""
    from finesmith.data.chat_formats import convert, detect
    from finesmith.data.infer import profile
    from finesmith.data.preferences import MARKS
    from finesmith.data.sources import read

    try:
        table = read([source], encoding=encoding, max_rows=ROWS)
        rows = table.table.to_pylist()
        layout = detect(rows)
        found = convert(rows, layout, table.places())
    except DataError:
        return None
    if not found.conversations:
        return None
    if layout.kind == "preference":
        return "preferences", layout.reason.partition(";")[0]
    marks = [name for name in table.table.column_names if name.strip().lower() in MARKS]
    if marks and all(type(row[marks[0]]) is bool for row in rows):
        return "preferences", f"{layout.reason.partition(';')[0]}, and {marks[0]!r} says of each whether it is good"
    if "liked" in layout.columns or _labelled(profile(table.table)):
        return None
    return "instruct", layout.reason


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
