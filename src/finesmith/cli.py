"""The command line. Each command is a few lines over a workflow; imports happen inside, so that --help is quick."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finesmith.errors import FinesmithError, UserError, printable

if TYPE_CHECKING:
    from finesmith.console import Display
    from finesmith.recipe import Recipe

# The base of every complaint about the command line; the library exports only what derives from it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="finesmith",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any recipe key; repeat.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunOrModel = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a model folder by itself.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]
Plan = Annotated[list[str], typer.Argument(metavar="DATA|RECIPE", help="Data (files, a folder, a hub id) or a recipe.")]
Text = Annotated[str | None, typer.Option("--text", help="The text column, where it has another name.")]
TextPair = Annotated[
    str | None, typer.Option("--text-pair", help="The column of the second text, where it has another name.")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="The file's encoding, where it is not that of the training data.")
]
Model = Annotated[str | None, typer.Option("--model", help="Base model: a folder, a hub id, or 'default' (bundled).")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from finesmith import __version__

        typer.echo(f"finesmith {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")]


@app.callback(invoke_without_command=True)
def start(context: typer.Context, version: Version = False) -> None:
    """Fine-tune a language model and get the evidence that it is better."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


class StoppedError(Exception):
    """A signal, as an exception that the command-line library leaves alone; its cause is the original."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command; an interruption of it reaches `main` with all that it has to say."""

    @functools.wraps(function)
    def guarded(*values: Any, **named: Any) -> None:
        from finesmith.workflows.signals import Stopping

        try:
            with Stopping().listening():
                function(*values, **named)
        except KeyboardInterrupt as stop:
            raise StoppedError from stop

    app.command()(guarded)
    return function


@command
def tune(
    plan: Plan,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Run folder to make; default runs/NAME-DATE-TIME.")
    ] = None,
    model: Model = None,
    sets: Sets = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tune a model on labelled text and judge whether it is better."""
    from finesmith.workflows.tune import tune as run_tune

    recipe = _recipe(plan, model, sets)
    display = _display(quiet or as_json)
    try:
        folder = run_tune(recipe, out=out, command=shlex.join(["finesmith", *sys.argv[1:]]), listeners=[display])
    finally:
        display.close()
    _tell_run(folder, as_json)


@command
def init(
    plan: Plan,
    model: Model = None,
    sets: Sets = None,
) -> None:
    """Print the recipe that would be used, with every inferred value and why."""
    from finesmith.workflows.check import infer_recipe

    sys.stdout.write(infer_recipe(_recipe(plan, model, sets)))


@command
def check(
    plan: Plan,
    model: Model = None,
    sets: Sets = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show a few rows as the model will see them; holds texts of the data.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Audit the data and probe the plan: problems, time and memory forecast; trains nothing."""
    from finesmith.console import show_rows
    from finesmith.workflows.check import check as run_check

    display = _display(quiet or as_json)
    try:
        # Its findings stand in the result.
        found = run_check(
            _recipe(plan, model, sets),
            show=show,
            listeners=[lambda event: None if event["event"] == "audit" else display(event)],
        )
    finally:
        display.close()
    if as_json:
        _print_json(found)
    else:
        _tell_check(found)
        if show:
            show_rows(found["examples"])
    if not found["ok"]:
        raise typer.Exit(2)


