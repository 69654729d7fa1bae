"""From data sources to examples that are audited, cleaned, split and understood by a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError, RunError
from finesmith.types import SPLITS, Examples, Finding, Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.clean import Cleaning
    from finesmith.data.infer import ColumnProfile, Columns
    from finesmith.data.sources import Source
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.protocol import Options, Task

    Array = npt.NDArray[np.float64]


class SealedTest:
    """The test labels, which are opened once, at the end; the run folder records when."""

    def __init__(self, targets: Array) -> None:
        self._targets: Array | None = targets
        self.size = len(targets)

    def open(self, run: Run) -> Array:
        """Return the targets and record that the test split was opened.

        Raises RunError when it was opened before.
        """
        if self._targets is None:
            raise RunError("the test split was opened before in this run; results on it would no longer be honest")
        targets, self._targets = self._targets, None
        run.record("test_opened", examples=self.size)
        return targets


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples ready for a model.

    examples: all that were kept, in file order; positions: int64 [n], which of them belong to each split; targets: of
    train and validation (of test only in `test`, sealed); why: the reason for each inferred recipe key.
    """

    examples: Examples
    positions: Mapping[Split, npt.NDArray[np.int64]]
    targets: Mapping[Split, Array]
    test: SealedTest
    task: Task
    columns: Columns
    cleaning: Cleaning
    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    why: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What was read: examples, the split each row was given (None: to be split), and where each came from."""

    examples: Examples
    given: list[Split | None]
    where: list[str]
    sources: list[Source]
    columns: Columns
    profile: ColumnProfile


def prepare(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, *, longest: int) -> Prepared:
    """Read, clean, audit and split the data of a recipe; every row is accounted for in data.json.

    `longest` is the most tokens that the model can take. Raises DataError for anything the data cannot give.
    """
    from finesmith.data.audit import apply, audit
    from finesmith.data.near_duplicates import cluster, normalise
    from finesmith.data.split import units

    rows = _read(recipe)
    for source in rows.sources:
        for origin in source.origins:
            run.record(
                "note", message=f"read {origin.rows:,} rows of {origin.name} ({origin.format}, {origin.encoding})"
            )
    for key, sentence in rows.columns.reasons.items():
        run.record("note", message=f"data.{key}: {sentence}")
    why = {f"data.{key}": sentence for key, sentence in rows.columns.reasons.items()}
    kind, task_reason = _task_class(recipe, rows)
    if recipe.task == "auto":
        why["task"] = task_reason
        run.record("note", message=f"task {kind.name}: {task_reason}")

    cleaning = _cleaning(recipe)
    cleaned, changed = _clean(rows.examples, cleaning)
    joined = [normalise(text) for text in _joined(cleaned)]
    clusters = cluster(joined)
    given = _complete(rows.given, cleaned)
    lengths, limit = _lengths(cleaned, tokenizer, recipe, longest)
    why.setdefault("data.max_length", limit[1])
    findings = audit(
        cleaned,
        clusters=clusters,
        kind=kind.label_kind,
        splits=given,
        lengths=lengths,
        max_length=limit[0],
        actions=recipe.data.audit.model_dump(),
    )
    run.write_json("audit.json", {"findings": [_finding(finding) for finding in findings]})
    _announce(run, findings)
    fixes = [f.kind for f in findings if f.action == "fix"]
    fixers = {name: _fixer(name) for name in fixes}
    applied = apply(findings, cleaned, fixers=fixers)
    kept = applied.keep.nonzero()[0]
    whole = Examples(cleaned.ids, applied.texts, applied.pairs, cleaned.labels, cleaned.groups)
    examples = whole.take(kept)
    flow = [{"stage": "read", "rows": len(cleaned)}]
    flow += [{"stage": f"dropped: {name}", "rows": -count} for name, count in applied.dropped.items()]

    options = _options(recipe, rows.profile)
    splits, notes = _split(
        recipe,
        examples,
        [rows.given[i] for i in kept],
        units(clusters, cleaned.groups)[kept],
        [joined[i] for i in kept],
        kind.learn(examples.labels or (), options),
    )
    positions = {name: _where(splits, name) for name in SPLITS}
    _refuse_tiny(positions, len(examples), rows.sources)
    task = kind.learn([(examples.labels or ())[i] for i in positions["train"]], options)
    targets = {
        name: task.encode([(examples.labels or ())[i] for i in at], [rows.where[examples.ids[i]] for i in at])
        for name, at in positions.items()
    }
    flow += [{"stage": name, "rows": len(positions[name])} for name in SPLITS]
    summary = {
        "task": task.name,
        "sources": [asdict(origin) for source in rows.sources for origin in source.origins],
        "columns": {k: v for k, v in asdict(rows.columns).items() if k != "reasons"},
        "reasons": dict(rows.columns.reasons),
        "flow": flow,
        "fixed": dict(applied.fixed),
        "cleaning": changed,
        "labels": list(task.head.labels) if task.head.labels else None,
        "splits": {name: {"rows": len(at), **task.summary(targets[name])} for name, at in positions.items()},
        "split_notes": notes,
        "max_length": limit[0],
    }
    run.write_json("data.json", summary)
    _write_splits(run, rows, applied.keep, dict(zip(examples.ids.tolist(), splits, strict=True)))
    test = SealedTest(targets.pop("test"))
    return Prepared(
        examples, positions, targets, test, task, rows.columns, _with_fixes(cleaning, fixes), findings, summary, why
    )


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Return a source or a list of sources as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _read(recipe: Recipe) -> _Rows:
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
    sources = {s: read(names, encoding=d.encoding, max_rows=d.max_rows) for s, names in named.items() if names}
    profiles = profile(sources["train"].table)
    columns = find_columns(
        profiles, text=d.text, text_pair=d.text_pair, label=d.label, group=d.group,
        split=None if len(sources) > 1 and d.split is None else d.split,
    )  # fmt: skip
    if len(sources) > 1 and columns.split is not None:
        columns = _without_split(columns)
    if columns.label is None:
        raise DataError(
            f"{', '.join(named['train'])} has no column that looks like a label; "
            f"columns are {', '.join(p.name for p in profiles)}: name it with --set data.label=COLUMN"
        )
    parts_of = [_extract(source, columns, split if len(sources) > 1 else None) for split, source in sources.items()]
    examples, given, where = _concatenate(parts_of, fill_train={s for s in SPLITS if s not in sources})
    by_name = {p.name: p for p in profiles}
    return _Rows(examples, given, where, list(sources.values()), columns, by_name[columns.label])


def _without_split(columns: Columns) -> Columns:
    from dataclasses import replace

    reasons = {k: v for k, v in columns.reasons.items() if k != "split"}
    return replace(columns, split=None, reasons=reasons)


SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "development": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def _extract(source: Source, columns: Columns, split: Split | None) -> tuple[Examples, list[Split | None], list[str]]:
    """Take the task's columns out of one source."""
    import numpy as np

    table = source.table
    for name in (columns.text, columns.text_pair, columns.label, columns.group):
        if name is not None and name not in table.column_names:
            raise DataError(
                f"{source.origins[0].name} has no column {name!r}, which the training data has; "
                f"its columns are {', '.join(table.column_names)}"
            )

    def column(name: str | None) -> list[Any] | None:
        return None if name is None else table.column(name).to_pylist()

    def texts(name: str | None) -> list[str] | None:
        values = column(name)
        return None if values is None else ["" if v is None else v if isinstance(v, str) else str(v) for v in values]

    where = [source.where(i) for i in range(table.num_rows)]
    given: list[Split | None] = [split] * table.num_rows
    if columns.split is not None:
        given = [_split_name(v, place) for v, place in zip(column(columns.split) or (), where, strict=True)]
    groups = texts(columns.group)
    if groups is not None:
        groups = [group or f"row {i}" for i, group in enumerate(groups)]
    ids = np.arange(table.num_rows, dtype=np.int64)
    labels = [None if _blank(value) else value for value in column(columns.label) or ()]
    return Examples(ids, texts(columns.text) or [], texts(columns.text_pair), labels, groups), given, where


