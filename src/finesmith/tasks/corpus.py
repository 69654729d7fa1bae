"""What passes between a language task and the story: how files are read, rows as read, as tokens, and as answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finesmith.tasks.preference_losses import UNNAMED, Objective

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.sources import Origin
    from finesmith.data.supervised import Supervised

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read, as the recipe says; None where it leaves that open."""

    encoding: str | None = None
    text: str | None = None
    label: str | None = None
    separator: str | None = None
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    malformed: str | None = None
    text_pair: str | None = None
    negative: str | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """How conversations are laid out for a model, and how it answers them.

    template: auto, own or a named chat template; loss, too_long and malformed: as the recipe says; max_new_tokens: None
    until the training answers told it; stop: texts that end an answer; shots: examples in the prompt of a baseline;
    rows: at most so many test rows are answered in writing; seed: what draws hang on.
    """

    template: str = "auto"
    loss: Literal["answers", "last", "all"] = "answers"
    too_long: Literal["drop", "shorten", "stop"] = "drop"
    malformed: str = "stop"
    max_new_tokens: int | None = None
    strategy: Literal["greedy", "sample", "beam"] = "greedy"
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    beams: int | None = None
    stop: tuple[str, ...] = ()
    shots: int = 3
    rows: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Contrast:
    """What the recipe says of embeddings: what is learnt from, how the states of tokens become one vector, and the rows
    of a batch, in which each is told from the others.
    """

    loss: str = "auto"
    temperature: float = 0.05
    margin: float = 0.5
    widths: tuple[int, ...] = ()
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class Choices:
    """What the recipe says of tokens: overlap of sequences cut from a document; the share of words that is masked, and
    whether words are masked whole; how conversations are laid out and answered; what it says of embeddings; the loss
    of preferences and its numbers.
    """

    overlap: int = 0
    mask_rate: float = 0.15
    whole_words: bool = True
    speech: Speech = Speech()
    contrast: Contrast = Contrast()
    objective: Objective = UNNAMED


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows as read: sentences, documents or conversations.

    texts: as copies are looked for, and people read them; labels: what equal texts may disagree about, None for one
    that is missing, or where the text is all there is; groups: rows with the same name stay in one split, None where
    every row is for itself; where: the place of each row; origins: the files; columns: which columns were read, by
    role; notes: what was found and mended; content: the same rows as the task reads them; answers: what stands beside
    each text and is looked at with it, but not compared as copies; parts: the columns of texts, by role, where a row
    has more than one and each is a sequence by itself; strata: what every split is to have its share of, by rows, None
    where shares are of characters; lost: rows of the files that are not here, counted by reason; numeric: labels are
    numbers.
    """

    texts: Sequence[str]
    labels: Sequence[str | None] | None
    groups: Sequence[str] | None
    where: Sequence[str]
    origins: Sequence[Origin]
    columns: Mapping[str, str]
    notes: Sequence[str]
    content: Any
    answers: Sequence[str] | None = None
    parts: Mapping[str, Sequence[str]] | None = None
    strata: Sequence[str] | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    numeric: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def columns_of_texts(self) -> Mapping[str, Sequence[str]]:
        """The texts as columns, by role."""
        return self.parts or {"text": self.texts}


def groups_of(corpus: Corpus, measured: int, answered: Ints | None) -> Sequence[str] | None:
    """Return the groups of `measured` rows of a corpus, all or those at `answered`; None where it has none."""
    if corpus.groups is None or answered is None or measured == len(corpus):
        return corpus.groups
    return [corpus.groups[row] for row in answered.tolist()]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """Rows that the model can read, as tokens in their content.

    kept: int64 [N], the places they had before; lost: how many could not be kept, by reason; notes: what was cut;
    choices: those of the recipe with what was open in them settled; unfit: how many of those lost had an answer that
    is too long; shortened: how many kept rows lost tokens.
    """

    corpus: Corpus
    kept: Ints
    lost: Mapping[str, int]
    notes: Sequence[str]
    choices: Choices
    unfit: int = 0
    shortened: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What is to be true of rows that are a prompt and an answer, or are supervised whole.

    stops: the tokens that end an answer, at which generation will stop; whole: every token of a row is supervised; cut:
    rows whose end was cut off; lost: how many rows of any split were left out because their answer does not fit;
    others: how many rows the other splits hold; prompts: the ids that inference would be given, for a few rows.
    """

    stops: tuple[int, ...]
    whole: bool = False
    cut: tuple[int, ...] = ()
    lost: int = 0
    others: int = 0
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
    nats, None for a baseline that has none; targets: int64 [N], how many each row has; mean_loss: the loss, where it
    is none of targets.
    """

    answers: Any
    log_probabilities: Floats | None = None
    targets: Ints | None = None
    mean_loss: float | None = None

    @property
    def loss(self) -> float:
        """The mean loss of a target, in nats."""
        if self.mean_loss is not None:
            return self.mean_loss
        assert self.log_probabilities is not None
        assert self.targets is not None
        return float(-self.log_probabilities.sum() / max(1, int(self.targets.sum())))


@dataclass(frozen=True, slots=True)
class Baseline:
    """A simpler method, fitted on train. answer: from a corpus and its encoded rows to an outcome that is measured."""

    name: str
    title: str
    answer: Callable[[Corpus, Encoded], Outcome]


def columns_of(parts: Sequence[Corpus]) -> Mapping[str, str]:
    """Return the columns that all parts were read by, none where they differ: a recipe can name one for all files."""
    first = parts[0].columns
    return first if all(part.columns == first for part in parts) else {}
