"""How a run ends: finished, failed or interrupted, the folder says so and can be gone on with."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.errors import FinesmithError, UserError
from finesmith.run import Clock, Run, State, read_json

if TYPE_CHECKING:
    from finesmith.recipe import Recipe


# What a run folder holds before anything was learnt about the data: not worth keeping when the request was wrong.
BARE = {".lock", "events.jsonl", "recipe.yaml", "run.json"}


@contextmanager
def ending(run: Run, recipe: Recipe) -> Iterator[None]:
    """Write how the run ended, whatever happens, make its report, and free its folder; SIGTERM interrupts it.

    Adds a note to the exception that says where the work so far is kept; a folder without any is removed.
    """
    clock, before = Clock(), _on_terminate(_interrupt)
    stop_following: Callable[[], None] | None = None
    ended: BaseException | None = None
    try:
        stop_following = _tensorboard(run, recipe)
        yield
    except BaseException as error:
        ended = error
        raise
    finally:
        _on_terminate(before)
        state, message = _state_of(ended)
        try:
            run.finish(state, seconds=clock.seconds, error=message)
            if stop_following is not None:
                stop_following()
        finally:
            run.close()
        if isinstance(ended, UserError) and _is_bare(run):
            _remove(run.folder)
        else:
            _report(run, ended)


def _state_of(ended: BaseException | None) -> tuple[State, dict[str, str] | None]:
    """Return how a run ended that `ended` stopped (None: nothing did), and what run.json says about it."""
    if ended is None:
        return "finished", None
    if isinstance(ended, FinesmithError):
        return "failed", {"kind": type(ended).__name__, "message": str(ended)}
    if isinstance(ended, Exception):
        return "failed", {"kind": "internal", "message": f"{type(ended).__name__}: {ended}"}
    return "interrupted", {"kind": "interrupted", "message": "stopped by the user"}


def _is_bare(run: Run) -> bool:
    resumed = "resumed" in read_json(run.folder / "run.json")
    return not resumed and {path.name for path in run.folder.iterdir()} <= BARE


def _remove(folder: Path) -> None:
    """Remove a run folder, and the folder of all runs where it was the first."""
    shutil.rmtree(folder)
    if folder.parent == Path("runs") and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _report(run: Run, ended: BaseException | None) -> None:
    """Make the report, and tell beside the error where everything is; a fault of the report never hides the error.

    Raises FinesmithError when the run is finished but its report cannot be made.
    """
    from finesmith.report import page

    folder = run.folder
    again = f"`finesmith report {folder}` makes it again"
    try:
        made = f"; its report is {page.build(folder)}"
    except Exception as error:
        if ended is None:
            raise FinesmithError(
                f"the run has finished and {folder / 'model'} is ready, but its report could not be made "
                f"({type(error).__name__}: {error}); {again}; please report this"
            ) from error
        made = f"; its report could not be made ({type(error).__name__}), {again}"
    if isinstance(ended, KeyboardInterrupt):
        ended.add_note(f"What was done is kept; go on with: finesmith resume {shlex.quote(str(folder))}")
    elif ended is not None:
        ended.add_note(f"What was done is kept in {folder}{made}")


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
