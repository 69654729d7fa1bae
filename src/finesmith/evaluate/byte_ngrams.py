"""A model of bytes from counts of what followed the last few: what a language model of any kind has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Codes = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

# The end of a document; nine bits a symbol, so that seven of them fit into 63.
END, BITS = 256, 9
ORDER = 5


@dataclass(frozen=True, slots=True)
class ByteModel:
    """Counts by order: grams and contexts, sorted; how often each occurs; how many bytes follow each context."""

    grams: tuple[Codes, ...]
    gram_counts: tuple[Codes, ...]
    contexts: tuple[Codes, ...]
    context_counts: tuple[Codes, ...]
    followers: tuple[Codes, ...]


def fit_bytes(texts: Sequence[str], order: int = ORDER) -> ByteModel:
    """Count what follows every 0 to `order` bytes of the texts, and where they end."""
    import numpy as np

    symbols, starts = _symbols(texts)
    grams, gram_counts, contexts, context_counts, followers = [], [], [], [], []
    for length in range(order + 1):
        gram, counts = np.unique(_codes(symbols, starts, length + 1), return_counts=True)
        context, first = np.unique(gram >> BITS, return_index=True)
        grams.append(gram)
        gram_counts.append(counts)
        contexts.append(context)
        context_counts.append(np.add.reduceat(counts, first))
        followers.append(np.diff(np.append(first, len(gram))))
    return ByteModel(tuple(grams), tuple(gram_counts), tuple(contexts), tuple(context_counts), tuple(followers))


def log_probabilities(model: ByteModel, texts: Sequence[str]) -> Floats:
    """Return each text's log probability in nats, its end included, [N].

    Interpolated with the weights of Witten and Bell (1991): a context that was followed by many different bytes trusts
    its own counts less.
    """
    import numpy as np

    symbols, starts = _symbols(texts)
    chance = np.full(len(symbols), 1 / (END + 1))
    for length, (grams, gram_counts, contexts, context_counts, followers) in enumerate(
        zip(model.grams, model.gram_counts, model.contexts, model.context_counts, model.followers, strict=True)
    ):
        codes = _codes(symbols, starts, length + 1)
        seen = _found(grams, gram_counts, codes)
        total, kinds = _found(contexts, context_counts, codes >> BITS), _found(contexts, followers, codes >> BITS)
        known = total > 0
        chance[known] = (seen[known] + kinds[known] * chance[known]) / (total[known] + kinds[known])
    return np.add.reduceat(np.log(chance), np.flatnonzero(starts == 0))


def _symbols(texts: Sequence[str]) -> tuple[Codes, Codes]:
    """Return the bytes of all texts, each with its end, and for every one its place in its text."""
    import numpy as np

    parts = [np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8) for text in texts]
    symbols = np.concatenate([np.append(part.astype(np.int64), END) for part in parts])
    places = np.concatenate([np.arange(len(part) + 1) for part in parts])
    return symbols, places


def _codes(symbols: Codes, places: Codes, length: int) -> Codes:
    """Return for every symbol the number that it makes with the `length` - 1 before it; before a text stand ends."""
    import numpy as np

    codes = np.zeros(len(symbols), np.int64)
    for back in range(length - 1, -1, -1):
        moved = np.concatenate([np.full(back, END), symbols])[: len(symbols)]
        codes = (codes << BITS) | np.where(places >= back, moved, END)
    return codes


def _found(keys: Codes, values: Codes, wanted: Codes) -> Floats:
    """Return the value of each wanted key, 0 where it is not among `keys` (sorted)."""
    import numpy as np

    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)
