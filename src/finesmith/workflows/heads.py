"""A linear head on what the frozen network sees, as the recipe's task wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finesmith.types import Split

if TYPE_CHECKING:
    import torch

    from finesmith.train.linear import LinearHead
    from finesmith.workflows.prepare import Prepared


def fit_head(data: Prepared, parts: Mapping[Split, torch.Tensor], **options: Any) -> LinearHead:
    """Solve a head on the features of train, its penalty chosen on validation; parts: float [n, D] of each split.

    `options` are those of `train.linear.fit_linear`.
    """
    from finesmith.train.linear import fit_linear

    task = data.task
    return fit_linear(
        parts["train"],
        task.tensor(data.targets["train"]),
        task.loss,
        outputs=task.head.outputs,
        validation=(parts["validation"], task.tensor(data.targets["validation"])),
        **options,
    )
