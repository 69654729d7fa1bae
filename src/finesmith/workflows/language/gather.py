"""From data sources to sentences, documents or conversations that are audited, split and understood by a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.errors import DataError, RunError
from finesmith.tasks.language import Choices, Corpus, LanguageTask, Reading
from finesmith.types import SPLITS, Examples, Finding, Split
from finesmith.workflows.prepare import complete, refuse_tiny, tell_findings, token_lengths, where, write_splits
from finesmith.workflows.rows import as_list

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.near_duplicates import Clusters
    from finesmith.data.tokens import Tokens
    from finesmith.recipe import Recipe
    from finesmith.run import Run

    Ints = npt.NDArray[np.int64]


# One row says nothing of how others would do.
FEWEST_TESTED = 2


class SealedCorpus:
    """The test rows, which are opened once, at the end; the run folder records when."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus: Corpus | None = corpus
        self.size = len(corpus)

    def shared(self, texts: set[str]) -> int:
        """Count the texts that the test split has in common with another one."""
        return len(texts.intersection(self._corpus.texts)) if self._corpus is not None else 0

    def open(self, run: Run) -> Corpus:
        """Return the rows and record that the test split was opened.

        Raises RunError when it was opened before.
        """
        if self._corpus is None:
            raise RunError("the test split was opened before in this run; results on it would no longer be honest")
        corpus, self._corpus = self._corpus, None
        run.record("test_opened", examples=self.size)
        return corpus


@dataclass(frozen=True, slots=True)
class Gathered:
    """Rows ready for a model.

    corpora: train and validation (test only in `test`, sealed); ids: int64, those of the rows of each split; places:
    the place of each id, for messages; tokens: what the data page tells of lengths; why: the reason for each inferred
    recipe key.
    """

    task: LanguageTask
    corpora: Mapping[Split, Corpus]
    test: SealedCorpus
    ids: Mapping[Split, Ints]
    places: Sequence[str]
    tokens: Tokens
    max_length: int
    summary: dict[str, Any]
    why: dict[str, str]


def gather(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, *, longest: int) -> Gathered:
    """Read, audit and split the data of a recipe; every row is accounted for in data.json.

    `longest` is the most tokens that the model can take. Raises DataError for anything the data cannot give.
    """
    from finesmith import tasks

    kind = tasks.language_task(recipe.task)
    corpus, given = _read(recipe, run, kind)
    examples = Examples(_count(len(corpus)), corpus.texts, None, corpus.labels, corpus.groups)
    tokens, limit = token_lengths(examples, tokenizer, recipe, longest)
    if recipe.data.max_length is None and kind.usual_length is not None and limit[0] > kind.usual_length:
        limit = kind.usual_length, f"the usual length for {kind.name}; longer {kind.unit} make several sequences"
    keep, clusters, findings, flow = _audit(recipe, run, kind, examples, given, tokens, limit[0])
    kept = keep.nonzero()[0]
    if not len(kept):
        raise DataError(f"{corpus.origins[0].name}: none of the {len(corpus):,} {kind.unit} can be used; see the audit")
    splits, notes = _split(recipe, corpus, given, kept, clusters)
    for note in notes:
        run.record("note", message=note)
    positions = {name: kept[where(splits, name)] for name in SPLITS}
    refuse_tiny(positions, len(kept))
    if len(positions["test"]) < FEWEST_TESTED:
        raise DataError(
            f"the test split holds {len(positions['test'])} {kind.unit}, too few to compare models on; expected "
            f"at least {FEWEST_TESTED}: raise data.test_fraction, add {kind.unit}, or part them with "
            "data.document_separator"
        )
    parts = {name: kind.take(corpus, at) for name, at in positions.items()}
    task = kind.learn(parts["train"], choices_of(recipe))
    for name in ("validation", "test"):
        task.require_known(parts[name])
    summary = {
        "task": task.name,
        "sources": [asdict(origin) for origin in corpus.origins],
        "columns": dict(corpus.columns),
        "reasons": {},
        "flow": flow + [{"stage": name, "rows": len(at)} for name, at in positions.items()],
        "fixed": {},
        "cleaning": {},
        "labels": list(task.labels) if task.labels else None,
        "splits": {name: {"rows": len(part), **task.summary(part)} for name, part in parts.items()},
        "split_notes": notes,
        "max_length": limit[0],
        "tokens": {**tokens.summary(), "added_words": []},
    }
    run.write_json("data.json", summary)
    split_of = dict(zip(kept.tolist(), splits, strict=True))
    write_splits(run, corpus.where, split_of)
    del findings
    return Gathered(
        task=task,
        corpora={"train": parts["train"], "validation": parts["validation"]},
        test=SealedCorpus(parts["test"]),
        ids=positions,
        places=corpus.where,
        tokens=tokens,
        max_length=limit[0],
        summary=summary,
        why={"data.max_length": limit[1]},
    )


