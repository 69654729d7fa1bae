"""Describe each column of a table: what kind of values it holds, how many, how varied."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "category", "number", "rating", "list", "date", "id", "boolean", "constant", "empty", "other"]

SAMPLE_ROWS = 20_000
MAX_RATING_LEVELS = 11
MAX_LISTED_VALUES = 50
RATING_NAMES = frozenset({"rating", "ratings", "stars", "star", "score", "scores", "grade", "overall"})
ID_NAMES = frozenset({"id", "ids", "uid", "uuid", "guid", "pmid", "doi", "isbn", "idx"})
ROW_NAMES = frozenset({"index", "key", "row", "row_index"})
ADDRESS_NAMES = frozenset({"url", "urls", "uri", "link", "links", "email"})
SEPARATORS = ("|", ";", ",")
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([T ]\d{1,2}:\d{2}.*)?"
)
_REFERENCE = re.compile(
    r"(https?|ftp)://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.]+|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|[0-9a-f]{16,}|(?=\S*\d)[\w#./:-]+"
)
_WIDE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """What one column holds.

    `rows` counts all rows, `missing` those that are null, NaN or blank; `distinct` counts the different values among
    the rest (exact, except for lists and objects, where it is that of the sample). `mean_words` is words per value
    (two characters count as a word in scripts without spaces); `integer_valued` says that every value is a whole
    number. `values` are all distinct values as text, most frequent first, when there are at most 50;
    `separator` parts the labels of a text column of kind "list".
    """

    name: str
    kind: Kind
    rows: int
    missing: int
    distinct: int
    mean_words: float
    integer_valued: bool
    examples: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    separator: str | None = None


def profile(table: pa.Table) -> tuple[ColumnProfile, ...]:
    """Describe every column, by all rows where that is cheap and else by the same 20,000 rows drawn at random."""
    import numpy as np

    positions = np.arange(table.num_rows)
    if table.num_rows > SAMPLE_ROWS:
        positions = np.sort(np.random.default_rng(0).choice(table.num_rows, SAMPLE_ROWS, replace=False))
    return tuple(
        _profile_column(name, column, positions) for name, column in zip(table.column_names, table.columns, strict=True)
    )


def name_tokens(name: str) -> tuple[str, ...]:
    """Return the lower-case words of a column's name: `customerID` and `Customer ID` are both (customer, id)."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return tuple(token for token in re.split(r"[^\w]+|_+", parted.lower()) if token)


def _profile_column(name: str, column: pa.ChunkedArray, positions: Any) -> ColumnProfile:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    rows = len(column)
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        present = pc.fill_null(pc.match_substring_regex(column, r"\S"), False)
    elif pa.types.is_floating(kind):
        present = pc.fill_null(pc.invert(pc.is_nan(column)), False)
    else:
        present = pc.is_valid(column)
    filled = pc.sum(present).as_py() or 0
    sample = [
        value
        for value, there in zip(column.take(positions).to_pylist(), present.take(positions).to_pylist(), strict=True)
        if there
    ]
    keyed = [_hashable(value) for value in sample]
    counts = Counter(keyed)
    simple = not (pa.types.is_nested(kind) or pa.types.is_null(kind))
    distinct = len(counts)
    if simple and rows > len(positions):
        distinct = pc.count_distinct(column.filter(present)).as_py()
        if distinct <= MAX_LISTED_VALUES:
            every = pc.value_counts(column.filter(present)).to_pylist()
            counts = Counter({_hashable(each["values"]): each["counts"] for each in every})
    words = sum(_words(value) for value in sample if isinstance(value, str)) / len(sample) if sample else 0.0
    described = _kind_of(name, kind, sample, counts, distinct, filled, words)
    return ColumnProfile(
        name=name,
        kind=described[0],
        rows=rows,
        missing=rows - filled,
        distinct=distinct,
        mean_words=words,
        integer_valued=bool(sample) and all(_is_whole(value) for value in sample),
        examples=tuple(_short(value) for value in list(counts)[:3]),
        values=tuple(str(value) for value, _ in counts.most_common()) if distinct <= MAX_LISTED_VALUES else (),
        separator=described[1],
    )


