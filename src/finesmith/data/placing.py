"""Tokenise whole conversations and find the tokens of their answers.

The whole text of a conversation is tokenised at once, as inference tokenises what it is given, and cut at token
boundaries. A prompt's ids are then what inference would feed: before the last special token the text of prompt and
conversation is the same, and special tokens part a text before anything else happens to it; after it, the tokens of the
few characters up to the answer are compared with those characters tokenised alone. Where they differ, because a token
would reach from the prompt into the answer, the row is tokenised in pieces, cut where answers begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from finesmith.data.byte_words import ByteWords, expression_of
from finesmith.data.chat_template import Cut
from finesmith.data.chunks import engine_of
from finesmith.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerBase

_MOST_SECTIONS = 10_000

# The ids of a text, the tokens [first, stop) of each answer, and whether it was tokenised in pieces.
_Row = tuple["npt.NDArray[np.int32]", Sequence[tuple[int, int]], bool]


@dataclass(frozen=True, slots=True)
class Placed:
    """Texts as tokens, end to end, and where their answers stand.

    ids: int32 [T]; lengths: int64 [texts]; answers: int64 [answers, 2], the tokens [first, stop) of each among all;
    whole: bool [texts], false where a text cannot be cut between tokens; parted: the texts tokenised in pieces.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    whole: npt.NDArray[np.bool_]
    parted: tuple[int, ...] = ()

    def bounds(self) -> npt.NDArray[np.int64]:
        """Return where each text begins among all tokens, and where the last one ends."""
        import numpy as np

        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    def marked(self) -> npt.NDArray[np.bool_]:
        """Say of each token whether it belongs to an answer."""
        import numpy as np

        change = np.zeros(self.ids.size + 1, np.int8)
        change[self.answers[:, 0]] += 1
        change[self.answers[:, 1]] -= 1
        return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def fast_engine(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    """Return a fast tokenizer's engine that neither cuts nor pads: its own where it does neither, or a copy.

    Raises:
        ModelError: it is written in Python.
    """
    if tokenizer.is_fast:
        own: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        as_it_is = own.encode_special_tokens == tokenizer.split_special_tokens
        if own.truncation is None and own.padding is None and as_it_is:
            return own
    engine = engine_of(tokenizer)
    if engine is None:
        raise ModelError(
            "this tokenizer is written in Python and cannot tell where its tokens stand in a text; expected a fast one "
            "(tokenizer.json); save it with a version of transformers that converts it"
        )
    return engine


class Placer:
    """Tokenises texts and finds the tokens of their answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = fast_engine(tokenizer)
        self._special = {id for id, token in self._engine.get_added_tokens_decoder().items() if token.special}
        self._sections: dict[str, list[int]] = {}
        expression = expression_of(self._engine)
        self._words = None if expression is None else ByteWords(self._engine, expression)

    def place(self, cuts: Sequence[Cut]) -> Placed:
        """Return the tokens of each text and of its answers."""
        import numpy as np

        if self._words is None:
            return _placed(list(self._by_engine(cuts)))
        counts = np.fromiter((len(each.spans) for each in cuts), np.int64, len(cuts))
        starts = np.cumsum([0, *(len(each.text) for each in cuts)])[:-1]
        places = np.fromiter(chain.from_iterable(chain.from_iterable(each.spans for each in cuts)), np.int64)
        found = self._words.tokenise([each.text for each in cuts], places + np.repeat(starts, 2 * counts))
        answers, lengths = found.before.reshape(-1, 2), np.diff(found.bounds)
        torn = np.unique(np.repeat(np.arange(len(cuts)), 2 * counts)[found.torn]).tolist()
        if not torn:
            return Placed(found.ids, lengths, answers, np.ones(len(cuts), bool))
        rows: list[_Row] = [
            (ids, (its - start).tolist(), False)
            for ids, its, start in zip(
                np.split(found.ids, found.bounds[1:-1]),
                np.split(answers, np.cumsum(counts)[:-1]),
                found.bounds[:-1],
                strict=True,
            )
        ]
        for row, again in zip(torn, self._by_engine([cuts[row] for row in torn]), strict=True):
            rows[row] = again
        return _placed(rows)

    def _by_engine(self, cuts: Sequence[Cut]) -> Iterator[_Row]:
        """Tokenise whole texts; one that cannot be cut between tokens has no answers."""
        import numpy as np

        encodings = self._engine.encode_batch([each.text for each in cuts], add_special_tokens=False)
        for each, encoding in zip(cuts, encodings, strict=True):
            ids = encoding.ids
            spans = self._spans(each, encoding, ids)
            parted = spans is None
            if spans is None:
                ids, spans = self._in_pieces(each)
            yield np.array(ids, np.int32), spans, parted

    def _spans(self, row: Cut, encoding: Any, ids: list[int]) -> list[tuple[int, int]] | None:
        """Return the tokens of the answers, or None where a prompt alone has other tokens."""
        spans = []
        for start, end in row.spans:
            first, stop = _token_at(encoding, start, end), encoding.char_to_token(end - 1)
            if first is None or stop is None:
                return None
            before = first - 1
            while before >= 0 and ids[before] not in self._special:
                before -= 1
            section = row.text[encoding.token_to_chars(before)[0] if before >= 0 else 0 : start]
            if self._alone(section) != ids[max(before, 0) : first]:
                return None
            spans.append((first, stop + 1))
        return spans

    def _alone(self, section: str) -> list[int]:
        """Return the ids of a text that begins with a special token or where a row begins."""
        found = self._sections.get(section)
        if found is None:
            if len(self._sections) >= _MOST_SECTIONS:
                self._sections.clear()
            found = self._sections[section] = self._engine.encode(section, add_special_tokens=False).ids
        return found

    def _in_pieces(self, row: Cut) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise the text in pieces that end where answers begin: each prompt keeps the tokens it has alone."""
        starts = [start for start, _ in row.spans]
        ids: list[int] = list(self._engine.encode(row.text[: starts[0]], add_special_tokens=False).ids)
        spans = []
        for (start, end), bound in zip(row.spans, [*starts[1:], len(row.text)], strict=True):
            continued = self._continued(ids, row.text[:bound], start, end)
            if continued is None:
                return ids, []
            piece, stop = continued
            spans.append((len(ids), len(ids) + stop))
            ids = ids + piece
        return ids, spans

    def _continued(self, before: list[int], text: str, start: int, end: int) -> tuple[list[int], int] | None:
        """Return the ids of text[start:], which go on after `before`, and how many lie before the character `end`.

        Some tokenizers put a space before whatever they are given: a line break, which joins with nothing, keeps it
        off. Of both ways the one is taken that reads back as the whole text does; None where neither does.
        """
        whole = self._engine.encode(text, add_special_tokens=False).ids
        read = self._engine.decode(whole, skip_special_tokens=False)
        for lead in ("", "\n"):
            led = self._engine.encode(lead, add_special_tokens=False).ids
            encoding = self._engine.encode(lead + text[start:], add_special_tokens=False)
            ids = encoding.ids[len(led) :]
            stop = encoding.char_to_token(len(lead) + end - start - 1)
            same = self._engine.decode([*before, *ids], skip_special_tokens=False) == read
            if encoding.ids[: len(led)] == led and same and stop is not None:
                return ids, stop + 1 - len(led)
        return None


def _token_at(encoding: Any, start: int, end: int) -> int | None:
    """Return the first token that holds a character of [start, end); white space may belong to none."""
    for place in range(start, end):
        token: int | None = encoding.char_to_token(place)
        if token is not None:
            return token
    return None


def _placed(rows: Sequence[_Row]) -> Placed:
    """Lay texts end to end."""
    import numpy as np

    lengths = np.fromiter((len(ids) for ids, _, _ in rows), np.int64, len(rows))
    counts = np.fromiter((len(spans) for _, spans, _ in rows), np.int64, len(rows))
    answers = np.array(list(chain.from_iterable(spans for _, spans, _ in rows)), np.int64).reshape(-1, 2)
    return Placed(
        np.concatenate([ids for ids, _, _ in rows]),
        lengths,
        answers + np.repeat(np.cumsum(lengths) - lengths, counts)[:, None],
        counts > 0,
        tuple(row for row, (_, _, parted) in enumerate(rows) if parted),
    )
