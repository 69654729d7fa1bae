"""Charts as inline SVG: text keeps its size at any width, colours follow the page, no script, no network.

Marks are placed in percentages of the plot and lines in a stretched inner picture of 1000 by 1000 units, so that one
drawing fits a phone, a screen and paper. Every text is made visible and escaped here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from finesmith.report.format import MINUS, count, cut, plain, share

MAX_POINTS = 300
_UNITS = 1000
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; `style` is a class of the page's style sheet."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at `x` with a word beside it, and a ring at `y` where given."""

    x: float
    text: str
    y: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """`rows` examples whose mean is `x` across and `y` up; `low` and `high` span most of them up."""

    x: float
    y: float
    rows: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of one axis and where its ticks stand."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where `value` lies, 0 at the low end and 1 at the high end, held inside the axis."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return min(max((at - low) / (high - low), 0.0), 1.0)


def linear_axis(values: Sequence[float], ticks: int = 5, *, tight: bool = False) -> Axis:
    """Return an axis over `values` with ticks at 1, 2 or 5 times a power of ten; `tight` ends at the values."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = tuple(round(index * step, 12) for index in range(first, last + 1))
    if tight:
        return Axis(low, high, tuple(place for place in places if low <= place <= high))
    return Axis(places[0], places[-1], places)


def log_axis(values: Sequence[float]) -> Axis:
    """Return an axis over positive `values` with a tick at every power of ten (every few, when there are many)."""
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / 4))
    return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), log=True)


def tick_texts(axis: Axis, *, percent: bool = False) -> list[str]:
    """Write the ticks of an axis with equal decimals, as powers of ten when logarithmic, in percent when asked."""
    if axis.log:
        return ["10" + str(round(math.log10(tick))).translate(_SUPERSCRIPTS) for tick in axis.ticks]
    scale, sign = (100.0, " %") if percent else (1.0, "")
    step = scale * (axis.ticks[1] - axis.ticks[0]) if len(axis.ticks) > 1 else 1.0
    if step < 1e-3:
        return [plain(scale * tick) + sign for tick in axis.ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{scale * tick:,.{decimals}f}{sign}".replace("-", MINUS) for tick in axis.ticks]


def thin(xs: Sequence[float], ys: Sequence[float], points: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Return at most about `points` points that keep the lowest and highest value of every stretch of the line."""
    if len(xs) <= points:
        return list(xs), list(ys)
    stretch = math.ceil(len(xs) / (points // 2))
    kept: list[int] = []
    for start in range(0, len(xs), stretch):
        window = range(start, min(start + stretch, len(xs)))
        ends = {min(window, key=ys.__getitem__), max(window, key=ys.__getitem__)}
        kept.extend(sorted(ends))
    return [xs[index] for index in kept], [ys[index] for index in kept]


def moving_average(ys: Sequence[float], width: int) -> list[float]:
    """Return the mean of the last `width` values at every position (fewer at the start)."""
    total, means = 0.0, []
    for position, value in enumerate(ys):
        total += value
        if position >= width:
            total -= ys[position - width]
        means.append(total / min(position + 1, width))
    return means


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    marks: Sequence[Mark] = (),
    log_x: bool = False,
    percent: bool = False,
) -> Markup:
    """Draw lines over a common axis; an empty picture where no series has a point.

    `title` names what goes up; `percent` writes its ticks as percentages, `log_x` makes the axis across logarithmic.
    """
    drawn = [line for line in series if len(line.xs)]
    if not drawn:
        return Markup("")
    every_x = [x for line in drawn for x in line.xs] + [mark.x for mark in marks]
    across = log_axis(every_x) if log_x else linear_axis(every_x, 4, tight=True)
    up = linear_axis([y for line in drawn for y in line.ys], 4)
    parts = [_frame(across, up, x_label, "", percent), '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" ']
    parts.append('width="100%" height="100%">')
    parts += [f'<polyline class="line {line.style}" points="{_points(line, across, up)}"/>' for line in drawn]
    parts.append("</svg>")
    for line in drawn:
        for x, y in zip(line.xs, line.ys, strict=True) if line.dots and len(line.xs) <= 120 else ():
            parts.append(
                f'<circle class="dot {line.style}" cx="{_percent(across.place(x))}" cy="{_percent(1 - up.place(y))}" '
                f'r="3.5"><title>{_safe(line.name)}, {_safe(x_label)} {plain(x)}: {plain(y)}</title></circle>'
            )
    parts += [_mark(mark, across, up) for mark in marks]
    summary = "; ".join(
        f"{line.name} from {plain(line.ys[0])} to {plain(line.ys[-1])} over {plain(line.xs[0])} to {plain(line.xs[-1])}"
        for line in drawn
    )
    return _picture(title, f"Against {x_label}: {summary}.", "".join(parts), "plot")


def columns(bins: Sequence[tuple[float, float, float]], *, title: str, x_label: str, limit: float | None) -> Markup:
    """Draw a histogram of (low, high, rows) bins, with a line where sequences are cut (`limit`)."""
    if not bins:
        return Markup("")
    across = linear_axis([edge for low, high, _ in bins for edge in (low, high)], 4, tight=True)
    up = linear_axis([0.0, *(rows for _, _, rows in bins)], 4)
    parts = [_frame(across, up, x_label, "examples")]
    for low, high, rows in bins:
        left, width = across.place(low), across.place(high) - across.place(low)
        parts.append(
            f'<rect class="column" x="{_percent(left)}" y="{_percent(1 - up.place(rows))}" '
            f'width="{_percent(max(width - 0.003, 0.002))}" height="{_percent(up.place(rows))}">'
            f"<title>{plain(low)} to {plain(high)}: {count(rows)} examples</title></rect>"
        )
    if limit is not None and across.low <= limit <= across.high:
        parts.append(_mark(Mark(limit, f"cut at {plain(limit)}"), across, up))
    total = sum(rows for _, _, rows in bins)
    summary = f"{count(total)} examples between {plain(across.low)} and {plain(across.high)} {x_label}."
    return _picture(title, summary, "".join(parts), "plot short")


def agreement(groups: Sequence[Group], *, title: str, x_label: str, y_label: str, unit: bool) -> Markup:
    """Draw groups against the diagonal where y equals x; the larger a dot, the more rows it stands for.

    `unit` holds both axes to 0 to 1, for probabilities.
    """
    if not groups:
        return Markup("")
    ordered = sorted(groups, key=lambda group: (group.x, group.y))
    ends = [end for group in ordered for end in (group.x, group.y, group.low, group.high) if end is not None]
    axis = linear_axis([0.0, 1.0] if unit else ends, 5)
    most = max(group.rows for group in ordered)
    joined = Series("observed", [group.x for group in ordered], [group.y for group in ordered], "tuned thin")
    parts = [_frame(axis, axis, x_label, y_label), '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" ']
    parts.append('width="100%" height="100%"><polyline class="line ideal" points="0,1000 1000,0"/>')
    parts.append(f'<polyline class="line {joined.style}" points="{_points(joined, axis, axis)}"/></svg>')
    for group in ordered:
        x = _at(axis, group.x)
        if group.low is not None and group.high is not None:
            top, bottom = _percent(1 - axis.place(group.high)), _percent(1 - axis.place(group.low))
            parts.append(f'<line class="spread" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        told = f"{_safe(x_label)} {plain(group.x, 3)}, {_safe(y_label)} {plain(group.y, 3)}: {count(group.rows)} rows"
        parts.append(
            f'<circle class="dot tuned soft" cx="{x}" cy="{_percent(1 - axis.place(group.y))}" '
            f'r="{3 + 8 * math.sqrt(group.rows / most):.1f}"><title>{told}</title></circle>'
        )
    summary = f"{y_label} against {x_label} in {len(ordered)} groups; the dashed diagonal is perfect agreement."
    return _picture(title, summary, "".join(parts), "plot square")


def interval(
    value: float, low: float | None, high: float | None, *, axis: Axis, reference: float | None, style: str
) -> Markup:
    """Draw one row of a comparison: a dot with its interval, over the axis' grid and a reference line."""
    parts = [_upright("grid", _at(axis, tick)) for tick in axis.ticks]
    if reference is not None:
        parts.append(_upright("reference", _at(axis, reference)))
    if low is not None and high is not None:
        ends = (_at(axis, low), _at(axis, high))
        parts.append(f'<line class="whisker {style}" x1="{ends[0]}" x2="{ends[1]}" y1="50%" y2="50%"/>')
        parts += [_upright(f"cap {style}", end, "32%", "68%") for end in ends]
    parts.append(f'<circle class="dot {style}" cx="{_at(axis, value)}" cy="50%" r="6"/>')
    return Markup(f'<svg class="strip" aria-hidden="true">{"".join(parts)}</svg>')


def _upright(style: str, x: str, top: str = "0", bottom: str = "100%") -> str:
    return f'<line class="{style}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def tick_row(axis: Axis, texts: Sequence[str]) -> Markup:
    """Draw the tick labels that stand under the rows of a comparison."""
    labels = "".join(
        f'<text x="{_at(axis, tick)}" y="14" text-anchor="middle">{_safe(text)}</text>'
        for tick, text in zip(axis.ticks, texts, strict=True)
    )
    return Markup(f'<svg class="ticks" aria-hidden="true">{labels}</svg>')


def bar(start: float, length: float, style: str) -> Markup:
    """Draw a horizontal bar from `start` over `length`, both as shares of the row."""
    width = max(length, 0.004) if length else 0.0
    return Markup(
        f'<svg class="bar" aria-hidden="true"><rect class="rail" width="100%" height="100%" rx="3"/>'
        f'<rect class="{style}" x="{_percent(min(start, 1 - width))}" width="{_percent(width)}" height="100%" rx="2"/>'
        "</svg>"
    )


def heat_level(value: float, total: float, levels: int = 8) -> int:
    """Return a shade from 0 (nothing) to `levels` for a share of a row; the root lets rare mistakes be seen."""
    return 0 if value <= 0 or total <= 0 else min(levels, max(1, math.ceil(levels * math.sqrt(value / total))))


def heat_map(matrix: Sequence[Sequence[float]], labels: Sequence[str], *, title: str) -> Markup:
    """Draw a large confusion matrix: true classes down, predicted across, shades by share of the true class."""
    size = len(matrix)
    cells: dict[str, list[str]] = {}
    mistakes: list[tuple[float, int, int]] = []
    for row, values in enumerate(matrix):
        total = sum(values)
        for column, value in enumerate(values):
            level = heat_level(value, total)
            if level:
                kind = "right" if row == column else "wrong"
                cells.setdefault(f"{kind} h{level}", []).append(f"M{column} {row}h1v1h-1z")
                if row != column:
                    mistakes.append((value, row, column))
    parts = [f'<rect class="rail" width="{size}" height="{size}"/>']
    parts += [f'<path class="{style}" d="{"".join(paths)}"/>' for style, paths in sorted(cells.items())]
    for value, row, column in sorted(mistakes, reverse=True)[:80]:
        told = f"{_safe(labels[row])} taken for {_safe(labels[column])}: {count(value)}"
        parts.append(f'<rect class="hit" x="{column}" y="{row}" width="1" height="1"><title>{told}</title></rect>')
    right = sum(matrix[index][index] for index in range(size))
    everything = sum(itertools.chain.from_iterable(matrix))
    correct = share(right / everything if everything else None)
    summary = f"{size} classes, true classes down, predicted across; {correct} on the diagonal."
    return _picture(title, summary, "".join(parts), "heat", f'viewBox="0 0 {size} {size}" ')


def _picture(title: str, summary: str, body: str, style: str, extra: str = "") -> Markup:
    told = f"{_safe(title, 200)}. {_safe(summary, 900)}"
    return Markup(
        f'<svg class="{style}" {extra}role="img" aria-label="{told}"><title>{_safe(title, 200)}</title>{body}</svg>'
    )


def _frame(across: Axis, up: Axis, x_label: str, y_label: str, percent: bool = False) -> str:
    parts = []
    for tick, text in zip(up.ticks, tick_texts(up, percent=percent), strict=True):
        y = _percent(1 - up.place(tick))
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="-8" y="{y}" dy="4" text-anchor="end">{text}</text>')
    for tick, text in zip(across.ticks, tick_texts(across), strict=True):
        x = across.place(tick)
        anchor = "start" if x < 0.03 else "end" if x > 0.97 else "middle"
        parts.append(f'<text x="{_percent(x)}" y="100%" dy="18" text-anchor="{anchor}">{text}</text>')
    parts.append('<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>')
    parts.append(f'<text class="name" x="100%" y="100%" dy="35" text-anchor="end">{_safe(x_label)}</text>')
    if y_label:
        parts.append(f'<text class="name" x="-8" y="0" dy="-14" text-anchor="start">{_safe(y_label)}</text>')
    return "".join(parts)


def _mark(mark: Mark, across: Axis, up: Axis) -> str:
    x = across.place(mark.x)
    side = ("end", -6) if x > 0.6 else ("start", 6)
    parts = [f'<line class="mark" x1="{_percent(x)}" x2="{_percent(x)}" y1="0" y2="100%"/>']
    if mark.y is not None:
        parts.append(f'<circle class="ring" cx="{_percent(x)}" cy="{_percent(1 - up.place(mark.y))}" r="7"/>')
    parts.append(f'<text class="said" x="{_percent(x)}" dx="{side[1]}" y="0" dy="10" text-anchor="{side[0]}">')
    return "".join(parts) + f"{_safe(mark.text)}</text>"


def _points(line: Series, across: Axis, up: Axis) -> str:
    xs, ys = thin(line.xs, line.ys)
    return " ".join(
        f"{_UNITS * across.place(x):.0f},{_UNITS * (1 - up.place(y)):.0f}" for x, y in zip(xs, ys, strict=True)
    )


def _at(axis: Axis, value: float) -> str:
    return _percent(axis.place(value))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _safe(text: str, length: int = 120) -> str:
    return str(escape(cut(text, length)))
