"""Masked text: continued pre-training of an encoder, which guesses masked words, on raw text of a domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.tasks import documents
from finesmith.tasks.corpus import Baseline, Choices, Corpus, Encoded, Outcome, Reading
from finesmith.tasks.language import LanguageTask, over_tokens, sums_by_row, targets_by_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.masking import MaskRule
    from finesmith.data.raw_text import MaskedText as Sequences
    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.tasks.language import Floats, Ints, Progress
    from finesmith.types import Batch


# The masks by which models are measured are the same in every run.
MEASURED_SEED = 0


@dataclass(frozen=True, slots=True)
class Masked:
    """text: the sequences unmasked; rule: how they are masked; maskable: [D], each document's tokens that may be."""

    text: Sequences
    rule: MaskRule
    maskable: Floats


@dataclass(frozen=True)
class MaskedText(LanguageTask):
    """Masked words of documents.

    overlap: how many tokens before it a following sequence is given as context; rate: the share of words masked;
    whole_words: whether words are masked whole. Training masks are drawn anew in every epoch, those by which it is
    measured once, so that all models guess the same words.
    """

    overlap: int
    rate: float
    whole_words: bool

    name: ClassVar[str] = "masked-text"
    unit: ClassVar[str] = "documents"
    kind: ClassVar[Kind] = "masked"
    purpose: ClassVar[Purpose] = "masked"
    baselines: ClassVar[tuple[str, ...]] = ("base", "unigram")
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
    def learn(cls, train: Corpus, choices: Choices) -> MaskedText:
        """Take what the recipe chose; there is nothing to learn beside the text."""
        del train
        return cls(choices.overlap, choices.mask_rate, choices.whole_words)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MaskedText:
        """Rebuild the task from `state`."""
        rate, whole_words = state["rate"], state["whole_words"]
        if type(rate) is not float or not 0 < rate < 1 or type(whole_words) is not bool:
            raise ValueError(rate)
        return cls(documents.overlap_of(state), rate, whole_words)

    @property
    def state(self) -> dict[str, Any]:
        """What the recipe chose."""
        return {
            "name": self.name, "overlap": self.overlap, "rate": self.rate, "whole_words": self.whole_words
        }  # fmt: skip

    @property
    def metrics(self) -> tuple[str, ...]:
        """Bits per byte, by which models of any tokenizer compare; here of masked words."""
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
        """Cut documents into sequences, masked as they are measured."""
        import numpy as np

        from finesmith.data.masking import mask, mask_rule
        from finesmith.data.raw_text import FIXED, masked_text
        from finesmith.data.supervised import Supervised

        rule = mask_rule(tokenizer, rate=self.rate, whole_words=self.whole_words)
        found = masked_text(corpus.content, tokenizer, max_length=max_length, overlap=self.overlap, cache=None)
        offsets = np.asarray(found.tokens.offsets)
        lengths = np.diff(offsets)
        tokens = np.asarray(found.tokens.tokens).astype(np.int64)
        inputs, targets = mask(
            tokens, found.maskable, lengths, np.arange(len(lengths)), rule, seed=MEASURED_SEED, epoch=0
        )
        rows = Supervised(inputs.astype(np.int32), offsets, targets.astype(np.int32))
        maskable = documents.by_document(
            sums_by_row(found.maskable != FIXED, offsets), found.documents, len(found.bytes)
        )
        notes = [f"{found.unmaskable} sequences hold nothing that can be masked"] if found.unmaskable else []
        return Encoded(rows, lengths, Masked(found, rule, maskable), notes)

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the sequences with the masks of this epoch."""
        from dataclasses import replace

        import torch

        from finesmith.data.masking import masked_batch

        text = encoded.detail.text
        batch = masked_batch(text, positions, encoded.detail.rule, seed=seed, epoch=epoch + 1, device=device)
        return replace(batch, ids=torch.from_numpy(ids[text.documents[positions]]).to(device))

    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the log probability of each document's masked tokens."""
        from finesmith.models.token_loss import token_log_probabilities

        values = over_tokens(network, encoded.rows, lambda batch: token_log_probabilities(network, batch), 1, progress)
        return _outcome(values[:, 0], encoded)

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Take the untuned model, or guess every word by how frequent its pieces are."""
        import numpy as np

        del train
        if name == "base":
            return Baseline(name, "untuned base model", lambda _, rows: self.predict(base(), rows))
        text = encoded.detail.text
        size = len(encoded.detail.rule.ordinary) + 1
        counts = np.bincount(np.asarray(text.tokens.tokens)[text.maskable > 0], minlength=1)
        chances = (counts + 1) / (counts.sum() + max(size, len(counts)))

        def guess(_: Corpus, rows: Encoded) -> Outcome:
            asked = rows.rows.targets >= 0
            wanted = np.where(asked, rows.rows.targets, 0)
            known = wanted < len(chances)
            chance = np.where(known, chances[np.where(known, wanted, 0)], chances.min())
            return _outcome(np.where(asked, np.log(chance), 0.0), rows)

        return Baseline(name, "how frequent each piece is", guess)

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure bits per byte, and perplexity a masked token."""
        import numpy as np

        assert outcome.log_probabilities is not None
        assert outcome.targets is not None
        # What all words of a document would cost, going by those that were masked.
        scale = encoded.detail.maskable / np.maximum(outcome.targets, 1)
        bits = documents.measure_bits(corpus, outcome.log_probabilities * scale)
        return {"bits_per_byte": bits, "perplexity": documents.measure_perplexity(outcome)}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return the perplexity of each document's masked words."""
        del quote
        del corpus
        return {"perplexity": documents.measure_perplexity(outcome).per_example.tolist()}

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


def _outcome(values: Floats, encoded: Encoded) -> Outcome:
    """Return log probabilities [T] as sums by document."""
    text, offsets = encoded.detail.text, encoded.rows.offsets
    count = len(text.bytes)
    sums = documents.by_document(sums_by_row(values, offsets), text.documents, count)
    targets = documents.by_document(targets_by_row(encoded.rows).astype(float), text.documents, count)
    return Outcome(None, sums, targets.astype("int64"))


TASK: type[LanguageTask] = MaskedText
