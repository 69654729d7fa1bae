"""Intervals, paired tests and the smallest difference a test set can show.

Everything here works on influences (see `influence`): row values whose mean is the metric or the difference of two.
Rows that share a group (a customer, a document) are resampled and tested as one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finesmith.evaluate.influence import influence
from finesmith.evaluate.metrics import METRICS, measure
from finesmith.types import Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.evaluate.metrics import Array, Floats, Kind

LEVEL = 0.95
ALPHA = 0.05
# A little above the 0.8 that is promised, because the disagreement it is computed from is itself an estimate.
POWER = 0.83
RESAMPLES = 2000
CHUNK = 4_000_000

Scale = Literal["unit", "signed", "positive", "below_one"]
SCALES: dict[str, Scale] = {
    "accuracy": "unit",
    "macro_f1": "unit",
    "micro_f1": "unit",
    "auroc": "unit",
    "subset_accuracy": "unit",
    "hamming_accuracy": "unit",
    "calibration_error": "unit",
    "mcc": "signed",
    "spearman": "signed",
    "pearson": "signed",
    "log_loss": "positive",
    "rmse": "positive",
    "mae": "positive",
    "r2": "below_one",
    "span_f1": "unit",
    "span_precision": "unit",
    "span_recall": "unit",
    "token_accuracy": "unit",
    "bits_per_byte": "positive",
    "perplexity": "positive",
    "pseudo_perplexity": "positive",
    "final_number_match": "unit",
    "exact_match": "unit",
    "normalised_match": "unit",
    "rouge_1": "unit",
    "rouge_2": "unit",
    "rouge_l": "unit",
    "chrf": "unit",
    "bleu": "unit",
    "cider_d": "positive",
    "coverage": "unit",
    "reward_accuracy": "unit",
    "preference_loss": "positive",
    "ndcg@10": "unit",
    "accuracy@1": "unit",
    "recall@10": "unit",
    "mrr": "unit",
    "map": "unit",
}

# Metrics whose influence on rows of two models together is meaningful: those that compare no score across rows.
POOLED = ("macro_f1", "micro_f1", "mcc", "rmse", "r2")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A gain (positive is better) with its 95 percent interval, the p-value of `test` and what could have shown."""

    gain: float
    low: float
    high: float
    p_value: float
    test: str
    smallest_detectable: float | None


def bootstrap(
    kind: Kind,
    targets: Array,
    predictions: Array,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Score | None]:
    """Measure `metrics` (default: all of `kind`) with 95 percent bootstrap intervals; None for an undefined metric.

    Rows, or whole groups, are drawn with replacement and each metric is recomputed to first order through its
    influences on a scale where it has no bounds (log-odds, Fisher's z, logarithm), so that an interval never leaves
    the metric's range. The percentiles are widened by Student's t and sqrt(n / (n - 1)) (Hesterberg 2015, "What
    teachers should know about the bootstrap"), because plain percentiles are too narrow for few units. BCa is not
    used: its acceleration needs a jackknife, and the scales already make the intervals follow the skewness. A score
    at the end of its scale (nothing wrong, or nothing right) has no such interval: a share of right rows takes the
    exact binomial bound, other metrics none. Intervals from fewer than about 20 groups are too narrow.
    """
    import numpy as np

    values = measure(kind, targets, predictions)
    names = METRICS[kind] if metrics is None else metrics
    columns = {name: influence(kind, name, targets, predictions) for name in names if values[name] is not None}
    parts = {name: column for name, column in columns.items() if column is not None}
    scores: dict[str, Score | None] = dict.fromkeys(names)
    if not parts:
        return scores
    units = unit_sums(np.column_stack(list(parts.values())), groups)
    deviations = resampled_means(units, len(targets), resamples, seed)
    for position, name in enumerate(parts):
        value = values[name]
        if value is not None:
            scores[name] = _interval(name, value, deviations[:, position], len(units))
    return scores


