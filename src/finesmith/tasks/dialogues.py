"""What tasks of written answers share: rows as conversations, what a good last answer would be, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finesmith.data.chat import Conversation, Fault, Turn, refuse
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import DataError
from finesmith.tasks.corpus import Choices, Corpus, LaidOut, columns_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.chat_template import ChatTemplate
    from finesmith.data.sources import Origin

    Ints = npt.NDArray[np.int64]

# What asks for an answer, and what it is held against, are compared and audited apart.
AUDITS = frozenset(
    {
        "empty", "leakage", "near_leakage", "exact_duplicates", "near_duplicates", "conflicting_labels",
        "broken_encoding", "html", "personal_data", "mixed_language", "lexical_diversity",
    }
)  # fmt: skip
PLAIN = "plain"
# Of so many rows it is seen whether training and generation are given the same tokens.
LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Dialogues:
    """Conversations, and for each the texts that would be a good last answer (None: they end where one is asked for).

    trained: their tokens and what is learnt of them; scored: the same tokens with the answers as targets, and nothing
    else; prompts: the tokens of rows that end where an answer is asked for. All None until they are laid out.
    """

    conversations: tuple[Conversation, ...]
    references: tuple[tuple[str, ...], ...] | None
    trained: Supervised | None = None
    scored: Supervised | None = None
    prompts: tuple[list[int], ...] | None = None

    def __len__(self) -> int:
        return len(self.conversations)


def corpus(
    dialogues: Dialogues,
    where: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    origins: Sequence[Origin] = (),
    columns: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    lost: Mapping[str, int] | None = None,
) -> Corpus:
    """Return conversations as rows. texts: by what copies are found, by default what is said before the last answer;
    groups: rows with the same name ask the same, which is answered in writing once.
    """
    asked = list(texts) if texts is not None else [asked_text(one) for one in dialogues.conversations]
    answers = None if dialogues.references is None else [each[0] for each in dialogues.references]
    return Corpus(
        texts=asked,
        labels=None if answers is None else _numbered(answers),
        groups=groups,
        where=where,
        origins=origins,
        columns=columns or {},
        notes=notes,
        content=dialogues,
        answers=answers,
        lost=lost or {},
    )


def _numbered(answers: Sequence[str]) -> list[str]:
    """Name equal answers alike, by numbers: names are shown where texts are withheld."""
    seen: dict[str, int] = {}
    return [f"answer {seen.setdefault(text, len(seen) + 1)}" for text in answers]


def join(parts: Sequence[Corpus]) -> Corpus:
    """Lay rows end to end."""
    contents = [part.content for part in parts]
    given = [content.references for content in contents]
    references = None if None in given else tuple(row for rows in given for row in rows)
    lost: dict[str, int] = {}
    for part in parts:
        for reason, count in part.lost.items():
            lost[reason] = lost.get(reason, 0) + count
    groups = [part.groups for part in parts]
    grouped = None if None in groups else [names for names in groups if names is not None]
    return corpus(
        Dialogues(tuple(one for content in contents for one in content.conversations), references),
        [place for part in parts for place in part.where],
        texts=[text for part in parts for text in part.texts],
        groups=None if grouped is None else [name for names in grouped for name in names],
        origins=[origin for part in parts for origin in part.origins],
        columns=columns_of(parts),
        notes=[note for part in parts for note in part.notes],
        lost=lost,
    )


def take(whole: Corpus, positions: Sequence[int] | Ints) -> Corpus:
    """Return the rows at `positions`, in that order."""
    order, content = [int(place) for place in positions], whole.content
    dialogues = Dialogues(
        tuple(content.conversations[place] for place in order),
        None if content.references is None else tuple(content.references[place] for place in order),
        None if content.trained is None else content.trained.take(order),
        None if content.scored is None else content.scored.take(order),
        None if content.prompts is None else tuple(content.prompts[place] for place in order),
    )
    return corpus(
        dialogues,
        [whole.where[place] for place in order],
        texts=[whole.texts[place] for place in order],
        groups=None if whole.groups is None else [whole.groups[place] for place in order],
        origins=whole.origins,
        columns=whole.columns,
        notes=whole.notes,
    )


def last_answer(conversation: Conversation) -> int:
    """Return the place of the last turn to be imitated, or how many turns there are where none is."""
    turns = conversation.turns
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    return places[-1] if places and turns[-1].role == "assistant" else len(turns)


def asked_text(conversation: Conversation) -> str:
    """Return what is said before the last answer, without the system's turn, which many rows share."""
    turns = conversation.turns[: last_answer(conversation)]
    return "\n".join(turn.content for turn in turns if turn.role != "system")


