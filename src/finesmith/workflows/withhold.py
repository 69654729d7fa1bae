"""What a run folder leaves out with `output.redact`: the texts of the data; labels and names of columns stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of an excerpt, what says which row it is and how it is labelled.
ABOUT_A_ROW = frozenset({"id", "label", "labels", "language", "length", "held_out_in"})
# What stands in place of a label that could not be read may be any text.
NO_LABELS = frozenset({"label", "labels"})
# Of a finding's details, what quotes texts or groups.
QUOTING = frozenset({"marks", "largest"})


def withheld(name: str, value: Any) -> Any:
    """Return what is written into the file `name` of a run folder without any text of a row."""
    if name == "audit.json":
        return {**value, "findings": [without_texts(finding) for finding in value["findings"]]}
    if name == "probes.json":
        return {"probes": [{**probe, "shows": ""} for probe in value["probes"]]}
    if name == "data.json" and value.get("tokens"):
        return {**value, "tokens": {**value["tokens"], "added_words": []}}
    return value


def without_texts(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return an audit finding that names rows by id and quotes none of them."""
    kept = ABOUT_A_ROW - NO_LABELS if finding["kind"] == "missing_labels" else ABOUT_A_ROW
    return {
        **finding,
        "shows": "",
        "examples": [{k: v for k, v in row.items() if k in kept} for row in finding["examples"]],
        "details": {k: v for k, v in finding["details"].items() if k not in QUOTING},
    }
