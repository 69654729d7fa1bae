"""Retrieval metrics from similarities given in blocks of queries, with ties at their expected value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finesmith.evaluate.measurement import Measurement, mean_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.evaluate.measurement import Floats

    Ints = npt.NDArray[np.int64]

# Up to so many values to place, counting beats sorting a row.
FEW = 32

# Similarities [b, D] of b queries with all D documents; for each query the relevant documents' positions, and the
# position of the query itself among the documents or None.
Block = tuple["npt.NDArray[Any]", Sequence["Sequence[int] | Ints"], Sequence[int | None]]


def retrieval(blocks: Iterable[Block], cutoffs: Sequence[int] = (1, 10)) -> dict[str, Measurement]:
    """Measure `recall@k`, `hit@k` and `ndcg@k` for each cutoff, `mrr` and `map`; all from 0 to 1, means over queries.

    Documents are ranked by similarity, the query itself left out. recall@k: share of relevant documents among the
    first k. hit@k: whether there is one. mrr: one over the rank of the first. map: mean over relevant documents of the
    precision at their ranks. ndcg@k: discount 1 / log2(rank + 1) over that of the best order. Documents of equal
    similarity stand in random order, and each value is its expectation over these orders (McSherry and Najork 2008,
    "Computing information retrieval performance measures efficiently in the presence of tied scores"), so that
    neither the documents' order nor a collapsed model gains. Of the similarities only one block is held.

    Raises ValueError for a query without relevant documents, one out of range, a similarity that is not finite,
    a cutoff below 1 or no query at all.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs are {list(cutoffs)}; expected one or more of at least 1")
    rows: list[list[float]] = []
    for similarities, relevant, own in blocks:
        for scores, wanted, itself in zip(similarities, relevant, own, strict=True):
            rows.append(_query(scores, wanted, itself, cutoffs, len(rows)))
    names = [f"{name}@{k}" for k in cutoffs for name in ("recall", "hit", "ndcg")] + ["mrr", "map"]
    if not rows:
        raise ValueError("no query to measure retrieval with")
    return {name: mean_of(name, column) for name, column in zip(names, map(list, zip(*rows, strict=True)), strict=True)}


def _query(
    scores: npt.NDArray[Any], wanted: Sequence[int] | Ints, itself: int | None, cutoffs: Sequence[int], query: int
) -> list[float]:
    import numpy as np

    documents = len(scores)
    positions = np.unique(np.asarray(wanted, dtype=np.int64))
    if not positions.size or positions[0] < 0 or positions[-1] >= documents or itself in positions:
        raise ValueError(
            f"query {query}: expected at least one relevant document between 0 and {documents - 1}, none of them the "
            f"query itself, got {positions[:5].tolist()}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"query {query}: similarities must be finite; mend the model, not the metric")
    levels, relevant = np.unique(scores[positions], return_counts=True)
    levels, relevant = levels[::-1], relevant[::-1].astype(np.int64)
    above, size = _places(scores, levels)
    if itself is not None:
        above = above - (scores[itself] > levels)
        size = size - (scores[itself] == levels)
    result = []
    for k in cutoffs:
        result += [
            float((relevant * np.clip((k - above) / size, 0.0, 1.0)).sum() / positions.size),
            _hit(above, size, relevant, k),
            _ndcg(above, size, relevant, k),
        ]
    first = _reciprocal(int(above[0]), int(size[0]), int(relevant[0]))
    return [*result, first, _average_precision(above, size, relevant)]


def _places(scores: npt.NDArray[Any], levels: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """For each level count the scores above it and those equal to it."""
    import numpy as np

    if len(levels) <= FEW:
        above = np.array([np.count_nonzero(scores > level) for level in levels])
        return above, np.array([np.count_nonzero(scores == level) for level in levels])
    ordered = np.sort(scores)
    right = np.searchsorted(ordered, levels, side="right")
    return len(scores) - right, right - np.searchsorted(ordered, levels, side="left")


def _first(size: int, relevant: int) -> Floats:
    """Return P(the first relevant of a tied group stands at place j), j from 1, of `relevant` among `size`."""
    import numpy as np

    places = np.arange(size - relevant + 1, dtype=np.float64)
    # P(none among the first j) = product over i < j of (size - relevant - i) / (size - i)
    none = np.concatenate([[1.0], np.cumprod((size - relevant - places) / (size - places))])
    result: Floats = none[:-1] - none[1:]
    return result


def _hit(above: Ints, size: Ints, relevant: Ints, k: int) -> float:
    inside = k - int(above[0])
    if inside <= 0:
        return 0.0
    return min(1.0, float(_first(int(size[0]), int(relevant[0]))[:inside].sum()))


def _reciprocal(above: int, size: int, relevant: int) -> float:
    import numpy as np

    chances = _first(size, relevant)
    return float((chances / (above + np.arange(1, len(chances) + 1))).sum())


def _ndcg(above: Ints, size: Ints, relevant: Ints, k: int) -> float:
    import numpy as np

    most = min(k, int((above + size).max()))
    best = min(k, int(relevant.sum()))
    gained = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, max(most, best) + 2)))])
    first, last = np.minimum(above, most), np.minimum(above + size, most)
    return float((relevant / size * (gained[last] - gained[first])).sum() / gained[best])


def _average_precision(above: Ints, size: Ints, relevant: Ints) -> float:
    """Sum over places j of a tied group of P(relevant there) times the precision expected there."""
    import numpy as np

    total, before = 0.0, 0
    for higher, tied, hits in zip(above.tolist(), size.tolist(), relevant.tolist(), strict=True):
        places = np.arange(1, tied + 1)
        expected = before + 1 + (places - 1) * ((hits - 1) / max(tied - 1, 1))
        total += hits / tied * float((expected / (higher + places)).sum())
        before += hits
    return total / before
