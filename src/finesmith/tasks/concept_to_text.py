"""Sentences from words: a causal model learns to say something in which all given concepts occur (CommonGen)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.errors import DataError, shortened
from finesmith.tasks import asked_tables, dialogues
from finesmith.tasks.answers import AnswerTask
from finesmith.tasks.asked_tables import RowError
from finesmith.tasks.corpus import Baseline, Choices, Corpus, Encoded, Outcome, Reading
from finesmith.tasks.language import LanguageTask
from finesmith.tasks.writing import Written

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Measurement

CONCEPTS = ("concepts", "concept_set", "words")
SENTENCES = ("target", "sentence", "scene", "references", "text")
INSTRUCTION = "Write a sentence with these words:"
BETWEEN = ", "
# As CommonGen's own files mark nouns and verbs: field_N#look_V.
MARK = re.compile(r"_[A-Z]$")
FEWEST_SETS = 2


class ConceptToText(AnswerTask):
    """Sets of concepts, each with one or several sentences; a row is a set and one of them."""

    name: ClassVar[str] = "concept-to-text"
    unit: ClassVar[str] = "sentences"
    baselines: ClassVar[tuple[str, ...]] = ("base", "few_shot", "nearest", "copy")
    # That a set has several sentences is no contradiction.
    audits: ClassVar[frozenset[str]] = dialogues.AUDITS - {"conflicting_labels"} | {"group_leakage"}
    apart: ClassVar[str] = "no concept set straddles a border between splits"

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read tables with a column of concepts and one of sentences; rows of one set share their references."""
        parts = [_read(source, reading) for source in sources]
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read the concepts of tables, or the lines of text files; sentences that they hold are not looked at."""
        parts = []
        for source in sources:
            table = asked_tables.read_asked(source, reading, (*CONCEPTS, "text"), (), answered=False)
            sets = asked_tables.usable(table, lambda number, t=table: _concepts_at(t, number), None)  # type: ignore[misc]
            parts.append(_corpus([each for _, each in sets], table.places, table.origins))
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts, each the concepts of a set."""
        sets = []
        for text, place in zip(texts, where, strict=True):
            try:
                sets.append(concepts_of(text))
            except RowError as error:
                raise DataError(f"{place}: {error}") from None
        return _corpus(sets, where)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> AnswerTask:
        """Learn how long the training sentences are."""
        from finesmith.evaluate.coverage import covered

        # Without the package of dictionary forms coverage cannot be measured, which is better told at once.
        covered("word", ["word"])
        return super().learn(train, choices)

    @classmethod
    def scores_for(cls, train: Corpus) -> tuple[str, ...]:
        """Judge by CIDEr-D."""
        del train
        return ("cider_d", "coverage", "bleu", "chrf", "rouge_l")

    def require_known(self, corpus: Corpus) -> None:
        """Raise DataError where there are too few sets to weigh words by."""
        if len(set(corpus.groups or ())) < FEWEST_SETS:
            raise DataError(
                f"{corpus.where[0]}: a split with a single concept set cannot be measured, because CIDEr weighs words "
                f"by the sets whose references lack them; expected at least {FEWEST_SETS} sets in each split"
            )

    def measure_more(self, corpus: Corpus, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Measurement]:
        """Measure the share of concepts that occur, inflected or not."""
        from finesmith.evaluate.coverage import coverage

        return {"coverage": coverage(texts, [corpus.texts[row].split(BETWEEN) for row in rows])}

    def rival(self, name: str, train: Corpus, encoded: Encoded) -> Baseline:
        """Copy the concepts: all are covered, and nothing is said."""
        from finesmith.evaluate.copies import copied_concepts

        assert name == "copy"
        del train, encoded

        def answer(corpus: Corpus, encoded: Encoded) -> Outcome:
            aloud = set(encoded.detail.aloud.tolist())
            copied = copied_concepts([text.split(BETWEEN) for text in corpus.texts])
            return Outcome(Written(tuple(text if row in aloud else None for row, text in enumerate(copied))))

        return Baseline(name, "concepts copied in their order", answer)


