"""What a task that answers for every token must be able to do. One file each, a class that does this named `TASK`.

Such a task reads its own data, for sentences, documents and conversations have little in common; says what each token
is to be answered with; and measures answers by row, so that any corpus metric has an interval and a paired test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.data.supervised import UNSUPERVISED
from finesmith.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.sources import Origin
    from finesmith.data.supervised import Supervised
    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.types import Batch

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

Progress = Callable[[int], None]

# On a processor the states of so few tokens stay near it; an accelerator wants to be kept busy.
TOKENS_ON_CPU = 2048
TOKENS_ELSEWHERE = 16384
SEQUENCES_PER_BATCH = 256


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read, as the recipe says; None where it leaves that open."""

    encoding: str | None = None
    text: str | None = None
    label: str | None = None
    separator: str | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What the recipe says of tokens: overlap of sequences cut from a document; the share of words that is masked, and
    whether words are masked whole.
    """

    overlap: int = 0
    mask_rate: float = 0.15
    whole_words: bool = True


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows as read: sentences, documents or conversations.

    texts: as copies are looked for, and people read them; labels: what equal texts may disagree about, None where the
    text is all there is; groups: rows with the same name stay in one split, None where every row is for itself; where:
    the place of each row; origins: the files; columns: which columns were read, by role; notes: what was found and
    mended; content: the same rows as the task reads them.
    """

    texts: Sequence[str]
    labels: Sequence[str] | None
    groups: Sequence[str] | None
    where: Sequence[str]
    origins: Sequence[Origin]
    columns: Mapping[str, str]
    notes: Sequence[str]
    content: Any

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Answers:
    """What is to be true of rows that are a prompt and an answer, or are supervised whole.

    stops: the tokens that end an answer, at which generation will stop; whole: every token of a row is supervised; cut:
    rows whose end was cut off; lost: how many rows were left out because their answer does not fit; prompts: the ids
    that inference would be given, for a few rows.
    """

    stops: tuple[int, ...]
    whole: bool = False
    cut: tuple[int, ...] = ()
    lost: int = 0
    prompts: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as tokens with what each is to be answered with, and what the task needs to measure the answers.

    lengths: int64 [N], tokens before anything was cut; detail: the task's own; notes: what was lost. For the probes
    before training: answers, where rows have such; spelt: the labels that targets stand for and those in the file, for
    so many of the first rows.
    """

    rows: Supervised
    lengths: Ints
    detail: Any
    notes: Sequence[str] = ()
    answers: Answers | None = None
    spelt: Callable[[Supervised, int], tuple[list[str], list[str]]] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a network, or a baseline, made of encoded rows.

    answers: the task's own, from which it measures and makes columns; log_probabilities: [N], of each row's targets in
    nats, None for a baseline that has none; targets: int64 [N], how many each row has.
    """

    answers: Any
    log_probabilities: Floats | None = None
    targets: Ints | None = None

    @property
    def loss(self) -> float:
        """The mean loss of a target, in nats."""
        assert self.log_probabilities is not None
        assert self.targets is not None
        return float(-self.log_probabilities.sum() / max(1, int(self.targets.sum())))


@dataclass(frozen=True, slots=True)
class Baseline:
    """A simpler method, fitted on train. answer: from a corpus and its encoded rows to an outcome that is measured."""

    name: str
    title: str
    answer: Callable[[Corpus, Encoded], Outcome]


