"""Name the language of a text, offline, with the byte n-gram model that ships inside py3langid (Lui & Baldwin 2011)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

# The model knows 139 languages. Small neighbours of big ones (Aragonese and Extremaduran beside Spanish, Nigerian
# Pidgin beside English) draw short texts away from the language they are in, so only these are weighed.
LANGUAGES = (  # noqa: SIM905
    "af am ar az be bg bn ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn"
    " ko lo lt lv mk ml mn mr ms mt my ne nl no pa pl pt ro ru si sk sl so sq sr sv sw ta te th tl tr uk ur uz vi zh"
).split()
"""The ISO 639-1 codes that `detect` may return."""

NOT_A_LANGUAGE = "zxx"
CONFIDENCE = 0.4
# Small neighbours that are kept need more: a doubtful short text is likelier to be in the big language.
SURER = dict.fromkeys(("af", "ca", "eu", "ga", "gl", "mk", "ms", "mt", "so", "sq", "sw", "tl", "uz"), 0.8)
LONGEST = 400
FEWEST_LETTERS = 12
FEWEST_WIDE_LETTERS = 4

_NOISE = re.compile(r"https?://\S{1,500}|www\.\S{1,500}|[\w.+-]{1,64}@[\w.-]{1,255}|[@#]\w{1,100}|[\d\W_]{2,}")


def detect(text: str) -> str | None:
    """Return the ISO 639-1 code of the text's language, or None when it is too short or uncertain.

    Only the first 400 characters are read. A text needs about 12 letters of an alphabet, or 4 of a script in which a
    character says more (Chinese, Japanese, Korean, Thai and their like), and a likelihood of 0.4 (0.8 for
    a small language beside a big relative) against the 70-odd
    `LANGUAGES`. Close relatives (Serbian and Croatian, Indonesian and Malay) are told apart less surely.
    """
    words = _NOISE.sub(" ", text[:LONGEST]).strip()
    letters = len(words) - words.count(" ")
    if letters < FEWEST_LETTERS and (letters < FEWEST_WIDE_LETTERS or max(words) < "\u0e00"):
        return None
    language, confidence = _model()(words)
    return language if confidence >= SURER.get(language, CONFIDENCE) and language != NOT_A_LANGUAGE else None


def detect_many(texts: Iterable[str]) -> list[str | None]:
    """Return the language of each text as an ISO 639-1 code, or None where it is too short or uncertain."""
    return [detect(text) for text in texts]


@cache
def _model() -> Callable[[str], tuple[str, float]]:
    """Load the model once (about a second)."""
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*LANGUAGES, NOT_A_LANGUAGE])
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc)  # choosing columns left it slow to read by row
    classify: Callable[[str], tuple[str, float]] = identifier.classify
    return classify
