"""Runs of tasks that answer for every token, broken at a moment as those of the main story are."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from breaking import FULL, Jobs
from jobs import with_values
from language_jobs import language_plan, sentences, write_conll

from tiny import WORDS, write_tiny_llama

# As for the main story: dropout, micro-batches, a plateau, and an early stop behind the best step.
OPTIONS = {key: value for key, value in FULL.items() if key != "evaluate.metric"} | {"train.epochs": 3}
LORA = {"method.name": "lora", "method.lora": {"r": 4, "lora_dropout": 0.2}, "train.epochs": 1}
STORIES: dict[str, dict[str, Any]] = {
    "token-classification full": {},
    "token-classification lora": LORA,
    "causal-text full": {"model.dropout": None},
    "causal-text lora": {**LORA, "model.dropout": None},
    "masked-text full": {"data.max_length": 24, "data.overlap": 2},
    "masked-text lora": LORA,
}


def write_text(path: Path, count: int = 60) -> Path:
    """Write documents whose words follow each other in a fixed order, from a word of their own."""
    draw = random.Random(0)
    starts = [(draw.randrange(len(WORDS)), draw.randint(10, 40)) for _ in range(count)]
    texts = [" ".join(WORDS[(at + step) % len(WORDS)] for step in range(size)) for at, size in starts]
    path.write_text("\n\n".join(texts), "utf-8")
    return path


class LanguageJobs(Jobs):
    """One uninterrupted run for each task and method, and processes that break while doing the same."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder, model)
        self.llama = write_tiny_llama(folder / "llama")
        self.sentences = write_conll(folder / "ner.conll", sentences(70))
        self.text = write_text(folder / "text.txt")

    def tree(self, method: str, **values: Any) -> dict[str, Any]:
        """Return the recipe of a task and a method; `values` are dotted keys with __ for the dot."""
        task = method.split()[0]
        data = self.sentences if task == "token-classification" else self.text
        model = self.llama if task == "causal-text" else self.model
        tree = with_values(language_plan(task, data, model, self.folder / "cache"), {**OPTIONS, **STORIES[method]})
        return with_values(tree, {key.replace("__", "."): value for key, value in values.items()})
