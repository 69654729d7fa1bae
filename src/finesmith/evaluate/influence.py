"""Each row's influence on a metric: what intervals, paired tests and power are all computed from.

The influence of row i is the metric's derivative when row i gains weight, scaled so that for row weights w of mean 1

    metric(w) = metric + mean(w * influence) + terms of second order,    mean(influence) = 0

(the empirical influence function; Efron and Tibshirani 1993, chapter 21). With it a metric that is no average, such as
macro-F1 or a rank correlation, is treated like one: one product serves all resamples of all metrics, rows in groups
are summed by group, and the difference of two models is the difference of their influences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finesmith.evaluate.metrics import calibration_bins, checked, class_counts, constant, one_against_rest, row_log_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finesmith.evaluate.metrics import Array, Floats, Ints, Kind


def influence(kind: Kind, metric: str, targets: Array, predictions: Array) -> Floats | None:
    """Return the influence [N] of each row on `metric`, in the metric's unit; None where the metric is undefined.

    Raises ValueError for a metric that `kind` does not have.
    """
    targets, predictions = checked(kind, targets, predictions)
    if kind == "single":
        return _single(metric, targets, predictions)
    if kind == "multi":
        return _multi(metric, targets, predictions)
    return _number(metric, targets, predictions)


def _single(metric: str, targets: Ints, probabilities: Floats) -> Floats | None:
    import numpy as np

    predicted = probabilities.argmax(axis=1)
    correct = (predicted == targets).astype(np.float64)
    if metric == "accuracy":
        return _centred(correct)
    if metric == "log_loss":
        return _centred(row_log_loss(targets, probabilities))
    if metric == "auroc":
        return _mean_of([_auroc(*column) for column in one_against_rest(targets, probabilities)])
    if metric == "calibration_error":
        return _calibration(probabilities.max(axis=1), correct)
    if metric == "macro_f1":
        return _single_macro_f1(targets, predicted, probabilities.shape[1])
    if metric == "mcc":
        return _matthews(targets, predicted, probabilities.shape[1])
    raise ValueError(f"no influence for the metric {metric!r} of single-label predictions")


def _multi(metric: str, targets: Array, probabilities: Floats) -> Floats | None:
    import numpy as np

    given = probabilities >= 0.5
    right = given == targets
    if metric == "subset_accuracy":
        return _centred(right.all(axis=1).astype(np.float64))
    if metric == "hamming_accuracy":
        return _centred(right.mean(axis=1))
    if metric == "auroc":
        return _mean_of([_auroc(targets[:, c], probabilities[:, c]) for c in range(targets.shape[1])])
    if metric == "calibration_error":
        by_cell = _calibration(probabilities.ravel(), targets.ravel().astype(np.float64))
        result: Floats = by_cell.reshape(targets.shape).mean(axis=1)
        return result
    hits, total = (given & targets).astype(np.float64), targets.astype(np.float64) + given
    if metric == "micro_f1":
        return _ratio(2.0 * hits.sum(axis=1), total.sum(axis=1))
    if metric == "macro_f1":
        return _mean_of([_ratio(2.0 * hits[:, c], total[:, c]) for c in range(targets.shape[1])])
    raise ValueError(f"no influence for the metric {metric!r} of multi-label predictions")


def _number(metric: str, targets: Floats, predictions: Floats) -> Floats | None:
    import numpy as np
    from scipy.stats import rankdata

    squared = (predictions - targets) ** 2
    if metric == "mae":
        return _centred(np.abs(predictions - targets))
    if metric == "rmse":
        rmse = np.sqrt(squared.mean())
        return _centred(squared) / (2.0 * rmse) if rmse else np.zeros_like(squared)
    if metric == "r2":
        return None if constant(targets) else -_share(squared, (targets - targets.mean()) ** 2)
    if metric not in ("spearman", "pearson"):
        raise ValueError(f"no influence for the metric {metric!r} of numeric predictions")
    if constant(targets) or constant(predictions):
        return None
    if metric == "pearson":
        return _pearson(targets, predictions)
    x, y = (rankdata(values) / len(targets) for values in (targets, predictions))
    # Adding weight to a row also moves the ranks of the rows above it.
    x, y = (values - values.mean() for values in (x, y))
    cross = x * y + _mean_above(x, y) + _mean_above(y, x)
    own_x, own_y = x * x + 2.0 * _mean_above(x, x), y * y + 2.0 * _mean_above(y, y)
    scale_x, scale_y = float((x * x).mean()), float((y * y).mean())
    rho = float((x * y).mean()) / np.sqrt(scale_x * scale_y)
    return _centred(cross / np.sqrt(scale_x * scale_y) - rho / 2.0 * (own_x / scale_x + own_y / scale_y))


def _centred(values: Floats) -> Floats:
    result: Floats = values - values.mean()
    return result


def _ratio(above: Floats, below: Floats) -> Floats | None:
    """Return the influence on sum(above) / sum(below), None where the latter is 0."""
    total = below.mean()
    return None if total == 0 else (above - above.mean() / total * below) / total


def _share(above: Floats, below: Floats) -> Floats:
    result = _ratio(above, below)
    assert result is not None
    return result


def _mean_of(columns: Sequence[Floats | None]) -> Floats | None:
    """Average the columns that are defined."""
    import numpy as np

    present = [column for column in columns if column is not None]
    return np.mean(present, axis=0) if present else None


def _single_macro_f1(targets: Ints, predicted: Ints, classes: int) -> Floats:
    """Return the influence on macro-F1: a row counts in the F1 of its own class and of the one it was given."""
    import numpy as np

    hits, support, guesses = class_counts(targets, predicted, classes)
    total = support + guesses
    present = np.maximum(total, 1)
    f1, weight = 2.0 * hits / present, len(targets) / present / (total > 0).sum()
    right = (targets == predicted).astype(np.float64)
    result: Floats = 2.0 * right * weight[targets] - (f1 * weight)[targets] - (f1 * weight)[predicted]
    return result


def _matthews(targets: Ints, predicted: Ints, classes: int) -> Floats:
    """Return the influence on the multi-class MCC; 0 where one class holds every row (there it is 0 by convention)."""
    import numpy as np

    rows = len(targets)
    hits, support, guesses = class_counts(targets, predicted, classes)
    if support.max() == rows or guesses.max() == rows:
        return np.zeros(rows)
    t, p, c = support / rows, guesses / rows, hits.sum() / rows
    spread_p, spread_t = 1.0 - p @ p, 1.0 - t @ t
    top = (targets == predicted) - c - (p[targets] + t[predicted] - 2.0 * (t @ p))
    left, right = -2.0 * (p[predicted] - p @ p), -2.0 * (t[targets] - t @ t)
    scale = np.sqrt(spread_p * spread_t)
    result: Floats = top / scale - (c - t @ p) / scale / 2.0 * (left / spread_p + right / spread_t)
    return result


def _auroc(positive: Array, scores: Floats) -> Floats | None:
    """Return DeLong's structural components (1988; by ranks as in Sun and Xu 2014), centred and scaled."""
    import numpy as np
    from scipy.stats import rankdata

    yes = int(positive.sum())
    no = positive.size - yes
    if not (yes and no):
        return None
    ranks = rankdata(scores)
    result = np.empty(positive.size)
    result[positive] = _centred((ranks[positive] - rankdata(scores[positive])) / no) * (positive.size / yes)
    result[~positive] = _centred(-(ranks[~positive] - rankdata(scores[~positive])) / yes) * (positive.size / no)
    return result


def _calibration(confidence: Floats, outcome: Floats) -> Floats:
    """Return the influence on the expected calibration error with its bins held."""
    import numpy as np

    bins = calibration_bins(confidence)
    gaps = np.bincount(bins, weights=outcome - confidence)
    return _centred(np.sign(gaps)[bins] * (outcome - confidence))


def _pearson(a: Floats, b: Floats) -> Floats:
    import numpy as np

    x, y = ((values - values.mean()) / values.std() for values in (a, b))
    result: Floats = x * y - float(np.mean(x * y)) / 2.0 * (x * x + y * y)
    return result


def _mean_above(order: Floats, values: Floats) -> Floats:
    """For each row i: the sum of `values` over rows j with order[j] > order[i], ties counted half, divided by N."""
    import numpy as np

    _, position = np.unique(order, return_inverse=True)
    totals = np.bincount(position, weights=values)
    above = totals.sum() - np.cumsum(totals)
    result: Floats = (above + totals / 2.0)[position] / len(values)
    return result
