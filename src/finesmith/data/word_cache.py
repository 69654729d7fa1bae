"""Tokenise every distinct word once, for tokenizers that provably treat what stands between two spaces by itself.

A text is cut at the space U+0020 and nowhere else. That changes nothing when each step of the tokenizer has this
property: its output for two texts with a space between is its outputs for both, side by side.

- Normalizers: BERT's maps, drops or pads single characters; its decomposition, like the Unicode normal forms, reorders
  and composes only runs of combining marks, and a space, which is none and composes with none, ends such a run. Changes
  of case go by single characters. The space itself stays as it is.
- Pre-tokenizers: those named below part words at white space, drop it, and look at nothing beyond a word.
- Models: WordPiece and WordLevel see one word at a time.
- Added tokens are found in the text from left to right; one without white space lies between two spaces. To a token
  that must stand alone a space is the same as the end of the text. One that swallows white space beside it is refused.

Every other kind of white space stays inside the pieces: what becomes of it is the normalizer's affair.

BERT's pre-tokenizer also isolates every punctuation mark. So a piece that consists of ASCII letters, digits and marks
and of a few marks beyond ASCII, and in which no added token can be found, is cut again around each of its marks. None
of these characters decomposes or combines with another, and all that a normalizer does to them is to lower their case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from finesmith.data.template import Bare
from finesmith.data.word_table import Known, Table, row_by_row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

    Ints = npt.NDArray[np.int64]

_NORMALIZERS = frozenset({"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"})
_PARTING = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_FURTHER = _PARTING | {"Punctuation", "Digits"}
_MODELS = frozenset({"WordPiece", "WordLevel"})
_ENCODED_AT_ONCE = 4096
# Inside: ASCII without white space and control characters; single quotes, double quotes, dashes, ellipsis.
_SIMPLE = re.compile("[!-~\u2018\u2019\u201c\u201d\u2013\u2014\u2026]+")
_MARKS_APART = re.compile("[0-9A-Za-z]+|[^0-9A-Za-z]")
_SIMPLE_STAYS = frozenset({"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD"})


def spaces_part(engine: tokenizers.Tokenizer) -> bool:
    """Say whether cutting texts at spaces provably leaves the tokens of this tokenizer as they are."""
    normalizers = _steps(engine.normalizer, "normalizers")
    pre_tokenizers = _steps(engine.pre_tokenizer, "pretokenizers")
    return (
        type(engine.model).__name__ in _MODELS
        and _NORMALIZERS.issuperset(normalizers)
        and bool(pre_tokenizers)
        and pre_tokenizers[0] in _PARTING
        and _FURTHER.issuperset(pre_tokenizers)
        and all(_stays_between_spaces(token, engine) for token in engine.get_added_tokens_decoder().values())
    )


def _steps(component: Any, members: str) -> list[str]:
    """Return the type of a normalizer or pre-tokenizer, or of each of its members in their order."""

    def flatten(state: dict[str, Any]) -> list[str]:
        if state["type"] != "Sequence":
            return [state["type"]]
        return [kind for member in state[members] for kind in flatten(member)]

    return [] if component is None else flatten(json.loads(component.__getstate__()))


def _stays_between_spaces(token: tokenizers.AddedToken, engine: tokenizers.Tokenizer) -> bool:
    normal = token.content
    if token.normalized and engine.normalizer is not None:
        normal = engine.normalizer.normalize_str(normal)
    whole = bool(normal) and not any(letter.isspace() for letter in token.content + normal)
    return whole and not token.lstrip and not token.rstrip


@dataclass(frozen=True, slots=True)
class Words:
    """Rows without special tokens, and how many unknown tokens and white-space words they hold."""

    bare: Bare
    unknown: int
    words: int


class WordCache:
    """The tokens of every piece of text seen so far, up to a bound; `spaces_part(engine)` must hold."""

    def __init__(self, engine: tokenizers.Tokenizer, unknown_id: int | None) -> None:
        self._engine = engine
        self.unknown_id = unknown_id
        self._pieces = Known()
        self._words = Known()
        self._cut = _marks_part(engine)

    def look_up(self, texts: Sequence[str], *, most_new: float) -> Words | None:
        """Return the tokens of texts; None where more than this share of their words is new."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        cut = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
        coded = pc.dictionary_encode(cut.values)
        pieces: list[str] = coded.dictionary.to_pylist()
        codes, bounds = coded.indices.to_numpy(), cut.offsets.to_numpy()
        known = len(self._pieces)
        at, new = self._pieces.numbers(pieces)
        if len(new) > most_new * len(codes):
            self._pieces.forget(known)
            return None
        if new:
            self._pieces.add(self._tokenise(new))
        table = self._pieces.table
        times = np.bincount(codes, minlength=len(pieces))
        found = Words(
            row_by_row(table, at[codes], bounds), int(table.unknown[at] @ times), int(table.words[at] @ times)
        )
        self._pieces.stay_bounded(known)
        return found

    def _tokenise(self, pieces: Sequence[str]) -> Table:
        """Return the tokens of distinct pieces, by way of their words where marks part them."""
        import numpy as np

        words = np.fromiter((len(piece.split()) for piece in pieces), np.int64, len(pieces))
        if self._cut is None:
            return self._encode(pieces, words)
        parts = self._cut(pieces)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))])
        flat = list(chain.from_iterable(parts))
        known = len(self._words)
        at, new = self._words.numbers(flat)
        if new:
            self._words.add(self._encode(new, np.zeros(len(new), np.int64)))
        table = self._words.table
        bare = row_by_row(table, at, bounds)
        unknown = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.unknown[at])])
        self._words.stay_bounded(known)
        return Table(bare.ids, bare.offsets[:-1], np.diff(bare.offsets), np.diff(unknown[bounds]), words)

    def _encode(self, texts: Sequence[str], words: Ints) -> Table:
        import numpy as np

        rows: list[list[int]] = []
        for start in range(0, len(texts), _ENCODED_AT_ONCE):
            some = list(texts[start : start + _ENCODED_AT_ONCE])
            rows += map(attrgetter("ids"), self._engine.encode_batch_fast(some, add_special_tokens=False))
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        counts = (0 if self.unknown_id is None else row.count(self.unknown_id) for row in rows)
        return Table(ids, np.cumsum(lengths) - lengths, lengths, np.fromiter(counts, np.int64, len(rows)), words)