def reading_of(recipe: Recipe) -> Reading:
    """Return how the recipe has files read."""
    d = recipe.data
    return Reading(encoding=d.encoding, text=d.text, label=d.label, separator=d.document_separator)


def choices_of(recipe: Recipe) -> Choices:
    """Return what the recipe says of tokens."""
    return Choices(overlap=recipe.data.overlap, mask_rate=recipe.mask.rate, whole_words=recipe.mask.whole_words)


def _read(recipe: Recipe, run: Run, kind: type[LanguageTask]) -> tuple[Corpus, list[Split | None]]:
    """Read every split's sources; return all rows end to end, and the split each was given (None: to be split)."""
    d, reading = recipe.data, reading_of(recipe)
    named: dict[Split, list[str]] = {
        "train": as_list(d.train),
        "validation": as_list(d.validation),
        "test": as_list(d.test),
    }
    read = {split: kind.read(sources, reading) for split, sources in named.items() if sources}
    given: list[Split | None] = []
    for split, part in read.items():
        open_rows = split == "train" and len(read) < len(SPLITS)
        given += [None if open_rows else split] * len(part)
    parts = list(read.values())
    corpus = parts[0] if len(parts) == 1 else kind.join(parts)
    first = 0
    origins = []
    for origin in corpus.origins:
        origins.append(replace(origin, name=discreet(origin.name), first_row=first))
        first += origin.rows
        run.record("note", message=f"read {origin.rows:,} {kind.unit} of {discreet(origin.name)} ({origin.format})")
        for note in origin.notes:
            run.record("note", message=f"{discreet(origin.name)}: {note}")
    places = [discreet(place) for place in corpus.where]
    return replace(corpus, origins=origins, where=places), given


def _audit(
    recipe: Recipe,
    run: Run,
    kind: type[LanguageTask],
    examples: Examples,
    given: Sequence[Split | None],
    tokens: Tokens,
    limit: int,
) -> tuple[npt.NDArray[np.bool_], Clusters, tuple[Finding, ...], list[dict[str, Any]]]:
    """Look for faults, tell them, and drop what the recipe says."""
    from finesmith.data.audit import apply, audit
    from finesmith.data.near_duplicates import cluster, normalise

    clusters = cluster([normalise(text) for text in examples.texts])
    findings = audit(
        examples,
        clusters=lambda: clusters,
        kind="category",
        splits=complete(given),
        lengths=tokens.original_lengths.tolist(),
        max_length=limit,
        actions=recipe.data.audit.model_dump(),
        kinds=kind.audits,
    )
    tell_findings(run, (), findings)
    applied = apply(findings, examples)
    flow: list[dict[str, Any]] = [{"stage": "read", "rows": len(examples)}]
    flow += [{"stage": f"dropped: {name}", "rows": -count} for name, count in applied.dropped.items()]
    return applied.keep, clusters, findings, flow


def _split(
    recipe: Recipe, corpus: Corpus, given: Sequence[Split | None], kept: Ints, clusters: Clusters
) -> tuple[list[Split], list[str]]:
    """Return the split of every kept row, those given respected; copies and rows of a document stay together."""
    from finesmith.data.documents import split_documents
    from finesmith.data.split import units

    names: list[Split] = [given[i] or "train" for i in kept]
    at = [place for place, i in enumerate(kept) if given[i] is None]
    if not at:
        return names, ["splits as given"]
    d, open_rows = recipe.data, kept[at]
    cut = split_documents(
        [corpus.texts[i] for i in open_rows],
        units=units(clusters, corpus.groups)[open_rows],
        validation=0.0 if "validation" in names else d.validation_fraction,
        test=0.0 if "test" in names else d.test_fraction,
        seed=d.split_seed,
    )
    for place, name in zip(at, cut, strict=True):
        names[place] = name
    return names, [] if corpus.groups is None else ["no document straddles a border between splits"]


def _count(rows: int) -> Ints:
    import numpy as np

    return np.arange(rows, dtype=np.int64)
