"""Small files that grow: gzip, zip, XML, parquet, wide tables, deep JSON. Refused early, in little memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import Attack, mentions

from finesmith.errors import DataError
from terminal import reviews, write_csv


@pytest.fixture(scope="session")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a gigabyte of zeros, packed into a megabyte: one gzip stream of 64 MB after the other."""
    return gzip.compress(b"0" * 2**26, 6) * 16


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.gz", "json.gz", "txt.gz", "tsv.gz"])
def test_a_gzip_bomb(ending: str, zeros: bytes, attack: Attack) -> None:
    file = attack.place / f"bomb.{ending}"
    file.write_bytes(zeros)
    mentions(attack.refuse_data(file, megabytes=300), file.name, "which no data file does", "unpack it yourself")


def test_a_gzip_bomb_on_the_command_line(zeros: bytes, attack: Attack, tiny_model: Path, small: Path) -> None:
    file = attack.place / "bomb.csv.gz"
    file.write_bytes(zeros)
    mentions(attack.tune(file, tiny_model, megabytes=300), "bomb.csv.gz", "which no data file does")


def test_a_gzip_bomb_in_a_gzip_bomb(zeros: bytes, attack: Attack) -> None:
    file = attack.place / "bomb.csv.gz"
    file.write_bytes(gzip.compress(zeros))
    attack.refuse_data(file, megabytes=300)


def test_a_folder_with_a_gzip_bomb(zeros: bytes, attack: Attack) -> None:
    (attack.place / "reviews").mkdir()
    for label in ("pos", "neg"):
        (attack.place / "reviews" / f"{label}.txt.gz").write_bytes(zeros)
    mentions(attack.refuse_data(attack.place / "reviews", megabytes=300), "which no data file does")


# --- workbooks -------------------------------------------------------------------------------------------------------

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PARTS = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/xl/workbook.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>'
    '<Override PartName="/xl/sharedStrings.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    f'<Relationship Id="r1" Type="{REL}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{REL}"><sheets>'
    '<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    f'<Relationship Id="r1" Type="{REL}/worksheet" Target="worksheets/sheet1.xml"/>'
    f'<Relationship Id="r2" Type="{REL}/sharedStrings" Target="sharedStrings.xml"/></Relationships>',
    "xl/sharedStrings.xml": f'<sst xmlns="{MAIN}"><si><t>text</t></si></sst>',
    "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{MAIN}"><sheetData>'
    '<row r="1"><c r="A1" t="s"><v>0</v></c></row></sheetData></worksheet>',
}  # fmt: skip

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    + f']><sst xmlns="{MAIN}"><si><t>&a11;</t></si></sst>'
)
QUADRATIC = f'<!DOCTYPE x [<!ENTITY a "{"x" * 50_000}">]><sst xmlns="{MAIN}"><si><t>{"&a;" * 50_000}</t></si></sst>'
OUTSIDE = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><sst xmlns="{MAIN}"><si><t>&a;</t></si></sst>'
REMOTE = f'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/evil.dtd"><sst xmlns="{MAIN}"><si><t>x</t></si></sst>'
WIDE_ROWS = (
    f'<worksheet xmlns="{MAIN}"><sheetData>'
    + "".join(f'<row r="{i}"><c r="XFD{i}"><v>1</v></c></row>' for i in range(1, 8001))
    + "</sheetData></worksheet>"
)
FAR_COLUMN = (
    f'<worksheet xmlns="{MAIN}"><sheetData><row r="1"><c r="ZZZZZZ1"><v>1</v></c></row></sheetData></worksheet>'
)

BOOKS: dict[str, tuple[dict[str, str | bytes], str]] = {
    "a gigabyte of strings": ({"xl/sharedStrings.xml": b" " * 2**28}, "which no data file does"),
    "billion laughs": ({"xl/sharedStrings.xml": LAUGHS}, "DOCTYPE"),
    "laughs in the sheet": ({"xl/worksheets/sheet1.xml": LAUGHS}, "DOCTYPE"),
    "laughs in the types": ({"[Content_Types].xml": LAUGHS}, "DOCTYPE"),
    "quadratic blow-up": ({"xl/sharedStrings.xml": QUADRATIC}, "DOCTYPE"),
    "a file from outside": ({"xl/sharedStrings.xml": OUTSIDE}, "DOCTYPE"),
    "a file from the network": ({"xl/sharedStrings.xml": REMOTE}, "DOCTYPE"),
    "laughs in another encoding": ({"xl/sharedStrings.xml": LAUGHS.encode("utf-16")}, "DOCTYPE"),
    "wide rows": ({"xl/worksheets/sheet1.xml": WIDE_ROWS}, "more than 50,000,000 cells"),
    "a far column": ({"xl/worksheets/sheet1.xml": FAR_COLUMN}, "bomb.xlsx"),
    "deep XML": ({"xl/worksheets/sheet1.xml": "<a>" * 200_000}, "bomb.xlsx"),
    "names that lead out": ({"../../../planted.xml": "x", "/tmp/planted.xml": "x"}, "bomb.xlsx"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOOKS))
