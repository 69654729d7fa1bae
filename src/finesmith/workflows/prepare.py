"""From data sources to examples that are audited, cleaned, split and understood by a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from finesmith.aside import Aside
from finesmith.errors import DataError, RunError
from finesmith.types import SPLITS, Examples, Finding, Split
from finesmith.workflows.mixture import Mixture
from finesmith.workflows.rows import Rows, is_blank, name_labels, naming, read_labels, read_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.clean import Cleaning
    from finesmith.data.infer import ColumnProfile, Columns
    from finesmith.data.near_duplicates import Clusters
    from finesmith.data.tokens import Tokens
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.protocol import Options, Task

    Array = npt.NDArray[np.float64]


class SealedTest:
    """The test labels, which are opened once, at the end; the run folder records when."""

    def __init__(self, targets: Array) -> None:
        self._targets: Array | None = targets
        self.size = len(targets)
        # How many different answers there are, which says whether a metric is defined; not what they are.
        self.distinct = len({value.tobytes() for value in targets})

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
    train and validation (of test only in `test`, sealed); tokens: those of the examples where they follow from what
    the audit counted; mixture: which source each row is of; where: the file and row of each id, for messages;
    findings: of the checks that were waited for; why: the reason for each inferred recipe key.
    """

    examples: Examples
    positions: Mapping[Split, npt.NDArray[np.int64]]
    targets: Mapping[Split, Array]
    test: SealedTest
    tokens: Tokens | None
    task: Task
    columns: Columns
    cleaning: Cleaning
    mixture: Mixture
    where: Sequence[str]
    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    why: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Audited:
    """Cleaned examples and what the audit did to them.

    examples: those kept; kept: int64, their positions among all; joined: each text as copies are compared; clusters:
    which of all belong together; limit: the most tokens a sequence may have, and why; tokens: of those kept; fixes:
    what was mended; rest: runs the checks that change no row.
    """

    examples: Examples
    kept: npt.NDArray[np.int64]
    keep: npt.NDArray[np.bool_]
    joined: Sequence[str]
    clusters: Clusters
    limit: tuple[int, str]
    tokens: Tokens | None
    findings: tuple[Finding, ...]
    flow: list[dict[str, Any]]
    fixed: dict[str, int]
    cleaned: dict[str, int]
    rest: Callable[[], tuple[Finding, ...]]

    @property
    def fixes(self) -> list[str]:
        """The kinds of fault that are mended."""
        return [found.kind for found in self.findings if found.action == "fix"]


def prepare(
    recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, *, longest: int
) -> tuple[Prepared, Callable[[], tuple[Finding, ...]]]:
    """Read, clean, audit and split the data of a recipe; every row is accounted for in data.json.

    The function returned beside the data runs the checks that take their time and change no row; nothing has to wait
    for them, and `tell_findings` tells what they find. `longest` is the most tokens that the model can take. Raises
    DataError for anything the data cannot give.
    """
    rows = read_rows(recipe)
    for sentence in rows.said():
        run.record("note", message=sentence)
    why = {f"data.{key}": sentence for key, sentence in rows.columns.reasons.items()}
    with naming(rows.file):
        kind, task_reason = _task_class(recipe, rows)
    if recipe.task == "auto":
        why["task"] = task_reason
        run.record("note", message=f"task {kind.name}: {task_reason}")
    options = _options(recipe, rows.profile)

    audited = _audit(recipe, run, rows, kind, options, tokenizer, longest)
    why.setdefault("data.max_length", audited.limit[1])
    examples = audited.examples
    with naming(rows.file):
        splits, notes = _split(recipe, rows, audited, kind.learn(examples.labels or (), options))
        positions = {name: where(splits, name) for name in SPLITS}
        for note in notes:
            run.record("note", message=note)
        refuse_tiny(positions, len(examples))
        task = kind.learn([(examples.labels or ())[i] for i in positions["train"]], options)
    targets = {
        name: task.encode([(examples.labels or ())[i] for i in at], [rows.where[examples.ids[i]] for i in at])
        for name, at in positions.items()
    }
    summary = {
        "task": task.name,
        "sources": [asdict(origin) for source in rows.sources for origin in source.origins],
        "columns": {k: v for k, v in asdict(rows.columns).items() if k != "reasons"},
        "reasons": dict(rows.columns.reasons),
        "flow": audited.flow + [{"stage": name, "rows": len(positions[name])} for name in SPLITS],
        "fixed": audited.fixed,
        "cleaning": audited.cleaned,
        "labels": list(task.head.labels) if task.head.labels else None,
        "splits": {name: {"rows": len(at), **task.summary(targets[name])} for name, at in positions.items()},
        "split_notes": notes,
        "mixture": rows.mixture.counted(recipe, {name: examples.ids[at] for name, at in positions.items()}),
        "max_length": audited.limit[0],
    }
    run.write_json("data.json", summary)
    write_splits(run, rows.where, dict(zip(examples.ids.tolist(), splits, strict=True)))
    test = SealedTest(targets.pop("test"))
    prepared = Prepared(
        examples, positions, targets, test, audited.tokens, task, rows.columns,
        _with_fixes(_cleaning(recipe), audited.fixes), rows.mixture, rows.where, audited.findings, summary, why,
    )  # fmt: skip
    return prepared, audited.rest


