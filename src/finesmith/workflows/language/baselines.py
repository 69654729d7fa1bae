"""What simpler methods reach on the same rows, the untuned model among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from finesmith.errors import DataError

if TYPE_CHECKING:
    from finesmith.models.forward import Network
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.corpus import Baseline
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline, what it reaches on validation (None where undefined), and the seconds it took so far.

    baseline: None where it cannot be had, which `skipped` says why.
    """

    title: str
    baseline: Baseline | None
    validation: float | None
    seconds: float
    skipped: str | None = None


def fit_baselines(recipe: Recipe, run: Run, data: Gathered, setup: Setup) -> list[Fitted]:
    """Fit every baseline on the training rows; score it on validation only.

    Raises DataError when none of them can be had.
    """
    from finesmith.evaluate.metrics import DISPLAY_NAMES

    base = untouched(recipe, data, setup)
    corpus, encoded = data.corpora["validation"], setup.encoded["validation"]
    fitted = []
    for name in setup.baselines:
        began = time.perf_counter()
        run.record_live("baseline_start", name=name)
        try:
            baseline = data.task.fit_baseline(name, data.corpora["train"], setup.encoded["train"], base)
            measured = data.task.measure(corpus, encoded, baseline.answer(corpus, encoded))
            if setup.metric not in measured:
                raise DataError(f"it has no {DISPLAY_NAMES[setup.metric]}")
        except DataError as error:
            each = Fitted(name, None, None, time.perf_counter() - began, str(error))
        else:
            each = Fitted(baseline.title, baseline, measured[setup.metric].value, time.perf_counter() - began)
        run.record(
            "baseline", name=each.title, metric=setup.metric, value=each.validation, skipped=each.skipped,
            seconds=each.seconds,
        )  # fmt: skip
        fitted.append(each)
    if all(each.skipped for each in fitted):
        raise DataError(
            f"none of the baselines {', '.join(setup.baselines)} can be had with these rows, so there is nothing to "
            "compare with; name others in evaluate.baselines"
        )
    return fitted


def untouched(recipe: Recipe, data: Gathered, setup: Setup) -> Callable[[], Network]:
    """Return the function that loads the base model as it came, once."""
    from finesmith.models.load import load_tokenizer
    from finesmith.workflows.language.setup import load_network

    return cache(lambda: load_network(recipe, data, setup.base, load_tokenizer(setup.base), setup.device)[0])


def strongest(baselines: Sequence[Fitted], higher_is_better: bool) -> Fitted:
    """Return the baseline that is best on validation; the first one where none is defined there."""
    sign, had = 1.0 if higher_is_better else -1.0, [b for b in baselines if b.skipped is None]
    return max(had, key=lambda b: sign * b.validation if b.validation is not None else float("-inf"))
