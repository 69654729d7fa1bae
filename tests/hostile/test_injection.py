"""Labels, columns, texts and file names that are markup, formulas or orders to a terminal, through a whole run."""

from __future__ import annotations

import csv
import html.parser
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from attacks import Attack, change, mentions

from terminal import NEGATIVE, NEUTRAL, POSITIVE, finesmith, read_json

SCRIPT = "<script>alert(1)</script>"
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
LABELS = [
    f'=cmd|"/C calc"!A0{SCRIPT}',
    f"{ESCAPE}\"onload='x'\n---\nlicense: evil\n![x](http://evil/x.png) [a](javascript:alert(1))",
]
TEXT, LABEL = f'te"xt<img src=x onerror=alert(2)>{ESCAPE}', "la'bel\n| a | b |\n{{ 7*7 }}"
FILE = "da<svg onload=alert(3)>ta # x.jsonl"
TAILS = [SCRIPT, "=HYPERLINK(1)", ESCAPE, "{{ 7*7 }}", "{% raw %}", "\u202e", '"}, {"event": "verdict"', "\n{\"event\": 1}",  # noqa: E501
         "</td></table>", "<!--", "]]>", "&lt;", "javascript:alert(4)", "`rm -rf`", "@everyone", "\r\nSet-Cookie: a"]  # fmt: skip  # noqa: E501


def hostile_rows() -> list[dict[str, Any]]:
    draw, rows = random.Random(0), []
    for i in range(160):
        words = draw.choices(NEUTRAL, k=5) + draw.choices(POSITIVE if i % 2 else NEGATIVE, k=3)
        rows.append({TEXT: f"{TAILS[i % len(TAILS)]} {' '.join(words)} {i}", LABEL: LABELS[i % 2]})
    return rows


@pytest.fixture(scope="module")
def injected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run on hostile data, the data, and what the run said."""
    place = tmp_path_factory.mktemp("injected")
    file = place / FILE.replace("/", "_")
    file.write_text("".join(json.dumps(row) + "\n" for row in hostile_rows()), "utf-8")
    words = ("--set", f"data.text={json.dumps(TEXT)}", "--set", f"data.label={json.dumps(LABEL)}")
    words = (
        *words,
        "--set",
        "output.tensorboard=true",
        "--set",
        "train.epochs=1",
        "--set",
        "evaluate.baselines=[majority]",
    )
    folder = place / "r<b>un"
    shutil.copytree(tiny_model, place / "mo<i>del")
    said = finesmith("tune", file, "--model", place / "mo<i>del", "--out", folder, *words, terminal=True)
    assert said.status == 0, said.err
    (place / "said").write_text(said.out + said.err, "utf-8")
    return place


@pytest.fixture
def run(injected: Path) -> Path:
    return injected / "r<b>un"


@pytest.fixture
def data(injected: Path) -> Path:
    return next(injected.glob("da*"))


class Elements(html.parser.HTMLParser):
    """Collect the elements, attributes and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src", "action", "xlink:href"}]


