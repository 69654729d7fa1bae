"""Cases of data files: every row and cell that stands in a file is read, and accounted for until it is in a split."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finesmith.errors import FinesmithError
from finesmith.recipe.keys import keys
from fuzz.mutate import Row, mutate_bytes, mutate_rows, mutate_tree
from fuzz.oracle import Outcome, judge, require

GOOD, BAD = ("good", "great", "fun", "warm", "clever"), ("bad", "awful", "dull", "cold", "boring")
PLAIN = (
    *[
        "the",
        "a",
        "film",
        "movie",
        "story",
        "is",
        "was",
        "really",
        "very",
        "not",
        "and",
        "but",
        "with",
        "for",
        "of",
        "plot",
        "music",
        "scene",
        "café",
        "naïve",
        "日本",
        "😀",
    ],
)
FORMS = ("csv", "csv", "csv", "tsv", "jsonl", "jsonl", "json", "json", "parquet", "xlsx", "txt", "files", "folders",
         "csv.gz", "jsonl.gz", "json.gz", "parts", "splits")  # fmt: skip
TEXT_FORMS = ("csv", "tsv", "jsonl", "json", "txt")
ABSENT = {"", "na", "n/a", "#n/a", "nan", "null", "none"}
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"data.text": "text"}, {"data.text": "text", "data.label": "label"}, {"data.group": "user_id"},
    {"data.max_rows": 20}, {"data.encoding": "utf-8"}, {"data.encoding": "utf-16"}, {"task": "classification"},
    {"task": "regression"}, {"task": "multi-label"}, {"data.separator": ","}, {"data.split": "split"},
    {"data.clean.html": True, "data.clean.unicode": True, "data.clean.whitespace": True}, {"data.clean.redact": True},
    {"data.audit.html": "fix", "data.audit.broken_encoding": "fix", "data.audit.personal_data": "fix"},
    {"data.audit.near_duplicates": "drop", "data.audit.conflicting_labels": "drop", "data.audit.length": "drop"},
    {"data.audit.small_classes": "drop", "data.audit.mixed_language": "drop"}, {"data.audit.empty": "stop"},
    {"data.text": "text", "data.label": "label", "data.group": "user_id", "task": "classification"},
)  # fmt: skip


class Notebook:
    """Stands in for a run folder: keeps what is recorded and written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.files: dict[str, Any] = {}

    def record(self, event: str, **fields: Any) -> None:
        self.said.append(str(fields.get("message", event)))

    def write_json(self, name: str, value: Any) -> None:
        from finesmith.run import plain

        json.dumps(plain(value), allow_nan=False)
        self.files[name] = value

    def write_table(self, name: str, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(dict(columns)), self.folder / name)


class Workshop:
    """What all cases share: a tokenizer."""

    def __init__(self) -> None:
        from tiny import bert_tokenizer

        self.tokenizer = bert_tokenizer()


def run_case(draw: random.Random, folder: Path, shop: Workshop) -> Outcome:
    """Write data in some format, mostly damaged, prepare it for tuning, and judge what comes of it."""
    from finesmith.recipe import from_dict
    from finesmith.recipe.source import merged
    from finesmith.workflows.prepare import prepare, tell_findings

    rows, form, how = _rows(draw), draw.choice(FORMS), draw.random()
    if 0.1 <= how < 0.5:
        rows = mutate_rows(draw, rows)
    path = _write(draw, rows, form, folder)
    whole = how < 0.5
    if not whole:
        _damage(draw, path)
    tree: dict[str, Any] = {"data": {"train": str(path)}, "output": {"cache": "none"}}
    for key, value in draw.choice(OPTIONS).items():
        tree = merged(tree, tuple(key.split(".")), value)
    book = Notebook(folder)
    try:
        prepared, rest = prepare(from_dict(tree), book, shop.tokenizer, longest=64)  # type: ignore[arg-type]
    except FinesmithError as error:
        judge(str(error), (path.name, *(key for key in keys() if "." in key)))
        ended = Outcome("refused", str(error))
    else:
        tell_findings(book, prepared.findings, rest())  # type: ignore[arg-type]
        _accounted(prepared, book)
        ended = Outcome("accepted", "; ".join(book.said)[:300])
    _read_exactly(path, form, tree["data"].get("encoding"))
    return ended


