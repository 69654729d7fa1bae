"""Tagged words from CoNLL columns, one word a line, and from rows with a list of words and a list of tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finesmith.data import folders
from finesmith.data.decode import decode, load_bytes
from finesmith.data.tags import OUTSIDE, Scheme, Sentences, normalised
from finesmith.errors import DataError

DOCUMENT_START = "-DOCSTART-"
_SPACES = re.compile(r"[ \t]+")


@dataclass(slots=True)
class _Found:
    """Sentences on their way: words, tags, place and document of each; notes; the encodings of their files."""

    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)

    def sentences(self, scheme: Scheme | None) -> Sentences:
        """Lay the words of each sentence out as a text, parted by spaces."""
        import numpy as np

        tags, found, notes = normalised(self.tags, self.where, scheme=scheme)
        places = []
        for words in self.words:
            sizes = np.fromiter(map(len, words), np.int32, len(words))
            stops = np.cumsum(sizes + 1, dtype=np.int32) - 1
            places.append(np.stack([stops - sizes, stops], axis=1))
        texts = tuple(" ".join(words) for words in self.words)
        return Sentences(
            texts, tuple(places), tags, tuple(self.documents), tuple(self.where), found, (*self.notes, *notes),
            tuple(self.encodings),
        )  # fmt: skip


def read_conll(
    sources: Sequence[str],
    *,
    word_column: int = 0,
    tag_column: int = -1,
    scheme: Scheme | None = None,
    encoding: str | None = None,
    labelled: bool = True,
) -> Sentences:
    """Read files with a word and its tag on each line and a blank line between sentences.

    Where they are not `labelled` only the words are read, the tags, where there are any, are not looked at, and every
    word is tagged O.

    Columns are parted by tabs where a file has any, else by spaces; they count from 0, or from the end below 0.
    A line -DOCSTART- (or `# newdoc`) begins a document; a file without such lines has one document a sentence. Lines
    that begin with "# " and have no other column are comments. The tags' scheme is found, or `scheme`.

    Raises:
        DataError: a file is missing or unreadable, has no sentences, or a line lacks a word or a tag.
    """
    found = _Found()
    for source in sources:
        folders.refuse_orders(source, source)
        path = Path(source)
        if not folders.exists(path, source):
            raise DataError(folders.missing(path, source))
        if not path.is_file():
            raise DataError(f"{source} is not an ordinary file; name a file with a word and its tag on each line")
        decoded = decode(load_bytes(path, source), source, encoding)
        found.notes += [f"{source}: {note}" for note in decoded.notes]
        found.encodings.append(decoded.encoding)
        _add_file(decoded.text, source, word_column, tag_column if labelled else None, found)
    return found.sentences(scheme)


def sentences_of_lists(
    words: Sequence[Any],
    tags: Sequence[Any],
    where: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    scheme: Scheme | None = None,
) -> Sentences:
    """Take rows with a list of words and a list of tags; tags that are numbers are positions in `names`.

    Raises:
        DataError: a value is no list, the lists differ in length or are empty, a word or a tag is none.
    """
    found = _Found()
    for number, (row_words, row_tags, place) in enumerate(zip(words, tags, where, strict=True)):
        for name, row in (("words", row_words), ("tags", row_tags)):
            if not isinstance(row, list | tuple) or not row:
                what = "an empty list" if isinstance(row, list | tuple) else f"a value of type {type(row).__name__}"
                raise DataError(
                    f"{place}: the {name} are {what}, expected a list with at least one of them", quote=repr(row)
                )
        if len(row_words) != len(row_tags):
            raise DataError(f"{place}: {len(row_words)} words but {len(row_tags)} tags; expected a tag for every word")
        for word in row_words:
            if not isinstance(word, str) or not word:
                what = "empty" if word == "" else f"a value of type {type(word).__name__}"
                raise DataError(f"{place}: a word is {what}, expected a text", quote=repr(word))
        found.words.append(list(row_words))
        found.tags.append([_tag(tag, names, place) for tag in row_tags])
        found.where.append(place)
        found.documents.append(number)
    return found.sentences(scheme)


def _tag(tag: Any, names: Sequence[str] | None, place: str) -> str:
    if isinstance(tag, str):
        return tag.strip()
    if isinstance(tag, bool) or not isinstance(tag, int):
        what = f"a value of type {type(tag).__name__}"
        raise DataError(f"{place}: a tag is {what}, expected a text such as B-PER", quote=repr(tag))
    if names is None:
        raise DataError(f"{place}: a tag is the number {tag}, and no names are given; write the tags' names")
    if not 0 <= tag < len(names):
        raise DataError(f"{place}: a tag is the number {tag}, expected 0 to {len(names) - 1}: {len(names)} are named")
    return names[tag]


def _add_file(text: str, name: str, word_column: int, tag_column: int | None, found: _Found) -> None:
    lines = text.split("\n" if "\n" in text else "\r")
    tabbed = any("\t" in line for line in lines)
    width = 0
    first_sentence = len(found.words)
    document = (found.documents[-1] + 1) if found.documents else 0
    bounded = comments = False
    words: list[str] = []
    tags: list[str] = []
    start = 0
    for number, fields in _fields(lines, tabbed):
        if fields is None or (starts := _starts_document(fields)) or _is_comment(fields):
            _close(found, words, tags, f"{name} line {start}", document)
            words, tags = [], []
            if fields is not None and starts:
                document += found.documents[first_sentence:].count(document) > 0
                bounded = True
            comments = comments or (fields is not None and not starts)
            continue
        place = f"{name} line {number}"
        width = width or len(fields)
        start = start if words else number
        if tag_column is None:
            words.append(_word(fields, word_column, place))
            tags.append(OUTSIDE)
            continue
        _check(fields, width, word_column, tag_column, place, tabbed)
        words.append(fields[word_column])
        tags.append(fields[tag_column].strip())
    _close(found, words, tags, f"{name} line {start}", document)
    if len(found.words) == first_sentence:
        raise DataError(f"{name} holds no sentences; expected a word and its tag on each line")
    if not bounded:
        count = len(found.words) - first_sentence
        found.documents[first_sentence:] = range(document, document + count)
    if comments:
        found.notes.append(f"{name}: lines that begin with '# ' are comments")


def _fields(lines: Sequence[str], tabbed: bool) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each line's number from 1 and its columns, None for a blank line."""
    for number, line in enumerate(lines, 1):
        bare = line.rstrip("\r")
        if not bare.strip():
            yield number, None
        elif tabbed:
            yield number, bare.split("\t")
        else:
            yield number, _SPACES.split(bare.strip(" "))


