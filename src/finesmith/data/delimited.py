"""Read csv and tsv: delimiter and header found and said, every faulty row named."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from finesmith.data.cells import DECIMAL, decimal_commas
from finesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
SAMPLE_CHARACTERS = 262_144
SAMPLE_ROWS = 200
_ENCODED_AT_ONCE = 2**22
MAX_HEADER_CHARACTERS = 1_000_000
USUAL_NAMES = (
    frozenset({"text", "texts", "review", "sentence", "message", "body", "comment", "content", "question", "answer"})
    | frozenset({"label", "labels", "category", "class", "target", "sentiment", "rating", "stars", "score", "intent"})
    | frozenset({"topic", "tag", "tags", "id", "date", "key", "split", "title", "name", "source", "url", "document"})
)
_SENTINEL = "\x02end of file\x02"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How fields and rows are told apart."""

    delimiter: str
    quoted: bool = True
    escape: str | None = None


def read_delimited(text: str, name: str, *, usual: str, commas: bool = True) -> tuple[pa.Table, list[str]]:
    """Return a table of text columns (the header's names) and notes on what was decided.

    `usual` is the delimiter that the file's extension promises; another is used when the rows say so. `commas`: numbers
    with decimal commas are looked for and get points.

    Raises:
        DataError: no rows, a row with too many or too few fields, a quote never closed, a faulty or missing header.
    """
    body, notes = text.strip("\r\n\x1a"), []
    stated = re.match(r"sep=([,;\t|])\r?\n", body, re.IGNORECASE)
    if stated:
        body = body[stated.end() :]
    if not body.strip():
        raise DataError(f"{name} is empty; expected a header such as text,label and one row per example")
    line_end = re.search(r"[\r\n]", body)
    first_line = line_end.start() if line_end else len(body)
    if first_line > MAX_HEADER_CHARACTERS:
        raise DataError(f"{name}: the first line has {first_line:,} characters; expected a header such as text,label")
    delimiter = stated.group(1) if stated else _sniff(body, usual)
    if delimiter != usual:
        notes.append(f"fields are separated by a {DELIMITERS[delimiter]}")
    dialect = Dialect(delimiter, quoted=not (delimiter == "\t" and _quotes_are_text(body)))
    if not dialect.quoted:
        notes.append("quotation marks are read as part of the text: they do not enclose fields")
    table = _fast(body, dialect)
    if table is None:
        table, more = _careful(body, name, dialect)
        notes += more
    names, has_header, more = _header(table, name)
    table = table.slice(1) if has_header else table
    table, unnamed = _name_columns(table, names, name)
    if table.num_rows == 0:
        shown = ", ".join(table.column_names)[:80]
        raise DataError(f"{name} has a header ({shown}) but no rows; expected one row per example")
    repeats = _count_headers(table, names) if has_header else 0
    if repeats:
        more.append(f"{repeats} row{'s' if repeats > 1 else ''} the same as the header, read as any other")
    if commas:
        table, pointed = decimal_commas(table, separated=delimiter == ",")
        unnamed = [*unnamed, *pointed]
    return table, [*notes, *more, *unnamed]


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _records(text: str, dialect: Dialect) -> Iterator[list[str]]:
    return csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        doublequote=dialect.escape is None,
        escapechar=dialect.escape,
    )


def _sniff(body: str, usual: str) -> str:
    """Return the delimiter under which most rows have as many fields as the first, at least two."""
    sample = body[:SAMPLE_CHARACTERS]
    best, best_score = usual, (0.0, False, 0)
    for delimiter in DELIMITERS:
        with _long_fields():
            counts = [
                len(row) for row, _ in zip(_records(sample, Dialect(delimiter)), range(SAMPLE_ROWS), strict=False)
            ]
        counts = [count for count in counts if count]
        if len(counts) > 2 and len(body) > len(sample):
            counts.pop()
        if not counts or counts[0] < 2:
            continue
        agreeing = sum(count == counts[0] for count in counts) / len(counts)
        score = (round(agreeing, 1), delimiter == usual, counts[0])
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _quotes_are_text(body: str) -> bool:
    """Say whether quotes enclose nothing: every line has the header's tabs, yet quoting would join lines."""
    if '"' not in body:
        return False
    lines = [line for line in body.replace("\r\n", "\n").split("\n") if line]
    tabs = lines[0].count("\t")
    if any(line.count("\t") != tabs for line in lines):
        return False
    with _long_fields():
        return sum(1 for row in _records(body, Dialect("\t")) if row) != len(lines)