# --- writing ----------------------------------------------------------------------------------------------------


def _rows(draw: random.Random) -> list[Row]:
    kind, rows = draw.choice(["classes", "classes", "classes", "rating", "lists", "pairs"]), []
    for i in range(2000 if draw.random() < 0.003 else draw.choice([14, 24, 40])):
        good = i % 2 == 0
        words = [*draw.choices(PLAIN, k=draw.randint(3, 9)), draw.choice(GOOD if good else BAD)]
        draw.shuffle(words)
        row: Row = {"text": draw.choice([" ", " ", " ", ", "]).join(words)}
        if kind == "pairs":
            row = {"sentence1": row["text"], "sentence2": " ".join(draw.choices(PLAIN, k=5))}
        labels = {"rating": draw.randint(1, 9) / 2, "lists": draw.choice(["a|b", "a", "b", "a|c", "b|c"])}
        row["label"] = labels.get(kind, "pos" if good else "neg")
        rows.append(row)
    if draw.random() < 0.3:
        for i, row in enumerate(rows):
            row["user_id"] = f"u{i // 3}"
    if draw.random() < 0.2:
        for row in rows:
            row["split"] = draw.choice(["train", "train", "train", "validation", "test"])
    return rows


def _write(draw: random.Random, rows: list[Row], form: str, folder: Path) -> Path:
    kind, _, packed = form.partition(".")
    if kind in ("parts", "splits"):
        place = folder / "reviews"
        place.mkdir()
        half, ending = len(rows) * 2 // 3, draw.choice(["csv", "jsonl", "parquet"])
        titles = ["part-1", "part-2"] if kind == "parts" else ["train", "test"]
        for name, some in zip(titles, [rows[:half], rows[half:]], strict=True):
            _write_file(draw, some, ending, place / f"{name}.{ending}")
        return place
    if kind in ("files", "folders"):
        place = folder / "classes"
        for i, row in enumerate(rows):
            label = _as_text(row.get("label"))
            name = re.sub(r"[^\w]", "_", label)[:20] or "none"
            text = _as_text(row.get("text")).encode("utf-8", "replace")
            file = place / name / f"{i:03}.txt" if kind == "folders" else place / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as handle:
                handle.write(text + b"\n" * (kind == "files"))
        place.mkdir(exist_ok=True)
        return place
    path = folder / f"reviews.{form}"
    _write_file(draw, rows, kind, path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes(), 1, mtime=0))
    return path


