"""Causal text: continued pre-training of a model for next words on raw text of a domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.tasks import documents
from finesmith.tasks.corpus import Answers, Baseline, Choices, Corpus, Encoded, Outcome, Reading
from finesmith.tasks.language import LanguageTask, over_tokens, sums_by_row, targets_by_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.tasks.language import Ints, Progress
    from finesmith.types import Batch


@dataclass(frozen=True)
class CausalText(LanguageTask):
    """Next tokens of documents. overlap: how many tokens before it a following sequence is given as context."""

    overlap: int

    name: ClassVar[str] = "causal-text"
    unit: ClassVar[str] = "documents"
    kind: ClassVar[Kind] = "causal"
    purpose: ClassVar[Purpose] = "causal"
    baselines: ClassVar[tuple[str, ...]] = ("base", "ngram")
    audits: ClassVar[frozenset[str]] = documents.AUDITS
    usual_length: ClassVar[int | None] = documents.USUAL_LENGTH

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read documents."""
        return documents.read(sources, reading)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read documents."""
        return documents.read(sources, reading)

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay documents end to end."""
        return documents.join(parts)

    @classmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the documents at `positions`."""
        return documents.take(corpus, positions)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> CausalText:
        """Take what the recipe chose; there is nothing to learn beside the text."""
        del train
        return cls(choices.overlap)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CausalText:
        """Rebuild the task from `state`."""
        return cls(documents.overlap_of(state))

    @property
    def state(self) -> dict[str, Any]:
        """The overlap."""
        return {"name": self.name, "overlap": self.overlap}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Bits per byte, by which models of any tokenizer compare."""
        return ("bits_per_byte",)

    @property
    def labels(self) -> None:
        """Words have no labels."""
        return

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts, a document each."""
        return documents.of_texts(texts, where)

    def require_known(self, corpus: Corpus) -> None:
        """Accept any text."""
        del corpus

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Cut documents into sequences that predict every token once."""
        from finesmith.data.raw_text import causal_text

        found = causal_text(corpus.content, tokenizer, max_length=max_length, overlap=self.overlap, cache=None)
        # Only the last sequence of a document holds its end.
        cut = (found.documents[:-1] == found.documents[1:]).nonzero()[0]
        answers = Answers((int(tokenizer.eos_token_id),), whole=True, cut=tuple(cut.tolist()))
        return Encoded(found.rows, found.rows.lengths(), found, answers=answers)

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the sequences as they are, in every epoch."""
        from finesmith.data.packing import ragged

        del epoch, seed
        return ragged(encoded.rows, positions, ids=ids[encoded.detail.documents], device=device)

    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return each document's log probability."""
        from finesmith.models.token_loss import token_log_probabilities

        values = over_tokens(network, encoded.rows, lambda batch: token_log_probabilities(network, batch), 1, progress)
        count = len(encoded.detail.bytes)
        sums = documents.by_document(sums_by_row(values[:, 0], encoded.rows.offsets), encoded.detail.documents, count)
        targets = documents.by_document(targets_by_row(encoded.rows).astype(float), encoded.detail.documents, count)
        return Outcome(None, sums, targets.astype("int64"))

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Take the untuned model, or count what follows every few bytes."""
        del encoded
        if name == "base":
            return Baseline(name, "untuned base model", lambda _, rows: self.predict(base(), rows))
        from finesmith.evaluate.byte_ngrams import fit_bytes, log_probabilities

        model = fit_bytes(train.texts)
        return Baseline(name, "byte 6-grams", lambda corpus, _: Outcome(None, log_probabilities(model, corpus.texts)))

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure bits per byte, and perplexity where tokens are predicted."""
        del encoded
        assert outcome.log_probabilities is not None
        found = {"bits_per_byte": documents.measure_bits(corpus, outcome.log_probabilities)}
        return found if outcome.targets is None else {**found, "perplexity": documents.measure_perplexity(outcome)}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return bits per byte and perplexity of each document."""
        del quote
        assert outcome.log_probabilities is not None
        bits = documents.measure_bits(corpus, outcome.log_probabilities).per_example
        return {
            "bits_per_byte": bits.tolist(), "perplexity": documents.measure_perplexity(outcome).per_example.tolist()
        }  # fmt: skip

    def label_column(self, corpus: Corpus, *, quote: bool) -> None:
        """Return nothing: text has no labels."""
        del corpus, quote

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Return nothing beyond the scores."""
        del corpus, outcome
        return {}

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Count documents, words and characters."""
        return documents.summary(corpus)


TASK: type[LanguageTask] = CausalText
