"""Tokenise every distinct word once, for byte-level tokenizers that provably part words where these here are cut.

The pre-tokenizers of these tokenizers cut a text by a regular expression, from left to right and without looking back.
A text may be cut between two characters where, whatever stands further away, a match ends before and another begins
after, and where the part before, which now ends there, is matched as it was: then the tokens of the text are those of
its parts, side by side. `_CUT` lists the kinds of neighbours of which that holds. A letter ends its match before
anything that is no letter, a digit before anything that is no digit; no match goes on from what is not white space into
a space, nor, but for GPT-2's, from a line break into something else. White space is never cut from what follows in any
other case, because one expression looks at what stands behind it. A part need not be one match: the tokenizer sees each
distinct part once and cuts it further.

Added tokens part a text before that; those that swallow white space are refused. NFC, the only normalizer allowed,
leaves ASCII and the Latin letters known here as they are, and none of them composes with what stands before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finesmith.data.word_table import Known, Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import tokenizers

    Ints = npt.NDArray[np.int64]

_ENCODED_AS_ONE = 512
# What GPT-2, GPT-4 and Llama 3, and Qwen part words by.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FIRST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS = frozenset({_FIRST} | {_CONTRACTIONS + numbers + _REST for numbers in (r"\p{N}", r"\p{N}{1,3}")})

# Letter, Number, apostrophe (Quote), other Mark, Space, line bReak; beyond Latin: White space, Unknown but not white.
_KINDS = "LNQMSRWU"
_CUT = {"L": "NQMSR", "N": "LQMSR", "Q": "NS", "M": "NS", "U": "S"}
_CUT_BY_FIRST = {**_CUT, "Q": "NSR", "M": "NSRL", "U": "SR"}
_CUT_BY_OTHERS = {**_CUT, "R": "LNQMU"}
_BEYOND_LATIN = 0x250
_PAST_WHITE_SPACE = 0x3001
_MONGOLIAN_SEPARATOR = 0x180E


def expression_of(engine: tokenizers.Tokenizer) -> str | None:
    """Return the expression that parts words, where it provably may be applied as it is here; None elsewhere."""
    from tokenizers import models

    added = engine.get_added_tokens_decoder().values()
    sound = (
        isinstance(engine.model, models.BPE)
        and not engine.model.dropout
        and (engine.normalizer is None or json.loads(engine.normalizer.__getstate__())["type"] == "NFC")
        and not engine.encode_special_tokens
        and not any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added)
    )
    before = engine.pre_tokenizer
    return _expression(json.loads(before.__getstate__())) if sound and before is not None else None


def _expression(state: dict[str, Any]) -> str | None:
    """Return the expression of a byte-level pre-tokenizer, if it is one of those known here."""
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    if steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return _FIRST if steps[0].get("use_regex", True) else None
    if len(steps) != 2 or steps[0]["type"] != "Split" or steps[1].get("use_regex", True):
        return None
    pattern: str | None = steps[0]["pattern"].get("Regex")
    isolated = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
    return pattern if isolated and pattern in _PATTERNS else None


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of every character, as its place in `_KINDS`."""
    import numpy as np

    kinds = np.full(0x110000, _KINDS.index("U"), np.uint8)
    for code in range(_PAST_WHITE_SPACE):
        letter = chr(code)
        if code < 0x80:
            kind = "L" if letter.isalpha() else "N" if letter.isdigit() else "S" if letter in " \t\v\f" else "M"
            kind = "R" if letter in "\r\n" else "Q" if letter == "'" else kind
        elif letter.isspace() or code == _MONGOLIAN_SEPARATOR:
            kind = "W"
        else:
            kind = "L" if 0xC0 <= code < _BEYOND_LATIN and letter not in "×÷" else "U"
        kinds[code] = _KINDS.index(kind)
    return kinds


def _pairs(cut: dict[str, str]) -> npt.NDArray[np.bool_]:
    """Return for the kinds of two neighbours, 8 * the first + the second, whether there is a cut between them."""
    import numpy as np

    return np.array([second in cut.get(first, "") for first in _KINDS for second in _KINDS])


@dataclass(frozen=True, slots=True)
class Worded:
    """Texts as tokens, end to end.

    ids: int32 [T]; bounds: int64 [texts + 1]; before: int64 [places], how many tokens lie before each place;
    torn: bool [places], whether it lies within a word whose tokens are not those of its two parts.
    """

    ids: npt.NDArray[np.int32]
    bounds: Ints
    before: Ints
    torn: npt.NDArray[np.bool_]


