"""Rows of related texts for the task embeddings: as a corpus, as a search, and as a person reads what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finesmith.data import related
from finesmith.data.related import Related
from finesmith.errors import DataError
from finesmith.tasks.corpus import Corpus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.sources import Origin
    from finesmith.evaluate.search import Search
    from finesmith.tasks.language import Floats

    Vectors = npt.NDArray[np.float32]


def columns_of_rows(
    corpus: Corpus, vectors: Any, scale: tuple[float, float] | None, *, quote: bool
) -> dict[str, list[Any]]:
    """Return what was found, or cosine and score of two texts; the embeddings where nothing tells what is right.

    vectors: [texts, D] of unit length; scale: the scores that are the cosines 0 and 1, where scores were learnt.
    """
    rows: Related = corpus.content
    width = len(rows.texts)
    made: dict[str, list[Any]] = {} if rows.judged else {"embedding": list(vectors[::width])}
    if width > 1 and (rows.scores is not None or not rows.judged):
        near = cosines(vectors)
        made["cosine"] = near.tolist()
        if scale is not None:
            made["prediction"] = (scale[0] + near * (scale[1] - scale[0])).tolist()
    if rows.scores is not None or not rows.judged:
        return made
    from finesmith.evaluate.search import first_found

    found = first_found(search_of(corpus), vectors)
    flat = rows.flat()
    asked = [found.get(row) for row in range(len(rows))]
    first = [None if one is None else flat[one.first] for one in asked]
    table: dict[str, list[Any]] = {
        "rank": [None if one is None else one.rank for one in asked],
        "cosine": [None if one is None else one.similarity for one in asked],
    }
    if rows.labels is not None:
        table["prediction"] = [None if one is None else rows.labels[one.first] for one in asked]
        return {**table, "found": first} if quote else table
    return {**table, "prediction": first} if quote else table


def summary_of(rows: Related) -> dict[str, Any]:
    """Count the sentences of each label, or the different texts of each column; of scores tell the ends."""
    if rows.labels is not None:
        return {"labels": dict(Counter(str(label) for label in rows.labels).most_common())}
    names = {"text": "anchors", "text_pair": "positives", "negative": "negatives"}
    if rows.scores is not None:
        names = {"text": "first texts", "text_pair": "second texts"}
    texts = {f"different {names[name]}": len(set(column)) for name, column in rows.texts.items()}
    ends = {} if not rows.scores else {"lowest score": min(rows.scores), "highest score": max(rows.scores)}
    return {"summary": {rows.kind: len(rows), **texts, **ends}}


def cosines(vectors: Any) -> Floats:
    """Return the cosine of each row's two texts from vectors [rows * 2, D] of unit length (or zero), or sparse."""
    import numpy as np
    from scipy.sparse import issparse

    first, second = vectors[::2], vectors[1::2]
    if issparse(vectors):
        return np.asarray(first.multiply(second).sum(axis=1), np.float64).ravel()
    return np.asarray(np.einsum("nd,nd->n", first, second, dtype=np.float64))


def scale_of(train: Corpus) -> tuple[float, float]:
    """Return the scores that are the cosines 0 and 1: these themselves, or the ends of the training rows'.

    Raises DataError where all are equal.
    """
    scores = train.content.scores
    low, high = min(scores), max(scores)
    if low == high:
        raise DataError(
            f"all {len(scores):,} training pairs, from {train.where[0]} on, have the score {low:g}; expected different "
            "ones: there is nothing to learn of how alike texts are"
        )
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def corpus_of(rows: Related, origins: Sequence[Origin], columns: Mapping[str, str]) -> Corpus:
    """Return rows as a corpus; those that hang together form groups."""
    return laid_out(rows, origins, columns, related.groups(rows))


def laid_out(
    rows: Related, origins: Sequence[Origin], columns: Mapping[str, str], groups: Sequence[str] | None
) -> Corpus:
    """Return rows as a corpus with these groups."""
    return Corpus(
        texts=["\n".join(parts) for parts in zip(*rows.texts.values(), strict=True)],
        labels=rows.labels if rows.scores is None else [f"{score:g}" for score in rows.scores],
        groups=groups,
        where=rows.where,
        origins=origins,
        columns=columns,
        notes=(),
        content=rows,
        parts=rows.texts if len(rows.texts) > 1 else None,
        strata=[""] * len(rows) if rows.labels is None else [label or "" for label in rows.labels],
        lost={"pairs of equal texts": rows.identical} if rows.identical else {},
        numeric=rows.scores is not None,
    )


def search_of(corpus: Corpus) -> Search:
    """Return what is searched for among what.

    Raises DataError where nothing can be.
    """
    from finesmith.evaluate import search

    rows: Related = corpus.content
    found = search.of_pairs(rows.numbers()) if rows.labels is None else search.of_labels([str(x) for x in rows.labels])
    if not len(found.queries):
        raise DataError(
            f"of the {len(rows):,} sentences no two have one label ({rows.where[0]} and those after it), so there is "
            "nothing to be found; expected at least two of some label: give the split more rows"
        )
    return found


def unit_length(vectors: Vectors) -> Vectors:
    """Return vectors [N, D] with a length of one each, zeros as they are."""
    import numpy as np

    lengths: Vectors = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors / lengths
