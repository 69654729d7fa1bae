"""Name the language of a text, offline, with the byte n-gram model that ships inside py3langid (Lui & Baldwin 2011)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
BLOCK = 4096

_NOISE = re.compile(r"https?://\S{1,500}|www\.\S{1,500}|[\w.+-]{1,64}@[\w.-]{1,255}|[@#]\w{1,100}|[\d\W_]{2,}")


def detect(text: str) -> str | None:
    """Return the ISO 639-1 code of the text's language, or None when it is too short or uncertain.

    Only the first 400 characters are read. A text needs about 12 letters of an alphabet, or 4 of a script in which a
    character says more (Chinese, Japanese, Korean, Thai and their like), and a likelihood of 0.4 (0.8 for
    a small language beside a big relative) against the 70-odd
    `LANGUAGES`. Close relatives (Serbian and Croatian, Indonesian and Malay) are told apart less surely.
    """
    return detect_many([text])[0]


def detect_many(texts: Iterable[str]) -> list[str | None]:
    """Return the language of each text as an ISO 639-1 code, or None where it is too short or uncertain."""
    spelled = [_bytes(text) for text in texts]
    found: list[str | None] = [None] * len(spelled)
    told = sorted((row for row, content in enumerate(spelled) if content), key=lambda row: -len(spelled[row]))
    for start in range(0, len(told), BLOCK):
        rows = told[start : start + BLOCK]
        for row, language in zip(rows, _model().languages([spelled[row] for row in rows]), strict=True):
            found[row] = language
    return found


def _bytes(text: str) -> bytes:
    """Return what the model reads of a text; nothing where it is too short."""
    words = _NOISE.sub(" ", text[:LONGEST]).strip()
    letters = len(words) - words.count(" ")
    if letters < FEWEST_LETTERS and (letters < FEWEST_WIDE_LETTERS or max(words) < "\u0e00"):
        return b""
    if words.isupper():
        words = words.lower()
    return unicodedata.normalize("NFC", words).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class _Model:
    """The model as arrays: an automaton over bytes whose states stand for n-grams, and naive Bayes over these.

    moves: the next state at `bases[state] + byte`; grams: int [S], the n-gram that a state completes, or -1;
    weights: [n-grams, languages]; prior: [languages]; twins: columns that are one language (first, other).
    """

    moves: npt.NDArray[np.unsignedinteger]
    bases: npt.NDArray[np.int64]
    grams: npt.NDArray[np.int64]
    weights: npt.NDArray[np.floating]
    prior: npt.NDArray[np.float32]
    names: tuple[str, ...]
    twins: tuple[tuple[int, int], ...]

    def languages(self, contents: Sequence[bytes]) -> list[str | None]:
        """Name the language of each content (none empty, longest first), or None where it is uncertain."""
        import numpy as np

        scores = self._scores(contents) / np.sqrt([[len(content)] for content in contents])
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        for first, other in self.twins:
            scores[:, first] += scores[:, other]
            scores[:, other] = 0
        named = [self.names[column] for column in scores.argmax(axis=1).tolist()]
        return [
            name if confidence >= SURER.get(name, CONFIDENCE) and name != NOT_A_LANGUAGE else None
            for name, confidence in zip(named, scores.max(axis=1).tolist(), strict=True)
        ]

    def _scores(self, contents: Sequence[bytes]) -> npt.NDArray[np.float64]:
        """Return the log-likelihoods, float64 [N, languages]: all texts walk the automaton side by side."""
        import numpy as np
        from scipy.sparse import csr_matrix

        lengths = np.array([len(content) for content in contents])
        letters = np.zeros((len(contents), int(lengths[0])), np.uint8)
        letters[np.arange(letters.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(contents), np.uint8)
        going = np.searchsorted(-lengths, -np.arange(letters.shape[1]), side="left")
        states = np.zeros(len(contents), np.int64)
        codes = []
        for place, count in enumerate(going.tolist()):
            states = self.moves[self.bases[states[:count]] + letters[:count, place]]
            grams = self.grams[states]
            seen = np.flatnonzero(grams >= 0)
            codes.append(seen * len(self.weights) + grams[seen])
        pairs, counts = np.unique(np.concatenate(codes), return_counts=True)
        rows, grams = np.divmod(pairs, len(self.weights))
        known, columns = np.unique(grams, return_inverse=True)
        visits = csr_matrix((np.log1p(counts), (rows, columns)), shape=(len(contents), len(known)))
        likelihood = visits @ self.weights[known].astype(np.float64)
        # Where no n-gram is known every language is as likely.
        likelihood[np.diff(visits.indptr) > 0] += self.prior
        return np.asarray(likelihood)


@cache
def _model() -> _Model:
    """Load the model once (about a second)."""
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([*LANGUAGES, NOT_A_LANGUAGE])
    names = list(identifier.nb_classes)
    return _Model(
        np.asarray(identifier.tk_nextmove),
        np.asarray(identifier.tk_row, np.int64) << 8,
        np.asarray(identifier.tk_output, np.int64),
        np.ascontiguousarray(identifier.nb_ptc),  # choosing columns left it slow to read by row
        np.asarray(identifier.nb_pc),
        tuple(names),
        tuple((names.index(name), column) for column, name in enumerate(names) if names.index(name) < column),
    )
