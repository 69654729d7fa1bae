"""Intervals, paired tests and the smallest difference that can be shown, for any metric that is a function of sums.

The companions for classes and numbers are in `statistics`; what is promised here is the same. Rows that share a group
are drawn and tested as one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finesmith.evaluate.statistics import (
    LEVEL,
    RESAMPLES,
    Comparison,
    in_reach,
    mcnemar,
    resampled_means,
    sign_flip,
    smallest_by_other_test,
    smallest_difference,
    smallest_share_difference,
    transform,
    unit_sums,
    widening,
)
from finesmith.types import Score

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Floats, Measurement, Range


def influences(measurement: Measurement) -> Floats:
    """Return each row's influence [N] on the metric, in its unit and with mean 0, from leaving the row out.

    These are the jackknife's pseudo-values less their mean (Efron and Tibshirani 1993, chapter 11): for a mean the
    deviations from it, for a smooth function of sums its derivative up to terms of 1 / N.

    Raises ValueError where the metric is undefined on all rows, or on all but one.
    """
    import numpy as np

    value = _defined(measurement)
    if len(measurement) < 2:
        return np.zeros(len(measurement))
    sums = measurement.statistics.sum(axis=0)
    without = measurement.combine(sums - measurement.statistics)
    if not np.isfinite(without).all():
        row = int(np.flatnonzero(~np.isfinite(without))[0])
        raise ValueError(f"{measurement.metric} is undefined without row {row}: too few rows to judge by it")
    pseudo = (len(measurement) - 1) * (value - without)
    result: Floats = pseudo - pseudo.mean()
    return result


def interval(
    measurement: Measurement, groups: Sequence[object] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Score | None:
    """Return the metric with its 95 percent bootstrap interval; None where it is undefined.

    Rows, or whole groups, are drawn with replacement and their sums combined anew. The percentiles are taken on a
    scale without bounds and widened for few units as in `statistics.bootstrap`. A share of right rows at 0 or 1 takes
    the exact binomial bound; another metric at the end of its range, a single unit, or rows that are all alike have no
    interval.
    """
    import numpy as np

    value = measurement.value
    if value is None:
        return None
    drawn = _drawn([measurement], groups, resamples, seed)[0]
    units = _units(measurement, groups)
    if units < 2 or not np.isfinite(drawn).all() or float(np.ptp(drawn)) <= 1e-12 * max(1.0, abs(value)):
        if units >= 2 and value in (0.0, 1.0) and _is_share(measurement):
            bound = ((1 - LEVEL) / 2) ** (1 / units)
            return Score(value, bound, 1.0) if value else Score(value, 0.0, 1.0 - bound)
        return Score(value)
    forward, back, lowest, highest = _scale(measurement.range)
    if not lowest < value < highest:
        return Score(value)
    ends = []
    for quantile in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]):
        inside = lowest < quantile < highest
        reach = widening(units) * (forward(float(quantile)) - forward(value)) if inside else 0.0
        ends.append(back(forward(value) + reach) if inside else float(quantile))
    return Score(value, min(ends), max(ends))


def compare(
    tuned: Measurement,
    baseline: Measurement,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows: the gain is positive where `tuned` is better, whatever the metric.

    The interval is a paired bootstrap: both models are measured on the same drawn rows (Koehn 2004, "Statistical
    significance tests for machine translation evaluation"). The test of a mean flips the signs of the rows'
    differences; of shares of right rows without groups it is the exact McNemar test. For other metrics the rows'
    answers are swapped at random between the models (approximate randomisation: Noreen 1989; Riezler and Maxwell
    2005), linearised at both models' rows together, and the signs of the differences of influences are flipped too;
    the larger p-value is taken, because swapping alone rejects too often when equally good models err differently.

    Raises ValueError when the two do not measure the same, the metric is undefined for either, or the rows are too few
    to compare by it.
    """
    import numpy as np

    if tuned.metric != baseline.metric or tuned.statistics.shape != baseline.statistics.shape:
        raise ValueError(
            f"{tuned.metric} of {len(tuned)} rows cannot be compared with {baseline.metric} of {len(baseline)}: "
            "measure both models by one metric on the same rows"
        )
    better = 1.0 if tuned.higher_is_better else -1.0
    gain = better * (_defined(tuned) - _defined(baseline))
    differences = gain + better * (influences(tuned) - influences(baseline))
    sides = _drawn([tuned, baseline], groups, resamples, seed)
    drawn, units = sides[0] - sides[1], _units(tuned, groups)
    # A draw on which one side is undefined says nothing about the gain.
    drawn = better * drawn[np.isfinite(drawn)]
    if units < 2 or drawn.size < resamples * LEVEL:
        raise ValueError(f"{tuned.metric} cannot be compared on {units} rows or groups: too few on which it is defined")
    low, high = in_reach(tuned.metric, *_gain_interval(gain, drawn, units))
    if groups is None and _is_share(tuned) and _is_share(baseline):
        p_value = mcnemar(differences > 0.5, differences < -0.5)
        smallest = smallest_share_difference(len(tuned), float(np.mean(np.abs(differences) > 0.5)))
        return Comparison(gain, low, high, p_value, "exact McNemar", smallest)
    p_value, smallest = sign_flip(differences, groups, resamples, seed), smallest_difference(differences, groups)
    if not tuned.is_mean:
        swapped = better * swaps(tuned, baseline)
        p_value = max(p_value, sign_flip(swapped, groups, resamples, seed))
        stricter = smallest_by_other_test(differences, swapped, groups)
        smallest = None if smallest is None or stricter is None else max(smallest, stricter)
    return Comparison(gain, low, high, p_value, "paired sign-flip", smallest)


