"""What written answers are held against: the untuned model shown a few examples, and answers copied from training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finesmith.data.chat import Conversation, Turn
from finesmith.errors import DataError
from finesmith.tasks import dialogues
from finesmith.tasks.corpus import Baseline, Corpus, Encoded, Outcome
from finesmith.tasks.writing import Sheet, Written, write

if TYPE_CHECKING:
    from finesmith.models.token_heads import TokenNetwork
    from finesmith.tasks.answers import AnswerTask

# So many training rows are tried before examples are said to fit nowhere.
TRIED = 50


def nearest(train: Corpus) -> Baseline:
    """Answer as the most similar training prompt was answered."""
    from finesmith.evaluate.copies import nearest_answers

    answers = _answers(train)
    # Whether the prompts hold words at all is known before anything is asked.
    nearest_answers(train.texts, answers, [])

    def answer(corpus: Corpus, encoded: Encoded) -> Outcome:
        rows = encoded.detail.aloud.tolist()
        found = nearest_answers(train.texts, answers, [corpus.texts[row] for row in rows]).answers
        return _copied(dict(zip(rows, found, strict=True)), len(corpus))

    return Baseline("nearest", "answer of the nearest training prompt", answer)


def frequent(train: Corpus) -> Baseline:
    """Give the most frequent training answer.

    Raises DataError where none occurs twice.
    """
    answers = _answers(train)
    text, count = Counter(answers).most_common(1)[0]
    if count < 2:
        raise DataError("no training answer occurs twice")

    def answer(corpus: Corpus, encoded: Encoded) -> Outcome:
        return _copied(dict.fromkeys(encoded.detail.aloud.tolist(), text), len(corpus))

    return Baseline("frequent", "most frequent training answer", answer)


def few_shot(task: AnswerTask, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
    """Show the untuned model training examples as earlier rounds of the same conversation.

    Examples are drawn for each row by its place; where all do not fit beside the prompt and an answer, fewer are shown.
    Raises DataError where too few training conversations are single rounds without tools, or where not one example
    fits beside the prompts of the first training rows: the baseline would be the untuned model by another name.
    """
    from finesmith.evaluate.copies import few_shot as draw

    shots, rounds = task.speech.shots, _rounds(train.content.conversations)
    asked, answered = [one.content for one, _ in rounds], [two.content for _, two in rounds]
    tried = range(min(TRIED, len(train)))
    chances = draw(asked, answered, shots, task.speech.seed, rows=len(tried))

    def shown(corpus: Corpus, row: int, places: Sequence[int], sheet: Sheet) -> tuple[list[int], int]:
        examples = [rounds[place] for place in places]
        return _with_examples(corpus.content.conversations[row], examples, task, sheet)

    longest = task.speech.max_new_tokens or 1
    if not any(shown(train, row, chances[row].tolist(), encoded.detail)[1] for row in tried):
        raise DataError(
            f"no training example fits beside a prompt and an answer of {longest:,} tokens "
            f"in the {encoded.detail.max_length:,} that are read"
        )

    def answer(corpus: Corpus, encoded: Encoded) -> Outcome:
        sheet: Sheet = encoded.detail
        rows = sheet.aloud.tolist()
        chosen = draw(asked, answered, shots, task.speech.seed, rows=max(rows, default=-1) + 1)
        prompts = [shown(corpus, row, chosen[row].tolist(), sheet)[0] for row in rows]
        return Outcome(write(base(), sheet, prompts, task.speech))

    return Baseline("few_shot", f"untuned base model shown {shots} examples", answer)


def _with_examples(
    conversation: Conversation, examples: Sequence[tuple[Turn, Turn]], task: AnswerTask, sheet: Sheet
) -> tuple[list[int], int]:
    """Return the prompt with as many of the examples before it as leave room for an answer, and how many they are."""
    from finesmith.data.chat_template import TemplateRefusedError
    from finesmith.data.render import prompt_ids

    assert sheet.template is not None
    turns = conversation.turns[: dialogues.last_answer(conversation)]
    first = sum(turn.role == "system" for turn in turns[:1])
    room = sheet.max_length - (task.speech.max_new_tokens or 1)
    for count in range(len(examples), 0, -1):
        shown = [turn for pair in examples[-count:] for turn in pair]
        longer = replace(conversation, turns=(*turns[:first], *shown, *turns[first:]))
        try:
            prompt = prompt_ids(longer, sheet.template, sheet.tokenizer)
        except TemplateRefusedError:
            break
        if len(prompt) <= room:
            return prompt, count
    return prompt_ids(replace(conversation, turns=turns), sheet.template, sheet.tokenizer), 0


def _rounds(conversations: Sequence[Conversation]) -> list[tuple[Turn, Turn]]:
    """Return question and answer of the conversations that are no more than that."""
    found = []
    for conversation in conversations:
        turns = [turn for turn in conversation.turns if turn.role != "system"]
        plain = [turn.role for turn in turns] == ["user", "assistant"] and not conversation.tools
        if plain and not turns[1].calls:
            found.append((turns[0], turns[1]))
    return found


def _answers(train: Corpus) -> Sequence[str]:
    assert train.answers is not None
    return train.answers


def _copied(found: dict[int, str], rows: int) -> Outcome:
    return Outcome(Written(tuple(found.get(row) for row in range(rows))))