def _blank(label: Any) -> bool:
    """Whether a label cell holds nothing: null, white space or NaN."""
    return label is None or (isinstance(label, str) and not label.strip()) or label != label


def _split_name(value: Any, place: str) -> Split:
    found = SPLIT_NAMES.get(str(value).strip().casefold())
    if found is None:
        raise DataError(
            f"the split column says {str(value)[:40]!r} at {place}; expected train, validation (valid, val, dev) or test; "
            "name no split column (--set data.split=null is the default) or mend the value"
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


def _task_class(recipe: Recipe, rows: _Rows) -> tuple[type[Task], str]:
    from finesmith import tasks
    from finesmith.tasks.protocol import LabelColumn

    if recipe.task != "auto":
        return tasks.get(recipe.task), "named in the recipe"
    p = rows.profile
    kind = "list" if recipe.data.separator else p.kind
    return tasks.choose(LabelColumn(p.name, kind, p.distinct, p.rows, recipe.data.separator or p.separator))


def _options(recipe: Recipe, profile: ColumnProfile) -> Options:
    from finesmith.tasks.protocol import Options

    t = recipe.train
    return Options(
        recipe.data.separator or profile.separator, t.loss, t.focal_gamma, t.class_weights, t.label_smoothing
    )


def _cleaning(recipe: Recipe) -> Cleaning:
    from finesmith.data.clean import Cleaning

    c = recipe.data.clean
    return Cleaning(unicode=c.unicode, whitespace=c.whitespace, html=c.html, lemmatise=c.lemmatise, redact=c.redact)


FIXES = {"broken_encoding": "encoding", "html": "html", "personal_data": "redact"}


def _with_fixes(cleaning: Cleaning, fixes: Sequence[str]) -> Cleaning:
    """Return the cleaning that new texts need so that they look as the training texts did."""
    from dataclasses import replace

    return replace(cleaning, **{FIXES[name]: True for name in fixes})


def _fixer(kind: str) -> Any:
    from finesmith.data.clean import Cleaning, clean

    only = Cleaning(**{FIXES[kind]: True})
    return lambda text: clean([text], only).texts[0]


def _clean(examples: Examples, cleaning: Cleaning) -> tuple[Examples, dict[str, int]]:
    from finesmith.data.clean import clean

    texts = clean(examples.texts, cleaning)
    pairs = None if examples.pairs is None else clean(examples.pairs, cleaning)
    changed = Counter(texts.changed) + Counter(pairs.changed if pairs else {})
    cleaned = Examples(examples.ids, texts.texts, pairs.texts if pairs else None, examples.labels, examples.groups)
    return cleaned, dict(changed)


def _joined(examples: Examples) -> list[str]:
    if examples.pairs is None:
        return list(examples.texts)
    return [f"{a}\n{b}" for a, b in zip(examples.texts, examples.pairs, strict=True)]


def _complete(given: Sequence[Split | None], examples: Examples) -> list[str] | None:
    """Return the splits that the user gave, rows still open counting as train; None where nothing was given."""
    if all(s is None for s in given):
        return None
    return [s or "train" for s in given]


def _lengths(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, longest: int
) -> tuple[npt.NDArray[np.integer[Any]], tuple[int, str]]:
    """Return each text's length in tokens, and the most that a sequence may have with the reason."""
    import numpy as np

    from finesmith.data.tokens import tokenize

    lengths = tokenize(examples.texts, examples.pairs, tokenizer, max_length=None, cache=None).original_lengths
    if recipe.data.max_length is not None:
        if recipe.data.max_length > longest:
            raise DataError(
                f"data.max_length is {recipe.data.max_length}, but the base model takes at most {longest} tokens; "
                f"expected 4 to {longest}"
            )
        return lengths, (recipe.data.max_length, "named in the recipe")
    usual = int(np.quantile(lengths, 0.999, method="higher")) if len(lengths) else longest
    chosen = min(longest, max(usual, 8))
    reason = "the model's limit" if chosen == longest else "99.9 percent of the texts are no longer"
    return lengths, (chosen, reason)


def _split(
    recipe: Recipe,
    examples: Examples,
    given: Sequence[Split | None],
    units: npt.NDArray[np.int64],
    keys: Sequence[str],
    task: Task,
) -> tuple[list[Split], list[str]]:
    """Return the split of every kept example, those given respected, and notes for the report."""
    from finesmith.data.split import split

    names: list[Split] = [s or "train" for s in given]
    open_rows = [i for i, s in enumerate(given) if s is None]
    if not open_rows:
        return names, ["splits as given"]
    d = recipe.data
    cut = split(
        task.strata([(examples.labels or ())[i] for i in open_rows]),
        units=units[open_rows],
        keys=[keys[i] for i in open_rows],
        validation=0.0 if "validation" in given else d.validation_fraction,
        test=0.0 if "test" in given else d.test_fraction,
        seed=d.split_seed,
    )
    for i, name in zip(open_rows, cut.names, strict=True):
        names[i] = name
    notes = [
        f"class {name!r} has only {count} independent examples; all are in train" for name, count in cut.small.items()
    ]
    return names, notes


def _where(splits: Sequence[Split], name: Split) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.array([i for i, s in enumerate(splits) if s == name], dtype=np.int64)


def _refuse_tiny(positions: Mapping[Split, Any], kept: int, sources: Sequence[Source]) -> None:
    sizes = ", ".join(f"{name} {len(at)}" for name, at in positions.items())
    if len(positions["train"]) < 8 or not len(positions["validation"]) or not len(positions["test"]):
        names = ", ".join(origin.name for source in sources for origin in source.origins[:1])
        raise DataError(
            f"{names}: {kept} usable rows give the splits {sizes}; finesmith needs at least 8 examples to train on and "
            "one each to validate and test. Add rows (some hundred are a fair start), or name data.validation and data.test"
        )


def _finding(finding: Finding) -> dict[str, Any]:
    fields = asdict(finding)
    return {**fields, "count": len(finding.ids), "ids": list(finding.ids[:1000])}


def _announce(run: Run, findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.severity != "info":
            did = "" if finding.action == "keep" else f" [{finding.action}]"
            run.record("audit", kind=finding.kind, severity=finding.severity, message=finding.message + did)


def _write_splits(run: Run, rows: _Rows, keep: npt.NDArray[np.bool_], split_of: Mapping[int, str]) -> None:
    """Write which row of which source went where."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = list(range(len(keep)))
    columns = {"id": ids, "where": rows.where, "split": [split_of.get(i, "dropped") for i in ids]}
    pq.write_table(pa.table(columns), run.folder / "splits.parquet")