def swaps(first: Measurement, second: Measurement) -> Floats:
    """Return what each row [N] adds to the difference of two models, linearised where their rows are pooled.

    A swap of a row's two answers flips the sign of its value exactly, since the pool stays what it was.
    """
    from dataclasses import replace

    import numpy as np

    pool = replace(
        first,
        statistics=np.concatenate([first.statistics, second.statistics]),
        per_example=np.concatenate([first.per_example, second.per_example]),
    )
    both = influences(pool)
    return both[: len(first)] - both[len(first) :]


def _defined(measurement: Measurement) -> float:
    value = measurement.value
    if value is None:
        raise ValueError(f"{measurement.metric} is undefined on these {len(measurement)} rows")
    return value


def _is_share(measurement: Measurement) -> bool:
    import numpy as np

    return measurement.is_mean and bool(np.isin(measurement.per_example, (0.0, 1.0)).all())


def _units(measurement: Measurement, groups: Sequence[object] | None) -> int:
    return len(measurement) if groups is None else len(set(groups))


def _drawn(
    measurements: Sequence[Measurement], groups: Sequence[object] | None, resamples: int, seed: int
) -> list[Floats]:
    """Measure each of `measurements` on the same drawn rows, [resamples] each."""
    import numpy as np

    rows = len(measurements[0])
    units = unit_sums(np.column_stack([m.statistics for m in measurements]), groups)
    sums = resampled_means(units, rows, resamples, seed) * rows
    parts = np.split(sums, len(measurements), axis=1)
    return [measurement.combine(part) for measurement, part in zip(measurements, parts, strict=True)]


def _gain_interval(gain: float, drawn: Floats, units: int) -> tuple[float, float]:
    import numpy as np

    quantiles = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = (gain + widening(units) * (float(quantile) - gain) for quantile in quantiles)
    return low, high


def _scale(range: Range) -> tuple[Callable[[float], float], Callable[[float], float], float, float]:
    """Return (to a scale without bounds, back, the lowest value, the highest)."""
    inf = float("inf")
    if range == "real":
        return lambda v: v, lambda s: s, -inf, inf
    lowest, highest = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "positive": (0.0, inf), "below_one": (-inf, 1.0)}[
        range
    ]
    forward, _, back = transform(range)
    return forward, back, lowest, highest
