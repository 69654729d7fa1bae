"""What the task of preferences makes of files and rows: pairs of answers or marked ones, their texts and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from finesmith.data.chat import Conversation, Turn, refuse
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import DataError
from finesmith.tasks.corpus import Choices, Corpus, LaidOut, Reading, Speech
from finesmith.tasks.dialogues import choose_template, remedy, spoken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.render import Rendered
    from finesmith.data.sources import Origin
    from finesmith.tasks.language import Floats, Ints

AUDITS = frozenset(
    {
        "empty", "missing_labels", "leakage", "near_leakage", "group_leakage", "exact_duplicates", "near_duplicates",
        "conflicting_labels", "broken_encoding", "html", "personal_data", "mixed_language", "lexical_diversity",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """Answers that people compared. first: the chosen answers of pairs, or single answers; second: the rejected ones,
    None for single answers, which are marked in `good`; sequences: their tokens in turn, None until laid out.
    """

    first: tuple[Conversation, ...]
    second: tuple[Conversation, ...] | None
    good: tuple[bool, ...] | None
    sequences: Supervised | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, positions: Sequence[int]) -> Compared:
        """Return the rows at `positions`, in that order."""
        sequences = self.sequences
        if sequences is not None:
            sides = 1 if self.second is None else 2
            sequences = sequences.take([place * sides + side for place in positions for side in range(sides)])
        return Compared(
            tuple(self.first[place] for place in positions),
            None if self.second is None else tuple(self.second[place] for place in positions),
            None if self.good is None else tuple(self.good[place] for place in positions),
            sequences,
        )


def read(sources: Sequence[str], reading: Reading) -> Corpus:
    """Read rows with chosen and rejected answers, or answers with a mark.

    Raises DataError where the columns are neither, and for malformed rows that are not to be dropped.
    """
    from finesmith.data.preferences import MARKS, read_marked, read_preferences
    from finesmith.data.sources import read as read_sources

    source = read_sources(sources, encoding=reading.encoding)
    rows, where = source.table.to_pylist(), source.places()
    names = {name.strip().lower() for name in source.table.column_names}
    malformed: Any = reading.malformed or "stop"
    if not {"chosen", "rejected"} <= names and not names.intersection(MARKS):
        listed = ", ".join(name[:40] for name in source.table.column_names[:20])
        raise DataError(
            f"{source.origins[0].name} holds no preferences: its columns are {listed}; expected prompt, chosen and "
            f"rejected, or an answer with a column that says whether it is good ({', '.join(MARKS)})"
        )
    try:
        if {"chosen", "rejected"} <= names:
            pairs = read_preferences(rows, where, identical="keep", malformed=malformed)
            content, reason, kept = Compared(pairs.chosen, pairs.rejected, None), pairs.reason, pairs.rows
        else:
            marked = read_marked(rows, where, malformed=malformed)
            content, reason, kept = Compared(marked.conversations, None, marked.good), marked.reason, marked.rows
    except DataError as error:
        if source.origins[0].name in str(error):
            raise
        raise DataError(f"{source.origins[0].name}: {error}") from None
    left_out = len(rows) - len(kept)
    origins = [replace(origin, notes=(*origin.notes, reason)) for origin in source.origins]
    return _corpus(content, [where[row] for row in kept], origins, {"malformed": left_out} if left_out else {})


def _corpus(
    content: Compared, where: Sequence[str], origins: Sequence[Origin], lost: Mapping[str, int] | None = None
) -> Corpus:
    """Return compared answers as rows.

    A pair's text holds its answers in the order of the alphabet and its label says which of them is better, so that
    equal texts under different labels are pairs that contradict each other; equal answers have no label. Rows with the
    same prompt stay in one split.
    """
    texts, labels = [], list[str | None]()
    for row, one in enumerate(content.first):
        prompt, first = _prompt(one), _answer(one)
        if content.second is None:
            assert content.good is not None
            texts.append(f"{prompt}\n\n{first}")
            labels.append("good" if content.good[row] else "bad")
            continue
        other = _answer(content.second[row])
        texts.append("\n\n".join([prompt, *sorted((first, other))]))
        labels.append(None if first == other else "the first answer" if first < other else "the second answer")
    return Corpus(
        texts=texts,
        labels=labels,
        groups=[_digest(_prompt(one)) for one in content.first],
        where=where,
        origins=origins,
        columns={},
        notes=(),
        content=content,
        lost=lost or {},
    )


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def join(parts: Sequence[Corpus]) -> Corpus:
    """Lay rows end to end.

    Raises DataError where some are pairs and others marked answers.
    """
    contents: list[Compared] = [part.content for part in parts]
    marked = [content.good is not None for content in contents]
    if any(marked) and not all(marked):
        one, other = parts[marked.index(True)], parts[marked.index(False)]
        raise DataError(
            f"{one.where[0]} is a marked answer and {other.where[0]} a pair of answers; expected one form in all files"
        )
    lost: dict[str, int] = {}
    for part in parts:
        for reason, count in part.lost.items():
            lost[reason] = lost.get(reason, 0) + count
    content = Compared(
        tuple(one for each in contents for one in each.first),
        None if any(marked) else tuple(one for each in contents for one in each.second or ()),
        tuple(good for each in contents for good in each.good or ()) if any(marked) else None,
    )
    where = [place for part in parts for place in part.where]
    return _corpus(content, where, [origin for part in parts for origin in part.origins], lost)


def take(whole: Corpus, positions: Sequence[int] | Ints) -> Corpus:
    """Return the rows at `positions`, in that order."""
    order = [int(place) for place in positions]
    assert whole.labels is not None
    assert whole.groups is not None
    return replace(
        whole,
        texts=[whole.texts[place] for place in order],
        labels=[whole.labels[place] for place in order],
        groups=[whole.groups[place] for place in order],
        where=[whole.where[place] for place in order],
        content=whole.content.take(order),
        lost={},
    )


def _first_turn(conversation: Conversation) -> int:
    """Return where the answer begins."""
    return next(place for place, turn in enumerate(conversation.turns) if turn.trained)


def _said(turns: Sequence[Turn]) -> str:
    return "\n".join(f"{turn.role}: {spoken(turn)}" for turn in turns)


def _prompt(conversation: Conversation) -> str:
    return _said(conversation.turns[: _first_turn(conversation)])


def _answer(conversation: Conversation) -> str:
    return _said(conversation.turns[_first_turn(conversation) :])


def readable(content: Compared) -> list[str]:
    """Return rows as people read them, each answer under what was said of it."""
    if content.second is None:
        return [f"{_prompt(one)}\n\n{_answer(one)}" for one in content.first]
    return [
        f"{_prompt(one)}\n\n[chosen] {_answer(one)}\n\n[rejected] {_answer(other)}"
        for one, other in zip(content.first, content.second, strict=True)
    ]


def lay_out(rows: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int) -> LaidOut:
    """Make tokens of all answers; a row is kept where all of its answers fit.

    The tokenizer carries the template from here on. Raises DataError for rows that the template refuses or that are
    too long, where they are not to be dropped, and where none is left.
    """
    from finesmith.data.render import render

    name, template = choose_template(choices.speech.template, tokenizer)
    speech = replace(choices.speech, template=name)
    tokenizer.chat_template = template.for_tokenizer()
    content: Compared = rows.content
    found: list[Rendered] = []
    for side in (content.first, content.second):
        if side is not None:
            numbered = [replace(one, id=number) for number, one in enumerate(side)]
            made = render(
                numbered, template, tokenizer, rows.where, max_length=max_length, too_long=speech.too_long
            )  # fmt: skip
            if speech.malformed == "stop":
                refuse(made.faults, len(rows))
            found.append(made)
    kept = sorted(set.intersection(*(set(made.ids.tolist()) for made in found)))
    faulty = {fault.position for made in found for fault in made.faults}
    dropped = {place for made in found for place in made.dropped} - faulty
    shortened = {place for made in found for place in made.shortened} & set(kept)
    if not kept:
        raise DataError(
            f"{rows.origins[0].name if rows.origins else 'the data'}: none of the {len(rows):,} rows can be used: "
            f"{len(dropped):,} have an answer that does not fit into {max_length} tokens with its prompt, "
            f"{len(faulty):,} are refused by the chat template; {remedy(speech.too_long)}"
        )
    import numpy as np

    places = [{name: place for place, name in enumerate(made.ids.tolist())} for made in found]
    sequences = _in_turn([made.rows.take([at[row] for row in kept]) for made, at in zip(found, places, strict=True)])
    taken = take(rows, kept)
    lost = {"too long": len(dropped), "refused by the chat template": len(faulty)}
    share = int((sequences.targets != UNSUPERVISED).sum()) / sequences.tokens.size
    notes = [
        f"chat template {name}: {len(sequences):,} answers to {len(kept):,} rows, {sequences.tokens.size:,} "
        f"tokens, {share:.0%} of them in answers"
    ]
    notes += [f"{len(shortened):,} prompts cut at their beginning"] if shortened else []
    return LaidOut(
        replace(taken, content=replace(taken.content, sequences=sequences)),
        np.array(kept, np.int64),
        {reason: count for reason, count in lost.items() if count},
        notes,
        replace(choices, speech=speech),
        unfit=len(dropped),
        shortened=len(shortened),
    )


def _in_turn(sides: Sequence[Supervised]) -> Supervised:
    """Return the rows of all sides in turn: the first of each, then the second of each."""
    import numpy as np

    tokens = np.concatenate([side.tokens for side in sides])
    targets = np.concatenate([side.targets for side in sides])
    starts = np.cumsum([0, *(side.tokens.size for side in sides[:-1])])
    offsets = np.concatenate([side.offsets[1:] + start for side, start in zip(sides, starts, strict=True)])
    whole = Supervised(tokens, np.concatenate([np.zeros(1, np.int64), offsets]), targets)
    return whole.take(np.arange(len(whole)).reshape(len(sides), -1).T.ravel())


def mismatch(sequences: Supervised, max_length: int) -> Supervised | None:
    """Return each prompt with the next row's answer, cut at `max_length` tokens; None for a single row.

    What a network makes of answers that it was not asked for is how KTO measures how far it has gone.
    """
    import numpy as np

    from finesmith.tasks.preference_losses import mismatched

    if len(sequences) < 2:
        return None
    rows = [sequences.row(row) for row in range(len(sequences))]
    begins = [int(np.argmax(targets != UNSUPERVISED)) for _, targets in rows]
    tokens, targets = [], []
    for row, other in enumerate(mismatched(len(rows))):
        here, there = begins[row], begins[other]
        tokens.append(np.concatenate([rows[row][0][: here + 1], rows[other][0][there + 1 :]])[:max_length])
        targets.append(np.concatenate([rows[row][1][:here], rows[other][1][there:]])[:max_length])
    offsets = np.cumsum([0, *map(len, tokens)]).astype(np.int64)
    return Supervised(np.concatenate(tokens), offsets, np.concatenate(targets))


def moved(before: Floats, after: Floats, counts: Ints, good: Sequence[bool] | None) -> list[dict[str, Any]]:
    """Return how likely answers were and are, in nats a token, for chosen and rejected or good and bad ones."""
    import numpy as np

    first = np.arange(len(before)) % 2 == 0 if good is None else np.array(good)
    names = ("chosen", "rejected") if good is None else ("good", "bad")
    return [
        {
            "answers": name,
            "before": float(before[at].sum() / counts[at].sum()),
            "after": float(after[at].sum() / counts[at].sum()),
            "rows": int(at.sum()),
        }
        for name, at in zip(names, (first, ~first), strict=True)
        if at.any()
    ]


def summary(whole: Corpus) -> dict[str, Any]:
    """Count pairs, or good and bad answers, and prompts."""
    content: Compared = whole.content
    prompts = len(set(whole.groups or ()))
    if content.good is None:
        return {"summary": {"pairs": len(whole), "prompts": prompts}}
    return {"labels": {"good": sum(content.good), "bad": len(whole) - sum(content.good)}, "prompts": prompts}


SPEECH = ("template", "too_long", "malformed")


def speech_state(speech: Speech) -> dict[str, str]:
    """Return what of the layout matters here, as plain values."""
    return {name: getattr(speech, name) for name in SPEECH}


def speech_of(state: Mapping[str, Any]) -> Speech:
    """Rebuild the layout; ValueError where a value is not what finesmith writes."""
    if set(state) != set(SPEECH) or not all(isinstance(value, str) for value in state.values()):
        raise ValueError(state)
    return Speech(**state)
