"""From data sources to sentences, documents or conversations that are audited, split and understood by a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from finesmith.data.sources import refuse_twice
from finesmith.discreet import discreet
from finesmith.errors import DataError, RunError
from finesmith.recipe import replace as replace_keys
from finesmith.recipe.language import WRITTEN
from finesmith.tasks.corpus import Choices, Contrast, Corpus, LaidOut, Reading, Speech
from finesmith.tasks.language import LanguageTask
from finesmith.tasks.preference_losses import Objective
from finesmith.tasks.two_part import settled_for
from finesmith.types import SPLITS, Examples, Finding, Split
from finesmith.workflows.about import LONGEST
from finesmith.workflows.mixture import Mixture, mixture_of
from finesmith.workflows.prepare import FIXES, complete, refuse_tiny, tell_findings, token_lengths, where, write_splits
from finesmith.workflows.rows import as_list, naming

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

    corpora: train and validation (test only in `test`, sealed); ids: int64, those of the rows of each split; mixture:
    which source each row is of; places: the place of each id, for messages; why: the reason for each inferred recipe
    key; unfit: how many rows were left out because their answer is too long.
    """

    task: LanguageTask
    corpora: Mapping[Split, Corpus]
    test: SealedCorpus
    ids: Mapping[Split, Ints]
    mixture: Mixture
    places: Sequence[str]
    max_length: int
    summary: dict[str, Any]
    why: dict[str, str]
    unfit: int = 0


def gather(
    recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, *, longest: int, two_part: bool = False
) -> Gathered:
    """Read, audit and split the data of a recipe; every row is accounted for in data.json.

    `longest` is the most tokens that the model can take; `two_part`: it is an encoder-decoder. Raises DataError for
    anything the data cannot give.
    """
    from finesmith import tasks

    kind = tasks.language_task(recipe.task)
    corpus, given, mixture = _read(recipe, run, kind)
    read = len(corpus) + sum(corpus.lost.values())
    limit = row_limit(recipe, longest)
    choices, lost = choices_of(recipe), dict(corpus.lost)
    if recipe.task in WRITTEN:
        choices = replace(choices, speech=settled_for(choices.speech, two_part=two_part))
    laid = kind.lay_out(corpus, tokenizer, choices, limit[0])
    if laid is not None:
        corpus, given = laid.corpus, [given[place] for place in laid.kept]
        mixture = replace(mixture, of=mixture.of[laid.kept])
        choices, lost = laid.choices, lost | dict(laid.lost)
        for note in laid.notes:
            run.record("note", message=note)
    examples = Examples(_count(len(corpus)), corpus.texts, corpus.answers, corpus.labels, corpus.groups)
    sequences = _sequences(corpus)
    tokens, usual = token_lengths(Examples(examples.ids, sequences), tokenizer, recipe, longest)
    limit = limit if laid is not None else usual
    if recipe.data.max_length is None and kind.usual_length is not None and limit[0] > kind.usual_length:
        limit = kind.usual_length, f"the usual length for {kind.name}; longer {kind.unit} make several sequences"
    lengths = tokens.original_lengths.reshape(-1, len(corpus)).max(axis=0)
    keep, clusters, findings, dropped = _audit(
        recipe, run, kind, examples, given, lengths, limit[0], numeric=corpus.numeric
    )
    flow = [{"stage": "read", "rows": read}, *dropped_rows(lost), *dropped]
    kept = keep.nonzero()[0]
    if not len(kept):
        raise DataError(f"{corpus.origins[0].name}: none of the {len(corpus):,} {kind.unit} can be used; see the audit")
    with naming(corpus.origins[0].name):
        splits, notes = _split(recipe, kind, corpus, given, kept, clusters)
    for note in notes:
        run.record("note", message=note)
    positions = {name: kept[where(splits, name)] for name in SPLITS}
    refuse_tiny(positions, len(kept))
    if len(positions["test"]) < FEWEST_TESTED:
        raise DataError(
            f"the test split holds {len(positions['test'])} {kind.unit}, too few to compare models on; expected "
            f"at least {FEWEST_TESTED}: raise data.test_fraction, or add {kind.unit}"
            + (", or part them with data.document_separator" if corpus.strata is None else "")
        )
    taken = {name: kind.take(corpus, at) for name, at in positions.items()}
    task = kind.learn(taken["train"], choices)
    # What the rows settle may leave other keys without effect.
    replace_keys(recipe, {key: value for key, (value, _) in task.settled.items()})
    for name in ("validation", "test"):
        task.require_known(taken[name])
    summary = {
        "task": task.name,
        "sources": [asdict(origin) for origin in corpus.origins],
        "columns": dict(corpus.columns),
        "reasons": {},
        "flow": flow + [{"stage": name, "rows": len(at)} for name, at in positions.items()],
        "fixed": {},
        "cleaning": {},
        "labels": list(task.labels) if task.labels else None,
        "splits": {name: {"rows": len(part), **task.summary(part)} for name, part in taken.items()},
        "split_notes": notes,
        "mixture": mixture.counted(recipe, positions),
        "max_length": limit[0],
        "tokens": {
            **tokens.summary(),
            **_truncated(kind, tokens, limit[0]),
            **_shortened(laid, limit[0]),
            "added_words": [],
        },
    }
    run.write_json("data.json", summary)
    split_of = dict(zip(kept.tolist(), splits, strict=True))
    write_splits(run, corpus.where, split_of)
    del findings
    return Gathered(
        task=task,
        corpora={"train": taken["train"], "validation": taken["validation"]},
        test=SealedCorpus(taken["test"]),
        ids=positions,
        mixture=mixture,
        places=corpus.where,
        max_length=limit[0],
        summary=summary,
        why={} if recipe.data.max_length is not None else {"data.max_length": limit[1]},
        unfit=0 if laid is None else laid.unfit,
    )


