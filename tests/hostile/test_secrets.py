"""Two hundred secrets are planted where a user's are; what a run writes, says and raises is searched for them."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import finesmith as api
from finesmith.discreet import discreet
from finesmith.errors import FinesmithError
from terminal import Said, finesmith, read_json, reviews, when_step

PLANTED = {
    "text": 60, "pair": 25, "dropped": 15, "group": 20, "column": 20, "bad": 10, "home": 3, "secret": 12,
    "variable": 15, "token": 10, "comment": 10,
}  # fmt: skip
# Kinds that are pieces of the user's rows; the report, the predictions and the audit may hold them at defaults.
OF_ROWS = ("text", "pair", "dropped", "group", "column", "bad")
MAY_HOLD_ROWS = ("report.html", "audit.json", "examples.json", "predictions")
SECRET_NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "PGPASSWORD_SECRET", "AZURE_CLIENT_SECRET",
    "GOOGLE_CREDENTIALS",
)  # fmt: skip
FAST = ("--set", "train.epochs=1", "--set", "evaluate.baselines=[majority]", "--set", "evaluate.bootstrap_samples=100")


def plant() -> dict[str, list[str]]:
    draw = random.Random(7)
    found: dict[str, list[str]] = {}
    for kind, count in PLANTED.items():
        found[kind] = [f"qz{kind[:2]}{''.join(draw.choices('bcdfghjkmnpqrstvwz', k=14))}" for _ in range(count)]
    found["token"] = [f"hf_{one * 2}" for one in found["token"]]
    return found


@dataclass
class World:
    """A home with data, a model and environment variables in which every story is told, and what was said."""

    home: Path
    model: Path
    secrets: dict[str, list[str]]
    said: dict[str, Said] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)
    on_screen: str = ""

    def tell(self, story: str, *words: object) -> Said:
        self.said[story] = finesmith(*words)
        return self.said[story]

    def tune(self, story: str, data: Path, *words: object) -> Said:
        # The run folder is named as one types it, the data and the model by their paths in the home folder.
        return self.tell(story, "tune", data, "--model", self.model, "--out", f"runs/{story}", *FAST, *words)

    def folder(self, story: str) -> Path:
        return self.home / "runs" / story

    def write(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
        with (self.home / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return self.home / name


def reviews_of(world: World) -> Path:
    """Write rows with a secret each, a mark that gives the label away, groups across splits, copies and blanks."""
    s, rows = world.secrets, list[list[Any]]()
    for i, (text, label) in enumerate(reviews(120)):
        # The first secret stands in every positive text: the audit finds that it gives the label away.
        mark = s["text"][0] if label == "pos" else ""
        planted = s["text"][1 + i // 2] if i < 118 and i % 2 else ""
        part = "train" if i % 10 < 7 else "validation" if i % 10 == 7 else "test"
        rows.append([f"{mark} {text} {planted}", label, s["group"][i // 6], s["column"][i % 20], part])
    for i, secret in enumerate(s["dropped"]):
        again = [f"the film {secret} was good", "pos", "nobody", "", "train"]
        rows += [again, again] if i % 3 else [[*again[:1], "", *again[2:]]]
    return world.write("reviews.csv", ("text", "label", "customer", "mail", "split"), rows)


def pairs_of(world: World) -> Path:
    rows = [
        [text, f"an answer {world.secrets['pair'][i % 25]} {i}", "yes" if label == "pos" else "no"]
        for i, (text, label) in enumerate(reviews(80))
    ]
    return world.write("pairs.csv", ("question1", "question2", "label"), rows)


def lines_of(world: World, *, faulty: bool) -> Path:
    """Write one JSON object a line; where one is faulty it holds a secret."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in reviews(80)]
    if faulty:
        lines[40] = f'{{"text": "{" ".join(world.secrets["bad"])}", "label": '
    path = world.home / "lines.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def spoilt(world: World) -> Path:
    """Copy the model with weights that make the loss no number."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(world.model, world.home / "spoilt"))
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def leak(world: World) -> str:
    """Return the message of an error that holds everything it should not."""
    s = world.secrets
    rows, tokens = f"{s['text'][5]} {s['pair'][5]}", f"Bearer {s['token'][0]} {' '.join(s['secret'])} {s['token'][1]}"
    return f"{world.home}/cache: {rows} {tokens}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[World]:
    """Tell every story once."""
    secrets = plant()
    home = tmp_path_factory.mktemp("homes").joinpath(*secrets["home"])
    home.mkdir(parents=True)
    world = World(home, Path(shutil.copytree(tiny_model, home / "base")), secrets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.chdir(home)
        for name, value in zip(SECRET_NAMES, secrets["secret"], strict=True):
            patch.setenv(name, value)
        for i, value in enumerate(secrets["variable"]):
            patch.setenv(f"PLAIN_VARIABLE_{i}", value)
        stories(world, patch)
        yield world


def stories(world: World, patch: pytest.MonkeyPatch) -> None:
    data, pairs = reviews_of(world), pairs_of(world)
    recipe = world.home / "plan.yaml"
    tree = {"data": {"train": str(data), "group": "customer"}, "model": {"base": str(world.model)}}
    comments = "".join(f"# {comment}\n" for comment in world.secrets["comment"])
    recipe.write_text(comments + yaml.safe_dump(tree), "utf-8")

    board = ("--set", "output.tensorboard=true")
    assert world.tell("whole", "tune", recipe, "--out", "runs/whole", *FAST, *board).status == 0
    assert world.tune("pairs", pairs, "--set", "method.name=lora").status == 0
    redact = ("--set", "output.redact=true")
    assert world.tell("redacted", "tune", recipe, "--out", "runs/redacted", *FAST, *board, *redact).status == 0
    assert world.tune("redacted-pairs", pairs, *redact).status == 0

    assert world.tell("predict", "predict", "runs/whole", data, "-o", "scored.csv").status == 0
    assert world.tell("evaluate", "evaluate", "runs/whole", "--data", data).status == 0
    assert world.tell("evaluate as json", "evaluate", "runs/whole", "--data", data, "--json").status == 0
    assert world.tell("check", "check", recipe).status == 0
    assert world.tell("check as json", "check", recipe, "--json").status == 0
    assert world.tell("runs", "runs").status == 0
    assert world.tell("report", "report", "runs/whole").status == 0
    failures(world, patch, data, recipe)


def failures(world: World, patch: pytest.MonkeyPatch, data: Path, recipe: Path) -> None:
    lines = lines_of(world, faulty=False)
    stop = ("--set", "data.audit.label_in_text=stop", "--set", "data.group=customer")
    assert world.tune("stopped by the audit", data, *stop).status == 2
    assert world.tune("diverged", data, "--model", spoilt(world)).status == 2
    assert world.tune("bad line", lines_of(world, faulty=True)).status == 2
    world.on_screen = finesmith("tune", lines_of(world, faulty=True), "--model", world.model, terminal=True).err
    world.raised["bad line"] = raised(world, world.home / "lines.jsonl")
    lines_of(world, faulty=False)

    def broken(*_: object, **__: object) -> None:
        raise KeyError(leak(world))

    with patch.context() as inner:
        inner.setattr("finesmith.workflows.compare.compare", broken)
        assert world.tune("internal error", data).status == 1
        inner.setenv("FINESMITH_TRACEBACK", "1")
        assert world.tune("traceback", data).status == 1
    with patch.context() as inner:
        inner.setattr("finesmith.console.Display.__call__", when_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert world.tune("interrupted", lines).status == 143
    lines_of(world, faulty=True)
    assert world.tell("resumed on bad data", "resume", "runs/interrupted").status == 2
    with patch.context() as inner:
        inner.setattr("finesmith.models.load.find", broken)
        assert world.tell("check fails", "check", recipe).status == 1


def raised(world: World, data: Path) -> str:
    """Return all that an exception of the Python API says of itself."""
    with pytest.raises(FinesmithError) as error:
        api.tune(data, model=world.model, out=world.home / "runs" / "raised")
    return "\n".join([str(error.value), repr(error.value), *getattr(error.value, "__notes__", ())])


# --- the search -----------------------------------------------------------------------------------------------------


def content(path: Path) -> str:
    """Return all that a file holds, tables unpacked."""
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pydict(), default=str)
    return path.read_bytes().decode("latin-1")


def found_in(world: World, text: str, kinds: Sequence[str]) -> list[str]:
    return [f"{kind}: {secret}" for kind in kinds for secret in world.secrets[kind] if secret in text]


def leaks(world: World, story: str, kinds: Sequence[str], allowed: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the secrets found in the files of a run folder, those aside that a file may hold."""
    told = []
    for path in sorted(path for path in world.folder(story).rglob("*") if path.is_file()):
        name = path.relative_to(world.folder(story)).as_posix()
        may = {kind for kind, places in allowed.items() if name.startswith(places)}
        hunted = [kind for kind in kinds if kind not in may]
        told += [f"{name}: {secret}" for secret in found_in(world, f"{name} {content(path)}", hunted)]
    return told


