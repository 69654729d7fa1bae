"""Embeddings: one vector a text, such that texts that belong together are near each other, and others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.data import related
from finesmith.data.pairs import Kind
from finesmith.data.related import Related
from finesmith.errors import DataError, UserError
from finesmith.evaluate.correlation import CORRELATIONS, correlations
from finesmith.tasks.corpus import Baseline, Choices, Contrast, Corpus, Encoded, Outcome, Reading, columns_of
from finesmith.tasks.embedding_rows import (
    columns_of_rows,
    corpus_of,
    cosines,
    laid_out,
    scale_of,
    search_of,
    summary_of,
    unit_length,
)
from finesmith.tasks.encoded_texts import Detail, over_texts
from finesmith.tasks.language import LanguageTask

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.encoder import Encoder
    from finesmith.models.language import Attention
    from finesmith.models.load import Base, LoadReport
    from finesmith.tasks.contrastive import Summed
    from finesmith.tasks.language import Floats, Head, Ints, Progress
    from finesmith.train.step import Backward, LossSum
    from finesmith.types import Batch

    Vectors = npt.NDArray[np.float32]

# By what the rows are, what may be learnt from them; the first is the default.
LOSSES: Mapping[Kind, tuple[str, ...]] = {
    "pairs": ("ranking",),
    "triplets": ("ranking", "triplet"),
    "scored pairs": ("similarity",),
    "labelled": ("supervised",),
}


@dataclass(frozen=True)
class Embeddings(LanguageTask):
    """Texts that belong together. rows: what told so in training; contrast: how it was learnt; scale: of scored pairs,
    the scores that are the cosines 0 and 1.
    """

    rows: Kind
    contrast: Contrast
    scale: tuple[float, float] | None = None

    name: ClassVar[str] = "embeddings"
    unit: ClassVar[str] = "rows"
    kind: ClassVar[Head] = "embedding"
    purpose: ClassVar[Purpose] = "embedding"
    baselines: ClassVar[tuple[str, ...]] = ("base", "tfidf")
    audits: ClassVar[frozenset[str]] = frozenset(
        {
            "empty", "missing_labels", "leakage", "near_leakage", "group_leakage", "exact_duplicates",
            "near_duplicates", "conflicting_labels", "broken_encoding", "html", "personal_data", "mixed_language",
            "length", "truncation", "imbalance", "small_classes", "lexical_diversity",
        }
    )  # fmt: skip
    usual_length: ClassVar[int | None] = None
    reads_pairs: ClassVar[bool] = True
    apart: ClassVar[str] = "no anchor or positive, nor a near copy of one, stands in two splits"

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read pairs, triplets, scored pairs or labelled sentences of a table."""
        from finesmith.data.sources import read

        source = read(sources, encoding=reading.encoding)
        given = {
            "text": reading.text, "text_pair": reading.text_pair, "negative": reading.negative, "label": reading.label
        }  # fmt: skip
        rows, columns = related.read_related(source, {name: column for name, column in given.items() if column})
        return corpus_of(rows, source.origins, columns)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read texts, and a second column of them where it is there."""
        from finesmith.data.sources import read

        source = read(sources, encoding=reading.encoding)
        return corpus_of(related.read_texts(source, reading.text or "text", reading.text_pair), source.origins, {})

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay rows end to end."""
        rows = related.join([part.content for part in parts])
        return corpus_of(rows, [origin for part in parts for origin in part.origins], columns_of(parts))

    @classmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the rows at `positions`; those that hang together still do."""
        groups = None if corpus.groups is None else [corpus.groups[int(p)] for p in positions]
        return laid_out(corpus.content.take(positions), corpus.origins, corpus.columns, groups)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> Embeddings:
        """Take what the recipe chose, where the rows can teach it.

        Raises UserError where they cannot, DataError where they teach nothing.
        """
        rows, chosen = train.content.kind, choices.contrast
        if chosen.loss not in ("auto", *LOSSES[rows]):
            raise UserError(
                f"contrast.loss is {chosen.loss}, but the data holds {rows}, from which {' or '.join(LOSSES[rows])} "
                "can be learnt; choose that, or name other columns"
            )
        if rows == "labelled":
            several = sum(count > 1 for count in Counter(train.content.labels).values())
            if several < 2:
                raise DataError(
                    f"{several} labels have two training sentences or more; expected at least two such labels, to "
                    "bring sentences of one together and tell those of different ones apart"
                )
        return cls(rows, chosen, None if train.content.scores is None else scale_of(train))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Embeddings:
        """Rebuild the task from `state`."""
        rows, chosen = state["rows"], dict(state["contrast"])
        if rows not in LOSSES or chosen["pooling"] not in ("auto", "mean", "cls", "last"):
            raise ValueError(rows)
        scale = None
        if rows == "scored pairs":
            low, high = (float(end) for end in state["scale"])
            if not (isfinite(low) and isfinite(high) and low < high):
                raise ValueError(low)
            scale = low, high
        return cls(rows, Contrast(**{**chosen, "widths": tuple(int(width) for width in chosen["widths"])}), scale)

    @property
    def state(self) -> dict[str, Any]:
        """What the rows were, and how it was learnt."""
        from dataclasses import asdict

        scale = {} if self.scale is None else {"scale": list(self.scale)}
        return {"name": self.name, "rows": self.rows, "contrast": asdict(self.contrast), **scale}

    @property
    def metrics(self) -> tuple[str, ...]:
        """How well what belongs together is found; a label has more fellows than ten, so its recall says little. Of
        scored pairs how well cosines go with scores.
        """
        if self.rows == "scored pairs":
            return CORRELATIONS
        return ("ndcg@10", "accuracy@1", *(() if self.rows == "labelled" else ("recall@10",)), "mrr", "map")

    @property
    def settled(self) -> Mapping[str, tuple[Any, str]]:
        """The loss of scored pairs: it reads none of the numbers that others do."""
        return {"contrast.loss": ("similarity", "the pairs have scores")} if self.rows == "scored pairs" else {}

    @property
    def labels(self) -> None:
        """There is no head."""
        return

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts by themselves."""
        return corpus_of(related.texts_of({"text": texts}, where), (), {})

    def require_known(self, corpus: Corpus) -> None:
        """Accept labels and texts of any kind, if they are told in the same way as the training rows."""
        told = corpus.content.kind
        if told != self.rows and not {told, self.rows} <= {"pairs", "triplets"}:
            raise DataError(f"{corpus.where[0]} is of {told}, but the model was tuned on {self.rows}; expected those")

    def load(
        self, base: Base, tokenizer: PreTrainedTokenizerBase, *, seed: int, dropout: float | None = None,
        attention: Attention = "auto", dtype: torch.dtype | None = None, device: str = "cpu",
    ) -> tuple[Encoder, LoadReport]:  # fmt: skip
        """Load a base model without a head."""
        from finesmith.models.language import load_encoder

        network, report = load_encoder(
            base, tokenizer, pooling=self.contrast.pooling, seed=seed, dropout=dropout, attention=attention,
            dtype=dtype, device=device,
        )  # fmt: skip
        width = network.classifier.config.get_text_config().hidden_size
        if wrong := [each for each in self.contrast.widths if each > width]:
            raise UserError(f"contrast.widths holds {wrong[0]}, but {base.name} makes {width} numbers; expected fewer")
        return network, report

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Make tokens of every text."""
        import numpy as np

        from finesmith.data.tokens import tokenize

        rows = corpus.content
        tokens = tokenize(rows.flat(), None, tokenizer, max_length=max_length, cache=None)
        width, notes = len(rows.texts), []
        if rows.labels is None:
            answers = np.tile(np.arange(width), len(rows))
        else:
            seen: dict[str | None, int] = {}
            answers = np.asarray([seen.setdefault(label, len(seen)) for label in rows.labels], np.int64)
            if alone := int((np.bincount(answers) == 1).sum()):
                notes.append(f"{alone} labels have one sentence here, which nothing can be brought together with")
        lengths = tokens.original_lengths.reshape(-1, width).sum(axis=1).astype(np.int64)
        scores = None
        if self.scale is not None and rows.scores is not None:
            low, high = self.scale
            scores = (np.asarray(rows.scores) - low) / (high - low)
        detail = Detail(tokens, answers, rows.pairs() if width > 1 else None, scores)
        return Encoded(detail.rows(), lengths, detail, notes)

    def order(self, encoded: Encoded, batch_size: int, seed: int, step: int) -> Ints:
        """Return the rows of a step: batches of one epoch after the other, of which some may have one more."""
        if self.rows == "scored pairs":
            return super().order(encoded, batch_size, seed, step)
        return encoded.detail.step(batch_size, seed, step)  # type: ignore[no-any-return]

    def steps_per_epoch(self, encoded: Encoded, batch_size: int) -> int:
        """Return how many batches an epoch has, or nearly: it can vary where many rows share a text."""
        if self.rows == "scored pairs":
            return super().steps_per_epoch(encoded, batch_size)
        return len(encoded.detail.batches(batch_size, 0, 0))

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the texts of rows, shortest first; of scored pairs with the score of each text's row in `extra`."""
        import numpy as np
        import torch

        from finesmith.data.batches import ragged

        del epoch, seed
        detail: Detail = encoded.detail
        texts = detail.places(positions)
        texts = texts[np.argsort(detail.tokens.lengths()[texts], kind="stable")]
        answers, names = torch.from_numpy(detail.answers), np.repeat(ids, detail.width)
        made = ragged(detail.tokens, texts, ids=names, targets=answers, device=device)
        if detail.scores is None:
            return made
        return replace(made, extra=torch.from_numpy(detail.scores[texts // detail.width]).to(device))

    def taught(self, encoded: Encoded, batch: Batch) -> list[str] | None:
        """Return of each text of a pair or triplet which it is."""
        assert batch.targets is not None
        names = ("first", "second") if self.rows == "scored pairs" else tuple(related.ROLES.values())
        return None if encoded.detail.pairs is None else [names[column] for column in batch.targets.tolist()]

    def loss(self, network: Encoder, encoded: Encoded, batch: Batch) -> tuple[torch.Tensor, int]:
        """Return the loss of all rows of a batch, each told from the others."""
        from finesmith.models.encoder import vectors

        del encoded
        return self._contrast(vectors(network, batch), [batch])

    def backward(self, network: Encoder, within: Callable[[], AbstractContextManager[Any]]) -> Backward:
        """Return how the gradient of a step is found: where each row is told from others, from all micro-batches'."""
        from finesmith.models.encoder import vectors
        from finesmith.tasks.contrastive import cached_backward
        from finesmith.train import step

        def encode(batch: Batch) -> torch.Tensor:
            with within():
                return _wide(vectors(network, batch))

        def whole(
            loss_sum: LossSum, batches: Sequence[Batch], units: int, seed: Callable[[int], None]
        ) -> tuple[float, int, int]:
            if len(batches) == 1 or self.rows == "scored pairs":
                loss, _, tokens = step.backward(loss_sum, batches, units, seed)
            else:
                loss, _, tokens = cached_backward(encode, batches, lambda v: self._contrast(v, batches), units, seed)
            return loss, self.units(batches), tokens

        return whole

    def units(self, batches: Sequence[Batch]) -> int:
        """Return the number of rows."""
        return sum(len(set(batch.ids.tolist())) for batch in batches)

    def probed(self, encoded: Encoded, positions: Ints) -> Ints:
        """Return rows with a fellow each where they have labels."""
        import numpy as np

        detail: Detail = encoded.detail
        if detail.pairs is not None:
            return positions
        fellows = []
        for row in positions[: max(1, len(positions) // 2)].tolist():
            others = np.flatnonzero(detail.answers == detail.answers[row])
            fellows += [row, *others[others != row][:1].tolist()]
        return np.unique(np.asarray([*fellows, *positions.tolist()], np.int64))

    def _contrast(self, vectors: torch.Tensor, batches: Sequence[Batch]) -> Summed:
        """Return the loss of the vectors of all batches, in their order."""
        import torch

        answers = torch.cat([batch.targets for batch in batches if batch.targets is not None])
        ids = torch.cat([batch.ids for batch in batches])
        scores = torch.cat([batch.extra for batch in batches]) if self.rows == "scored pairs" else None
        with torch.autocast(vectors.device.type, enabled=False):
            return self._summed(_wide(vectors), answers, ids, scores)

    def _summed(
        self, vectors: torch.Tensor, answers: torch.Tensor, ids: torch.Tensor, scores: torch.Tensor | None
    ) -> Summed:
        """Return the loss of vectors; answers, ids and scores are those of the texts that they are of."""
        from finesmith.tasks import contrastive

        chosen = self.contrast

        def labelled(parts: Sequence[torch.Tensor]) -> Summed:
            return contrastive.supervised_contrastive_loss(parts[0], answers, temperature=chosen.temperature)

        def told(parts: Sequence[torch.Tensor]) -> Summed:
            if chosen.loss == "triplet":
                return contrastive.triplet_loss(parts[0], parts[1], parts[2], margin=chosen.margin)
            if aims is not None:
                return contrastive.similarity_loss(parts[0], parts[1], aims)
            negatives = parts[2] if len(parts) > 2 else None
            return contrastive.ranking_loss(parts[0], parts[1], negatives, temperature=chosen.temperature)

        if self.rows == "labelled":
            parts, loss = [vectors], labelled
        else:
            places = [(answers == column).nonzero()[:, 0] for column in range(3 if self.rows == "triplets" else 2)]
            places = [at[ids[at].argsort()] for at in places]
            aims = None if scores is None else scores[places[0]]
            parts, loss = [vectors[at] for at in places], told
        if not chosen.widths:
            return loss(parts)
        return contrastive.nested_loss(loss, parts, [*chosen.widths, vectors.shape[1]])

    def predict(self, network: Encoder, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return a vector of unit length for every text, float32 [rows * columns, D]."""
        import numpy as np

        from finesmith.models.encoder import vectors

        detail: Detail = encoded.detail
        done = 0

        def tell(texts: int) -> None:
            nonlocal done
            before, done = done, done + texts
            if progress is not None:
                progress(done // detail.width - before // detail.width)

        found = over_texts(network, detail.tokens, lambda batch: vectors(network, batch), tell)
        lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return Outcome((found / lengths).astype(np.float32), mean_loss=self._mean_loss(found, encoded))

    def _mean_loss(self, found: Floats, encoded: Encoded) -> float | None:
        """Return the loss of batches as in training, always the same ones; None where nothing tells what is right."""
        import numpy as np
        import torch

        detail: Detail = encoded.detail
        if (self.rows == "labelled") != (detail.pairs is None) or not len(encoded.rows):
            return None
        if (self.rows == "scored pairs") != (detail.scores is not None):
            return None
        batches: tuple[Ints, ...] = (np.arange(len(encoded.rows)),)
        if detail.scores is None:
            with suppress(DataError):
                batches = detail.batches(self.contrast.batch_size, 0, 0)
        total, units = 0.0, 0
        for rows in batches:
            texts = detail.places(rows)
            ids = torch.from_numpy(np.repeat(rows, detail.width))
            answers = torch.from_numpy(detail.answers[texts])
            scores = None if detail.scores is None else torch.from_numpy(detail.scores[texts // detail.width])
            loss, count = self._summed(torch.from_numpy(found[texts]), answers, ids, scores)
            total, units = total + float(loss), units + count
        return total / max(1, units)

    def proof(self, outcome: Outcome) -> Floats:
        """Return the embeddings."""
        return outcome.answers  # type: ignore[no-any-return]

    def save(self, network: Encoder, folder: Path, max_length: int) -> None:
        """Write the encoder in the form of sentence-transformers."""
        from finesmith.models.save import save_encoder

        save_encoder(network, folder, max_length=max_length)

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], Encoder]) -> Baseline:
        """Take the untuned model, or count the words that texts have in common."""
        del encoded
        if name == "base":
            return Baseline(name, "untuned base model", lambda _, rows: self.predict(base(), rows))
        from finesmith.evaluate.baselines import word_vectors

        made = word_vectors(train.content.flat())
        return Baseline(name, "TF-IDF", lambda corpus, _: Outcome(made(corpus.content.flat())))

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure how well what belongs together is found, or cosines go with scores.

        Raises DataError where no two rows belong together.
        """
        from finesmith.evaluate.search import measure

        del encoded
        if corpus.content.scores is not None:
            return dict(correlations(corpus.content.scores, cosines(outcome.answers)))
        found = measure(search_of(corpus), outcome.answers)
        return {name: found[name] for name in self.metrics}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return what was found, or cosine and score of two texts; the embeddings where nothing tells what is right."""
        return columns_of_rows(corpus, outcome.answers, self.scale, quote=quote)

    def label_column(self, corpus: Corpus, *, quote: bool) -> list[Any] | None:
        """Return the label or score, or the positive where it may be quoted."""
        rows: Related = corpus.content
        if rows.scores is not None:
            return list(rows.scores)
        if rows.labels is not None:
            return list(rows.labels)
        return list(rows.texts["text_pair"]) if quote else None

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Return what was searched, and how well shorter embeddings do where they were trained."""
        from finesmith.evaluate.search import measure

        told, widths = {}, []
        search = None if corpus.content.scores is not None else search_of(corpus)
        if search is not None:
            counts = {"queries": len(search.queries), "documents": len(search.documents), "rows": search.rows}
            told = {"search": counts}
        for width in sorted(self.contrast.widths):
            cut = unit_length(outcome.answers[:, :width])
            found = correlations(corpus.content.scores, cosines(cut)) if search is None else measure(search, cut)
            widths.append({"width": width, **{name: one.value for name, one in found.items()}})
        return {**told, **({"widths": widths} if widths else {})}

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Count the sentences of each label, or the different texts of each column."""
        return summary_of(corpus.content)


def _wide(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors in numbers of four bytes at least: cosines over a temperature need their digits."""
    return vectors if vectors.element_size() > 4 else vectors.float()


TASK: type[LanguageTask] = Embeddings
