"""The parts of the report about data and errors, each from the run folder to plain values for the template.

A function returns None where the run folder holds nothing to show. Lists are cut here, so that the page stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finesmith.report import charts
from finesmith.report.folder import RunFolder, items, mapping, records
from finesmith.report.format import (
    count,
    cut,
    label_text,
    metric_difference,
    metric_name,
    metric_value,
    number,
    plain,
    share,
    words,
)
from finesmith.types import SPLITS

SMALL_MATRIX = 10
LARGE_MATRIX = 100
CLASS_ROWS = 150
BALANCE_ROWS = 16
FINDINGS = 40
EXCERPTS = 4
PROBES = 40
ACTIONS = {"keep": "kept", "drop": "dropped", "fix": "fixed", "stop": "stopped the run", "None": ""}
COLUMNS = ("text", "text_pair", "negative", "label", "group", "split")
SEVERITIES = ("error", "warning", "info")


def class_names(folder: RunFolder) -> list[str]:
    """Return the labels in the order of the confusion matrix and the probabilities."""
    labels = [label_text(label, 200) for label in items(folder.data.get("labels"))]
    return labels or [label_text(row.get("label"), 200) for row in _details(folder, "per_class")]


def flow(folder: RunFolder) -> dict[str, Any] | None:
    """Return the rows from the files to the splits as bars, and whether they add up."""
    stages = [(words(row.get("stage"), 120), number(row.get("rows"))) for row in records(folder.data.get("flow"))[:40]]
    known = [(stage, rows) for stage, rows in stages if rows is not None]
    if not known:
        return None
    read = sum(rows for stage, rows in known if rows > 0 and stage not in SPLITS)
    lost = -sum(rows for stage, rows in known if rows < 0 and stage not in SPLITS)
    kept = sum(rows for stage, rows in known if stage in SPLITS)
    whole = max(read, kept, 1.0)
    level, taken, rows_out = 0.0, 0.0, []
    for stage, rows in known:
        if stage in SPLITS:
            picture, taken = charts.bar(taken / whole, rows / whole, stage), taken + rows
        elif rows < 0:
            level += rows
            picture = charts.bar(max(level, 0.0) / whole, -rows / whole, "lost")
        else:
            picture, level = charts.bar(level / whole, rows / whole, "read"), level + rows
        rows_out.append({"stage": stage, "rows": count(rows), "share": share(abs(rows) / whole), "bar": picture})
    sums = f"{count(read)} read − {count(lost)} dropped = {count(read - lost)}"
    agrees = read - lost == kept if kept else None
    if agrees is not None:
        sums += " = " + " + ".join(f"{count(rows)} {stage}" for stage, rows in known if stage in SPLITS)
        sums = sums if agrees else sums.replace(" = ", " ≠ ").replace(" ≠ ", " = ", 1)
    return {"stages": rows_out, "sums": sums, "agrees": agrees}


def sources(folder: RunFolder) -> dict[str, Any]:
    """Return the files read, the columns chosen and why, what cleaning and mending changed, notes on the split."""
    columns, reasons = mapping(folder.data.get("columns")), mapping(folder.data.get("reasons"))
    changes = [*mapping(folder.data.get("cleaning")).items(), *mapping(folder.data.get("fixed")).items()]
    return {
        "files": [_file(row) for row in records(folder.data.get("sources"))[:20]],
        "columns": [(words(key, 60), label_text(value)) for key, value in columns.items() if value and key in COLUMNS],
        "reasons": [(cut(key, 60), cut(value, 300)) for key, value in list(reasons.items())[:20]],
        "changes": [(words(key, 80), f"{count(value)} rows") for key, value in changes[:30]],
        "notes": [cut(note, 300) for note in items(folder.data.get("split_notes"))[:12] if isinstance(note, str)],
    }


def _file(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": cut(row.get("name"), 160),
        "format": cut(row.get("format"), 30),
        "encoding": cut(row.get("encoding"), 40),
        "rows": count(row.get("rows")),
        "digest": cut(row.get("sha256"), 64),
        "notes": [cut(note, 200) for note in items(row.get("notes"))[:4]],
    }


def balance(folder: RunFolder) -> dict[str, Any] | None:
    """Return the rows of every class in every split, the largest first; or the summary of a rating in every split."""
    splits = {name: mapping(mapping(folder.data.get("splits")).get(name)) for name in SPLITS}
    present = [name for name in SPLITS if splits[name]]
    per_label = {name: mapping(splits[name].get("labels")) for name in present}
    labels = sorted(
        {label for counts in per_label.values() for label in counts},
        key=lambda label: (-(number(per_label.get("train", {}).get(label)) or 0.0), label),
    )
    if not labels:
        summaries = {name: mapping(splits[name].get("summary")) for name in present}
        keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary))[:12]
        table = [(key, [plain(summaries[name].get(key)) for name in present]) for key in keys]
        return {"splits": present, "summary": table, "rows": []} if table else None
    first = per_label[present[0]]
    most = max(number(first.get(label)) or 0.0 for label in labels) or 1.0
    rows = [
        {
            "label": label_text(label),
            "counts": [count(per_label[name].get(label, 0)) for name in present],
            "bar": charts.bar(0.0, (number(first.get(label)) or 0.0) / most, present[0]),
        }
        for label in labels
    ]
    half = BALANCE_ROWS // 2
    shown = rows if len(rows) <= BALANCE_ROWS else rows[:half] + rows[-half:]
    sizes = [number(first.get(label)) or 0.0 for label in labels]
    smallest = min(sizes)
    return {
        "splits": present,
        "rows": shown,
        "left_out": len(rows) - len(shown),
        "half": half,
        "classes": len(rows),
        "ratio": plain(max(sizes) / smallest, 2) if smallest else None,
        "summary": [],
    }


def lengths(folder: RunFolder) -> dict[str, Any] | None:
    """Return the histogram of text lengths in tokens and the tokenizer's figures."""
    tokens = mapping(folder.data.get("tokens"))
    if not tokens:
        return None
    bins = []
    for row in records(tokens.get("histogram"))[:80]:
        low, high, rows = number(row.get("low")), number(row.get("high")), number(row.get("rows"))
        if low is not None and high is not None and rows is not None and high > low:
            bins.append((low, high, max(rows, 0.0)))
    figures = [
        ("Tokens a word", plain(tokens.get("fertility"), 3)),
        ("Unknown tokens", share(tokens.get("unknown_rate"), 2)),
        ("Mean length", f"{plain(tokens.get('mean_length'), 3)} tokens"),
        ("Longest kept", f"{plain(tokens.get('max_length'))} tokens"),
        ("Truncated", f"{count(tokens.get('truncated_rows'))} rows ({share(tokens.get('truncated_share'), 2)})"),
    ]
    chart = charts.columns(
        bins, title="Text lengths in tokens", x_label="tokens", limit=number(tokens.get("max_length"))
    )
    words = items(tokens.get("added_words"))
    return {
        "chart": chart,
        "figures": figures,
        "added": [cut(word, 40) for word in words[:30]],
        "added_count": len(words),
    }


