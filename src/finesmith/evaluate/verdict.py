"""Judge a tuned model against its baselines on rows nobody has looked at, and say it in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import DataError
from finesmith.evaluate.metrics import DISPLAY_NAMES, HIGHER_IS_BETTER, METRICS, checked
from finesmith.evaluate.statistics import ALPHA, RESAMPLES, SCALES, Comparison, bootstrap, paired
from finesmith.types import Score

if TYPE_CHECKING:
    from finesmith.evaluate.measurement import Measurement
    from finesmith.evaluate.metrics import Array, Kind

# A gain below this share of the metric's range (of the baseline's value where the metric has no range) is no reason
# to tune: "as good" is said only when the whole interval lies below it.
NEGLIGIBLE = 0.02


@dataclass(frozen=True, slots=True)
class Standing:
    """One model's score on the test split (None where undefined) and the seconds it took to make."""

    name: str
    score: Score | None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `interval` is None where none can be given."""
        value = None if self.score is None else self.score.value
        interval = None
        if self.score is not None and self.score.low is not None:
            interval = [self.score.low, self.score.high]
        return {"name": self.name, "value": value, "interval": interval, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Overfitting:
    """How much better the model is on what it has seen: `gap` is positive where train is better than validation."""

    train: float
    validation: float
    gap: float
    began_at_step: int | None
    severity: Literal["none", "mild", "strong"]
    sentence: str
    metric: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "train": self.train,
            "validation": self.validation,
            "gap": self.gap,
            "began_at_step": self.began_at_step,
            "severity": self.severity,
            "sentence": self.sentence,
            "metric": self.metric,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the test split says. `comparison.gain` is positive where the tuned model is better, whatever the metric."""

    task: str
    metric: str
    test_size: int
    baselines: tuple[Standing, ...]
    tuned: Standing
    against: str
    comparison: Comparison
    overfitting: Overfitting | None
    better: bool
    conclusion: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of `verdict.json`, plain JSON values."""
        comparison = self.comparison
        return {
            "task": self.task,
            "metric": self.metric,
            "test_size": self.test_size,
            "baselines": [baseline.to_json() for baseline in self.baselines],
            "tuned": self.tuned.to_json(),
            "gain": {
                "value": comparison.gain,
                "interval": [comparison.low, comparison.high],
                "p_value": comparison.p_value,
                "against": self.against,
                "test": comparison.test,
            },
            "smallest_detectable": comparison.smallest_detectable,
            "overfitting": None if self.overfitting is None else self.overfitting.to_json(),
            "better": self.better,
            "conclusion": self.conclusion,
        }


def judge(
    *,
    task: str,
    kind: Kind,
    metric: str,
    targets: Array,
    tuned: Array,
    baselines: Mapping[str, Array],
    against: str,
    baseline_seconds: Mapping[str, float] | None = None,
    tuned_seconds: float | None = None,
    overfitting: Overfitting | None = None,
    groups: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Judge `tuned` against `baselines[against]` on the test rows.

    `against` names the baseline that was strongest on the *validation* split. Choosing it here, on the test split,
    would compare with the luckiest of several baselines and spoil the p-value. "Better" is said when the two-sided
    test is significant at 5 percent and the gain is positive, so by chance at most once in 40 runs.

    Raises ValueError for an unknown metric or baseline, DataError when the metric is undefined on these rows.
    """
    if metric not in METRICS[kind] or metric == "calibration_error":
        choices = ", ".join(name for name in METRICS[kind] if name != "calibration_error")
        raise ValueError(f"cannot judge by {metric!r}; choose one of {choices}")
    if against not in baselines:
        raise ValueError(f"no baseline {against!r} to judge against; there are {', '.join(baselines)}")
    targets, tuned = checked(kind, targets, tuned)

    def stand(name: str, predictions: Array, seconds: float | None) -> Standing:
        scores = bootstrap(kind, targets, predictions, groups, resamples, seed, metrics=[metric])
        return Standing(name, scores[metric], seconds)

    seconds = baseline_seconds or {}
    others = {name: checked(kind, targets, predictions)[1] for name, predictions in baselines.items()}
    standings = tuple(stand(name, predictions, seconds.get(name)) for name, predictions in others.items())
    champion = stand("fine-tuned", tuned, tuned_seconds)
    _require_scores(metric, len(targets), champion, *(each for each in standings if each.name == against))
    higher = HIGHER_IS_BETTER[metric]
    comparison = paired(kind, metric, targets, tuned, others[against], higher, groups, resamples, seed)
    return _verdict(task, metric, len(targets), standings, champion, against, comparison, overfitting)


