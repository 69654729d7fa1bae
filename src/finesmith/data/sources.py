"""Read files, folders and hub data sets into one table that remembers where each row came from."""

from __future__ import annotations

import difflib
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.data import folders, hub
from finesmith.data.cells import typed
from finesmith.data.decode import decode, load_bytes
from finesmith.data.delimited import read_delimited
from finesmith.data.formats import as_text, plain, read_json, read_jsonl, read_parquet, read_text, read_xlsx
from finesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CELL_CHARACTERS = 1_000_000

split_files = folders.split_files


@dataclass(frozen=True, slots=True)
class Origin:
    """One source as it was read: `first_row` is its first row's position in the table, `sha256` of the bytes on disk.

    `encoding` is None for binary formats and says when a byte-order mark was found ("utf-8 with BOM"); `given` is the
    position of the source among those that were named, which for a folder holds several files.
    """

    name: str
    format: str
    encoding: str | None
    rows: int
    first_row: int
    sha256: str
    notes: tuple[str, ...] = ()
    given: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """All rows of all sources in order, every column kept, and where they came from."""

    table: pa.Table
    origins: tuple[Origin, ...]

    def where(self, row: int) -> str:
        """Return the place of a table row (from 0) as a person counts: "reviews.csv row 17".

        Raises:
            IndexError: the table has no such row.
        """
        if not 0 <= row < self.table.num_rows:
            raise IndexError(f"row {row} of a table with {self.table.num_rows} rows")
        origin = self.origins[bisect_right([each.first_row for each in self.origins], row) - 1]
        return f"{origin.name} row {row - origin.first_row + 1}"

    def places(self) -> list[str]:
        """Return `where` of every row."""
        return [f"{origin.name} row {row}" for origin in self.origins for row in range(1, origin.rows + 1)]


@dataclass(frozen=True, slots=True)
class _Part:
    """One file's rows; `untyped` when every value is still text as it stands in a csv file."""

    table: pa.Table
    origin: Origin
    untyped: bool = False


def read(
    sources: Sequence[str], *, encoding: str | None = None, max_rows: int | None = None, commas: bool = True
) -> Source:
    """Read every source and lay the rows end to end.

    A source is a file (csv, tsv, json, jsonl, txt, each also as .gz; parquet; xlsx), a folder with a file or a folder
    of .txt files per class, a folder of parts in one format, or a hub id `org/name[:config][@revision][#split]`.
    Column types are kept (csv: integers, decimals, booleans and bracketed lists where every value is one; anything else
    is text). `encoding` replaces the detection for text formats; `max_rows` keeps only the first rows of all; without
    `commas` no number in a csv file is taken to have a decimal comma.

    Raises:
        DataError: a source is missing, unreadable, empty, faulty, or its columns differ from the first one's.
    """
    if not sources:
        raise DataError("no data given; name a file such as reviews.csv")
    for name in sources:
        folders.refuse_orders(name, name)
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows is {max_rows}, expected at least 1")
    refuse_twice(sources)
    parts: list[_Part] = []
    rows = 0
    for part in _parts(sources, encoding, commas):
        parts.append(replace(part, origin=replace(part.origin, first_row=rows, rows=part.table.num_rows)))
        rows += part.table.num_rows
        if max_rows is not None and rows >= max_rows:
            break
    table, notes = _join(parts)
    origins = tuple(
        replace(part.origin, notes=(*part.origin.notes, *more)) for part, more in zip(parts, notes, strict=True)
    )
    if max_rows is not None and rows > max_rows:
        table = table.slice(0, max_rows)
        last = origins[-1]
        cut = replace(last, rows=max_rows - last.first_row, notes=(*last.notes, f"only the first {max_rows} rows kept"))
        origins = (*origins[:-1], cut)
    source = Source(table, origins)
    _refuse_huge_cells(source)
    return source


def refuse_twice(sources: Sequence[str]) -> None:
    """Refuse a source that is named more than once.

    Raises:
        DataError: one is.
    """
    seen: set[str] = set()
    for source in sources:
        place = str(Path(source).resolve()) if Path(source).exists() else source
        if place in seen:
            raise DataError(f"{source} is given twice; every row would count double")
        seen.add(place)


