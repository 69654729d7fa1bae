"""Rows of tokens as records that a person can read: each token's text, whether it is learnt, and what it stands for.

A record is a dictionary of plain values. `kind` is "plain", "supervised" (learnt from; with `special` where it is a
special token too, and with `label` where the answer is not the token itself), "special", "cut" (`count` tokens that
the model is not given) or "skipped" (`count` tokens that it is given and that are left out here, `supervised` of them
learnt). No text holds a character that could steer a terminal or reorder a line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from finesmith.data.supervised import UNSUPERVISED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    Ints = npt.NDArray[np.integer[Any]]

Record = dict[str, Any]
# What a target stands for: the next token, the token that was hidden, or a class.
Answer = Literal["causal", "masked", "token", "seq2seq"]

MOST_TOKENS = 120
LONGEST_TEXT = 40
# A gap of fewer tokens is not worth a mark.
SHORTEST_GAP = 3
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES = re.compile(r"^ +(?= \S)|(?<=\S) {2,}(?=\S)| +$")
_SEEN = {"\n": "↵", "\t": "⇥"}


@dataclass(frozen=True, slots=True)
class TokenReader:
    """How the ids of a tokenizer are read.

    name_of: the vocabulary's own word for an id, None beyond it; added: tokens kept as they were given; special: ids;
    byte_level: whether words are spelt in bytes; spaces: whether ▁ stands for a space; fallback: whether <0x0A> is a
    byte.
    """

    name_of: Callable[[int], str | None]
    added: Mapping[int, str]
    special: frozenset[int]
    byte_level: bool
    spaces: bool
    fallback: bool

    def text(self, token: int) -> str:
        """Return a token as it reads: bytes decoded, those that make no character alone as \\xNN, nothing invisible."""
        name = self.added.get(token) or self.name_of(token)
        if name is None:
            return f"[token {token}]"
        if token not in self.added:
            byte = _BYTE.fullmatch(name) if self.fallback else None
            if byte is not None:
                name = bytes.fromhex(byte[1]).decode("utf-8", "backslashreplace")
            elif self.byte_level:
                name = _bytes_of(name).decode("utf-8", "backslashreplace")
            elif self.spaces:
                name = name.replace("▁", " ")
        return readable(name)


def reader_of(tokenizer: PreTrainedTokenizerBase) -> TokenReader:
    """Return how a tokenizer's ids are read; the tokenizer is not changed."""
    if not tokenizer.is_fast:
        special = frozenset(tokenizer.all_special_ids)
        named = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in special}

        def name_of(token: int) -> str | None:
            return str(tokenizer.convert_ids_to_tokens(token)) if 0 <= token < len(tokenizer) else None

        return TokenReader(name_of, named, special, byte_level=False, spaces=True, fallback=False)
    engine = tokenizer.backend_tokenizer
    added = engine.get_added_tokens_decoder()
    parts = [part.__getstate__().decode() for part in (engine.pre_tokenizer, engine.decoder) if part is not None]
    made = "".join(parts)
    return TokenReader(
        engine.id_to_token,
        {token: each.content for token, each in added.items()},
        frozenset(token for token, each in added.items() if each.special),
        byte_level='"ByteLevel"' in made,
        spaces='"Metaspace"' in made or "▁" in made,
        fallback='"ByteFallback"' in made,
    )


def readable(text: str, length: int = LONGEST_TEXT) -> str:
    """Return a text on one line, of at most `length` characters, with nothing in it that cannot be seen.

    Line ends are ↵, tabs ⇥, other invisible characters [U+XXXX]; a space is ␣ but for one between or before letters.
    """
    if len(text) > length:
        text = text[: length - 1] + "…"
    if text.isascii() and text.isprintable() and "  " not in text and not text.endswith(" "):
        return text
    shown = _SPACES.sub(lambda found: "␣" * len(found[0]), text)
    # A mark that belongs onto a letter would sit on whatever stands before this text.
    alone = "◌" if shown and unicodedata.category(shown[0]).startswith("M") else ""
    return alone + "".join(_SEEN.get(c) or (c if c.isprintable() else f"[U+{ord(c):04X}]") for c in shown)


