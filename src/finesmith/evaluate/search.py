"""What is searched for among what, by rows of texts that belong together; and how embeddings find it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finesmith.evaluate.measurement import Measurement, ratio
from finesmith.evaluate.retrieval import Block, retrieval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

CUTOFFS = (1, 10)
# So many queries at most, spread evenly: each costs time in proportion to the documents.
MOST_QUERIES = 5000
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Search:
    """Queries, documents, and which of these are right answers.

    rows: how many rows there are; queries: int64 [Q], the rows that search, with the first text of each; documents:
    int64 [D], places among all texts, those of a row beside each other; width: texts a row; relevant: for each query
    the documents that are right; own: the document that is the query's own text, or None.
    """

    rows: int
    width: int
    queries: Ints
    documents: Ints
    relevant: Sequence[Ints]
    own: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found. rank: the place, from 1, of the first right document (ties in its favour); similarity: its
    cosine; first: the place among all texts of the document found first.
    """

    rank: int
    similarity: float
    first: int


def of_pairs(numbers: Ints) -> Search:
    """Search each anchor's positives among all positives and negatives.

    numbers: int64 [rows, columns] of anchor, positive and, where there is one, negative; equal where texts are equal.
    Equal texts are one document. A positive of an equal anchor is right too; the anchor's own text is left out.
    """
    import numpy as np

    rows, width = numbers.shape
    flat = np.arange(rows * width).reshape(rows, width)[:, 1:].ravel()
    known, first = np.unique(numbers[:, 1:].ravel(), return_index=True)
    place = {int(number): position for position, number in enumerate(known)}
    positives: dict[int, set[int]] = {}
    for anchor, positive in numbers[:, :2].tolist():
        positives.setdefault(anchor, set()).add(place[positive])
    queries = spread(np.arange(rows))
    anchors = numbers[queries, 0].tolist()
    relevant = [np.asarray(sorted(positives[anchor]), np.int64) for anchor in anchors]
    return Search(rows, width, queries, flat[first], relevant, [place.get(anchor) for anchor in anchors])


def of_labels(labels: Sequence[str]) -> Search:
    """Search for each sentence the others of its label among all others; those without a fellow search nothing."""
    import numpy as np

    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    queries = spread(np.asarray([row for row, label in enumerate(labels) if len(members[label]) > 1], np.int64))
    fellows = {label: np.asarray(rows, np.int64) for label, rows in members.items()}
    relevant = [fellows[labels[row]][fellows[labels[row]] != row] for row in queries.tolist()]
    return Search(len(labels), 1, queries, np.arange(len(labels)), relevant, queries.tolist())


def spread(rows: Ints) -> Ints:
    """Return at most `MOST_QUERIES` of the rows, evenly spread."""
    import numpy as np

    if len(rows) <= MOST_QUERIES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_QUERIES).round().astype(np.int64)]


def measure(search: Search, vectors: Any) -> dict[str, Measurement]:
    """Measure retrieval by `vectors` [texts, D], dense or sparse, of unit length (or zero).

    Returns ndcg@10, accuracy@1, recall@10, mrr and map, each of `search.rows` rows: a row that searches nothing adds
    nothing. Raises ValueError where there is no query.
    """
    found = retrieval(_blocks(search, vectors), CUTOFFS)
    names = {"ndcg@10": "ndcg@10", "accuracy@1": "hit@1", "recall@10": "recall@10", "mrr": "mrr", "map": "map"}
    return {name: _of_rows(replace(found[theirs], metric=name), search) for name, theirs in names.items()}


def first_found(search: Search, vectors: Any) -> Mapping[int, Found]:
    """Return by row what each query found first, and where the first right document stands."""
    found: dict[int, Found] = {}
    rows = iter(search.queries.tolist())
    for similarities, relevant, own in _blocks(search, vectors):
        for scores, wanted, itself in zip(similarities, relevant, own, strict=True):
            if itself is not None:
                scores[itself] = -2.0
            best = scores[wanted].max()
            first = int(search.documents[int(scores.argmax())])
            found[next(rows)] = Found(int((scores > best).sum()) + 1, float(best), first)
    return found


def _blocks(search: Search, vectors: Any) -> Iterator[Block]:
    from scipy.sparse import issparse

    documents = vectors[search.documents].T
    for start in range(0, len(search.queries), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        product = vectors[search.queries[part] * search.width] @ documents
        dense = product.toarray() if issparse(product) else product
        yield dense, search.relevant[part], search.own[part]


def _of_rows(measured: Measurement, search: Search) -> Measurement:
    """Return a measurement of the queries as one of all rows."""
    import numpy as np

    if len(search.queries) == search.rows:
        return measured
    statistics, single = np.zeros((search.rows, 2)), np.full(search.rows, np.nan)
    statistics[search.queries], single[search.queries] = measured.statistics, measured.per_example
    return Measurement(measured.metric, statistics, ratio, single, measured.range)
