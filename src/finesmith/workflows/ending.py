"""How a run ends: finished, failed or interrupted, the folder says so and can be gone on with."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finesmith.errors import FinesmithError
from finesmith.run import Clock, Run, read_json

if TYPE_CHECKING:
    from finesmith.recipe import Recipe


@contextmanager
def ending(run: Run, recipe: Recipe) -> Iterator[None]:
    """Write how the run ended, whatever happens, and free its folder; SIGTERM counts as an interruption."""
    from finesmith.report import page

    clock, board = Clock(), _tensorboard(run, recipe)
    before = _on_terminate(_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        run.finish(
            "interrupted", seconds=clock.seconds, error={"kind": "interrupted", "message": "stopped by the user"}
        )
        raise
    except FinesmithError as error:
        run.finish("failed", seconds=clock.seconds, error={"kind": type(error).__name__, "message": str(error)})
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        run.finish("failed", seconds=clock.seconds, error={"kind": "internal", "message": message})
        raise
    else:
        run.finish("finished", seconds=clock.seconds)
    finally:
        _on_terminate(before)
        board()
        run.close()
        if (run.folder / "run.json").exists() and read_json(run.folder / "run.json")["state"] == "finished":
            page.build(run.folder)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _on_terminate(handler: object) -> object:
    """Set the handler of SIGTERM where that is possible (the main thread); return the one before."""
    if threading.current_thread() is not threading.main_thread() or os.name == "nt" or handler is None:
        return None
    return signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]


def _tensorboard(run: Run, recipe: Recipe) -> Callable[[], None]:
    """Follow the run in TensorBoard's format where the recipe asks for it; return the function that ends it."""
    if not recipe.output.tensorboard:
        return lambda: None
    from finesmith.workflows.tensorboard import follow

    return follow(run)
