"""Raw text as documents: from files and folders of text or rows of a table, and split so that none straddles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data import folders
from finesmith.data.decode import decode, load_bytes
from finesmith.errors import DataError
from finesmith.types import Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

BLANK_LINE = "\n\n"
# An engine needs some hundred bytes for each piece of the text it is given.
MAX_DOCUMENT_CHARACTERS = 10_000_000
FEWEST_UNITS = 3


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents in order: their texts and places ("notes.txt document 3"), how many were blank and left out, and in
    which encodings their files were.
    """

    texts: tuple[str, ...]
    where: tuple[str, ...]
    blank: int = 0
    encodings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def bytes(self) -> Ints:
        """Return the size of each document in UTF-8, int64 [N]: what bits per byte are divided by."""
        import numpy as np

        return np.fromiter((len(text.encode("utf-8", "surrogatepass")) for text in self.texts), np.int64, len(self))

    def take(self, positions: Sequence[int] | Ints) -> Documents:
        """Return the documents at `positions`, in that order."""
        order = [int(position) for position in positions]
        return Documents(tuple(self.texts[p] for p in order), tuple(self.where[p] for p in order))


def read_documents(
    sources: Sequence[str], *, separator: str | None = None, encoding: str | None = None
) -> tuple[Documents, tuple[str, ...]]:
    """Read text files (.txt, .md, .text, each also .gz) and folders of them, and return documents and notes.

    A file is one document, or several where `separator` stands between them. A separator of n line ends means n - 1
    blank lines or more (`BLANK_LINE`: at least one). A folder is walked whole, in the order of names; files that tell
    of the data (README, LICENSE, SOURCE and their like) are no documents.

    Raises:
        DataError: a source is missing or unreadable, a folder has no text files, or nothing but white space was found.
    """
    if not sources:
        raise DataError("no data given; name a text file or a folder of them")
    if separator == "":
        raise DataError("the separator of documents is empty; expected a text such as '\\n\\n', or none")
    texts: list[str] = []
    where: list[str] = []
    notes: list[str] = []
    encodings: set[str] = set()
    seen: set[Path] = set()
    for source in sources:
        folders.refuse_orders(source, source)
        for path in _files(Path(source), source):
            if (real := path.resolve()) in seen:
                raise DataError(f"{path} is given twice; every document of it would count double")
            seen.add(real)
            decoded = decode(load_bytes(path, str(path)), str(path), encoding)
            notes += [f"{path}: {note}" for note in decoded.notes]
            encodings.add(decoded.encoding)
            parts = _parted(decoded.text, separator)
            texts += parts
            where += [f"{path} document {number}" for number in range(1, len(parts) + 1)] if separator else [str(path)]
    return replace(documents_of(texts, where), encodings=tuple(sorted(encodings))), tuple(notes)


def documents_of(texts: Sequence[Any], where: Sequence[str]) -> Documents:
    """Take the texts of a column, one document a row; blank and missing ones are left out and counted.

    Raises:
        DataError: a value is no text or too long, or none is left.
    """
    kept: list[str] = []
    places: list[str] = []
    for text, place in zip(texts, where, strict=True):
        if text is None:
            continue
        if not isinstance(text, str):
            what = f"a value of type {type(text).__name__}"
            raise DataError(f"{place}: the text is {what}; expected a text", quote=repr(text))
        if len(text) > MAX_DOCUMENT_CHARACTERS:
            raise DataError(
                f"{place}: a document of {len(text):,} characters, more than the {MAX_DOCUMENT_CHARACTERS:,} one may "
                "have; say what stands between the documents (blank lines, say), or part the file"
            )
        if text.strip():
            kept.append(text)
            places.append(place)
    if not kept:
        first = f"{where[0]}: " if where else ""
        raise DataError(f"{first}none of the {len(texts)} documents here holds any text; expected at least one")
    return Documents(tuple(kept), tuple(places), len(texts) - len(kept))


def split_documents(
    texts: Sequence[str],
    *,
    units: Ints,
    validation: float,
    test: float,
    seed: int,
    sizes: Sequence[int] | None = None,
) -> tuple[Split, ...]:
    """Give every document a split; shares are of characters, not of documents, for a book counts more than a note.

    `sizes` says what else each counts: 1, say, where the texts are sentences. `units` int64 [N]: documents with the
    same number (copies, say) stay together. The order is that of a hash of each unit's texts, laid out as test,
    validation, train, so that the order of the files does not matter.

    Raises:
        DataError: shares that leave nothing to train on, or fewer than three units.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise DataError(
            f"the validation share is {validation:g} and the test share {test:g}; expected shares of at least 0 that "
            "leave a part for train, such as 0.1 and 0.1"
        )
    members: dict[int, list[int]] = {}
    for document, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(document)
    asked: list[tuple[Split, float]] = [("test", test), ("validation", validation)]
    if len(members) < FEWEST_UNITS and (test or validation):
        raise DataError(
            f"{len(texts)} documents make {len(members)} that are no copies of each other; a split that no document "
            f"straddles needs {FEWEST_UNITS}: part the text at blank lines (or by data.document_separator), or give a "
            "file for each split"
        )
    salt = str(seed).encode()
    hashes = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=salt).digest() for text in texts]
    left = sorted(members.values(), key=lambda unit: min(hashes[document] for document in unit))
    counted = list(map(len, texts)) if sizes is None else sizes
    total = sum(counted)
    split: list[Split] = ["train"] * len(texts)
    for name, share in asked:
        if not share:
            continue
        have = 0
        chosen: list[list[int]] = []
        for unit in left:
            size = sum(counted[document] for document in unit)
            # Two units stay, for validation and train; a unit goes where it brings the share nearer.
            if len(left) - len(chosen) > (2 if name == "test" else 1) and size < 2 * (share * total - have):
                chosen.append(unit)
                have += size
        if not chosen:
            chosen = [min(left, key=lambda unit: sum(counted[document] for document in unit))]
        for document in (document for unit in chosen for document in unit):
            split[document] = name
        left = [unit for unit in left if unit not in chosen]
    return tuple(split)


def _files(path: Path, name: str) -> list[Path]:
    if not folders.exists(path, name):
        raise DataError(folders.missing(path, name))
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{name} is not an ordinary file; save the text as a file and name that")
        return [path]
    found = []
    home = path.resolve()
    for folder, inner, files in os.walk(path):
        inner[:] = sorted(each for each in inner if not each.startswith((".", "__")))
        for file in sorted(files):
            folders.refuse_orders(file, f"{folder}/{file}")
            each = Path(folder) / file
            if not file.startswith(".") and _is_text(each) and not folders._ASIDE.fullmatch(file):
                if not each.resolve().is_relative_to(home):
                    raise DataError(f"{each} is a link that leads out of {name}; if you trust it, name the file itself")
                found.append(each)
    if not found:
        raise DataError(f"{name} holds no text files; expected .txt, .text or .md, each also as .gz")
    return found


def _is_text(path: Path) -> bool:
    plain = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower() in (".txt", ".text", ".md") and path.is_file()


def _parted(text: str, separator: str | None) -> list[str]:
    if separator is None:
        return [text]
    if separator.strip("\n"):
        return text.split(separator)
    blank = max(len(separator) - 1, 0)
    return re.split(r"\r?\n" + rf"(?:[^\S\n]*\n){{{blank},}}", text)
