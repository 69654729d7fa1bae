from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.near_duplicates import Clusters, cluster
from finesmith.data.split import leaks, split, units
from finesmith.errors import DataError


def alone(number: int) -> np.ndarray:
    return np.arange(number)


def keys(number: int, start: int = 0) -> list[str]:
    return [f"text number {row}" for row in range(start, start + number)]


def test_every_class_has_its_exact_share() -> None:
    labels = ["a"] * 500 + ["b"] * 300 + ["c"] * 40
    cut = split(labels, units=alone(840), keys=keys(840), validation=0.15, test=0.1, seed=0)
    counts = Counter(zip(labels, cut.names, strict=True))
    assert [counts[label, "test"] for label in "abc"] == [50, 30, 4]
    assert [counts[label, "validation"] for label in "abc"] == [75, 45, 6]
    assert cut.small == {}


@given(st.randoms(use_true_random=False), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_the_order_of_rows_does_not_matter(chance: object, seed: int) -> None:
    labels = [str(row % 3) for row in range(120)]
    member = alone(120) // 2 * 2
    names = split(labels, units=member, keys=keys(120), validation=0.2, test=0.2, seed=seed).names
    order = list(range(120))
    chance.shuffle(order)  # type: ignore[attr-defined]
    mixed = split(
        [labels[row] for row in order],
        units=member[order],
        keys=[keys(120)[row] for row in order],
        validation=0.2,
        test=0.2,
        seed=seed,
    ).names
    assert list(mixed) == [names[row] for row in order]


@pytest.mark.parametrize("added", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_added_rows_move_few_and_none_between_train_and_test(added: float, seed: int) -> None:
    number = 8000
    chance = np.random.default_rng(seed)
    labels = [str(label) for label in chance.choice(["a", "b"], number, p=[0.7, 0.3])]
    before = split(labels, units=alone(number), keys=keys(number), validation=0.15, test=0.15, seed=seed).names
    more = int(added * number)
    order = chance.permutation(number + more)
    all_keys = keys(number) + keys(more, 10**6)
    all_labels = labels + [str(label) for label in chance.choice(["a", "b"], more)]
    mixed = split(
        [all_labels[row] for row in order],
        units=alone(number + more),
        keys=[all_keys[row] for row in order],
        validation=0.15,
        test=0.15,
        seed=seed,
    ).names
    after = dict(zip(order.tolist(), mixed, strict=True))
    moves = Counter((name, after[row]) for row, name in enumerate(before) if after[row] != name)
    assert moves["train", "test"] == moves["test", "train"] == 0
    assert moves.total() < 0.02 * number


def test_another_seed_gives_another_split() -> None:
    one, two = (
        split(None, units=alone(200), keys=keys(200), validation=0.2, test=0.2, seed=seed).names for seed in (0, 1)
    )
    assert one != two
    assert Counter(one) == Counter(two) == {"train": 120, "validation": 40, "test": 40}


@given(
    member=st.lists(st.integers(0, 12), min_size=20, max_size=60),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_units_stay_together_and_no_split_is_left_empty(
    member: list[int], validation: float, test: float, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.sampled_from("ab"), min_size=len(member), max_size=len(member)))
    try:
        cut = split(labels, units=np.array(member), keys=keys(len(member)), validation=validation, test=test, seed=0)
    except DataError:
        assert len(set(member)) < 6
        return
    where: dict[int, set[str]] = {}
    for unit, name in zip(member, cut.names, strict=True):
        where.setdefault(unit, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    wanted = {"train", *(["validation"] if validation else []), *(["test"] if test else [])}
    assert set(cut.names) == wanted


def test_a_large_group_goes_where_there_is_room() -> None:
    sizes = [400] + [5] * 120
    member = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(10):
        names = split(None, units=member, keys=keys(len(member)), validation=0.1, test=0.1, seed=seed).names
        assert Counter(names) == {"train": 800, "validation": 100, "test": 100}
        assert names[0] == "train"


def test_the_size_of_a_unit_does_not_draw_it_to_test() -> None:
    # The smallest of 20 hashes is small: without a second hash the large units would nearly all be in test.
    sizes = np.array([20] * 40 + [1] * 800)
    member = np.repeat(np.arange(len(sizes)), sizes)
    shares = [
        np.mean(
            [
                name == "test"
                for name in split(None, units=member, keys=keys(1600), validation=0.2, test=0.2, seed=s).names[:800]
            ]
        )
        for s in range(20)
    ]
    assert 0.15 < np.mean(shares) < 0.25


def test_the_most_frequent_class_of_a_unit_decides() -> None:
    labels = [["a", "b", "b"], ["b", "a", "a"]] * 10
    member = np.repeat(np.arange(20), 3)
    flat = [label for unit in labels for label in unit]
    names = split(flat, units=member, keys=keys(60), validation=0.2, test=0.2, seed=0).names
    for kind in (0, 1):
        assert Counter(names[3 * unit] for unit in range(kind, 20, 2)) == {"train": 6, "validation": 2, "test": 2}


def test_classes_of_fewer_than_three_units_go_to_train_and_are_named() -> None:
    labels = ["common"] * 50 + ["rare"] * 2 + ["copied"] * 9
    member = np.array([*range(52), *[52] * 9])
    cut = split(labels, units=member, keys=keys(61), validation=0.2, test=0.2, seed=0)
    assert cut.small == {"rare": 2, "copied": 1}
    assert set(cut.names[50:]) == {"train"}


def test_three_units_are_enough_for_three_splits() -> None:
    cut = split(["a"] * 3, units=alone(3), keys=keys(3), validation=0.1, test=0.1, seed=0)
    assert sorted(cut.names) == ["test", "train", "validation"]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.2), (1.0, 0.0)])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(DataError, match=r"data\.validation_fraction"):
        split(None, units=alone(10), keys=keys(10), validation=validation, test=test, seed=0)


