"""Written answers side by side: what was asked, what a good answer is, and what two models wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finesmith.report.folder import mapping
from finesmith.report.format import count, cut, label_text, number, plain, share

if TYPE_CHECKING:
    from finesmith.report.folder import RunFolder

SHOWN = 12
LONGEST = 700
UNTUNED = "untuned base model"
ENDS = {
    "stop_token": "ended by itself",
    "stop_string": "ended at a stop text",
    "length": "cut at the most tokens",
    "context": "cut at the model's context",
    "no room": "not answered: no room",
}


def find(folder: RunFolder) -> tuple[dict[str, Any] | None, str | None]:
    """Return the answers written on test, counted and some of them shown, and what could not be read."""
    written = mapping(mapping(folder.scores.get("details")).get("written"))
    if not written:
        return None, None
    rows, problem = _rows(folder)
    return {
        "written": count(written.get("rows")),
        "of": count(written.get("of")),
        "stopped": _part(written, "stopped"),
        "cut": _part(written, "cut"),
        "unanswered": count(written["unanswered"]) if number(written.get("unanswered")) else "",
        "tokens": plain(written.get("mean_tokens"), 3),
        "most": plain(written.get("max_new_tokens")),
        "rows": rows,
    }, problem


def one_by_one(folder: RunFolder) -> str:
    """Say how many tokens pseudo-perplexity is of, where it was measured."""
    told = mapping(mapping(folder.scores.get("details")).get("one_by_one"))
    tokens, whole = number(told.get("tokens")), number(told.get("of"))
    if tokens is None or whole is None:
        return ""
    drawn = f"all {count(whole)}" if tokens >= whole else f"{count(tokens)} drawn of {count(whole)}"
    return f"Pseudo-perplexity is of {drawn} tokens of the test split, each masked without the other words."


def _part(written: dict[str, Any], name: str) -> str:
    part, whole = number(written.get(name)), number(written.get("rows"))
    return f"{count(part)} ({share(part / whole)})" if part is not None and whole else count(part)


def _rows(folder: RunFolder) -> tuple[list[dict[str, str]], str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, str]] = []
    for name in ("test", "baselines"):
        path = folder.path / "predictions" / f"{name}.parquet"
        if not path.is_file():
            return rows, None
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            return rows, f"predictions/{name}.parquet cannot be read: {str(error)[:120]}"
        columns = table.column_names
        if name == "test":
            if not {"id", "text", "prediction", "reference"} <= set(columns):
                return [], None
            heard = [place for place, text in enumerate(table.column("prediction").to_pylist()) if text is not None]
            rows = [_row(each) for each in table.take(heard[:SHOWN]).to_pylist()]
        elif UNTUNED in columns and "id" in columns:
            known = dict(zip(table.column("id").to_pylist(), table.column(UNTUNED).to_pylist(), strict=True))
            for row in rows:
                row["base"] = cut(known.get(int(row["id"])), LONGEST)
    return rows, None


def _row(each: dict[str, Any]) -> dict[str, str]:
    return {
        "id": str(int(each["id"])),
        "text": cut(each["text"], LONGEST),
        "reference": label_text(each["reference"], LONGEST),
        "prediction": cut(each["prediction"], LONGEST),
        "end": ENDS.get(str(each.get("finished")), ""),
        "base": "",
    }