def _shortened(laid: LaidOut | None, longest: int) -> dict[str, Any]:
    """Return what the data page tells of rows that were cut before their bare texts were counted."""
    if laid is None or not laid.shortened:
        return {}
    return {
        "max_length": longest,
        "truncated_rows": laid.shortened,
        "truncated_share": laid.shortened / len(laid.kept),
    }


def reading_of(recipe: Recipe) -> Reading:
    """Return how the recipe has files read."""
    d = recipe.data
    return Reading(
        encoding=d.encoding,
        text=d.text,
        text_pair=d.text_pair,
        negative=d.negative,
        label=d.label,
        separator=d.document_separator,
        messages=d.messages,
        prompt=d.prompt,
        completion=d.completion,
        malformed=d.malformed,
    )


def choices_of(recipe: Recipe) -> Choices:
    """Return what the recipe says of tokens."""
    g, c = recipe.generation, recipe.contrast
    return Choices(
        overlap=recipe.data.overlap,
        mask_rate=recipe.mask.rate,
        whole_words=recipe.mask.whole_words,
        speech=Speech(
            template=recipe.text.template,
            loss=recipe.text.loss,
            too_long=recipe.text.too_long,
            malformed=recipe.data.malformed,
            max_new_tokens=g.max_new_tokens,
            strategy=g.strategy,
            temperature=g.temperature,
            top_k=g.top_k,
            top_p=g.top_p,
            beams=g.beams,
            stop=tuple(g.stop),
            shots=recipe.evaluate.shots,
            rows=recipe.evaluate.generated_rows,
            seed=recipe.train.seed,
        ),
        contrast=Contrast(
            c.loss, c.temperature, c.margin, tuple(c.widths or ()), recipe.method.pooling, recipe.train.batch_size
        ),
        objective=Objective(recipe.train.loss, **recipe.preference.model_dump()),
    )


def _read(recipe: Recipe, run: Run, kind: type[LanguageTask]) -> tuple[Corpus, list[Split | None], Mixture]:
    """Read every source; return all rows end to end, the split each was given (None: to be split), and its source."""
    d, reading = recipe.data, reading_of(recipe)
    named: dict[Split, list[str]] = {
        "train": as_list(d.train),
        "validation": as_list(d.validation),
        "test": as_list(d.test),
    }
    parts: list[Corpus] = []
    given: list[Split | None] = []
    mixed = []
    for split, sources in named.items():
        refuse_twice(sources)
        read = [kind.read([source], reading) for source in sources]
        open_rows = split == "train" and not all(named.values())
        given += [None if open_rows else split] * sum(map(len, read))
        mixed.append(([discreet(source) for source in sources], [(i, len(part)) for i, part in enumerate(read)]))
        parts += read
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
    return replace(corpus, origins=origins, where=places), given, mixture_of(mixed)