def paired(
    kind: Kind,
    metric: str,
    targets: Array,
    tuned: Array,
    baseline: Array,
    higher_is_better: bool,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows: gain of `tuned` over `baseline`, positive where `tuned` is better.

    `targets` and both predictions are as `checked` returns them. Ungrouped shares of right rows take the exact
    McNemar test; everything else `sign_flip` on the rows' differences.

    Raises ValueError when the metric is undefined for either.
    """
    import numpy as np

    sides = []
    for predictions in (tuned, baseline):
        value, effect = measure(kind, targets, predictions)[metric], influence(kind, metric, targets, predictions)
        if value is None or effect is None:
            raise ValueError(f"{metric} is undefined on these rows, so two models cannot be compared by it")
        sides.append(effect + value)
    differences = (sides[0] - sides[1]) * (1.0 if higher_is_better else -1.0)
    gain, low, high = _gain_interval(differences, groups, resamples, seed)
    low, high = in_reach(metric, low, high)
    if groups is None and metric in ("accuracy", "subset_accuracy"):
        # Differences are 1, 0 or -1 up to rounding.
        p_value = mcnemar(differences > 0.5, differences < -0.5)
        smallest = smallest_share_difference(len(differences), float(np.mean(np.abs(differences) > 0.5)))
        return Comparison(gain, low, high, p_value, "exact McNemar", smallest)
    p_value, smallest = sign_flip(differences, groups, resamples, seed), smallest_difference(differences, groups)
    if metric in POOLED:
        # Linearised at both models' rows together, a swap of answers flips a difference exactly: what small samples
        # need. The other one holds when equally good models err differently. The larger p-value keeps both promises.
        both = influence(kind, metric, np.concatenate([targets, targets]), np.concatenate([tuned, baseline]))
        assert both is not None
        swapped = (both[: len(targets)] - both[len(targets) :]) * (1.0 if higher_is_better else -1.0)
        p_value = max(p_value, sign_flip(swapped, groups, resamples, seed))
        stricter = smallest_by_other_test(differences, swapped, groups)
        smallest = None if smallest is None or stricter is None else max(smallest, stricter)
    return Comparison(gain, low, high, p_value, "paired sign-flip", smallest)


def in_reach(metric: str, low: float, high: float) -> tuple[float, float]:
    """Return the part of an interval of gains that two values of the metric can differ by."""
    reach = {"unit": 1.0, "signed": 2.0}.get(SCALES.get(metric, ""), math.inf)
    return max(low, -reach), min(high, reach)


def mcnemar(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) that two models are right equally often.

    Only rows that one model has right and the other wrong count; bool arrays [N]; 1 where there are none.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def sign_flip(
    differences: Floats, groups: Sequence[object] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the two-sided p-value of the hypothesis that the mean difference is 0.

    Were the models equal, each unit's difference (row or group sum) could as well have the other sign: p is the share
    of random signs whose mean is at least as far from 0, the observed one counted (Fisher's randomisation test; at
    most its level also in small samples: Phipson and Smyth 2010).
    """
    import numpy as np

    sums = unit_sums(differences[:, None], groups)[:, 0]
    sums = sums[np.abs(sums) > 1e-12]
    if not sums.size:
        return 1.0
    observed = abs(float(sums.sum()))
    rng = np.random.default_rng([seed, 1])
    as_far = 0
    for rows in _chunks(resamples, sums.size):
        signs = rng.integers(0, 2, size=(rows, sums.size), dtype=np.int8)
        flipped = 2.0 * (signs @ sums) - sums.sum()
        as_far += int((np.abs(flipped) >= observed * (1.0 - 1e-9)).sum())
    return (as_far + 1) / (resamples + 1)


def smallest_share_difference(rows: int, disagreement: float, power: float = POWER) -> float | None:
    """Return the smallest true gain in a share of right rows that the exact McNemar test would have shown.

    `disagreement` is the share of rows that just one of two models has right. The gain is shown when the two-sided
    test at 5 percent rejects in its favour; `power` is the probability of that, computed exactly over the binomial
    counts of disagreeing rows and of gains among them. A gain cannot exceed the disagreement, which is raised to it
    where needed. None below 6 rows: no result could be significant.
    """
    from scipy.optimize import brentq

    if rows < 6:
        return None
    return float(brentq(lambda gain: _mcnemar_power(rows, disagreement, gain) - power, 1e-9, 1.0, xtol=1e-6))


def smallest_difference(
    differences: Floats, groups: Sequence[object] | None = None, power: float = POWER
) -> float | None:
    """Return the smallest true mean difference that `sign_flip` would have shown (two-sided 5 percent, `power`).

    (z_0.975 + z_power) standard errors of the mean, times what the exact McNemar test needs beyond that same formula
    with as many units and disagreements (differences above a tenth of their root mean square): with few of them a
    test of signs needs more. None where the differences are all 0, or below 6 units.
    """
    import numpy as np
    from scipy.stats import norm

    sums = unit_sums((differences - differences.mean())[:, None], groups)[:, 0]
    raw = unit_sums(differences[:, None], groups)[:, 0]
    if len(raw) < 6 or not np.abs(raw).max() > 1e-12:
        return None
    error = float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1))) / len(differences)
    disagreement = float((np.abs(raw) > 0.1 * np.sqrt((raw**2).mean())).mean())
    normal = float(norm.ppf(1 - ALPHA / 2) + norm.ppf(power))
    exact = smallest_share_difference(len(raw), disagreement, power)
    if exact is None:
        return None
    return normal * error * max(1.0, exact / (normal * float(np.sqrt(disagreement / len(raw)))))