def _write_file(draw: random.Random, rows: list[Row], kind: str, path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind in ("csv", "tsv"):
        out = io.StringIO(newline="")
        mark = "\t" if kind == "tsv" else draw.choice([",", ",", ",", ";", "|"])
        writer = csv.writer(out, delimiter=mark, lineterminator=draw.choice(["\n", "\n", "\r\n", "\r"]))
        writer.writerows([names, *([_as_text(row.get(name)) for name in names] for row in rows)])
        path.write_bytes(out.getvalue().encode("utf-8", "replace"))
    elif kind == "jsonl":
        lines = (json.dumps(row, ensure_ascii=draw.random() < 0.5, default=str) for row in rows)
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
    elif kind == "json":
        document: Any = rows
        if names and draw.random() < 0.3:
            document = {name: [row.get(name) for row in rows] for name in names}
        elif draw.random() < 0.2:
            document = {"data": rows, "version": 1}
        path.write_text(json.dumps(document, indent=draw.choice([None, 1]), default=str), "utf-8")
    elif kind == "parquet":
        _write_parquet(draw, rows, names, path)
    elif kind == "xlsx":
        _write_xlsx(rows, names, path)
    else:
        path.write_bytes("\n".join(_as_text(row.get("text")) for row in rows).encode("utf-8", "replace"))


def _write_parquet(draw: random.Random, rows: list[Row], names: list[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if draw.random() < 0.3:
        parquet.write_table(_odd_table(draw, rows), path)
        return
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns.append(pa.array(values))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
            columns.append(pa.array([_as_text(value).encode("utf-8", "replace").decode() for value in values]))
    shown = [name.encode("utf-8", "replace").decode() for name in names]
    try:
        parquet.write_table(pa.table(columns, names=shown), path)
    except pa.ArrowException:  # an object without fields, for example
        parquet.write_table(pa.table([column.cast(pa.string()) if pa.types.is_string(column.type) else pa.array(
            [str(value) for value in column.to_pylist()]) for column in columns], names=shown), path)  # fmt: skip


def _odd_table(draw: random.Random, rows: list[Row]) -> Any:
    """Return a table with columns of the rarer types, under the usual names or under one name."""
    import pyarrow as pa

    texts = [_as_text(row.get("text")).encode("utf-8", "replace").decode() for row in rows]
    count, plain = len(rows), [i % 3 for i in range(len(rows))]
    day = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    made: tuple[Callable[[], Any], ...] = (
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array([text.encode() for text in texts], pa.binary()),
        lambda: pa.array(texts, pa.string_view()),
        lambda: pa.DictionaryArray.from_arrays(pa.array(plain, pa.int8()), pa.array([0.5, 1.0, 2.0])),
        lambda: pa.array(plain, draw.choice([pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(5, 2)])),
        lambda: pa.nulls(count, draw.choice([pa.null(), pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.int8())])),
        lambda: pa.array([draw.choice([None, math.nan, math.inf, -math.inf, 1.5]) for _ in plain], pa.float64()),
        lambda: pa.array([day] * count, pa.timestamp(draw.choice(["s", "ns"]), draw.choice([None, "UTC"]))),
        lambda: pa.array([datetime.timedelta(seconds=i) for i in plain]),
        lambda: pa.array([day.time()] * count),
        lambda: pa.array(
            [[str(i)] * i for i in plain], draw.choice([pa.list_(pa.string()), pa.large_list(pa.string())])
        ),
        lambda: pa.array([{"a": i, "b": [text]} for i, text in zip(plain, texts, strict=True)]),
        lambda: pa.array([[("key", i)] for i in plain], pa.map_(pa.string(), pa.int32())),
        lambda: pa.array([bool(i) if i else None for i in plain], pa.bool_()),
    )
    names = draw.sample(["text", "label", "split", "user_id", "text", "label", "x" * 300, "", "a\nb", "\u202e"], 3)
    table = pa.table([draw.choice(made)(), draw.choice(made)(), draw.choice(made)()], names=names)
    if draw.random() < 0.3:
        kept = draw.choice([["a", "b"], ["a", None, 3], "ab", {}])
        info = {"info": {"features": {names[0]: {"_type": "ClassLabel", "names": kept}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    return table


def _write_xlsx(rows: list[Row], names: list[str], path: Path) -> None:
    import openpyxl

    def cell(value: Any) -> Any:
        if value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and abs(value) < 1e300):
            return value
        return re.sub("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", _as_text(value))[:30_000]

    book = openpyxl.Workbook()
    book.active.append([cell(name) for name in names])
    for row in rows:
        book.active.append([cell(row.get(name)) for name in names])
    book.save(path)


def _as_text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    with _any_digits():
        return "" if value is None else str(value)


class _any_digits:  # noqa: N801 - reads as a verb at its place of use
    """Let Python write numbers of thousands of digits."""

    def __enter__(self) -> None:
        self.before = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(0)

    def __exit__(self, *_: object) -> None:
        sys.set_int_max_str_digits(self.before)


def _damage(draw: random.Random, path: Path) -> None:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for _ in range(draw.choice([1, 1, 2])):
        file = draw.choice(files)
        if not file.is_file():
            continue
        raw = file.read_bytes()
        if path.is_dir() and draw.random() < 0.3:
            _damage_folder(draw, file, raw)
        elif file.suffix == ".gz" and draw.random() < 0.7:
            file.write_bytes(gzip.compress(mutate_bytes(draw, _unpacked(raw)), 1, mtime=0))
        elif file.suffix == ".json" and draw.random() < 0.6:
            file.write_text(json.dumps(mutate_tree(draw, _parsed(raw), ("text", "label"))), "utf-8")
        else:
            file.write_bytes(mutate_bytes(draw, raw))


def _unpacked(raw: bytes) -> bytes:
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return raw


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return {"text": ["a"], "label": []}


def _damage_folder(draw: random.Random, file: Path, raw: bytes) -> None:
    what = draw.randrange(6)
    if what == 0:
        file.unlink()
    elif what == 1:
        file.with_name(draw.choice(["README.md", "odd.pdf", "x", "test.csv", "another.txt", ".hidden"])).write_bytes(
            raw
        )
    elif what == 2:
        file.rename(file.with_suffix(draw.choice([".txt", ".dat", ".json", ""])))
    elif what == 3:
        (file.parent / "inner").mkdir(exist_ok=True)
        (file.parent / "inner" / file.name).write_bytes(raw)
    elif what == 4:
        file.unlink()
        file.symlink_to(file.with_name(draw.choice(["nowhere.txt", file.name])))
    else:
        file.unlink()
        file.mkdir()


# --- judging ----------------------------------------------------------------------------------------------------


def _accounted(prepared: Any, book: Notebook) -> None:
    """Every row that was read is in one split or counted under the reason for which it was dropped."""
    import pyarrow.parquet as parquet

    data = book.files["data.json"]
    flow = {stage["stage"]: stage["rows"] for stage in data["flow"]}
    splits = {name: flow[name] for name in ("train", "validation", "test")}
    dropped = {name: -rows for name, rows in flow.items() if name.startswith("dropped")}
    read = sum(origin["rows"] for origin in data["sources"])
    require(flow["read"] == read, f"{read} rows in the sources, {flow['read']} in the flow")
    require(read == sum(splits.values()) + sum(dropped.values()), f"rows do not add up: {flow}")
    places = parquet.read_table(book.folder / "splits.parquet")["split"].to_pylist()
    require(len(places) == read, f"{len(places)} rows in splits.parquet of {read} read")
    counted = {name: places.count(name) for name in splits}
    require(counted == splits, f"splits.parquet says {counted}, data.json {splits}")
    require(len(prepared.examples) == sum(splits.values()), "examples were lost after the audit")
    found = {finding["kind"] for finding in book.files["audit.json"]["findings"]}
    require(
        {name.removeprefix("dropped: ") for name in dropped} <= found, f"dropped {dropped}, the audit found {found}"
    )
    for name, targets in prepared.targets.items():
        require(len(targets) == splits[name], f"{len(targets)} targets for {splits[name]} rows of {name}")


def _read_exactly(path: Path, form: str, encoding: str | None) -> None:
    """What `read` returns of a single file is what another reader finds in it."""
    from finesmith.data.sources import read

    if not path.is_file():
        return
    try:
        source = read([str(path)], encoding=encoding)
    except FinesmithError as error:
        judge(str(error), (path.name,))
        return
    origin, raw = source.origins[0], path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    table = source.table.to_pydict()
    if origin.format == "parquet":
        import pyarrow.parquet as parquet

        require(parquet.read_table(path).num_rows == origin.rows, "another number of rows than parquet's own")
    elif origin.format == "xlsx":
        _as_in_workbook(path, origin.rows)
    else:
        text = raw.decode((origin.encoding or "utf-8").removesuffix(" with BOM")).lstrip("\ufeff")
        notes = " ".join(origin.notes)
        check: Callable[..., None] = {
            "csv": _as_csv,
            "tsv": _as_csv,
            "json": _as_json,
            "jsonl": _as_json,
            "txt": _as_lines,
        }[origin.format]
        check(text, table, notes)


def _as_in_workbook(path: Path, rows: int) -> None:
    import openpyxl

    sheets = openpyxl.load_workbook(path, data_only=True).worksheets
    filled = [[row for row in sheet.values if any(cell is not None for cell in row)] for sheet in sheets]
    first = next((sheet for sheet in filled if sheet), [])
    require(len(first) == rows + 1, f"{rows} rows were read, the sheet has {len(first) - 1}")


def _as_lines(text: str, table: Mapping[str, list[Any]], notes: str) -> None:
    lines = [line.rstrip("\r") for line in (text.split("\n") if "\n" in text else text.split("\r"))]
    require(table["text"] == [line for line in lines if line.strip()], "other lines than stand in the file")


def _as_json(text: str, table: Mapping[str, list[Any]], notes: str) -> None:
    rows = list(_json_rows(text))
    read = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    require(len(read) == len(rows), f"{len(read)} rows were read, the file has {len(rows)}")
    for number, (row, got) in enumerate(zip(rows, read, strict=True), 1):
        for name, value in row.items():
            name = _mended(name)
            require(name in got, f"row {number} has {name!r} in the file, the table has {list(got)}")
            require(_same(value, got[name]), f"row {number}, {name!r} is {value!r} in the file and {got[name]!r} read")


def _json_rows(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a document or of lines, in the shapes that finesmith takes."""
    try:
        document = json.loads(text)
    except ValueError:
        lines = text.split("\n") if "\n" in text else text.split("\r")
        yield from (json.loads(line) for line in lines if line.strip())
        return
    if isinstance(document, list):
        yield from document
        return
    tables = [value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    values = list(document.values())
    if len(tables) == 1 and (len(document) == 1 or not all(isinstance(value, list) for value in values)):
        yield from tables[0]
    elif all(isinstance(value, list) for value in values):
        yield from (dict(zip(document, row, strict=True)) for row in zip(*values, strict=True))
    elif all(isinstance(value, dict) for value in values):
        inner = values[0]
        if list(inner) == [str(i) for i in range(len(inner))] and all(list(value) == list(inner) for value in values):
            yield from ({key: column[row] for key, column in document.items()} for row in inner)
        else:
            yield from values
    else:
        yield document


def _mended(value: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", value)


def _same(value: Any, got: Any) -> bool:
    """Whether a JSON value was read as itself, or as the text that says the same."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return got is None or got != got or got == "NaN"
    if isinstance(value, str):
        return got == _mended(value) or (isinstance(got, (datetime.date, datetime.datetime)) and str(value) in str(got))
    if isinstance(value, bool) or isinstance(got, bool):
        return got is value or got == json.dumps(value)
    if isinstance(value, (int, float)) and isinstance(got, (int, float)):
        return value == got or (abs(value) < 1e308 and float(value) == float(got))
    if isinstance(got, str):
        try:
            return _same(value, json.loads(got)) if not isinstance(json.loads(got), str) else False
        except ValueError:
            return False
    if isinstance(value, list) and isinstance(got, list):
        return len(value) == len(got) and all(map(_same, value, got))
    if isinstance(value, dict) and isinstance(got, dict):
        whole = {_mended(name): item for name, item in value.items()}
        return all(_same(whole.get(name), item) for name, item in got.items())
    return False


def _as_csv(text: str, table: Mapping[str, list[Any]], notes: str) -> None:
    """One way of reading the csv with Python's own reader gives the very cells, or all but rows that a note counts."""
    columns = list(table.values())
    read = [list(row) for row in zip(*columns, strict=True)]
    tried = []
    for rows in _csv_readings(text):
        kept = [row for row in rows if row]
        if len(kept) not in (len(read), len(read) + 1):
            tried.append(len(kept))
            continue
        body = kept[len(kept) - len(read) :]
        if all(_row_holds(row, got) for row, got in zip(body, read, strict=True)):
            return
        tried.append(len(kept))
    require(
        False, f"{len(read)} rows of {list(table)} were read as no reader of csv does (rows: {tried}); notes: {notes}"
    )


def _csv_readings(text: str) -> Iterator[list[list[str]]]:
    body = re.sub(r"\Asep=.\r?\n", "", text.strip("\r\n\x1a"), flags=re.IGNORECASE)
    limit = csv.field_size_limit(sys.maxsize)
    try:
        for delimiter in ",;\t|":
            for quoting, escape in ((csv.QUOTE_MINIMAL, None), (csv.QUOTE_MINIMAL, "\\"), (csv.QUOTE_NONE, None)):
                options: dict[str, Any] = {"quoting": quoting, "escapechar": escape, "doublequote": escape is None}
                try:
                    yield list(csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, **options))
                except csv.Error:
                    continue
    finally:
        csv.field_size_limit(limit)


def _row_holds(row: list[str], got: list[Any]) -> bool:
    """Whether the cells that were read are those of the row, in order; cells of nameless empty columns are left out."""
    remaining = iter(row)
    return all(any(_cell(cell, value) for cell in remaining) for value in got)


def _cell(cell: str, value: Any) -> bool:
    if isinstance(value, str):
        return cell == value or cell.lstrip("+").replace(",", ".") == value
    if value is None:
        return cell.strip().lower() in ABSENT
    if isinstance(value, bool):
        return cell.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(cell.lstrip("+").replace(",", ".")) == value
        except ValueError:
            return False
    return cell.strip().startswith("[")