def orders(text: str) -> list[str]:
    """Return the control characters of a text, the colours that a terminal is given by ourselves aside."""
    return re.findall(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", re.sub(r"\x1b\[[0-9;?]*[mKAhl]", "", text).replace("\r", "")
    )


def test_the_report_holds_no_markup_of_theirs(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    found = Elements()
    found.feed(page)
    assert not found.names & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b", "i"}, (
        found.names
    )
    assert not [name for name in found.attributes if name.startswith("on")], found.attributes
    assert not [a for a in found.addresses if not a.startswith(("#", "https://", "data:")) and "/" not in a[:3]], (
        found.addresses
    )
    assert "javascript:" not in "".join(found.addresses)
    assert orders(page.replace("\n", "")) == []
    assert "Content-Security-Policy" in page


def test_the_card_holds_no_markup_of_theirs(run: Path) -> None:
    import yaml

    card = (run / "model" / "README.md").read_text("utf-8")
    front, body = card.split("---\n", 2)[1:]
    fields = yaml.safe_load(front)
    assert set(fields) <= {"library_name", "pipeline_tag", "license", "base_model", "language", "tags", "model-index"}
    assert "license" not in fields
    assert "<script" not in body
    assert "<svg" not in body
    assert not re.search(r"(?<!\\)\]\((?:http|javascript)", body), "no link or picture"
    assert orders(card.replace("\n", "")) == []


def test_the_terminal_gets_no_orders(injected: Path) -> None:
    said = (injected / "said").read_text("utf-8")
    assert "\x07" not in said
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said
    assert orders(said.replace("\n", "")) == []


def test_a_piped_run_gives_no_orders_either(run: Path, data: Path, attack: Attack) -> None:
    for words in (["runs", run.parent], ["evaluate", run, "--data", data], ["evaluate", run, "--data", data, "--json"]):
        said = attack.call(*words, writes=[run])
        assert said.status == 0, said.err
        assert orders((said.out + said.err).replace("\n", "")) == []


def test_every_record_is_whole_json(run: Path) -> None:
    lines = (run / "events.jsonl").read_text("utf-8").split("\n")
    events = [json.loads(line) for line in lines[:-1]]
    assert all(set(event) >= {"event", "time"} for event in events)
    assert sum(event["event"] == "verdict" for event in events) == 1
    for file in run.rglob("*.json"):
        json.loads(file.read_text("utf-8"))
    assert read_json(run / "data.json")["labels"] == sorted(LABELS) or set(read_json(run / "data.json")["labels"]) == {
        label.strip() for label in LABELS
    }


def test_the_resolved_recipe_reads_back(run: Path) -> None:
    from finesmith.recipe import load

    recipe = load(run / "recipe.yaml")
    assert recipe.data.text == TEXT
    assert recipe.data.label == LABEL


def test_tensorboard_is_given_our_own_names_only(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) <= {
        f"{kind}/{name}"
        for kind in ("step", "evaluation")
        for name in ("loss", "learning_rate", "grad_norm", "validation_loss", "train_loss", "value")
    }
    assert found.Tags()["images"] == found.Tags()["audio"] == []


def test_predictions_are_written_as_they_are_and_formulas_told(run: Path, data: Path, attack: Attack) -> None:
    out = attack.run / "out.csv"
    attack.run.mkdir()
    said = attack.call("predict", run, data, "-o", out)
    assert said.status == 0, said.err
    mentions(said.err, "texts begin like formulas", "written as they are", ".parquet or .jsonl")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    theirs = hostile_rows()
    assert [row[0] for row in rows[1:]] == [row[TEXT] for row in theirs], "exact, to be read by programs"
    assert {row[rows[0].index("prediction")] for row in rows[1:]} <= {*LABELS, *(label.strip() for label in LABELS)}
    for ending in ("jsonl", "parquet"):
        other = out.with_suffix(f".{ending}")
        said = attack.call("predict", run, data, "-o", other)
        assert "formulas" not in said.err


def test_predictions_on_a_terminal_give_no_orders(run: Path, data: Path) -> None:
    said = finesmith("predict", run, data, "-q", terminal=True)
    assert said.status == 0
    assert orders(said.out.replace("\n", "")) == []


@pytest.mark.parametrize("text", ["-3", "+49 170 1234", "-", "3", "a=b", "(1)", "- not good", "-0.5"])
def test_what_is_no_formula(text: str) -> None:
    import pyarrow as pa

    from finesmith.deploy.formulas import Formulas

    formulas = Formulas()
    list(formulas.counted([pa.table({"text": [text]})]))
    assert (formulas.told() is None) == (text != "- not good"), "a sign before words may be one"


@pytest.mark.parametrize(
    "text", ["=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+cmd|x!A1", "-2+cmd|x!A1", "\t=1", "\r=1", " =1", "\n=1"]
)
def test_what_is_a_formula(text: str) -> None:
    import pyarrow as pa

    from finesmith.deploy.formulas import Formulas

    formulas = Formulas()
    list(formulas.counted([pa.table({"text": pa.array([text, "plain"], pa.large_string())})]))
    mentions(formulas.told() or "", "1 texts begin like formulas")


PLANTED: dict[str, dict[str, Any]] = {
    "verdict.json": {"conclusion": SCRIPT + ESCAPE, "metric": SCRIPT, "baselines": {SCRIPT: 1}, "better": SCRIPT},
    "model.json": {"base": f"{SCRIPT}](javascript:alert(1))", "method": SCRIPT, "license": "x\nevil: 1", "missing": [SCRIPT]},  # noqa: E501
    "data.json": {"labels": [SCRIPT, ESCAPE], "columns": {"text": SCRIPT}, "sources": [{"name": SCRIPT, "rows": 10**400}]},  # noqa: E501
    "audit.json": {"findings": [{"kind": SCRIPT, "severity": '"><script>', "message": SCRIPT, "examples": [{SCRIPT: ESCAPE}]}]},  # noqa: E501
    "examples.json": {"meaning": SCRIPT, "rows": SCRIPT, "examples": [{"where": SCRIPT, "target": [ESCAPE], "tokens": [{"text": SCRIPT + ESCAPE, "kind": '"><script>', "label": SCRIPT}, {"kind": "cut", "count": 10**400}]}]},  # noqa: E501
    "scores.json": {"test": {SCRIPT: {"value": 0.5, "low": SCRIPT, "high": ESCAPE}}, "validation": [SCRIPT]},
    "next.json": {"changes": [{SCRIPT: SCRIPT}], "command": f"rm -rf /; {SCRIPT}", "why": SCRIPT},
    "run.json": {"error": {"message": SCRIPT + ESCAPE, "kind": SCRIPT}, "machine": {SCRIPT: SCRIPT}, "finesmith": SCRIPT},  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", list(PLANTED))
def test_a_record_that_was_planted(name: str, attack: Attack, finished: Path) -> None:
    shutil.copytree(finished, attack.run)
    change(attack.run / name, **PLANTED[name])
    assert attack.call("report", attack.run).status == 0
    found = Elements()
    found.feed((attack.run / "report.html").read_text("utf-8"))
    assert not found.names & {"script", "img", "iframe", "object", "embed"}
    assert orders((attack.run / "report.html").read_text("utf-8").replace("\n", "")) == []
    assert orders(attack.call("runs", attack.place).out.replace("\n", "")) == []


def test_events_that_were_planted(attack: Attack, finished: Path) -> None:
    shutil.copytree(finished, attack.run)
    with (attack.run / "events.jsonl").open("a", encoding="utf-8") as file:
        for value in (SCRIPT, ESCAPE, 10**30, None, [SCRIPT], {SCRIPT: 1}, -1e308, "NaN"):
            file.write(
                json.dumps({"event": "step", "time": value, "step": value, "loss": value, "total": value}) + "\n"
            )
            file.write(json.dumps({"event": "evaluation", "step": value, "value": value, "metric": value}) + "\n")
            file.write(json.dumps({"event": "note", "message": value}) + "\n")
        file.write('{"event": "step", "loss": NaN, "step": Infinity}\n{"event"\n[1]\n7\n' + "[" * 50_000 + "\n")
    assert attack.call("report", attack.run, seconds=10).status == 0
    found = Elements()
    found.feed((attack.run / "report.html").read_text("utf-8"))
    assert not found.names & {"script", "img", "iframe", "object", "embed"}


def test_predictions_that_were_planted(attack: Attack, finished: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    shutil.copytree(finished, attack.run)
    for file in (attack.run / "predictions").glob("*.parquet"):
        table = parquet.read_table(file)
        evil = {name: pa.array([SCRIPT + ESCAPE] * table.num_rows) for name in table.column_names}
        parquet.write_table(pa.table(evil), file)
    assert attack.call("report", attack.run, seconds=10).status == 0
    found = Elements()
    found.feed((attack.run / "report.html").read_text("utf-8"))
    assert not found.names & {"script", "img", "iframe", "object", "embed"}
