"""Tags of words: which scheme a file uses, the same in IOB2, and the spans that tags mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finesmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Scheme = Literal["plain", "IOB1", "IOB2", "IOBES"]
SCHEMES: tuple[Scheme, ...] = ("plain", "IOB1", "IOB2", "IOBES")
OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIESLUM])-(\S.*)")
# Letters of BILOU and of BMES for the same places.
_SAME = {"L": "E", "U": "S", "M": "I"}


@dataclass(frozen=True, slots=True)
class Sentences:
    """Sentences of words with a tag each.

    texts: each sentence as text; places: for each, int32 [W, 2], every word's first character and the one after;
    tags: for each, W tags, in IOB2 unless `scheme`, that of the file, is "plain" (every tag a class of its own, as for
    parts of speech). documents: the number of the document (from 0) that each belongs to. `where` names each sentence's
    place; notes say what was found and mended; encodings are those of the files; spanned: they were given as texts with
    spans of characters, or none, and not as words.
    """

    texts: tuple[str, ...]
    places: tuple[npt.NDArray[np.int32], ...]
    tags: tuple[tuple[str, ...], ...]
    documents: tuple[int, ...]
    where: tuple[str, ...]
    scheme: Scheme
    notes: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    spanned: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    def words(self, index: int) -> list[str]:
        """Return the words of one sentence."""
        return [self.texts[index][start:stop] for start, stop in self.places[index].tolist()]

    def spans(self) -> int:
        """Return the number of labelled spans, 0 for plain tags."""
        return 0 if self.scheme == "plain" else sum(len(spans_of(tags)) for tags in self.tags)


def normalised(
    tags: Sequence[Sequence[str]], where: Sequence[str], *, scheme: Scheme | None = None
) -> tuple[tuple[tuple[str, ...], ...], Scheme, tuple[str, ...]]:
    """Return the tags in IOB2 (plain tags as they are), the scheme they were in, found or given, and notes.

    A tag that cannot follow the one before it, such as I-PER after O in IOB2, begins a span, as conlleval has it.

    Raises:
        DataError: a tag is empty, or some tags have prefixes (B-, I-) and others, apart from O, have none.
    """
    found = _scheme_of(tags, where)
    if scheme is not None and (scheme == "plain") != (found == "plain"):
        odd = "have prefixes such as B-" if scheme == "plain" else "have no prefixes such as B-"
        raise DataError(f"{where[0] if where else 'the data'}: the tags {odd}, but the scheme given is {scheme}")
    scheme = scheme or found
    if scheme == "plain":
        return tuple(tuple(each) for each in tags), scheme, ()
    mended = 0
    rows = []
    for row in tags:
        iob2 = tuple(_iob2(row))
        mended += sum(_broken(row, scheme))
        rows.append(iob2)
    notes = [f"tags are in {scheme}" + ("" if scheme == "IOB2" else ", read as IOB2")]
    if mended:
        notes.append(f"{mended} tags cannot follow the tag before them in {scheme}; read as conlleval reads them")
    return tuple(rows), scheme, tuple(notes)


def spans_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the spans that IOB2 tags mean, in order: first word, the word after the last, label.

    As conlleval has it: B- begins a span, and so does I- after O, after another label or at the start.
    """
    spans: list[tuple[int, int, str]] = []
    begin, label = 0, ""
    for place, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and kind == label:
            continue
        if label:
            spans.append((begin, place, label))
        begin, label = place, "" if tag == OUTSIDE else kind
    return spans


def tags_of(spans: Sequence[tuple[int, int, str]], count: int) -> list[str]:
    """Return the IOB2 tags of `count` words: the inverse of `spans_of` for spans that do not overlap."""
    tags = [OUTSIDE] * count
    for start, stop, label in spans:
        tags[start:stop] = [f"B-{label}"] + [f"I-{label}"] * (stop - start - 1)
    return tags


def label_names(tags: Sequence[Sequence[str]], scheme: Scheme) -> tuple[str, ...]:
    """Return the classes of a head: O, then B- and I- of every label in the order of their names; or the plain tags."""
    if scheme == "plain":
        return tuple(sorted({tag for row in tags for tag in row}))
    labels = sorted({tag[2:] for row in tags for tag in row if tag != OUTSIDE})
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


def _scheme_of(tags: Sequence[Sequence[str]], where: Sequence[str]) -> Scheme:
    prefixed: tuple[str, str] | None = None
    bare: tuple[str, str] | None = None
    letters: Counter[str] = Counter()
    for row, place in zip(tags, where, strict=True):
        for tag in row:
            if not tag:
                raise DataError(f"{place}: a word has an empty tag; expected O, or a tag such as B-PER")
            match = _PREFIXED.fullmatch(tag)
            if match:
                prefixed = prefixed or (tag, place)
                letters[match[1]] += 1
            elif tag != OUTSIDE:
                bare = bare or (tag, place)
    if prefixed and bare:
        raise DataError(
            f"{bare[1]}: tag {bare[0][:80]!r} is neither O nor has a prefix, unlike {prefixed[0][:80]!r} "
            f"({prefixed[1]}); expected B-, I- (or E-, S-) before every label"
        )
    if not prefixed:
        # O alone: nothing is labelled, which a file of unlabelled or all-negative sentences may well be.
        return "plain" if bare else "IOB2"
    if letters.keys() & {"E", "S", "L", "U"}:
        return "IOBES"
    inside, lone = 0, 0
    for row in tags:
        for before, tag in _pairs(row):
            if tag != OUTSIDE and before[2:] != tag[2:]:
                inside += tag[0] != "B"
                lone += tag[0] == "B"
    # IOB1 writes B- only where a span touches one of the same label.
    return "IOB1" if inside and not lone else "IOB2"


def _pairs(row: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip((OUTSIDE, *row), row, strict=False)


def _place(tag: str) -> str:
    return _SAME.get(tag[0], tag[0])


def _iob2(row: Sequence[str]) -> Iterator[str]:
    for before, tag in _pairs(row):
        if tag == OUTSIDE:
            yield tag
        else:
            begins = _place(tag) in "BS" or before == OUTSIDE or _place(before) in "ES" or before[2:] != tag[2:]
            yield f"{'B' if begins else 'I'}-{tag[2:]}"


def _broken(row: Sequence[str], scheme: Scheme) -> Iterator[bool]:
    """Say for every tag, and the end of the sentence, whether it cannot follow the one before."""
    for before, tag in _pairs((*row, OUTSIDE)):
        open_before = before != OUTSIDE and (scheme != "IOBES" or _place(before) in "BI")
        goes_on = open_before and tag != OUTSIDE and before[2:] == tag[2:]
        if scheme == "IOB1":
            yield tag[0] == "B" and not goes_on
        elif scheme == "IOB2":
            yield tag != OUTSIDE and tag[0] != "B" and not goes_on
        else:
            inner = tag != OUTSIDE and _place(tag) in "IE"
            yield (inner and not goes_on) or (open_before and not inner)
