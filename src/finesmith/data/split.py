"""Cut rows into train, validation and test so that copies and groups stay together and added rows disturb little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from finesmith.data.near_duplicates import similar
from finesmith.errors import DataError
from finesmith.types import Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.near_duplicates import Clusters

    Ints = npt.NDArray[np.int64]

FEWEST_UNITS = 3
COMPARED = 50


@dataclass(frozen=True, slots=True)
class Cut:
    """A finished split.

    names: the split of every row; small: the classes of fewer than three units, all in train, with their units.
    """

    names: tuple[Split, ...]
    small: dict[str, int]


@dataclass(frozen=True, slots=True)
class Leaks:
    """Rows of train and validation that copy a row of a later split, as positions, int64, ascending.

    exact: equal after normalisation; near: near-duplicates that are not exact; source: for every position of both, the
    first row of test (else of validation) that it copies.
    """

    exact: Ints
    near: Ints
    source: dict[int, int]


def units(clusters: Clusters, groups: Sequence[str] | None = None) -> Ints:
    """Return for every row the first row of its unit, int64 [N]: what shares a cluster or a group stays together."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if groups is None:
        return clusters.first
    size = len(clusters.first)
    seen: dict[str, int] = {}
    leader = np.fromiter((seen.setdefault(group, row) for row, group in enumerate(groups)), np.int64, size)
    rows = np.arange(size)
    ends = np.concatenate([clusters.first, leader])
    graph = coo_matrix((np.ones(2 * size, np.int8), (np.tile(rows, 2), ends)), shape=(size, size))
    member = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(member, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def split(
    labels: Sequence[object] | None,
    *,
    units: Ints,
    keys: Sequence[str],
    validation: float,
    test: float,
    seed: int,
) -> Cut:
    """Split rows by class, each class in the order of a hash of its units' content: [test | validation | train].

    `units` int64 [N]: rows with the same number stay together; `keys`: each row's content (the normalised text), which
    alone decides its place; `validation` and `test` are shares of all rows. `labels`: each row's class, such as a
    task's strata; the class of a unit is its most frequent one. Every class of three units or more is in every split
    asked for, with a share as near as can be to the one asked for: a unit that would overfill its split goes to a
    later one.

    The order of the rows does not matter. When rows are added a border moves only as far as the sampling noise of its
    quantile, so that few rows cross a border and none crosses the whole of validation, unless its class has only a
    handful of units or the new rows tie old units together.

    Raises:
        DataError: shares that leave nothing to train on, or too few units to fill the splits asked for.
    """
    import numpy as np

    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise DataError(
            f"data.validation_fraction is {validation:g} and data.test_fraction {test:g}; expected shares of at least "
            "0 that leave a part for train, such as 0.1 and 0.1"
        )
    _, member = np.unique(units, return_inverse=True)
    sizes = np.bincount(member)
    places = _places(member, keys, seed, len(sizes))
    classes = _classes(labels, member)
    of_class: dict[str, list[int]] = {}
    for unit in np.argsort(places, kind="stable"):
        of_class.setdefault(classes[unit], []).append(int(unit))
    assigned: list[Split] = ["train"] * len(sizes)
    small: dict[str, int] = {}
    for name, ordered in sorted(of_class.items()):
        if len(ordered) < FEWEST_UNITS:
            small[name] = len(ordered)
            continue
        _lay_out(ordered, sizes, {"test": test, "validation": validation}, assigned)
    for asked, share in (("test", test), ("validation", validation)):
        if share and asked not in assigned:
            raise DataError(
                f"no class has the {FEWEST_UNITS} independent examples a {asked} split needs ({len(keys)} rows make "
                f"{len(sizes)} units in {len(of_class)} classes); add rows, or give a file as data.{asked}"
            )
    return Cut(tuple(assigned[unit] for unit in member), small)


def leaks(splits: Sequence[str], clusters: Clusters, texts: Sequence[str]) -> Leaks:
    """Find rows of train that copy validation or test rows, and rows of validation that copy test rows.

    A row that a chain of others links to a held-out row is no copy of it: each is compared with up to 50 held-out rows
    of its cluster and listed when one is near it.
    """
    import numpy as np

    source: dict[int, int] = {}
    exact: list[int] = []
    near: list[int] = []
    for early, later in (("validation", "test"), ("train", "test"), ("train", "validation")):
        rows = [row for row, name in enumerate(splits) if name == early and row not in source]
        held_exact: dict[int, int] = {}
        held_near: dict[int, list[int]] = {}
        for row in (row for row, name in enumerate(splits) if name == later):
            held_exact.setdefault(int(clusters.exact[row]), row)
            held_near.setdefault(int(clusters.first[row]), []).append(row)
        pairs: list[tuple[int, int]] = []
        for row in rows:
            if (copied := held_exact.get(int(clusters.exact[row]))) is not None:
                source[row] = copied
                exact.append(row)
            else:
                pairs += [(row, held) for held in held_near.get(int(clusters.first[row]), ())[:COMPARED]]
        for (row, held), alike in zip(pairs, similar(texts, pairs), strict=True):
            if alike and row not in source:
                source[row] = held
                near.append(row)
    return Leaks(np.asarray(sorted(exact), np.int64), np.asarray(sorted(near), np.int64), source)


def _places(member: Ints, keys: Sequence[str], seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Return a place for every unit from the smallest hash of its rows, hashed again so that size has no influence."""
    import numpy as np

    salt = str(seed).encode()
    hashes = np.fromiter((_hash(key.encode("utf-8", "surrogatepass"), salt) for key in keys), np.uint64, len(keys))
    smallest = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, member, hashes)
    return np.fromiter((_hash(int(value).to_bytes(8, "little"), salt) for value in smallest), np.uint64, count)


def _hash(content: bytes, salt: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8, key=salt).digest(), "little")


def _classes(labels: Sequence[object] | None, member: Ints) -> list[str]:
    """Return the most frequent class of every unit; of equally frequent ones the first by name."""
    count = int(member.max(initial=-1)) + 1
    if labels is None:
        return [""] * count
    votes: list[Counter[str]] = [Counter() for _ in range(count)]
    for unit, label in zip(member.tolist(), labels, strict=True):
        votes[unit][str(label)] += 1
    return [min(vote, key=lambda name: (-vote[name], name)) for vote in votes]


def _lay_out(ordered: list[int], sizes: Ints, shares: dict[Split, float], assigned: list[Split]) -> None:
    """Give each split in turn the next units that bring it nearer to its share; what is left is train."""
    total = sum(int(sizes[unit]) for unit in ordered)
    asked = [(name, share) for name, share in shares.items() if share]
    left = ordered
    for number, (name, share) in enumerate(asked):
        # Every later split, and train, keeps one unit at least.
        spare = len(left) - (len(asked) - number)
        target, have = share * total, 0
        passed: list[int] = []
        for unit in left:
            size = int(sizes[unit])
            if spare and size < 2 * (target - have):
                assigned[unit] = name
                have += size
                spare -= 1
            else:
                passed.append(unit)
        if not have:
            smallest = min(left, key=lambda unit: int(sizes[unit]))
            assigned[smallest] = name
            passed = [unit for unit in left if unit != smallest]
        left = passed