def supervision(
    tokens: Ints, targets: Ints, answer: Answer, reader: TokenReader, names: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.bool_], dict[int, str]]:
    """Return which tokens of a row are learnt from, bool [T], and by place the answers that are not the token itself.

    tokens, targets: [T], the targets aligned with what the model reads. Of a causal row the token that is learnt is
    the one after, of an encoder-decoder's the token itself; where the target is another one, its text stands as an
    answer at its place. names: of the classes.
    """
    import numpy as np

    learnt = np.zeros(len(tokens), np.bool_)
    labels: dict[int, str] = {}
    for place in np.flatnonzero(targets != UNSUPERVISED).tolist():
        target = int(targets[place])
        if answer == "causal" and place + 1 < len(tokens) and int(tokens[place + 1]) == target:
            learnt[place + 1] = True
            continue
        learnt[place] = True
        if answer == "seq2seq" and int(tokens[place]) == target:
            continue
        labels[place] = readable(names[target]) if names is not None else reader.text(target)
    return learnt, labels


def view(
    tokens: Ints,
    reader: TokenReader,
    *,
    learnt: npt.NDArray[np.bool_] | None = None,
    labels: Mapping[int, str] | None = None,
    cut: tuple[int, int] | None = None,
    most: int = MOST_TOKENS,
) -> list[Record]:
    """Return the records of one row, about `most` at most: its ends, and what stands around learnt tokens.

    learnt, labels: as `supervision` returns them; cut: how many tokens are missing, and before which place.
    """
    import numpy as np

    taught = np.zeros(len(tokens), np.bool_) if learnt is None else learnt
    kept = _kept(taught, None if cut is None else cut[0], most)
    records: list[Record] = []
    skipped: Record | None = None
    for place in range(len(tokens) + 1):
        if cut is not None and place == cut[0]:
            records.append({"text": "", "kind": "cut", "count": cut[1]})
            skipped = None
        if place == len(tokens):
            break
        if kept[place]:
            records.append(_record(int(tokens[place]), bool(taught[place]), (labels or {}).get(place), reader))
            skipped = None
            continue
        if skipped is None:
            skipped = {"text": "", "kind": "skipped", "count": 0, "supervised": 0}
            records.append(skipped)
        skipped["count"] += 1
        skipped["supervised"] += int(taught[place])
    return records


def _record(token: int, taught: bool, label: str | None, reader: TokenReader) -> Record:
    special = token in reader.special
    record: Record = {"text": reader.text(token), "kind": "special" if special else "plain"}
    if taught:
        record["kind"] = "supervised"
        if special:
            record["special"] = True
    if label is not None:
        record["label"] = label
    return record


def _kept(learnt: npt.NDArray[np.bool_], cut: int | None, most: int) -> npt.NDArray[np.bool_]:
    """Choose the tokens to be shown: those nearest to an end of the row, to a border of learnt tokens or to a cut."""
    import numpy as np

    count = len(learnt)
    if count <= most + SHORTEST_GAP:
        return np.ones(count, np.bool_)
    places = np.arange(count)
    turns = np.flatnonzero(learnt[1:] != learnt[:-1])
    anchors = np.unique([0, count - 1, *turns, *(turns + 1), *([] if cut is None else [max(0, cut - 1)])])
    after = np.searchsorted(anchors, places)
    before = anchors[np.maximum(after - (anchors[after] != places), 0)]
    near = np.minimum(anchors[after] - places, places - before)
    from_end = np.minimum(places, count - 1 - places)
    kept = np.zeros(count, np.bool_)
    kept[np.lexsort((from_end, near))[:most]] = True
    shown = np.flatnonzero(kept)
    for left, right in pairwise(shown.tolist()):
        if right - left <= SHORTEST_GAP:
            kept[left:right] = True
    return kept


def _bytes_of(name: str) -> bytes:
    """Return the bytes that a byte-level vocabulary spells by letters; a letter it does not use stands for itself."""
    table = _byte_letters()
    return b"".join(bytes([table[c]]) if c in table else c.encode("utf-8", "surrogatepass") for c in name)


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of GPT-2's byte-level alphabet (Radford et al. 2019).

    Bytes that print as Latin-1 stand for themselves, the others for U+0100 and on, in order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
