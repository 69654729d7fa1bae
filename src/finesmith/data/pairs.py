"""Texts for embeddings: pairs, triplets, scored pairs or labelled sentences; and batches in which no two contradict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from finesmith.data.batches import permutation
from finesmith.data.near_duplicates import normalise
from finesmith.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

Kind = Literal["pairs", "triplets", "scored pairs", "labelled"]

NEGATIVES = ("negative", "hard_negative", "neg")
PAIRS = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("question", "positive"),
    ("sentence", "positive"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "answer"),
    ("question", "answer"),
    ("title", "body"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXTS = ("text", "sentence", "query", "question", "review", "message", "body")
LABELS = ("label", "category", "class", "intent", "topic")
SCORES = ("score", "similarity", "similarity_score")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns hold what, and why: in the order anchor, positive, negative or score, or text, label."""

    kind: Kind
    columns: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Anchors and texts that belong to them, with or without texts that do not; rows stand at equal positions.

    identical: positions among the rows given of those left out because anchor and positive are the same text.
    """

    anchors: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...] | None = None
    identical: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.anchors)


def find_layout(columns: Sequence[str], *, named: Mapping[str, str] | None = None) -> Layout:
    """Find the columns of pairs, triplets, scored pairs or labelled sentences by their names.

    `named` gives the column of a role (anchor, positive, negative or score, or text, label) where its name does not
    tell.

    Raises:
        DataError: a named column does not exist, or the names tell nothing or two things.
    """
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    given = dict(named or {})
    for role, column in given.items():
        if column not in columns:
            raise DataError(f"the {role} is to be column {column[:80]!r}, but the columns are {_listed(columns)}")
    if given:
        return _named(given, columns)
    found = [(one, other) for one, other in PAIRS if one in lowered and other in lowered]
    labels = [name for name in LABELS if name in lowered]
    scores = [name for name in SCORES if name in lowered]
    negatives = [name for name in NEGATIVES if name in lowered]
    if found and ((scores and negatives) or (labels and not scores and not negatives)):
        mark = lowered[(scores or labels)[0]]
        raise DataError(
            f"columns {lowered[found[0][0]]!r} and {lowered[found[0][1]]!r} are a pair, but {mark!r} tells that not "
            "every pair belongs together; expected pairs that do: keep those and drop the column, or name it as the "
            "score where it is a number that says how alike the two are"
        )
    if len(found) > 1:
        shown = " or ".join(f"{lowered[one]!r} with {lowered[other]!r}" for one, other in found[:4])
        raise DataError(f"several columns could be anchor and positive: {shown}; name the two that are")
    if len(scores) > 1 and found:
        shown = " or ".join(repr(lowered[name]) for name in scores)
        raise DataError(f"several columns could be the score: {shown}; name the one that is")
    if found and scores:
        names = (lowered[found[0][0]], lowered[found[0][1]], lowered[scores[0]])
        said = f"columns {names[0]!r} and {names[1]!r} are known as a pair, and {names[2]!r} says how alike they are"
        return Layout("scored pairs", names, said)
    if found:
        return _with_negative(lowered[found[0][0]], lowered[found[0][1]], lowered, "known as a pair")
    texts = [name for name in TEXTS if name in lowered]
    if len(texts) == 1 and len(labels) == 1:
        text, label = lowered[texts[0]], lowered[labels[0]]
        return Layout("labelled", (text, label), f"column {text!r} is a text and {label!r} the label that groups it")
    raise DataError(
        f"no pairs and no labelled sentences found in the columns {_listed(columns)}; expected anchor and positive "
        "(and negative or score), or text and label; name the columns"
    )


def read_pairs(
    anchors: Sequence[Any], positives: Sequence[Any], negatives: Sequence[Any] | None, where: Sequence[str]
) -> Pairs:
    """Check the texts of pairs or triplets; a pair of equal texts is left out and listed, for it teaches nothing.

    Raises:
        DataError: a text is missing or blank, a negative equals its anchor or positive, or no pair is left.
    """
    columns = [("anchor", anchors), ("positive", positives)]
    columns += [("negative", negatives)] if negatives is not None else []
    kept: list[tuple[str, ...]] = []
    identical: list[int] = []
    for position, (place, *row) in enumerate(zip(where, *(column for _, column in columns), strict=True)):
        for (role, _), text in zip(columns, row, strict=True):
            require_text(role, text, place)
        plain = [normalise(text) for text in row]
        if plain[0] == plain[1]:
            identical.append(position)
            continue
        if len(plain) == 3 and plain[2] in plain[:2]:
            other = columns[plain.index(plain[2])][0]
            raise DataError(f"{place}: negative and {other} are the same text {row[2][:80]!r}; expected another text")
        kept.append(tuple(row))
    if not kept:
        raise DataError(f"in all of the {len(where)} pairs both texts are the same; expected two that belong together")
    texts = list(zip(*kept, strict=True))
    return Pairs(texts[0], texts[1], texts[2] if len(texts) == 3 else None, tuple(identical))


def require_text(role: str, text: Any, place: str) -> None:
    """Raise DataError where a text is missing or blank."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the {role} is {str(text)[:80]!r}, expected a text; mend or drop the row")