# Copies among so few rows are found before a process could begin to look for them.
FEW_ROWS = 2000


def _audit(
    recipe: Recipe,
    run: Run,
    rows: Rows,
    kind: type[Task],
    options: Options,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
) -> _Audited:
    """Clean the rows, look for faults, and do about each what the recipe says."""
    from finesmith.data.audit import CHECKS, apply, audit, can_wait
    from finesmith.data.near_duplicates import cluster, normalise
    from finesmith.data.shorten import shorten

    labels = read_labels(rows.examples.labels or (), kind.label_kind)
    labels = name_labels(labels, kind.label_kind, options.separator)
    cleaned, changed = _clean(replace(rows.examples, labels=labels), _cleaning(recipe))
    joined = [normalise(text) for text in _joined(cleaned)]
    actions = recipe.data.audit.model_dump()
    waiting = can_wait(actions)
    with Aside(lambda _: cluster(joined), here=len(joined) < FEW_ROWS) as copies:
        tokens, limit = token_lengths(cleaned, tokenizer, recipe, longest)
        look: dict[str, Any] = {
            "clusters": copies.result,
            "kind": kind.label_kind,
            "splits": complete(rows.given),
            "lengths": tokens.original_lengths.tolist(),
            "max_length": limit[0],
            "actions": actions,
        }
        findings = audit(cleaned, **look, kinds=set(CHECKS) - waiting)
        clusters = copies.result()
    tell_findings(run, (), findings)
    with naming(rows.file):
        applied = apply(findings, cleaned, fixers={f.kind: _fixer(f.kind) for f in findings if f.action == "fix"})
    kept = applied.keep.nonzero()[0]
    whole = Examples(cleaned.ids, applied.texts, applied.pairs, cleaned.labels, cleaned.groups)
    flow: list[dict[str, Any]] = [{"stage": "read", "rows": len(cleaned)}]
    flow += [{"stage": f"dropped: {name}", "rows": -count} for name, count in applied.dropped.items()]
    _refuse_none(rows, len(kept), applied.dropped)
    _refuse_unreadable(rows, findings)
    examples = whole.take(kept)
    cut = None
    if not applied.fixed:
        cut = shorten(tokens, examples.texts, examples.pairs, tokenizer, rows=kept, max_length=limit[0])
    return _Audited(
        examples, kept, applied.keep, joined, clusters, limit, cut, findings, flow, dict(applied.fixed), changed,
        lambda: audit(cleaned, **look, kinds=waiting),
    )  # fmt: skip


def _task_class(recipe: Recipe, rows: Rows) -> tuple[type[Task], str]:
    from finesmith import tasks
    from finesmith.tasks.classification import label_name
    from finesmith.tasks.protocol import LabelColumn

    if recipe.task != "auto":
        return tasks.get(recipe.task), "named in the recipe"
    p = rows.profile
    kind = "list" if recipe.data.separator else p.kind
    names = {label_name(value) for value in p.values if not is_blank(value)} if kind == "category" else set()
    distinct = len(names) or p.distinct
    return tasks.choose(LabelColumn(p.name, kind, distinct, p.rows, recipe.data.separator or p.separator))


def _options(recipe: Recipe, profile: ColumnProfile) -> Options:
    from finesmith.tasks.protocol import Options

    t = recipe.train
    # The losses of preferences are refused for tasks of labels.
    loss: Literal["focal", "cross_entropy"] = "focal" if t.loss == "focal" else "cross_entropy"
    return Options(recipe.data.separator or profile.separator, loss, t.focal_gamma, t.class_weights, t.label_smoothing)


def _cleaning(recipe: Recipe) -> Cleaning:
    from finesmith.data.clean import Cleaning

    c = recipe.data.clean
    return Cleaning(unicode=c.unicode, whitespace=c.whitespace, html=c.html, lemmatise=c.lemmatise, redact=c.redact)


FIXES = {"broken_encoding": "encoding", "html": "html", "personal_data": "redact"}


def _with_fixes(cleaning: Cleaning, fixes: Sequence[str]) -> Cleaning:
    """Return the cleaning that new texts need so that they look as the training texts did."""
    steps: dict[str, Any] = {FIXES[name]: True for name in fixes}
    return replace(cleaning, **steps)


def _fixer(kind: str) -> Any:
    from finesmith.data.clean import Cleaning, clean

    only = _with_fixes(Cleaning(), [kind])
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


def complete(given: Sequence[Split | None]) -> list[str] | None:
    """Return the splits that the user gave, rows still open counting as train; None where nothing was given."""
    if all(s is None for s in given):
        return None
    return [s or "train" for s in given]