def spoken(turn: Turn) -> str:
    """Return all that an assistant's turn says, calls of tools as JSON."""
    calls = "".join(json.dumps({"name": call.name, "arguments": dict(call.arguments)}) for call in turn.calls)
    return f"{turn.reasoning}{turn.content}{calls}"


def answer_bytes(conversations: Sequence[Conversation], *, last: bool) -> Ints:
    """Return the bytes of the answers to be imitated, or of the last one, of each conversation, int64 [N]."""
    import numpy as np

    sizes = []
    for conversation in conversations:
        turns = [turn for turn in conversation.turns if turn.role == "assistant" and turn.trained]
        sizes.append(sum(len(spoken(turn).encode("utf-8", "surrogatepass")) for turn in turns[-1 if last else 0 :]))
    return np.maximum(np.array(sizes, np.int64), 1)


def choose_template(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ChatTemplate]:
    """Return the recipe's name of a chat template, and it; auto: the tokenizer's own, and `plain` where it has none.

    Raises ModelError where it does not exist or cannot be cut between question and answer.
    """
    from finesmith.data.chat_template import named_template, own_template

    if name == "auto":
        name = "own" if tokenizer.chat_template else PLAIN
    if name == "own":
        return name, own_template(tokenizer.chat_template, tokenizer)
    return name, named_template(name, tokenizer)


def lay_out(rows: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int) -> LaidOut:
    """Make tokens of conversations; the tokenizer carries their template from here on.

    Raises DataError for rows that the template refuses or that are too long, where they are not to be dropped, and
    where none is left; ModelError as `choose_template`; UserError for a text that can end no answer.
    """
    from finesmith.data.render import render
    from finesmith.models.stops import Stops

    Stops([], choices.speech.stop, tokenizer)
    name, template = choose_template(choices.speech.template, tokenizer)
    speech = replace(choices.speech, template=name)
    choices = replace(choices, speech=speech)
    tokenizer.chat_template = template.for_tokenizer()
    content: Dialogues = rows.content
    if content.references is None:
        asked = replace(content, prompts=_prompts(rows, template, tokenizer))
        return LaidOut(replace(rows, content=asked), _count(len(rows)), {}, (), choices)
    numbered = [replace(one, id=number) for number, one in enumerate(content.conversations)]
    options: dict[str, Any] = {"max_length": max_length, "too_long": speech.too_long}
    trained = render(numbered, template, tokenizer, rows.where, loss=speech.loss, **options)
    _refuse(trained.faults, len(rows), speech.malformed)
    scored = trained.rows
    if speech.loss == "all":
        scored = render(numbered, template, tokenizer, rows.where, loss="answers", **options).rows
    if not len(trained.ids):
        where = rows.origins[0].name if rows.origins else "the data"
        raise DataError(
            f"{where}: none of the {len(rows):,} conversations can be used: "
            f"{len(trained.dropped):,} have more than {max_length} tokens, {len(trained.faults):,} are refused by the "
            f"chat template; {remedy(speech.too_long)}"
        )
    kept = take(rows, trained.ids)
    written = _as_written(kept.content, template)
    lost = {"too long": len(trained.dropped), "refused by the chat template": len(trained.faults)}
    notes = [f"chat template {name}: {trained.told()}"]
    if trained.dropped:
        notes.append(_of_length(len(trained.dropped), len(rows), max_length, speech.too_long))
    return LaidOut(
        corpus(
            replace(written, trained=trained.rows, scored=scored),
            kept.where,
            texts=kept.texts,
            groups=kept.groups,
            origins=kept.origins,
            columns=kept.columns,
            notes=kept.notes,
        ),
        trained.ids,
        {reason: count for reason, count in lost.items() if count},
        notes,
        choices,
        unfit=len(trained.dropped),
        shortened=len(trained.shortened),
    )


