"""Tables of related texts, read, checked and numbered: pairs, triplets, scored pairs or labelled sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.data.near_duplicates import cluster, normalise
from finesmith.data.pairs import Kind, Pairs, find_layout, read_pairs, read_scores, require_text
from finesmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.sources import Source

    Ints = npt.NDArray[np.int64]

# By what the recipe calls a column, what it holds in a pair or triplet.
ROLES = {"text": "anchor", "text_pair": "positive", "negative": "negative"}
# Beside two texts a label is a number that says how alike they are.
SCORED = {"label": "score"}
NAMING = (
    "name columns with --set data.text=COLUMN (the anchor), data.text_pair (the positive) and data.negative or "
    "data.label (the score), or data.text and data.label"
)


@dataclass(frozen=True, slots=True)
class Related:
    """Rows of texts; every column of `texts` holds a text of each row.

    texts: by the recipe's names (text, text_pair, negative); labels: of labelled sentences, None where one is missing;
    where: the place of each row; identical: how many pairs of equal texts were left out; judged: False for rows of
    which it is not asked what belongs together; scores: of scored pairs, how alike the two texts are.
    """

    kind: Kind
    texts: Mapping[str, tuple[str, ...]]
    labels: tuple[str | None, ...] | None
    where: tuple[str, ...]
    identical: int = 0
    judged: bool = True
    scores: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.where)

    def take(self, positions: Sequence[int] | Ints) -> Related:
        """Return the rows at `positions`, in that order."""
        order = [int(p) for p in positions]
        return Related(
            self.kind,
            {name: tuple(column[p] for p in order) for name, column in self.texts.items()},
            None if self.labels is None else tuple(self.labels[p] for p in order),
            tuple(self.where[p] for p in order),
            0,
            self.judged,
            None if self.scores is None else tuple(self.scores[p] for p in order),
        )

    def flat(self) -> list[str]:
        """Return all texts, those of a row beside each other."""
        return [text for row in zip(*self.texts.values(), strict=True) for text in row]

    def numbers(self) -> Ints:
        """Return a number for every text, int64 [rows, columns], equal where texts are after normalising."""
        import numpy as np

        seen: dict[str, int] = {}
        found = [seen.setdefault(normalise(text), len(seen)) for text in self.flat()]
        return np.asarray(found, np.int64).reshape(len(self), len(self.texts))

    def pairs(self) -> Pairs:
        """Return the texts as pairs or triplets."""
        return Pairs(self.texts["text"], self.texts["text_pair"], self.texts.get("negative"))


def read_related(source: Source, named: Mapping[str, str]) -> tuple[Related, dict[str, str]]:
    """Read rows of any kind; return them and the columns read, by the recipe's names.

    `named` gives columns by the recipe's names (text, text_pair, negative, label) where the recipe does.

    Raises:
        DataError: the columns cannot be told, a text or score of a pair is missing, or nothing is left.
    """
    columns = source.table.column_names
    roles = {name: column for name, column in named.items() if name != "text"}
    pairs = {**({"text": named["text"]} if "text" in named else {}), **roles}
    if roles.keys() != {"label"}:
        pairs = {(ROLES | SCORED)[name]: column for name, column in pairs.items()}
    try:
        layout = find_layout(columns, named=pairs)
    except DataError as error:
        raise DataError(f"{source.origins[0].name}: {error}; {NAMING}") from None
    values = [source.table.column(column).to_pylist() for column in layout.columns]
    places = source.places()
    if layout.kind == "labelled":
        texts = tuple("" if text is None else str(text) for text in values[0])
        labels = tuple(None if label is None or not str(label).strip() else str(label) for label in values[1])
        found = Related("labelled", {"text": texts}, labels, tuple(places))
        return found, dict(zip(("text", "label"), layout.columns, strict=True))
    if layout.kind == "scored pairs":
        for row, place in enumerate(places):
            for role, column in zip(("first text", "second text"), values, strict=False):
                require_text(role, column[row], place)
        known = {"text": tuple(values[0]), "text_pair": tuple(values[1])}
        scored = Related("scored pairs", known, None, tuple(places), scores=read_scores(values[2], places))
        return scored, dict(zip((*known, "label"), layout.columns, strict=True))
    names = tuple(ROLES)[: len(values)]
    return _pairs(dict(zip(names, values, strict=True)), places), dict(zip(names, layout.columns, strict=True))


def read_texts(source: Source, text: str, text_pair: str | None) -> Related:
    """Read texts, and the ones to compare them with where `text_pair` names a column that is there.

    Raises:
        DataError: there is no column `text`, or a text is missing.
    """
    columns = source.table.column_names
    if text not in columns:
        shown = ", ".join(name[:40] for name in columns[:20])
        raise DataError(
            f"{source.origins[0].name} has no text column {text[:80]!r}; its columns are {shown}: name the right one "
            "with --text COLUMN"
        )
    places = source.places()
    names = {"text": text, **({"text_pair": text_pair} if text_pair in columns else {})}
    values = {name: source.table.column(column).to_pylist() for name, column in names.items() if column is not None}
    return texts_of(values, places)


def texts_of(values: Mapping[str, Sequence[Any]], where: Sequence[str]) -> Related:
    """Take texts of which nothing is asked but their embeddings.

    Raises:
        DataError: one is missing or blank.
    """
    for column in values.values():
        for text, place in zip(column, where, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{place}: the text is {str(text)[:80]!r}, expected at least one word")
    kind: Kind = "pairs" if "text_pair" in values else "labelled"
    return Related(kind, {name: tuple(column) for name, column in values.items()}, None, tuple(where), judged=False)


def join(parts: Sequence[Related]) -> Related:
    """Lay rows end to end.

    Raises:
        DataError: they are not all of one kind.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.kind != first.kind:
            raise DataError(
                f"{part.where[0]} is of {part.kind} and {first.where[0]} of {first.kind}; expected one kind in all "
                "files of a run"
            )
    labels = None if first.labels is None else tuple(label for part in parts for label in part.labels or ())
    return Related(
        first.kind,
        {name: tuple(text for part in parts for text in part.texts[name]) for name in first.texts},
        labels,
        tuple(place for part in parts for place in part.where),
        sum(part.identical for part in parts),
        scores=None if first.scores is None else tuple(score for part in parts for score in part.scores or ()),
    )


