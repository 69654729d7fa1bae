"""Tokenise every distinct word once, for byte-level tokenizers that provably part words where one space stands.

The pre-tokenizers of these tokenizers cut a text by a regular expression, from left to right and without looking back.
In none of the expressions known here can a match go on from a letter that is not white space into a space. So where a
single space lies between two such letters a match ends before it and one begins with it, whatever stands further away:
the tokens of the text are those of its words, each but the first with its space in front, side by side. Runs of white
space stay inside a word. A text of ASCII alone is cut by the expression itself, whose classes are then plain, and each
of its matches is one match by itself as well. Added tokens part a text before that; those that swallow white space are
refused. NFC, the only normalizer allowed, composes nothing with a space and leaves ASCII as it is.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

MAX_WORDS = 400_000
MAX_CHARACTERS = 16_000_000
_ENCODED_AT_ONCE = 4096
# What GPT-2, GPT-4 and Llama 3, and Qwen part words by.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FIRST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS = frozenset({_FIRST} | {_CONTRACTIONS + numbers + _REST for numbers in (r"\p{N}", r"\p{N}{1,3}")})
_BESIDE_WHITE_SPACE = re.compile(r" \s|\s |^ | $")
_BEFORE_A_WORD = re.compile(r"(?<=\S)(?= \S)")


def expression_of(engine: tokenizers.Tokenizer) -> str | None:
    """Return the expression that parts words, where it provably may be applied as it is here; None elsewhere."""
    state = json.loads(engine.to_str())
    model, normalizer = state["model"], state["normalizer"]
    sound = (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer["type"] == "NFC")
        and not engine.encode_special_tokens
        and all(_plain(token) for token in state["added_tokens"])
    )
    return _expression(state["pre_tokenizer"]) if sound else None


def _expression(state: dict[str, Any] | None) -> str | None:
    """Return the expression of a byte-level pre-tokenizer, if it is one of those known here."""
    if state is None:
        return None
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


def _plain(token: dict[str, Any]) -> bool:
    return not (token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"])


class ByteWords:
    """The tokens of every word seen so far, up to a bound; `expression` is `expression_of(engine)`."""

    def __init__(self, engine: tokenizers.Tokenizer, expression: str) -> None:
        self._engine = engine
        plain = expression.replace(r"\p{L}\p{N}]", "A-Za-z0-9]")
        self._ascii = re.compile(plain.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)
        self._added = {token.content: id for id, token in engine.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._parting = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._words: dict[str, bytes] = {}
        self._characters = 0

    def cut(self, text: str) -> list[str]:
        """Cut a text into added tokens and words, whose tokens side by side are its own."""
        if self._parting is None:
            return self._cut_section(text)
        sections = self._parting.split(text)
        return [
            word
            for place, section in enumerate(sections)
            if section
            for word in ((section,) if place % 2 else self._cut_section(section))
        ]

    def _cut_section(self, text: str) -> list[str]:
        if text.isascii():
            return self._ascii.findall(text)
        if _BESIDE_WHITE_SPACE.search(text):
            return _BEFORE_A_WORD.split(text)
        first, *rest = text.split(" ")
        return [first, *[" " + word for word in rest]]

    def tokens(self, words: Sequence[Iterable[str]]) -> list[list[bytes]]:
        """Return the tokens of each word of each text, as the bytes of an int32 array."""
        known = self._words
        new = list(set(chain.from_iterable(words)).difference(known))
        for start in range(0, len(new), _ENCODED_AT_ONCE):
            some = new[start : start + _ENCODED_AT_ONCE]
            # One encoding of many words costs half as much as one for each.
            encoding = self._engine.encode(some, is_pretokenized=True, add_special_tokens=False)
            ids: list[list[int]] = [[] for _ in some]
            for word, token in zip(encoding.word_ids, encoding.ids, strict=True):
                # No word is None: nothing is added around the words.
                ids[word or 0].append(token)
            known.update(zip(some, (array("i", each).tobytes() for each in ids), strict=True))
            self._characters += sum(map(len, some))
        found = [list(map(known.__getitem__, each)) for each in words]
        if len(known) > MAX_WORDS or self._characters > MAX_CHARACTERS:
            self._words, self._characters = {}, 0
        return found

    def before(
        self, words: Sequence[Sequence[str]], ids: Sequence[Sequence[bytes]], places: Sequence[Sequence[int]]
    ) -> list[list[int] | None]:
        """Return how many tokens of each text lie before each of some ascending character positions.

        None for a text where one lies within a word whose tokens are not those of the two parts.
        """
        located = [_located(mine, its) for mine, its in zip(words, places, strict=True)]
        halves = [
            half
            for mine, its in zip(words, located, strict=True)
            for word, inside in its
            for half in ((mine[word][:inside], mine[word][inside:]) if inside else ())
        ]
        parts = iter(self.tokens([halves])[0])
        found: list[list[int] | None] = []
        for mine, its in zip(ids, located, strict=True):
            counts: list[int] = []
            torn = False
            ends = list(accumulate(map(len, mine), initial=0))
            for word, inside in its:
                if inside:
                    first, rest = next(parts), next(parts)
                    torn = torn or first + rest != mine[word]
                counts.append((ends[word] + (len(first) if inside else 0)) // 4)
            found.append(None if torn else counts)
        return found


def _located(words: Sequence[str], places: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each ascending position in a text the word that it lies in and how many letters into it."""
    starts = list(accumulate(map(len, words), initial=0))
    found = []
    for place in places:
        word = bisect_right(starts, place) - 1
        found.append((word, place - starts[word]))
    return found
