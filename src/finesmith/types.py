"""Frozen records that cross floors. No behaviour beyond conversion to plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Severity = Literal["info", "warning", "error"]
Action = Literal["keep", "drop", "fix", "stop"]


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one data set as columns of equal length.

    `ids[i]` is the row's position (from 0) in all sources read in order: it names the example in every file of a run
    and never changes, whatever is dropped or split. `labels` holds raw values as read (None where there is none).
    """

    ids: npt.NDArray[np.int64]
    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    labels: Sequence[Any] | None = None
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> Examples:
        """Return the examples at `positions` (indices into these columns, not ids), in that order."""
        order = [int(p) for p in positions]

        def pick(column: Sequence[Any] | None) -> list[Any] | None:
            return None if column is None else [column[p] for p in order]

        return Examples(self.ids[order], pick(self.texts) or [], pick(self.pairs), pick(self.labels), pick(self.groups))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the audit noticed.

    `message` quotes no text and no group, because events and model cards repeat it; `shows` is what they say, for the
    report and the screen. `ids` are the ids of every affected example; `details` holds figures for the report (plain
    JSON values); `examples` are short excerpts; `action` is what is done about it, `remedy` what the user can do.
    """

    kind: str
    severity: Severity
    message: str
    ids: tuple[int, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    action: Action = "keep"
    remedy: str = ""
    shows: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A ragged micro-batch: sequences laid end to end without padding.

    tokens: int64 [T]; lengths: int64 [B] with sum T, sorted ascending so that equal lengths are neighbours;
    segments: int64 [T] token type ids, or None; targets: [B] or [B, C], or None when predicting;
    ids: the examples' ids, int64 [B]. All on one device. extra: what a task alone reads.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    segments: torch.Tensor | None
    targets: torch.Tensor | None
    ids: torch.Tensor
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value with its 95 percent interval; `low` and `high` are None where none can be given."""

    value: float
    low: float | None = None
    high: float | None = None
