"""Masked text: continued pre-training of an encoder, which guesses masked words, on raw text of a domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from finesmith.tasks.language import Floats, Ints, Part, Progress
    from finesmith.types import Batch


# The masks by which models are measured are the same in every run.
MEASURED_SEED = 0
# Tokens one by one cost a sequence each, so they are drawn: sequences of so many tokens in all.
DRAWN_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class Masked:
    """text: the sequences unmasked; rule: how they are masked; maskable: [D], each document's tokens that may be;
    drawn: int64 [K], the places in `text` of tokens that are also guessed one by one.
    """

    text: Sequences
    rule: MaskRule
    maskable: Floats
    drawn: Ints


@dataclass(frozen=True, slots=True)
class OneByOne:
    """What tokens masked by themselves cost. log_probabilities: [D], of those of each document, in nats; targets: int64
    [D], how many these are; maskable: how many there were to draw from.
    """

    log_probabilities: Floats
    targets: Ints
    maskable: int


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
        return Encoded(rows, lengths, Masked(found, rule, maskable, np.empty(0, np.int64)), notes)

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the sequences with the masks of this epoch."""
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

    def narrow(self, encoded: Encoded, split: Part) -> Encoded:
        """Draw the tokens that are guessed one by one, on test and where scores are asked for; elsewhere none."""
        from finesmith.data.masking import draw_tokens

        if split not in ("test", "scored"):
            return encoded
        drawn = draw_tokens(encoded.detail.text, DRAWN_TOKENS, seed=MEASURED_SEED)
        return replace(encoded, detail=replace(encoded.detail, drawn=drawn))

    def answer(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the log probabilities of masked tokens, and of those drawn, each masked without the others."""
        import numpy as np

        from finesmith.data.masking import one_at_a_time
        from finesmith.models.token_loss import token_log_probabilities

        outcome, detail = self.predict(network, encoded, progress), encoded.detail
        if not len(detail.drawn):
            return outcome
        rows = one_at_a_time(detail.text, detail.rule, detail.drawn)
        values = over_tokens(network, rows, lambda batch: token_log_probabilities(network, batch), 1)
        sequences = np.searchsorted(np.asarray(detail.text.tokens.offsets), detail.drawn, side="right") - 1
        owners, count = detail.text.documents[sequences], len(detail.text.bytes)
        sums = documents.by_document(sums_by_row(values[:, 0], rows.offsets), owners, count)
        each = OneByOne(sums, np.bincount(owners, minlength=count), int(detail.maskable.sum()))
        return replace(outcome, answers=each)

    def answered(self, outcome: Outcome) -> Ints | None:
        """Return the documents of which tokens were guessed one by one."""
        return None if outcome.answers is None else outcome.answers.targets.nonzero()[0]

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Take the untuned model, or guess every word by how frequent its pieces are."""
        import numpy as np

        del train
        if name == "base":
            return Baseline(name, "untuned base model", lambda _, rows: self.answer(base(), rows))
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
        """Measure bits per byte and perplexity of masked tokens, and of those guessed one by one pseudo-perplexity."""
        import numpy as np

        from finesmith.evaluate.language_scores import perplexity

        assert outcome.log_probabilities is not None
        assert outcome.targets is not None
        # What all words of a document would cost, going by those that were masked.
        scale = encoded.detail.maskable / np.maximum(outcome.targets, 1)
        bits = documents.measure_bits(corpus, outcome.log_probabilities * scale)
        found = {"bits_per_byte": bits, "perplexity": documents.measure_perplexity(outcome)}
        if (told := self.answered(outcome)) is not None:
            one = outcome.answers
            found["pseudo_perplexity"] = perplexity(
                np.minimum(one.log_probabilities[told], 0.0), one.targets[told], metric="pseudo_perplexity"
            )
        return found

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return the perplexity of each document's masked words."""
        del quote
        del corpus
        return {"perplexity": documents.measure_perplexity(outcome).per_example.tolist()}

    def label_column(self, corpus: Corpus, *, quote: bool) -> None:
        """Return nothing: text has no labels."""
        del corpus, quote

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Count the tokens guessed one by one, and those they were drawn from."""
        del corpus
        one = outcome.answers
        return {} if one is None else {"one_by_one": {"tokens": int(one.targets.sum()), "of": one.maskable}}

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
