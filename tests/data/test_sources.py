"""What `read` promises: every format, every encoding, every fault named."""

from __future__ import annotations

import csv
import datetime
import gzip
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finesmith.data import bounds, delimited, folders, hub
from finesmith.data.sources import read, split_files
from finesmith.errors import DataError

ROWS = [
    {"text": "great, really", "label": "pos"},
    {"text": 'a "bad" film', "label": "neg"},
    {"text": "ñ é", "label": "pos"},
]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def refusal(*names: str, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read(names, **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(message) < 800
    return message


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", as_csv(ROWS)),
        ("a.tsv", as_csv(ROWS, "\t")),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("b.json", json.dumps({"version": "1", "data": ROWS})),
        ("c.json", json.dumps({"text": [r["text"] for r in ROWS], "label": [r["label"] for r in ROWS]})),
        ("d.json", json.dumps({c: {str(i): r[c] for i, r in enumerate(ROWS)} for c in ("text", "label")})),
        ("a.jsonl", "\n".join(json.dumps(r) for r in ROWS)),
        ("a.ndjson", "\n\n".join(json.dumps(r) for r in ROWS) + "\n\n"),
        ("a.CSV", as_csv(ROWS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str, packed: bool) -> None:
    data = gzip.compress(content.encode()) if packed else content.encode()
    path = write(tmp_path / (name + ".gz" if packed else name), data)
    source = read([path])
    assert source.table.to_pylist() == ROWS
    (origin,) = source.origins
    assert (origin.name, origin.rows, origin.first_row, origin.encoding) == (path, 3, 0, "utf-8")
    assert origin.sha256 == hashlib.sha256(data).hexdigest()


def test_parquet_keeps_types_and_says_no_encoding(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a b", None]),
            "tags": pa.array([["x"], ["x", "y"]]),
            "day": pa.array([datetime.date(2024, 1, 2), None]),
            "kind": pa.array(["u", "v"]).dictionary_encode(),
            "n": pa.array([1, 2], pa.int32()),
            "ok": pa.array([True, False]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    source = read([str(tmp_path / "a.parquet")])
    assert source.table.to_pylist() == table.to_pylist()
    assert source.table["kind"].type == pa.string()
    assert source.table["n"].type == pa.int32()
    assert source.origins[0].encoding is None


def test_class_numbers_of_a_hub_parquet_file_get_their_names(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    source = read([str(tmp_path / "a.parquet")])
    assert source.table["label"].to_pylist() == ["pos", "neg", None]
    assert "class names" in source.origins[0].notes[0]


def test_excel_first_sheet_with_types_and_a_note_on_the_others(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["text", "stars", None, "day"])
    book.active.append(["good", 5, None, datetime.datetime(2024, 1, 2)])
    book.active.append([None, None, None, None])
    book.active.append(["bad", 1, None, None])
    book.create_sheet("other").append(["x"])
    book.save(tmp_path / "a.xlsx")
    source = read([str(tmp_path / "a.xlsx")])
    assert source.table.column_names == ["text", "stars", "day"]
    assert source.table["stars"].to_pylist() == [5, 1]
    assert source.table["day"][0].as_py() == datetime.datetime(2024, 1, 2)
    assert "other" in source.origins[0].notes[0]


def test_workbook_with_broken_insides_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", "<broken")
        archive.writestr("xl/workbook.xml", "<broken")
    assert "cannot be read as an Excel workbook" in refusal(write(tmp_path / "a.xlsx", out.getvalue()))


def test_excel_without_openpyxl_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    assert "pip install 'finesmith[excel]'" in refusal(write(tmp_path / "a.xlsx", b"PK"))


def test_text_file_is_one_text_per_line_and_blank_lines_are_counted(tmp_path: Path) -> None:
    source = read([write(tmp_path / "a.txt", "one\r\n\r\ntwo\u2028still two\x85\nthree")])
    assert source.table["text"].to_pylist() == ["one", "two\u2028still two\x85", "three"]
    assert source.origins[0].notes == ("1 blank line skipped",)


def test_keyed_json_puts_the_key_in_a_column(shared: Path) -> None:
    legal = read([str(shared / "data/legal_summarization/all_v1.json")]).table
    assert legal.num_rows == 446
    assert legal["key"][0].as_py() == "legalsum01"
    medical = read([str(shared / "data/medical_pubmedqa/ori_pqal.json")]).table
    assert medical["key"][0].as_py() == "21645374"
    assert pa.types.is_list(medical["CONTEXTS"].type)


def test_real_files(shared: Path) -> None:
    data = shared / "data"
    assert read([str(data / "film_reviews/train.jsonl")]).table.num_rows == 8530
    assert read([str(data / "banking77/train.csv")]).table.num_rows == 10003
    pytest.importorskip("openpyxl")
    book = read([str(data / "spanish_fakenews/train.xlsx")]).table
    lines = read([str(data / "spanish_fakenews/train.jsonl")]).table
    assert book["Category"].to_pylist() == lines["category"].to_pylist()


# Encodings


@pytest.mark.parametrize(
    ("codec", "mark", "said"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", b"\xef\xbb\xbf", "utf-8 with BOM"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le with BOM"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be with BOM"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
        ("latin-1", b"", "latin-1"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_encodings_are_found_and_said(tmp_path: Path, codec: str, mark: bytes, said: str, name: str) -> None:
    rows = [{"text": f"El niño comió piñas en el jardín {n}", "label": "sí" if n % 2 else "no"} for n in range(9)]
    content = as_csv(rows) if name == "a.csv" else "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    source = read([write(tmp_path / name, mark + content.encode(codec))])
    assert source.table.to_pylist() == rows
    assert source.origins[0].encoding == said


def test_windows_quotes_are_cp1252_and_given_encodings_are_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "“café” – naïve €5".encode("cp1252"))
    assert read([path]).table["text"].to_pylist() == ["“café” – naïve €5"]
    assert read([path]).origins[0].encoding == "cp1252"
    cyrillic = write(tmp_path / "b.txt", ("это хороший фильм, мне понравилось\n" * 20).encode("cp1251"))
    assert "data.encoding" in refusal(cyrillic)
    assert read([cyrillic], encoding="cp1251").table["text"][0].as_py() == "это хороший фильм, мне понравилось"
    assert "not valid ascii" in refusal(path, encoding="ascii")
    assert "unknown encoding" in refusal(path, encoding="utf-99")


def test_one_damaged_byte_does_not_turn_a_utf8_file_into_latin1(tmp_path: Path) -> None:
    lines = ["año nuevo, corazón"] * 10
    data = "\n".join(lines).encode() + b"\ncaf\xe9\n"
    message = refusal(write(tmp_path / "a.txt", data))
    assert "line 11" in message
    assert "0xe9" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "PNG"),
        (pickle.dumps({"text": ["a"]}), "pickle"),
        (b"PK\x03\x04rest", "zip"),
        (b"text,label\na\0b,1\n", "NUL"),
        (bytes(range(1, 32)) * 20 + b"\xff", "control codes"),
    ],
)
def test_binary_is_refused_with_what_was_found(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refusal(write(tmp_path / "a.csv", data))


def test_gzip_faults_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(as_csv(ROWS * 500).encode())
    assert "cut off" in refusal(write(tmp_path / "a.csv.gz", packed[: len(packed) // 2]))
    assert "valid gzip" in refusal(write(tmp_path / "b.csv.gz", "text,label\na,b\n"))
    two = gzip.compress(b"text,label\na,b\n") + gzip.compress(b"c,d\n")
    assert read([write(tmp_path / "c.csv.gz", two)]).table.num_rows == 2
    bomb = write(tmp_path / "d.txt.gz", gzip.compress(b"\n" * 40_000_000))
    monkeypatch.setattr(bounds, "GROWTH_COUNTS_FROM", 10_000_000)
    assert "which no data file does" in refusal(bomb)
    monkeypatch.setattr(bounds, "MOST_GROWTH", 10_000)
    monkeypatch.setattr(bounds, "free_memory", lambda: 20_000_000)
    assert "of memory are free" in refusal(bomb)


# Delimited text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_delimiters_are_found_and_said(tmp_path: Path, delimiter: str, extension: str) -> None:
    source = read([write(tmp_path / f"a.{extension}", as_csv(ROWS, delimiter))])
    assert source.table.to_pylist() == ROWS
    usual = delimiter == ("," if extension == "csv" else "\t")
    assert any("separated by" in note for note in source.origins[0].notes) != usual


def test_excel_states_its_delimiter_in_the_first_line(tmp_path: Path) -> None:
    table = read([write(tmp_path / "a.csv", "sep=;\r\ntext;label\r\nun, deux;1\r\n")]).table
    assert table.to_pylist() == [{"text": "un, deux", "label": 1}]


def test_values_keep_what_they_say(tmp_path: Path) -> None:
    content = (
        "text,n,x,zip,flag,word,rating,long\n"
        "NA,1,1.5,01234,true,None,5,12345678901234567890\n"
        "null,,2,00001,false,nan,NA,1\n"
        "None,-3,,12345,,2,4,2\n"
        ",0,1e-3,99999,true,NA,3,3\n"
    )
    source = read([write(tmp_path / "a.csv", content)])
    assert source.table.to_pydict() == {
        "text": ["NA", "null", "None", ""],
        "n": [1, None, -3, 0],
        "x": [1.5, 2.0, None, 0.001],
        "zip": ["01234", "00001", "12345", "99999"],
        "flag": [True, False, None, True],
        "word": ["None", "nan", "2", "NA"],
        "rating": [5, None, 4, 3],
        "long": ["12345678901234567890", "1", "2", "3"],
    }
    assert "column 'rating' is numeric; 1 cells" in source.origins[0].notes[-1]


def test_line_ends_inside_quotes_stay(tmp_path: Path) -> None:
    table = read([write(tmp_path / "a.csv", 'text,label\r\n"one\r\ntwo\n\nthree",x\r\n"say ""hi""",y\r\n')]).table
    assert table["text"].to_pylist() == ["one\r\ntwo\n\nthree", 'say "hi"']


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    source = read([write(tmp_path / "a.csv", "text,label\na,x\n\n\nb,y\n\n")])
    assert source.table["text"].to_pylist() == ["a", "b"]
    assert source.origins[0].notes == ("2 blank lines skipped",)
    kept = read([write(tmp_path / "b.csv", "text,label\na,x\n,\nb,y\n")])
    assert kept.table["text"].to_pylist() == ["a", "", "b"]


def test_backslash_quotes_and_tab_separated_bare_quotes(tmp_path: Path) -> None:
    escaped = read([write(tmp_path / "a.csv", 'text,label\n"he said \\"no, never\\"",x\n')])
    assert escaped.table["text"].to_pylist() == ['he said "no, never"']
    assert escaped.origins[0].notes
    bare = read([write(tmp_path / "a.tsv", 'text\tlabel\n"Wow he said\tx\nfine\ty\n"Oh she said\tx\n')])
    assert bare.table["text"].to_pylist() == ['"Wow he said', "fine", '"Oh she said']
    assert "part of the text" in bare.origins[0].notes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\na,x\nb,y,z\nc,w\n", "row 2 has 3 fields, expected 2 (text, label)"),
        ("text,label\na,x\nb\nc\n", "row 2 has 1 field, expected 2 (text, label) (1 more such rows)"),
        ('text,label\na,x\n"b,y\nc,z\n', "row 2: a quotation mark is opened and never closed"),
        ("text,label,text\na,x,b\n", "names column 'text' twice"),
        ("text,,label\na,b,c\n", "column 2 has no name"),
        ("text,label\n", "has a header (text, label) but no rows"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("5,2024-01-01,99\n4,2024-01-02,98\n3,2024-01-03,97\n", "the first row looks like data"),
    ],
)
def test_faulty_csv_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = write(tmp_path / "reviews.csv", content)
    message = refusal(path)
    assert said in message
    assert path in message


def test_a_missing_header_is_supplied_only_when_certain(tmp_path: Path) -> None:
    rows = "".join(f"this is text number {n},{'pos' if n % 2 else 'neg'}\n" for n in range(20))
    source = read([write(tmp_path / "a.csv", rows)])
    assert source.table.column_names == ["text", "label"]
    assert source.table.num_rows == 20
    assert "no header" in source.origins[0].notes[0]
    survey = (
        "How satisfied are you with our service in general?,Would you return?\n" + "very happy,yes\nnot at all,no\n"
    )
    assert read([write(tmp_path / "b.csv", survey)]).table.num_rows == 2


def test_a_header_in_the_middle_is_noted_and_a_dos_end_mark_is_no_row(tmp_path: Path) -> None:
    source = read([write(tmp_path / "a.csv", "text,label\na,x\ntext,label\nb,y\n\x1a")])
    assert source.table["text"].to_pylist() == ["a", "text", "b"]
    assert "1 row the same as the header" in source.origins[0].notes[0]


def test_columns_that_spreadsheets_and_pandas_add(tmp_path: Path) -> None:
    indexed = read([write(tmp_path / "a.csv", ",text,label\n0,a,x\n1,b,y\n")])
    assert indexed.table.column_names == ["row_index", "text", "label"]
    trailing = read([write(tmp_path / "b.csv", "text,label,,\na,x,,\nb,y,,\n")])
    assert trailing.table.column_names == ["text", "label"]
    assert len(trailing.origins[0].notes) == 2


def test_a_huge_cell_is_refused_with_its_row_and_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nshort,x\n" + "y" * 1_000_001 + ",z\n")
    assert "row 2: column 'text' holds 1,000,001 characters" in refusal(path)
    assert "first line has 2,000,000 characters" in refusal(write(tmp_path / "b.csv", "a," * 1_000_000))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=12),
            st.sampled_from("xyz"),
        ),
        min_size=1,
        max_size=8,
    ),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_any_text_survives_a_csv_file(tmp_path: Path, rows: list[tuple[str, str]], delimiter: str) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("text", "label"), *rows])
    table = read([write(tmp_path / "h.csv", f"sep={delimiter}\n" + out.getvalue())]).table
    raw = [row["text"] for row in table.to_pylist()]
    if table["text"].type == pa.string():
        assert raw == [text for text, _ in rows]
    else:
        assert all(
            value is None or str(value).lower() == text.lower() or float(value) == float(text)
            for value, (text, _) in zip(raw, rows, strict=True)
        )


@settings(max_examples=150, deadline=None)
@given(st.text('ab,"\n\r ', max_size=40))
def test_arrow_and_the_careful_parser_agree(body: str) -> None:
    body = body.strip("\r\n")
    if not body:
        return
    dialect = delimited.Dialect(",")
    fast = delimited._fast(body, dialect)
    if fast is None:
        return
    careful, _ = delimited._careful(body, "a.csv", dialect)
    assert fast.to_pylist() == careful.to_pylist()


# JSON


def test_faulty_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    assert "line 2, column 11" in refusal(write(tmp_path / "a.json", '[{"text": "a"},\n {"text": b}]'))
    assert "line 2, column 10" in refusal(write(tmp_path / "b.json", '{"text": "a"}\n{"text": }\n'))
    assert "row 2 is a number" in refusal(write(tmp_path / "c.json", '[{"text": "a"}, 5]'))
    assert "different lengths (text: 2, label: 1)" in refusal(
        write(tmp_path / "d.json", '{"text": ["a", "b"], "label": ["x"]}')
    )
    assert "stands twice" in refusal(write(tmp_path / "e.json", '{"1": {"text": "a"}, "1": {"text": "b"}}'))
    assert "several lists of objects (train, test)" in refusal(
        write(tmp_path / "f.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}')
    )
    assert "holds no rows" in refusal(write(tmp_path / "g.json", "[]"))
    assert "nested too deeply" in refusal(write(tmp_path / "h.json", "[" * 200_000))
    for extension in ("json", "jsonl"):
        assert "thousands of digits" in refusal(write(tmp_path / f"i.{extension}", '{"n": ' + "9" * 5000 + "}"))
    assert "line 3, column 10" in refusal(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": }\n'))
    assert "line 2 is a list" in refusal(write(tmp_path / "b.jsonl", '{"text": "a"}\n["b"]\n'))


def test_json_that_holds_lines_is_read_as_lines_and_says_so(tmp_path: Path) -> None:
    source = read([write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n')])
    assert source.table["text"].to_pylist() == ["a", "b"]
    assert "one object per line" in source.origins[0].notes[0]


def test_nan_among_words_is_a_missing_label(tmp_path: Path) -> None:
    source = read([write(tmp_path / "a.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": "pos"}\n')])
    assert source.table["label"].to_pylist() == [None, "pos"]
    assert source.origins[0].notes == ("column 'label' holds 1 NaN, read as missing",)


def test_json_types_are_kept_and_mixed_ones_become_text_with_a_note(tmp_path: Path) -> None:
    lines = [
        {"text": "a", "label": 1, "tags": ["x"], "score": 1, "date": "2024-01-01"},
        {"text": "b", "label": "pos", "tags": [], "score": 2.5, "date": "2024-01-02"},
        {"text": "half \ud83d", "label": None, "tags": None, "date": None},
    ]
    source = read([write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines))])
    assert source.table["label"].to_pylist() == ["1", "pos", None]
    assert source.table["tags"].to_pylist() == [["x"], [], None]
    assert source.table["score"].to_pylist() == [1.0, 2.5, None]
    assert source.table["date"].type == pa.string()
    assert source.table["text"][2].as_py() == "half \ufffd"
    notes = " / ".join(source.origins[0].notes)
    assert "'score' is absent from 1 of 3 rows" in notes
    assert "'label' mixes types (a number, text)" in notes
    assert "'text' holds halves of emoji" in notes


# Several files, folders, paths


def test_several_files_are_laid_end_to_end(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", "text,label\na,1\nb,2\n")
    two = write(tmp_path / "two.csv", "label,text\nthree,c\n")
    three = write(tmp_path / "three.jsonl", '{"text": "d", "label": 4}\n')
    source = read([one, two])
    assert source.table.to_pydict() == {"text": ["a", "b", "c"], "label": ["1", "2", "three"]}
    assert [origin.first_row for origin in source.origins] == [0, 2]
    assert source.where(0) == f"{one} row 1"
    assert source.where(2) == f"{two} row 1"
    with pytest.raises(IndexError):
        source.where(3)
    assert read([one, three]).table["label"].to_pylist() == [1, 2, 4]
    mixed = read([two, three])
    assert mixed.table["label"].to_pylist() == ["three", "4"]
    assert "read as text" in mixed.origins[1].notes[-1]
    assert "given twice" in refusal(one, one)
    assert "lacks 'label' (is it 'lable'?) and also has 'lable'" in refusal(
        one, write(tmp_path / "x.csv", "text,lable\na,1\n")
    )


def test_max_rows_keeps_the_first_rows_of_all(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", "text,label\na,1\nb,2\n")
    two = write(tmp_path / "two.csv", "text,label\nc,1\nd,2\n")
    source = read([one, two], max_rows=3)
    assert source.table["text"].to_pylist() == ["a", "b", "c"]
    assert [origin.rows for origin in source.origins] == [2, 1]
    assert len(read([one, two], max_rows=2).origins) == 1
    assert "max_rows is 0" in refusal(one, max_rows=0)


def test_folder_with_a_file_per_class(tmp_path: Path) -> None:
    write(tmp_path / "c/pos.txt", "good\nfine\n")
    write(tmp_path / "c/neg.txt", "bad\n")
    write(tmp_path / "c/README.md", "about")
    source = read([str(tmp_path / "c")])
    assert source.table.to_pydict() == {"text": ["bad", "good", "fine"], "label": ["neg", "pos", "pos"]}
    assert source.where(2) == f"{tmp_path / 'c' / 'pos.txt'} row 2"


def test_classes_named_by_the_extension(tmp_path: Path, shared: Path) -> None:
    for label in ("pos", "neg"):
        write(tmp_path / f"c/rt-polarity.{label}", f"one {label}\ntwo {label}\n")
    assert read([str(tmp_path / "c")]).table["label"].to_pylist() == ["neg", "neg", "pos", "pos"]
    films = shared / "data/film_reviews"
    both = read([str(films / "rt-polarity.pos"), str(films / "rt-polarity.neg")]).table
    assert both.num_rows == 10662
    assert both["label"].to_pylist()[:1] + both["label"].to_pylist()[-1:] == ["pos", "neg"]


def test_folder_with_a_folder_per_class_takes_each_file_as_one_text(tmp_path: Path) -> None:
    for label in ("pos", "neg"):
        for number in range(2):
            write(tmp_path / f"c/{label}/{number}.txt", f"{label} {number}\nsecond line")
    source = read([str(tmp_path / "c")])
    assert source.table["text"].to_pylist()[:2] == ["neg 0\nsecond line", "neg 1\nsecond line"]
    assert source.table["label"].to_pylist() == ["neg", "neg", "pos", "pos"]
    assert source.where(3) == f"{tmp_path / 'c' / 'pos'} row 2"


def test_folder_of_parts_and_folder_of_splits(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"parts/part-{number}.csv", f"text,label\na{number},x\n")
    assert read([str(tmp_path / "parts")]).table["text"].to_pylist() == ["a0", "a1"]
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "test.csv", "notes.txt"):
        write(tmp_path / "splits" / name, "x")
    folder = tmp_path / "splits"
    assert split_files(str(folder)) == {
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "dev.jsonl"),
        "test": str(folder / "test.jsonl"),
    }
    assert f"--set data.validation={folder / 'dev.jsonl'}" in refusal(str(folder))
    assert split_files(str(tmp_path / "parts")) is None
    for name in ("train_reviews.csv", "test_reviews.csv"):
        write(tmp_path / "prefixed" / name, "x")
    assert list(split_files(str(tmp_path / "prefixed")) or {}) == ["train", "test"]
    assert split_files(str(folder / "train.jsonl")) is None
    write(tmp_path / "hub/train-00000-of-00002.csv", "x")
    write(tmp_path / "hub/train-00001-of-00002.csv", "x")
    write(tmp_path / "hub/test-00000-of-00001.csv", "x")
    with pytest.raises(DataError, match="several files are named for the train split"):
        split_files(str(tmp_path / "hub"))
    for split in ("train", "test"):
        write(tmp_path / f"imdb/{split}/pos/0.txt", "x")
    assert split_files(str(tmp_path / "imdb")) == {
        "train": str(tmp_path / "imdb/train"),
        "test": str(tmp_path / "imdb/test"),
    }


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data/reviews.csv", "text,label\na,b\n")
    assert f"the nearest name there is {path}" in refusal(str(tmp_path / "data/review.csv"))
    assert f"the nearest name there is {path}" in refusal(str(tmp_path / "data/reviews"))
    assert "does not exist" in refusal(str(tmp_path / "nowhere/reviews.csv"))
    assert "unknown format '.docx'" in refusal(write(tmp_path / "a.docx", "x"))
    (tmp_path / "empty").mkdir()
    assert "empty folder" in refusal(str(tmp_path / "empty"))
    write(tmp_path / "mixed/a.csv", "x")
    write(tmp_path / "mixed/b.json", "x")
    assert "a.csv, b.json" in refusal(str(tmp_path / "mixed"))
    assert "download it" in refusal("https://example.org/a.csv")
    assert "is empty" in refusal(write(tmp_path / "a.parquet", b""))
    assert "cannot be read as parquet" in refusal(write(tmp_path / "b.parquet", b"junk"))
    assert "no data given" in refusal()
    os.mkfifo(tmp_path / "pipe.csv")
    assert "not an ordinary file" in refusal(str(tmp_path / "pipe.csv"))

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "permission denied" in refusal(path)


def test_relative_path_in_an_existing_folder_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data/reviews.csv", "text,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    assert not hub.is_hub_id("data/reviews")
    assert not hub.is_hub_id("other/reviews.csv")
    assert hub.is_hub_id("stanford/imdb")
    assert hub.parse("a/b:c@main#train") == hub.HubId("a/b", "c", "main", "train")
    assert folders.format_of(Path("a.parquet.gz")) is None


# Hub


def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """Answer `load_dataset` from files; return the list of the calls made."""
    datasets = pytest.importorskip("datasets")
    load, asked = datasets.load_dataset, []
    files = {}
    for split in ("train", "test"):
        files[split] = write(
            tmp_path / f"{split}.csv", "text,label\n" + "".join(f"{split} {n},{n % 2}\n" for n in range(4))
        )

    def local(name: str, config: str | None = None, *, revision: str | None = None, split: str | None = None) -> object:
        asked.append({"name": name, "config": config, "revision": revision, "split": split})
        return load("csv", data_files=files, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    return asked


@pytest.mark.filterwarnings("ignore")
def test_hub_split_is_read_and_fingerprinted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = local_hub(monkeypatch, tmp_path)
    source = read(["org/films:plain@abc#test"])
    assert asked == [{"name": "org/films", "config": "plain", "revision": "abc", "split": "test"}]
    assert source.table["text"].to_pylist() == [f"test {n}" for n in range(4)]
    assert source.origins[0].format == "hub"
    assert source.origins[0].sha256 == read(["org/films:plain@abc#test"]).origins[0].sha256
    assert source.where(1) == "org/films:plain@abc#test row 2"
    assert "--set data.test=org/films#test" in refusal("org/films")


def test_hub_faults_are_told_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert "the hub cannot be reached" in refusal("org/films")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install 'finesmith[hub]'" in refusal("org/films")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extension=st.sampled_from(["csv", "tsv", "json", "jsonl", "txt", "csv.gz", "parquet", "xlsx"]),
    data=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text('{}[]":,abt1 \n\t;|', max_size=40).map(str.encode),
        st.text("ab\u00e9,\n", max_size=30).map(lambda text: text.encode("utf-16")),
    ),
)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path: Path, extension: str, data: bytes) -> None:
    path = write(tmp_path / f"f.{extension}", data)
    try:
        source = read([path])
    except DataError:
        return
    assert source.table.num_rows == sum(origin.rows for origin in source.origins) > 0
