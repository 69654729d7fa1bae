"""Texts to bare sub-word pieces through a fast tokenizer's engine: ids, where words begin, and places in the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data.chunks import ENGINE_CHARACTERS, ENGINE_ROWS, engine_of, spans
from finesmith.data.token_cache import load_cached, open_build
from finesmith.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerBase

    Ints = npt.NDArray[np.int64]

# White space of every script lies below this code point.
_SPACES_END = 0x3001


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of N texts end to end, without special tokens; text i is `tokens[offsets[i]:offsets[i + 1]]`.

    tokens: int32 [T]; offsets: int64 [N + 1]; starts: bool [T], true where a piece begins a word, or None where nobody
    asked. `cached` says that nothing was tokenised; `refused`, why the arrays could not be kept in the cache.
    """

    tokens: npt.NDArray[np.int32]
    offsets: Ints
    starts: npt.NDArray[np.bool_] | None
    cached: bool = False
    refused: str = ""

    def __len__(self) -> int:
        return int(self.offsets.size) - 1


@dataclass(frozen=True, slots=True)
class Placed:
    """Pieces of N texts with their places: `places` int32 [T, 2] is each piece's first character and the one after."""

    tokens: npt.NDArray[np.int32]
    offsets: Ints
    places: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens that a tokenizer puts before and after one text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Return what the tokenizer itself puts around a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, special = found["input_ids"], found["special_tokens_mask"]
    if 0 not in special:
        return Frame(tuple(ids), ())
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return Frame(tuple(ids[:first]), tuple(ids[last:]))


def surround(
    tokens: npt.NDArray[np.int32], offsets: Ints, frame: Frame
) -> tuple[npt.NDArray[np.int32], Ints, npt.NDArray[np.bool_]]:
    """Put a frame around every row; return tokens int32, offsets int64 and inner bool, false on the frame's tokens."""
    import numpy as np

    rows = offsets.size - 1
    wider = offsets + np.arange(rows + 1) * len(frame)
    inner = np.ones(int(wider[-1]), np.bool_)
    framed = np.empty(inner.size, np.int32)
    for place, token in enumerate(frame.before):
        inner[wider[:-1] + place] = False
        framed[wider[:-1] + place] = token
    for place, token in enumerate(reversed(frame.after), 1):
        inner[wider[1:] - place] = False
        framed[wider[1:] - place] = token
    framed[inner] = tokens
    return framed, wider, inner


def pieces(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    where: Sequence[str],
    words: bool,
    cache: Path | None,
) -> Pieces:
    """Tokenise texts without special tokens, once: arrays are kept in `cache`, a folder, and reused for equal content.

    What a text says is always text: `</s>` in a document becomes the pieces of its letters, never the special token.
    With `words`, a piece begins a word where the engine's own split into words says so or white space stands before it.

    Raises:
        DataError: a text is not valid Unicode; `where` names it.
        ModelError: the tokenizer has no fast engine.
    """
    import numpy as np

    engine = fast_engine(tokenizer)
    engine.encode_special_tokens = True
    key = _key(texts, engine, words, where)
    if cache is not None and (found := load_cached(cache, key)) is not None:
        arrays = found[0]
        return Pieces(arrays["tokens"], arrays["offsets"], _bools(arrays, words), cached=True)
    end = 0
    with open_build(cache, key) as build:
        tokens, offsets = build.column("tokens", "<i4"), build.column("offsets", "<i8")
        starts = build.column("starts", "|u1") if words else None
        offsets.append(np.zeros(1, np.int64))
        for first, last in spans(texts, None, ENGINE_ROWS, ENGINE_CHARACTERS):
            rows = list(texts[first:last])
            encode = engine.encode_batch if words else engine.encode_batch_fast
            encodings = encode(rows, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            tokens.append(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())))
            offsets.append(end + np.cumsum(lengths))
            end += int(lengths.sum())
            if starts is not None:
                for text, encoding in zip(rows, encodings, strict=True):
                    starts.append(_word_starts(text, encoding))
        arrays = build.publish({})
    return Pieces(arrays["tokens"], arrays["offsets"], _bools(arrays, words), refused=build.refused)


