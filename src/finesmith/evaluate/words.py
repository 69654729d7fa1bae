"""Words of any language, as overlap metrics count them."""

from __future__ import annotations

from functools import cache
from typing import Any


def words(text: str) -> list[str]:
    """Split lower-cased text into runs of letters, digits and the marks upon them; punctuation is dropped.

    For ASCII text these are the tokens of the original ROUGE. Scripts that put no spaces between words (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese) give one token a character, with its marks.
    """
    import unicodedata

    found: list[str] = _pattern().findall(unicodedata.normalize("NFC", text).lower())
    return found


@cache
def _pattern() -> Any:
    import regex

    scripts = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
    unspaced = "".join(rf"\p{{{script}}}" for script in scripts)
    return regex.compile(rf"(?V1)[[{unspaced}]&&\p{{L}}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[[{unspaced}]&&\p{{L}}]]+")
