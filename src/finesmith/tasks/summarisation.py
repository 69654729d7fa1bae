"""Summaries: a model learns to write what a text says in fewer words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from finesmith.errors import DataError
from finesmith.tasks import asked_tables, dialogues
from finesmith.tasks.answers import AnswerTask
from finesmith.tasks.corpus import Baseline, Corpus, Encoded, Outcome, Reading
from finesmith.tasks.language import LanguageTask
from finesmith.tasks.writing import Written

TEXTS = ("document", "article", "original_text", "source", "text", "input")
SUMMARIES = ("summary", "reference_summary", "highlights", "target", "output", "title")
INSTRUCTION = "Summarise this text:"
# On so many training rows the number of leading sentences is chosen.
LEAD_ROWS = 500


class Summarisation(AnswerTask):
    """Texts, each with its summary."""

    name: ClassVar[str] = "summarisation"
    unit: ClassVar[str] = "texts"
    baselines: ClassVar[tuple[str, ...]] = ("base", "few_shot", "nearest", "lead")

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read tables with a column of texts and one of summaries."""
        parts = [_read(source, reading, answered=True) for source in sources]
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read the texts of tables, or the lines of text files; summaries that they hold are not looked at."""
        parts = [_read(source, reading, answered=False) for source in sources]
        return parts[0] if len(parts) == 1 else dialogues.join(parts)

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts to be summarised."""
        rows = []
        for number, (text, place) in enumerate(zip(texts, where, strict=True)):
            if not text.strip():
                raise DataError(f"{place}: the text is empty; expected at least one word")
            rows.append(asked_tables.round_of(number, _question(text.strip()), None))
        return dialogues.corpus(dialogues.Dialogues(tuple(rows), None), where, texts=texts)

    @classmethod
    def scores_for(cls, train: Corpus) -> tuple[str, ...]:
        """Judge by ROUGE-L."""
        del train
        return ("rouge_l", "rouge_1", "rouge_2", "chrf")

    def rival(self, name: str, train: Corpus, encoded: Encoded) -> Baseline:
        """Take the first sentences of the text, as many as do best by ROUGE-L on the first training rows."""
        from finesmith.evaluate.copies import choose_lead, lead
        from finesmith.evaluate.overlap import rouge

        assert name == "lead"
        del encoded
        count = choose_lead(
            train.texts[:LEAD_ROWS],
            (train.answers or ())[:LEAD_ROWS],
            lambda texts, expected: rouge(texts, [[one] for one in expected])["rouge_l"].per_example.tolist(),
        ).sentences

        def answer(corpus: Corpus, encoded: Encoded) -> Outcome:
            aloud = set(encoded.detail.aloud.tolist())
            taken = lead(corpus.texts, count)
            return Outcome(Written(tuple(text if row in aloud else None for row, text in enumerate(taken))))

        shown = "first sentence" if count == 1 else f"first {count} sentences"
        return Baseline(name, f"{shown} of the text", answer)


def _read(source: str, reading: Reading, *, answered: bool) -> Corpus:
    table = asked_tables.read_asked(source, reading, TEXTS, SUMMARIES, answered=answered)

    def make(number: int) -> tuple[str, str | None]:
        text = asked_tables.text_of(table.asked[number], table.columns["prompt"])
        if table.answers is None:
            return text, None
        return text, asked_tables.text_of(table.answers[number], table.columns["completion"])

    rows = asked_tables.usable(table, make, reading.malformed if answered else None)
    lost = len(table.asked) - len(rows)
    return dialogues.corpus(
        dialogues.Dialogues(
            tuple(asked_tables.round_of(number, _question(text), summary) for number, (text, summary) in rows),
            tuple((summary or "",) for _, (_, summary) in rows) if answered else None,
        ),
        [table.places[number] for number, _ in rows],
        texts=[text for _, (text, _) in rows],
        origins=table.origins,
        columns=table.columns,
        lost={"malformed": lost} if lost else {},
    )


def _question(text: str) -> str:
    return f"{INSTRUCTION}\n\n{text}"


TASK: type[LanguageTask] = Summarisation
