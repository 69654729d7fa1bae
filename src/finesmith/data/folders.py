"""Look at paths: which format a file has, what a folder holds, which file was probably meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finesmith.errors import DataError
from finesmith.types import SPLITS, Split

KNOWN_FORMATS = "expected .csv, .tsv, .json, .jsonl, .txt (each also as .gz), .parquet or .xlsx"

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
_BINARY = ("parquet", "xlsx")
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
}
_ASIDE = re.compile(r"(readme|licen[cs]e|copying|notice|source|citation|changelog|authors)\b.*", re.IGNORECASE)
_PART_NUMBER = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True, slots=True)
class ClassFiles:
    """A class and the files of its texts; `whole` when each file is one text rather than one per line."""

    label: str
    files: tuple[Path, ...]
    whole: bool = False


def format_of(path: Path) -> str | None:
    """Return the format that a file's extension names, or None."""
    packed = path.suffix.lower() == ".gz"
    form = _FORMATS.get(Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    return None if packed and form in _BINARY else form


def exists(path: Path, name: str) -> bool:
    """Say whether a path exists.

    Raises:
        DataError: a folder on the way may not be entered.
    """
    try:
        path.stat()
    except PermissionError:
        raise DataError(f"{name}: permission denied; make its folder readable (chmod u+rx) and try again") from None
    except (OSError, ValueError):
        return False
    return True


def refuse_orders(path: str, name: str) -> None:
    """Refuse a name with control characters: a line break in it would make a message of ours say anything.

    Raises:
        DataError: it has some.
    """
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in path):
        raise DataError(f"{name[:200]!r}: the name holds control characters; rename it")


def missing(path: Path, name: str) -> str:
    """Return the message for a path that does not exist, naming the nearest file in its folder."""
    name = name[:200]
    if "://" in name:
        return f"{name} is an address, not a file; download it and name the file"
    folder = path.parent
    if not folder.is_dir():
        return f"{name}: no such file; the folder {folder} does not exist"
    others = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    near = difflib.get_close_matches(path.name, others, 1, cutoff=0.5)
    if not near:
        lowered = {other.lower(): other for other in others}
        near = [lowered[each] for each in difflib.get_close_matches(path.name.lower(), list(lowered), 1, cutoff=0.4)]
    if near:
        return f"{name}: no such file; the nearest name there is {folder / near[0]}"
    data = [other for other in others if format_of(Path(other))]
    return f"{name}: no such file" + (f"; that folder holds {', '.join(data[:5])}" if data else "")


def split_files(folder: str) -> dict[Split, str] | None:
    """Return the files (or sub-folders) of a folder that are named for splits, when there are at least two.

    Known names are train, validation (valid, val, dev, development) and test, alone or at either end of a name
    (`news.train.csv`, `test_reviews.csv`); when several formats hold splits, the one that holds most is taken.

    Raises:
        DataError: two files of one format are named for the same split.
    """
    path = Path(folder)
    if not path.is_dir():
        return None
    by_format: dict[str, dict[Split, list[Path]]] = {}
    for each in _visible(path, folder):
        form = "folder" if each.is_dir() else format_of(each)
        split = _split_of(each)
        if form is not None and split is not None:
            by_format.setdefault(form, {}).setdefault(split, []).append(each)
    best = max(by_format.values(), key=len, default={})
    if len(best) < 2:
        return None
    for split, files in best.items():
        if len(files) > 1:
            shown = ", ".join(file.name for file in files[:4])
            raise DataError(
                f"{folder}: several files are named for the {split} split ({shown}); name them: data.{split}"
            )
    return {split: str(best[split][0]) for split in SPLITS if split in best}


def classes_by_extension(paths: Sequence[Path]) -> bool:
    """Say whether files are one name with a class as extension, as in `rt-polarity.pos` and `rt-polarity.neg`."""
    return (
        len({path.stem for path in paths}) == 1
        and len({path.suffix for path in paths}) == len(paths) >= 2
        and all(path.suffix and path.suffix != ".gz" and format_of(path) is None and path.is_file() for path in paths)
    )


def look_into(path: Path, name: str) -> list[Path] | list[ClassFiles]:
    """Return what a folder holds: the parts of one data set, or the files of each class.

    Raises:
        DataError: it is empty, holds splits, or cannot be understood.
    """
    splits = split_files(name)
    if splits:
        shown = " ".join(f"--set data.{split}={file}" for split, file in splits.items())
        raise DataError(f"{name} holds files for {' and '.join(splits)}, which are not mixed; name each: {shown}")
    entries = _visible(path, name)
    if not entries:
        raise DataError(f"{name} is an empty folder; expected a data file, or a .txt file per class")
    files = [each for each in entries if each.is_file() and not _ASIDE.fullmatch(each.name)]
    inner = [each for each in entries if each.is_dir()]
    tables = [each for each in files if format_of(each) not in (None, "txt")]
    texts = [each for each in files if format_of(each) == "txt"]
    if tables and len({format_of(each) for each in tables}) == 1 and not texts:
        _refuse_mixed_splits(tables, name)
        return tables
    if len(texts) >= 2 and not tables and not inner:
        return [ClassFiles(_bare(each), (each,)) for each in texts]
    if not tables and not texts and classes_by_extension([each for each in files if each.suffix != ".md"]):
        return [ClassFiles(each.suffix[1:], (each,)) for each in files if each.suffix != ".md"]
    if inner and not tables and not texts:
        classes = [ClassFiles(each.name, tuple(found), len(found) > 1) for each in inner if (found := _texts_of(each))]
        if len(classes) >= 2:
            whole = any(each.whole for each in classes)
            return [ClassFiles(each.label, each.files, whole) for each in classes]
    if len(texts) == 1 and not tables and not inner:
        return texts
    shown = ", ".join(each.name for each in entries[:6]) + (", ..." if len(entries) > 6 else "")
    raise DataError(
        f"{name} is a folder with {shown}; expected a .txt file (or a folder of .txt files) per class, or files of one "
        "format; name the file you mean"
    )


def _visible(path: Path, name: str) -> list[Path]:
    try:
        entries = sorted(each for each in path.iterdir() if not each.name.startswith((".", "__")))
        home = path.resolve()
        # The hub's cache keeps what a folder of its snapshots holds beside them.
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        for each in entries:
            refuse_orders(each.name, f"{name}/{each.name}")
            target = Path(os.path.realpath(each))  # a link to itself is no error here
            if each.is_symlink() and not (target.is_relative_to(home) or target.is_relative_to(blobs)):
                raise DataError(f"{each} is a link that leads out of {name}; if you trust it, name the file itself")
        return entries
    except PermissionError:
        raise DataError(f"{name}: permission denied; make the folder readable (chmod u+rx) and try again") from None


def _texts_of(folder: Path) -> list[Path]:
    return [each for each in _visible(folder, str(folder)) if each.is_file() and format_of(each) == "txt"]


def _bare(path: Path) -> str:
    stem = path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem
    return _PART_NUMBER.sub("", stem)


def _split_of(path: Path) -> Split | None:
    if path.is_dir():
        return _SPLIT_NAMES.get(path.name.lower())
    words = re.split(r"[._\-]", _bare(path).lower())
    return _SPLIT_NAMES.get(words[-1]) or (_SPLIT_NAMES.get(words[0]) if format_of(path) != "txt" else None)


def _refuse_mixed_splits(files: Sequence[Path], name: str) -> None:
    splits = sorted({split for each in files if (split := _split_of(each))})
    if len(splits) > 1:
        raise DataError(
            f"{name} holds files for {' and '.join(splits)}; name each: data.train, data.validation, data.test"
        )
