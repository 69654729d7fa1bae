"""Measure predictions: single-label, multi-label and numeric, with the details a report draws.

Three kinds of predictions go through this room, always as numpy arrays:

    "single"  targets int [N], probabilities float [N, C]
    "multi"   targets bool [N, C], probabilities float [N, C]
    "number"  targets float [N], predictions float [N]

A metric that is undefined on the given rows (the AUROC of one class, the correlation of a constant) is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Array = npt.NDArray[Any]

Kind = Literal["single", "multi", "number"]

METRICS: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "macro_f1", "mcc", "auroc", "log_loss", "calibration_error"),
    "multi": ("micro_f1", "macro_f1", "subset_accuracy", "hamming_accuracy", "auroc", "calibration_error"),
    "number": ("rmse", "mae", "spearman", "pearson", "r2"),
}

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "mcc": True,
    "auroc": True,
    "subset_accuracy": True,
    "hamming_accuracy": True,
    "log_loss": False,
    "calibration_error": False,
    "rmse": False,
    "mae": False,
    "spearman": True,
    "pearson": True,
    "r2": True,
    "span_f1": True,
    "span_precision": True,
    "span_recall": True,
    "token_accuracy": True,
    "bits_per_byte": False,
    "perplexity": False,
    "pseudo_perplexity": False,
    "final_number_match": True,
    "exact_match": True,
    "normalised_match": True,
    "rouge_1": True,
    "rouge_2": True,
    "rouge_l": True,
    "chrf": True,
    "bleu": True,
    "cider_d": True,
    "coverage": True,
    "reward_accuracy": True,
    "reward_margin": True,
    "preference_loss": False,
    "ndcg@10": True,
    "accuracy@1": True,
    "recall@10": True,
    "mrr": True,
    "map": True,
}

DISPLAY_NAMES: dict[str, str] = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "subset_accuracy": "subset accuracy",
    "hamming_accuracy": "label-wise accuracy",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "rmse": "RMSE",
    "mae": "MAE",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "r2": "R²",
    "span_f1": "span F1",
    "span_precision": "span precision",
    "span_recall": "span recall",
    "token_accuracy": "word accuracy",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
    "pseudo_perplexity": "pseudo-perplexity",
    "final_number_match": "final-number match",
    "exact_match": "exact match",
    "normalised_match": "match but for case and punctuation",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "cider_d": "CIDEr-D",
    "coverage": "coverage",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
    "preference_loss": "preference loss",
    "ndcg@10": "nDCG@10",
    "accuracy@1": "accuracy@1",
    "recall@10": "recall@10",
    "mrr": "mean reciprocal rank",
    "map": "mean average precision",
}


def measure(kind: Kind, targets: Array, predictions: Array) -> dict[str, float | None]:
    """Compute every metric of `METRICS[kind]`."""
    if kind == "single":
        return classification(targets, predictions)
    if kind == "multi":
        return multi_label(targets, predictions)
    return regression(targets, predictions)


def details(kind: Kind, targets: Array, predictions: Array, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the figures behind the metrics as plain JSON values: classes, confusion, reliability, or bins."""
    if kind == "single":
        return classification_details(targets, predictions, labels)
    if kind == "multi":
        return multi_label_details(targets, predictions, labels)
    return regression_details(targets, predictions)


def classification(targets: Array, probabilities: Array) -> dict[str, float | None]:
    """Measure single-label predictions: targets int [N], probabilities [N, C]; the prediction is the likeliest class.

    macro_f1 averages over the classes that occur among targets or predictions. mcc is Gorodkin's (2004) for C classes,
    0 where only one class is predicted or true. auroc is class 1 against class 0 for C = 2, else the mean over classes
    of one against the rest. log_loss is in nats, with probabilities kept above float64's epsilon.
    calibration_error: see `calibration_bins`.

    Raises ValueError when the arrays do not fit together or hold a value that is not finite.
    """
    import numpy as np

    targets, probabilities = checked("single", targets, probabilities)
    predicted = probabilities.argmax(axis=1)
    correct = predicted == targets
    hits, support, guesses = class_counts(targets, predicted, probabilities.shape[1])
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": macro_f1(hits, support, guesses),
        "mcc": matthews(hits, support, guesses),
        "auroc": _mean_auroc(one_against_rest(targets, probabilities)),
        "log_loss": float(row_log_loss(targets, probabilities).mean()),
        "calibration_error": _calibration_error(probabilities.max(axis=1), correct.astype(np.float64)),
    }


