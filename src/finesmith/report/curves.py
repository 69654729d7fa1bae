"""The parts of the report about training: curves from the events, the gap between the splits, what happened when."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finesmith.report import charts
from finesmith.report.charts import Mark, Series
from finesmith.report.folder import RunFolder, items, mapping
from finesmith.report.format import (
    count,
    cut,
    is_percent,
    metric_difference,
    metric_name,
    metric_value,
    moment,
    number,
    plain,
)
from finesmith.types import SPLITS

TOLD = 30


def pairs(events: Iterable[dict[str, Any]], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """Return steps in order and a figure at each; a step repeated after a resume keeps its last figure."""
    found: dict[float, float] = {}
    for event in events:
        step, value = number(event.get("step")), number(event.get(key))
        if step is not None and value is not None:
            found[step] = scale * value
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def best_step(folder: RunFolder) -> tuple[float | None, float | None]:
    """Return the step whose weights were kept and its metric on validation."""
    best = folder.named("best")
    return (number(best[-1].get("step")), number(best[-1].get("value"))) if best else (None, None)


def draw(folder: RunFolder) -> dict[str, Any] | None:
    """Return the loss, metric and learning-rate curves that the events allow."""
    steps, evaluations = folder.named("step"), folder.named("evaluation")
    made = [
        chart
        for chart in (
            _loss(steps, evaluations, folder),
            _metric(evaluations, folder),
            _learning_rate(steps),
            _gradients(steps),
            _range(folder),
        )
        if chart
    ]
    return {"charts": made} if made else None


def _loss(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], folder: RunFolder) -> dict[str, Any] | None:
    xs, ys = pairs(steps, "loss")
    series = []
    note = ""
    if xs:
        width = max(1, len(xs) // 40)
        series.append(Series("each step", xs, ys, "train faint" if width > 1 else "train"))
        if width > 1:
            series.append(Series("train", xs, charts.moving_average(ys, width), "train"))
            note = f"The pale line is each step, the full one the mean of the last {width} steps."
    elif evaluations:
        series.append(Series("train", *pairs(evaluations, "train_loss"), "train", dots=True))
    series.append(Series("validation", *pairs(evaluations, "validation_loss"), "validation", dots=True))
    step, _ = best_step(folder)
    marks = [Mark(step, f"best, step {count(step)}")] if step is not None else []
    svg = charts.lines(series, title="Loss while training", x_label="step", marks=marks)
    key = [("train", "train"), ("validation", "validation")]
    return {"title": "Loss", "svg": svg, "key": key, "note": note} if svg else None


def _metric(evaluations: list[dict[str, Any]], folder: RunFolder) -> dict[str, Any] | None:
    name = next((event["metric"] for event in reversed(evaluations) if isinstance(event.get("metric"), str)), None)
    if name is None:
        return None
    same = [event for event in evaluations if event.get("metric") == name]
    xs, ys = pairs(same, "value")
    step, value = best_step(folder)
    marks = [Mark(step, f"best {metric_value(name, value)}", value)] if step is not None and value is not None else []
    svg = charts.lines(
        [Series(metric_name(name), xs, ys, "validation", dots=True)],
        title=f"{metric_name(name)} on validation",
        x_label="step",
        percent=is_percent(name),
        marks=marks,
    )
    title = f"{metric_name(name)} on validation"
    note = "The ring marks the weights that were kept." if marks else ""
    return {"title": title, "svg": svg, "key": [], "note": note} if svg else None


def _learning_rate(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    xs, ys = pairs(steps, "learning_rate")
    svg = charts.lines([Series("learning rate", xs, ys, "rate")], title="Learning rate", x_label="step")
    return {"title": "Learning rate", "svg": svg, "key": [], "note": ""} if svg else None


def _gradients(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    xs, ys = pairs(steps, "grad_norm")
    svg = charts.lines([Series("gradient norm", xs, ys, "rate thin")], title="Gradient norm", x_label="step")
    note = "Length of the gradient before clipping."
    return {"title": "Gradient norm", "svg": svg, "key": [], "note": note} if svg else None


def _range(folder: RunFolder) -> dict[str, Any] | None:
    tests = folder.named("lr_range")
    if not tests:
        return None
    both = zip(items(tests[-1].get("learning_rates")), items(tests[-1].get("losses")), strict=False)
    points = [(rate, loss) for rate, loss in ((number(a), number(b)) for a, b in both) if rate and loss is not None]
    points = sorted((rate, loss) for rate, loss in points if rate > 0)
    if not points:
        return None
    suggestion = number(tests[-1].get("suggestion"))
    marks = [Mark(suggestion, f"chosen {plain(suggestion, 2)}")] if suggestion and suggestion > 0 else []
    svg = charts.lines(
        [Series("loss", [x for x, _ in points], [y for _, y in points], "rate")],
        title="Learning-rate range test",
        x_label="learning rate",
        marks=marks,
        log_x=True,
    )
    return {"title": "Learning-rate range test", "svg": svg, "key": [], "note": "Logarithmic scale across."}


def story(folder: RunFolder) -> list[tuple[str, str]]:
    """Return what happened, in order: notes, early stopping, the opening of the test split."""
    told = []
    for event in folder.events:
        step = number(event.get("step"))
        when = f"step {count(step)}" if step is not None else moment(event.get("time")) if event.get("time") else ""
        if event.get("event") == "note":
            told.append((when, cut(event.get("message"), 300)))
        elif event.get("event") == "early_stop":
            told.append((when, cut(event.get("message"), 300) or "Stopped early."))
        elif event.get("event") == "test_opened":
            told.append((when, "The test split was opened."))
    return told[:TOLD]


def gap(folder: RunFolder) -> dict[str, Any] | None:
    """Return the tuned model's metrics on every split side by side and the sentence on overfitting."""
    overfitting = mapping(folder.verdict.get("overfitting"))
    by_split = {split: mapping(folder.scores.get(split)) for split in SPLITS}
    present = [split for split in SPLITS if by_split[split]]
    names = list(dict.fromkeys(name for split in present for name in by_split[split]))[:12]
    rows = [
        (metric_name(name), [metric_value(name, mapping(by_split[split].get(name)).get("value")) for split in present])
        for name in names
    ]
    metric = overfitting.get("metric") or folder.verdict.get("metric", "")
    figures = []
    if overfitting:
        began = number(overfitting.get("began_at_step"))
        figures = [
            ("Train", metric_value(metric, overfitting.get("train"))),
            ("Validation", metric_value(metric, overfitting.get("validation"))),
            ("Gap", metric_difference(metric, overfitting.get("gap"))),
            ("Began at", f"step {count(began)}" if began is not None else "not seen"),
        ]
    if not rows and not overfitting:
        return None
    return {
        "sentence": cut(overfitting.get("sentence"), 500),
        "severity": cut(overfitting.get("severity"), 30),
        "metric": metric_name(metric) if metric else "",
        "figures": figures,
        "splits": present,
        "rows": rows,
    }


def progress(folder: RunFolder) -> str:
    """Say in one or two sentences how far an unfinished run has come."""
    steps, evaluations = folder.named("step"), folder.named("evaluation")
    parts = []
    if steps:
        last = steps[-1]
        epoch = number(last.get("epoch"))
        reached = f" (epoch {plain(epoch, 3)})" if epoch is not None else ""
        parts.append(f"Training reached step {count(last.get('step'))}{reached}.")
    if evaluations and evaluations[-1].get("metric") is not None:
        name = evaluations[-1]["metric"]
        step, value = best_step(folder)
        shown = value if value is not None else number(evaluations[-1].get("value"))
        where = f" at step {count(step)}" if step is not None else ""
        parts.append(f"{metric_name(name)} on validation is {metric_value(name, shown)}{where}.")
    elif not steps:
        parts.append("Training has not begun.")
    opened = len(folder.named("test_opened"))
    parts.append("The test split has not been opened." if not opened else "The test split has been opened.")
    return " ".join(parts)
