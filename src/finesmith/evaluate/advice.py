"""What to try next, from what a run showed: each piece of advice is a change to the recipe and the reason for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to try. changes: recipe values by dotted key (none where only data can help); why: one sentence."""

    why: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run showed, as plain values.

    last_is_best: the last evaluation was the best; rose: validation loss rose while training loss fell; train and
    validation: the headline metric; features: the frozen-features baseline's gap to the tuned model on validation in
    units of improvement (positive: tuned is better), None where it was not run; overconfidence: mean stated confidence
    minus the share correct, None where there is none.
    """

    method: str
    epochs: float
    learning_rate: float
    examples: int
    test_size: int
    seed: int
    train: float
    validation: float
    severity: str
    last_is_best: bool
    stopped_early: bool
    rose: bool
    features_gap: float | None
    smallest_detectable: float | None
    gain: float
    overconfidence: float | None = None
    truncated_share: float = 0.0
    max_length: int = 0
    model_limit: int = 0
    imbalance: float = 1.0
    class_weights: str = "none"
    label_smoothing: float = 0.0
    task: str = "classification"


def advise(evidence: Evidence) -> list[Advice]:
    """Return advice, the most promising first; never empty."""
    found = [advice for rule in RULES if (advice := rule(evidence)) is not None]
    return found if any(advice.changes for advice in found) else [*found, _another_seed(evidence)]


def _train_longer(e: Evidence) -> Advice | None:
    if e.method == "features" or e.stopped_early or not e.last_is_best or e.rose:
        return None
    return Advice(
        f"validation was still improving after {e.epochs:g} epochs; train twice as long, early stopping guards it",
        {"train.epochs": e.epochs * 2},
    )


def _head_first(e: Evidence) -> Advice | None:
    if e.method != "full" or e.features_gap is None or e.features_gap > 0.01:
        return None
    return Advice(
        "a linear head on frozen features is about as good, so the base model's features fit this task already: solve "
        "the head first, then tune everything gently",
        {"method.name": "head_then_full", "train.learning_rate": float(f"{e.learning_rate / 3:.2g}")},
    )


def _overfits(e: Evidence) -> Advice | None:
    if e.severity != "strong" or e.method == "features":
        return None
    if e.method == "full":
        return Advice(
            "the model fits the training examples far better than new ones; an adapter has fewer ways to memorise",
            {"method.name": "lora", "train.learning_rate": None},
        )
    return Advice(
        "the model fits the training examples far better than new ones; train for less time at a lower rate",
        {"train.epochs": max(1.0, e.epochs / 2), "train.learning_rate": float(f"{e.learning_rate / 2:.2g}")},
    )


def _tune_more(e: Evidence) -> Advice | None:
    if e.method != "features" or e.examples < 200:
        return None
    return Advice(
        "only a head was trained; tuning the whole model usually gains where there are some hundred examples",
        {"method.name": "full"},
    )


def _weights(e: Evidence) -> Advice | None:
    if e.task != "classification" or e.imbalance < 5 or e.class_weights == "balanced":
        return None
    return Advice(
        f"the largest class is {e.imbalance:.0f} times the smallest; class weights and macro-F1 give rare ones a say",
        {"train.class_weights": "balanced", "evaluate.metric": "macro_f1"},
    )


def _calibrate(e: Evidence) -> Advice | None:
    if e.overconfidence is None or e.overconfidence < 0.08 or e.label_smoothing > 0:
        return None
    return Advice(
        f"stated confidence is {e.overconfidence:.2f} above the share correct; label smoothing makes it more honest",
        {"train.label_smoothing": 0.1},
    )


def _longer_texts(e: Evidence) -> Advice | None:
    if e.truncated_share < 0.05 or e.max_length >= e.model_limit:
        return None
    return Advice(
        f"{e.truncated_share:.0%} of the texts are cut at {e.max_length} tokens; the model can read {e.model_limit}",
        {"data.max_length": min(e.model_limit, 2 * e.max_length)},
    )


def _find_rate(e: Evidence) -> Advice | None:
    if e.method == "features" or e.gain > 0:
        return None
    return Advice(
        "no gain was shown at this learning rate; let a range test find one for this model and data",
        {"train.learning_rate": "auto"},
    )


def _more_test_data(e: Evidence) -> Advice | None:
    if e.smallest_detectable is None or abs(e.gain) >= e.smallest_detectable:
        return None
    return Advice(
        f"{e.test_size:,} test examples could only have shown a gain of {e.smallest_detectable:.3f}; label more, or "
        "make the test split larger",
    )


def _another_seed(e: Evidence) -> Advice:
    return Advice("nothing stands out; another seed shows how much of the result is chance", {"train.seed": e.seed + 1})


RULES: tuple[Callable[[Evidence], Advice | None], ...] = (
    _overfits,
    _train_longer,
    _head_first,
    _tune_more,
    _weights,
    _longer_texts,
    _find_rate,
    _calibrate,
    _more_test_data,
)
