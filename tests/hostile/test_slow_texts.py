"""Texts made to keep patterns busy: each step that reads texts must stay proportional to their length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attacks import Attack

LONG = 50_000


def personal(text: str) -> Any:
    from finesmith.data.personal import redact

    return redact(text)


def html(text: str) -> Any:
    from finesmith.data.clean import has_html, strip_html

    return has_html(text), strip_html(text)


def cleaned(text: str) -> Any:
    from finesmith.data.clean import Cleaning, broken_encoding, clean

    return broken_encoding(text), clean([text], Cleaning(unicode=True, whitespace=True, encoding=True))


STEPS: dict[str, Callable[[str], Any]] = {"personal data": personal, "html": html, "cleaning": cleaned}

TEXTS = {
    "letters": "a", "capitals": "A", "digits": "1", "spaces": " ", "lines": "\n", "at": "@", "dots": ".", "a.": "a.",
    "a@": "a@", "a@a.": "a@a.", "numbers apart": "1 ", "dashes": "1-", "brackets": "(1)", "plus": "+1", "colons": "1:",
    "www": "www.", "http": "http://", "name": "A. ", "Name": "Aa Bb-", "street": "1 A Street, ", "room": "Apt 1, ",
    "may": "May 1, ", "iban": "DE89 ", "less": "<", "tag": "<a ", "attribute": "<a b=", "comment": "<!--", "end": "</a",
    "amp": "&", "amp;": "&amp;", "entity": "&#1", "script": "<script>", "quotes": "<a b='", "combining": "\u0301",
    "joiner": "\u200d", "mojibake": "Ã©", "mojibake twice": "Ãƒ", "surrogate": "\ud800", "ideographs": "漢",
    "right to left": "\u202e", "hangul": "\u1100\u1161\u11a8", "unit": "\x1f", "dear": "Dear Aa ", "corner": "corner of A ",  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("step", list(STEPS))
@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_that_repeats(step: str, name: str, attack: Attack) -> None:
    text = (TEXTS[name] * LONG)[:LONG]
    with attack.watched(seconds=6, megabytes=300):
        STEPS[step](text + "!")


def test_many_nearly_equal_texts(attack: Attack) -> None:
    from finesmith.data.near_duplicates import cluster

    texts = [f"{'the film was really good ' * 20}{i}" for i in range(600)]
    with attack.watched(megabytes=600):
        cluster(texts)


def test_long_texts_that_are_nearly_equal(attack: Attack) -> None:
    from finesmith.data.near_duplicates import cluster

    texts = [("ab" * 50_000) + str(i) for i in range(8)] + ["a " * 50_000 + str(i) for i in range(8)]
    with attack.watched(megabytes=600):
        cluster(texts)
