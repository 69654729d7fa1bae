"""How names, numbers and times are written in the report and the model card."""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime
from typing import Any

NOTHING = "–"
MINUS = "−"

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "subset_accuracy": "Exact-match accuracy",
    "hamming_accuracy": "Label-wise accuracy",
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "weighted_f1": "Weighted F1",
    "mcc": "Matthews correlation",
    "auroc": "AUROC",
    "calibration_error": "Calibration error",
    "ece": "Calibration error",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "Mean squared error",
    "r2": "R²",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "span_f1": "Span F1",
    "span_precision": "Span precision",
    "span_recall": "Span recall",
    "token_accuracy": "Word accuracy",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity",
    "pseudo_perplexity": "Pseudo-perplexity",
    "final_number_match": "Final-number match",
    "exact_match": "Exact match",
    "normalised_match": "Match but for case and punctuation",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "cider_d": "CIDEr-D",
    "coverage": "Coverage",
    "reward_accuracy": "Reward accuracy",
    "reward_margin": "Reward margin",
    "preference_loss": "Preference loss",
    "ndcg@10": "nDCG@10",
    "accuracy@1": "Accuracy@1",
    "recall@10": "Recall@10",
    "mrr": "Mean reciprocal rank",
    "map": "Mean average precision",
}
PERCENT_METRICS = frozenset(
    {"accuracy", "balanced_accuracy", "subset_accuracy", "hamming_accuracy", "macro_f1", "micro_f1", "weighted_f1"}
    | {"f1", "precision", "recall", "calibration_error", "ece"}
    | {
        "reward_accuracy",
        "span_f1",
        "span_precision",
        "span_recall",
        "token_accuracy",
        "final_number_match",
        "exact_match",
        "normalised_match",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "chrf",
        "bleu",
        "coverage",
        "accuracy@1",
        "recall@10",
    }
)
LOWER_IS_BETTER = frozenset(
    {"calibration_error", "ece", "brier", "log_loss", "loss", "rmse", "mae", "mse"}
    | {"bits_per_byte", "perplexity", "pseudo_perplexity", "preference_loss"}
)

SYSTEM_NAMES = {
    "majority": "Majority",
    "tfidf": "TF-IDF",
    "features": "Frozen features",
    "zero_shot": "Zero-shot",
}

# Direction marks, embeddings and isolates reorder what surrounds them; the others are invisible.
_HIDDEN = frozenset("\u061c\u200b\u200e\u200f\u2028\u2029\u2060\ufeff") | {
    chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def visible(text: str) -> str:
    """Return `text` on one line with every control, bidirectional and unencodable character spelt as [U+XXXX]."""
    if text.isascii() and text.isprintable():
        return text
    parts = []
    for character in text:
        if character in "\n\r\t":
            parts.append(" ")
        elif character in _HIDDEN or unicodedata.category(character) in ("Cc", "Cs"):
            parts.append(f"[U+{ord(character):04X}]")
        else:
            parts.append(character)
    return "".join(parts)


def cut(text: object, length: int) -> str:
    """Return `text` made visible and at most `length` characters long, with an ellipsis where it was cut."""
    raw = text if isinstance(text, str) else "" if text is None else str(text)
    shown = visible(raw[: length + 1])
    return shown if len(shown) <= length and len(raw) <= length else shown[: max(length - 1, 0)] + "…"


def number(value: object) -> float | None:
    """Return `value` as a finite float, or None for anything else (booleans included)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def words(value: object, length: int) -> str:
    """Return a name of the program's own, such as `tfidf_logistic`, as words; nothing for None."""
    return cut(str(value).replace("_", " "), length) if value is not None else ""


def system_name(value: object) -> str:
    """Return the name people read for a baseline."""
    return SYSTEM_NAMES.get(str(value)) or words(value, 60)


def plain(value: object, digits: int = 4) -> str:
    """Write a number with `digits` significant figures, thousands apart, and a real minus sign."""
    figure = number(value)
    if figure is None:
        return NOTHING
    if figure == int(figure) and abs(figure) < 1e15:
        return f"{int(figure):,}".replace("-", MINUS)
    if abs(figure) >= 10 ** (digits - 1):
        return f"{figure:,.0f}".replace("-", MINUS)
    mantissa, _, exponent = f"{figure:.{digits}g}".partition("e")
    return (mantissa if not exponent else f"{mantissa}e{int(exponent)}").replace("-", MINUS)


def count(value: object) -> str:
    """Write a whole number with thousands apart."""
    figure = number(value)
    return NOTHING if figure is None else f"{round(figure):,}".replace("-", MINUS)


def share(value: object, digits: int = 1) -> str:
    """Write a fraction as a percentage."""
    figure = number(value)
    return NOTHING if figure is None else f"{100 * figure:.{digits}f} %".replace("-", MINUS)


def metric_key(name: object) -> str:
    """Return a metric's name in the form the tables above use."""
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def metric_name(name: object) -> str:
    """Return the name people read for a metric."""
    return METRIC_NAMES.get(metric_key(name)) or words(name, 60)


def is_percent(name: object) -> bool:
    """Say whether a metric is written as a percentage."""
    return metric_key(name) in PERCENT_METRICS


def metric_value(name: object, value: object) -> str:
    """Write one value of a metric, as a percentage where that is how people quote it."""
    figure = number(value)
    if figure is None:
        return NOTHING
    if is_percent(name):
        return share(figure)
    return (f"{figure:.3f}" if abs(figure) < 1000 else plain(figure)).replace("-", MINUS)


def metric_interval(name: object, low: object, high: object) -> str:
    """Write an interval of a metric, or an empty text where there is none."""
    lower, upper = number(low), number(high)
    if lower is None or upper is None:
        return ""
    return f"{metric_value(name, lower).removesuffix(' %')} to {metric_value(name, upper)}"


def metric_difference(name: object, value: object) -> str:
    """Write a signed difference of a metric, in points for a percentage."""
    figure = number(value)
    if figure is None:
        return NOTHING
    text = f"{100 * figure:+.1f} points" if is_percent(name) else f"{figure:+.3f}"
    return text.replace("-", MINUS)


def metric_difference_interval(name: object, low: object, high: object) -> str:
    """Write an interval of signed differences, or an empty text where there is none."""
    if number(low) is None or number(high) is None:
        return ""
    return f"{metric_difference(name, low).removesuffix(' points')} to {metric_difference(name, high)}"


def probability(value: object) -> str:
    """Write a p-value."""
    figure = number(value)
    if figure is None:
        return NOTHING
    return "< 0.001" if figure < 0.001 else f"{figure:.3f}"


def duration(value: object) -> str:
    """Write seconds in the unit a person would use."""
    seconds = number(value)
    if seconds is None or seconds < 0:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def moment(value: object) -> str:
    """Write an ISO time as a date and a time of day; an unreadable one is shown as it stands."""
    if not isinstance(value, str) or not value:
        return NOTHING
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        return cut(value, 40)
    zone = f" {read.tzname()}" if read.tzinfo else ""
    return f"{read.day} {read:%B %Y, %H:%M}{zone}"


def size(value: int) -> str:
    """Write a number of bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def label_text(value: Any, length: int = 80) -> str:
    """Write a label, or a list of labels, or a rating."""
    if isinstance(value, list | tuple):
        return cut(", ".join(visible(str(part)) for part in value[:20]) or "(none)", length)
    if isinstance(value, float):
        return plain(value)
    return cut(value, length) if value is not None and value != "" else "(none)"
