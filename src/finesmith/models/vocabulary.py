"""Words of a domain that the tokenizer breaks up: found, added, and given sensible first vectors."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

LONGEST_WORD = 60
Spacing = Literal["apart", "byte level", "metaspace", "prepended"]


@dataclass(frozen=True, slots=True)
class AddedWords:
    """Words that are now one token each.

    `pieces[i]` are the token ids that spelt `words[i]` before; `rows[i]` is its row in the embeddings. `skipped` are
    words asked for that already were one token, or that the tokenizer cannot tell from one added here.
    """

    words: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    skipped: tuple[str, ...]


def broken_words(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    minimum_pieces: int = 3,
    minimum_occurrences: int = 5,
) -> list[str]:
    """Return the `count` words that cost the most extra tokens: occurrences times (pieces - 1), largest first.

    A word is a run without white space, punctuation or symbols that has a letter, of at most 60 characters. Spellings
    that differ in case alone are one word where the tokenizer cannot tell them apart. A word that the tokenizer reads
    as unknown counts as broken into its characters. Ties go by spelling.
    """
    separators = _separators()
    occurrences: Counter[str] = Counter()
    for text in texts:
        occurrences.update(text.translate(separators).split())
    words = [word for word in occurrences if len(word) <= LONGEST_WORD and any(map(str.isalpha, word))]
    spelt = dict(zip(words, _pieces(tokenizer, words), strict=True))
    lower = [word for word in {word.lower() for word in words} if word not in spelt]
    spelt |= zip(lower, _pieces(tokenizer, lower), strict=True)
    merged: Counter[str] = Counter()
    for word in words:
        merged[word.lower() if spelt[word.lower()] == spelt[word] else word] += occurrences[word]
    unknown = tokenizer.unk_token_id
    ranked = []
    for word, times in merged.items():
        pieces = len(word) if unknown is not None and unknown in spelt[word] else len(spelt[word])
        if pieces >= minimum_pieces and times >= minimum_occurrences:
            ranked.append((-times * (pieces - 1), word))
    return [word for _, word in sorted(ranked)[:count]]


def add_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> AddedWords:
    """Add words to the tokenizer and the model's embeddings, in place.

    Each new row of the input embeddings is the mean of the rows of the pieces that spelt the word; so is each new row
    of the output embeddings, and of their bias, where the model has any, tied or not. Existing rows do not change, and
    the embeddings are as trainable as before. Words already whole are skipped.

    Where a tokenizer writes the space before a word into the token (byte-level and sentence-piece kinds), the added
    token is the word with that space: it is found inside a text, not at its very beginning or after a bracket, and it
    begins longer words too, as a piece of the tokenizer's own would.

    Raises:
        UserError: a word is empty or holds white space.
    """
    import torch

    for word in words:
        if word.split() != [word]:
            raise UserError(f"cannot add {word[:80]!r} to the vocabulary: expected one word without white space")
    spacing = _spacing(tokenizer)
    known, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
    new: dict[tuple[int, ...], str] = {}
    skipped = []
    for word, spelt in zip(words, _pieces(tokenizer, words), strict=True):
        whole = len(spelt) == 1 and spelt[0] != unknown
        # Words read as unknown all look alike, and are still different words.
        ident = (*spelt, len(new)) if unknown in spelt else spelt
        if whole or not spelt or ident in new or word in new.values() or _token(word, spacing).content in known:
            skipped.append(word)
        else:
            new[ident] = word
    added = tuple(new.values())
    pieces = tuple(_pieces(tokenizer, added))
    tokenizer.add_tokens([_token(word, spacing) for word in added])
    vocabulary = tokenizer.get_vocab()
    rows = tuple(vocabulary[_token(word, spacing).content] for word in added)
    if added:
        if max(rows) >= len(_tables(model)[0]):
            model.resize_token_embeddings(max(rows) + 1, mean_resizing=False)
        with torch.no_grad():
            for table in _tables(model):
                for row, spelt in zip(rows, pieces, strict=True):
                    table[row] = table[list(spelt)].double().mean(0)
    return AddedWords(added, pieces, rows, tuple(skipped))


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return every tensor with one row per token, each memory once."""
    # transformers leaves the kind of both modules open; either has a `weight`, the output may have a `bias`.
    embeddings: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables: list[torch.Tensor] = [embeddings.weight]
    if output is not None:
        if output.weight.data_ptr() != tables[0].data_ptr():
            tables.append(output.weight)
        if output.bias is not None:
            tables.append(output.bias)
    return tables


def _pieces(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token ids of each word as it stands inside a sentence."""
    if not words:
        return []
    before = " " if _spacing(tokenizer) in ("byte level", "metaspace") else ""
    spelt = tokenizer([before + word for word in words], add_special_tokens=False, verbose=False)["input_ids"]
    return [tuple(ids) for ids in spelt]


def _spacing(tokenizer: PreTrainedTokenizerBase) -> Spacing:
    """Say how the tokenizer marks the space before a word: not at all, or inside the word's token."""
    if not tokenizer.is_fast:
        return "apart"
    engine = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, splitter = json.dumps(engine["normalizer"]), json.dumps(engine["pre_tokenizer"])
    if '"Prepend"' in normalizer:
        return "prepended"
    if '"ByteLevel"' in splitter:
        return "byte level"
    return "metaspace" if '"Metaspace"' in splitter else "apart"


def _token(word: str, spacing: Spacing) -> AddedToken:
    from transformers import AddedToken

    if spacing == "apart":
        return AddedToken(word, single_word=True, normalized=True)
    # A normaliser that puts a mark before every stretch of text would put one before what follows: take its space too.
    return AddedToken(f" {word}", single_word=False, normalized=False, rstrip=spacing == "prepended")


@cache
def _separators() -> dict[int, str]:
    """Map every punctuation mark, symbol and control character to a space."""
    return {
        code: " "
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in "PSC" and code != 0x200D
    }
