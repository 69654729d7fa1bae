"""Write prediction tables as csv, jsonl or parquet."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from finesmith.errors import UserError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_target(out: str, source: str | None = None) -> None:
    """Raise UserError unless `out` ends in a known format, can be written, and is not `source` itself."""
    path = Path(out)
    if path.suffix not in FORMATS:
        raise UserError(f"cannot write {out}: expected a name ending in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {out}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"cannot write {out}: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"cannot write {out}: permission denied; name another file with -o")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"{out} is the file that is read; name another with -o, so that nothing is lost")


def write_table(table: Any, out: str | None) -> None:
    """Write a pyarrow table to `out` by its ending, whole or not at all, or as csv to standard output.

    Lists of probabilities become one JSON text a cell in csv. Raises UserError when the file cannot be written.
    """
    if out is None:
        _write_csv(table, sys.stdout, guarded=sys.stdout.isatty())
        return
    check_target(out)
    path = Path(out)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, beside)
        elif path.suffix == ".jsonl":
            with beside.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
        else:
            with beside.open("w", encoding="utf-8", newline="") as file:
                _write_csv(table, file)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _write_csv(table: Any, file: TextIO, *, guarded: bool = False) -> None:
    """Write csv; guarded: without the control characters that could drive a terminal."""
    writer = csv.writer(file, lineterminator="\n")
    cells = _printable_cells if guarded else _cells
    writer.writerow(cells(table.column_names))
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [column.to_pylist() for column in batch.columns]
        writer.writerows(cells(row) for row in zip(*columns, strict=True))


def _cells(row: Iterable[Any]) -> list[Any]:
    return ["" if v is None else json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in row]


def _printable_cells(row: Iterable[Any]) -> list[str]:
    return ["".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in str(v)) for v in _cells(row)]