def concepts_of(value: Any) -> list[str]:
    """Return the different concepts of a list, or of a text parted by `#`, commas or else blanks, in their order.

    Where all end in a mark of CommonGen's (`_N`, `_V`), the marks are left out. Raises RowError where there are none.
    """
    value = _listed(value)
    if isinstance(value, str):
        parts = re.split(r"[#,]", value) if re.search(r"[#,]", value) else value.split()
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        parts = [part for each in value for part in re.split(r"[#,]", each)]
    else:
        held = "nothing" if value is None else shortened(repr(value), 60)
        raise RowError(f"its concepts are {held}, expected a list of texts, or a text such as 'dog#run#park'")
    found = [" ".join(part.split()) for part in parts if part.strip()]
    if not found:
        raise RowError("it has no concepts; expected at least one word")
    if all(MARK.search(each) for each in found):
        found = [MARK.sub("", each) for each in found]
    if any(asked_tables.HALF in each for each in found):
        raise RowError("its concepts hold half of a character (a lone surrogate); write the row again")
    return list(dict.fromkeys(found))


def _listed(value: Any) -> Any:
    """Return the list that a text writes out as JSON, as tables without lists hold it; else the value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _concepts_at(table: asked_tables.Asked, number: int) -> list[str]:
    return concepts_of(table.asked[number])


def _read(source: str, reading: Reading) -> Corpus:
    table = asked_tables.read_asked(source, reading, CONCEPTS, SENTENCES)
    assert table.answers is not None
    answers, column = table.answers, table.columns["completion"]

    def make(number: int) -> tuple[list[str], list[str]]:
        value = _listed(answers[number])
        several = value if isinstance(value, list) and value else [value]
        return _concepts_at(table, number), [asked_tables.text_of(each, column) for each in several]

    # By set: its concepts as they come first, and the place of each of its sentences.
    sets: dict[str, tuple[list[str], dict[str, str]]] = {}
    rows = asked_tables.usable(table, make, reading.malformed)
    repeated = 0
    for number, (concepts, sentences) in rows:
        _, known = sets.setdefault(_key(concepts), (concepts, {}))
        for sentence in sentences:
            repeated += sentence in known
            known.setdefault(sentence, table.places[number])
    lost = {"malformed": len(table.asked) - len(rows), "the same sentence of the same set": repeated}
    told, (first, *more) = f"{len(sets):,} concept sets", table.origins
    found = [(concepts, sentence, list(known)) for concepts, known in sets.values() for sentence in known]
    return _corpus(
        [concepts for concepts, _, _ in found],
        [place for _, known in sets.values() for place in known.values()],
        [replace(first, notes=(*first.notes, told)), *more],
        # What a row is to learn comes first.
        references=[(one, *(each for each in all_ if each != one)) for _, one, all_ in found],
        columns=table.columns,
        lost={reason: count for reason, count in lost.items() if count},
    )


def _key(concepts: Sequence[str]) -> str:
    return "#".join(sorted(each.casefold() for each in concepts))


def _corpus(
    sets: Sequence[Sequence[str]],
    where: Sequence[str],
    origins: Sequence[Any] = (),
    references: Sequence[tuple[str, ...]] | None = None,
    **more: Any,
) -> Corpus:
    """Return a row for each set of `sets`; with references those of one set are a group."""
    answers = [None] * len(sets) if references is None else [each[0] for each in references]
    rounds = []
    for number, (concepts, answer) in enumerate(zip(sets, answers, strict=True)):
        try:
            rounds.append(asked_tables.round_of(number, f"{INSTRUCTION} {BETWEEN.join(concepts)}", answer))
        except RowError as error:
            raise DataError(f"{where[number]}: {error}") from None
    return dialogues.corpus(
        dialogues.Dialogues(tuple(rounds), None if references is None else tuple(references)),
        where,
        texts=[BETWEEN.join(concepts) for concepts in sets],
        groups=None if references is None else [_key(concepts) for concepts in sets],
        origins=origins,
        **more,
    )


TASK: type[LanguageTask] = ConceptToText
