"""The command line. Each command is a few lines over a workflow; imports happen inside, so that --help is quick."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finesmith.errors import FinesmithError, UserError

if TYPE_CHECKING:
    from finesmith.console import Display
    from finesmith.recipe import Recipe

app = typer.Typer(
    name="finesmith",
    help="Fine-tune a language model and get the evidence that it is better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any recipe key; repeat.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]
Plan = Annotated[list[str], typer.Argument(metavar="DATA|RECIPE", help="Data (files, a folder, a hub id) or a recipe.")]
Model = Annotated[str | None, typer.Option("--model", help="Base model: a folder, a hub id, or 'default' (bundled).")]


@app.command()
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


@app.command()
def init(
    plan: Plan,
    model: Model = None,
    sets: Sets = None,
) -> None:
    """Print the recipe that would be used, with every inferred value and why."""
    from finesmith.workflows.check import infer_recipe

    sys.stdout.write(infer_recipe(_recipe(plan, model, sets)))


@app.command()
def check(
    plan: Plan,
    model: Model = None,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Audit the data and probe the plan: problems, time and memory forecast; trains nothing."""
    from finesmith.workflows.check import check as run_check

    display = _display(quiet or as_json)
    try:
        found = run_check(_recipe(plan, model, sets), listeners=[display])
    finally:
        display.close()
    if as_json:
        _print_json(found)
    else:
        _tell_check(found)
    if not found["ok"]:
        raise typer.Exit(2)


@app.command()
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


@app.command()
def predict(
    folder: RunFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file with the text column(s) the model reads.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="csv, jsonl or parquet; default: csv to the screen.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="The text column, where it has another name.")] = None,
    quiet: Quiet = False,
) -> None:
    """Add predictions to a file, row by row in its order."""
    from finesmith.deploy.export import check_format, write_table
    from finesmith.workflows.apply import predict_file

    if out is not None:
        check_format(out)
    display = _display(quiet)
    try:
        table = predict_file(folder, data, text=text, progress=_bar(display, "predicting"))
    finally:
        display.close()
    write_table(table, out)
    if out is not None and not quiet:
        typer.echo(f"{table.num_rows:,} rows written to {out}", err=True)


@app.command()
def evaluate(
    folder: RunFolder,
    data: Annotated[str, typer.Option("--data", help="A labelled file.")],
    text: Annotated[str | None, typer.Option("--text", help="The text column, where it has another name.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="The label column, where it has another name.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a run's model on another labelled file."""
    from finesmith.workflows.apply import evaluate_file

    display = _display(quiet or as_json)
    try:
        result = evaluate_file(folder, data, text=text, label=label, progress=_bar(display, "predicting"))
    finally:
        display.close()
    if as_json:
        _print_json(result)
        return
    typer.echo(f"{result['examples']:,} examples of {result['data']}")
    for name, score in result["scores"].items():
        if score is not None:
            interval = "" if score["low"] is None else f"   95 % interval {score['low']:.4f} to {score['high']:.4f}"
            typer.echo(f"  {name:18} {score['value']:.4f}{interval}")


@app.command()
def report(folder: RunFolder) -> None:
    """Rebuild report.html from the run folder alone."""
    from finesmith.report import page
    from finesmith.run import read_state

    read_state(Path(folder))
    typer.echo(str(page.build(Path(folder))))


@app.command()
def runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where runs are kept.")] = "runs",
    as_json: Json = False,
) -> None:
    """List runs: state, metric and verdict, one line each."""
    from finesmith.deploy.listing import list_runs

    found = list_runs(Path(folder))
    if as_json:
        _print_json(found)
        return
    if not found:
        typer.echo(f"no runs in {folder}; start one with: finesmith tune FILE", err=True)
    for row in found:
        value = "" if row["value"] is None else f"{row['metric']} {row['value']:.4f}"
        typer.echo(
            _clean(f"{row['folder']:40}  {row['state']:11}  {value:18}  {row['conclusion'] or row['error'] or ''}")
        )


@app.command()
def version() -> None:
    """Print the version."""
    from finesmith import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; a user's mistake is one message and status 2, a fault of ours status 1."""
    from finesmith.console import complain

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app(standalone_mode=False)
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        complain("interrupted; what was done so far is kept. `finesmith runs` shows it, `finesmith resume RUN` goes on")
        sys.exit(130)
    except FinesmithError as error:
        complain(str(error))
        sys.exit(error.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _usage_or_fault(error)


def _usage_or_fault(error: Exception) -> None:
    """End with status 2 for a mistake on the command line, with status 1 for a fault of finesmith."""
    from finesmith.console import complain

    if type(error).__module__.startswith(("click", "typer")):
        from typer._click.exceptions import ClickException

        if isinstance(error, ClickException):
            complain(error.format_message())
            sys.exit(2)
    if os.environ.get("FINESMITH_TRACEBACK"):
        raise error
    complain(
        f"an error of finesmith itself, please report it: {type(error).__name__}: {error}\n"
        "Set FINESMITH_TRACEBACK=1 to see where it happened; the run folder keeps what was done"
    )
    sys.exit(1)


def _recipe(plan: list[str], model: str | None, sets: list[str] | None) -> Recipe:
    from finesmith.recipe import load, replace

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
    return replace(load(plan[0], given), {"data.train": plan})


def _display(quiet: bool) -> Display:
    from finesmith.console import Display

    return Display(quiet=quiet)


def _bar(display: Display, name: str) -> Any:
    return lambda done, total: display._bar(name, done, total, "rows", "")


def _tell_run(folder: Path, as_json: bool) -> None:
    from finesmith.run import read_json

    if as_json:
        _print_json({"folder": str(folder), **read_json(folder / "verdict.json")})
        return
    typer.echo(f"run     {folder}")
    typer.echo(f"model   {folder / 'model'}")
    typer.echo(f"report  {folder / 'report.html'}")


def _tell_check(found: dict[str, Any]) -> None:
    for line in found["lines"]:
        typer.echo(_clean(line))


def _print_json(value: Any) -> None:
    from finesmith.run import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def _clean(text: str) -> str:
    from finesmith.console import printable

    return printable(text)