def _of_length(dropped: int, rows: int, max_length: int, too_long: str) -> str:
    remedy = "set text.too_long: shorten, which cuts prompts, or " if too_long == "drop" else ""
    what = "" if too_long == "drop" else " even without their prompts"
    return (
        f"too long: {dropped:,} of {rows:,} conversations ({dropped / rows:.0%}) have more than {max_length:,} tokens"
        f"{what} and are in no split, test included; to keep them, {remedy}raise data.max_length "
        "where the model takes more"
    )


def remedy(too_long: str) -> str:
    """Say what to do where no row can be used; too_long: as the recipe says."""
    cut = "" if too_long == "shorten" else " set text.too_long: shorten,"
    return f"raise data.max_length,{cut} or name another text.template"


def _prompts(rows: Corpus, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], ...]:
    """Return the tokens of each row; stop at those that the template refuses."""
    from finesmith.data.chat_template import TemplateRefusedError
    from finesmith.data.render import prompt_ids

    prompts, faults = [], []
    for place, conversation in enumerate(rows.content.conversations):
        try:
            prompts.append(prompt_ids(conversation, template, tokenizer))
        except TemplateRefusedError as error:
            faults.append(Fault(place, rows.where[place], str(error)))
    refuse(faults, len(rows))
    return tuple(prompts)


def first_prompts(
    content: Dialogues, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[int, list[int]]:
    """Return what generation would be given for the last answers of the first rows; of rows that were cut, nothing."""
    from finesmith.data.render import prompt_ids

    assert content.trained is not None
    lengths = content.trained.lengths()[:LOOKED_AT].tolist()
    return {
        row: prompt_ids(content.conversations[row], template, tokenizer, turn=last_answer(content.conversations[row]))
        for row, length in enumerate(lengths)
        if length < max_length and content.conversations[row].turns[-1].role == "assistant"
    }


def _count(rows: int) -> Ints:
    import numpy as np

    return np.arange(rows, dtype=np.int64)


def _refuse(faults: Sequence[Fault], rows: int, malformed: str) -> None:
    if malformed == "stop":
        refuse(faults, rows)


def _as_written(content: Dialogues, template: ChatTemplate) -> Dialogues:
    """Return the rows whose last answer calls a tool, or thinks, with it as the template writes it."""
    from finesmith.data.chat_template import cut

    assert content.references is not None
    references = list(content.references)
    for place, conversation in enumerate(content.conversations):
        turn = conversation.turns[last_answer(conversation)]
        if turn.calls or turn.reasoning:
            found = cut(conversation, template, last=True)
            text = found.text[slice(*found.spans[-1])]
            stop = next((stop for stop in template.stops if text.endswith(stop)), "")
            references[place] = (text.removesuffix(stop).strip(),)
    return replace(content, references=tuple(references))


def prompt_of(scored: Supervised, row: int) -> list[int]:
    """Return the tokens of a row before its last answer: what generation is given."""
    tokens, targets = scored.row(row)
    return [int(token) for token in tokens[: _begin(targets) + 1]]


def answer_lengths(scored: Supervised) -> Ints:
    """Return the tokens of each row's last answer, its stop token among them, int64 [N]."""
    import numpy as np

    lengths = []
    for row in range(len(scored)):
        targets = scored.row(row)[1]
        lengths.append(int((targets[_begin(targets) :] != UNSUPERVISED).sum()))
    return np.array(lengths, np.int64)


def _begin(targets: npt.NDArray[np.int32]) -> int:
    """Return the place of the first target of the last run of targets."""
    import numpy as np

    places = np.flatnonzero(targets != UNSUPERVISED)
    breaks = np.flatnonzero(np.diff(places) > 1)
    return int(places[breaks[-1] + 1] if len(breaks) else places[0])
