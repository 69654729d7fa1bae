"""Keep the best evaluation and say when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """Tracks the best validation value; all state is plain numbers, saved with every checkpoint.

    patience: evaluations without improvement that are borne; None never stops (the best is still kept).
    """

    patience: int | None
    higher_is_better: bool
    best: float | None = None
    best_step: int = 0
    best_tie: float = math.inf
    bad: int = 0

    def observe(self, value: float, loss: float, step: int) -> bool:
        """Take in an evaluation; return whether it is the best so far. Equal values are decided by the lower loss."""
        # A value that is not a number is kept only until there is one.
        if self.best is not None and math.isnan(self.best):
            self.best = None
        better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        if better or (value == self.best and loss < self.best_tie):
            self.best, self.best_step, self.best_tie, self.bad = value, step, loss, 0
            return True
        self.bad += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad >= self.patience

    def state(self) -> dict[str, float | int | None]:
        """Return what a checkpoint must hold."""
        return {"best": self.best, "best_step": self.best_step, "best_tie": self.best_tie, "bad": self.bad}

    def restore(self, state: dict[str, float | int | None]) -> None:
        """Take over the state of a checkpoint."""
        best, tie = state["best"], state["best_tie"]
        self.best = None if best is None else float(best)
        self.best_step = int(state["best_step"] or 0)
        self.best_tie = math.inf if tie is None else float(tie)
        self.bad = int(state["bad"] or 0)
