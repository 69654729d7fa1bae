"""List the runs of a folder."""

from __future__ import annotations

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
            about, state = read_json(path), read_state(place)
            verdict = read_json(place / "verdict.json") if (place / "verdict.json").is_file() else {}
        except RunError as error:
            about, state, verdict = {"error": {"message": str(error)}}, "damaged", {}
        rows.append(
            {
                "folder": str(place),
                "state": state,
                "started": about.get("started"),
                "metric": verdict.get("metric"),
                "value": (verdict.get("tuned") or {}).get("value"),
                "better": verdict.get("better"),
                "conclusion": verdict.get("conclusion"),
                "error": (about.get("error") or {}).get("message"),
            }
        )
    return sorted(rows, key=lambda row: str(row["started"] or ""))