def read_scores(values: Sequence[Any], where: Sequence[str]) -> tuple[float, ...]:
    """Return how alike the texts of each pair are, numbers on any scale.

    Raises:
        DataError: one is missing or no finite number, or all are equal.
    """
    found = []
    for value, place in zip(values, where, strict=True):
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            missing = value is None or not str(value).strip()
            said = "missing" if missing else "no finite number"
            raise DataError(
                f"{place}: the score is {said}; expected a number; mend or drop the row",
                quote="" if missing else repr(value),
            )
        found.append(number)
    if found and min(found) == max(found):
        raise DataError(
            f"{where[0]} to {where[-1]}: all {len(found):,} scores are {found[0]:g}, which tells nothing of how alike "
            "the texts are; expected different ones"
        )
    return tuple(found)


def pair_batches(pairs: Pairs, batch_size: int, *, seed: int, epoch: int) -> tuple[Ints, ...]:
    """Return the batches of one epoch, positions int64, none of which holds a text twice.

    Every other row of a batch serves as a negative, and a text that is there twice would be called unlike itself. Rows
    stand in the order of `batches.permutation`; one whose text is taken goes to the next batch that has neither it nor
    `batch_size` rows. Where a text is in more rows than there would be batches, there are more and smaller ones, so
    the number may differ between epochs.

    Raises:
        UserError: `batch_size` is below 2.
    """
    import numpy as np

    if batch_size < 2:
        raise UserError(f"the batch size is {batch_size}, expected at least 2: the other rows are the negatives")
    numbers = _text_numbers(pairs)
    batches: list[list[int]] = []
    held: list[set[int]] = []
    first_open = 0
    for row in permutation(len(pairs), seed=seed, epoch=epoch).tolist():
        texts = numbers[row]
        place = first_open
        while place < len(batches) and (len(batches[place]) >= batch_size or not held[place].isdisjoint(texts)):
            place += 1
        if place == len(batches):
            batches.append([])
            held.append(set())
        batches[place].append(row)
        held[place].update(texts)
        while first_open < len(batches) and len(batches[first_open]) >= batch_size:
            first_open += 1
    return tuple(np.asarray(batch, np.int64) for batch in batches)


