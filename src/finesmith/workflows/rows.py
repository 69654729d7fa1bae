"""From data sources to rows of one table: columns found, splits as given, and where each row came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.errors import DataError
from finesmith.types import SPLITS, Examples, Split
from finesmith.workflows.mixture import Mixture, mixture_of

if TYPE_CHECKING:
    from finesmith.data.infer import ColumnProfile, Columns
    from finesmith.data.sources import Source
    from finesmith.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read: examples, the split each row was given (None: to be split), and where each came from."""

    examples: Examples
    given: list[Split | None]
    where: list[str]
    sources: list[Source]
    columns: Columns
    profile: ColumnProfile
    mixture: Mixture

    @property
    def file(self) -> str:
        """The training sources as a message names them."""
        names = [origin.name for origin in self.sources[0].origins]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    def said(self) -> Iterator[str]:
        """Say what was read, how, and how its columns were understood."""
        for source in self.sources:
            for origin in source.origins:
                how = ", ".join(filter(None, (origin.format, origin.encoding)))
                yield f"read {origin.rows:,} rows of {origin.name} ({how})"
                yield from (f"{origin.name}: {note}" for note in origin.notes)
        for key, sentence in self.columns.reasons.items():
            yield f"data.{key}: {sentence}"
        yield from self.columns.suggestions


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Put the file's name before the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{file}: {error}", quote=error.quote) from None


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Return a source or a list of sources as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def read_rows(recipe: Recipe) -> Rows:
    """Read every source, find the columns, and lay the rows of train, validation and test end to end."""
    from finesmith.data.infer import find_columns, profile
    from finesmith.data.sources import read, split_files

    d = recipe.data
    named: dict[Split, list[str]] = {
        "train": as_list(d.train),
        "validation": as_list(d.validation),
        "test": as_list(d.test),
    }
    if len(named["train"]) == 1 and (parts := split_files(named["train"][0])):
        for split in SPLITS:
            named[split] = named[split] or as_list(parts.get(split))
        if not parts.get("train"):
            raise DataError(
                f"{d.train} holds no train file; name the files with data.train, data.validation, data.test"
            )
        named["train"] = [parts["train"]]
    commas = d.separator != ","
    sources = {
        s: read(names, encoding=d.encoding, max_rows=d.max_rows, commas=commas) for s, names in named.items() if names
    }
    sources = {split: _without_home(source) for split, source in sources.items()}
    profiles = profile(sources["train"].table)
    file = ", ".join(named["train"])[:200]
    with naming(file):
        columns = find_columns(
            profiles, text=d.text, text_pair=d.text_pair, label=d.label, group=d.group, split=d.split
        )
    if len(sources) > 1 and columns.split is not None:
        columns = _without_split(columns)
    if columns.label is None:
        listed = ", ".join(p.name + (" (no values)" if p.kind == "empty" else "") for p in profiles)
        raise DataError(
            f"{file} has no column that looks like a label; columns are {listed}: name it with --set data.label=COLUMN"
        )
    parts_of = [_extract(source, columns, split if len(sources) > 1 else None) for split, source in sources.items()]
    examples, given, where = _concatenate(parts_of, fill_train={s for s in SPLITS if s not in sources})
    by_name = {p.name: p for p in profiles}
    mixture = mixture_of(
        [
            ([discreet(name) for name in named[split]], [(origin.given, origin.rows) for origin in source.origins])
            for split, source in sources.items()
        ]
    )
    return Rows(examples, given, where, list(sources.values()), columns, by_name[columns.label], mixture)


def _without_home(source: Source) -> Source:
    """Return a source whose files in the home folder are named by ~, as the files of a run name them."""
    from dataclasses import replace

    return replace(source, origins=tuple(replace(each, name=discreet(each.name)) for each in source.origins))


def _without_split(columns: Columns) -> Columns:
    from dataclasses import replace

    reasons = {k: v for k, v in columns.reasons.items() if k != "split"}
    return replace(columns, split=None, reasons=reasons)


SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "development": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def _extract(source: Source, columns: Columns, split: Split | None) -> tuple[Examples, list[Split | None], list[str]]:
    """Take the task's columns out of one source."""
    import numpy as np

    table = source.table
    for name in (columns.text, columns.text_pair, columns.label, columns.group):
        if name is not None and name not in table.column_names:
            raise DataError(
                f"{source.origins[0].name} has no column {name[:80]!r}, which the training data has; "
                f"its columns are {', '.join(table.column_names)[:300]}: rename one of them, or add the column"
            )

    def column(name: str | None) -> list[Any] | None:
        return None if name is None else table.column(name).to_pylist()

    def texts(name: str | None) -> list[str] | None:
        values = column(name)
        return None if values is None else ["" if v is None else v if isinstance(v, str) else str(v) for v in values]

    where = source.places()
    given: list[Split | None] = [split] * table.num_rows
    if columns.split is not None:
        given = [_split_name(v, place) for v, place in zip(column(columns.split) or (), where, strict=True)]
    groups = texts(columns.group)
    if groups is not None:
        groups = [group if group.strip() else place for group, place in zip(groups, where, strict=True)]
    ids = np.arange(table.num_rows, dtype=np.int64)
    labels = column(columns.label)
    return Examples(ids, texts(columns.text) or [], texts(columns.text_pair), labels, groups), given, where


NO_LABEL = frozenset({"", "nan", "<na>", "#n/a", "null"})


def read_labels(labels: Sequence[Any], kind: str) -> list[Any]:
    """Return labels with None where there is none; an empty cell of a column of label lists says "no label"."""
    if kind == "list":
        return [[] if isinstance(value, str) and not value.strip() else value for value in labels]
    return [None if is_blank(value) else value for value in labels]


def name_labels(labels: Sequence[Any], kind: str, separator: str | None) -> list[Any]:
    """Return labels as the tasks read them, None where there is none: names, lists of names, or numbers untouched."""
    from finesmith.tasks.classification import label_name
    from finesmith.tasks.multi_label import parse

    if kind == "number":
        return list(labels)
    if kind == "list":
        return [None if value is None else parse(value, separator) for value in labels]
    return [None if value is None else label_name(value) for value in labels]


def is_blank(label: Any) -> bool:
    """Whether a label cell holds nothing: null, NaN, white space, or a word by which programs write these."""
    return label is None or label != label or (isinstance(label, str) and label.strip().casefold() in NO_LABEL)


def _split_name(value: Any, place: str) -> Split:
    found = SPLIT_NAMES.get(str(value).strip().casefold())
    if found is None:
        raise DataError(
            f"the split column says {str(value)[:40]!r} at {place}; expected train, validation (valid, val, dev) or "
            "test: mend the value, or leave data.split out"
        )
    return found


def _concatenate(
    parts: Sequence[tuple[Examples, list[Split | None], list[str]]], *, fill_train: set[Split]
) -> tuple[Examples, list[Split | None], list[str]]:
    """Lay examples end to end with ids counted through.

    Rows given as train are open to be split again (None) when a split in `fill_train` has neither file nor rows.
    """
    import numpy as np

    def joined(columns: Sequence[Sequence[Any] | None]) -> list[Any] | None:
        present = [c for c in columns if c is not None]
        return [value for column in present for value in column] if present else None

    examples = [part[0] for part in parts]
    texts = joined([e.texts for e in examples]) or []
    given = joined([part[1] for part in parts]) or []
    missing = {s for s in fill_train if s not in given}
    if missing & {"validation", "test"}:
        given = [None if s == "train" else s for s in given]
    whole = Examples(
        np.arange(len(texts), dtype=np.int64),
        texts,
        joined([e.pairs for e in examples]),
        joined([e.labels for e in examples]),
        joined([e.groups for e in examples]),
    )
    return whole, given, joined([part[2] for part in parts]) or []