class ByteWords:
    """The tokens of every word seen so far, up to a bound; `expression` is `expression_of(engine)`."""

    def __init__(self, engine: tokenizers.Tokenizer, expression: str) -> None:
        self._engine = engine
        self._cuts = _pairs(_CUT_BY_FIRST if expression == _FIRST else _CUT_BY_OTHERS)
        longest_first = sorted((token.content for token in engine.get_added_tokens_decoder().values()), key=len)[::-1]
        self._added = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._known = Known()

    def tokenise(self, texts: Sequence[str], places: Ints) -> Worded:
        """Return the tokens of each text, and how many lie before each of some places in all of them end to end."""
        import numpy as np

        ends = np.cumsum([0, *map(len, texts)])
        starts, words = self._cut(texts, ends)
        coded = words.dictionary_encode()
        codes, pieces = coded.indices.to_numpy(), coded.dictionary.to_pylist()
        at = np.searchsorted(starts, places, side="right") - 1
        inside = places - starts[at]
        within = np.flatnonzero(inside)
        middles, which = np.unique((codes[at[within]].astype(np.int64) << 32) + inside[within], return_inverse=True)
        halves = [
            half
            for code, middle in zip((middles >> 32).tolist(), (middles & 0xFFFFFFFF).tolist(), strict=True)
            for half in (pieces[code][:middle], pieces[code][middle:])
        ]
        known = len(self._known)
        numbers = self._numbers([*pieces, *halves])
        table, row = self._known.table, numbers[codes]
        tokens = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.lengths[row])])
        before, torn = tokens[at], np.zeros(len(places), bool)
        parts = numbers[len(pieces) :]
        before[within] += table.lengths[parts[::2]][which]
        torn[within] = _differ(table, numbers[middles >> 32], parts)[which]
        found = Worded(table.gathered(row), tokens[np.searchsorted(starts, ends)], before, torn)
        self._known.stay_bounded(known)
        return found

    def _cut(self, texts: Sequence[str], ends: Ints) -> tuple[Ints, pa.StringArray]:
        """Return where each word of all texts begins, with the end of the last one, and the words."""
        import numpy as np
        import pyarrow as pa

        joined = "".join(texts)
        written = joined.encode()
        narrow = len(written) == len(joined)
        letters = np.frombuffer(written, np.uint8) if narrow else np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        kinds = _kinds().take(letters)
        begins = np.ones(len(joined) + 1, bool)
        begins[1:-1] = self._cuts.take(kinds[:-1] * len(_KINDS) + kinds[1:])
        if self._added is not None:
            added = [
                place + start
                for text, start in zip(texts, ends.tolist(), strict=False)
                for match in self._added.finditer(text)
                for place in match.span()
            ]
            _isolate(begins, np.array(added, np.int64))
        begins[ends] = True
        starts = np.flatnonzero(begins)
        offsets = starts
        if not narrow:
            widths = 1 + (letters > 0x7F).astype(np.int64) + (letters > 0x7FF) + (letters > 0xFFFF)
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])[starts]
        bounds = pa.py_buffer(offsets.astype(np.int32))
        return starts, pa.StringArray.from_buffers(len(starts) - 1, bounds, pa.py_buffer(written))

    def _numbers(self, words: list[str]) -> Ints:
        """Return the number of each word among those known, after tokenising those that are not."""
        numbers, new = self._known.numbers(words)
        if new:
            self._known.add(self._encode(new))
        return numbers

    def _encode(self, words: Sequence[str]) -> Table:
        import numpy as np

        # One encoding of many words costs half as much as one for each; several are made side by side.
        runs = [list(words[start : start + _ENCODED_AS_ONE]) for start in range(0, len(words), _ENCODED_AS_ONE)]
        encodings = self._engine.encode_batch(runs, is_pretokenized=True, add_special_tokens=False)
        lengths = []
        for run, encoding in zip(runs, encodings, strict=True):
            # No word is None: nothing is added around the words.
            numbers = np.array(encoding.word_ids, np.int64)
            lengths.append(np.bincount(numbers, minlength=len(run)))
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return Table.plain(np.concatenate(ids), np.concatenate(lengths))


def _isolate(begins: npt.NDArray[np.bool_], places: Ints) -> None:
    """Make one word of each run between places 2 * i and 2 * i + 1, which do not overlap."""
    import numpy as np

    change = np.zeros(len(begins) + 1, np.int8)
    change[places[::2] + 1] += 1
    change[places[1::2]] -= 1
    begins &= np.cumsum(change[:-1], dtype=np.int8) == 0
    begins[places] = True


def _differ(table: Table, words: Ints, parts: Ints) -> npt.NDArray[np.bool_]:
    """Say for each word whether its tokens differ from those of its two parts, side by side."""
    import numpy as np

    sizes = table.lengths[words]
    differ: npt.NDArray[np.bool_] = sizes != table.lengths[parts].reshape(-1, 2).sum(axis=1)
    same = np.flatnonzero(~differ)
    unequal = table.gathered(words[same]) != table.gathered(parts.reshape(-1, 2)[same].ravel())
    differ[np.repeat(same, sizes[same])[unequal]] = True
    return differ