def groups(rows: Related) -> list[str] | None:
    """Name for every pair the set of pairs that it hangs together with; None where each is for itself.

    Two pairs hang together when an anchor or positive of one is, or nearly is, an anchor or positive of the other, or
    a chain of such pairs links them. Negatives do not count: they would tie nearly everything together.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if rows.kind == "labelled" or not rows.judged:
        return None
    size = len(rows)
    first = cluster([normalise(text) for name in ("text", "text_pair") for text in rows.texts[name]]).first
    ends = (np.tile(np.arange(size), 2), size + first)
    graph = coo_matrix((np.ones(2 * size, np.int8), ends), shape=(3 * size, 3 * size))
    member = connected_components(graph, directed=False)[1][:size]
    if len(np.unique(member)) == size:
        return None
    return [f"set {number}" for number in member.tolist()]


def _pairs(values: Mapping[str, Sequence[Any]], places: Sequence[str]) -> Related:
    columns = list(values.values())
    found = read_pairs(columns[0], columns[1], columns[2] if len(columns) > 2 else None, places)
    out = set(found.identical)
    kept = tuple(place for row, place in enumerate(places) if row not in out)
    texts = [found.anchors, found.positives, *([found.negatives] if found.negatives is not None else [])]
    kind: Kind = "pairs" if len(texts) == 2 else "triplets"
    return Related(kind, dict(zip(values, texts, strict=True)), None, kept, len(out))