def _kind_of(
    name: str, kind: pa.DataType, sample: Sequence[Any], counts: Counter[Any], distinct: int, filled: int, words: float
) -> tuple[Kind, str | None]:
    import pyarrow as pa

    types = pa.types
    tokens = name_tokens(name)
    named_id = bool(tokens) and (tokens[-1] in ID_NAMES or tokens[0] in {"id", "pmid", "uuid"}) and words < 3
    named_id = named_id or "_".join(tokens) in ROW_NAMES or bool(ADDRESS_NAMES & set(tokens))
    if not sample:
        return "empty", None
    if types.is_list(kind) or types.is_large_list(kind):
        return ("other" if types.is_nested(kind.value_type) else "list"), None
    if distinct == 1 and filled > 1:
        return "constant", None
    if types.is_boolean(kind):
        return "boolean", None
    if types.is_temporal(kind):
        return "date", None
    if types.is_integer(kind) or types.is_floating(kind):
        return _kind_of_numbers(tokens, named_id, sample, distinct, filled), None
    if not (types.is_string(kind) or types.is_large_string(kind)):
        return "other", None
    separator = label_separator(counts)
    if separator is not None:
        return "list", separator
    return _kind_of_strings(named_id, sample, counts, distinct, filled, words), None


def _kind_of_numbers(
    tokens: Sequence[str], named_id: bool, sample: Sequence[float], distinct: int, filled: int
) -> Kind:
    whole = all(_is_whole(value) for value in sample)
    if named_id and whole:
        return "id"
    if RATING_NAMES & set(tokens) and distinct <= MAX_RATING_LEVELS:
        return "rating"
    if not whole:
        return "number"
    if distinct == filled > 20 and not RATING_NAMES & set(tokens) and _rises_by_one(sample, filled):
        return "id"
    numbered = distinct <= filled // 4 and min(sample) in (0, 1) and max(sample) - min(sample) + 1 == distinct
    return "category" if numbered or distinct <= max(2, min(20, filled // 2)) else "number"


def _kind_of_strings(
    named_id: bool, sample: Sequence[str], counts: Counter[Any], distinct: int, filled: int, words: float
) -> Kind:
    if {value.strip().lower() for value in counts} <= {"true", "false"}:
        return "boolean"
    if all(_DATE.fullmatch(value.strip()) for value in sample):
        return "date"
    if named_id:
        return "id"
    variety = distinct / filled
    if words >= 6 and (distinct > 20 or variety > 0.1):
        return "text"
    if variety > 0.5 and sum(bool(_REFERENCE.fullmatch(value.strip())) for value in sample) > 0.9 * len(sample):
        return "id"
    if variety <= 0.5:
        return "category"
    if words >= 2:
        return "text"
    return "category" if filled <= 50 else "id"


def label_separator(counts: Counter[Any]) -> str | None:
    """Return the mark that parts several labels: pieces are short, come in varying numbers and are used again."""
    for mark in SEPARATORS:
        parted = [[piece.strip() for piece in value.strip().strip(mark).split(mark)] for value in counts]
        several = [pieces for pieces in parted if len(pieces) > 1]
        if len(several) < 2 or len(several) < 0.1 * len(parted) or len({len(pieces) for pieces in parted}) < 2:
            continue
        pieces = Counter(piece for each in parted for piece in set(each))
        if any(not piece or len(piece) > 60 or len(piece.split()) > 4 for piece in pieces):
            continue
        shared = sum(any(pieces[piece] > 1 for piece in each) for each in several)
        if len(pieces) <= len(parted) and shared >= 0.8 * len(several):
            return mark
    return None


def _rises_by_one(sample: Sequence[float], filled: int) -> bool:
    rising = all(later > earlier for earlier, later in pairwise(sample))
    return rising and sample[-1] - sample[0] <= 2 * filled


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value == int(value))


def _words(value: str) -> float:
    return len(value.split()) + len(_WIDE.findall(value)) / 2


def _hashable(value: Any) -> Any:
    if isinstance(value, float) and value == 0:
        return 0.0
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _short(value: Any) -> str:
    shown = " ".join(str(value).split())
    return shown if len(shown) <= 80 else shown[:77] + "..."