def multi_label(targets: Array, probabilities: Array, threshold: float = 0.5) -> dict[str, float | None]:
    """Measure multi-label predictions: targets bool [N, C], probabilities [N, C]; a label is given at `threshold`.

    micro_f1 pools all label decisions; macro_f1 averages over labels that occur among targets or predictions;
    subset_accuracy is the share of rows with every label right, hamming_accuracy the share of label decisions right.
    calibration_error is over all N x C decisions, of each label's probability against whether the label applies.
    """
    import numpy as np

    targets, probabilities = checked("multi", targets, probabilities)
    given = probabilities >= threshold
    right = given == targets
    hits, support, guesses = ((a.sum(axis=0)) for a in (given & targets, targets, given))
    pooled = int(support.sum() + guesses.sum())
    columns = [(targets[:, c], probabilities[:, c]) for c in range(targets.shape[1])]
    return {
        "micro_f1": 2.0 * float(hits.sum()) / pooled if pooled else None,
        "macro_f1": macro_f1(hits, support, guesses),
        "subset_accuracy": float(right.all(axis=1).mean()),
        "hamming_accuracy": float(right.mean()),
        "auroc": _mean_auroc(columns),
        "calibration_error": _calibration_error(probabilities.ravel(), targets.ravel().astype(np.float64)),
    }


def regression(targets: Array, predictions: Array) -> dict[str, float | None]:
    """Measure numeric predictions [N]; rmse and mae are in the target's unit, spearman uses mid-ranks for ties."""
    import numpy as np
    from scipy.stats import rankdata

    targets, predictions = checked("number", targets, predictions)
    errors = predictions - targets
    spread = float(((targets - targets.mean()) ** 2).sum())
    return {
        "rmse": float(np.sqrt((errors**2).mean())),
        "mae": float(np.abs(errors).mean()),
        "spearman": _correlation(rankdata(targets), rankdata(predictions)),
        "pearson": _correlation(targets, predictions),
        "r2": None if constant(targets) else 1.0 - float((errors**2).sum()) / spread,
    }


