"""Write a run's steps and evaluations for TensorBoard, on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError

if TYPE_CHECKING:
    from finesmith.run import Run


def follow(run: Run) -> Callable[[], None]:
    """Listen to a run and write its curves under `tensorboard/`; return the function that closes the file.

    Raises UserError when the tensorboard package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "output.tensorboard is true, but tensorboard is not installed; run `pip install 'finesmith[tensorboard]'`"
        ) from None
    writer = SummaryWriter(str(run.folder / "tensorboard"))

    def listen(event: Mapping[str, Any]) -> None:
        names = {
            "step": ("loss", "learning_rate", "grad_norm"),
            "evaluation": ("validation_loss", "train_loss", "value"),
        }
        for name in names.get(str(event["event"]), ()):
            if event[name] is not None:
                writer.add_scalar(f"{event['event']}/{name}", event[name], event["step"])

    run.listeners.append(listen)
    return writer.close
