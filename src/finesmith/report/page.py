"""Write `report.html`: one file that opens offline, is read on a phone and on paper, and runs no script."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.report import answers, by_source, charts, curves, examples, mistakes, sections
from finesmith.report.folder import RunFolder, items, mapping, read, records
from finesmith.report.format import (
    LOWER_IS_BETTER,
    count,
    cut,
    duration,
    is_percent,
    label_text,
    metric_difference,
    metric_difference_interval,
    metric_interval,
    metric_key,
    metric_name,
    metric_value,
    moment,
    number,
    plain,
    probability,
    size,
    system_name,
    visible,
    words,
)
from finesmith.run import write_whole

if TYPE_CHECKING:
    from jinja2 import Environment

FILE_NAME = "report.html"
MOST_BYTES = 2_000_000
RECIPE_CHARACTERS = 40_000
# The home folder of whoever made the run, where another makes its report again.
ANY_HOME = re.compile(r"(?<![\w.~-])(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[^/\\\s\"']+")
STATES = {"running": "Running", "finished": "Finished", "failed": "Failed", "interrupted": "Interrupted"}
FILES = {
    "run.json": "state, machine, versions, command",
    "recipe.yaml": "every setting, resolved",
    "events.jsonl": "each step and evaluation",
    "data.json": "sources, columns, row counts, splits, lengths",
    "audit.json": "what was found in the data",
    "examples.json": "a few training rows as the model was fed them",
    "model.json": "base model, method, what was loaded",
    "probes.json": "what was looked at before and after the first step",
    "scores.json": "metrics of the tuned model with intervals",
    "baselines.json": "metrics of the simpler methods",
    "verdict.json": "comparison, gain, conclusion",
    "next.json": "what to try next, and why",
    "next-recipe.yaml": "the recipe to try next",
    "predictions/train.parquet": "predictions on train",
    "predictions/validation.parquet": "predictions on validation",
    "predictions/test.parquet": "predictions on test",
    "predictions/baselines.parquet": "answers that the simpler methods wrote on test",
}


def build(run_folder: Path) -> Path:
    """Write the report of a run from its folder alone and return the file's path.

    The file replaces an older one in a single step and stays under 2 MB whatever the run holds; files that a running,
    failed or interrupted run lacks are left out and the page says so.

    Raises:
        RunError: `run_folder` is not a folder, or the disk refused the page.
    """
    content = render(read(run_folder)).encode("utf-8")
    if len(content) > MOST_BYTES:
        raise AssertionError(f"the report holds {len(content)} bytes, more than {MOST_BYTES}: a list is not cut")
    target = run_folder / FILE_NAME
    write_whole(target, content)
    return target


@functools.cache
def _templates() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("finesmith.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def render(folder: RunFolder) -> str:
    """Return the page as HTML text."""
    from markupsafe import Markup

    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    wrong, unread = mistakes.find(folder, sections.class_names(folder))
    written, unheard = answers.find(folder)
    problems = [*folder.problems, *filter(None, (unread, unheard))]
    return (
        _templates()
        .get_template("report.html")
        .render(
            style=Markup(style),
            style_digest=Markup(digest),
            name=cut(folder.name, 120),
            withheld=folder.withheld,
            banner=banner(folder),
            comparison=comparison(folder),
            by_source=by_source.by_source(folder),
            figures=key_figures(folder),
            curves=curves.draw(folder),
            story=curves.story(folder),
            flow=sections.flow(folder),
            sources=sections.sources(folder),
            balance=sections.balance(folder),
            lengths=sections.lengths(folder),
            findings=sections.findings(folder),
            preflight=sections.preflight(folder),
            examples=examples.examples(folder),
            confusion=sections.confusion(folder),
            classes=sections.per_class(folder),
            calibration=sections.calibration(folder),
            moved=sections.moved_answers(folder),
            mistakes=_mistakes(wrong, given=len(sections.class_names(folder)) > 2),
            answers=written,
            gap=curves.gap(folder),
            next=_next(folder),
            made=made(folder),
            recipe=_recipe(folder),
            files=_files(folder),
            present={name for name in FILES if (folder.path / name).is_file()},
            problems=[cut(problem, 200) for problem in problems],
        )
    )


def banner(folder: RunFolder) -> dict[str, Any]:
    """Return the state, its tone and the sentence that sums the run up."""
    state = str(folder.run.get("state", "unknown"))
    error = mapping(folder.run.get("error"))
    conclusion = cut(folder.verdict.get("conclusion"), 800)
    better = folder.verdict.get("better")
    tone, chip = {
        "running": ("busy", "Running"),
        "failed": ("bad", "Failed"),
        "interrupted": ("even", "Interrupted"),
        "finished": ("even", "Finished"),
    }.get(state, ("even", "State unknown"))
    if state in ("finished", "unknown") and isinstance(better, bool):
        tone, chip = ("good", "Better than the best baseline") if better else ("even", "No gain shown")
    if not conclusion or state in ("failed", "running", "interrupted"):
        conclusion = {
            "running": "This run is still going on; there is no verdict yet.",
            "failed": "This run failed before it reached a verdict.",
            "interrupted": "This run was interrupted before it reached a verdict.",
        }.get(state, conclusion or "This run folder holds no verdict.")
    unfinished = state in ("running", "failed", "interrupted")
    return {
        "tone": tone,
        "chip": chip,
        "conclusion": conclusion,
        "progress": curves.progress(folder) if unfinished else "",
        "error": (cut(error.get("kind"), 80), cut(error.get("message"), 2000))
        if error and error.get("kind") != state
        else None,
        "resume": f"finesmith resume {shlex.quote(visible(folder.name))}" if state in ("failed", "interrupted") else "",
        "state": STATES.get(state, "State unknown"),
        "task": words(folder.task, 60),
        "started": moment(folder.run.get("started")) if folder.run.get("started") else "",
        "opened": len(folder.named("test_opened")),
        "opened_last": _opened_last(folder),
    }


def _opened_last(folder: RunFolder) -> bool:
    names = [event.get("event") for event in folder.events]
    choices = [place for place, name in enumerate(names) if name in ("step", "evaluation", "best", "lr_range")]
    return "test_opened" in names and names.index("test_opened") > max(choices, default=-1)


def comparison(folder: RunFolder) -> dict[str, Any] | None:
    """Return the tuned model and every baseline with their intervals on the test split, the best first."""
    metric = folder.verdict.get("metric")
    tuned = mapping(folder.verdict.get("tuned"))
    if metric is None or number(tuned.get("value")) is None:
        return None
    systems = [{**tuned, "name": "Tuned model", "seconds": folder.run.get("seconds"), "style": "tuned"}]
    systems += [{**row, "style": "baseline"} for row in records(folder.verdict.get("baselines"))[:20]]
    systems = [system for system in systems if number(system.get("value")) is not None]
    systems.sort(key=lambda system: system["value"], reverse=metric_key(metric) not in LOWER_IS_BETTER)
    spans = [_span(system) for system in systems]
    axis = charts.linear_axis([value for span in spans for value in span if value is not None], 5)
    reference = number(tuned["value"])
    rows = [
        {
            "name": system_name(system.get("name")),
            "style": system["style"],
            "value": metric_value(metric, value),
            "interval": metric_interval(metric, low, high),
            "seconds": duration(system.get("seconds")) if number(system.get("seconds")) is not None else "",
            "strip": charts.interval(value, low, high, axis=axis, reference=reference, style=system["style"]),
        }
        for system, (value, low, high) in zip(systems, spans, strict=True)
        if value is not None
    ]
    ticks = charts.tick_row(axis, charts.tick_texts(axis, percent=is_percent(metric)))
    skipped = [
        (system_name(row.get("name")), cut(row.get("skipped"), 200)) for row in folder.baselines if row.get("skipped")
    ]
    return {
        "metric": metric_name(metric),
        "size": count(folder.verdict.get("test_size")),
        "rows": rows,
        "ticks": ticks,
        "skipped": skipped[:10],
        "lower": metric_key(metric) in LOWER_IS_BETTER,
        "table": _score_table(folder),
    }


def _span(system: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    ends = items(system.get("interval"))
    low, high = (number(ends[0]), number(ends[1])) if len(ends) == 2 else (None, None)
    return number(system.get("value")), low, high


def _score_table(folder: RunFolder) -> dict[str, Any] | None:
    systems = [("Tuned model", mapping(folder.scores.get("test")), True)]
    systems += [
        (system_name(row.get("name")), mapping(mapping(row.get("scores")).get("test")), False)
        for row in folder.baselines[:20]
    ]
    systems = [system for system in systems if system[1]]
    names = list(dict.fromkeys(name for _, scores, _ in systems for name in scores))[:10]
    if not systems or not names:
        return None
    rows = []
    for title, scores, is_tuned in systems:
        cells = [mapping(scores.get(name)) for name in names]
        shown = [
            (metric_value(name, cell.get("value")), metric_interval(name, cell.get("low"), cell.get("high")))
            for name, cell in zip(names, cells, strict=True)
        ]
        rows.append((title, shown, is_tuned))
    return {"metrics": [metric_name(name) for name in names], "rows": rows, "note": answers.one_by_one(folder)}


def key_figures(folder: RunFolder) -> list[dict[str, str]]:
    """Return the few figures that a person quotes: title, value and the line below it."""
    verdict, metric = folder.verdict, folder.verdict.get("metric", "")
    value, low, high = _span(mapping(verdict.get("tuned")))
    cards: list[tuple[str, str, str]] = []
    if value is not None:
        interval = metric_interval(metric, low, high)
        cards.append(
            (f"{metric_name(metric)} on test", metric_value(metric, value), interval and f"95 % interval {interval}")
        )
    gain = mapping(verdict.get("gain"))
    gained, gained_low, gained_high = _span(gain)
    if gained is not None:
        span = metric_difference_interval(metric, gained_low, gained_high)
        against = system_name(gain.get("against", "the best baseline"))
        chance = probability(gain.get("p_value"))
        tested = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
        test = words(gain.get("test"), 60)
        line = "; ".join(part for part in (span, f"{tested}{f' ({test})' if test else ''}") if part)
        cards.append((f"Gain over {against}", metric_difference(metric, gained), line))
    if verdict.get("test_size") is not None:
        smallest = number(verdict.get("smallest_detectable"))
        told = metric_difference(metric, smallest).lstrip("+") if smallest is not None else ""
        cards.append(("Test examples", count(verdict["test_size"]), told and f"can show differences from {told}"))
    trainable, parameters = number(folder.model.get("trainable")), number(folder.model.get("parameters"))
    if trainable is not None:
        whole = f"of {_millions(parameters)}" if parameters is not None else ""
        method = words(folder.model.get("method"), 40)
        cards.append(("Trained parameters", _millions(trainable), ", ".join(part for part in (whole, method) if part)))
    if number(folder.run.get("seconds")) is not None:
        machine = mapping(folder.run.get("machine"))
        cores = f"{plain(machine['cores'])} cores" if number(machine.get("cores")) is not None else ""
        device = cut(machine.get("device") or mapping(folder.model.get("device")).get("device"), 40)
        cards.append(("Time", duration(folder.run["seconds"]), ", ".join(part for part in (device, cores) if part)))
    return [{"title": title, "value": shown, "line": line} for title, shown, line in cards]


def _millions(value: float) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def _mistakes(found: mistakes.Mistakes | None, *, given: bool) -> dict[str, Any] | None:
    if found is None or not found.rows:
        return None

    def row(mistake: mistakes.Mistake) -> dict[str, str]:
        return {
            "id": str(mistake.id),
            "text": cut(mistake.text, 420),
            "pair": cut(mistake.text_pair, 420),
            "label": label_text(mistake.label, 120 if mistake.rank is None else 420),
            "prediction": label_text(mistake.prediction, 120 if mistake.rank is None else 420),
            "confidence": f"{100 * mistake.confidence:.1f} % sure" if mistake.confidence is not None else "",
            "given": f"{100 * mistake.given:.1f} % to the true label" if given and mistake.given is not None else "",
            "error": f"off by {plain(mistake.error, 3)}" if isinstance(mistake.prediction, float) else "",
            "rank": count(mistake.rank) if mistake.rank is not None else "",
            "found": cut(mistake.found, 420),
        }

    return {
        "split": found.split,
        "rows": count(found.rows),
        "wrong": count(found.wrong) if found.wrong is not None else None,
        "share": f"{100 * found.wrong / found.rows:.1f} %" if found.wrong is not None else "",
        "confident": [row(mistake) for mistake in found.confident],
        "worst": [row(mistake) for mistake in found.worst],
        "regression": found.wrong is None,
        "search": any(mistake.rank is not None for mistake in found.worst),
    }


def _next(folder: RunFolder) -> dict[str, Any] | None:
    advice = records(folder.next.get("advice"))[:12]
    recipe = (folder.path / "next-recipe.yaml").is_file()
    if not advice and not recipe:
        return None
    rows = [(cut(row.get("change"), 160), cut(row.get("why"), 500)) for row in advice]
    changes = " ".join(f"--set {shlex.quote(change)}" for change, _ in rows if "=" in change)
    command = (
        "finesmith tune next-recipe.yaml" if recipe else f"finesmith tune recipe.yaml {changes}" if changes else ""
    )
    return {"rows": rows, "command": command}


def made(folder: RunFolder) -> dict[str, Any] | None:
    """Return how the model was made: base, method, tensors, settings, versions and machine."""
    model, run, train = folder.model, folder.run, mapping(folder.settings.get("train"))
    attention = mapping(model.get("attention"))
    why = cut(attention.get("why"), 300)
    kind = cut(attention.get("kind"), 40)
    parameters, gap = number(model.get("parameters")), number(model.get("reload_gap"))
    groups = {
        "Model": [
            ("Base model", cut(model.get("base"), 200)),
            ("Its SHA-256", cut(model.get("base_sha256"), 64)),
            ("Architecture", cut(model.get("architecture"), 80)),
            ("Parameters", count(parameters) if parameters is not None else ""),
            ("Trainable", count(model.get("trainable")) if number(model.get("trainable")) is not None else ""),
            ("Method", words(model.get("method"), 60)),
            ("Attention", f"{kind}: {why}" if why else kind),
            ("Precision", cut(model.get("precision"), 40)),
            ("Tensors loaded", count(model.get("loaded")) if number(model.get("loaded")) is not None else ""),
            ("Missing", _names(model, "missing")),
            ("Unexpected", _names(model, "unexpected")),
            ("New", _names(model, "new")),
            ("Saved and reloaded", f"outputs differ by {plain(gap, 2)} at most" if gap is not None else ""),
        ],
        "Settings": [(words(key, 40), _setting(value)) for key, value in list(train.items())[:24]],
        "Run": [
            ("Started", moment(run.get("started")) if run.get("started") else ""),
            ("Finished", moment(run.get("finished")) if run.get("finished") else ""),
            ("Took", duration(run.get("seconds")) if number(run.get("seconds")) is not None else ""),
            ("Command", cut(run.get("command"), 500)),
            ("finesmith", cut(run.get("finesmith"), 40)),
            *[(cut(key, 40), cut(value, 60)) for key, value in list(mapping(run.get("versions")).items())[:20]],
            *[
                (words(key, 40), plain(value) if number(value) is not None else cut(value, 100))
                for key, value in list(mapping(run.get("machine")).items())[:12]
            ],
        ],
    }
    kept = {title: [row for row in rows if row[1]] for title, rows in groups.items()}
    return {title: rows for title, rows in kept.items() if rows} or None


def _setting(value: object) -> str:
    return plain(value, 6) if number(value) is not None else cut(value, 120)


def _names(model: dict[str, Any], key: str) -> str:
    if key not in model:
        return ""
    names = items(model[key])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(cut(name, 80) for name in names[:12]) or "none") + more


def _recipe(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.recipe:
        return None
    # The file itself keeps its paths, so that it runs again; a page is passed on.
    shown = ANY_HOME.sub("~", discreet(folder.recipe[:RECIPE_CHARACTERS]))
    lines = [visible(line) for line in shown.splitlines()]
    return {"lines": lines, "left_out": max(0, len(folder.recipe) - RECIPE_CHARACTERS)}


def _files(folder: RunFolder) -> list[dict[str, str]]:
    rows = []
    for name, purpose in FILES.items():
        path = folder.path / name
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        rows.append({"name": name, "purpose": purpose, "size": size(path.stat().st_size), "digest": digest})
    return rows
