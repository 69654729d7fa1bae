"""Probes of the user's own model, data and plan that stop wrong training: what they return, and those that only look.

Each probe is a small function that returns a `Probed`; `passed` says whether training may go on. Here are those that
read plain values; `rows` holds those of token rows, `trials` those that run the network and undo what they did.
docs/preflight.md describes every one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Why each probe is there: what it has seen go wrong, in one sentence.
WHY: Mapping[str, str] = {
    "supervised share": "a mask of all zeros teaches nothing, one of all ones teaches the prompts",
    "shift": "targets shifted twice, or not at all, teach to skip a token or to repeat one",
    "stop token": "a model that never saw its stop token supervised never stops",
    "beginning of text": "a second beginning-of-text token is one the model has never seen",
    "inference prompt": "a model is asked with other tokens than it was trained on",
    "answers survive": "a row whose answer was cut away teaches nothing, and nobody is told",
    "neighbours": "packed rows that attend to each other teach what no user will ever send",
    "accumulation": "micro-batches that are averaged, not summed, weigh short rows too much",
    "every tensor learns": "what gets no gradient, or is missing in the optimiser, stays as it was",
    "finite loss": "half precision overflows on the longest rows first",
    "alone and together": "padding on the wrong side changes what a batch answers",
    "generation": "padding on the wrong side changes what a batch writes",
    "embeddings": "tied or added embeddings that do not match what is saved are lost",
    "added words": "new words whose vectors get no gradient stay what they were made of",
    "saving": "weights that do not come back from disk were never trained",
    "leakage": "rows that stand in train and test make any score too good",
    "label order": "a head whose outputs are named in another order answers wrongly for ever",
    "labels": "targets that do not spell the labels of the file teach another task",
    "base weights": "weights that were not found are random numbers, and training starts from nothing",
    "initial loss": "a loss far above that of knowing nothing says that head, labels or weights do not belong together",
    "tiny batch": "what cannot fit two rows will not fit a thousand",
    "learning rate": "a rate of another method or size destroys the model, or leaves it as it was",
    "memory": "what does not fit ends hours later, or never begins",
}

# A learning rate may be so many times smaller or larger than the usual one, and no larger than HIGHEST.
SMALLEST_RATE, LARGEST_RATE, HIGHEST = 1 / 500, 20.0, 0.2
# Models of about so many parameters have the usual rates; the best rate falls as one over the width, and the parameters
# grow as its square (Yang et al. 2022, arXiv:2203.03466).
USUAL_SIZE = 50e6
# Parts of a base model that checkpoints of other tasks leave out, and that are made anew: a pooler.
MADE_ANEW = ("pooler",)
# Families whose configuration calls all embeddings tied; whether they are, transformers sees from the weights. Encoder
# and decoder of the first are two models.
CALLED_TIED = frozenset({"encoder-decoder", "longt5", "mt5", "t5", "umt5"})
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Probed:
    """What one probe found.

    name: its name, a key of `WHY`; evidence: in a sentence that quotes no text of a row; shows: what rows say, for the
    report and the screen.
    """

    name: str
    passed: bool
    evidence: str
    remedy: str = ""
    shows: str = ""

    @property
    def why(self) -> str:
        """Why the probe is there."""
        return WHY[self.name]

    def line(self) -> str:
        """Return the result as one line for a terminal."""
        return f"{'ok  ' if self.passed else 'STOP'}  {self.name}: {self.evidence}" + (
            f". {self.remedy}" if not self.passed and self.remedy else ""
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values by name; the remedy only where there is something to mend."""
        remedy = "" if self.passed else self.remedy
        return {
            "name": self.name,
            "passed": self.passed,
            "evidence": self.evidence,
            "remedy": remedy,
            "why": self.why,
            "shows": self.shows,
        }


def initial_loss(loss: float, expected: float, *, head_is_new: bool) -> Probed:
    """Check that an untrained head starts near the loss of knowing nothing (ln of the number of classes)."""
    near = not head_is_new or loss < 2.0 * expected + 0.5
    return Probed(
        "initial loss",
        near,
        f"{loss:.3f} before training, {expected:.3f} for answers that know nothing",
        "The labels may not be in the head's order, or the base model's weights were not loaded",
    )


def own_loss(loss: float, own: float, knowing_nothing: float, *, coarse: bool) -> Probed:
    """Check that the loss is the one that the model's own forward gives, and not far above that of knowing nothing.

    coarse: the loss was computed in half precision.
    """
    same = abs(loss - own) <= (5e-2 if coarse else 1e-3) * max(1.0, abs(own))
    return Probed(
        "initial loss",
        same and own < 2.0 * knowing_nothing + 0.5,
        f"{loss:.3f} before training, {own:.3f} by the model's own forward, {knowing_nothing:.3f} for guessing",
        "The base model does not know this kind of text, its weights were not loaded, or its targets are shifted",
    )


