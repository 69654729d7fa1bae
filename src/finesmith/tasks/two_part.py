"""Rows for encoder-decoders: the encoder reads a prompt, and the decoder writes its one answer; no chat template.

A row's tokens are those of its prompt as the tokenizer writes a text, and then those of its answer as it writes a
target, which end with its end-of-text token. Prompt and answer have `max_length` tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finesmith.data.chat import Conversation, Fault, refuse
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import DataError, ModelError, UserError
from finesmith.tasks.corpus import Choices, Corpus, LaidOut, Speech
from finesmith.tasks.dialogues import LOOKED_AT, take

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.tasks.dialogues import Dialogues

# The recipe's name of having no chat template.
NONE = "none"
EXPECTED = (
    "an encoder-decoder takes one prompt and one answer; part the row, leave such rows out with data.malformed: drop, "
    "or name a causal model.base"
)
# Texts are tokenised so many at a time: a fast tokenizer keeps far more of each than its ids.
AT_ONCE = 1000


def settled_for(speech: Speech, *, two_part: bool) -> Speech:
    """Return how rows are laid out for a base model that is an encoder-decoder (`two_part`), or for one that is not.

    Raises UserError where the recipe names a chat template for the one, or none for the other.
    """
    if two_part and speech.template not in ("auto", NONE):
        raise UserError(
            f"text.template is {speech.template}, but the base model is an encoder-decoder, which reads a prompt as it "
            "stands; remove text.template"
        )
    if speech.template == NONE and not two_part:
        raise UserError(
            "text.template is none, but the base model is no encoder-decoder, and cannot tell a prompt from its answer "
            "without a chat template; remove text.template, or name one"
        )
    return replace(speech, template=NONE) if two_part else speech


def lay_out(rows: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int) -> LaidOut:
    """Make tokens of rows of one prompt, and one answer where they have one.

    Raises DataError for other rows and those that are too long, where they are not to be dropped, and where none is
    left; ModelError for a tokenizer without an end-of-text token; UserError for a text that can end no answer.
    """
    import numpy as np

    from finesmith.models.stops import Stops

    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-text token, so nothing could end an answer; name another model.base"
        )
    speech = choices.speech
    Stops([], speech.stop, tokenizer)
    # A template is a program, and goes into the tuned model only where it is used.
    tokenizer.chat_template = None
    content: Dialogues = rows.content
    found = [_fault(one, answered=content.references is not None) for one in content.conversations]
    faults = [Fault(place, rows.where[place], said) for place, said in enumerate(found) if said is not None]
    if content.references is None:
        refuse(faults, len(rows))
        prompts, _ = _prompts(content.conversations, tokenizer, speech, max_length)
        asked = replace(content, prompts=tuple(prompts))
        return LaidOut(replace(rows, content=asked), np.arange(len(rows)), {}, (), choices)
    if speech.malformed == "stop":
        refuse(faults, len(rows))
    kept = [place for place, said in enumerate(found) if said is None]
    chosen = [content.conversations[place] for place in kept]
    prompts, cut = _prompts(chosen, tokenizer, speech, max_length)
    answers = _tokens([one.turns[-1].content for one in chosen], tokenizer, answers=True)
    fits = [max(len(one), len(other)) <= max_length for one, other in zip(prompts, answers, strict=True)]
    long = [place for place, fit in zip(kept, fits, strict=True) if not fit]
    if speech.too_long == "stop":
        said = f"its prompt or its answer has more than {max_length} tokens; raise data.max_length, or shorten the row"
        refuse([Fault(place, rows.where[place], said) for place in long], len(rows))
    stays = np.array([place for place, fit in zip(kept, fits, strict=True) if fit], np.int64)
    if not len(stays):
        where = rows.origins[0].name if rows.origins else "the data"
        raise DataError(
            f"{where}: none of the {len(rows):,} rows can be used: of {len(long):,} the prompt or the answer has more "
            f"than {max_length} tokens, {len(faults):,} are not one prompt and one answer; raise data.max_length"
            + ("" if speech.too_long == "shorten" else ", or set text.too_long: shorten")
        )
    pairs = [pair for pair, fit in zip(zip(prompts, answers, strict=True), fits, strict=True) if fit]
    shortened = sum(was_cut and fit for was_cut, fit in zip(cut, fits, strict=True))
    table, left = _side_by_side(pairs), take(rows, stays)
    lost = {"too long": len(long), "not one prompt and one answer": len(faults)}
    return LaidOut(
        replace(left, content=replace(left.content, trained=table, scored=table)),
        stays,
        {reason: count for reason, count in lost.items() if count},
        _notes(table, len(rows), len(long), shortened, max_length, speech),
        choices,
        unfit=len(long),
        shortened=shortened,
    )


def prompt_of(rows: Supervised, row: int) -> list[int]:
    """Return the tokens of a row before its answer: what generation is given."""
    tokens, targets = rows.row(row)
    return [int(token) for token in tokens[targets == UNSUPERVISED]]


def first_prompts(
    content: Dialogues, tokenizer: PreTrainedTokenizerBase, speech: Speech, max_length: int
) -> dict[int, list[int]]:
    """Return what generation would be given for the first rows."""
    prompts, _ = _prompts(content.conversations[:LOOKED_AT], tokenizer, speech, max_length)
    return dict(enumerate(prompts))


def _fault(conversation: Conversation, *, answered: bool) -> str | None:
    """Say why a conversation is not one prompt, after a system's turn or none, and the answer to it."""
    turns = conversation.turns
    if conversation.tools or any(turn.calls or turn.reasoning for turn in turns):
        return f"it has tools or thinks aloud, but {EXPECTED}"
    roles = [turn.role for turn in turns[int(turns[0].role == "system") :]]
    if roles != ["user", "assistant"][: 1 + answered]:
        return f"it has {len(turns)} turns, but {EXPECTED}"
    return None


