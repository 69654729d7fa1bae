"""What the pages say is true: links lead somewhere, commands and keys exist, code runs, recipes load."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from finesmith import cli, tasks
from finesmith.recipe import LANGUAGE, document, load
from finesmith.recipe.keys import LORA_OPTIONS, keys
from finesmith.tasks.corpus import Reading

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".venv", ".git", "runs", "build", "dist", "node_modules"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {part for part in path.relative_to(ROOT).parts[:-1] if part in SKIPPED or part.startswith(".")}
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))
SAMPLE = ROOT / "src" / "finesmith" / "samples" / "support_tickets.csv"

FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ *(?P=marks) *$", re.M | re.S
)
RUN = re.compile(r"<!--\s*run\s*-->\s*\Z")
FILE = re.compile(r"<!--\s*file:\s*(?P<name>\S+)\s*-->\s*\Z")
SHELL = {"console", "bash", "sh", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and the page's text before it."""

    page: Path
    line: int
    language: str
    body: str
    before: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["body"], text[: match.start()])


@dataclass(frozen=True)
class Command:
    """A finesmith command line: its arguments without the program's name, and the file its output goes to."""

    arguments: list[str]
    into: str | None = None


def commands(block: Block) -> list[Command]:
    """The finesmith command lines of a shell block; where prompts are shown only lines with one are commands."""
    lines = block.body.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        if re.match(r"finesmith(\s|$)", line.strip()):
            words = shlex.split(line, comments=True)
            ends = [place for place, word in enumerate(words) if word in {">", "|", "&&", ";", "2>"}]
            end = ends[0] if ends else len(words)
            found.append(Command(words[1:end], words[end + 1] if words[end : end + 1] == [">"] else None))
    return found


def shell_blocks(only_marked: bool = False) -> list[Block]:
    found = [block for page in PAGES for block in blocks(page) if block.language in SHELL]
    return [block for block in found if not only_marked or RUN.search(block.before)]