def _audit(
    recipe: Recipe,
    run: Run,
    kind: type[LanguageTask],
    examples: Examples,
    given: Sequence[Split | None],
    lengths: npt.NDArray[np.int32],
    limit: int,
    *,
    numeric: bool,
) -> tuple[npt.NDArray[np.bool_], Clusters, tuple[Finding, ...], list[dict[str, Any]]]:
    """Look for faults, tell them, and drop what the recipe says."""
    from finesmith.data.audit import apply, audit
    from finesmith.data.near_duplicates import cluster, normalise

    clusters = cluster([normalise(text) for text in examples.texts])
    findings = audit(
        examples,
        clusters=lambda: clusters,
        kind="number" if numeric else "category",
        splits=complete(given),
        lengths=lengths.tolist(),
        max_length=limit,
        actions=recipe.data.audit.model_dump(),
        kinds=kind.audits,
    )
    # Nothing is mended that labels, masks or answers point into.
    findings = tuple(
        replace(one, remedy=f"`data.audit.{one.kind}: drop` leaves them out") if one.kind in FIXES else one
        for one in findings
    )
    tell_findings(run, (), findings)
    applied = apply(findings, examples)
    return applied.keep, clusters, findings, dropped_rows(applied.dropped)


def dropped_rows(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the stages of the flow at which rows were dropped."""
    return [{"stage": f"dropped: {name}", "rows": -count} for name, count in counts.items()]


def row_limit(recipe: Recipe, longest: int) -> tuple[int, str]:
    """Return the most tokens a row may have where rows are never cut, and the reason."""
    named = recipe.data.max_length
    if named is None:
        return min(longest, LONGEST), "the model's limit"
    if named > longest:
        raise DataError(
            f"data.max_length is {named}, but the base model takes at most {longest} tokens; expected 4 to {longest}"
        )
    return named, "named in the recipe"


def _truncated(kind: type[LanguageTask], tokens: Tokens, limit: int) -> dict[str, Any]:
    """Return what cutting the texts at so many tokens leaves; None of tasks that leave rows out, or part them."""
    if "truncation" not in kind.audits:
        return {"truncated_rows": None, "truncated_share": None}
    kept = tokens.original_lengths.clip(max=limit)
    cut = int((tokens.original_lengths > kept).sum())
    return {
        "mean_length": float(kept.mean()),
        "max_length": int(kept.max()),
        "truncated_rows": cut,
        "truncated_share": cut / len(tokens),
    }


def _sequences(corpus: Corpus) -> list[str]:
    """Return the texts that the model reads, column by column: answers after their texts, other parts by themselves."""
    if corpus.answers is not None:
        return [f"{text}\n{answer}" for text, answer in zip(corpus.texts, corpus.answers, strict=True)]
    return [text for column in corpus.columns_of_texts.values() for text in column]


def _split(
    recipe: Recipe,
    kind: type[LanguageTask],
    corpus: Corpus,
    given: Sequence[Split | None],
    kept: Ints,
    clusters: Clusters,
) -> tuple[list[Split], list[str]]:
    """Return the split of every kept row, those given respected; copies and rows of a document stay together."""
    from finesmith.data.documents import FEWEST_UNITS, split_documents
    from finesmith.data.near_duplicates import normalise
    from finesmith.data.split import split, units

    names: list[Split] = [given[i] or "train" for i in kept]
    at = [place for place, i in enumerate(kept) if given[i] is None]
    if not at:
        return names, ["splits as given"]
    d, open_rows = recipe.data, kept[at]
    texts = [corpus.texts[i] for i in open_rows]
    together = units(clusters, corpus.groups)[open_rows]
    if kind.unit != "documents" and (found := len(set(together.tolist()))) < FEWEST_UNITS:
        raise DataError(
            f"{len(at):,} {kind.unit} count as {found} independent ones, for copies and what belongs together share a "
            f"split; a split needs {FEWEST_UNITS}: add some, or give a file for each split"
        )
    validation = 0.0 if "validation" in names else d.validation_fraction
    test = 0.0 if "test" in names else d.test_fraction
    notes = [] if corpus.groups is None else [kind.apart]
    if corpus.strata is None:
        # One sentence counts as another, however long it is.
        sizes = [1] * len(at) if kind.kind == "token" else None
        cut = split_documents(texts, units=together, validation=validation, test=test, seed=d.split_seed, sizes=sizes)
    else:
        strata, keys = [corpus.strata[i] for i in open_rows], [normalise(text) for text in texts]
        cut_by_label = split(strata, units=together, keys=keys, validation=validation, test=test, seed=d.split_seed)
        cut = cut_by_label.names
        if cut_by_label.small:
            rows = sum(cut_by_label.small.values())
            notes.append(f"{len(cut_by_label.small)} labels have fewer than three examples; all {rows} are in train")
    for place, name in zip(at, cut, strict=True):
        names[place] = name
    return names, notes


def _count(rows: int) -> Ints:
    import numpy as np

    return np.arange(rows, dtype=np.int64)
