"""Tokenise rows a chunk at a time, by the quickest way that gives the tokenizer's own answer."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from finesmith.data.template import compose, template_of
from finesmith.data.word_cache import WordCache, spaces_part

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.template import Part

CHUNK_ROWS = 32_768
CHUNK_CHARACTERS = 4_000_000
# The engine needs some hundred bytes for each token, so it gets less at once.
ENGINE_ROWS = 8192
ENGINE_CHARACTERS = 1_000_000
# Fewer rows than this are not worth the proof.
QUICK_ROWS = 256
PROBED_ROWS = 32
# Where a larger share of a chunk's words is new, feeding whole rows to the engine is as quick.
MOST_NEW = 0.4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows as the tokenizer returns them, end to end; `unknown` and `words` count over whole rows.

    tokens: int32 [T]; lengths, originals (before truncation): int64 [rows]; segments: uint8 [T] or None.
    """

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    originals: npt.NDArray[np.int64]
    segments: npt.NDArray[np.uint8] | None
    unknown: int
    words: int


def engine_of(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer | None:
    """Return a private copy of a fast tokenizer's engine that neither cuts nor pads; None for a Python tokenizer."""
    if not tokenizer.is_fast:
        return None
    from tokenizers import Tokenizer

    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = tokenizer.split_special_tokens
    return engine


def chunks(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    engine: tokenizers.Tokenizer | None,
    *,
    max_length: int | None,
    segmented: bool,
) -> Iterator[Chunk]:
    """Yield all rows in order; memory is bounded by the chunk, not by the data."""
    if engine is None:
        yield from _slow(texts, pairs, tokenizer, max_length, segmented)
        return
    plain = _Plain(engine, unknown_id(tokenizer, engine), tokenizer.truncation_side, max_length, segmented)
    quick = _quick(plain, texts, pairs)
    for start, stop in spans(texts, pairs, CHUNK_ROWS, CHUNK_CHARACTERS):
        rows = texts[start:stop], (None if pairs is None else pairs[start:stop])
        with _no_garbage_collection():
            found = None if quick is None else quick.chunk(*rows)
        if found is not None:
            yield found
            continue
        for begin, end in spans(*rows, ENGINE_ROWS, ENGINE_CHARACTERS):
            with _no_garbage_collection():
                found = plain.chunk(rows[0][begin:end], None if rows[1] is None else rows[1][begin:end])
            yield found


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles, which a hundred thousand short lists would start again and again.

    It took a third of the time. The lists hold numbers only and are freed by counting references.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def spans(texts: Sequence[str], pairs: Sequence[str] | None, rows: int, characters: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into runs of at most `rows` rows that end where they reach so many characters."""
    import numpy as np

    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    if pairs is not None:
        ends += np.cumsum(np.fromiter(map(len, pairs), np.int64, len(pairs)))
    start, before = 0, 0
    while start < len(texts):
        stop = min(start + rows, int(np.searchsorted(ends, before + characters)) + 1, len(texts))
        yield start, stop
        start, before = stop, int(ends[stop - 1])


def count_words(texts: Sequence[str], pairs: Sequence[str] | None) -> int:
    """Return the number of words parted by white space."""
    return sum(len(text.split()) for column in (texts, pairs or ()) for text in column)


# --- the engine itself -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plain:
    """The tokenizer's engine, fed with whole rows."""

    engine: tokenizers.Tokenizer
    unknown_id: int | None
    side: str
    max_length: int | None
    segmented: bool
    _cutting: tokenizers.Tokenizer | None = None

    def cutting(self, max_length: int) -> tokenizers.Tokenizer:
        """Return another copy of the engine that cuts rows."""
        from tokenizers import Tokenizer

        cutting = Tokenizer.from_str(self.engine.to_str())
        cutting.encode_special_tokens = self.engine.encode_special_tokens
        cutting.enable_truncation(max_length, strategy="longest_first", direction=self.side)
        return cutting

    def chunk(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Chunk:
        import numpy as np

        rows: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self.engine.encode_batch_fast(rows)
        ids = [encoding.ids for encoding in encodings]
        kinds = [encoding.type_ids for encoding in encodings] if self.segmented else None
        originals = np.fromiter(map(len, ids), np.int64, len(ids))
        unknown = 0 if self.unknown_id is None else sum(row.count(self.unknown_id) for row in ids)
        longer = [] if self.max_length is None else np.flatnonzero(originals > self.max_length).tolist()
        if longer and self.max_length is not None:
            self._cutting = self._cutting or self.cutting(self.max_length)
            cut = self._cutting.encode_batch_fast([rows[position] for position in longer])
            for position, encoding in zip(longer, cut, strict=True):
                ids[position] = encoding.ids
                if kinds is not None:
                    kinds[position] = encoding.type_ids
        return _from_lists(ids, kinds, originals, unknown, count_words(texts, pairs))


def _from_lists(
    ids: list[list[int]], kinds: list[list[int]] | None, originals: npt.NDArray[np.int64], unknown: int, words: int
) -> Chunk:
    import numpy as np

    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    tokens = np.fromiter(chain.from_iterable(ids), np.int32, total)
    segments = None if kinds is None else np.fromiter(chain.from_iterable(kinds), np.uint8, total)
    return Chunk(tokens, lengths, originals, segments, unknown, words)


def _slow(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    segmented: bool,
) -> Iterator[Chunk]:
    """Call a tokenizer written in Python, which has no batch engine."""
    import numpy as np

    unknown_id = tokenizer.unk_token_id
    for start, stop in spans(texts, pairs, ENGINE_ROWS, ENGINE_CHARACTERS):
        rows = list(texts[start:stop]), (None if pairs is None else list(pairs[start:stop]))
        whole = tokenizer(*rows, truncation=False, verbose=False)
        ids, kinds = whole["input_ids"], whole["token_type_ids"] if segmented else None
        originals = np.fromiter(map(len, ids), np.int64, len(ids))
        unknown = 0 if unknown_id is None else sum(row.count(unknown_id) for row in ids)
        if max_length is not None and int(originals.max()) > max_length:
            cut = tokenizer(*rows, truncation=True, max_length=max_length)
            ids, kinds = cut["input_ids"], cut["token_type_ids"] if segmented else None
        yield _from_lists(ids, kinds, originals, unknown, count_words(*rows))


def unknown_id(tokenizer: PreTrainedTokenizerBase, engine: tokenizers.Tokenizer) -> int | None:
    """Return the id that stands for text the model of the tokenizer cannot spell, if there is one."""
    from tokenizers import models

    if isinstance(engine.model, models.BPE | models.WordPiece | models.WordLevel):
        return engine.token_to_id(engine.model.unk_token) if engine.model.unk_token else None
    unknown_id: int | None = tokenizer.unk_token_id
    return unknown_id


# --- every word once -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Quick:
    """Every distinct word tokenised once, and the rows put together from them."""

    words: WordCache
    template: tuple[Part, ...]
    side: str
    max_length: int | None
    segmented: bool
    most_new: float

    def chunk(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Chunk | None:
        """Return the rows, or None where too many of their words are new."""
        found = [self.words.look_up(column, most_new=self.most_new) for column in (texts, pairs) if column is not None]
        columns = [each for each in found if each is not None]
        if len(columns) < len(found):
            return None
        composed = compose(
            self.template,
            [each.bare for each in columns],
            max_length=self.max_length,
            left=self.side == "left",
            segmented=self.segmented,
        )
        special = sum(token == self.words.unknown_id for part in self.template for token in part.ids)
        unknown = sum(each.unknown for each in columns) + special * len(texts)
        words = sum(each.words for each in columns)
        return Chunk(composed.tokens, composed.lengths, composed.originals, composed.segments, unknown, words)


def _quick(plain: _Plain, texts: Sequence[str], pairs: Sequence[str] | None) -> _Quick | None:
    """Return the quick way where the tokenizer's rules prove it right and the first rows come out the same."""
    if len(texts) < QUICK_ROWS or not spaces_part(plain.engine):
        return None
    template = template_of(plain.engine, paired=pairs is not None)
    if template is None:
        return None
    words = WordCache(plain.engine, plain.unknown_id)
    limits = [plain.max_length]
    if plain.max_length is not None:
        limits.append(sum(len(part.ids) for part in template) + 3)
    for limit in limits:
        quick = _Quick(words, template, plain.side, limit, plain.segmented, 1.0)
        expected = replace(plain, max_length=limit, _cutting=None).chunk(*_first(texts, pairs))
        if not _equal(quick.chunk(*_first(texts, pairs)), expected):
            return None
    return _Quick(words, template, plain.side, plain.max_length, plain.segmented, MOST_NEW)


def _first(texts: Sequence[str], pairs: Sequence[str] | None) -> tuple[Sequence[str], Sequence[str] | None]:
    return texts[:PROBED_ROWS], None if pairs is None else pairs[:PROBED_ROWS]


def _equal(one: Chunk | None, other: Chunk) -> bool:
    import numpy as np

    return one is not None and all(
        np.array_equal(mine, its) if isinstance(mine, np.ndarray) else mine == its
        for mine, its in zip(astuple(one), astuple(other), strict=True)
    )
