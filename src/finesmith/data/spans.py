"""Tagged words from texts with labelled spans of characters, and spans of characters from tags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from finesmith.data.tags import Sentences, spans_of, tags_of
from finesmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Scripts that put no space between words: every character is a word of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def sentences_of_spans(
    texts: Sequence[Any], spans: Sequence[Any], where: Sequence[str], *, widen: bool = False
) -> Sentences:
    """Take rows with a text and its spans, each {"start", "end", "label"} or [start, end, label], in characters.

    `end` is the character after the last. A span must begin and end where a word does (a run of letters and digits, or
    one other character); with `widen` it is stretched to whole words, and the notes say how many were.

    Raises:
        DataError: a text or a span is malformed, out of range, overlaps another or parts a word; `where` names the row.
    """
    rows: list[tuple[str, ...]] = []
    places = []
    widened = 0
    for text, row, place in zip(texts, spans, where, strict=True):
        if not isinstance(text, str) or not text.strip():
            what = "empty" if isinstance(text, str) else f"a value of type {type(text).__name__}"
            raise DataError(f"{place}: the text is {what}, expected a text with at least one word", quote=repr(text))
        words = words_of(text)
        starts, stops = words[:, 0].tolist(), words[:, 1].tolist()
        at_start, at_stop = ({at: number for number, at in enumerate(each)} for each in (starts, stops))
        found = []
        for start, stop, label in _spans(row, text, place):
            if start in at_start and stop in at_stop:
                found.append((at_start[start], at_stop[stop] + 1, label))
                continue
            inside = [number for number in range(len(starts)) if starts[number] < stop and stops[number] > start]
            if not widen or not inside:
                raise _misaligned(text, start, stop, label, [(starts[n], stops[n]) for n in inside], place)
            found.append((inside[0], inside[-1] + 1, label))
            widened += 1
        _refuse_overlaps(found, place, "words")
        rows.append(tuple(tags_of(found, len(starts))))
        places.append(words)
    count = len(rows)
    notes = (f"{widened} spans were stretched to whole words",) if widened else ()
    numbers = tuple(range(count))
    return Sentences(tuple(texts), tuple(places), tuple(rows), numbers, tuple(where), "IOB2", notes, spanned=True)


def character_spans(sentences: Sentences, index: int, tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return what tags of a sentence's words label: first character, the one after the last, label."""
    places = sentences.places[index]
    return [(int(places[start, 0]), int(places[stop - 1, 1]), label) for start, stop, label in spans_of(tags)]


def words_of(text: str) -> npt.NDArray[np.int32]:
    """Return the places of a text's words, int32 [W, 2]: runs of letters, marks and digits, or one other character."""
    import numpy as np

    found = [match.span() for match in _word_pattern().finditer(text)]
    return np.asarray(found, np.int32).reshape(-1, 2)


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """Python's own \\w has no combining marks, so it would part words of Hindi, and of accents written as two."""
    marks: list[list[int]] = []
    for code in range(0x300, 0x20000):
        if unicodedata.category(chr(code))[0] == "M":
            if marks and marks[-1][1] == code - 1:
                marks[-1][1] = code
            else:
                marks.append([code, code])
    letter = r"\w" + "".join(f"{chr(first)}-{chr(last)}" for first, last in marks)
    return re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[{letter}])+|[^\s]")


def _spans(row: Any, text: str, place: str) -> list[tuple[int, int, str]]:
    if row is None:
        return []
    if not isinstance(row, list | tuple):
        what = f"a value of type {type(row).__name__}"
        raise DataError(f"{place}: the spans are {what}, expected a list of spans", quote=repr(row))
    found = []
    for span in row:
        start, stop, label = _fields(span, place)
        if not 0 <= start < stop <= len(text):
            raise DataError(
                f"{place}: span {start} to {stop} ({label[:80]!r}) lies not inside the text of {len(text)} characters; "
                f"expected 0 <= start < end <= {len(text)}"
            )
        found.append((start, stop, label))
    _refuse_overlaps(found, place, "characters")
    return sorted(found)


def _fields(span: Any, place: str) -> tuple[int, int, str]:
    values: list[Any] = []
    if isinstance(span, Mapping):
        values = [span.get(name) for name in ("start", "end", "label")]
    elif isinstance(span, list | tuple):
        values = list(span)
    # A column of numbers is one of decimals where a single one of them is.
    values[:2] = [int(each) if isinstance(each, float) and each.is_integer() else each for each in values[:2]]
    # A boolean is an int to Python, not to whoever wrote the file.
    if [type(value) for value in values] == [int, int, str] and values[2].strip():
        return values[0], values[1], values[2].strip()
    raise DataError(
        f'{place}: a span is not {{"start": 0, "end": 5, "label": "PER"}} or [0, 5, "PER"]; expected whole numbers and '
        "a label",
        quote=repr(span),
    )


def _refuse_overlaps(spans: Sequence[tuple[int, int, str]], place: str, unit: str) -> None:
    ordered = sorted(spans)
    for (start, stop, label), (other, end, second) in pairwise(ordered):
        if other < stop:
            raise DataError(
                f"{place}: span {start} to {stop} ({label[:40]!r}) and span {other} to {end} ({second[:40]!r}) overlap "
                f"(in {unit}); a word can have one label only; keep one of the two"
            )


def _misaligned(
    text: str, start: int, stop: int, label: str, inside: Sequence[tuple[int, int]], place: str
) -> DataError:
    said = f"{place}: span {start} to {stop} ({label[:40]!r})"
    if not inside:
        return DataError(f"{said} covers white space only; expected at least one word")
    first, last = inside[0][0], inside[-1][1]
    return DataError(
        f"{said} does not begin and end with a word; whole words are {first} to {last}; mend the span",
        quote=f"{text[start:stop][:30]!r}, whole words {text[first:last][:30]!r}",
    )
