"""Instructions: a model learns to answer as the assistant of conversations does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.data.chat import Conversation, Fault, Turn, refuse
from finesmith.data.chat_formats import Layout, convert, detect
from finesmith.errors import DataError
from finesmith.tasks import dialogues
from finesmith.tasks.answer_scores import MARKED, MOSTLY, share_marked, share_short
from finesmith.tasks.answers import AnswerTask
from finesmith.tasks.corpus import Corpus, Reading
from finesmith.tasks.language import LanguageTask

if TYPE_CHECKING:
    from finesmith.data.sources import Source

# Columns that ask, where a file holds no answers.
ASKING = ("prompt", "instruction", "question", "query", "user", "problem", "input", "text")
# In place of an answer that is only asked for.
OPEN = "?"
MOST_CHARACTERS = 500_000


class Instruct(AnswerTask):
    """Conversations whose assistant's turns are to be imitated."""

    name: ClassVar[str] = "instruct"

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read conversations, each source in the form that it has."""
        parts = [_read(source, reading) for source in sources]
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read conversations up to the answer that is asked for; a last answer that they hold is not looked at."""
        parts = [_read_prompts(source, reading) for source in sources]
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts, each what a user says."""
        for text, place in zip(texts, where, strict=True):
            if not text.strip():
                raise DataError(f"{place}: the text is empty; expected at least one word")
        asked = tuple(Conversation((Turn("user", text),), number) for number, text in enumerate(texts))
        return dialogues.corpus(dialogues.Dialogues(asked, None), where)

    @classmethod
    def scores_for(cls, train: Corpus) -> tuple[str, ...]:
        """Judge by marked numbers where answers end in them, by equal texts where they are short, else by ROUGE-L."""
        answers = train.answers or ()
        plain = ("rouge_l", "chrf", "normalised_match", "exact_match")
        if share_marked(answers) >= MARKED:
            return ("final_number_match", *plain)
        if share_short(answers) >= MOSTLY:
            return ("normalised_match", *(name for name in plain if name != "normalised_match"))
        return plain


def _read(source: str, reading: Reading) -> Corpus:
    table = _table(source, reading)
    rows, places = table.table.to_pylist(), table.places()
    layout = _layout(rows, reading, table.origins[0].name)
    found = convert(rows, layout, places)
    faults = [*found.faults, *_broken(table, found.conversations, places)]
    if reading.malformed != "drop":
        refuse(sorted(faults, key=lambda fault: fault.position), len(rows))
    bad = {fault.position for fault in faults}
    kept = tuple(one for one in found.conversations if one.id not in bad)
    if not kept:
        refuse(faults, len(rows))
        raise DataError(f"{table.origins[0].name} holds no answers to imitate in {len(rows):,} rows")
    named = {"messages": reading.messages, "prompt": reading.prompt, "completion": reading.completion}
    lost = {"malformed": len(bad), "marked as not to be imitated": len(found.disliked)}
    references = tuple((one.turns[dialogues.last_answer(one)].content.strip(),) for one in kept)
    origin = replace(table.origins[0], notes=(*table.origins[0].notes, f"conversations in the form {layout.reason}"))
    return dialogues.corpus(
        dialogues.Dialogues(kept, references),
        [places[one.id] for one in kept],
        origins=[origin, *table.origins[1:]],
        columns={role: name for role, name in named.items() if name is not None},
        lost={reason: count for reason, count in lost.items() if count},
    )


def _table(source: str, reading: Reading) -> Source:
    from finesmith.data.sources import read

    return read([source], encoding=reading.encoding)


def _layout(rows: Sequence[Mapping[str, Any]], reading: Reading, name: str) -> Layout:
    try:
        return detect(rows, messages=reading.messages, prompt=reading.prompt, completion=reading.completion)
    except DataError as error:
        keys = "data.messages, or data.prompt and data.completion, name columns in a recipe"
        raise DataError(f"{name}: {error} ({keys})") from None


def _broken(table: Source, conversations: Sequence[Conversation], places: Sequence[str]) -> list[Fault]:
    """Return the rows with halves of characters, which were replaced when the file was read."""
    if not any("halves" in note for origin in table.origins for note in origin.notes):
        return []
    said = "it holds half of a character (a lone surrogate), read as \N{REPLACEMENT CHARACTER}; write the row again"
    bad = [one.id for one in conversations if any("\N{REPLACEMENT CHARACTER}" in turn.content for turn in one.turns)]
    return [Fault(place, places[place], said) for place in bad]


def _read_prompts(source: str, reading: Reading) -> Corpus:
    table = _table(source, reading)
    rows, places = table.table.to_pylist(), table.places()
    names = table.table.column_names
    if reading.text is not None and reading.text not in names:
        raise DataError(
            f"{table.origins[0].name} has no column {reading.text[:80]!r}; its columns are {', '.join(names)[:300]}: "
            "name the right one with --text COLUMN"
        )
    asking = next((name for name in (reading.text, reading.prompt, *ASKING) if name in names), None)
    try:
        layout = _asked(reading.text) if reading.text else _layout(rows, reading, table.origins[0].name)
    except DataError:
        if asking is None:
            raise
        layout = _asked(asking)
    column = layout.columns.get("completion") or layout.columns.get("chosen")
    if "messages" not in layout.columns or layout.kind == "preference":
        rows = [{**row, column or "": OPEN} for row in rows]
    found = convert(rows, layout, places, answered=False)
    refuse(found.faults, len(rows))
    asked = tuple(_open(one) for one in found.conversations)
    return dialogues.corpus(
        dialogues.Dialogues(asked, None), [places[one.id] for one in asked], origins=table.origins, columns={}
    )


def _asked(column: str) -> Layout:
    return Layout("pair", {"prompt": column, "completion": ""}, "")


def _open(conversation: Conversation) -> Conversation:
    """Return the conversation without the answer that it ends with."""
    turns = conversation.turns
    return replace(conversation, turns=turns[:-1]) if turns[-1].role == "assistant" else conversation


TASK: type[LanguageTask] = Instruct