def class_batches(
    labels: npt.NDArray[np.integer], classes: int, rows_per_class: int, *, seed: int, epoch: int
) -> tuple[tuple[Ints, ...], Ints]:
    """Return the batches of one epoch, and the positions left out: the rows of classes that have only one.

    A batch is `classes` groups of 2 to `rows_per_class` rows of a class (3 where they are 2 and one row is left over);
    the last batch may have more or fewer. The groups of each class are spread evenly over the epoch, so that a frequent
    class is not left to itself at its end. Every other row comes once, in as many batches in every epoch.

    Raises:
        DataError: there are no two classes of at least two rows.
        UserError: fewer than two classes or rows per class.
    """
    import numpy as np

    if classes < 2 or rows_per_class < 2:
        raise UserError(
            f"a batch of {classes} classes with {rows_per_class} rows each has nothing to tell apart or to bring "
            "together; expected at least 2 of each"
        )
    order = permutation(labels.size, seed=seed, epoch=epoch)
    order = order[np.argsort(labels[order], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    alone = np.concatenate([np.empty(0, np.int64), *(each for each in members if each.size == 1)])
    members = [each for each in members if each.size > 1]
    if len(members) < 2:
        raise DataError(
            f"{len(members)} classes have two rows or more; expected at least two such classes, to bring rows of one "
            "together and tell those of different ones apart"
        )
    draw = np.random.Generator(np.random.PCG64([seed, epoch, 0xC1A55]))
    groups: list[tuple[float, float, Ints]] = []
    for each in members:
        parts = np.array_split(each, min(-(-each.size // rows_per_class), each.size // 2))
        shift, ties = draw.random(), draw.random(len(parts))
        groups += [((place + shift) / len(parts), ties[place], part) for place, part in enumerate(parts)]
    laid = [part for *_, part in sorted(groups, key=lambda group: group[:2])]
    batches = [laid[start : start + classes] for start in range(0, len(laid), classes)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = batches[-1] + last
    return tuple(np.concatenate(batch) for batch in batches), np.sort(alone)


@lru_cache(maxsize=2)
def _text_numbers(pairs: Pairs) -> tuple[tuple[int, ...], ...]:
    """Return the texts of every row as numbers, equal where texts are equal after normalising."""
    seen: dict[str, int] = {}
    columns = [pairs.anchors, pairs.positives, *([pairs.negatives] if pairs.negatives is not None else [])]
    return tuple(
        tuple(seen.setdefault(normalise(text), len(seen)) for text in row) for row in zip(*columns, strict=True)
    )


def _named(given: Mapping[str, str], columns: Sequence[str]) -> Layout:
    if len(set(given.values())) < len(given):
        raise DataError(f"one column is named for two roles ({', '.join(given.values())[:80]}); name two columns")
    if {"anchor", "positive"} <= given.keys() <= {"anchor", "positive", "negative"}:
        names = [given[role] for role in ("anchor", "positive", "negative") if role in given]
        kind: Kind = "triplets" if "negative" in given else "pairs"
        return Layout(kind, tuple(names), f"columns {', '.join(map(repr, names))} are named in the recipe")
    if given.keys() == {"anchor", "positive", "score"}:
        names = [given[role] for role in ("anchor", "positive", "score")]
        return Layout("scored pairs", tuple(names), f"columns {', '.join(map(repr, names))} are named in the recipe")
    if given.keys() == {"text", "label"}:
        return Layout("labelled", (given["text"], given["label"]), "text and label are named in the recipe")
    raise DataError(
        f"the roles named are {', '.join(given)[:80]} of the columns {_listed(columns)}; expected anchor and positive "
        "(and negative or score), or text and label"
    )


def _with_negative(anchor: str, positive: str, lowered: Mapping[str, str], why: str) -> Layout:
    negatives = [lowered[name] for name in NEGATIVES if name in lowered]
    if len(negatives) > 1:
        raise DataError(f"several columns could be the negative: {', '.join(map(repr, negatives))}; name the right one")
    said = f"columns {anchor!r} and {positive!r} are {why}"
    if negatives:
        return Layout("triplets", (anchor, positive, negatives[0]), f"{said}, and {negatives[0]!r} a text unlike them")
    return Layout("pairs", (anchor, positive), said)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(column[:40]) for column in columns[:12]) or "(none)"