def _starts_document(fields: list[str]) -> bool:
    return fields[0].startswith(DOCUMENT_START) or " ".join(fields).startswith("# newdoc")


def _is_comment(fields: list[str]) -> bool:
    # In a file parted by spaces "# O" is a word and its tag.
    return len(fields) == 1 and fields[0].startswith("# ")


def _word(fields: list[str], column: int, place: str) -> str:
    if not -len(fields) <= column < len(fields) or not fields[column].strip():
        raise DataError(f"{place}: column {column} holds no word; mend the line", quote=repr(" ".join(fields)[:80]))
    return fields[column]


def _close(found: _Found, words: list[str], tags: list[str], place: str, document: int) -> None:
    if words:
        found.words.append(words)
        found.tags.append(tags)
        found.where.append(place)
        found.documents.append(document)


def _check(fields: list[str], width: int, word_column: int, tag_column: int, place: str, tabbed: bool) -> None:
    shown = repr(" ".join(fields)[:80])
    parted = "tabs" if tabbed else "spaces"
    if len(fields) < 2:
        raise DataError(f"{place}: one column only (parted by {parted}); expected a word and its tag", quote=shown)
    if len(fields) != width:
        raise DataError(
            f"{place}: {len(fields)} columns (parted by {parted}), but {width} in the lines before; expected as many "
            "in every line; mend the line",
            quote=shown,
        )
    for role, column in (("word", word_column), ("tag", tag_column)):
        if not -width <= column < width:
            raise DataError(f"{place}: the {role} is in column {column}, but there are {width}, from 0 to {width - 1}")
        if not fields[column].strip():
            raise DataError(f"{place}: the {role} is empty; expected a word and its tag; mend the line", quote=shown)
    if word_column % width == tag_column % width:
        raise DataError(f"{place}: word and tag are both in column {word_column % width}; expected two columns")