def placed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, where: Sequence[str]) -> Placed:
    """Tokenise texts without special tokens and keep the place of every piece in its text.

    Raises:
        DataError: a text is not valid Unicode; `where` names it.
        ModelError: the tokenizer has no fast engine.
    """
    import numpy as np

    engine = fast_engine(tokenizer)
    refuse_half_characters(texts, where)
    parts: list[npt.NDArray[np.int32]] = []
    places: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    for first, last in spans(texts, None, ENGINE_ROWS, ENGINE_CHARACTERS):
        encodings = engine.encode_batch(list(texts[first:last]), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths += map(len, ids)
        parts.append(np.fromiter(chain.from_iterable(ids), np.int32))
        flat = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        places.append(np.fromiter(flat, np.int32).reshape(-1, 2))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    empty = np.empty(0, np.int32)
    return Placed(np.concatenate([empty, *parts]), offsets, np.concatenate([empty.reshape(0, 2), *places]))


def fast_engine(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    """Return a private copy of the tokenizer's engine.

    Raises:
        ModelError: there is none.
    """
    engine = engine_of(tokenizer)
    if engine is None:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) has no fast engine, which is needed to know where words are; "
            "expected a tokenizer.json in the model's folder; save the model again with its fast tokenizer"
        )
    return engine


def refuse_half_characters(texts: Sequence[str], where: Sequence[str]) -> None:
    """Refuse texts that no file in UTF-8 can hold.

    Raises:
        DataError: one has a lone surrogate.
    """
    for text, place in zip(texts, where, strict=True):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: holds half of a character (a lone surrogate) at character {error.start + 1}; expected valid "
                "Unicode; write the file again as UTF-8 or drop the row",
                quote=ascii(text[max(0, error.start - 20) : error.start + 20]),
            ) from None


def _word_starts(text: str, encoding: tokenizers.Encoding) -> npt.NDArray[np.uint8]:
    """Return 1 where a piece begins a word, uint8 [T].

    An engine without a pre-tokenizer (SentencePiece made fast) calls a whole text one word, so white space counts too.
    """
    import numpy as np

    count = len(encoding)
    if not count:
        return np.empty(0, np.uint8)
    words = np.fromiter((-1 if word is None else word for word in encoding.word_ids), np.int64, count)
    places = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * count).reshape(-1, 2)
    first, before_end = places[1:, 0], places[:-1, 1]
    letters = np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), _SPACES_END)
    space, line_end = (table[letters] for table in _space_tables())
    # A piece at the very end of the text (an added space, say) has no character of its own.
    here = np.minimum(first, max(letters.size - 1, 0))
    before = np.maximum(first - 1, 0)
    parted = space[here] | (space[before] & (first > before_end)) | line_end[before]
    starts = np.ones(count, np.uint8)
    starts[1:] = (words[1:] != words[:-1]) | (parted & (first >= before_end))
    return starts


@lru_cache(maxsize=1)
def _space_tables() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return for every code point whether it is white space, and whether it is white space other than spaces."""
    import numpy as np

    space = np.fromiter((chr(code).isspace() for code in range(_SPACES_END)), np.bool_, _SPACES_END)
    space = np.append(space, False)
    line_end = space.copy()
    line_end[[0x20, 0xA0]] = False
    return space, line_end


def _bools(arrays: dict[str, Any], words: bool) -> npt.NDArray[np.bool_] | None:
    import numpy as np

    return np.asarray(arrays["starts"]).view(np.bool_) if words else None


def _key(texts: Sequence[str], engine: tokenizers.Tokenizer, words: bool, where: Sequence[str]) -> str:
    import tokenizers

    digest = hashlib.sha256(json.dumps(["pieces", tokenizers.__version__, words, len(texts)]).encode())
    digest.update(engine.to_str().encode())
    for position, text in enumerate(texts):
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            refuse_half_characters([text], [where[position]])
            raise
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def gather(starts: Ints, lengths: Ints) -> Ints:
    """Return the flat indices of runs that begin at `starts` and have `lengths`, int64 [sum of lengths]."""
    import numpy as np

    index: Ints = np.repeat(starts - lengths.cumsum() + lengths, lengths)
    index += np.arange(index.size)
    return index


def windows(offsets: Ints, size: int, step: int) -> tuple[Ints, Ints, Ints]:
    """Cut rows into windows of at most `size` that begin `step` apart and cover every row to its end.

    Returns for every window its row, first index and length, int64; a row without content has none.
    """
    import numpy as np

    lengths = np.diff(offsets)
    counts = np.where(lengths > size, -(-(lengths - size) // step) + 1, np.minimum(lengths, 1))
    rows = np.repeat(np.arange(lengths.size), counts)
    number = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.asarray(offsets)[rows] + number * step
    return rows, starts, np.minimum(size, np.asarray(offsets)[rows + 1] - starts)
