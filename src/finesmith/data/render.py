"""Conversations to token ids with the answers supervised, in batches.

The whole text of a conversation is tokenised at once, as inference tokenises what it is given, and cut at token
boundaries. A prompt's ids are then what inference would feed: before the last special token the text of prompt and
conversation is the same, and special tokens part a text before anything else happens to it; after it, the tokens of the
few characters up to the answer are compared with those characters tokenised alone. Where they differ, because a token
would reach from the prompt into the answer, the row is tokenised in pieces, cut where answers begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from finesmith.data.byte_words import ByteWords, expression_of
from finesmith.data.chat import Conversation, Fault, refuse
from finesmith.data.chat_sandbox import TemplateRefusedError, TemplateSlowError
from finesmith.data.chat_shapes import Shapes
from finesmith.data.chat_template import ChatTemplate, Cut
from finesmith.data.chunks import _no_garbage_collection, engine_of
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import ModelError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerBase

Loss = Literal["answers", "last", "all"]
TooLong = Literal["drop", "shorten", "stop"]

_ROWS = 2048
_CHARACTERS = 1_000_000
_MOST_SECTIONS = 10_000
_JOINED = (
    "the tokenizer joins the end of the prompt with the beginning of an answer, and the two cannot be told apart; "
    "choose a chat template whose prompt ends in a line break or a special token"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Conversations as token ids, and what became of each.

    ids: int64 [N], the conversation of each row; faults: rows that the template refuses; dropped: the ids of those
    whose answers do not fit; shortened: of those whose prompt lost tokens at its beginning; parted: of those whose
    prompt and answer had to be tokenised apart.
    """

    rows: Supervised
    ids: npt.NDArray[np.int64]
    faults: tuple[Fault, ...] = ()
    dropped: tuple[int, ...] = ()
    shortened: tuple[int, ...] = ()
    parted: tuple[int, ...] = ()

    def told(self) -> str:
        """Return in a sentence how many rows there are and what was left out or cut."""
        supervised = int((self.rows.targets != UNSUPERVISED).sum())
        share = supervised / max(1, self.rows.targets.size)
        said = [f"{len(self.rows):,} conversations, {self.rows.tokens.size:,} tokens, {share:.0%} of them supervised"]
        said += [f"{len(self.dropped):,} left out because their answers do not fit"] if self.dropped else []
        said += [f"{len(self.shortened):,} prompts cut at their beginning"] if self.shortened else []
        said += [f"{len(self.faults):,} refused by the chat template"] if self.faults else []
        return "; ".join(said)


def render(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    where: Sequence[str],
    *,
    loss: Loss = "answers",
    max_length: int | None = None,
    too_long: TooLong = "drop",
) -> Rendered:
    """Tokenise conversations as `tokenizer.apply_chat_template` would and supervise their answers.

    `loss` "answers" supervises every trained assistant turn with its stop token, "last" the last of them, "all" every
    token. A row of more than `max_length` tokens is left out ("drop"), loses tokens at the beginning of its prompt and
    is left out only where its answers alone do not fit ("shorten"; a beginning-of-text token stays), or stops
    everything ("stop"). `where[i]` names conversations[i] in messages.

    Raises:
        DataError: `too_long` is "stop" and rows are.
        ModelError: the template takes too long, or the tokenizer has no engine that tells where its tokens stand.
        UserError: `max_length` has no room for a prompt and an answer.
    """
    if max_length is not None and max_length < 3:
        raise UserError(f"the maximum length is {max_length} tokens, expected at least 3; a usual value is 512 to 4096")
    rows = _Rows(_Placer(tokenizer), max_length, too_long, tokenizer.bos_token_id, loss == "all")
    faults: list[Fault] = []
    for batch in _batches(conversations, template, where, loss == "last", faults):
        with _no_garbage_collection():
            joined = rows.add(batch, [conversations[place].id for place, _ in batch])
        faults += [Fault(place, where[place], _JOINED) for place in joined]
    faults.sort(key=lambda fault: fault.position)
    if too_long == "stop":
        places = {conversation.id: place for place, conversation in enumerate(conversations)}
        said = (
            f"the conversation has more than {max_length} tokens; raise the maximum, shorten it, or choose to drop it"
        )
        refuse([Fault(places[name], where[places[name]], said) for name in rows.dropped], len(conversations))
    return rows.finished(tuple(faults))


def prompt_ids(
    conversation: Conversation, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, turn: int | None = None
) -> list[int]:
    """Return the ids that generation is given to make turn `turn` (counted from 0; None: the one after the last).

    They equal `tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True)`.

    Raises:
        TemplateRefusedError: the template refuses these turns.
    """
    messages = conversation.messages()[:turn]
    ids: list[int] = (
        _engine(tokenizer).encode(template.text(messages, conversation.tools, ask=True), add_special_tokens=False).ids
    )
    return ids


