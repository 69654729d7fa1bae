"""List the runs of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesmith.errors import RunError
from finesmith.run import read_json, read_state


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return folder, state, started, metric, value, better, conclusion and error of each run, oldest first."""
    rows = []
    for path in sorted(folder.glob("*/run.json")):
        place = path.parent
        try:
            state, about = read_state(place), read_json(path)
            verdict = read_json(place / "verdict.json") if (place / "verdict.json").exists() else {}
            if not isinstance(verdict, Mapping):
                raise RunError(f"{place / 'verdict.json'} is damaged: it holds no verdict")
        except RunError as error:
            about, state, verdict = {"error": {"message": str(error)}}, "damaged", {}
        tuned, failure = _mapping(verdict.get("tuned")), _mapping(about.get("error"))
        value = tuned.get("value")
        rows.append(
            {
                "folder": str(place),
                "state": state,
                "started": about.get("started"),
                "metric": verdict.get("metric"),
                "value": value if isinstance(value, float) else None,
                "better": verdict.get("better"),
                "conclusion": verdict.get("conclusion"),
                "error": failure.get("message"),
            }
        )
    return sorted(rows, key=lambda row: str(row["started"] or ""))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