def token_lengths(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, longest: int
) -> tuple[Tokens, tuple[int, str]]:
    """Return each text's tokens, uncut, and the most that a sequence may have with the reason."""
    import numpy as np

    from finesmith.data.tokens import tokenize
    from finesmith.workflows.setup import cache_folder

    cache = cache_folder(recipe)
    tokens = tokenize(examples.texts, examples.pairs, tokenizer, max_length=None, cache=cache)
    lengths = tokens.original_lengths
    if recipe.data.max_length is not None:
        if recipe.data.max_length > longest:
            raise DataError(
                f"data.max_length is {recipe.data.max_length}, but the base model takes at most {longest} tokens; "
                f"expected 4 to {longest}"
            )
        return tokens, (recipe.data.max_length, "named in the recipe")
    usual = int(np.quantile(lengths, 0.999, method="higher")) if len(lengths) else longest
    chosen = min(longest, max(usual, 8))
    reason = "the model's limit" if chosen == longest else "99.9 percent of the texts are no longer"
    return tokens, (chosen, reason)


def _split(recipe: Recipe, rows: Rows, audited: _Audited, task: Task) -> tuple[list[Split], list[str]]:
    """Return the split of every kept example, those given respected, and notes for the report."""
    from finesmith.data.split import split, units

    examples, kept = audited.examples, audited.kept
    given = [rows.given[i] for i in kept]
    names: list[Split] = [s or "train" for s in given]
    open_rows = [i for i, s in enumerate(given) if s is None]
    if not open_rows:
        return names, ["splits as given"]
    d, groups = recipe.data, rows.examples.groups
    cut = split(
        task.strata([(examples.labels or ())[i] for i in open_rows]),
        units=units(audited.clusters, groups)[kept][open_rows],
        keys=[audited.joined[kept[i]] for i in open_rows],
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


def where(splits: Sequence[Split], name: Split) -> npt.NDArray[np.int64]:
    """Return the positions of the rows of a split."""
    import numpy as np

    return np.array([i for i, s in enumerate(splits) if s == name], dtype=np.int64)


def _refuse_none(rows: Rows, kept: int, dropped: Mapping[str, int]) -> None:
    if not kept:
        why = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in dropped.items() if count)
        raise DataError(
            f"{rows.file}: none of the {len(rows.where):,} rows can be used (dropped: {why}); name other columns with "
            "--set data.text=COLUMN and --set data.label=COLUMN, or mend the file"
        )


def _refuse_unreadable(rows: Rows, findings: Sequence[Finding]) -> None:
    """Refuse numbers of which too many cannot be read: dropping them would hide that the column is something else."""
    for found in findings:
        if found.kind == "missing_labels" and found.severity == "error":
            places = ", ".join(rows.where[one["id"]] for one in found.examples[:3])
            raise DataError(
                f"{rows.file}: {found.details['not_a_number']:,} labels in column {rows.columns.label!r} are not "
                f"numbers, such as those at {places}; write them as numbers such as 1.5, empty those cells, or "
                "--set task=classification",
                quote=", ".join(repr(str(one["label"])) for one in found.examples[:3]),
            )


def refuse_tiny(positions: Mapping[Split, Any], kept: int) -> None:
    """Raise DataError where a split is too small for anything to be learnt or said."""
    sizes = ", ".join(f"{name} {len(at)}" for name, at in positions.items())
    if len(positions["train"]) < 8 or not len(positions["validation"]) or not len(positions["test"]):
        raise DataError(
            f"{kept} usable rows give the splits {sizes}; finesmith needs at least 8 examples to train on and one each "
            "to validate and test. Add rows (some hundred are a fair start), or name data.validation and data.test"
        )


def _finding(finding: Finding) -> dict[str, Any]:
    fields = asdict(finding)
    return {**fields, "count": len(finding.ids), "ids": list(finding.ids[:1000])}


def tell_findings(run: Run, before: Sequence[Finding], new: Sequence[Finding]) -> None:
    """Write down what the audit found, before and now, and say aloud what is new and needs a person's eye."""
    from finesmith.data.audit import CHECKS

    order = list(CHECKS)
    every = sorted((*before, *new), key=lambda found: order.index(found.kind))
    run.write_json("audit.json", {"findings": [_finding(finding) for finding in every]})
    for finding in new:
        if finding.severity != "info":
            did = "" if finding.action == "keep" else f" [{finding.action}]"
            run.record(
                "audit",
                kind=finding.kind,
                severity=finding.severity,
                message=finding.message + did,
                shows=finding.shows,
            )


def write_splits(run: Run, places: Sequence[str], split_of: Mapping[int, str]) -> None:
    """Write which row of which source went where."""
    ids = list(range(len(places)))
    columns = {"id": ids, "where": places, "split": [split_of.get(i, "dropped") for i in ids]}
    run.write_table("splits.parquet", columns)