STORIES = ("whole", "pairs", "stopped by the audit", "diverged", "internal error", "traceback", "interrupted")
RECIPES = ("recipe.yaml", "next-recipe.yaml")


def test_two_hundred_secrets_are_planted_and_can_be_found(world: World) -> None:
    every = [secret for kind in world.secrets.values() for secret in kind]
    assert len(every) == len(set(every)) == 200
    whole, pairs = world.folder("whole"), world.folder("pairs")
    predicted = "".join(content(path) for path in (whole / "predictions").glob("*.parquet"))
    assert len(found_in(world, predicted, ["text"])) == 60, "the search finds what is there"
    predicted = "".join(content(path) for path in (pairs / "predictions").glob("*.parquet"))
    assert len(found_in(world, predicted, ["pair"])) == 25
    audit = content(whole / "audit.json")
    assert found_in(world, audit, ["group"])
    assert found_in(world, audit, ["dropped"])
    assert found_in(world, content(whole / "report.html"), ["text"])
    assert found_in(world, content(whole / "recipe.yaml"), ["home"]), "it must run again"
    assert {"label_in_text", "group_leakage", "exact_duplicates"} <= {
        event.get("kind") for event in map(json.loads, (whole / "events.jsonl").read_text("utf-8").splitlines())
    }
    assert list((whole / "tensorboard").iterdir())