def _fast(body: str, dialect: Dialect) -> pa.Table | None:
    """Parse with Arrow, or return None when anything needs a closer look."""
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    width = len(_first_record(body, dialect))
    ending = _ending(width, dialect)
    try:
        table = arrow_csv.read_csv(
            _encoded(body, ending),
            read_options=arrow_csv.ReadOptions(autogenerate_column_names=True, block_size=2**24),
            parse_options=arrow_csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=True,
                ignore_empty_lines=False,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={f"f{position}": pa.string() for position in range(width)}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.column(0)[-1].as_py() != _SENTINEL or (width > 1 and _has_blank_rows(table)):
        return None
    return table.slice(0, table.num_rows - 1)


def _first_record(body: str, dialect: Dialect) -> list[str]:
    """Return the first record, for which as little as possible is looked at."""
    characters = SAMPLE_CHARACTERS
    while True:
        with _long_fields():
            # Where a second record begins, the first one is whole.
            records = list(islice(_records(body[:characters], dialect), 2))
        if len(records) == 2 or characters >= len(body):
            return records[0]
        characters *= 8


def _encoded(*parts: str) -> io.BytesIO:
    """Return the parts as a file of UTF-8, with no copy of the whole on the way."""
    file = io.BytesIO()
    for part in parts:
        for start in range(0, len(part), _ENCODED_AT_ONCE):
            file.write(part[start : start + _ENCODED_AT_ONCE].encode())
    file.seek(0)
    return file


def _ending(width: int, dialect: Dialect) -> str:
    """Return one more row: when the last row read is not this one, a quote was never closed."""
    return "\n" + dialect.delimiter.join([_SENTINEL] * width)


def _has_blank_rows(table: pa.Table) -> bool:
    import pyarrow.compute as pc

    blank = pc.equal(table.column(0), "")
    for column in table.columns[1:]:
        if not pc.any(blank).as_py():
            return False
        blank = pc.and_(blank, pc.equal(column, ""))
    return bool(pc.any(blank).as_py())


def _careful(body: str, name: str, dialect: Dialect) -> tuple[pa.Table, list[str]]:
    """Parse row by row, so that a faulty row can be named."""
    import pyarrow as pa

    try:
        rows, blank = _checked_rows(body, name, dialect)
        notes = []
    except DataError as problem:
        if '\\"' not in body or not dialect.quoted:
            raise
        try:
            rows, blank = _checked_rows(body, name, Dialect(dialect.delimiter, escape="\\"))
        except DataError:
            raise problem from None
        notes = ['quotation marks inside fields are written \\"']
    if blank:
        notes.append(f"{blank} blank line{'s' if blank > 1 else ''} skipped")
    columns = [pa.chunked_array([pa.array(column, pa.string())]) for column in zip(*rows, strict=True)]
    return pa.table(columns, names=[f"f{position}" for position in range(len(columns))]), notes


def _checked_rows(body: str, name: str, dialect: Dialect) -> tuple[list[list[str]], int]:
    with _long_fields():
        header = next(_records(body, dialect))
        width = len(header)
        try:
            records = list(_records(body + _ending(width, dialect), dialect))
        except csv.Error as error:
            raise DataError(f"{name}: not valid csv ({error})") from None
    closed = bool(records) and records[-1] == [_SENTINEL] * width
    rows = [row or [""] for row in (records[:-1] if closed else records) if row or width == 1]
    blank = len(records) - closed - len(rows)
    faulty = [position for position, row in enumerate(rows) if len(row) != width]
    if faulty and not (not closed and faulty == [len(rows) - 1]):
        first, more = faulty[0], f" ({len(faulty) - 1} more such rows)" if len(faulty) > 1 else ""
        raise DataError(
            f"{name} row {first} has {len(rows[first])} field{'s' if len(rows[first]) != 1 else ''}, expected {width} "
            f"({', '.join(header)[:80]}){more}; put quotation marks around texts that hold a "
            f"{DELIMITERS[dialect.delimiter]} and give every row all its fields"
        )
    if not closed:
        raise DataError(f"{name} row {len(rows) - 1}: a quotation mark is opened and never closed; close or double it")
    return rows, blank


def _header(table: pa.Table, name: str) -> tuple[list[str], bool, list[str]]:
    """Return the columns' names, whether the first row holds them, and notes."""
    first = [column[0].as_py().strip() for column in table.columns]
    if any(cell.lower() in USUAL_NAMES for cell in first) or table.num_rows == 1:
        return first, True, []
    below = [column.slice(1, 5000).to_pylist() for column in table.columns]
    repeated = [_is_a_value(cell, values) for cell, values in zip(first, below, strict=True)]
    if not any(repeated):
        return first, True, []
    note = "no header: the first row is read as an example"
    if len(first) == 2 and sum(repeated) == 1:
        label = repeated.index(True)
        texts = [first[1 - label], *below[1 - label]]
        words = sum(len(value.split()) for value in texts) / len(texts)
        if words >= 3 and len(set(texts)) >= 0.5 * len(texts) and len(set(below[label])) <= 0.5 * len(texts):
            names = ["text", "text"]
            names[label] = "label"
            return names, False, [f"{note}, the columns are named {names[0]} and {names[1]}"]
    raise DataError(
        f"{name}: the first row looks like data; add a header row such as text,label", quote=", ".join(first)[:200]
    )


def _is_a_value(cell: str, values: Sequence[str]) -> bool:
    """Say whether a cell of the first row is one of its column's values rather than the column's name."""
    filled = [value for value in values if value]
    if not cell or not filled:
        return False
    if re.match(DECIMAL, cell):
        return all(re.match(DECIMAL, value) for value in filled)
    return cell in filled and len(set(filled)) <= max(2, len(filled) // 2)


def _count_headers(table: pa.Table, header: Sequence[str]) -> int:
    import pyarrow.compute as pc

    for name in header:
        if name:
            table = table.filter(pc.equal(table[name], name))
    return int(table.num_rows)


def _name_columns(table: pa.Table, names: list[str], name: str) -> tuple[pa.Table, list[str]]:
    import pyarrow.compute as pc

    notes, kept = [], []
    for position, column in enumerate(table.columns):
        if names[position]:
            kept.append(position)
        elif position == 0 and column.slice(0, 1000).to_pylist() == [str(row) for row in range(min(1000, len(column)))]:
            kept.append(position)
            names = ["row_index", *names[1:]]
            notes.append("the first column has no name and counts the rows: it is called row_index")
        elif pc.all(pc.equal(column, "")).as_py() is not False:
            notes.append(f"column {position + 1} has no name and no values: left out")
        else:
            raise DataError(
                f"{name}: column {position + 1} has no name in the header ({', '.join(names)[:80]}); name every column"
            )
    names = [names[position] for position in kept]
    for each, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{name}: the header names column {each[:80]!r} twice; give every column its own name")
    return table.select(kept).rename_columns(names), notes
