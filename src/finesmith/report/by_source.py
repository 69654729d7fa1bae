"""The table of what the tuned model reaches on the test rows of each source."""

from __future__ import annotations

from typing import Any

from finesmith.report.folder import RunFolder, mapping, records
from finesmith.report.format import count, cut, metric_interval, metric_name, metric_value, number, plain

MOST_SOURCES = 30
MOST_METRICS = 4


def by_source(folder: RunFolder) -> dict[str, Any] | None:
    """Return every source's rows, its part in training and its scores on test.

    None where neither the training nor the test rows are of several sources, so that nothing is told apart.
    """
    mixture = records(folder.data.get("mixture"))[:MOST_SOURCES]
    scored = {
        cut(row.get("source"), 160): row
        for row in records(mapping(folder.scores.get("by_source")).get("test"))[:MOST_SOURCES]
    }
    several = any(sum((number(row.get(split)) or 0.0) > 0 for row in mixture) > 1 for split in ("train", "test"))
    if not several or not scored:
        return None
    found = [name for row in scored.values() for name in mapping(row.get("scores"))]
    first = str(folder.verdict.get("metric"))
    metrics = sorted(dict.fromkeys(found), key=lambda name: name != first)[:MOST_METRICS]
    rows = []
    for row in mixture:
        source = cut(row.get("source"), 160)
        test = scored.get(source, {})
        scores = mapping(test.get("scores"))
        cells = [(metric, mapping(scores.get(metric))) for metric in metrics]
        rows.append(
            {
                "name": source,
                "weight": plain(row.get("weight")) if number(row.get("weight")) is not None else "",
                "train": count(row.get("train")),
                "draws": count(row.get("draws")) if number(row.get("draws")) is not None else "",
                "test": count(row.get("test")),
                "note": cut(test.get("note"), 160),
                "cells": [
                    (metric_value(name, cell.get("value")), metric_interval(name, cell.get("low"), cell.get("high")))
                    for name, cell in cells
                ],
            }
        )
    weighted = any(row["weight"] for row in rows)
    return {"metrics": [metric_name(name) for name in metrics], "rows": rows, "weighted": weighted}
