"""What `profile` and `find_columns` promise: right on real shapes, stopped by two readings, never crashing."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.infer import ColumnProfile, Columns, find_columns, profile
from finesmith.data.sources import read
from finesmith.errors import DataError

SENTENCES = [f"the parcel number {n} never came and nobody answers my calls" for n in range(40)]


def columns_of(**columns: list[Any]) -> dict[str, ColumnProfile]:
    return {each.name: each for each in profile(pa.table(columns))}


def found(table: pa.Table, **named: str) -> Columns:
    return find_columns(profile(table), **named)


def tickets() -> pa.Table:
    return pa.table(
        {
            "ticket_id": [f"T-{n:05}" for n in range(40)],
            "date": [f"2024-03-{n % 28 + 1:02}" for n in range(40)],
            "customer_id": [f"C{n % 15:03}" for n in range(40)],
            "channel": [("mail", "phone", "chat")[n % 3] for n in range(40)],
            "message": SENTENCES,
            "category": [("delivery", "billing", "other", "account")[n % 4] for n in range(40)],
        }
    )


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("t", SENTENCES, "text"),
        ("t", ["好电影,我很喜欢这个故事" + str(n) for n in range(40)], "text"),
        ("c", ["pos", "neg"] * 20, "category"),
        ("c", [0, 1, 2, 1] * 10, "category"),
        ("c", [n % 77 for n in range(1000)], "category"),
        ("class index", [1, 2, 3, 4] * 10, "category"),
        ("index", [1, 2, 3, 4] * 10, "id"),
        ("stars", [1, 2, 3, 4, 5] * 8, "rating"),
        ("star_rating", [1.0, 2.5, 4.0, None] * 10, "rating"),
        ("n", [n * n for n in range(40)], "number"),
        ("price", [n / 7 for n in range(40)], "number"),
        ("score", [n / 7 for n in range(40)], "number"),
        ("score", list(range(40)), "number"),
        ("tags", [["a"], ["a", "b"]] * 20, "list"),
        ("messages", [[{"role": "user"}]] * 20, "other"),
        ("d", [datetime.date(2024, 1, n + 1) for n in range(20)], "date"),
        ("d", [f"2024-01-{n + 1:02}T10:00:00Z" for n in range(20)], "date"),
        ("d", [f"{n + 1}/12/2024" for n in range(20)], "date"),
        ("x", list(range(1, 41)), "id"),
        ("customer_id", ["C1", "C2"] * 20, "id"),
        ("x", [f"https://example.org/{n}" for n in range(40)], "id"),
        ("x", [f"user{n}@example.org" for n in range(40)], "id"),
        ("link", [f"see https://example.org/{n} for it" for n in range(40)], "id"),
        ("b", [True, False] * 20, "boolean"),
        ("b", ["True", "False"] * 20, "boolean"),
        ("k", ["same"] * 40, "constant"),
        ("e", [None] * 40, "empty"),
        ("e", ["", "  "] * 20, "empty"),
        ("e", [float("nan")] * 40, "empty"),
    ],
)
def test_kinds(name: str, values: list[Any], kind: str) -> None:
    each = columns_of(**{name: values})[name]
    assert each.kind == kind


@pytest.mark.parametrize("mark", ["|", ";", ",", ", "])
def test_labels_parted_by_a_mark_are_a_list(mark: str) -> None:
    rows = [
        "late",
        mark.join(["late", "rude"]),
        mark.join(["rude", "dear", "late"]),
        "dear",
        mark.join(["dear", "late"]),
    ] * 8
    each = columns_of(tags=rows)["tags"]
    assert (each.kind, each.separator) == ("list", mark.strip())


@pytest.mark.parametrize(
    "values",
    [
        ["Paris, France", "Lyon, France", "Rome, Italy"] * 10,
        ["Food, drinks", "Clothes", "Books"] * 10,
        [f"well, I think the number {n}, which is odd, is fine" for n in range(30)],
    ],
)
def test_commas_alone_do_not_make_a_list(values: list[str]) -> None:
    assert columns_of(x=values)["x"].separator is None


def test_counts_are_exact_on_tables_larger_than_the_sample() -> None:
    rows = 60_000
    table = pa.table(
        {
            "periodic": [n % 3 for n in range(rows)],
            "rare": ["common"] * (rows - 1) + ["rare"],
            "gaps": [None if n % 4 == 0 else "a b c d e f " + str(n) for n in range(rows)],
            "numbers": [float("nan") if n % 5 == 0 else n / 3 for n in range(rows)],
        }
    )
    by_name = {each.name: each for each in profile(table)}
    assert by_name["periodic"].values == ("0", "1", "2")
    assert by_name["rare"].values == ("common", "rare")
    assert (by_name["gaps"].missing, by_name["gaps"].distinct) == (rows // 4, rows * 3 // 4)
    assert (by_name["numbers"].missing, by_name["numbers"].distinct) == (rows // 5, rows * 4 // 5)
    assert by_name["gaps"].mean_words == 7
    assert profile(table) == profile(table)


def test_every_arrow_type_has_a_profile() -> None:
    now = datetime.datetime(2024, 1, 2, 3, 4)
    arrays = {
        "time": pa.array([now.time(), None]),
        "stamp": pa.array([now, None]),
        "duration": pa.array([datetime.timedelta(1), None]),
        "decimal": pa.array([1, 2]).cast(pa.decimal128(25, 2)),
        "half": pa.array([1.5, 2.5]).cast(pa.float16()),
        "unsigned": pa.array([2**63, 1], pa.uint64()),
        "large": pa.array(["a b", "c"], pa.large_string()),
        "folded": pa.array(["a", "b"]).dictionary_encode(),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "fixed": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
        "bytes": pa.array([b"a", None]),
        "none": pa.nulls(2),
    }
    kinds = {each.name: each.kind for each in profile(pa.table(arrays))}
    assert kinds["folded"] == kinds["unsigned"] == "category"
    assert kinds["map"] == kinds["bytes"] == "other"
    assert kinds["none"] == "empty"
    many = pa.table(arrays).take(pa.array([0, 1] * 11_000))
    assert {each.name for each in profile(many)} == set(arrays)


def test_support_tickets() -> None:
    columns = found(tickets())
    assert (columns.text, columns.label, columns.group, columns.split) == ("message", "category", None, None)
    assert columns.reasons["label"] == "column 'category' is named like a label and has 4 distinct values"
    assert len(columns.suggestions) == 1
    assert "--set data.group=customer_id" in columns.suggestions[0]
    assert found(tickets(), group="customer_id").group == "customer_id"
    assert found(tickets(), group="customer_id").suggestions == ()
    assert found(tickets(), label="channel").label == "channel"


def test_real_files(shared: Path) -> None:
    data = shared / "data"

    def of(name: str, **named: str) -> Columns:
        return found(read([str(data / name)]).table, **named)

    films = of("film_reviews/train.jsonl")
    assert (films.text, films.label, films.split) == ("text", "label", None)
    bank = of("banking77/train.csv")
    assert (bank.text, bank.label) == ("text", "category")
    medical = of("medical_pubmedqa/sections.jsonl")
    assert (medical.text, medical.label, medical.split, medical.group) == ("text", "label", "split", None)
    assert "pmid" in medical.suggestions[0]
    with pytest.raises(DataError) as caught:
        of("spanish_fakenews/train.jsonl")
    assert "'category' (has 2 distinct values) and 'topic' (has 9 distinct values)" in str(caught.value)
    assert "--set data.label=category or --set data.label=topic" in str(caught.value)
    assert of("spanish_fakenews/train.jsonl", label="topic").text == "text"


def test_rating_and_sentiment_are_two_readings() -> None:
    table = pa.table({"review": SENTENCES, "stars": [1, 5, 4, 2] * 10, "sentiment": ["neg", "pos", "pos", "neg"] * 10})
    with pytest.raises(DataError, match=r"--set data\.label=stars or --set data\.label=sentiment"):
        found(table)
    assert found(table, label="stars").text == "review"


def test_pairs_are_found_by_their_names() -> None:
    table = pa.table({"premise": SENTENCES, "hypothesis": SENTENCES[::-1], "label": [0, 1] * 20})
    columns = found(table)
    assert (columns.text, columns.text_pair, columns.label) == ("premise", "hypothesis", "label")
    assert found(table, text="premise").text_pair is None


def test_content_decides_where_names_do_not() -> None:
    table = pa.table({"a": SENTENCES, "b": ["x", "y"] * 20, "when": ["2024-01-01"] * 20 + ["2024-01-02"] * 20})
    columns = found(table)
    assert (columns.text, columns.label) == ("a", "b")
    assert "only one of few values" in columns.reasons["label"]
    two = table.append_column("c", pa.array(["u", "v"] * 20))
    with pytest.raises(DataError, match=r"--set data\.label=b or --set data\.label=c"):
        found(two)
    long = table.append_column("body of it all", pa.array([sentence * 9 for sentence in SENTENCES]))
    assert found(long).text == "body of it all"
    same = table.append_column("d", pa.array(SENTENCES[::-1]))
    with pytest.raises(DataError, match=r"two columns could be the text.*--set data\.text=a or --set data\.text=d"):
        found(same)
    assert found(pa.table({"text": SENTENCES})).label is None


def test_a_label_by_exact_name_wins() -> None:
    table = pa.table({"text": SENTENCES, "label": [0, 1] * 20, "label_text": ["n", "p"] * 20, "topic": ["a", "b"] * 20})
    assert found(table).label == "label"


def test_ids_dates_and_addresses_are_not_text() -> None:
    table = pa.table(
        {
            "document": [f"doc-{n}" for n in range(40)],
            "content": [f"https://example.org/{n}" for n in range(40)],
            "post": [f"2024-01-{n % 28 + 1:02}" for n in range(40)],
        }
    )
    with pytest.raises(DataError, match="no column of free text"):
        found(table)
    spread = table.append_column("said", pa.array(SENTENCES))
    assert found(spread).text == "said"


def test_split_needs_name_and_values() -> None:
    splits = ["Train", "test", "dev", "train"] * 10
    assert found(pa.table({"text": SENTENCES, "label": [0, 1] * 20, "set": splits})).split == "set"
    other = pa.table({"text": SENTENCES, "label": [0, 1] * 20, "set": ["A", "B"] * 20})
    assert found(other).split is None


def test_named_columns_are_checked() -> None:
    with pytest.raises(DataError, match=r"data\.label is 'categry', but there is no such column; is it 'category'\?"):
        found(tickets(), label="categry")
    with pytest.raises(DataError, match=r"ticket_id, date, customer_id, channel, message, category"):
        found(tickets(), text="zzz")
    with pytest.raises(DataError, match=r"both data\.text and data\.label"):
        found(tickets(), text="message", label="message")
    with pytest.raises(DataError, match="has no values"):
        found(pa.table({"a": [None, None], "b": ["x", "y"]}), text="a")


SCALARS = st.one_of(st.none(), st.text(max_size=20), st.integers(-(2**40), 2**40), st.floats(), st.booleans())
COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), max_size=12),
    st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62)), max_size=12),
    st.lists(st.one_of(st.none(), st.floats()), max_size=12),
    st.lists(st.one_of(st.none(), st.booleans()), max_size=12),
    st.lists(st.one_of(st.none(), st.dates(), st.none()), max_size=12),
    st.lists(st.one_of(st.none(), st.lists(st.sampled_from(["a", "b"]), max_size=3)), max_size=12),
    st.lists(st.one_of(st.none(), st.binary(max_size=4)), max_size=12),
    st.lists(st.fixed_dictionaries({"k": st.integers(0, 5)}), max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=12), values=COLUMNS)
def test_profile_never_fails_and_counts_add_up(name: str, values: list[Any]) -> None:
    (each,) = profile(pa.table({name: pa.array(values)}))
    there = [v for v in values if v is not None and v == v and not (isinstance(v, str) and not v.strip(" \t\n\r\f\v"))]
    assert each.rows == len(values)
    assert 0 <= each.distinct <= each.rows - each.missing
    if not any(isinstance(v, str) for v in values):
        assert each.missing == len(values) - len(there)
        assert each.distinct == len({str(v) if isinstance(v, (list, dict)) else v for v in there})
    assert (each.kind == "empty") == (each.rows == each.missing)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["text", "label", "tags", "split", "a", "b", "stars"]),
        st.lists(SCALARS, min_size=6, max_size=6),
    )
)
def test_find_columns_answers_or_refuses(columns: dict[str, list[Any]]) -> None:
    from finesmith.data.formats import column_of

    table = pa.table({name: column_of(values)[0] for name, values in columns.items()})
    try:
        chosen = find_columns(profile(table))
    except DataError:
        return
    roles = [c for c in (chosen.text, chosen.text_pair, chosen.label, chosen.group, chosen.split) if c is not None]
    assert len(roles) == len(set(roles))
    assert set(roles) <= set(columns)