def _engine(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    engine = engine_of(tokenizer)
    if engine is None:
        raise ModelError(
            "this tokenizer is written in Python and cannot tell where its tokens stand in a text; expected a fast one "
            "(tokenizer.json); save it with a version of transformers that converts it"
        )
    return engine


def _batches(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    where: Sequence[str],
    last: bool,
    faults: list[Fault],
) -> Iterator[list[tuple[int, Cut]]]:
    """Yield rendered conversations with their positions, some at a time; append the faulty ones to `faults`."""
    shapes = Shapes(template, last=last)
    batch: list[tuple[int, Cut]] = []
    characters = 0
    for place, conversation in enumerate(conversations):
        try:
            found = shapes.cut(conversation)
        except TemplateSlowError as error:
            raise ModelError(f"{where[place]}: {error}; name another chat template") from error
        except TemplateRefusedError as error:
            faults.append(Fault(place, where[place], str(error)))
            continue
        batch.append((place, found))
        characters += len(found.text)
        if len(batch) >= _ROWS or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


# The ids of a text, the tokens [first, stop) of each answer, and whether it was tokenised in pieces.
Placed = tuple["npt.NDArray[np.int32]", list[tuple[int, int]], bool]


@dataclass(slots=True)
class _Rows:
    """Rows that are kept, collected batch by batch."""

    placer: _Placer
    max_length: int | None
    too_long: TooLong
    start_id: int | None
    everything: bool
    parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]] = field(
        default_factory=list
    )
    ids: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    shortened: list[int] = field(default_factory=list)
    parted: list[int] = field(default_factory=list)

    def add(self, batch: Sequence[tuple[int, Cut]], names: Sequence[int]) -> list[int]:
        """Tokenise some conversations, shorten or drop those that are too long, and mark their answers.

        Return the positions of those that cannot be cut between tokens.
        """
        import numpy as np

        kept: list[npt.NDArray[np.int32]] = []
        edges: list[tuple[int, int]] = []
        end = 0
        joined: list[int] = []
        placed = self.placer.place([found for _, found in batch])
        for name, (place, _), (tokens, spans, parted) in zip(names, batch, placed, strict=True):
            if not spans:
                joined.append(place)
                continue
            if self.max_length is not None and len(tokens) > self.max_length:
                fitted = self._fit(tokens, spans, self.max_length)
                if fitted is None:
                    self.dropped.append(name)
                    continue
                tokens, spans = fitted
                self.shortened.append(name)
            if parted:
                self.parted.append(name)
            kept.append(tokens)
            self.ids.append(name)
            edges += [(end + first, end + stop) for first, stop in spans]
            end += len(tokens)
        lengths = np.fromiter(map(len, kept), np.int64, len(kept))
        flat = np.concatenate([np.empty(0, np.int32), *kept])
        change = np.zeros(end + 1, np.int8)
        if edges:
            firsts, stops = np.array(edges).T
            np.add.at(change, firsts, 1)
            np.add.at(change, stops, -1)
        marked = np.ones(end, bool) if self.everything else np.cumsum(change[:-1]).astype(bool)
        self.parts.append((flat, lengths, marked))
        return joined

    def _fit(
        self, tokens: npt.NDArray[np.int32], spans: list[tuple[int, int]], room: int
    ) -> tuple[npt.NDArray[np.int32], list[tuple[int, int]]] | None:
        """Take what is too much from the beginning of the prompt, or say that the answers do not fit."""
        import numpy as np

        excess, kept = len(tokens) - room, int(tokens[0] == self.start_id)
        if self.too_long != "shorten" or kept + excess >= spans[0][0]:
            return None
        return np.concatenate([tokens[:kept], tokens[kept + excess :]]), [
            (first - excess, stop - excess) for first, stop in spans
        ]

    def finished(self, faults: tuple[Fault, ...]) -> Rendered:
        """Lay all rows end to end; the target of a token is the next one where that is marked."""
        import numpy as np

        tokens = np.concatenate([np.empty(0, np.int32), *(part[0] for part in self.parts)])
        lengths = np.concatenate([np.empty(0, np.int64), *(part[1] for part in self.parts)])
        marked = np.concatenate([np.empty(0, bool), *(part[2] for part in self.parts)])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        targets = np.full(tokens.size, UNSUPERVISED, np.int32)
        targets[:-1] = np.where(marked[1:], tokens[1:], UNSUPERVISED)
        targets[offsets[1:] - 1] = UNSUPERVISED
        return Rendered(
            Supervised(tokens, offsets, targets),
            np.array(self.ids, np.int64),
            faults,
            tuple(self.dropped),
            tuple(self.shortened),
            tuple(self.parted),
        )


class _Placer:
    """Tokenises texts and finds the tokens of their answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = _engine(tokenizer)
        self._special = {id for id, token in self._engine.get_added_tokens_decoder().items() if token.special}
        self._sections: dict[str, list[int]] = {}
        expression = expression_of(self._engine)
        self._words = None if expression is None else ByteWords(self._engine, expression)

    def place(self, cuts: Sequence[Cut]) -> Iterator[Placed]:
        """Yield the ids of each text, the tokens [first, stop) of each answer, and whether it was cut in pieces.

        A text that cannot be cut between tokens has no answers.
        """
        import numpy as np

        quick = self._by_words(cuts)
        left = [each for each, found in zip(cuts, quick, strict=True) if found is None]
        encodings = iter(self._engine.encode_batch([each.text for each in left], add_special_tokens=False))
        for each, found in zip(cuts, quick, strict=True):
            if found is not None:
                yield found
                continue
            encoding = next(encodings)
            ids = encoding.ids
            spans = self._spans(each, encoding, ids)
            if spans is not None:
                yield np.array(ids, np.int32), spans, False
            else:
                ids, spans = self._in_pieces(each)
                yield np.array(ids, np.int32), spans, True

    def _by_words(self, cuts: Sequence[Cut]) -> list[Placed | None]:
        """Tokenise by words; None where the tokenizer does not allow it, or an answer does not begin between tokens."""
        import numpy as np

        if self._words is None:
            return [None] * len(cuts)
        words = [self._words.cut(each.text) for each in cuts]
        ids = self._words.tokens(words)
        edges = self._words.before(words, ids, [list(chain.from_iterable(each.spans)) for each in cuts])
        return [
            None
            if its is None
            else (np.frombuffer(b"".join(mine), np.int32), list(zip(its[::2], its[1::2], strict=True)), False)
            for mine, its in zip(ids, edges, strict=True)
        ]

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