def judge_measured(
    *,
    task: str,
    tuned: Measurement,
    baselines: Mapping[str, Measurement],
    against: str,
    baseline_seconds: Mapping[str, float],
    tuned_seconds: float,
    overfitting: Overfitting | None,
    groups: Sequence[object] | None,
    seed: int,
    resamples: int,
) -> Verdict:
    """Do what `judge` does for a metric that is a function of sums over the test rows.

    Raises DataError when the metric is undefined on these rows, or the rows are too few to compare by it.
    """
    from finesmith.evaluate.paired import compare, interval

    metric, rows = tuned.metric, len(tuned)
    standings = tuple(
        Standing(name, interval(measured, groups, resamples, seed), baseline_seconds.get(name))
        for name, measured in baselines.items()
    )
    champion = Standing("fine-tuned", interval(tuned, groups, resamples, seed), tuned_seconds)
    _require_scores(metric, rows, champion, *(each for each in standings if each.name == against))
    try:
        comparison = compare(tuned, baselines[against], groups, resamples, seed)
    except ValueError as error:
        raise DataError(f"{error}: use a larger test split, or another metric") from None
    return _verdict(task, metric, rows, standings, champion, against, comparison, overfitting)


def _require_scores(metric: str, rows: int, *standings: Standing) -> None:
    for standing in standings:
        if standing.score is None:
            raise DataError(
                f"{DISPLAY_NAMES[metric]} is undefined for {standing.name} on the {rows:,} test rows (only one "
                "class, or all values equal): use a larger test split, another metric or another baseline"
            )


def _verdict(
    task: str,
    metric: str,
    rows: int,
    standings: tuple[Standing, ...],
    champion: Standing,
    against: str,
    comparison: Comparison,
    overfitting: Overfitting | None,
) -> Verdict:
    rival = next(standing for standing in standings if standing.name == against)
    return Verdict(
        task=task,
        metric=metric,
        test_size=rows,
        baselines=standings,
        tuned=champion,
        against=against,
        comparison=comparison,
        overfitting=overfitting,
        better=comparison.p_value < ALPHA and comparison.gain > 0,
        conclusion=conclude(metric, champion, rival, comparison, rows),
    )


def conclude(metric: str, tuned: Standing, rival: Standing, comparison: Comparison, rows: int) -> str:
    """Put a comparison into one plain sentence. Both standings must have a score."""
    assert tuned.score is not None
    assert rival.score is not None
    bounded = SCALES[metric] in ("unit", "signed")
    scale = 1.0 if bounded else max(abs(tuned.score.value), abs(rival.score.value))
    show = _number_format(scale)
    name = DISPLAY_NAMES[metric] + ("" if HIGHER_IS_BETTER[metric] else " (lower is better)")
    values = f"{name} {show(tuned.score.value)} against {show(rival.score.value)} for {rival.name}"
    examples = f"on {rows:,} unseen examples"
    interval = f"95 % interval {show(comparison.low)} to {show(comparison.high)}"
    figures = f"(gain {show(comparison.gain)}, {interval}, {_p_value(comparison.p_value)})"
    if comparison.p_value < ALPHA and comparison.gain > 0:
        return f"Fine-tuning helps: {values} {examples} {figures}."
    if comparison.p_value < ALPHA and comparison.gain < 0:
        return f"Fine-tuning is worse than {rival.name}: {values} {examples} {figures}."
    cheaper = _times_cheaper(tuned.seconds, rival.seconds)
    smallest = comparison.smallest_detectable
    negligible = NEGLIGIBLE * scale
    split = ""
    if comparison.low > 0 or comparison.high < 0:
        split = (
            f"; the interval excludes 0, but the stricter paired test does not reject ({_p_value(comparison.p_value)})"
        )
    if comparison.high <= negligible and smallest is not None and smallest <= 2 * negligible:
        also = f" and {cheaper}" if cheaper else ""
        return f"Fine-tuning did not help: {rival.name} is as good{also}: {values} {examples} {figures}{split}."
    also = f"; {rival.name} is {cheaper}" if cheaper else ""
    return f"No difference shown: {values} {examples} {figures}{split}; this test set {_limit(comparison, show)}{also}."