def test_too_few_units_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.test"):
        split(["a", "b"] * 5, units=np.zeros(10, np.int64), keys=keys(10), validation=0.2, test=0.2, seed=0)


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("pqrstu")), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_units_are_the_connected_rows(rows: list[tuple[int, str]]) -> None:
    firsts = [next(i for i, other in enumerate(rows) if other[0] == row[0]) for row in rows]
    found = units(Clusters(np.array(firsts), np.array(firsts)), [group for _, group in rows]).tolist()
    expected = list(range(len(rows)))
    for _ in rows:  # the smallest label spreads over whatever is shared
        for one, row in enumerate(rows):
            expected[one] = min(
                expected[two] for two, other in enumerate(rows) if row[0] == other[0] or row[1] == other[1]
            )
    assert found == expected


def test_units_without_groups_are_the_clusters() -> None:
    clusters = cluster(["a b c d e", "x", "a b c d e f"])
    assert units(clusters).tolist() == [0, 1, 0]


def test_leaks_name_the_copies_and_their_source() -> None:
    texts = [
        "my card was swallowed by the machine today",
        "the weather is lovely",
        "My card was swallowed by the machine today",
        "my card was swallowed by the machine yesterday",
        "an entirely different sentence about trains",
        "the weather  is lovely",
    ]
    found = leaks(["test", "validation", "train", "train", "train", "test"], cluster(texts), texts)
    assert found.exact.tolist() == [1, 2]
    assert found.near.tolist() == [3]
    assert found.source == {1: 5, 2: 0, 3: 0}


def test_a_row_linked_by_others_only_is_no_leak() -> None:
    texts = ["a b c d e f", "a b c d e x", "a b c d y x"]
    clusters = cluster(texts)
    assert clusters.first.tolist() == [0, 0, 0]
    assert leaks(["test", "train", "train"], clusters, texts).near.tolist() == [1]