def findings(folder: RunFolder) -> dict[str, Any] | None:
    """Return the audit's findings, errors first, each with a few excerpts."""
    if not folder.audit:
        return None
    every = records(folder.audit.get("findings"))
    rank = {severity: place for place, severity in enumerate(SEVERITIES)}
    every.sort(key=lambda finding: rank.get(str(finding.get("severity")), len(SEVERITIES)))
    shown = [
        {
            "kind": words(finding.get("kind"), 60),
            "severity": finding["severity"] if finding.get("severity") in rank else "info",
            "message": cut(finding.get("message"), 400),
            "shows": cut(finding.get("shows"), 400),
            "count": count(finding.get("count")) if number(finding.get("count")) else "",
            "action": ACTIONS.get(str(finding.get("action")), cut(finding.get("action"), 40)),
            "remedy": cut(finding.get("remedy"), 400),
            "details": _scalars(
                {k: v for k, v in mapping(finding.get("details")).items() if k not in ("rows", "of")}, 8
            ),
            "examples": [_excerpt(example) for example in records(finding.get("examples"))[:EXCERPTS]],
        }
        for finding in every[:FINDINGS]
    ]
    counts = [(severity, sum(row.get("severity") == severity for row in every)) for severity in SEVERITIES]
    return {"rows": shown, "left_out": len(every) - len(shown), "counts": [pair for pair in counts if pair[1]]}