def _parts(sources: Sequence[str], encoding: str | None, commas: bool) -> Iterable[_Part]:
    if len(sources) > 1 and folders.classes_by_extension([Path(source) for source in sources]):
        classes = [folders.ClassFiles(Path(each).suffix[1:], (Path(each),)) for each in sources]
        for given, part in enumerate(_class_parts(classes, encoding)):
            yield replace(part, origin=replace(part.origin, given=given))
        return
    for given, source in enumerate(sources):
        for part in _parts_of(source, encoding, commas):
            yield replace(part, origin=replace(part.origin, given=given))


def _parts_of(source: str, encoding: str | None, commas: bool) -> Iterable[_Part]:
    path = Path(source)
    if hub.is_hub_id(source):
        table, fingerprint = hub.load(source)
        table, notes = plain(table, source)
        yield _Part(table, Origin(source, "hub", None, table.num_rows, 0, fingerprint, tuple(notes)))
    elif not folders.exists(path, source):
        raise DataError(folders.missing(path, source))
    elif path.is_dir():
        found = folders.look_into(path, source)
        if isinstance(found[0], folders.ClassFiles):
            yield from _class_parts([each for each in found if isinstance(each, folders.ClassFiles)], encoding)
        else:
            yield from (_file(each, str(each), encoding, commas) for each in found if isinstance(each, Path))
    else:
        yield _file(path, source, encoding, commas)


def _file(path: Path, name: str, encoding: str | None, commas: bool) -> _Part:
    form = folders.format_of(path)
    if not path.is_file():
        raise DataError(f"{name} is not an ordinary file; save the data as a file and name that")
    if form is None:
        tagged = path.suffix.lower() in (".conll", ".iob", ".iob2", ".bio")
        hint = "; for words with a tag each --set task=token-classification" if tagged else ""
        raise DataError(f"{name}: unknown format {path.suffix or '(no extension)'!r}; {folders.KNOWN_FORMATS}{hint}")
    if form in ("parquet", "xlsx"):
        if _is_empty(path, name):
            raise DataError(f"{name} is empty (0 bytes); make or copy the file again")
        table, notes = read_parquet(path, name) if form == "parquet" else read_xlsx(path, name)
        return _Part(table, Origin(name, form, None, table.num_rows, 0, sha256(path), tuple(notes)))
    data = load_bytes(path, name)
    if form in ("csv", "tsv") and encoding is None and b"\0" not in data:
        # Empty lines at the end are dropped anyway; cut off here, they cost no second copy of the text.
        data = data.rstrip(b"\r\n\x1a")
    decoded = decode(data, name, encoding)
    del data
    if form in ("csv", "tsv"):
        table, notes = read_delimited(decoded.text, name, usual="," if form == "csv" else "\t", commas=commas)
    else:
        table, notes = {"json": read_json, "jsonl": read_jsonl, "txt": read_text}[form](decoded.text, name)
    notes = [*decoded.notes, *notes]
    origin = Origin(name, form, decoded.encoding, table.num_rows, 0, sha256(path), tuple(notes))
    return _Part(table, origin, untyped=form in ("csv", "tsv"))