def classification_details(targets: Array, probabilities: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Return per-class figures, the confusion matrix (rows true, columns predicted) and the reliability curve."""
    import numpy as np

    targets, probabilities = checked("single", targets, probabilities)
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    correct = (predicted == targets).astype(np.float64)
    return {
        "per_class": _per_class(*class_counts(targets, predicted, classes), labels),
        "confusion": confusion.tolist(),
        "reliability": _reliability(probabilities.max(axis=1), correct),
    }


def multi_label_details(
    targets: Array, probabilities: Array, labels: Sequence[str], threshold: float = 0.5
) -> dict[str, Any]:
    """Return per-label figures (with each label's own AUROC) and the reliability curve over all label decisions."""
    import numpy as np

    targets, probabilities = checked("multi", targets, probabilities)
    given = probabilities >= threshold
    counts = (given & targets).sum(axis=0), targets.sum(axis=0), given.sum(axis=0)
    rows = _per_class(*counts, labels)
    for c, row in enumerate(rows):
        row["auroc"] = _mean_auroc([(targets[:, c], probabilities[:, c])])
    return {"per_class": rows, "reliability": _reliability(probabilities.ravel(), targets.ravel().astype(np.float64))}


def regression_details(targets: Array, predictions: Array, bins: int = 10) -> dict[str, Any]:
    """Return bins of equal mass by prediction for a predicted-against-true chart.

    Each bin gives its range of predictions (low, high), their mean (predicted), the mean of the targets (true) with
    their 10 and 90 percent quantiles, and its rows.
    """
    import numpy as np

    targets, predictions = checked("number", targets, predictions)
    groups = equal_mass_bins(predictions, min(bins, len(targets)))
    rows = []
    for b in range(int(groups.max()) + 1):
        inside, true = predictions[groups == b], targets[groups == b]
        true_low, true_high = np.quantile(true, [0.1, 0.9])
        rows.append(
            {
                "low": float(inside.min()),
                "high": float(inside.max()),
                "predicted": float(inside.mean()),
                "true": float(true.mean()),
                "true_low": float(true_low),
                "true_high": float(true_high),
                "rows": int(inside.size),
            }
        )
    target = {"low": float(targets.min()), "high": float(targets.max()), "mean": float(targets.mean())}
    return {"predicted_vs_true": rows, "target": target, "bias": float((predictions - targets).mean())}


def checked(kind: Kind, targets: Array, predictions: Array) -> tuple[Array, Array]:
    """Return both arrays in the types of `kind`. Raises ValueError where shape, range or finiteness is wrong."""
    import numpy as np

    predictions = np.asarray(predictions, dtype=np.float64)
    dtype = {"single": np.int64, "multi": np.bool_, "number": np.float64}[kind]
    targets = np.asarray(targets).astype(dtype)
    expected = predictions.shape[:1] if kind == "single" else predictions.shape
    if predictions.ndim != (1 if kind == "number" else 2) or targets.shape != expected or not targets.size:
        raise ValueError(f"{kind}: targets {targets.shape} do not fit predictions {predictions.shape}, or are empty")
    if not np.isfinite(predictions).all() or (kind == "number" and not np.isfinite(targets).all()):
        raise ValueError(f"{kind}: predictions and targets must be finite; mend the model or the rows, not the metric")
    if kind == "single" and not (targets.min() >= 0 and targets.max() < predictions.shape[1]):
        raise ValueError(f"single: targets must lie between 0 and {predictions.shape[1] - 1}")
    return targets, predictions


def class_counts(targets: Ints, predicted: Ints, classes: int) -> tuple[Ints, Ints, Ints]:
    """Count per class [C]: rows rightly predicted, rows that belong to it, rows predicted as it."""
    import numpy as np

    hits = np.bincount(targets[targets == predicted], minlength=classes)
    return hits, np.bincount(targets, minlength=classes), np.bincount(predicted, minlength=classes)


def macro_f1(hits: Ints, support: Ints, guesses: Ints) -> float | None:
    """Average F1 over the classes that occur among targets or predictions; None where none does."""
    total = support + guesses
    present = total > 0
    return float((2.0 * hits[present] / total[present]).mean()) if present.any() else None


def matthews(hits: Ints, support: Ints, guesses: Ints) -> float:
    """Compute the multi-class Matthews correlation (Gorodkin 2004) from class counts; 0 where it is 0 / 0."""
    import numpy as np

    rows = float(support.sum())
    t, p = support / rows, guesses / rows
    denominator = (1.0 - p @ p) * (1.0 - t @ t)
    # One class holds every row: exactly 0 in integers, perhaps not in floats.
    if support.max() == rows or guesses.max() == rows:
        return 0.0
    return float((hits.sum() / rows - t @ p) / np.sqrt(denominator))


def row_log_loss(targets: Ints, probabilities: Floats) -> Floats:
    """Return each row's negative log probability of its class, in nats, rows of probabilities scaled to sum 1."""
    import numpy as np

    chosen = probabilities[np.arange(len(targets)), targets] / probabilities.sum(axis=1)
    result: Floats = -np.log(np.maximum(chosen, np.finfo(np.float64).eps))
    return result


def one_against_rest(targets: Ints, probabilities: Floats) -> list[tuple[Array, Floats]]:
    """Return (is it the class, its score) for class 1 of two, or for every class of more."""
    classes = probabilities.shape[1]
    chosen = [1] if classes == 2 else list(range(classes))
    return [(targets == c, probabilities[:, c]) for c in chosen]


def _mean_auroc(columns: Sequence[tuple[Array, Floats]]) -> float | None:
    """Average the area under the ROC curve (Mann-Whitney, ties count half) over columns that hold both answers."""
    from scipy.stats import rankdata

    areas = []
    for positive, scores in columns:
        yes = int(positive.sum())
        no = positive.size - yes
        if yes and no:
            areas.append((float(rankdata(scores)[positive].sum()) - yes * (yes + 1) / 2) / (yes * no))
    return sum(areas) / len(areas) if areas else None


def equal_mass_bins(values: Floats, bins: int) -> Ints:
    """Assign each value [N] to one of at most `bins` bins of about equal mass; equal values share a bin."""
    import numpy as np

    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].reshape(values.shape)


def calibration_bins(confidence: Floats) -> Ints:
    """Assign confidences [N] to 15 bins of equal mass, fewer where a bin would hold less than 20 of them.

    Equal mass because bins of equal width leave most of a confident model's bins nearly empty and bias the expected
    calibration error further (Nixon et al. 2019, "Measuring calibration in deep learning"; Roelofs et al. 2022).
    """
    return equal_mass_bins(confidence, max(1, min(15, confidence.size // 20)))


def _calibration_error(confidence: Floats, outcome: Floats) -> float:
    """Average |mean outcome - mean confidence| over bins, weighted by their rows (ECE, Naeini et al. 2015)."""
    import numpy as np

    gaps = np.bincount(calibration_bins(confidence), weights=outcome - confidence)
    return float(np.abs(gaps).sum() / confidence.size)


def _reliability(confidence: Floats, outcome: Floats) -> list[dict[str, Any]]:
    bins = calibration_bins(confidence)
    curve = []
    for b in range(int(bins.max()) + 1):
        inside = confidence[bins == b]
        curve.append(
            {
                "low": float(inside.min()),
                "high": float(inside.max()),
                "confidence": float(inside.mean()),
                "accuracy": float(outcome[bins == b].mean()),
                "rows": int(inside.size),
            }
        )
    return curve


def _per_class(hits: Ints, support: Ints, guesses: Ints, labels: Sequence[str]) -> list[dict[str, Any]]:
    """List each class's figures; a figure whose denominator is 0 (never predicted, absent) is None."""

    def ratio(above: float, below: float) -> float | None:
        return float(above / below) if below else None

    return [
        {
            "label": label,
            "precision": ratio(hit, guess),
            "recall": ratio(hit, total),
            "f1": ratio(2 * hit, guess + total),
            "support": int(total),
            "predicted": int(guess),
        }
        for label, hit, total, guess in zip(labels, hits, support, guesses, strict=True)
    ]


def constant(values: Floats) -> bool:
    """Say whether all values are equal."""
    return bool((values == values[0]).all())


def _correlation(a: Floats, b: Floats) -> float | None:
    import numpy as np

    if constant(a) or constant(b):
        return None
    x, y = a - a.mean(), b - b.mean()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))
