"""What simpler methods reach on the same rows, the untuned model among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finesmith.models.forward import Network
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.language import Baseline
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline, what it reaches on validation (None where undefined), and the seconds it took so far."""

    baseline: Baseline
    validation: float | None
    seconds: float


def fit_baselines(recipe: Recipe, run: Run, data: Gathered, setup: Setup) -> list[Fitted]:
    """Fit every baseline on the training rows; score it on validation only."""
    base = untouched(recipe, data, setup)
    corpus, encoded = data.corpora["validation"], setup.encoded["validation"]
    fitted = []
    for name in setup.baselines:
        began = time.perf_counter()
        run.record_live("baseline_start", name=name)
        baseline = data.task.fit_baseline(name, data.corpora["train"], setup.encoded["train"], base)
        value = data.task.measure(corpus, encoded, baseline.answer(corpus, encoded))[setup.metric].value
        seconds = time.perf_counter() - began
        run.record("baseline", name=baseline.title, metric=setup.metric, value=value, skipped=None, seconds=seconds)
        fitted.append(Fitted(baseline, value, seconds))
    return fitted


def untouched(recipe: Recipe, data: Gathered, setup: Setup) -> Callable[[], Network]:
    """Return the function that loads the base model as it came, once."""
    from finesmith.models.load import load_tokenizer
    from finesmith.workflows.language.setup import load_network

    return cache(lambda: load_network(recipe, data, setup.base, load_tokenizer(setup.base), setup.device)[0])


def strongest(baselines: Sequence[Fitted], higher_is_better: bool) -> Fitted:
    """Return the baseline that is best on validation; the first one where none is defined there."""
    sign = 1.0 if higher_is_better else -1.0
    return max(baselines, key=lambda b: sign * b.validation if b.validation is not None else float("-inf"))