def test_a_workbook(name: str, attack: Attack) -> None:
    changed, part = BOOKS[name]
    file = attack.place / "bomb.xlsx"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, content in {**PARTS, **changed}.items():
            archive.writestr(place, content)
    mentions(attack.refuse_data(file, megabytes=1000), part)
    assert not list(attack.place.parent.rglob("planted*"))


# --- parquet ---------------------------------------------------------------------------------------------------------


def words(count: int, size: int) -> Callable[[Path], None]:
    """Write one word of a size, said so many times: a few bytes."""

    def write(path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as parquet

        column = pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), pa.array(["x" * size]))
        parquet.write_table(pa.table({"text": column, "label": column}), path, store_schema=False, compression="zstd")

    return write


def many_columns(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({f"c{i}": pa.array([1]) for i in range(3000)}), path)


def lying(path: Path) -> None:
    words(10, 10)(path)
    raw = bytearray(path.read_bytes())
    raw[-200:-100] = bytes(b ^ 0xFF for b in raw[-200:-100])
    path.write_bytes(raw)


PARQUETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a word said ten million times": (words(10_000_000, 1000), "which no data file does"),
    "a long word said often": (words(20_000, 500_000), "which no data file does"),
    "thousands of columns": (many_columns, ""),
    "a footer that lies": (lying, "bomb.parquet"),
}


@pytest.mark.parametrize("name", list(PARQUETS))
def test_a_parquet_file(name: str, attack: Attack) -> None:
    write, part = PARQUETS[name]
    file = attack.place / "bomb.parquet"
    write(file)
    assert file.stat().st_size < 3_000_000
    if part:
        mentions(attack.refuse_data(file, megabytes=600), part)
    else:
        attack.read(file, megabytes=600)


# --- text ------------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str, Callable[[], str], str]] = {
    "a million columns": ("csv", lambda: ",".join(map(str, range(1_000_000))) + "\n" + "1," * 999_999 + "1\n", ""),
    "a million columns of one name": ("csv", lambda: "a," * 999_999 + "a\n" + "1," * 999_999 + "1\n", "characters"),
    "a million commas": ("csv", lambda: "text,label\n" + "," * 1_000_000 + "\n", "row 1"),
    "a cell of 30 MB": ("csv", lambda: 'text,label\n"' + "x" * 30_000_000 + '",a\n', "characters"),
    "a quote that never ends": ("csv", lambda: 'text,label\n"' + "a,b\n" * 1_000_000, ""),
    "quotes only": ("csv", lambda: "text,label\n" + '"' * 2_000_001, ""),
    "a million lines of nothing": ("csv", lambda: "\n" * 2_000_000, ""),
    "ever new fields": (
        "jsonl", lambda: "".join(f'{{"k{i}": 1}}\n' for i in range(30_000)), "different fields"),
    "wide and long": (
        "jsonl", lambda: "".join(json.dumps({f"k{i}-{j}": 1 for j in range(10)}) + "\n" for i in range(1900)), "different fields"),  # noqa: E501
    "deep": ("jsonl", lambda: '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "deep lists": ("json", lambda: "[" * 2_000_000, "nested too deeply"),
    "many keys, the last twice": (
        "json", lambda: '[{"a": {' + "".join(f'"{i}": 1, ' for i in range(200_000)) + '"199999": 1}}]', "stands twice"),
    "a number of a million digits": ("jsonl", lambda: '{"text": ' + "9" * 1_000_000 + "}\n", "digits"),
    "a number of a million digits in a csv": ("csv", lambda: "text,label\n" + "9" * 999_999 + ",a\n", ""),
    "a line of 50 MB": ("txt", lambda: "word " * 10_000_000, "characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text(name: str, attack: Attack) -> None:
    ending, make, part = TEXTS[name]
    file = attack.place / f"bomb.{ending}"
    file.write_text(make(), "utf-8")
    if part:
        mentions(attack.refuse_data(file), part)
        return
    with contextlib.suppress(DataError):
        attack.read(file)


def test_one_huge_cell_among_rows(attack: Attack) -> None:
    rows = [*reviews(), ("film " * 190_000, "pos")]
    file = write_csv(attack.place / "rows.csv", rows)
    assert attack.read(file, megabytes=200).table.num_rows == 121
