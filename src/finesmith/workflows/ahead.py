"""Prepare the data in one process while this one imports torch: neither waits for the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from finesmith.aside import Aside, Tell, may_fork

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.models.load import Base
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.types import Finding
    from finesmith.workflows.prepare import Prepared

    Found = tuple[Base, Prepared]

# Sending more rows from one process to the other would cost more than the imports.
LARGEST = 64 * 2**20
# What other files hold may be many times as large.
PLAIN = frozenset({".csv", ".json", ".jsonl", ".tsv", ".txt"})


class Ahead:
    """The data of a run, prepared in a process of its own where that gains time; use it as a context.

    What the audit only tells is not waited for: `finish` records it.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self._recipe, self._run = recipe, run
        self._found: Found | None = None
        self._rest: Callable[[], tuple[Finding, ...]] | None = None
        pays = may_fork() and _small_files(recipe) and _is_local(recipe.model.base)
        self._aside = Aside(self._work, self._hear) if pays else None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, Exception):
            # Whoever looks for the cause of a failure finds the whole audit.
            with suppress(Exception):
                self.finish()
        if self._aside is not None:
            self._aside.__exit__(kind, value, at)

    def data(self) -> tuple[Base, PreTrainedTokenizerBase, Prepared]:
        """Return the base model, its tokenizer and the data.

        Raises what `find`, `open_tokenizer`, `require_known` and `prepare` raise.
        """
        from finesmith.workflows.setup import open_tokenizer

        if self._aside is None:
            base, tokenizer, data, self._rest = self._prepare(self._run)
            self._found = base, data
            return base, tokenizer, data
        _import_ahead()
        while self._found is None:
            self._aside.hear()
        base, data = self._found
        self._rest = self._aside.result
        return base, open_tokenizer(self._recipe, base), data

    def finish(self) -> None:
        """Wait for the rest of the audit and record what it found; calling it again does nothing."""
        from finesmith.workflows.prepare import tell_findings

        if self._rest is not None and self._found is not None:
            tell_findings(self._run, self._found[1].findings, self._rest())
            self._rest = None

    def _prepare(self, run: Run) -> tuple[Base, PreTrainedTokenizerBase, Prepared, Callable[[], tuple[Finding, ...]]]:
        from finesmith.models.load import find
        from finesmith.workflows.prepare import prepare
        from finesmith.workflows.setup import longest_sequence, open_tokenizer, require_known

        base = find(self._recipe.model.base, self._recipe.model.revision)
        tokenizer = open_tokenizer(self._recipe, base)
        require_known(base, tokenizer)
        return (
            base,
            tokenizer,
            *prepare(self._recipe, run, tokenizer, longest=longest_sequence(base, tokenizer, self._recipe)),
        )

    def _work(self, tell: Tell) -> tuple[Finding, ...]:
        _spare_pandas()
        base, _, data, rest = self._prepare(self._run.relay(tell))
        tell((base, data))
        os.nice(19)  # the first step comes first
        return rest()

    def _hear(self, told: Any) -> None:
        if isinstance(told[0], str):
            self._run.record(told[0], **told[1])
        else:
            self._found = told


def _is_local(base: str) -> bool:
    """Whether the base model lies here; two processes need not fetch one together."""
    return base == "default" or Path(base).expanduser().is_dir()


def _small_files(recipe: Recipe) -> bool:
    """Whether every source is a file here, and all are small together."""
    given = (recipe.data.train, recipe.data.validation, recipe.data.test)
    sources = [source for one in given if one for source in ([one] if isinstance(one, str) else one)]
    paths = [Path(source).expanduser() for source in sources]
    if not all(path.is_file() for path in paths):
        return False
    return sum(path.stat().st_size * (1 if path.suffix in PLAIN else 10) for path in paths) <= LARGEST


class _NoPandas:
    """A finder of modules to which pandas is not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _spare_pandas() -> None:
    """Keep pyarrow from importing pandas, half a second, only to see that a list is no series of it.

    pyarrow looks once. What it then believes holds for this process, which reads files and ends.
    """
    import pyarrow as pa

    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_NoPandas)


def _import_ahead() -> None:
    """Import what the first step needs."""
    import torch  # noqa: F401

    from finesmith.models import bert_layer, embedding, native  # noqa: F401
    from finesmith.train import checkpoint, loop, optimiser  # noqa: F401
    from finesmith.workflows import fit  # noqa: F401