def _marks_part(engine: tokenizers.Tokenizer) -> Callable[[Sequence[str]], list[list[str]]] | None:
    """Return a function that cuts pieces around their punctuation marks where that changes nothing, or None."""
    normalizers = _steps(engine.normalizer, "normalizers")
    pre_tokenizer = _steps(engine.pre_tokenizer, "pretokenizers")[0]
    if pre_tokenizer != "BertPreTokenizer" or not _SIMPLE_STAYS.issuperset(normalizers):
        return None
    normal = engine.normalizer.normalize_str if engine.normalizer is not None else str
    lower = normal("A") == "a"
    added = {token.content for token in engine.get_added_tokens_decoder().values()}
    added |= {normal(content) for content in added}
    barred = re.compile("|".join(map(re.escape, sorted(added))), re.IGNORECASE)

    def cut(pieces: Sequence[str]) -> list[list[str]]:
        joined = " ".join(pieces)
        lowered = joined.lower().split(" ") if lower else pieces
        apart, simple = _MARKS_APART.findall, _SIMPLE.fullmatch
        parts = [
            apart(low) if (piece.isascii() and piece.isprintable()) or simple(piece) else [piece]
            for piece, low in zip(pieces, lowered, strict=True)
        ]
        if added and barred.search(joined):
            parts = [[piece] if barred.search(piece) else each for piece, each in zip(pieces, parts, strict=True)]
        return parts

    return cut
