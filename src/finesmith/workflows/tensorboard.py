"""Write a run's steps and evaluations for TensorBoard, on request: numbers alone, and no name of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError

if TYPE_CHECKING:
    from finesmith.run import Run

CURVES = {
    "step": ("loss", "learning_rate", "grad_norm"),
    "evaluation": ("validation_loss", "train_loss", "value"),
}


def follow(run: Run) -> Callable[[], None]:
    """Listen to a run and write its curves under `tensorboard/`; return the function that closes the file.

    Raises UserError when the tensorboard package is not installed.
    """
    try:
        import tensorboard  # noqa: F401 - its parts may be loaded although it cannot be
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise UserError(
            "output.tensorboard is true, but tensorboard is not installed; run `pip install 'finesmith[tensorboard]'`"
        ) from None
    folder = run.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Writers of the package put the machine's name into that of the file.
    writer = RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}").open("wb"))
    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def listen(event: Mapping[str, Any]) -> None:
        kind = str(event["event"])
        values = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=event[name])
            for name in CURVES.get(kind, ())
            if event[name] is not None
        ]
        if values:
            content = Event(wall_time=time.time(), step=event["step"], summary=Summary(value=values))
            writer.write(content.SerializeToString())
            writer.flush()

    run.listeners.append(listen)
    return writer.close  # type: ignore[no-any-return]
