"""Clean text: broken encodings, HTML, Unicode, white space, personal data, lemmas. Every step run twice equals once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from finesmith.data import personal
from finesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Which cleaning steps to run; `lemmatise` is the language's code, such as `en`, or None."""

    unicode: bool = False
    whitespace: bool = False
    html: bool = False
    encoding: bool = False
    lemmatise: str | None = None
    redact: bool = False


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The cleaned texts in their order, and for each step that ran, in the order it ran, how many texts it changed."""

    texts: list[str]
    changed: dict[str, int]


def broken_encoding(text: str) -> bool:
    """Tell whether text was decoded with the wrong encoding (`cafÃ©`) or has lost characters (U+FFFD)."""
    if text.isascii():
        return False
    if "\ufffd" in text:
        return True
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    return is_bad(text) and fix_encoding(text) != text


def has_html(text: str) -> bool:
    """Tell whether text holds an HTML tag, a comment or an entity that ends in a semicolon.

    `a < b`, `<3`, `AT&T` and names that HTML does not have, such as `<unk>`, are none.
    """
    if "<" in text and next(_tags(text), None) is not None:
        return True
    return "&" in text and any(_known(match[0]) for match in _ENTITY.finditer(text))


def clean(texts: Iterable[str], cleaning: Cleaning) -> Cleaned:
    """Run the chosen steps over every text and count what each changed.

    The order is fixed: encoding (repair what was decoded wrongly), html (tags go, entities are decoded), unicode
    (NFC, no control or zero-width characters, lone surrogates become U+FFFD), whitespace (each run becomes one space,
    or one line break where it held one), redact (personal data become `[EMAIL]` and their like), lemmatise (words
    become their dictionary form; punctuation and capitals stay).

    Raises:
        UserError: lemmatisation is asked for and simplemma is absent or does not know the language.
    """
    steps: dict[str, Callable[[str], str]] = {}
    if cleaning.encoding:
        steps["encoding"] = _repair
    if cleaning.html:
        steps["html"] = strip_html
    if cleaning.unicode:
        steps["unicode"] = _normalise
    if cleaning.whitespace:
        steps["whitespace"] = _collapse
    if cleaning.redact:
        steps["redact"] = personal.redact
    if cleaning.lemmatise is not None:
        steps["lemmatise"] = _lemmatiser(cleaning.lemmatise)
    changed = dict.fromkeys(steps, 0)
    cleaned = []
    for text in texts:
        for name, step in steps.items():
            before, text = text, step(text)
            changed[name] += text != before
        cleaned.append(text)
    return Cleaned(cleaned, changed)


# --- encoding --------------------------------------------------------------------------------------------------------


def _repair(text: str) -> str:
    if text.isascii():
        return text
    from ftfy import fix_encoding

    while (repaired := str(fix_encoding(text))) != text:
        text = repaired
    return text


# --- HTML ------------------------------------------------------------------------------------------------------------

_BLOCKS = frozenset(
    (  # noqa: SIM905
        "address article aside blockquote body br button caption center dd div dl dt fieldset figcaption figure footer"
        " form h1 h2 h3 h4 h5 h6 head header hr html iframe img input label legend li link main meta nav noscript"
        " object ol optgroup option p pre script section select style svg table tbody td textarea tfoot th thead"
        " title tr ul video"
    ).split()
)
_INLINES = frozenset(
    (  # noqa: SIM905
        "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd mark nobr q s samp small span strike"
        " strong sub sup time tt u var wbr"
    ).split()
)
_UNREAD = frozenset({"script", "style"})
_NAMES = _BLOCKS | _INLINES
_ASSIGNED = r"""[a-z_:@][\w:.-]*+\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`]++)"""
# Possessive quantifiers, and no "<" inside a tag, keep this linear.
_TAG = re.compile(
    r"<(?:!--|!doctype\b[^<>]*+>|/(?P<closed>[a-z][a-z0-9]{0,11}+)\s*+>"
    rf"|(?P<opened>[a-z][a-z0-9]{{0,11}}+)(?:\s++(?:{_ASSIGNED}|(?P<bare>[a-z_:@][\w:.-]*+(?!\s*=))))*+\s*+/?>)",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
_AMPERSANDS = re.compile(r"&(?:(?:amp|#0{0,4}38|#x0{0,4}26);)+", re.IGNORECASE)
_PASSES = 8


def strip_html(text: str) -> str:
    """Return the text that a reader of the HTML sees: no tags, comments, scripts or styles, entities decoded.

    A block's tag becomes a blank. Text that was escaped twice is decoded twice, until nothing is left to strip.
    """
    for _ in range(_PASSES):
        if "<" not in text and "&" not in text:
            return text
        before, text = text, _ENTITY.sub(_decode, _AMPERSANDS.sub("&", _strip_tags(text)))
        if text == before:
            return text
    # nested deeper than anyone writes: what could still become a tag or an entity goes
    return text.replace("<", " ").replace("&", " ") if has_html(text) or _AMPERSANDS.search(text) else text


def _tags(text: str) -> Iterator[tuple[re.Match[str], str, str]]:
    """Yield each tag or comment's beginning with the name that it opens and the name that it closes."""
    for match in _TAG.finditer(text):
        opened, closed = (match["opened"] or "").lower(), (match["closed"] or "").lower()
        if (opened or closed) and (opened or closed) not in _NAMES:
            continue
        if len(opened) == 1 and match["bare"]:  # "if a <b and c> d"
            continue
        yield match, opened, closed


def _strip_tags(text: str) -> str:
    pieces: list[str] = []
    end, unread, comments_close = 0, "", True
    for match, opened, closed in _tags(text):
        if match.start() < end:  # inside a comment
            continue
        if unread:
            if closed == unread:
                unread, end = "", match.end()
            continue
        pieces.append(text[end : match.start()])
        end = match.end()
        if opened in _BLOCKS or closed in _BLOCKS:
            pieces.append(" ")
        if match[0] == "<!--" and comments_close:
            stop = text.find("-->", end)
            comments_close = stop >= 0
            end = stop + 3 if comments_close else end
        if opened in _UNREAD and not match[0].endswith("/>"):
            unread = opened
    return "".join([*pieces, "" if unread else text[end:]])


def _known(entity: str) -> bool:
    from html.entities import html5

    return entity[1] == "#" or entity[1:] in html5


def _decode(match: re.Match[str]) -> str:
    from html import unescape

    return unescape(match[0]) if _known(match[0]) else match[0]


# --- Unicode and white space -----------------------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+"
)
_BREAKS = {**dict.fromkeys((0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029), "\n"), 0x1F: " "}
# Joiners shape words in Persian and Indic scripts and hold emoji together; beside Latin letters they are dirt.
_JOINER = re.compile("(?<![^\x00-\u024f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\u024f])")
_RUN = re.compile(r"\s+")


def _normalise(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    while True:
        before = text
        text = _JOINER.sub("", _INVISIBLE.sub("", unicodedata.normalize("NFC", text.translate(_BREAKS))))
        if text == before:
            return text


def _collapse(text: str) -> str:
    return _RUN.sub(lambda run: "\n" if _breaks(run[0]) else " ", text.strip())


def _breaks(run: str) -> bool:
    return "\n" in run or "\r" in run


# --- lemmas ----------------------------------------------------------------------------------------------------------


@cache
def _lemmatiser(language: str) -> Callable[[str], str]:
    try:
        import simplemma
    except ImportError:
        raise UserError(
            "lemmatisation needs the package simplemma, which is not installed; run: pip install 'finesmith[lemmas]'"
        ) from None
    try:
        simplemma.lemmatize("a", lang=language)
    except ValueError:
        raise UserError(
            f"lemmatise is {language[:80]!r}, expected the two-letter code of a language that simplemma knows,"
            " such as en, es, fr, de, it, pt or nl"
        ) from None

    @lru_cache(maxsize=200_000)
    def lemma(word: str) -> str:
        """Follow dictionary forms until they repeat, and take the alphabetically first of those that do."""
        chain = [word.lower()]
        while (form := simplemma.lemmatize(chain[-1], lang=language).lower()) not in chain:
            if not _WORD.fullmatch(form):
                return word
            chain.append(form)
        form = min(chain[chain.index(form) :])
        if form == word.lower():
            return word
        if word.isupper() and len(word) > 1:
            return form.upper()
        return form.capitalize() if word[0].isupper() else form

    return lambda text: _WORD.sub(lambda match: lemma(match[0]), text)


_WORD = re.compile(r"(?<![\w'’\[])[^\W\d_]{1,60}(?![\w'’\]])")
