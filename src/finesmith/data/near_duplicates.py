"""Find texts that are the same, or nearly: once for the audit, once more so that copies never straddle a split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Codes = npt.NDArray[np.uint64]

HASHES = 200
SKETCH = 512
WINDOW = 8
FAMILY = 50

_SPACE = re.compile(r"\s+")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
# Scripts written without spaces count character by character: Thai, Lao, Burmese, Khmer, kana and Han.
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which rows are copies of which.

    first: int64 [N], the position of the first row of each row's cluster of near-duplicates (its own when alone);
    exact: int64 [N], the same for texts equal after `normalise`, so rows equal in `exact` are equal in `first`;
    cut: rows in families of look-alikes so large that only their closer copies were kept together.
    """

    first: Ints
    exact: Ints
    cut: int = 0


def normalise(text: str) -> str:
    """Return `text` with Unicode forms, case and white space made alike (NFKC, casefold, single spaces)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    return _SPACE.sub(" ", text).strip().casefold()


def words(normalised: str) -> list[str]:
    """List the words of a normalised text; of one without letters or digits, its signs."""
    return _WORD.findall(normalised) or [sign for sign in normalised if sign != " "]


def cluster(texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0) -> Clusters:
    """Group texts that are equal or nearly so; case, punctuation and the order of words do not count.

    Two texts are near when the Jaccard coefficient of their bags of words is at least `threshold`, or when one word
    was changed, added or left out and still `threshold` of the words are common (2 |A and B| / (|A| + |B|): at 0.8,
    one word of five may differ). Candidates come from MinHash signatures cut into bands (Broder 1997; Indyk and
    Motwani 1998), enough of them to find the least similar such pair with 99 percent; each is verified. Rows linked
    by a chain belong together, but a family of more than 50 texts and a twentieth of all is cut at rising thresholds
    (`Clusters.cut` counts its rows). Time and memory grow linearly with the words, whatever they are.
    """
    import numpy as np

    seen: dict[str, int] = {}
    member = np.fromiter((seen.setdefault(normalise(text), len(seen)) for text in texts), np.int64, len(texts))
    distinct = list(seen)
    exact = _firsts(member)
    if len(distinct) < 2:
        return Clusters(exact, exact)
    family, cut = _families(distinct, threshold, seed)
    return Clusters(_firsts(family[member]), exact, int(cut[member].sum()))


def similar(texts: Sequence[str], pairs: Sequence[tuple[int, int]], *, threshold: float = 0.8) -> list[bool]:
    """Tell of each pair of positions whether its two texts are near, by the measure of `cluster`."""
    import numpy as np

    if not pairs:
        return []
    places, ends = np.unique(np.asarray(pairs, np.int64), return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    _, near = _Overlap(*_features([normalise(texts[place]) for place in places.tolist()])).compare(
        left, right, threshold
    )
    return [bool(alike) for alike in near]


def _firsts(member: Ints) -> Ints:
    """Return for each row the position of the first row with the same value."""
    import numpy as np

    _, first, inverse = np.unique(member, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _families(texts: list[str], threshold: float, seed: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the family number of each distinct text and whether its family was cut."""
    import numpy as np

    codes, counts = _features(texts)
    overlap = _Overlap(codes, counts)
    limit = max(FAMILY, len(texts) // 20)
    levels = np.linspace(threshold, 1.0, 5)[1:4]
    links = _Links(len(texts))
    family, core = links.components(0), links.components(0)
    sizes = np.ones(len(texts), np.int64)
    for one, two in _candidates(codes, counts, threshold, seed):
        # Inside a family that will not be cut, or a part of one that never will, nothing is left to learn.
        useful = (family[one] != family[two]) | ((sizes[family[one]] > limit) & (core[one] != core[two]))
        one, two = one[useful], two[useful]
        value, near = overlap.compare(one, two, threshold)
        if near.any():
            links.add(one[near], two[near], value[near])
            family, core = links.components(0), links.components(levels[-1])
            sizes = np.bincount(family, minlength=len(texts))
    cut = np.zeros(len(texts), bool)
    for level in levels:
        large = np.bincount(family)[family] > limit
        if not large.any():
            break
        cut |= large
        family = np.where(large, len(texts) + links.components(level), family)
        family = np.unique(family, return_inverse=True)[1]
    return family, cut


class _Links:
    """The strongest links that hold texts together: a spanning forest, which has their components at every level."""

    def __init__(self, size: int) -> None:
        from scipy.sparse import coo_matrix

        self.forest = coo_matrix((size, size))

    def add(self, left: Ints, right: Ints, similarity: npt.NDArray[np.float64]) -> None:
        """Take in links between different texts (left < right)."""
        import numpy as np
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import minimum_spanning_tree

        size = self.forest.shape[0]
        pairs = np.concatenate([self.forest.row.astype(np.int64) * size + self.forest.col, left * size + right])
        pairs, kept = np.unique(pairs, return_index=True)
        # From 1 for equal to 2 for nothing in common: no weight is 0, which would mean no link.
        weights = np.concatenate([self.forest.data, 2 - similarity])[kept]
        graph = csr_matrix((weights, np.divmod(pairs, size)), shape=(size, size))
        self.forest = minimum_spanning_tree(graph).tocoo()

    def components(self, level: float) -> Ints:
        """Return the number of each text's component when only links of at least `level` count."""
        import numpy as np
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        strong = self.forest.data <= 2 - level + 1e-9
        ends = (self.forest.row[strong], self.forest.col[strong])
        graph = coo_matrix((self.forest.data[strong], ends), shape=self.forest.shape)
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _features(texts: list[str]) -> tuple[Codes, Ints]:
    """Return every text's bag of words as sorted codes end to end, uint64 [sum], and how many each has, int64 [N].

    The second "very" of a text is another code than the first, so that sets of codes compare as bags of words.
    """
    import numpy as np

    vocabulary: dict[str, int] = {}
    counts = np.zeros(len(texts), np.int64)
    blocks: list[Ints] = []
    block: list[int] = []
    for row, text in enumerate(texts):
        found = words(text)
        counts[row] = len(found)
        block += [vocabulary.setdefault(word, len(vocabulary)) for word in found]
        if len(block) > 1_000_000:
            blocks.append(np.asarray(block, np.int64))
            block = []
    blocks.append(np.asarray(block, np.int64))
    hashes = np.frombuffer(
        b"".join(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in vocabulary),
        np.uint64,
    )
    rows = np.repeat(np.arange(len(texts)), counts)
    places = rows * len(vocabulary) + np.concatenate(blocks)
    places.sort()
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    occurrence = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    codes = _mix(
        hashes[places % max(len(vocabulary), 1)] + occurrence.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )
    return codes[np.lexsort((codes, rows))], counts


def _mix(values: Codes) -> Codes:
    """Scramble 64-bit values one to one (the finaliser of splitmix64, Steele, Lea and Flood 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def bands(threshold: float) -> tuple[int, int]:
    """Return (bands, hashes per band): the longest bands that find a pair at `threshold` with 99 percent."""
    jaccard = threshold / (2 - threshold)
    for rows in range(16, 1, -1):
        if (1 - jaccard**rows) ** (HASHES // rows) <= 0.01:
            return HASHES // rows, rows
    return HASHES, 1


def _candidates(codes: Codes, counts: Ints, threshold: float, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield, band by band, pairs of texts (left < right) whose MinHash signatures agree there.

    Of a long text the 512 smallest codes stand for all. Texts are ordered by this band and the one before, and each
    is paired with its next eight neighbours and the first of its bucket: n texts in one bucket cost 9 n pairs at most.
    """
    import numpy as np

    texts = np.flatnonzero(counts)
    if len(texts) < 2:
        return
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(codes)) - np.repeat(starts, counts)
    sketch = (codes[rank < SKETCH] >> np.uint64(32)).astype(np.uint32)
    sizes = np.minimum(counts[texts], SKETCH)
    offsets = np.cumsum(sizes) - sizes
    number, width = bands(threshold)
    random = np.random.default_rng(seed)
    key = np.zeros(len(texts), np.uint64)
    for _ in range(number):
        before, key = key, np.zeros(len(texts), np.uint64)
        for flip, factor in random.integers(0, 2**32, (width, 2), dtype=np.uint32):
            lowest = np.minimum.reduceat((sketch ^ flip) * (factor | np.uint32(1)), offsets)
            key = _mix(key + lowest)
        order = np.lexsort((before, key))
        yield _neighbours(texts[order], key[order])