def _prompts(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, speech: Speech, max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Return the tokens of what is said before each answer, and which were cut as the tokenizer cuts."""
    texts = ["\n\n".join(turn.content for turn in one.turns if turn.role != "assistant") for one in conversations]
    found = _tokens(texts, tokenizer)
    cut = [speech.too_long == "shorten" and len(prompt) > max_length for prompt in found]
    for place, is_long in enumerate(cut):
        if is_long:
            found[place] = tokenizer(texts[place], truncation=True, max_length=max_length)["input_ids"]
    return found, cut


def _tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, answers: bool = False) -> list[list[int]]:
    """Return the ids of texts, or of answers with the end-of-text token last."""
    found: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        made = tokenizer(text_target=part, verbose=False) if answers else tokenizer(part, verbose=False)
        found += made["input_ids"]
    special = frozenset(tokenizer.all_special_ids)
    return [_ended(ids, int(tokenizer.eos_token_id), special) for ids in found] if answers else found


def _ended(ids: list[int], end: int, special: frozenset[int]) -> list[int]:
    """Return an answer's ids up to the token `end` that ends them; some families name a language after it."""
    last = len(ids)
    while last and ids[last - 1] != end and ids[last - 1] in special:
        last -= 1
    if last and ids[last - 1] == end:
        return ids[:last]
    return [*ids, end]


def _side_by_side(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Supervised:
    """Lay prompts and answers end to end; the answers are their own targets."""
    import numpy as np

    tokens = np.concatenate([np.array([*one, *other], np.int32) for one, other in pairs])
    hidden = np.concatenate([np.repeat([True, False], [len(one), len(other)]) for one, other in pairs])
    offsets = np.cumsum([0, *(len(one) + len(other) for one, other in pairs)])
    return Supervised(tokens, offsets.astype(np.int64), np.where(hidden, UNSUPERVISED, tokens).astype(np.int32))


def _notes(table: Supervised, rows: int, long: int, shortened: int, max_length: int, speech: Speech) -> list[str]:
    learnt = int((table.targets != UNSUPERVISED).sum())
    said = f"prompts as they stand, for an encoder-decoder: {len(table):,} rows, {learnt:,} tokens of answers, "
    said += f"{len(table.tokens) - learnt:,} of prompts" + (f"; {shortened:,} prompts cut" if shortened else "")
    if not long:
        return [said]
    drops = speech.too_long == "drop"
    what = "a prompt or an answer" if drops else "an answer"
    remedy = "set text.too_long: shorten, which cuts prompts, or " if drops else ""
    return [
        said,
        f"too long: {long:,} of {rows:,} rows ({long / rows:.0%}) have {what} of more than {max_length:,} tokens and "
        f"are in no split, test included; to keep them, {remedy}raise data.max_length where the model takes more",
    ]
