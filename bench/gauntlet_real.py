"""Clean runs of real weights on real rows: the bundled encoder on the bundled sample, a small Llama on word problems.

python bench/gauntlet.py --shared FOLDER --only real      # FOLDER holds data/gsm8k and models/stories260K
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from language_jobs import write_rows

import finesmith
from gauntlet import REMOVED, Case

USUAL = {"train.learning_rate": REMOVED, "train.batch_size": REMOVED, "train.micro_batch_size": REMOVED,
         "model.dropout": REMOVED}  # fmt: skip
SAMPLE = Path(finesmith.__file__).parent / "samples" / "support_tickets.csv"


def real_cases(world: Any, shared: Path) -> list[Case]:
    """Return runs at the usual rates and sizes; those of the Llama read 200 rows."""
    import json

    lines = (shared / "data" / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    said = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    world.problems = write_rows(world.folder / "problems.jsonl", said)
    world.stories = shared / "models" / "stories260K" / "hf"
    tickets: dict[str, Any] = {"data.train": str(SAMPLE), "data.text": "message", "data.label": "category",
                               "model.base": "default", **USUAL}  # fmt: skip
    found = [
        Case("", f"real tickets, {method}", "classification", {**tickets, "method.name": method})
        for method in ("full", "lora", "head_then_full", "dora", "pissa", "ia3", "prompt")
    ]
    still = {key: value for key, value in tickets.items() if not key.startswith("train.")}
    found.append(Case("", "real tickets, features", "classification",
                      {**still, "method": {"name": "features"}, "train": {}}))  # fmt: skip
    problems = {"data.train": "@problems", "model.base": "@stories", **USUAL}
    found += [
        Case("", f"real problems, {method}", "instruct", {**problems, "method.name": method})
        for method in ("full", "lora", "ia3")
    ]
    found.append(Case("", "real problems, shortened", "instruct",
                      {**problems, "text.too_long": "shorten", "data.max_length": 300}))  # fmt: skip
    world.stories_text = world.folder / "problems.txt"
    world.stories_text.write_text("\n\n".join(row["question"] for row in rows), "utf-8")
    text = {**problems, "data.train": "@stories_text"}
    return found + [
        Case("", f"real text, {method}", "causal-text", {**text, "method.name": method})
        for method in ("full", "lora", "prompt")
    ]
