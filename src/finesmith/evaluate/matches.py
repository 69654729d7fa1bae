"""Answers that are right or wrong: equal texts, and equal final numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from finesmith.evaluate.measurement import Measurement, mean_of
from finesmith.evaluate.overlap import References, checked

MARKER = "####"
# More digits than anybody's answer; Python refuses to read numbers of some thousands.
LONGEST_NUMBER = 300

# A minus after a word or a digit is none of the number's sign (5-3 ends in 3); digits inside a word are no number (B2).
_NUMBER = re.compile(
    r"(?:(?<![\w)\].])(?P<sign>[-+]))?(?:[$€£¥₹](?P<inner>-)?)?(?<![\w./])"
    r"(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(?P<below>\d+)(?!\d|/|\.\d))?"
)
_WHOLE = re.compile(r"(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?")


def exact_match(predictions: Sequence[str], references: References) -> Measurement:
    """Measure the share of texts that equal one of their references but for white space around them.

    Raises ValueError when a row has no reference or the numbers of rows differ.
    """
    checked(predictions, references)
    rows = zip(predictions, references, strict=True)
    return mean_of("exact_match", [text.strip() in {one.strip() for one in several} for text, several in rows])


def normalised_match(predictions: Sequence[str], references: References) -> Measurement:
    """Measure the share of texts that equal one of their references once both went through `normalised`.

    Raises ValueError when a row has no reference or the numbers of rows differ.
    """
    checked(predictions, references)
    rows = zip(predictions, references, strict=True)
    hits = [normalised(text) in {normalised(one) for one in several} for text, several in rows]
    return mean_of("normalised_match", hits)


def normalised(text: str) -> str:
    """Return text without case, punctuation and differences of white space or Unicode form (NFKC).

    No articles are dropped, because which words are articles depends on the language. Symbols such as $, % or + stay,
    and so do signs, points and commas between digits.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = []
    for position, character in enumerate(plain):
        if unicodedata.category(character)[0] != "P" or character == "%":
            kept.append(character)
            continue
        before, after = plain[max(position - 1, 0) : position], plain[position + 1 : position + 2]
        in_number = character in ".,/" and before.isdigit() and after.isdigit()
        signs = character == "-" and after.isdigit() and not before.isalnum()
        kept.append(character if in_number or signs else " ")
    return " ".join("".join(kept).split())


def final_number_match(
    predictions: Sequence[str], references: References, *, strict: bool = True, marker: str = MARKER
) -> Measurement:
    """Measure the share of texts whose final number equals that of one of their references, as exact fractions.

    References are read leniently, predictions as `strict` says: see `final_number`.

    Raises ValueError when a reference holds no number, a row has none or the numbers of rows differ.
    """
    checked(predictions, references)
    hits = []
    for row, (text, several) in enumerate(zip(predictions, references, strict=True)):
        wanted = [final_number(one, strict=False, marker=marker) for one in several]
        if None in wanted:
            raise ValueError(f"row {row}: the reference ends in no number: {several[wanted.index(None)][-80:]!r}")
        found = final_number(text, strict=strict, marker=marker)
        hits.append(found is not None and found in wanted)
    return mean_of("final_number_match" if strict else "lenient_number_match", hits)


def final_number(text: str, *, strict: bool = True, marker: str = MARKER) -> Fraction | None:
    """Read the number that a worked answer ends in, exactly; None where there is none or it cannot be read.

    The last `marker` counts, and the number must follow it at once, but for blanks and a currency sign: `#### 1,234`,
    `#### -$3.50`. What stands behind is a unit and ignored (`#### 72 clips`, also `%`, so 50 % is not 0.5). Without a
    marker, or with none followed by a number, `strict` finds nothing; otherwise the last number in the text counts.
    Commas must part groups of three (`1,5` cannot be read), `3/4` is a fraction, `3.0` equals `3`. Digits within
    words, exponents and spelt-out numbers are not read.
    """
    plain = text.replace("\N{MINUS SIGN}", "-")
    _, mark, rest = plain.rpartition(marker)
    if mark:
        start = len(rest) - len(rest.lstrip(" \t"))
        directly = _NUMBER.match(rest, start)
        if directly is not None:
            return _read(directly)
    if strict:
        return None
    last = None
    for match in _NUMBER.finditer(plain):
        last = match
    return None if last is None else _read(last)


def _read(match: re.Match[str]) -> Fraction | None:
    # A comma or point at the end belongs to the sentence.
    digits, below = match["digits"].rstrip(","), match["below"] or "1"
    if len(digits) + len(below) > LONGEST_NUMBER or not _WHOLE.fullmatch(digits) or not int(below):
        return None
    value = Fraction(digits.replace(",", "")) / int(below)
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value
