"""How much a file may grow when it is unpacked: small ones that ask for all the memory are refused in time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Text shrinks to a third or a tenth when it is packed; the most repetitive logs to a hundredth.
MOST_GROWTH = 200
GROWTH_COUNTS_FROM = 64 * 2**20
MOST_WORKBOOK_BYTES = 2 * 2**30
MOST_CELLS = 50_000_000
MOST_COLUMNS = 20_000
SPARSE_CELLS = 2_000_000
# Reading takes several times the text itself.
SHARE_OF_MEMORY = 0.4


def refuse_growth(name: str, packed: int, unpacked: int, remedy: str) -> None:
    """Refuse what unpacks to far more than data does, or to more than this machine's free memory bears.

    Raises:
        DataError: both figures are named.
    """
    if unpacked <= GROWTH_COUNTS_FROM:
        return
    if unpacked > MOST_GROWTH * packed:
        raise DataError(f"{name}: {packed:,} bytes unpack to {unpacked:,} or more, which no data file does; {remedy}")
    if unpacked > SHARE_OF_MEMORY * free_memory():
        raise DataError(
            f"{name}: {packed:,} bytes unpack to {unpacked:,} or more, and {free_memory():,} bytes of memory are free; "
            "split the file"
        )


def free_memory() -> int:
    """Return the bytes of memory that are free on this machine."""
    import psutil

    return int(psutil.virtual_memory().available)


def refuse_workbook_bomb(archive: zipfile.ZipFile, name: str, packed: int) -> None:
    """Refuse a workbook whose parts grow too much, lie about their size, or define words of their own.

    Raises:
        DataError: it does.
    """
    entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    remedy = "save the sheet as csv if you trust it"
    refuse_growth(name, packed, size, remedy)
    if size > MOST_WORKBOOK_BYTES:
        raise DataError(f"{name}: unpacks to {size:,} bytes, which no workbook does; {remedy}")
    for entry in entries:
        if entry.filename.lower().endswith((".xml", ".rels")):
            with archive.open(entry) as part:
                # A definition stands before the first element, after comments at most.
                head = part.read(1 << 20)
            if b"<!DOCTYPE" in head or b"<!ENTITY" in head or "<!DOCTYPE".encode("utf-16-le") in head:
                raise DataError(f"{name}: defines words of its own (DOCTYPE), which no workbook does; {remedy}")


def within_cells(rows: Iterator[Sequence[Any]], name: str) -> Iterator[Sequence[Any]]:
    """Yield the rows of a sheet.

    Raises:
        DataError: there are more cells than memory could hold.
    """
    cells = 0
    for row in rows:
        cells += len(row)
        if cells > MOST_CELLS:
            raise DataError(f"{name}: a sheet of more than {MOST_CELLS:,} cells; save what is needed of it as csv")
        yield row


def refuse_wide(names: Sequence[str], rows: int, given: int, name: str) -> None:
    """Refuse rows with ever new fields: every row would get a cell in each column.

    Raises:
        DataError: there are too many columns, or far more cells than values were `given`.
    """
    if len(names) > MOST_COLUMNS or (len(names) * rows > SPARSE_CELLS and len(names) * rows > 50 * given):
        raise DataError(
            f"{name}: its {rows:,} rows have {len(names):,} different fields; expected the same few fields in every row"
        )


def read_bounded(path: Path, name: str) -> pa.Table:
    """Read a parquet file, texts as dictionaries first, so that one word said a billion times takes no room.

    Raises:
        DataError: its rows would not fit into memory.
        pyarrow.ArrowException, OSError: it is no parquet file, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    packed = path.stat().st_size
    with parquet.ParquetFile(path, thrift_string_size_limit=2**27, thrift_container_size_limit=10**7) as file:
        about, schema = file.metadata, file.schema_arrow
        folded = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        told = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        cells = 8 * about.num_rows * max(1, about.num_columns)
        if max(told, cells) > SHARE_OF_MEMORY * free_memory():
            raise DataError(
                f"{name}: {packed:,} bytes hold {about.num_rows:,} rows in {about.num_columns:,} columns, more than "
                f"memory does ({free_memory():,} bytes are free); split the file"
            )
    with parquet.ParquetFile(path, read_dictionary=folded) as file:
        table = file.read()
    size = sum(_unfolded_bytes(column) for column in table.columns)
    refuse_growth(name, packed, size, "unpack it yourself, as csv, if you trust it")
    columns = [
        column.cast(field.type)
        if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(field.type)
        else column
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.table(columns, schema=schema) if columns else table


def _unfolded_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column once every row holds its own value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type) or not _is_text(column.type.value_type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
        total += int(pc.sum(lengths).as_py() or 0)
    return total


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
