"""How a run ends: finished, failed or interrupted, the folder says so and can be gone on with."""

from __future__ import annotations

import shlex
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import finesmith
from finesmith.aside import ElsewhereError
from finesmith.discreet import discreet
from finesmith.errors import FinesmithError, RunError, UserError
from finesmith.run import Clock, Run, State, disk_trouble, read_json
from finesmith.workflows.signals import Stopped, Stopping

if TYPE_CHECKING:
    from finesmith.recipe import Recipe


# What a run folder holds before anything was learnt about the data: not worth keeping when the request was wrong.
BARE = {".lock", "events.jsonl", "recipe.yaml", "run.json"}
PACKAGE = Path(finesmith.__file__).parent


@contextmanager
def ending(run: Run, recipe: Recipe) -> Iterator[None]:
    """Write how the run ended, whatever happens, make its report, and free its folder.

    Ctrl-C, SIGTERM and SIGHUP interrupt it at once, save where the workflow says otherwise. One that comes while the
    end is written down waits until it stands there, and the report is left out.

    Adds a note to the exception that says where the work so far is kept; a folder without any is removed.
    """
    from finesmith.workflows.withhold import withheld

    clock, stopping = Clock(), Stopping()
    if recipe.output.redact:
        run.withhold = withheld
    stop_following: Callable[[], None] | None = None
    # Interrupted until something else is known: a signal may come at any moment.
    ended: BaseException | None = KeyboardInterrupt()
    with stopping.listening():
        try:
            with naming_the_disk(run.folder):
                stop_following = _tensorboard(run, recipe)
                yield
            ended = None
        except BaseException as error:
            ended = error
            raise
        finally:
            before = len(stopping.asked)
            with stopping.held():
                _write_down(run, ended, clock, stop_following)
            if run.holding and ended is not None:
                ended.add_note(f"Nothing in {run.folder} was changed")
            elif isinstance(ended, UserError) and _is_bare(run):
                _remove(run.folder)
            else:
                _report(run, ended, stopping if len(stopping.asked) > before else None)


@contextmanager
def naming_the_disk(folder: Path) -> Iterator[None]:
    """Tell what the disk refused as the user's to mend, whichever library met it first."""
    try:
        yield
    except FinesmithError:
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        again = f"free some space or mend the permissions, then go on: finesmith resume {folder}"
        raise RunError(f"cannot write into {folder}: {reason}; {again}") from error


def _write_down(run: Run, ended: BaseException | None, clock: Clock, stop_following: Callable[[], None] | None) -> None:
    """Write how the run ended, close what follows it, and free its folder."""
    state, message = _state_of(ended)
    try:
        run.finish(state, seconds=clock.seconds, error=message)
        if stop_following is not None:
            stop_following()
    finally:
        run.close()


def _state_of(ended: BaseException | None) -> tuple[State, dict[str, str] | None]:
    """Return how a run ended that `ended` stopped (None: nothing did), and what run.json says about it."""
    if ended is None:
        return "finished", None
    if isinstance(ended, FinesmithError):
        return "failed", {"kind": type(ended).__name__, "message": discreet(str(ended))}
    if isinstance(ended, Exception):
        return "failed", {"kind": "internal", "message": fault(ended)}
    how = str(ended) if isinstance(ended, Stopped) else "stopped by the user"
    return "interrupted", {"kind": "interrupted", "message": how}


def fault(error: Exception) -> str:
    """Say what an unexpected error is and where: not its message, which may hold anything, texts of rows included."""
    found = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error.__cause__, ElsewhereError):
        found = error.__cause__.frames
    ours = [(Path(file), line) for file, line in found if PACKAGE in Path(file).parents]
    place = f" at {ours[-1][0].relative_to(PACKAGE)}:{ours[-1][1]}" if ours else ""
    reason = f": {error.strerror}" if isinstance(error, OSError) and error.errno and error.strerror else ""
    return f"{type(error).__name__}{reason}{place}"


def _is_bare(run: Run) -> bool:
    resumed = "resumed" in read_json(run.folder / "run.json")
    return not resumed and {path.name for path in run.folder.iterdir()} <= BARE


def _remove(folder: Path) -> None:
    """Remove a run folder, and the folder of all runs where it was the first."""
    shutil.rmtree(folder)
    if folder.parent == Path("runs") and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _report(run: Run, ended: BaseException | None, hurry: Stopping | None) -> None:
    """Make the report, and tell beside the error where everything is; a fault of the report never hides the error.

    `hurry`: signals that came in the meantime, so that no time is left for a report. Raises FinesmithError when the
    run is finished but its report cannot be made, and Stopped when a signal came between.
    """
    from finesmith.report import page

    folder = run.folder
    again = f"`finesmith report {folder}` makes it again"
    try:
        if hurry is not None:
            hurry.here()
        made = f"; its report is {page.build(folder)}"
    except KeyboardInterrupt as stop:
        if ended is None:
            stop.add_note(f"The run has finished; only its report is missing: finesmith report {_typed(folder)}")
            raise
        made = "; its report was not made"
    except Exception as error:
        if ended is None and isinstance(error, RunError):
            raise RunError(f"the run has finished, but its report could not be made: {error}; {again}") from error
        if ended is None:
            raise FinesmithError(
                f"the run has finished and {folder / 'model'} is ready, but its report could not be made "
                f"({fault(error)}); {again}; please report this"
            ) from error
        made = f"; its report could not be made ({type(error).__name__}), {again}"
    if isinstance(ended, KeyboardInterrupt):
        ended.add_note(f"What was done is kept; go on with: finesmith resume {_typed(folder)}")
    elif ended is not None:
        ended.add_note(discreet(f"What was done is kept in {folder}{made}"))


def _typed(folder: Path) -> str:
    """Return a folder as one types it in a shell, which knows ~ only outside quotes."""
    short = discreet(str(folder))
    home, rest = (short[:2], short[2:]) if short.startswith("~/") else ("", short)
    return f"{home}{shlex.quote(rest)}"


def _tensorboard(run: Run, recipe: Recipe) -> Callable[[], None]:
    """Follow the run in TensorBoard's format where the recipe asks for it; return the function that ends it."""
    if not recipe.output.tensorboard:
        return lambda: None
    from finesmith.workflows.tensorboard import follow

    return follow(run)