def learning_rate_in_range(learning_rate: float, usual: float, method: str, parameters: int) -> Probed:
    """Check the peak learning rate against the range for the method and the model's size, in parameters."""
    small = math.sqrt(max(1.0, USUAL_SIZE / max(1, parameters)))
    low, high = usual * SMALLEST_RATE, min(max(HIGHEST, usual), usual * LARGEST_RATE * small)
    return Probed(
        "learning rate",
        low <= learning_rate <= high,
        f"{learning_rate:g}; usual for {method} here is about {usual:g}",
        f"Expected {low:.2g} to {high:.2g}: --set train.learning_rate={usual:g}, or auto to find one",
    )


def memory_fits(
    forecast: Mapping[str, Any], micro_batch_size: int, batch_size: int, remedy: Callable[[], str] = lambda: ""
) -> Probed:
    """Check the forecast of memory against what is free; `remedy` names the smallest change that would fit."""
    need, free, fits = forecast["total"] / 2**30, forecast["free"] / 2**30, bool(forecast["fits"])
    # What is free differs from run to run, so it is told only where it matters.
    beside = "which is free" if fits else f"but {free:.1f} GB are free"
    return Probed(
        "memory",
        fits,
        f"about {need:.1f} GB for {micro_batch_size} of {batch_size} sequences at a time, {beside}",
        "" if fits else remedy() or "Shorten data.max_length, use --set method.name=lora, or a smaller base model",
    )


def label_order(head_labels: Sequence[str] | None, model_labels: dict[int, str]) -> Probed:
    """Check that the head's outputs carry the task's labels in the task's order."""
    if head_labels is None:
        return Probed("label order", True, "one number, no labels")
    found = [model_labels.get(i) for i in range(len(head_labels))]
    same = found == list(head_labels)
    return Probed(
        "label order",
        same,
        f"{len(head_labels)} labels, {'as in' if same else 'NOT as in'} the data",
        "Whoever loads the model would read its answers under other names; mend id2label of the base model's config",
    )


def labels_agree(read: Sequence[Any], written: Sequence[Any], unit: str) -> Probed:
    """Check that targets spell the labels of the file.

    read: what the targets stand for; written: what the file says.
    """
    wrong = sum(one != other for one, other in zip(read, written, strict=False))
    wrong += abs(len(written) - len(read))
    evidence = f"{max(0, len(written) - wrong):,} of {len(written):,} {unit} have the target that their label asks for"
    return Probed("labels", not wrong, evidence, "Targets and labels were taken apart: rows or classes were reordered")


def base_weights(loaded: int, missing: Sequence[str], unexpected: int) -> Probed:
    """Check that the body of the base model was read from its file: nothing in it is random but a pooler."""
    absent = [name for name in missing if not any(part in name for part in MADE_ANEW)]
    evidence = f"{loaded:,} tensors read, {len(missing):,} missing, {unexpected:,} not used"
    if absent:
        evidence += f"; random instead: {', '.join(absent[:SHOWN])}"
    remedy = "config.json and the weights do not belong together; copy the base model again or name another"
    return Probed("base weights", not absent, evidence, remedy)


def leakage(shared: Mapping[str, int], *, kept: bool) -> Probed:
    """Check that no text stands in two splits.

    shared: how many texts two splits have in common, by their names; kept: whether the recipe asked for that.
    """
    told = ", ".join(f"{count:,} in {ways}" for ways, count in shared.items() if count)
    if not told:
        return Probed("leakage", True, "no text stands in two splits")
    return Probed(
        "leakage",
        kept,
        f"the same text stands in two splits: {told}" + ("; data.audit.leakage is keep" if kept else ""),
        "Split before copies are made, or --set data.audit.leakage=drop",
    )


def embeddings_fit(model: Any, words: int, added: Sequence[int]) -> Probed:
    """Check input and output embeddings: as many rows as the configuration says and words need, tied as it says.

    model: one of transformers; words: how many ids the tokenizer makes; added: those of words added to the vocabulary,
    as the tokenizer reads them now (-1 where not as one token), whose rows must be trainable.
    """
    table, config = model.get_input_embeddings().weight, model.config.get_text_config()
    wrong = []
    if table.shape[0] < words:
        wrong.append(f"{words:,} token ids but {table.shape[0]:,} vectors")
    if config.vocab_size != table.shape[0]:
        wrong.append(f"vocab_size is {config.vocab_size:,} for {table.shape[0]:,} vectors")
    output = model.get_output_embeddings()
    tied = output is not None and output.weight.data_ptr() == table.data_ptr()
    if output is not None and bool(config.tie_word_embeddings) != tied and model.config.model_type not in CALLED_TIED:
        wrong.append(f"tie_word_embeddings is {config.tie_word_embeddings}, but the two are {'one' if tied else 'two'}")
    if added and not table.requires_grad:
        wrong.append(f"{len(added)} words were added, and their vectors are frozen")
    if any(not 0 <= row < table.shape[0] for row in added):
        wrong.append("the tokenizer does not read every word added as one token")
    kind = "tied" if tied else "no output embeddings" if output is None else "not tied"
    return Probed(
        "embeddings",
        not wrong,
        "; ".join(wrong) or f"{table.shape[0]:,} vectors for {words:,} token ids, {kind}, {len(added)} added",
        "Base model, configuration and tokenizer must belong together",
    )