class LanguageTask(ABC):
    """A task with what it learned from the training rows."""

    name: ClassVar[str]
    unit: ClassVar[str]
    kind: ClassVar[Kind]
    purpose: ClassVar[Purpose]
    baselines: ClassVar[tuple[str, ...]]
    audits: ClassVar[frozenset[str]]
    # The longest sequence in tokens where the recipe leaves it open, None where the data alone decide.
    usual_length: ClassVar[int | None]

    @classmethod
    @abstractmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read files.

        Raises DataError naming file, row and value where they cannot be this task's.
        """

    @classmethod
    @abstractmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read files of which nothing is known but what is asked; labels that they hold are not looked at.

        Raises DataError as `read` does.
        """

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay corpora end to end."""

    @classmethod
    @abstractmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the rows at `positions`, in that order."""

    @classmethod
    @abstractmethod
    def learn(cls, train: Corpus, choices: Choices) -> LanguageTask:
        """Learn from the training rows what the task needs.

        Raises DataError when they teach nothing.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> LanguageTask:
        """Rebuild the task from `state`."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must be saved beside the weights, as plain JSON values; holds the task's `name`."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """By what it is measured; the first one decides unless the recipe names another."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...] | None:
        """The classes of a head of labels, None for a head of words."""

    @classmethod
    @abstractmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Take texts of which nothing else is known.

        Raises DataError where one holds nothing.
        """

    @abstractmethod
    def require_known(self, corpus: Corpus) -> None:
        """Raise DataError where rows hold labels that training never saw."""

    @abstractmethod
    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Make tokens and targets of the rows."""

    @abstractmethod
    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return rows of `encoded` (ascending in length) as a training batch of this epoch."""

    @abstractmethod
    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Run a network over the rows."""

    @abstractmethod
    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Fit a baseline of `baselines` on the training rows and their tokens; `base` loads the untuned model, once."""

    @abstractmethod
    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure by every metric of `metrics` that can be had."""

    @abstractmethod
    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return the columns of a prediction file; with `quote` they may hold pieces of the texts."""

    @abstractmethod
    def label_column(self, corpus: Corpus, *, quote: bool) -> list[Any] | None:
        """Return what is true of each row in the form of the column `prediction`; None where nothing is labelled."""

    @abstractmethod
    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Return tables for the report."""

    @abstractmethod
    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Describe the rows of a split: counts a label, or sizes."""


def over_tokens(
    network: TokenNetwork,
    rows: Supervised,
    function: Callable[[Batch], torch.Tensor],
    width: int,
    progress: Progress | None = None,
) -> Floats:
    """Apply `function` (batch -> [S, width], a line for each target) to all rows; return float64 [T, width].

    Tokens without a target hold zeros. Raises ModelError when an output is not finite.
    """
    import numpy as np
    import torch

    from finesmith.data.batches import in_length_order
    from finesmith.data.packing import ragged
    from finesmith.data.pieces import gather

    size = TOKENS_ON_CPU if network.device.type == "cpu" else TOKENS_ELSEWHERE
    lengths, ids = rows.lengths(), np.arange(len(rows))
    found = np.zeros((len(rows.tokens), width))
    training = network.module.training
    network.module.eval()
    try:
        with torch.no_grad():
            for places in in_length_order(lengths, size, SEQUENCES_PER_BATCH):
                at = gather(rows.offsets[places], lengths[places])
                at = at[rows.targets[at] != UNSUPERVISED]
                if len(at):
                    values = function(ragged(rows, places, ids=ids, device=network.device))
                    found[at] = values.double().cpu().numpy().reshape(len(at), width)
                if progress is not None:
                    progress(len(places))
    finally:
        network.module.train(training)
    if not np.isfinite(found).all():
        raise ModelError(
            "the model's outputs are not numbers for some tokens; its weights may be damaged, or its numbers too large "
            "for this precision: try another model.base"
        )
    return found


def sums_by_row(values: npt.NDArray[Any], offsets: Ints) -> Floats:
    """Return the sum of the values [T] of each row, [N]."""
    import numpy as np

    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.asarray(np.bincount(row, weights=values, minlength=len(offsets) - 1), np.float64)


def targets_by_row(rows: Supervised) -> Ints:
    """Return how many targets each row has, int64 [N]."""
    return sums_by_row(rows.targets != UNSUPERVISED, rows.offsets).astype("int64")
