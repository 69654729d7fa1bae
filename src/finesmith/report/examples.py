"""The training rows that the report shows as the model was fed them."""

from __future__ import annotations

import unicodedata
from typing import Any

from finesmith.report.folder import RunFolder, items, records
from finesmith.report.format import count, cut, label_text, number

MOST_ROWS = 6
MOST_TOKENS = 200
KINDS = ("plain", "supervised", "special", "cut", "skipped")
WHY = {"first": "among the first", "longest": "the longest"}


def examples(folder: RunFolder) -> dict[str, Any] | None:
    """Return a few training rows, token by token; None where the run folder has none."""
    rows = [_row(row) for row in records(folder.examples.get("examples"))[:MOST_ROWS]]
    rows = [row for row in rows if row["tokens"]]
    if not rows:
        return None
    return {
        "rows": rows,
        # A row of several texts stands there text by text.
        "shown": count(len({row["where"] for row in rows})),
        "of": count(folder.examples.get("rows")),
        "meaning": cut(folder.examples.get("meaning"), 200),
        "learnt": any(token["kind"] == "supervised" for row in rows for token in row["tokens"]),
        "answers": any(token["label"] for row in rows for token in row["tokens"]),
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    tokens = [_token(token) for token in records(row.get("tokens"))[:MOST_TOKENS]]
    length, original = number(row.get("length")) or 0.0, number(row.get("original_length")) or 0.0
    size = f"{count(length)} of {count(original)} tokens" if original > length else f"{count(length)} tokens"
    size = f"{cut(row['sort'], 40)}, {size}" if "sort" in row else size
    facts = [size] if number(row.get("supervised")) is None else [size, f"{count(row['supervised'])} learnt"]
    facts += [WHY[why] for why in items(row.get("why"))[:4] if isinstance(why, str) and why in WHY]
    return {
        "where": cut(row.get("where"), 160),
        "facts": ", ".join(facts),
        "target": label_text(row["target"], 200) if "target" in row else "",
        "direction": "rtl" if _leans_right_to_left(tokens) else "ltr",
        "tokens": tokens,
    }


def _token(token: dict[str, Any]) -> dict[str, Any]:
    kind = str(token.get("kind"))
    text, amount = cut(token.get("text"), 60), number(token.get("count"))
    if kind == "cut":
        text = f"{count(amount)} tokens cut off"
    elif kind == "skipped":
        text = f"… {count(amount)} tokens …"
    return {
        "kind": kind if kind in KINDS else "plain",
        "special": kind == "special" or token.get("special") is True,
        "text": text,
        "label": cut(token.get("label"), 40),
        "ends_line": kind not in ("cut", "skipped") and text.endswith("↵"),
    }


def _leans_right_to_left(tokens: list[dict[str, Any]]) -> bool:
    """Tell whether most letters of a row are written from right to left."""
    sides = [unicodedata.bidirectional(letter) for token in tokens for letter in token["text"]]
    return sum(side in ("R", "AL") for side in sides) > sum(side == "L" for side in sides)