def preflight(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the probes before and right after the first step found, those that failed first."""
    every = records(folder.probes.get("probes"))[:PROBES]
    if not every:
        return None
    every.sort(key=lambda probe: probe.get("passed") is not False)
    rows = [
        {
            "name": cut(probe.get("name"), 60),
            "passed": probe.get("passed") is not False,
            "evidence": cut(probe.get("evidence"), 400),
            "remedy": cut(probe.get("remedy"), 400),
            "why": cut(probe.get("why"), 200),
            "shows": cut(probe.get("shows"), 800),
        }
        for probe in every
    ]
    return {"rows": rows, "failed": sum(not row["passed"] for row in rows)}


def _excerpt(example: dict[str, Any]) -> dict[str, Any]:
    text = example.get("excerpt", example.get("text"))
    others = {key: value for key, value in example.items() if key not in ("id", "excerpt", "text")}
    return {"id": cut(example.get("id"), 20), "text": cut(text, 260), "others": _scalars(others, 4)}


def _scalars(values: dict[str, Any], most: int) -> list[tuple[str, str]]:
    return [(words(key, 40), text) for key, value in values.items() if (text := _detail(key, value))][:most]


def _detail(key: str, value: object) -> str:
    if isinstance(value, dict):
        parts = [f"{cut(str(name), 40)} {_figure(key, part)}" for name, part in list(value.items())[:6]]
        return ", ".join(parts) + (" …" if len(value) > 6 else "")
    if isinstance(value, list):
        return ", ".join(_figure(key, part) for part in value[:8]) + (" …" if len(value) > 8 else "")
    return _figure(key, value, 120)


def _figure(key: str, value: object, length: int = 40) -> str:
    if number(value) is None:
        return cut(value, length) if isinstance(value, str | bool) else ""
    return share(value, 2) if "share" in key or key.endswith("rate") else plain(value)


def confusion(folder: RunFolder) -> dict[str, Any] | None:
    """Return the confusion matrix as a table when small, as a heat map otherwise, and the pairs most confused."""
    labels = class_names(folder)
    rows = [[number(value) for value in items(row)] for row in items(_raw(folder, "confusion"))]
    if not rows or len(rows) != len(labels) or any(len(row) != len(rows) or None in row for row in rows):
        return None
    matrix = [[value or 0.0 for value in row] for row in rows]
    size = len(matrix)
    totals = [sum(row) for row in matrix]
    pairs = sorted(
        ((matrix[i][j], i, j) for i in range(size) for j in range(size) if i != j and matrix[i][j] > 0),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    top = [
        {
            "true": cut(labels[i], 80),
            "predicted": cut(labels[j], 80),
            "rows": count(value),
            "share": share(value / totals[i]),
            "bar": charts.bar(0.0, value / totals[i], "lost"),
        }
        for value, i, j in pairs[:15]
    ]
    result: dict[str, Any] = {
        "size": size,
        "top": top if size > 2 else [],
        "table": None,
        "map": None,
        "reduced": False,
    }
    result["right"], result["rows"] = count(sum(matrix[i][i] for i in range(size))), count(sum(totals))
    if size <= SMALL_MATRIX:
        result["labels"] = [cut(label, 40) for label in labels]
        result["table"] = [
            (
                cut(labels[i], 40),
                [
                    (count(v), "right" if i == j else "wrong", charts.heat_level(v, totals[i]))
                    for j, v in enumerate(row)
                ],
            )
            for i, row in enumerate(matrix)
        ]
        return result
    chosen = list(range(size))
    if size > LARGE_MATRIX:
        wrong = [totals[i] - matrix[i][i] + sum(matrix[j][i] for j in range(size) if j != i) for i in range(size)]
        chosen = sorted(sorted(range(size), key=lambda i: -wrong[i])[:LARGE_MATRIX])
    part = [[matrix[i][j] for j in chosen] for i in chosen]
    result["map"] = charts.heat_map(part, [labels[i] for i in chosen], title="Confusion matrix of the test split")
    return result


def per_class(folder: RunFolder) -> dict[str, Any] | None:
    """Return precision, recall and F1 of every class, the weakest first."""
    every = _details(folder, "per_class")
    if not every:
        return None
    every.sort(key=lambda row: value if (value := number(row.get("f1"))) is not None else 2.0)
    rows = [
        {
            "label": label_text(row.get("label")),
            "figures": [share(row.get(key)) for key in ("precision", "recall", "f1")],
            "support": count(row.get("support")),
            "predicted": count(row.get("predicted")),
            "bar": charts.bar(0.0, min(max(number(row.get("f1")) or 0.0, 0.0), 1.0), "tuned"),
        }
        for row in every[:CLASS_ROWS]
    ]
    return {"rows": rows, "left_out": len(every) - len(rows), "folded": len(rows) > 15}


def calibration(folder: RunFolder) -> dict[str, Any] | None:
    """Return the reliability diagram, or predicted against true ratings for a regression."""
    groups = _groups(_details(folder, "reliability"), "confidence", "accuracy")
    test = mapping(folder.scores.get("test"))
    name = next((key for key in ("calibration_error", "ece") if key in test), None)
    error = f"{metric_name(name)} {metric_value(name, mapping(test[name]).get('value'))}. " if name else ""
    if groups:
        # A multi-label reliability curve is over all probabilities, a single-label one over the chosen label's.
        single = bool(_details(folder, "per_class")) and _raw(folder, "confusion") is not None
        stated, observed = ("stated confidence", "share correct") if single else ("stated probability", "share true")
        chart = charts.agreement(groups, title="Reliability", x_label=stated, y_label=observed, unit=True)
        lean = sum(group.rows * (group.x - group.y) for group in groups) / sum(group.rows for group in groups)
        side = "higher than" if lean > 0.005 else "lower than" if lean < -0.005 else None
        sentence = (
            f"On average the {stated} is {100 * abs(lean):.1f} points {side} the {observed}."
            if side
            else f"On average the {stated} agrees with the {observed} to within half a point."
        )
        return {"chart": chart, "sentence": f"{error}{sentence}", "title": "Calibration"}
    rows = _details(folder, "predicted_vs_true") or _details(folder, "calibration_bins")
    groups = _groups(rows, "predicted", "true")
    if not groups:
        return None
    title, x_label, y_label = "Predicted and true values", "mean predicted", "mean true"
    chart = charts.agreement(groups, title=title, x_label=x_label, y_label=y_label, unit=False)
    sentence = "Each dot is a group of test examples with similar predictions; on the diagonal it is right on average."
    if any(group.low is not None for group in groups):
        sentence += " The thin bars span the middle 80 % of the true values."
    return {"chart": chart, "sentence": sentence, "title": title}


def moved_answers(folder: RunFolder) -> dict[str, Any] | None:
    """Return how likely preferred and other answers were and are, and in a sentence whether the preferred ones fell."""
    rows, changes = list[dict[str, Any]](), list[float]()
    for row in _details(folder, "answers"):
        before, after = number(row.get("before")), number(row.get("after"))
        if before is not None and after is not None:
            changes.append(after - before)
            figures = [metric_value("", before), metric_value("", after), metric_difference("", after - before)]
            rows.append({"answers": cut(row.get("answers"), 20), "figures": figures, "count": count(row.get("rows"))})
    if not rows:
        return None
    name, fell = rows[0]["answers"], changes[0] < 0
    sentence = f"The {name} answers became {'LESS' if fell else 'more'} likely than before tuning."
    if fell:
        sentence += (
            " A loss of differences is content when the others fall further. If the model is to write such answers, "
            "try fewer epochs, a lower learning rate or a higher preference.beta."
        )
    return {"rows": rows, "sentence": sentence}


def _groups(rows: Sequence[dict[str, Any]], across: str, up: str) -> list[charts.Group]:
    found = []
    for row in rows[:60]:
        x, y, weight = number(row.get(across)), number(row.get(up)), number(row.get("rows"))
        if x is not None and y is not None and weight and weight > 0:
            found.append(charts.Group(x, y, weight, number(row.get(f"{up}_low")), number(row.get(f"{up}_high"))))
    return found


def _raw(folder: RunFolder, name: str) -> Any:
    return mapping(folder.scores.get("details")).get(name)


def _details(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    return records(_raw(folder, name))
