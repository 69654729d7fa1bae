"""Token classification: a label for every word, such as names of persons and places, or parts of speech."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.data.supervised import UNSUPERVISED
from finesmith.data.tags import OUTSIDE, SCHEMES, Scheme, Sentences, label_names, spans_of
from finesmith.errors import DataError
from finesmith.tasks.corpus import Baseline, Choices, Corpus, Encoded, Outcome, Reading, columns_of
from finesmith.tasks.language import LanguageTask, over_tokens, sums_by_row, targets_by_row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.sources import Origin, Source
    from finesmith.data.supervised import Supervised
    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.tasks.language import Floats, Ints, Progress
    from finesmith.types import Batch

# What others call the columns of words and of labels, in the order in which they are looked for.
WORD_COLUMNS = ("tokens", "words", "text", "sentence")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "entities", "spans", "label", "pos_tags")
FEWEST_LABELS = 2
TABLES = frozenset({".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".xlsx"})


@dataclass(frozen=True)
class TokenClassification(LanguageTask):
    """Labels of words. names: the classes in the head's order; scheme: how the tags of the file name spans."""

    names: tuple[str, ...]
    scheme: Scheme

    name: ClassVar[str] = "token-classification"
    unit: ClassVar[str] = "sentences"
    kind: ClassVar[Kind] = "token"
    purpose: ClassVar[Purpose] = "token_classification"
    baselines: ClassVar[tuple[str, ...]] = ("majority", "word_tag")
    audits: ClassVar[frozenset[str]] = frozenset(
        {
            "empty", "leakage", "near_leakage", "group_leakage", "exact_duplicates", "near_duplicates",
            "conflicting_labels", "broken_encoding", "html", "personal_data", "mixed_language", "length",
            "truncation", "lexical_diversity",
        }
    )  # fmt: skip

    usual_length: ClassVar[int | None] = None

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read CoNLL columns, or rows with words and tags, or with a text and its spans."""
        tabled = [_is_table(source) for source in sources]
        if all(tabled):
            return _read_table(sources, reading)
        if any(tabled):
            raise DataError(
                f"{sources[tabled.index(True)]} is a table and {sources[tabled.index(False)]} is not; expected all "
                "sources of a split in one form"
            )
        return _read_columns(sources, reading)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read words; every one is tagged O until the model says otherwise."""
        tabled = all(_is_table(source) for source in sources)
        return (_read_table if tabled else _read_columns)(sources, reading, labelled=False)

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay corpora end to end; their tags must be of one kind."""
        contents = [part.content for part in parts]
        plain = {content.scheme == "plain" for content in contents}
        if len(plain) > 1:
            raise DataError(
                f"{parts[0].where[0]} and {parts[1].where[0]} disagree: the tags of one have prefixes such as B-, "
                "those of the other have none; expected one kind in all files"
            )
        groups = None if any(part.groups is None for part in parts) else [g for p in parts for g in p.groups or ()]
        sentences = Sentences(
            tuple(text for each in contents for text in each.texts),
            tuple(place for each in contents for place in each.places),
            tuple(tags for each in contents for tags in each.tags),
            tuple(range(sum(map(len, contents)))),
            tuple(where for each in contents for where in each.where),
            contents[0].scheme,
            spanned=all(each.spanned for each in contents),
        )
        origins = [origin for part in parts for origin in part.origins]
        return _corpus(sentences, groups, origins, columns_of(parts), [note for part in parts for note in part.notes])

    @classmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the sentences at `positions`."""
        order, whole = [int(p) for p in positions], corpus.content
        sentences = Sentences(
            tuple(whole.texts[p] for p in order),
            tuple(whole.places[p] for p in order),
            tuple(whole.tags[p] for p in order),
            tuple(whole.documents[p] for p in order),
            tuple(whole.where[p] for p in order),
            whole.scheme,
            spanned=whole.spanned,
        )
        groups = None if corpus.groups is None else [corpus.groups[p] for p in order]
        return _corpus(sentences, groups, corpus.origins, corpus.columns, corpus.notes)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> TokenClassification:
        """Learn the classes.

        Raises DataError when all words have the same tag.
        """
        del choices
        names = label_names(train.content.tags, train.content.scheme)
        if len(names) < FEWEST_LABELS:
            raise DataError(
                f"all words of the training sentences are tagged {names[0] if names else OUTSIDE!r}; expected at least "
                "two tags: check that the last column holds them, or name their column with --set data.label=COLUMN"
            )
        return cls(names, train.content.scheme)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TokenClassification:
        """Rebuild the task from `state`."""
        names, scheme = state["labels"], state["scheme"]
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not known or len(set(names)) != len(names) or len(names) < FEWEST_LABELS or scheme not in SCHEMES:
            raise ValueError(scheme)
        return cls(tuple(names), scheme)

    @property
    def state(self) -> dict[str, Any]:
        """The classes and the scheme."""
        return {"name": self.name, "labels": list(self.names), "scheme": self.scheme}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Spans where there are any, else words."""
        spans = ("span_f1", "span_precision", "span_recall")
        return ("token_accuracy",) if self.scheme == "plain" else (*spans, "token_accuracy")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the head's order."""
        return self.names

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts; their words are runs of letters and digits, and every other character."""
        from finesmith.data.spans import sentences_of_spans

        return _corpus(sentences_of_spans(texts, [[] for _ in texts], where), None, (), {}, ())

    def require_known(self, corpus: Corpus) -> None:
        """Refuse tags that training never saw."""
        known = set(self.names)
        for tags, place in zip(corpus.content.tags, corpus.content.where, strict=True):
            if odd := next((tag for tag in tags if tag not in known), None):
                raise DataError(
                    f"{place}: tag {odd[:80]!r} does not occur in the training sentences, whose tags are "
                    f"{', '.join(name[:40] for name in self.names[:12])}: mend it, or add such sentences to data.train"
                )

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Make tokens, each word's label on its first piece."""
        import numpy as np

        from finesmith.data.pieces import frame_of, placed
        from finesmith.data.token_labels import label_tokens

        found = label_tokens(corpus.content, self.names, tokenizer, max_length=max_length)
        whole = placed(corpus.content.texts, tokenizer, where=corpus.content.where)
        notes = []
        if found.cut_rows:
            notes.append(
                f"{found.cut_rows} sentences are longer than {max_length} tokens: {found.cut_words} words and "
                f"{found.cut_spans} spans lie beyond; they count as answered with {OUTSIDE}"
            )
        if found.empty_words or found.hidden_spans:
            notes.append(f"{found.empty_words} words are nothing to the tokenizer; {found.hidden_spans} spans start so")
        lengths = np.diff(whole.offsets) + len(frame_of(tokenizer))

        def spelt(rows: Supervised, count: int) -> tuple[list[str], list[str]]:
            end = int(found.word_offsets[count])
            speaks = (found.heads[:end] >= 0) & ~found.shared[:end]
            tags = [tag for row in corpus.content.tags[:count] for tag in row]
            asked_of = np.zeros(len(rows.tokens), bool)
            asked_of[found.heads[:end][speaks]] = True
            asked_of[: rows.offsets[count]] |= rows.targets[: rows.offsets[count]] != UNSUPERVISED
            read = [self.names[target] if target >= 0 else "" for target in rows.targets[asked_of].tolist()]
            return read, [tag for tag, asked in zip(tags, speaks.tolist(), strict=True) if asked]

        return Encoded(found.rows, lengths, found, notes, spelt=spelt)

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the rows as they are, in every epoch."""
        del epoch, seed
        from finesmith.data.packing import ragged

        return ragged(encoded.rows, positions, ids=ids, device=device)

    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the likeliest tag of every word."""
        import torch

        from finesmith.models.token_loss import token_logits

        def answer(batch: Batch) -> torch.Tensor:
            logs = token_logits(network, batch).double().log_softmax(dim=1)
            assert batch.targets is not None
            truth = batch.targets[batch.targets != -100]
            return torch.stack([logs.argmax(dim=1).double(), logs.gather(1, truth[:, None])[:, 0]], dim=1)

        values = over_tokens(network, encoded.rows, answer, 2, progress)
        tags = encoded.detail.word_tags(values[:, 0].astype(int))
        return Outcome(tags, sums_by_row(values[:, 1], encoded.rows.offsets), targets_by_row(encoded.rows))

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Fit the most frequent tag of all words (O, as a rule), or that of each word."""
        del encoded, base
        tags: Counter[str] = Counter()
        by_word: dict[str, Counter[str]] = {}
        for row in range(len(train)):
            for word, tag in zip(train.content.words(row), train.content.tags[row], strict=True):
                tags[tag] += 1
                by_word.setdefault(word, Counter())[tag] += 1
        usual = tags.most_common(1)[0][0]
        if name == "majority":
            return Baseline(
                name,
                f"every word is {usual}",
                lambda corpus, _: Outcome([[usual] * len(t) for t in corpus.content.tags]),
            )
        best = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}

        def look_up(corpus: Corpus, _: Encoded) -> Outcome:
            rows = range(len(corpus))
            return Outcome([[best.get(word, usual) for word in corpus.content.words(row)] for row in rows])

        return Baseline(name, "most frequent tag of each word", look_up)

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure spans as conlleval does, and the share of right words."""
        del encoded
        import numpy as np

        from finesmith.evaluate.measurement import Measurement, divided, ratio
        from finesmith.evaluate.spans import span_f1

        rows = np.zeros((len(corpus), 2))
        for row, (ours, theirs) in enumerate(zip(outcome.answers, corpus.content.tags, strict=True)):
            rows[row] = sum(a == b for a, b in zip(ours, theirs, strict=True)), len(theirs)
        words = Measurement("token_accuracy", rows, ratio, ratio(rows), "unit")
        if self.scheme == "plain":
            return {"token_accuracy": words}
        f1 = span_f1(outcome.answers, corpus.content.tags)

        def share(of: int) -> Callable[[Floats], Floats]:
            return lambda sums: divided(sums[..., 0], sums[..., of])

        found = {"span_f1": f1}
        for name, of in (("span_precision", 1), ("span_recall", 2)):
            found[name] = replace(f1, metric=name, combine=share(of), per_example=share(of)(f1.statistics))
        return {**found, "token_accuracy": words}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return the spans found, with their words where quoting is allowed, and the tag of every word; of texts that
        were not given as words the spans by their characters too, as a training file has them.
        """
        from finesmith.data.spans import character_spans

        tags = outcome.answers
        found: dict[str, list[Any]] = {"prediction": self._shown(corpus, tags, quote), "tags": [list(t) for t in tags]}
        if corpus.content.spanned and self.scheme != "plain":
            found["spans"] = [
                [{"start": a, "end": b, "label": label} for a, b, label in character_spans(corpus.content, row, each)]
                for row, each in enumerate(tags)
            ]
        return found

    def label_column(self, corpus: Corpus, *, quote: bool) -> list[Any]:
        """Return the true spans."""
        return self._shown(corpus, corpus.content.tags, quote)

    def _shown(self, corpus: Corpus, tags: Sequence[Sequence[str]], quote: bool) -> list[list[str]]:
        shown = []
        for row, found in enumerate(tags):
            words = corpus.content.words(row)
            if self.scheme == "plain":
                shown.append([f"{at + 1} {tag}" + (f": {words[at]}" if quote else "") for at, tag in enumerate(found)])
                continue
            shown.append(
                [
                    f"{label} {start + 1}-{stop}" + (f": {' '.join(words[start:stop])}" if quote else "")
                    for start, stop, label in spans_of(found)
                ]
            )
        return shown

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Return precision, recall and F1 of every kind of span."""
        if self.scheme == "plain":
            return {}
        from finesmith.evaluate.spans import span_scores

        _, kinds = span_scores(outcome.answers, corpus.content.tags)
        return {
            "per_class": [
                {
                    "label": kind, "precision": found.precision, "recall": found.recall, "f1": found.f1,
                    "support": found.expected, "predicted": found.predicted,
                }
                for kind, found in kinds.items()
            ]
        }  # fmt: skip

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Count the spans of each kind, or the words of each tag."""
        if self.scheme == "plain":
            return {"labels": dict(Counter(tag for tags in corpus.content.tags for tag in tags).most_common())}
        kinds = Counter(label for tags in corpus.content.tags for _, _, label in spans_of(tags))
        return {"labels": dict(kinds.most_common())}


def _corpus(
    sentences: Sentences,
    groups: Sequence[str] | None,
    origins: Sequence[Origin],
    columns: Mapping[str, str],
    notes: Sequence[str],
) -> Corpus:
    tags = [" ".join(row) for row in sentences.tags]
    return Corpus(sentences.texts, tags, groups, sentences.where, origins, columns, notes, sentences)


def _is_table(source: str) -> bool:
    path = Path(source)
    packed = path.suffix.lower() == ".gz"
    return (Path(path.stem) if packed else path).suffix.lower() in TABLES or not path.is_file()


def _read_columns(sources: Sequence[str], reading: Reading, *, labelled: bool = True) -> Corpus:
    """Read files with a word and its tag on each line."""
    for name, column in (("text", reading.text), ("label", reading.label)):
        if column is not None:
            raise DataError(
                f"{sources[0]} holds a word and its tag on each line and has no named columns, but data.{name} is "
                f"{column[:80]!r}; leave data.{name} out"
            )
    from finesmith.data.columns import read_conll
    from finesmith.data.sources import Origin, sha256

    parts, origins = [], []
    for source in sources:
        found = read_conll([source], encoding=reading.encoding, labelled=labelled)
        told = ", ".join(found.encodings)
        origin = Origin(source, "conll", told, len(found), 0, sha256(Path(source)), found.notes)
        names = [f"{source} document {number}" for number in found.documents]
        groups = names if len(set(names)) < len(names) else None
        parts.append(_corpus(found, groups, [origin], {}, ()))
        origins.append(origin)
    return parts[0] if len(parts) == 1 else TokenClassification.join(parts)


def _read_table(sources: Sequence[str], reading: Reading, *, labelled: bool = True) -> Corpus:
    from finesmith.data.columns import sentences_of_lists
    from finesmith.data.sources import read
    from finesmith.data.spans import sentences_of_spans

    source = read(sources, encoding=reading.encoding)
    text = reading.text or _first(source, WORD_COLUMNS, "words", "text")
    label = (reading.label or _first(source, TAG_COLUMNS, "tags or spans", "label")) if labelled else text
    for name in (text, label):
        if name not in source.table.column_names:
            listed = ", ".join(source.table.column_names)
            key = "data.text" if name == text else "data.label"
            raise DataError(
                f"{source.origins[0].name} has no column {name[:80]!r}; its columns are {listed[:300]}: name the right "
                f"one with --set {key}=COLUMN (predict and evaluate: --{key[5:]})"
            )
    texts, labels = (_unfolded(source.table.column(name).to_pylist()) for name in (text, label))
    read_lists = isinstance(next((each for each in texts if each is not None), None), list)
    if not labelled:
        labels = [[OUTSIDE] * len(row) if isinstance(row, list) else [] for row in texts]
    found = (sentences_of_lists if read_lists else sentences_of_spans)(texts, labels, source.places())
    return _corpus(found, None, source.origins, {"text": text, "label": label}, found.notes)


def _unfolded(values: list[Any]) -> list[Any]:
    """Return a column with lists where they came as JSON texts, as they do beside values of other types."""
    opened = [_from_json(each) if isinstance(each, str) and each.startswith("[") else each for each in values]
    lists = sum(isinstance(each, list) for each in opened)
    return opened if 2 * lists > sum(each is not None for each in values) else values


def _from_json(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) else text


def _first(source: Source, known: Sequence[str], what: str, key: str) -> str:
    names = source.table.column_names
    found = next((name for name in known if name in names), None)
    if found is None:
        raise DataError(
            f"{source.origins[0].name} has no column that looks like {what}; its columns are {', '.join(names)[:300]}: "
            f"name it with --set data.{key}=COLUMN"
        )
    return found


TASK: type[LanguageTask] = TokenClassification