def _is_empty(path: Path, name: str) -> bool:
    try:
        with path.open("rb") as file:
            return not file.read(1)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}); make the file readable") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _class_parts(classes: Sequence[folders.ClassFiles], encoding: str | None) -> Iterable[_Part]:
    """Yield the texts of each class: the lines of its one file, or each of its files as one text."""
    import pyarrow as pa

    for each in classes:
        if len(each.files) == 1 and not each.whole:
            path = each.files[0]
            decoded = decode(load_bytes(path, str(path)), str(path), encoding)
            texts, notes = read_text(decoded.text, str(path))
            name, digest, encodings = str(path), sha256(path), [decoded.encoding]
            column, notes = texts["text"], [*decoded.notes, *notes, f"class {each.label!r}: one text per line"]
        else:
            digest_of_all, encodings, whole = hashlib.sha256(), [], []
            for path in each.files:
                decoded = decode(load_bytes(path, str(path)), str(path), encoding)
                digest_of_all.update(f"{path.name} {sha256(path)}\n".encode())
                encodings.append(decoded.encoding)
                whole.append(decoded.text)
            name, digest = str(each.files[0].parent), digest_of_all.hexdigest()
            column = pa.chunked_array([pa.array(whole, pa.string())])
            notes = [
                f"class {each.label!r}: each of its {len(whole)} .txt files is one text, in the order of their names"
            ]
        table = pa.table({"text": column, "label": pa.array([each.label] * len(column), pa.string())})
        found = ", ".join(sorted(set(encodings)))
        yield _Part(table, Origin(name, "txt", found, table.num_rows, 0, digest, tuple(notes)))


def _join(parts: Sequence[_Part]) -> tuple[pa.Table, list[list[str]]]:
    """Return one table of all parts, and new notes for each part."""
    import pyarrow as pa

    first = parts[0]
    names = first.table.column_names
    for part in parts[1:]:
        _refuse_other_columns(first, part)
    notes: list[list[str]] = [[] for _ in parts]
    columns = []
    for name in names:
        pieces = [part.table[name] for part in parts]
        if all(part.untyped for part in parts):
            column, said = typed(pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pa.string()))
            if said:
                notes[0].append(f"column {name[:80]!r} {said}")
        else:
            column = _join_typed(name, parts, pieces, notes)
        columns.append(column)
    return pa.table(columns, names=names), notes


def _join_typed(
    name: str, parts: Sequence[_Part], pieces: list[pa.ChunkedArray], notes: list[list[str]]
) -> pa.ChunkedArray:
    import pyarrow as pa

    converted = [typed(piece)[0] if part.untyped else piece for part, piece in zip(parts, pieces, strict=True)]
    if len(converted) == 1:
        return converted[0]
    try:
        tables = [pa.table({name: piece}) for piece in converted]
        return pa.concat_tables(tables, promote_options="permissive")[name]
    except pa.ArrowException:
        pass
    kinds = [str(piece.type) for piece in converted]
    other = next(position for position, kind in enumerate(kinds) if kind != kinds[0])
    notes[other].append(
        f"column {name[:80]!r} is {kinds[other][:40]} here and {kinds[0][:40]} in {parts[0].origin.name}: read as text"
    )
    texts = [[None if value is None else as_text(value) for value in piece.to_pylist()] for piece in pieces]
    return pa.chunked_array([pa.array(each, pa.string()) for each in texts])


def _refuse_other_columns(first: _Part, part: _Part) -> None:
    expected, found = first.table.column_names, part.table.column_names
    absent = [name[:80] for name in expected if name not in found]
    extra = [name[:80] for name in found if name not in expected]
    if not absent and not extra:
        return
    said = []
    if absent:
        near = difflib.get_close_matches(absent[0], extra, 1)
        said.append(f"lacks {', '.join(map(repr, absent[:5]))}" + (f" (is it {near[0]!r}?)" if near else ""))
    if extra:
        said.append(f"also has {', '.join(map(repr, extra[:5]))}")
    raise DataError(
        f"{part.origin.name} {' and '.join(said)}, unlike {first.origin.name} ({', '.join(expected)[:80]}); "
        "files read together need the same columns: rename, add or remove some"
    )


def _refuse_huge_cells(source: Source) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(source.table.column_names, source.table.columns, strict=True):
        if not pa.types.is_string(column.type):
            continue
        lengths = pc.utf8_length(column)
        longest = pc.max(lengths).as_py() or 0
        if longest > MAX_CELL_CHARACTERS:
            row = pc.index(lengths, pa.scalar(longest, lengths.type)).as_py()
            raise DataError(
                f"{source.where(row)}: column {name[:80]!r} holds {longest:,} characters, more than the "
                f"{MAX_CELL_CHARACTERS:,} a single value may have; split the text, or look for a quotation mark or a "
                "line end that is missing"
            )
