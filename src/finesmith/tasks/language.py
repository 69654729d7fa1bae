"""What a task that answers for every token must be able to do. One file each, a class that does this named `TASK`.

Such a task reads its own data, for sentences, documents and conversations have little in common; says what each token
is to be answered with; and measures answers by row, so that any corpus metric has an interval and a paired test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finesmith.data.supervised import UNSUPERVISED
from finesmith.errors import ModelError
from finesmith.tasks.corpus import Baseline, Choices, Corpus, Encoded, LaidOut, Outcome, Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.supervised import Supervised
    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.forward import Network
    from finesmith.models.language import Attention
    from finesmith.models.load import Base, LoadReport
    from finesmith.models.token_heads import Kind
    from finesmith.train.step import Backward
    from finesmith.types import Batch, Split

    # What the model ends in: a head of words or labels, or nothing.
    Head = Kind | Literal["embedding"]
    Part = Split | Literal["proof", "scored"]

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

Progress = Callable[[int], None]

# On a processor the states of so few tokens stay near it; an accelerator wants to be kept busy.
TOKENS_ON_CPU = 2048
TOKENS_ELSEWHERE = 16384
SEQUENCES_PER_BATCH = 256


class LanguageTask(ABC):
    """A task with what it learned from the training rows."""

    name: ClassVar[str]
    unit: ClassVar[str]
    kind: ClassVar[Head]
    purpose: ClassVar[Purpose]
    baselines: ClassVar[tuple[str, ...]]
    audits: ClassVar[frozenset[str]]
    # The longest sequence in tokens where the recipe leaves it open, None where the data alone decide.
    usual_length: ClassVar[int | None]
    # Whether the tokenizer's chat template is read, and saved with the model.
    speaks: ClassVar[bool] = False
    # Times the usual learning rates of a method.
    rate_scale: ClassVar[float] = 1.0
    # Whether rows to predict may have a second text.
    reads_pairs: ClassVar[bool] = False
    # What a split that keeps groups together promises.
    apart: ClassVar[str] = "no document straddles a border between splits"

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
    def lay_out(
        cls, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int
    ) -> LaidOut | None:
        """Return the rows that a model can read where only their tokens tell; by default None: all of them.

        Raises DataError where rows cannot be read and are not to be dropped.
        """
        del corpus, tokenizer, choices, max_length
        return None

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
    def selecting(self) -> str | None:
        """The metric by which the best step is chosen where it is not the one that decides; cheap, and of `predict`."""
        return None

    @property
    def choices(self) -> Choices:
        """What rows are laid out by; by default what a recipe leaves open, for tasks that lay none out."""
        return Choices()

    @property
    def settled(self) -> Mapping[str, tuple[Any, str]]:
        """The recipe's keys that the task settled, each with its value and the reason."""
        return {}

    @property
    def head(self) -> Head:
        """What the model ends in: by default the same in every run of the task."""
        return self.kind

    @property
    def why_metric(self) -> str:
        """Why the first metric is the one that decides."""
        return f"the default of {self.name}"

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

    def order(self, encoded: Encoded, batch_size: int, seed: int, step: int) -> Ints:
        """Return the positions of the rows of a step: by default every row once an epoch, in an order drawn anew."""
        from finesmith.data.batches import batch_positions

        return batch_positions(len(encoded.rows), batch_size, seed=seed, step=step)

    def steps_per_epoch(self, encoded: Encoded, batch_size: int) -> int:
        """Return how many steps see every row once."""
        from finesmith.data.batches import steps_per_epoch

        return steps_per_epoch(len(encoded.rows), batch_size)

    def load(
        self,
        base: Base,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        dropout: float | None = None,
        attention: Attention = "auto",
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> tuple[Any, LoadReport]:
        """Load a base model under the head that the task needs, as the network that other functions are given.

        Raises ModelError when it cannot be loaded or cannot do this.
        """
        from finesmith.models.language import load_language_model

        assert self.head != "embedding"
        return load_language_model(
            base, tokenizer, kind=self.head, labels=self.labels, seed=seed, dropout=dropout, attention=attention,
            dtype=dtype, device=device,
        )  # fmt: skip

    @property
    def refers(self) -> bool:
        """Whether rows are measured against the network before tuning, and so have to go through `begin`."""
        return False

    def begin(self, network: Any, encoded: Encoded, *, cache: Path | None, key: str) -> Encoded:
        """Return rows with what the task asks of the network before it is tuned: by default nothing more.

        `cache` is a folder that keeps results; `key` names the network's weights and how it computes.
        """
        del network, cache, key
        return encoded

    def taught(self, encoded: Encoded, batch: Batch) -> Sequence[str] | None:
        """Return in a word what each sequence of a batch is, where its tokens do not tell; by default nothing."""
        del encoded, batch
        return None

    def prepared(self, network: Any, encoded: Encoded, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches of a step with what takes all of them and the present weights: by default nothing more."""
        del network, encoded
        return list(batches)

    def loss(self, network: Any, encoded: Encoded, batch: Batch) -> tuple[torch.Tensor, int]:
        """Return the sum of the losses of a batch made of `encoded`, and of how many units."""
        from finesmith.models.token_loss import token_loss

        del encoded
        return token_loss(network, batch)

    def backward(self, network: Any, within: Callable[[], AbstractContextManager[Any]]) -> Backward:
        """Return how the gradient of a step is found: by default as a sum over its micro-batches.

        A task whose loss needs all of them at once runs the network `within` the precision of the run.
        """
        from finesmith.train.step import backward

        del network, within
        return backward

    def probed(self, encoded: Encoded, positions: Ints) -> Ints:
        """Return rows to try training on: those at `positions`, and what their loss cannot be without."""
        del encoded
        return positions

    def units(self, batches: Sequence[Batch]) -> int:
        """Return by what the losses of a step's batches are divided, their sum: by default the number of targets."""
        return sum(int((batch.targets != UNSUPERVISED).sum()) for batch in batches if batch.targets is not None)

    @abstractmethod
    def predict(self, network: Any, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Run a network over the rows."""

    def narrow(self, encoded: Encoded, split: Part) -> Encoded:
        """Return rows of a split, of the proof that the saved network is the evaluated one, or to be scored outside of
        a run, with those marked that are answered at length: by default as they are.
        """
        del split
        return encoded

    def answer(self, network: Any, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Run a network over the rows as it is used, not only as it is trained: by default the same."""
        return self.predict(network, encoded, progress)

    def answered(self, outcome: Outcome) -> Ints | None:
        """Return the rows that were answered at length where these are not all, as metrics of answers count them."""
        del outcome
        return None

    def proof(self, outcome: Outcome) -> Floats:
        """Return numbers by which a network that was saved and loaded again shows that it is the same."""
        assert outcome.log_probabilities is not None
        return outcome.log_probabilities

    def differs(self, before: Outcome, after: Outcome) -> str | None:
        """Say how a saved network's answers differ from the evaluated one's beyond `proof`; by default None."""
        del before, after
        return None

    def save(self, network: Any, folder: Path, max_length: int) -> None:
        """Write a network that was trained whole in the form that plain libraries load."""
        from finesmith.models.save import save_classifier

        del max_length
        save_classifier(network, folder)

    def complete(self, network: Any, folder: Path) -> None:
        """Write what other programs need beside the weights into a saved folder: by default nothing more."""
        del network, folder

    @abstractmethod
    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], Any]) -> Baseline:
        """Fit a baseline of `baselines` on the training rows and their tokens; `base` loads the untuned model, once.

        Raises DataError where these rows do not allow it.
        """

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
    network: Network,
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
