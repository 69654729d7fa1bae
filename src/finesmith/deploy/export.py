"""Write prediction tables as csv, jsonl or parquet."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from finesmith.errors import UserError

FORMATS = (".csv", ".jsonl", ".parquet")
BATCH = 10_000


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


def write_tables(tables: Iterable[Any], out: str | None) -> int:
    """Write pyarrow tables of the same columns one after the other; return how many rows there were.

    They go to `out` by its ending, whole or not at all, or as csv to standard output. One table is held at a time.
    Lists of probabilities become one JSON text a cell in csv. Raises UserError when the file cannot be written.
    """
    if out is None:
        return _write_csv(tables, sys.stdout, guarded=sys.stdout.isatty())
    check_target(out)
    path = Path(out)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            rows = _write_parquet(tables, beside)
        else:
            with beside.open("w", encoding="utf-8", newline="") as file:
                rows = (_write_jsonl if path.suffix == ".jsonl" else _write_csv)(tables, file)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return rows


def _write_parquet(tables: Iterable[Any], path: Path) -> int:
    import pyarrow.parquet as pq

    rest = iter(tables)
    first = next(rest)
    rows = 0
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in chain([first], rest):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_jsonl(tables: Iterable[Any], file: TextIO) -> int:
    rows = 0
    for table in tables:
        for batch in table.to_batches(max_chunksize=BATCH):
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
        rows += table.num_rows
    return rows


def _write_csv(tables: Iterable[Any], file: TextIO, *, guarded: bool = False) -> int:
    """Write csv; guarded: without the control characters that could drive a terminal."""
    writer = csv.writer(file, lineterminator="\n")
    cells = _printable_cells if guarded else _cells
    rows = 0
    for number, table in enumerate(tables):
        if number == 0:
            writer.writerow(cells(table.column_names))
        for batch in table.to_batches(max_chunksize=BATCH):
            columns = [column.to_pylist() for column in batch.columns]
            writer.writerows(cells(row) for row in zip(*columns, strict=True))
        rows += table.num_rows
    return rows


def _cells(row: Iterable[Any]) -> list[Any]:
    return ["" if v is None else json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in row]


def _printable_cells(row: Iterable[Any]) -> list[str]:
    return ["".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in str(v)) for v in _cells(row)]