def name_of(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


# --- links ----------------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The page without code, where brackets mean other things."""
    text = FENCE.sub("", page.read_text("utf-8"))
    return re.sub(r"`[^`\n]*`", lambda match: "`" * len(match[0]), text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> set[str]:
    # The names of links are dropped with inline code, their targets stay.
    text = prose(page)
    found = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return set(found) | set(re.findall(r"^\[[^\]]+\]: +(\S+)", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        target, _, anchor = link.partition("#")
        goal = (page.parent / target) if target else page
        if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in anchors(goal)):
            broken.append(link)
    assert broken == []


def test_the_walk_finds_links_and_commands() -> None:
    assert "design.md" in {Path(link).name for link in links(ROOT / "CONTRIBUTING.md")}
    plain = "finesmith tune a.csv \\\n  --set train.epochs=3 > b\nls\nfinesmith runs # all\n"
    tune, runs = Command(["tune", "a.csv", "--set", "train.epochs=3"], "b"), Command(["runs"])
    assert commands(Block(ROOT, 1, "bash", plain, "")) == [tune, runs]
    assert commands(Block(ROOT, 1, "console", "$ finesmith runs\nfinesmith says much\n", "")) == [runs]


# --- commands and keys ----------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse one command line as the program would; raises click's UsageError for what does not exist."""
    group: Any = typer.main.get_command(cli.app)
    if not arguments or arguments[0] in {"--help", *(name for option in group.params for name in option.opts)}:
        return {}
    assert arguments[0] in group.commands, f"there is no command {arguments[0]}"
    if "--help" in arguments:
        return {}
    context = group.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
    parameters: dict[str, Any] = context.params
    return parameters


@pytest.mark.parametrize("block", shell_blocks(), ids=name_of)
def test_commands_exist_with_their_options(block: Block) -> None:
    for command in commands(block):
        parameters = parse(command.arguments)
        if parameters.get("sets"):
            load("data.csv", parameters["sets"])


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="no command"):
        parse(["train", "a.csv"])
    with pytest.raises(Exception, match="No such option"):
        parse(["tune", "a.csv", "--epochs", "3"])


def keys_set(text: str) -> set[str]:
    return set(re.findall(r"--set[\s=]+['\"]?([\w.]+)=", text)) - {"key", "KEY"}


def valid_key(key: str) -> bool:
    known = keys().get(key)
    return (known is not None and not known.section) or key.removeprefix("method.lora.") in LORA_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_keys_that_are_set_exist(page: Path) -> None:
    assert [key for key in sorted(keys_set(page.read_text("utf-8"))) if not valid_key(key)] == []


def keys_named(text: str) -> set[str]:
    """Dotted names in code that begin with a section; files such as `data.json` and modules are none."""
    sections = "|".join(key.name for key in keys().values() if key.section and "." not in key.name)
    found = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*|: [^`]*)?`", text))
    return {name for name in found if not name.endswith((".json", ".py", ".yaml"))}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_keys_that_are_named_exist(page: Path) -> None:
    named = keys_named(page.read_text("utf-8"))
    assert [name for name in sorted(named) if name not in keys() and not valid_key(name)] == []


def test_a_wrong_key_would_be_noticed() -> None:
    text = "`data.audit.html=fix`, `train.lr: 3e-5`, `data.json`, `train.loop.Plan`, --set train.rate=3 --set key=value"
    assert keys_named(text) == {"data.audit.html", "train.lr"}
    assert keys_set(text) == {"train.rate"}
    assert valid_key("method.lora.r")
    assert not any(map(valid_key, ("train.lr", "train", "method.lora.rank")))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tests_and_benchmarks_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:tests|bench)/[\w/]+\.py)(?:::(\w+))?`", page.read_text("utf-8"))
    written = page.parts[-1] == "add-a-task.md"  # names a file that the reader writes
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not written
        and not ((ROOT / file).is_file() and (not test or f"def {test}(" in (ROOT / file).read_text("utf-8")))
    ]
    assert missing == []


# --- commands that are run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", shell_blocks(only_marked=True), ids=name_of)
def test_marked_commands_run(
    block: Block, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Run a block's commands in a fresh folder; every csv file that they read is the bundled sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for command in commands(block):
        arguments, parameters = command.arguments, parse(command.arguments)
        for value in [*(parameters.get("plan") or []), parameters.get("data")]:
            if isinstance(value, str) and value.endswith(".csv") and not Path(value).exists():
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Path(value).write_bytes(SAMPLE.read_bytes())
        if arguments[0] in {"tune", "init", "check"}:
            arguments = [*arguments, "--model", str(tiny_model)]
        capfd.readouterr()
        cli.app(arguments, standalone_mode=False)
        if command.into is not None:
            Path(command.into).write_text(capfd.readouterr().out, "utf-8")


# --- code -----------------------------------------------------------------------------------------------------------


def code(page: str, name: str) -> str:
    """The block of a page that stands for a file."""
    found = [
        block.body
        for block in blocks(ROOT / page)
        if (match := FILE.search(block.before)) is not None and match["name"] == name
    ]
    assert len(found) == 1, f"{page} holds {len(found)} blocks for {name}"
    return found[0]


@pytest.fixture
def stars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The test module of docs/add-a-task.md, with the page's task where tasks are found."""
    room = tmp_path / "tasks"
    room.mkdir()
    (room / "stars.py").write_text(code("docs/add-a-task.md", "src/finesmith/tasks/stars.py"), "utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(room)])
    path = tmp_path / "test_stars.py"
    path.write_text(code("docs/add-a-task.md", "tests/tasks/test_stars.py"), "utf-8")
    specification = importlib.util.spec_from_file_location("docs_test_stars", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    sys.modules.pop("finesmith.tasks.stars", None)
    vars(tasks).pop("stars", None)


def test_the_new_task_is_found_and_its_tests_pass(stars: ModuleType) -> None:
    assert "stars" in tasks.names()
    found = [function for name, function in vars(stars).items() if name.startswith("test_")]
    assert len(found) >= 5
    for function in found:
        function()


def test_the_new_task_keeps_the_whole_protocol(stars: ModuleType) -> None:
    from finesmith.evaluate.metrics import METRICS
    from finesmith.tasks.protocol import DEFAULT_OPTIONS, LabelColumn

    task = tasks.get("stars").learn(stars.LABELS, DEFAULT_OPTIONS)
    targets = task.encode(stars.LABELS, stars.WHERE)
    outputs = task.outputs(targets[:, None] * [[0.0, 0.1, 0.2, 0.3, 0.4]])
    assert task.head.outputs == outputs.shape[1] == len(task.head.labels or ())
    assert outputs.sum(1) == pytest.approx(1)
    assert all(len(column) == len(targets) for column in task.columns(outputs).values())
    assert set(task.scores(targets, outputs)) <= set(task.metrics) <= set(METRICS[task.kind])
    assert task.default_metric in task.metrics
    assert len(task.strata(stars.LABELS)) == len(stars.LABELS)
    assert sum(task.summary(targets)["labels"].values()) == len(stars.LABELS)
    assert len(task.details(targets, outputs)["confusion"]) == task.head.outputs
    assert task.zero_shot(outputs) is None
    assert task.rescaling is None
    # Other tasks are chosen as before.
    rating = LabelColumn("stars", "rating", 5, 100)
    assert tasks.choose(rating)[0].name == "regression"


def test_code_blocks_are_python() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                compile(block.body, name_of(block), "exec")


# --- recipes --------------------------------------------------------------------------------------------------------


def test_the_recipe_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text("utf-8") == document.document()


def test_there_are_example_recipes() -> None:
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_example_recipes_load_and_say_how_they_are_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    head = [line for line in path.read_text("utf-8").split("\n\n")[0].splitlines() if line.startswith("#")]
    assert any(line.startswith("# Scores:") for line in head)
    told = [line.removeprefix("#").strip() for line in head if line.startswith("#   finesmith ")]
    assert len(told) == 1
    parameters = parse(shlex.split(told[0])[1:])
    assert parameters["plan"] == [f"examples/{path.name}"]
    recipe = load(Path("examples") / path.name, parameters["sets"] or [])
    assert recipe.task in tasks.names()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_example_recipes_name_columns_that_the_data_has(
    path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.data.infer import find_columns, profile
    from finesmith.data.sources import read

    monkeypatch.chdir(ROOT)
    recipe = load(Path("examples") / path.name)
    data = recipe.data
    assert isinstance(data.train, str)
    if recipe.task in LANGUAGE:
        kind = tasks.language_task(recipe.task)
        for source in (data.train, data.validation, data.test):
            if isinstance(source, str):
                assert len(kind.read([str(shared / Path(source).relative_to("../shared"))], Reading()))
        return
    if "shared" not in Path(data.train).parts:
        return
    for source in (data.train, data.validation, data.test):
        if isinstance(source, str):
            inside = Path(source).relative_to("../shared")
            table = read([str(shared / inside)]).table
            columns = find_columns(profile(table), text=data.text, label=data.label, group=data.group, split=data.split)
            assert (columns.text, columns.label) == (data.text, data.label)
