"""Conversations to token ids with the answers supervised, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from finesmith.data.chat import Conversation, Fault, refuse
from finesmith.data.chat_sandbox import TemplateRefusedError, TemplateSlowError
from finesmith.data.chat_shapes import Shapes
from finesmith.data.chat_template import ChatTemplate, Cut
from finesmith.data.chunks import _no_garbage_collection
from finesmith.data.placing import Placed, Placer, fast_engine
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import ModelError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

Loss = Literal["answers", "last", "all"]
TooLong = Literal["drop", "shorten", "stop"]

_ROWS = 2048
_CHARACTERS = 1_000_000
_JOINED = (
    "the tokenizer joins the end of the prompt with the beginning of an answer, and the two cannot be told apart; "
    "choose a chat template whose prompt ends in a line break or a special token"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Conversations as token ids, and what became of each.

    ids: int64 [N], the conversation of each row; faults: rows that the template refuses; dropped: the ids of those
    that are too long and could or should not be shortened; shortened: of those whose prompt lost tokens at its
    beginning; parted: of those whose prompt and answer had to be tokenised apart.
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
        said += [f"{len(self.dropped):,} left out as too long"] if self.dropped else []
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
    rows = _Rows(Placer(tokenizer), max_length, too_long, tokenizer.bos_token_id, loss == "all")
    faults: list[Fault] = []
    batches = _batches(conversations, template, where, loss == "last", faults)
    while True:
        with _no_garbage_collection():
            batch = next(batches, None)
            if batch is None:
                break
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
        fast_engine(tokenizer)
        .encode(template.text(messages, conversation.tools, ask=True), add_special_tokens=False)
        .ids
    )
    return ids


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


@dataclass(slots=True)
class _Rows:
    """Rows that are kept, collected batch by batch."""

    placer: Placer
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

        placed = self.placer.place([found for _, found in batch])
        marked = placed.marked() if not self.everything else np.ones(placed.ids.size, bool)
        lengths, kept = placed.lengths, placed.whole
        tokens = placed.ids
        stays = self._fitting(placed, names)
        if not stays.all():
            tokens, marked = tokens[stays], marked[stays]
            lengths = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(stays)])[placed.bounds()])
            kept = lengths > 0
        self.parts.append((tokens, lengths[kept], marked))
        self.ids += [names[row] for row in np.flatnonzero(kept).tolist()]
        self.parted += [names[row] for row in placed.parted if kept[row]]
        return [batch[row][0] for row in np.flatnonzero(~placed.whole).tolist()]

    def _fitting(self, placed: Placed, names: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Say which tokens stay: what is too much is taken from the beginning of the prompt, or is the whole row."""
        import numpy as np

        stays = np.repeat(placed.whole, placed.lengths)
        if self.max_length is None:
            return stays
        bounds = placed.bounds()
        answers = np.searchsorted(placed.answers[:, 0], bounds)
        for row in np.flatnonzero(placed.whole & (placed.lengths > self.max_length)).tolist():
            start, stop = bounds[row : row + 2]
            begin = start + int(placed.ids[start] == self.start_id)
            end = begin + placed.lengths[row] - self.max_length
            if self.too_long == "shorten" and end < placed.answers[answers[row], 0]:
                stays[begin:end] = False
                self.shortened.append(names[row])
            else:
                stays[start:stop] = False
                self.dropped.append(names[row])
        return stays

    def finished(self, faults: tuple[Fault, ...]) -> Rendered:
        """Lay all rows end to end; the target of a token is the next one where that is marked."""
        import numpy as np

        tokens = np.concatenate([np.empty(0, np.int32), *(part[0] for part in self.parts)])
        lengths = np.concatenate([np.empty(0, np.int64), *(part[1] for part in self.parts)])
        marked = np.concatenate([np.empty(0, bool), *(part[2] for part in self.parts)])
        self.parts.clear()
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        targets = np.full(tokens.size, UNSUPERVISED, np.int32)
        np.copyto(targets[:-1], tokens[1:], where=marked[1:])
        targets[offsets[1:] - 1] = UNSUPERVISED
        return Rendered(
            Supervised(tokens, offsets, targets),
            np.array(self.ids, np.int64),
            faults,
            tuple(self.dropped),
            tuple(self.shortened),
            tuple(self.parted),
        )
