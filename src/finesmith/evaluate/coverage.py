"""How many of the given concepts a text uses, in any inflection (CommonGen: Lin et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from finesmith.errors import UserError
from finesmith.evaluate.measurement import Measurement, mean_of
from finesmith.evaluate.words import words

VOWELS = "aeiou"

# English forms that simplemma takes for words of their own (`left`, `ground`) or does not know.
IRREGULAR = {
    "awake": "awoken",
    "axis": "axes",
    "bad": "worse",
    "basis": "bases",
    "bear": "bore born",
    "bend": "bent",
    "bind": "bound",
    "bite": "bit",
    "break": "broke",
    "calf": "calves",
    "datum": "data",
    "diagnosis": "diagnoses",
    "drink": "drunk",
    "feel": "felt",
    "go": "gone",
    "grind": "ground",
    "half": "halves",
    "leaf": "leaves",
    "leave": "left",
    "life": "lives",
    "loaf": "loaves",
    "ring": "rung",
    "rise": "rose",
    "shake": "shook",
    "shelf": "shelves",
    "shoot": "shot",
    "smell": "smelt",
    "spell": "spelt",
    "swear": "swore",
    "thief": "thieves",
    "think": "thought",
    "tread": "trod",
    "wife": "wives",
    "win": "won",
    "wind": "wound",
}


def coverage(predictions: Sequence[str], concepts: Sequence[Sequence[str]], *, language: str = "en") -> Measurement:
    """Measure the mean share of each row's concepts that occur in its text; a concept given twice counts once.

    See `covered` for what counts.

    Raises:
        ValueError: a row has no concept, or the numbers of rows differ.
        UserError: simplemma is absent or does not know the language.
    """
    if not predictions or len(predictions) != len(concepts):
        raise ValueError(f"{len(predictions)} predictions for {len(concepts)} sets of concepts; expected as many")
    shares = []
    for row, (text, wanted) in enumerate(zip(predictions, concepts, strict=True)):
        distinct = list(dict.fromkeys(wanted))
        if isinstance(wanted, str) or not distinct:
            raise ValueError(f"row {row}: expected a list of at least one concept, got {str(wanted)[:80]!r}")
        shares.append(len(covered(text, distinct, language=language)) / len(distinct))
    return mean_of("coverage", shares)


def covered(text: str, concepts: Sequence[str], *, language: str = "en") -> list[str]:
    """Return the concepts that occur in the text, in their order.

    A word is a concept when the two are equal without case, when one's dictionary form is the other or the other's
    dictionary form, or, in English, when it is an inflection by rule or of `IRREGULAR`, which finds what a dictionary
    takes for a word of its own: `building` for `build`, `left` for `leave`. A concept of several words
    must occur as neighbours in that order.

    Raises UserError when simplemma is absent or does not know the language.
    """
    tokens = words(text)
    forms = [_forms(token, language) for token in tokens]
    found = []
    for concept in concepts:
        parts = words(concept)
        places = range(len(tokens) - len(parts) + 1) if parts else ()
        if any(all(_same(part, forms[i + j], language) for j, part in enumerate(parts)) for i in places):
            found.append(concept)
    return found


def _same(part: str, forms: frozenset[str], language: str) -> bool:
    return not forms.isdisjoint(_forms(part, language) | _inflections(part, language))


@lru_cache(maxsize=100_000)
def _forms(word: str, language: str) -> frozenset[str]:
    """Return the word and its dictionary form."""
    try:
        import simplemma
    except ImportError:
        raise UserError(
            "concept coverage needs the package simplemma, which is not installed; run: pip install 'finesmith[lemmas]'"
        ) from None
    try:
        return frozenset({word, simplemma.lemmatize(word, lang=language).lower()})
    except ValueError:
        raise UserError(
            f"language is {language[:80]!r}, expected the two-letter code of a language that simplemma knows, such as "
            "en, es, fr, de, it, pt or nl"
        ) from None


@lru_cache(maxsize=100_000)
def _inflections(word: str, language: str) -> frozenset[str]:
    """Return the inflections of an English word that rules or `IRREGULAR` give; none in other languages."""
    if language != "en" or len(word) < 2:
        return frozenset()
    stems = {word, word.removesuffix("e")}
    if word[-1] not in VOWELS + "wxy" and word[-2] in VOWELS:
        stems.add(word + word[-1])
    if word.endswith("y") and word[-2] not in VOWELS:
        stems.add(word[:-1] + "i")
    if word.endswith("ie"):
        stems.add(word[:-2] + "y")
    regular = {word + "s", *IRREGULAR.get(word, "").split()} | {
        stem + ending for stem in stems for ending in ("es", "ed", "ing")
    }
    # A bed is no past of be, nor seed of see.
    return frozenset(regular - {word + "d"} if len(word) < 4 and word.endswith(("be", "ee")) else regular)