@command
def resume(
    folder: RunFolder,
    force: Annotated[bool, typer.Option("--force", help="Go on although recipe, data or versions changed.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with an interrupted run."""
    from finesmith.workflows.tune import resume as run_resume

    display = _display(quiet or as_json)
    try:
        run_resume(folder, force=force, listeners=[display])
    finally:
        display.close()
    _tell_run(Path(folder), as_json)


@command
def predict(
    folder: RunOrModel,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file with the text column(s) the model reads.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="csv, jsonl or parquet; default: csv to the screen.")
    ] = None,
    text: Text = None,
    text_pair: TextPair = None,
    encoding: Encoding = None,
    quiet: Quiet = False,
) -> None:
    """Add predictions to a file, row by row in its order."""
    from finesmith.deploy.export import check_target, write_tables
    from finesmith.deploy.formulas import Formulas
    from finesmith.workflows.apply import predict_file

    if out is not None:
        check_target(out, data)
    display, formulas = _display(quiet), Formulas()
    try:
        bar = display.bar("predicting", "rows")
        tables = predict_file(folder, data, text=text, text_pair=text_pair, encoding=encoding, progress=bar)
        if out is None:
            # The screen, or the program that reads from us, gets all or nothing, and no bar between the rows.
            tables = iter(list(tables))
            display.close()
        rows = write_tables(formulas.counted(tables), out)
    finally:
        display.close()
    if out is not None and out.endswith(".csv") and not quiet and (told := formulas.told()):
        typer.echo(_clean(told), err=True)
    if out is not None and not quiet:
        typer.echo(_clean(f"{rows:,} rows written to {out}"), err=True)


@command
def evaluate(
    folder: RunOrModel,
    data: Annotated[str, typer.Option("--data", help="A labelled file.")],
    text: Text = None,
    text_pair: TextPair = None,
    label: Annotated[str | None, typer.Option("--label", help="The label column, where it has another name.")] = None,
    encoding: Encoding = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a run's model on another labelled file."""
    from finesmith.workflows.apply import evaluate_file

    display = _display(quiet or as_json)
    try:
        result = evaluate_file(
            folder, data, text=text, text_pair=text_pair, label=label, encoding=encoding,
            progress=display.bar("predicting", "rows"),
        )  # fmt: skip
    finally:
        display.close()
    if as_json:
        _print_json(result)
        return
    left_out = f" ({result['unlabelled']:,} more have no label)" if result["unlabelled"] else ""
    typer.echo(_clean(f"{result['examples']:,} examples of {result['data']}{left_out}"))
    for name, score in result["scores"].items():
        if score is not None:
            interval = "" if score["low"] is None else f"   95 % interval {score['low']:.4f} to {score['high']:.4f}"
            typer.echo(f"  {name:18} {score['value']:.4f}{interval}")


@command
def merge(
    folder: RunOrModel,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The folder to write; default RUN/merged, or MODEL-merged.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Number type of the merged weights: float32, bfloat16 or float16.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Merge a tuned adapter into its base model: a plain model folder, proven to answer the same."""
    from finesmith.workflows.merge import merge as run_merge

    made = run_merge(folder, out=out, dtype=dtype)
    if as_json:
        _print_json(made)
        return
    typer.echo(_clean(f"{made['folder']}: {made['method']} merged into {made['architecture']}, {made['dtype']}"))
    typer.echo(
        _clean(
            f"compared on {made['compared']}: outputs differ by {made['gap']:.1e} of the largest "
            f"(allowed {made['tolerance']:.0e}; the adapter moves them by {made['moved']:.1e})"
        )
    )


@command
def report(folder: RunFolder) -> None:
    """Rebuild report.html from the run folder alone."""
    from finesmith.report import page
    from finesmith.run import read_state

    read_state(Path(folder))
    typer.echo(_clean(str(page.build(Path(folder)))))


@command
def runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where runs are kept.")] = "runs",
    as_json: Json = False,
) -> None:
    """List runs: state, metric and verdict, one line each."""
    from finesmith.deploy.listing import list_runs

    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"{folder} is a file; name the folder that holds the runs")
    found = list_runs(Path(folder))
    if as_json:
        _print_json(found)
        return
    if not found:
        typer.echo(_clean(f"no runs in {folder}; start one with: finesmith tune FILE"), err=True)
    for row in found:
        value = "" if row["value"] is None else f"{row['metric']} {row['value']:.4f}"
        told = " ".join(str(row["conclusion"] or row["error"] or "").split())
        typer.echo(_clean(f"{row['folder']:40}  {row['state']:11}  {value:18}  {told}".rstrip()))


def share_cores() -> None:
    """Have waiting threads spin for some microseconds only (GNU OpenMP), unless the environment says how to wait.

    When they spin for long, other work on the same cores slows every step many times over; when they sleep at once,
    each of the many short products waits for a thread to wake, which doubles a step (docs/benchmarks.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def main() -> None:
    """Run the command line; a user's mistake is one message and status 2, a fault of ours status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    share_cores()
    if not sys.warnoptions:
        # What other libraries will change some day is nothing that a user of this one can act on.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    try:
        sys.exit(app(prog_name="finesmith", standalone_mode=False))  # the status that a command left with, or None
    except (StoppedError, typer.Abort, KeyboardInterrupt) as stop:
        sys.exit(_stopped(stop.__cause__ or stop))
    except FinesmithError as error:
        quoted = f"it says: {error.quote}" if error.quote else ""
        sys.exit(_complain(str(error), error, error.exit_status, private=quoted))
    except UsageError as error:
        sys.exit(_misused(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FINESMITH_TRACEBACK"):
            sys.exit(_complain("".join(traceback.format_exception(error)).rstrip(), Exception(), 1))
        sys.exit(_refused_by_machine(error) or _fault(error))
    except BaseException as error:
        # Libraries in Rust stop by an exception that is none of Python's own, on patterns that take for ever above all.
        if type(error).__name__ != "PanicException":
            raise
        sys.exit(_complain(f"the tokenizer gave up ({str(error)[:200]}); name another model.base", error, 2))


def _complain(message: str, error: BaseException, status: int, *, private: str = "") -> int:
    """Print an error with its notes; return the exit status."""
    from finesmith.console import complain

    complain("\n".join([message, *getattr(error, "__notes__", ())]), private=private)
    return status


def _stopped(stop: BaseException) -> int:
    """Tell that the command was interrupted; return the status that a shell expects after that signal."""
    from finesmith.workflows.signals import Stopped, Stopping

    with Stopping().listening(patience=math.inf):
        status = _complain("interrupted", stop, stop.exit_status if isinstance(stop, Stopped) else 130)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                # The terminal is gone; what was still to be shown must not change the status that Python leaves with.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return status


def _misused(error: Any) -> int:
    """Explain a mistake on the command line itself."""
    said = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx else "finesmith"
    return _complain(f"{said}. `{path} --help` shows what there is", error, 2)


def _refused_by_machine(error: Exception) -> int | None:
    """Explain what the machine could not do: disk full, no permission, no memory; None where it is none of these."""
    if isinstance(error, OSError) and error.errno in {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
    }:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror}; free some space or mend the permissions", error, 2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _complain(
            "not enough memory; try --set train.micro_batch_size=1, a smaller data.max_length or data.max_rows, "
            "or a smaller base model",
            error,
            2,
        )
    return None


def _fault(error: Exception) -> int:
    """Ask to report an unexpected error. Its message may hold anything: it is shown on a terminal only."""
    from finesmith.workflows.ending import fault

    return _complain(
        f"an error of finesmith itself, please report it: {fault(error)}\n"
        "Set FINESMITH_TRACEBACK=1 to see all of it; it may hold texts of your data",
        error,
        1,
        private=f"Its message (look at it before you pass it on): {str(error)[:500]}",
    )


def _recipe(plan: list[str], model: str | None, sets: list[str] | None) -> Recipe:
    from finesmith.recipe import load

    given = list(sets or [])
    if model is not None:
        given.append(f"model.base={json.dumps(model)}")
    if len(plan) == 1:
        return load(plan[0], given)
    recipes = [name for name in plan if Path(name).suffix in {".yaml", ".yml", ".toml"}]
    if recipes:
        raise UserError(
            f"{recipes[0]} is a recipe; give it alone and name data inside it or with --set data.train=FILE"
        )
    return load(plan[0], [*given, f"data.train={json.dumps(plan)}"])


def _display(quiet: bool) -> Display:
    from finesmith.console import Display

    return Display(quiet=quiet)


def _tell_run(folder: Path, as_json: bool) -> None:
    from finesmith.run import read_json

    if as_json:
        _print_json({"folder": str(folder), **read_json(folder / "verdict.json")})
        return
    for name, path in {"run": folder, "model": folder / "model", "report": folder / "report.html"}.items():
        typer.echo(_clean(f"{name:6}  {path}"))


def _tell_check(found: dict[str, Any]) -> None:
    for line in found["lines"]:
        typer.echo(_clean(line))


def _print_json(value: Any) -> None:
    from finesmith.run import plain

    text = json.dumps(plain(value), ensure_ascii=False, indent=2)
    # JSON escapes only part of what can drive a terminal.
    typer.echo("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text))


def _clean(text: str) -> str:
    return printable(text)