def smallest_by_other_test(
    differences: Floats, tested: Floats, groups: Sequence[object] | None = None, power: float = POWER
) -> float | None:
    """Return the smallest true mean of `differences` [N] that `sign_flip` of the related `tested` [N] would have shown.

    The two differ in scale and spread by the row (a rare class weighs less once its F1 is poor), so a mean of one is
    not a mean of the other. Worlds with another gain are the observed units drawn with probabilities proportional to
    exp(tilt x tested), tested cut at one root mean square (exponential tilting: Efron 1981, "Nonparametric standard
    errors and confidence intervals"), one more unit's weight being spread over their mirror images, so that any gain
    can occur. In each world the mean of n units over their root mean square is near normal (spread by the delta
    method), and signs reject when it exceeds z_0.975 / sqrt(n): two-sided 5 percent, `power`. None where the tested
    values are all 0, below 6 units, or where no gain would do.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import norm

    units = unit_sums(np.column_stack([differences, tested]), groups)
    count, size = len(units), float(np.sqrt((units[:, 1] ** 2).mean()))
    if count < 6 or not size > 1e-12:
        return None
    gains, values = np.concatenate([units, -units]).T
    values = values / size
    # Outliers lean no further than others: a world without the gain must not be one of mirrored outliers.
    leaning = np.clip(values, -1.0, 1.0)
    prior = np.repeat([1.0, 1.0 / count], count)
    critical, margin = float(norm.ppf(1 - ALPHA / 2)), float(norm.ppf(power))

    def world(tilt: float) -> Floats:
        weights = prior * np.exp(tilt * leaning - abs(tilt))
        result: Floats = weights / weights.sum()
        return result

    def excess(tilt: float) -> float:
        weights = world(tilt)
        mean, square = float(weights @ values), float(weights @ values**2)
        effect = values / square**0.5 - mean * values**2 / (2.0 * square**1.5)
        spread = float(weights @ effect**2 - (weights @ effect) ** 2)
        beyond: float = mean * (count / square) ** 0.5 - critical - margin * max(spread, 0.0) ** 0.5
        return beyond

    reach = 300.0
    if excess(reach) < 0:
        return None
    tilt = float(brentq(excess, -reach, reach, xtol=1e-6))
    return float(world(tilt) @ gains) * count / len(differences)


def unit_sums(columns: Floats, groups: Sequence[object] | None) -> Floats:
    """Sum columns [N, K] within groups to [units, K]; without groups every row is a unit."""
    import numpy as np

    if groups is None:
        return columns
    if len(groups) != len(columns):
        raise ValueError(f"{len(groups)} groups for {len(columns)} rows")
    positions: dict[object, int] = {}
    members = np.array([positions.setdefault(group, len(positions)) for group in groups])
    return np.column_stack([np.bincount(members, weights=column) for column in columns.T])


def _gain_interval(
    differences: Floats, groups: Sequence[object] | None, resamples: int, seed: int
) -> tuple[float, float, float]:
    import numpy as np

    gain = float(differences.mean())
    units = unit_sums((differences - gain)[:, None], groups)
    deviations = resampled_means(units, len(differences), resamples, seed)[:, 0]
    low, high = gain + widening(len(units)) * np.quantile(deviations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return gain, float(low), float(high)


def resampled_means(units: Floats, rows: int, resamples: int, seed: int) -> Floats:
    """Draw units with replacement; return [resamples, K]: column sums over the drawn units, divided by `rows`."""
    import numpy as np

    rng = np.random.default_rng([seed, 0])
    count = len(units)
    results = []
    for draws in _chunks(resamples, count):
        drawn = rng.integers(0, count, size=(draws, count), dtype=np.int32)
        flat = (drawn + (np.arange(draws, dtype=np.int32) * count)[:, None]).ravel()
        weights = np.bincount(flat, minlength=draws * count).reshape(draws, count)
        results.append(weights.astype(np.float64) @ units / rows)
    return np.concatenate(results)


def _chunks(resamples: int, units: int) -> list[int]:
    """Split `resamples` into batches of at most CHUNK cells."""
    size = max(1, min(resamples, CHUNK // units))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def widening(units: int) -> float:
    """Return how much wider than bootstrap percentiles an interval from few units must be."""
    from scipy.stats import norm, t

    if units < 2:
        return 1.0
    quantile = (1 + LEVEL) / 2
    return float(t.ppf(quantile, units - 1) / norm.ppf(quantile) * (units / (units - 1)) ** 0.5)


def _interval(name: str, value: float, deviations: Floats, units: int) -> Score:
    import numpy as np

    forward, slope, back = transform(SCALES[name])
    if units < 2 or not np.isfinite(forward(value)) or not np.abs(deviations).max() > 1e-12:
        if name in ("accuracy", "subset_accuracy") and value in (0.0, 1.0) and units >= 2:
            # Clopper-Pearson where all rows agree
            bound = ((1 - LEVEL) / 2) ** (1 / units)
            return Score(value, bound, 1.0) if value else Score(value, 0.0, 1.0 - bound)
        return Score(value)
    reach = widening(units) * slope(value) * deviations
    ends = [back(forward(value) + q) for q in np.quantile(reach, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]
    return Score(value, float(min(ends)), float(max(ends)))


def transform(
    scale: Scale,
) -> tuple[Callable[[float], float], Callable[[float], float], Callable[[float], float]]:
    """Return (to the unbounded scale, its derivative, back); the ends of the range map to infinities."""
    from math import atanh, exp, inf, log, tanh

    if scale == "unit":
        return (
            lambda v: log(v / (1 - v)) if 0 < v < 1 else inf,
            lambda v: 1 / (v * (1 - v)),
            lambda s: 1 / (1 + exp(-s)) if s > -700 else 0.0,
        )
    if scale == "signed":
        return lambda v: atanh(v) if -1 < v < 1 else inf, lambda v: 1 / (1 - v * v), tanh
    if scale == "positive":
        return lambda v: log(v) if v > 0 else inf, lambda v: 1 / v, lambda s: exp(min(s, 700.0))
    return (
        lambda v: -log(1 - v) if v < 1 else inf,
        lambda v: 1 / (1 - v),
        lambda s: 1 - exp(min(-s, 700.0)),
    )


def _mcnemar_power(rows: int, disagreement: float, gain: float) -> float:
    """Return the probability that the exact McNemar test shows `gain` in its own direction."""
    import numpy as np
    from scipy.stats import binom

    share = max(disagreement, gain)
    centre, reach = rows * share, 8.0 * (rows * share) ** 0.5 + 20.0
    counts = np.arange(max(0, int(centre - reach)), min(rows, int(centre + reach)) + 1)
    # The least number of gains among `counts` disagreements with 2 P(at least so many) <= ALPHA.
    needed = binom.isf(ALPHA / 2, counts, 0.5) + 1
    shown = binom.sf(needed - 1, counts, (share + gain) / (2 * share))
    return float((binom.pmf(counts, rows, share) * shown).sum())