def _neighbours(texts: Ints, key: Codes) -> tuple[Ints, Ints]:
    import numpy as np

    fresh = np.diff(key, prepend=key[:1] ^ np.uint64(1)) != 0
    head = np.maximum.accumulate(np.where(fresh, np.arange(len(key)), 0))
    one, two = [texts[head]], [texts]
    for step in range(1, min(WINDOW, len(key) - 1) + 1):
        same = key[step:] == key[:-step]
        one.append(texts[:-step][same])
        two.append(texts[step:][same])
    left, right = np.concatenate(one), np.concatenate(two)
    pairs = np.unique(np.minimum(left, right) * (texts.max() + 1) + np.maximum(left, right))
    left, right = np.divmod(pairs, texts.max() + 1)
    return left[left != right], right[left != right]


class _Overlap:
    """Bags of words ready to be compared in pairs."""

    def __init__(self, codes: Codes, counts: Ints) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix

        columns = np.unique(codes, return_inverse=True)[1]
        pointers = np.concatenate([[0], np.cumsum(counts)])
        width = int(columns.max(initial=0)) + 1
        self.counts = counts
        # int32: a product's row sum may exceed a byte.
        self.bags = csr_matrix((np.ones(len(columns), np.int32), columns, pointers), shape=(len(counts), width))

    def compare(
        self, left: Ints, right: Ints, threshold: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the Jaccard coefficients of pairs (0 where the lengths alone rule them out) and which are near."""
        import numpy as np

        value = np.zeros(len(left))
        near = np.zeros(len(left), bool)
        total = self.counts[left] + self.counts[right]
        longer = np.maximum(self.counts[left], self.counts[right])
        possible = np.flatnonzero(2 * (total - longer) >= (threshold - 1e-9) * total)
        chunk = np.cumsum(total[possible]) // 4_000_000
        for number in np.unique(chunk):
            now = possible[chunk == number]
            shared = np.asarray(self.bags[left[now]].multiply(self.bags[right[now]]).sum(axis=1)).ravel()
            value[now] = shared / (total[now] - shared)
            one_word = (longer[now] - shared <= 1) & (2 * shared >= (threshold - 1e-9) * total[now])
            near[now] = (value[now] >= threshold - 1e-9) | one_word
        return value, near
