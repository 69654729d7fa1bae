"""Texts for embeddings: columns found, rows checked, and batches without false negatives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesmith.data.pairs import Pairs, class_batches, find_layout, pair_batches, read_pairs
from finesmith.errors import DataError, UserError


@pytest.mark.parametrize(
    ("columns", "kind", "used"),
    [
        (["anchor", "positive"], "pairs", ("anchor", "positive")),
        (["id", "Query", "Positive", "Negative"], "triplets", ("Query", "Positive", "Negative")),
        (["question", "answer", "url"], "pairs", ("question", "answer")),
        (["sentence1", "sentence2"], "pairs", ("sentence1", "sentence2")),
        (["sentence1", "sentence2", "score"], "scored pairs", ("sentence1", "sentence2", "score")),
        (["text", "category"], "labelled", ("text", "category")),
    ],
)
def test_columns_are_found_by_their_names(columns: list[str], kind: str, used: tuple[str, ...]) -> None:
    found = find_layout(columns)
    assert (found.kind, found.columns) == (kind, used)
    assert all(repr(column) in found.reason for column in used)


def test_named_columns_are_taken() -> None:
    assert find_layout(["a", "b"], named={"anchor": "b", "positive": "a"}).columns == ("b", "a")
    assert find_layout(["a", "b"], named={"text": "b", "label": "a"}).kind == "labelled"
    three = find_layout(["a", "b", "c"], named={"anchor": "b", "positive": "a", "negative": "c"})
    assert (three.kind, three.columns) == ("triplets", ("b", "a", "c"))
    scored = find_layout(["a", "b", "c"], named={"anchor": "b", "positive": "a", "score": "c"})
    assert (scored.kind, scored.columns) == ("scored pairs", ("b", "a", "c"))


@pytest.mark.parametrize(
    ("columns", "named", "said"),
    [
        (["a", "b"], {}, "no pairs and no labelled sentences found in the columns 'a', 'b'"),
        (["sentence1", "sentence2", "score", "similarity"], {}, "several columns could be the score"),
        (["anchor", "positive", "negative", "score"], {}, "'score' tells that not every pair belongs together"),
        (["sentence1", "sentence2", "label"], {}, "'label' tells that not every pair belongs together"),
        (["anchor", "positive", "question", "answer"], {}, "several columns could be anchor and positive"),
        (["anchor", "positive", "negative", "hard_negative"], {}, "several columns could be the negative"),
        (["a", "b"], {"anchor": "x", "positive": "b"}, "the anchor is to be column 'x', but the columns are 'a', 'b'"),
        (["a", "b"], {"anchor": "a", "positive": "a"}, "one column is named for two roles"),
        (["a", "b"], {"anchor": "a"}, "expected anchor and positive"),
    ],
)
def test_columns_that_tell_nothing_or_two_things(columns: list[str], named: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_layout(columns, named=named)


def test_rows_are_checked() -> None:
    where = ["p.csv row 1", "p.csv row 2"]
    found = read_pairs(["a", "Same  text"], ["b", "same text"], None, where)
    assert found == Pairs(("a",), ("b",), None, (1,))
    assert read_pairs(["a"], ["b"], ["c"], where[:1]) == Pairs(("a",), ("b",), ("c",))
    for rows, said in (
        ((["a", None], ["b", "c"], None), "row 2: the anchor is 'None'"),
        ((["a", "b"], ["b", " "], None), "row 2: the positive is ' '"),
        ((["a", "b"], ["b", "c"], ["x", 3]), "row 2: the negative is '3'"),
        ((["a", "b"], ["b", "c"], ["x", "C"]), "row 2: negative and positive are the same text 'C'"),
        ((["a", "b"], ["b", "c"], ["x", "b"]), "row 2: negative and anchor are the same text"),
        ((["a", "b"], ["a", "b"], None), "in all of the 2 pairs both texts are the same"),
    ):
        with pytest.raises(DataError, match=said):
            read_pairs(*rows, where)


PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(9, 20), st.integers(21, 40)), min_size=1, max_size=40)


@given(PAIRS, st.booleans(), st.integers(2, 9), st.integers(0, 3))
def test_no_batch_holds_a_text_twice(
    rows: list[tuple[int, int, int]], negatives: bool, batch_size: int, epoch: int
) -> None:
    texts = [tuple(f"text {number}" for number in row) for row in rows]
    anchors, positives, others = zip(*texts, strict=True)
    pairs = Pairs(anchors, positives, others if negatives else None)
    batches = pair_batches(pairs, batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    for batch in batches:
        assert 1 <= batch.size <= batch_size
        held = [text for row in batch for text in texts[row][: 3 if negatives else 2]]
        assert len(set(held)) == len(held)
    again = pair_batches(Pairs(anchors, positives, pairs.negatives), batch_size, seed=1, epoch=epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_batches_are_full_where_no_text_repeats() -> None:
    pairs = Pairs(tuple(f"a{i}" for i in range(50)), tuple(f"b{i}" for i in range(50)))
    batches = [pair_batches(pairs, 8, seed=0, epoch=epoch) for epoch in (0, 1)]
    assert [batch.size for batch in batches[0]] == [8] * 6 + [2]
    assert not np.array_equal(batches[0][0], batches[1][0])
    with pytest.raises(UserError, match="batch size is 1, expected at least 2"):
        pair_batches(pairs, 1, seed=0, epoch=0)


LABELS = st.lists(st.integers(0, 6), min_size=6, max_size=80).filter(
    lambda labels: sum(labels.count(each) > 1 for each in set(labels)) > 1
)


@given(LABELS, st.integers(2, 5), st.integers(2, 5), st.integers(0, 3))
def test_every_row_meets_another_of_its_class(labels: list[int], classes: int, each: int, epoch: int) -> None:
    column = np.asarray(labels)
    batches, alone = class_batches(column, classes, each, seed=2, epoch=epoch)
    assert sorted(np.concatenate([*batches, alone]).tolist()) == list(range(len(labels)))
    assert all(labels.count(labels[row]) == 1 for row in alone)
    for batch in batches:
        counts = np.unique(column[batch], return_counts=True)[1]
        assert counts.min() >= 2
        assert batch.size <= (classes + 1) * max(3, each)
    assert len(batches) == len(class_batches(column, classes, each, seed=2, epoch=epoch + 1)[0])
    again, _ = class_batches(column, classes, each, seed=2, epoch=epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_a_frequent_class_is_spread_over_the_epoch() -> None:
    labels = np.asarray([0] * 200 + [1] * 100 + [2] * 100)
    for epoch in range(5):
        batches, alone = class_batches(labels, 4, 5, seed=0, epoch=epoch)
        assert not alone.size
        assert [batch.size for batch in batches] == [20] * 20
        assert all(np.unique(labels[batch]).size > 1 for batch in batches)


def test_classes_that_cannot_be_brought_together() -> None:
    with pytest.raises(DataError, match="1 classes have two rows or more"):
        class_batches(np.asarray([0, 0, 1]), 2, 2, seed=0, epoch=0)
    for classes, each in ((1, 2), (2, 1)):
        with pytest.raises(UserError, match="expected at least 2 of each"):
            class_batches(np.asarray([0, 0, 1, 1]), classes, each, seed=0, epoch=0)


def test_banking77_in_batches_of_sixteen_classes(shared: Path) -> None:
    with (shared / "data" / "banking77" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert find_layout(list(rows[0])).kind == "labelled"
    _, labels = np.unique([row["category"] for row in rows], return_inverse=True)
    batches, alone = class_batches(labels, 16, 4, seed=0, epoch=0)
    assert sum(batch.size for batch in batches) == len(rows)
    assert not alone.size
    assert min(np.unique(labels[batch]).size for batch in batches[:-1]) >= 7
