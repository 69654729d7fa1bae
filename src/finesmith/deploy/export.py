"""Write prediction tables as csv, jsonl or parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from finesmith.errors import UserError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_format(out: str) -> None:
    """Raise UserError unless `out` ends in a format that can be written and its folder exists."""
    path = Path(out)
    if path.suffix not in FORMATS:
        raise UserError(f"cannot write {out}: expected a name ending in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {out}: the folder {path.parent} does not exist")


def write_table(table: Any, out: str | None) -> None:
    """Write a pyarrow table to `out` by its ending, or as csv to standard output.

    Lists of probabilities become one JSON text a cell in csv. Raises UserError when the file cannot be written.
    """
    if out is None:
        _write_csv(table, sys.stdout)
        return
    check_format(out)
    path = Path(out)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, path)
        elif path.suffix == ".jsonl":
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                _write_csv(table, file)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _write_csv(table: Any, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [column.to_pylist() for column in batch.columns]
        writer.writerows(_cells(row) for row in zip(*columns, strict=True))


def _cells(row: Iterable[Any]) -> list[Any]:
    return ["" if v is None else json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in row]