def _limit(comparison: Comparison, show: Callable[[float], str]) -> str:
    """Say what a test set that showed no difference could have shown."""
    smallest = comparison.smallest_detectable
    if smallest is None:
        equal = comparison.low == comparison.high == 0
        return "cannot tell models with such equal answers apart" if equal else "is too small to show any gain"
    if abs(comparison.gain) < smallest:
        return f"could only have shown a gain of {show(smallest)} or more"
    return (
        f"shows a true difference of {show(smallest)} about four times in five, yet did not show this larger one: "
        "more test examples are needed to tell"
    )


def overfitting(
    history: Sequence[Mapping[str, float | None]], train_value: float, validation_value: float, metric: str
) -> Overfitting:
    """Say how far the kept model fits the training rows better, and where validation loss began to rise.

    `history` holds the evaluations in order, each with `step`, `train_loss` and `validation_loss` (those without are
    passed over). It began at the step of the lowest validation loss, if that loss later ended at least 2 percent
    higher while training loss fell. The gap is in the metric's unit, or relative to the validation value for metrics
    without a range: 0.05 is mild, 0.15 strong; a loss that ended 25 percent up is mild by itself, because the best
    checkpoint is kept.
    """
    gap = train_value - validation_value if HIGHER_IS_BETTER[metric] else validation_value - train_value
    bounded = SCALES[metric] in ("unit", "signed")
    relative = gap if bounded else gap / max(abs(validation_value), 1e-12)
    points = [
        (int(step), float(train), float(validation))
        for step, train, validation in ((e.get("step"), e.get("train_loss"), e.get("validation_loss")) for e in history)
        if step is not None and train is not None and validation is not None
    ]
    began, rise, lowest, last = None, 0.0, 0.0, 0.0
    if len(points) >= 2:
        step, train_at_lowest, lowest = min(points, key=lambda point: point[2])
        last = points[-1][2]
        rise = (last - lowest) / max(abs(lowest), 1e-12)
        if rise >= 0.02 and points[-1][1] < train_at_lowest:
            began = step
    severity: Literal["none", "mild", "strong"] = "none"
    if relative >= 0.05 or (began is not None and rise >= 0.25):
        severity = "strong" if relative >= 0.15 else "mild"
    show = _number_format(1.0 if bounded else max(abs(train_value), abs(validation_value)))
    extent = {"none": "No overfitting to speak of", "mild": "Mild overfitting", "strong": "Strong overfitting"}[
        severity
    ]
    scores = f"{DISPLAY_NAMES[metric]} {show(train_value)} on train against {show(validation_value)} on validation"
    where = ""
    if began is not None:
        loss = _number_format(max(lowest, last))
        where = (
            f"; after step {began:,} validation loss rose from {loss(lowest)} to {loss(last)} while training loss fell"
        )
    return Overfitting(train_value, validation_value, gap, began, severity, f"{extent}: {scores}{where}.", metric)


def _number_format(scale: float) -> Callable[[float], str]:
    """Return a formatter with the decimals that suit figures of about `scale`: three below 10, fewer above."""
    magnitude = floor(log10(scale)) if scale > 0 else 0
    decimals = max(0, 3 - max(0, magnitude)) if magnitude >= -1 else 2 - magnitude

    def show(value: float) -> str:
        text = f"{value:,.{decimals}f}"
        return text.lstrip("-") if float(text.replace(",", "")) == 0 else text

    return show


def _p_value(p: float) -> str:
    if p < 0.001:
        return "p < 0.001"
    # Never let rounding carry a value across the 5 percent line.
    decimals = 5 if abs(p - ALPHA) < 0.0005 else 3
    return f"p = {p:.{decimals}f}"


def _times_cheaper(tuned: float | None, rival: float | None) -> str:
    """Return "400 times cheaper" from seconds, with one or two leading digits; "" below twice or unknown."""
    if tuned is None or rival is None or tuned < 2 * max(rival, 1e-9):
        return ""
    ratio = tuned / max(rival, 1e-3)
    if ratio < 2:
        return ""
    if ratio < 10:
        return f"{ratio:.1f}".removesuffix(".0") + " times cheaper"
    unit = 10 ** (floor(log10(ratio)) - 1)
    return f"{round(ratio / unit) * unit:,} times cheaper"