@pytest.mark.parametrize("story", STORIES)
def test_a_run_folder_holds_texts_only_where_it_may(story: str, world: World) -> None:
    allowed = {**dict.fromkeys(OF_ROWS, MAY_HOLD_ROWS), "home": RECIPES}
    assert leaks(world, story, list(PLANTED), allowed) == []


@pytest.mark.parametrize("story", ["redacted", "redacted-pairs"])
def test_a_redacted_run_folder_holds_no_text_at_all(story: str, world: World) -> None:
    assert read_json(world.folder(story) / "run.json")["state"] == "finished"
    assert leaks(world, story, list(PLANTED), {"home": RECIPES}) == []
    assert "Texts withheld" in content(world.folder(story) / "report.html")


def test_redacted_results_are_those_of_the_run_with_texts(world: World) -> None:
    whole, redacted = (pq.read_table(world.folder(s) / "predictions/test.parquet") for s in ("whole", "redacted"))
    assert redacted.column_names == [name for name in whole.column_names if name != "text"]
    assert redacted.to_pydict() == whole.drop_columns(["text"]).to_pydict()


def test_nothing_that_is_said_holds_a_secret(world: World) -> None:
    told = {story: found_in(world, said.out + said.err, list(PLANTED)) for story, said in world.said.items()}
    # Who asks for tracebacks gets messages whole, but neither tokens nor the home folder.
    shown = told.pop("traceback")
    assert {secret.split(":")[0] for secret in shown} <= {"text", "pair"}
    assert "Traceback" in world.said["traceback"].err
    assert {story: secrets for story, secrets in told.items() if secrets} == {}


def test_errors_say_where_and_not_what(world: World) -> None:
    error = read_json(world.folder("internal error") / "run.json")["error"]
    assert error["kind"] == "internal"
    assert error["message"].startswith("KeyError at workflows/tune.py:")
    assert "lines.jsonl line 41, column" in world.said["bad line"].complaint
    assert "lines.jsonl line 41, column" in world.said["resumed on bad data"].complaint
    stopped = read_json(world.folder("stopped by the audit") / "run.json")["error"]
    assert "the text gives the label away" in stopped["message"]
    assert found_in(world, world.raised["bad line"], list(PLANTED)) == []


def test_predictions_for_the_user_are_the_users(world: World) -> None:
    assert len(found_in(world, content(world.home / "scored.csv"), ["text"])) == 60


def test_a_terminal_shows_a_little_of_the_faulty_line(world: World) -> None:
    shown = world.on_screen[world.on_screen.index("it says: ") + 9 :].strip()
    assert shown.startswith('{"text": "')
    assert len(shown) <= 80
    assert found_in(world, shown, ["bad"])


def test_no_tokens_of_withheld_texts_are_cached(world: World) -> None:
    resolved = yaml.safe_load((world.folder("redacted") / "recipe.yaml").read_text("utf-8"))
    assert resolved["output"]["cache"] == "none"
    assert yaml.safe_load((world.folder("whole") / "recipe.yaml").read_text("utf-8"))["output"]["cache"] is None


# --- what is discreet -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane", "~"),
        ("read /home/jane/a.csv, and more", "read ~/a.csv, and more"),
        ("kept in /home/jane.", "kept in ~."),
        ("'/home/jane/a b'", "'~/a b'"),
        ("file:///home/jane/a", "file://~/a"),
        ("/home/janet/a /mnt/home/jane/a /home/jane-2/a", "/home/janet/a /mnt/home/jane/a /home/jane-2/a"),
        ("Illegal header value b'Bearer hf_abcdefghijklmnop\\n'", "Illegal header value b'Bearer [token]\\n'"),
        ("https://jane:hunter22@example.org/x", "https://[token]@example.org/x"),
        ("the password is swordfish-9", "the password is [DB_PASSWORD]"),
        ("half_a_word is no token", "half_a_word is no token"),
    ],
)
def test_discreet(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("DB_PASSWORD", "swordfish-9")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "password")
    assert discreet(text) == expected


@pytest.mark.parametrize("home", ["/", "", "."])
def test_a_home_that_is_none_hides_nothing(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert discreet("/home/jane/a.csv and ./b") == "/home/jane/a.csv and ./b"
