"""What generation is held against: answers that are copied from the training data or from the prompt itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Given answers and references, a score for each, higher is better.
Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

MOST_LEAD_SENTENCES = 5
ROWS_AT_ONCE = 512
# Cosines are sums of a few hundred products of floats, whose order may differ: closer ones count as equal.
SAME_COSINE = 1e-9

# Words whose full stop ends no sentence.
SHORT_FORMS = frozenset(
    {
        "al", "approx", "art", "cf", "co", "corp", "dept", "dr", "e.g", "ed", "eg", "esp", "est", "etc", "fig", "gen",
        "gov", "hon", "i.e", "ie", "inc", "jr", "ltd", "mr", "mrs", "ms", "mt", "no", "nos", "op", "p", "pp", "prof",
        "rep", "rev", "sec", "sen", "sr", "st", "u.k", "u.s", "v", "viz", "vol", "vs",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Nearest:
    """The training answers of the nearest training prompts.

    rows: the place of the training example for each text, int64 [N]; similarity: its cosine, 0 where no word is known.
    """

    answers: list[str]
    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lead:
    """How many sentences to take, and the validation mean for each number tried, from 1."""

    sentences: int
    tried: tuple[float, ...]


def nearest_answers(train_prompts: Sequence[str], train_answers: Sequence[str], texts: Sequence[str]) -> Nearest:
    """Answer each text as the most similar training prompt was answered.

    Similarity is the cosine of TF-IDF weights of words and word pairs, fitted on the training prompts. Of equally
    similar ones the first is taken, so that the same rows give the same answers; a text without a known word gets the
    first training answer.

    Raises DataError when there are no training examples or their prompts hold no words, ValueError when prompts and
    answers are not one for one.
    """
    import numpy as np

    _check_pairs(train_prompts, train_answers)
    if not train_prompts:
        raise DataError("there are no training examples to copy answers from; the nearest one needs at least 1")
    vectorizer = _vectorizer()
    try:
        known = vectorizer.fit_transform(train_prompts).T.tocsc()
    except ValueError as error:
        raise DataError(
            f"the {len(train_prompts):,} training prompts hold no words to compare by: check the prompt column"
        ) from error
    rows = np.zeros(len(texts), dtype=np.int64)
    similarity = np.zeros(len(texts))
    for first in range(0, len(texts), ROWS_AT_ONCE):
        cosines = (vectorizer.transform(texts[first : first + ROWS_AT_ONCE]) @ known).toarray()
        part = slice(first, first + len(cosines))
        best = cosines.max(axis=1)
        rows[part] = (cosines >= best[:, None] - SAME_COSINE).argmax(axis=1)
        similarity[part] = np.minimum(best, 1.0)
    return Nearest([train_answers[row] for row in rows.tolist()], rows, similarity)


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")


def choose_lead(
    texts: Sequence[str], references: Sequence[str], score: Scorer, *, most: int = MOST_LEAD_SENTENCES
) -> Lead:
    """Choose how many leading sentences make the best summary of validation texts.

    score: such as the ROUGE-L of each answer with its reference. Of numbers with equal means the smallest is chosen.

    Raises DataError when there are no texts, ValueError when texts and references are not one for one.
    """
    _check_pairs(texts, references)
    if not texts:
        raise DataError("there are no validation texts to choose the number of leading sentences on")
    means = []
    for count in range(1, most + 1):
        scores = score(lead(texts, count), references)
        means.append(float(sum(scores)) / len(scores))
    return Lead(means.index(max(means)) + 1, tuple(means))


def lead(texts: Sequence[str], sentences: int) -> list[str]:
    """Return the first `sentences` sentences of each text, with single spaces between them."""
    return [" ".join(split_sentences(text)[:sentences]) for text in texts]


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences by their marks and at empty lines; joined with spaces they are the text's words.

    A sentence ends at . ! ? or … (with closing quotes and brackets) before a space and something that can begin one:
    no small letter, which rules out most abbreviations; common ones before a capital are listed, and single capitals
    are initials. Chinese and Japanese marks need no space.
    """
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        begin, flat = 0, " ".join(paragraph.split())
        for mark in _end().finditer(flat):
            word = flat[begin : mark.start()].rpartition(" ")[2].lstrip("(\"'“‘[").casefold()
            initial = len(word) == 1 and word.isalpha() and flat[mark.start() - 1].isupper()
            if mark.group().startswith(".") and (initial or word in SHORT_FORMS):
                continue
            found.append(flat[begin : mark.end()].strip())
            begin = mark.end()
        found.append(flat[begin:].strip())
    return [sentence for sentence in found if sentence]


@cache
def _end() -> re.Pattern[str]:
    return re.compile(r"[.!?…]+[\"'”’)\]»]*(?=\s+[^\sa-zà-öø-ÿß])|[。！？]+[」』”）]*")


def copied_concepts(concepts: Sequence[Sequence[str]]) -> list[str]:
    """Return each row's concepts joined by spaces: every one is covered and nothing is said."""
    return [" ".join(row) for row in concepts]


def few_shot(
    train_prompts: Sequence[str], train_answers: Sequence[str], k: int, seed: int, rows: int = 1
) -> npt.NDArray[np.int64]:
    """Choose `k` training examples to stand before each of `rows` prompts, int64 [rows, k].

    They are drawn without replacement and without looking at the prompt; examples with the same prompt and answer are
    drawn once at most. Row i depends on the seed and i alone, so the same row gets the same examples however many rows
    there are.

    Raises DataError when there are fewer than `k` different examples, ValueError when k is negative or prompts and
    answers are not one for one.
    """
    import numpy as np

    _check_pairs(train_prompts, train_answers)
    if k < 0:
        raise ValueError(f"k is {k}, expected 0 or more")
    first: dict[tuple[str, str], int] = {}
    for row, pair in enumerate(zip(train_prompts, train_answers, strict=True)):
        first.setdefault(pair, row)
    distinct = np.array(list(first.values()), dtype=np.int64)
    if len(distinct) < k:
        raise DataError(
            f"{k} examples are to stand in each prompt, but the training data holds only {len(distinct):,} different "
            f"ones; take at most {len(distinct):,} shots"
        )
    drawn = [
        np.random.Generator(np.random.PCG64([seed, row])).choice(len(distinct), k, replace=False) for row in range(rows)
    ]
    return distinct[np.array(drawn, dtype=np.int64).reshape(rows, k)]


def _check_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first):,} prompts and {len(second):,} answers; expected as many of each")
