"""Tasks that answer for every token: killed, stopped, damaged or out of space, a run ends with the same bits."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from breaking import assert_same
from jobs import PEFT_WARNING, events, read, tuned
from language_breaking import STORIES, LanguageJobs
from ticks import SAVING

from finesmith.errors import RunError
from finesmith.recipe import from_dict
from finesmith.workflows.signals import Stopped
from finesmith.workflows.tune import resume, tune

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL is what interrupts a run here"),
]

NER, CAUSAL, MASKED = "token-classification full", "causal-text full", "masked-text full"


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


def go_on(language: LanguageJobs, story: str, tree: dict[str, Any], broken: Path) -> None:
    """Resume a run, or begin it again where not even its recipe was written; it must equal one never interrupted."""
    if (broken / "run.json").exists() and read(broken, "run.json")["state"] == "finished":
        pass  # killed after its last word
    elif (broken / "recipe.yaml").exists():
        resume(str(broken))
    else:
        shutil.rmtree(broken)
        tuned(tree, broken)
    assert read(broken, "run.json")["state"] == "finished"
    assert_same(language.uninterrupted(story), broken)


@pytest.mark.parametrize(
    ("story", "saving"), [(story, saving) for story in STORIES for saving in (False, True)[: 1 + ("full" in story)]]
)
def test_killed_at_a_random_moment_and_resumed_is_the_same_to_the_bit(
    story: str, saving: bool, language: LanguageJobs, tmp_path: Path
) -> None:
    moments = [i for i, tick in enumerate(language.ticks(story), 1) if tick.startswith(SAVING) == saving]
    moment = random.Random(f"{story} {saving}").choice(moments)
    tree = language.tree(story, output__cache=str(tmp_path / "cache"))
    go_on(language, story, tree, language.killed(tree, tmp_path / "broken", "tick", moment))


@pytest.mark.parametrize(
    ("story", "pattern"),
    [
        (NER, "rename .*data.json"), (NER, "half an event test_opened"), (CAUSAL, "half an event baseline"),
        (MASKED, "rename .model.new"),
    ],
)  # fmt: skip
def test_killed_at_a_chosen_moment_and_resumed_is_the_same_to_the_bit(
    story: str, pattern: str, language: LanguageJobs, tmp_path: Path
) -> None:
    moments = [i for i, tick in enumerate(language.ticks(story), 1) if re.search(pattern, tick)]
    tree = language.tree(story, output__cache=str(tmp_path / "cache"))
    go_on(language, story, tree, language.killed(tree, tmp_path / "broken", "tick", moments[-1]))


@pytest.mark.parametrize(("story", "batch"), [(NER, 3), (MASKED, 2)])
def test_killed_in_an_evaluation_it_is_made_again(
    story: str, batch: int, language: LanguageJobs, tmp_path: Path
) -> None:
    tree = language.tree(story)
    broken = language.killed(tree, tmp_path / "broken", "batch", batch)
    done = [event["event"] for event in events(broken)]
    assert done[-1] == "step", "the evaluation had begun and was not recorded"
    go_on(language, story, tree, broken)


def test_killed_again_and_again(language: LanguageJobs, tmp_path: Path) -> None:
    broken = language.killed(language.tree(MASKED), tmp_path / "broken", "event step", 6)
    language.killed(None, broken, "batch", 1)
    language.killed(None, broken, "event trained", 1)
    resume(str(broken))
    assert_same(language.uninterrupted(MASKED), broken)


def test_a_signal_finishes_the_step_and_saves(language: LanguageJobs, tmp_path: Path) -> None:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with pytest.raises(Stopped) as told:
        tune(from_dict(language.tree(CAUSAL)), out=str(out), listeners=[stop])
    assert told.value.exit_status == 128 + signal.SIGTERM
    assert events(out)[-1]["step"] == 7
    assert (out / "checkpoints" / "step-00000007").is_dir()
    assert read(out, "run.json")["state"] == "interrupted"
    resume(str(out))
    for name in ("model/model.safetensors", "predictions/test.parquet"):
        assert (out / name).read_bytes() == (language.uninterrupted(CAUSAL) / name).read_bytes()


def test_damaged_checkpoints_are_passed_over(language: LanguageJobs, tmp_path: Path) -> None:
    broken = language.killed(language.tree(NER), tmp_path / "broken", "event step", 20)
    newest = max((broken / "checkpoints").glob("step-*"))
    raw = bytearray((newest / "tensors.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 4
    (newest / "tensors.safetensors").write_bytes(bytes(raw))
    told: list[str] = []
    resume(str(broken), listeners=[lambda event: told.append(str(event.get("message")))])
    assert any("checkpoint refused" in message and newest.name in message for message in told)
    assert_same(language.uninterrupted(NER), broken)


def add_a_line(data: Path) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write("\n\none more story was good\n")


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "data was": lambda _, data: add_a_line(data),
    "recipe mask.rate was 0.15, is now 0.2": lambda run, _: (run / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text("utf-8").replace("rate: 0.15", "rate: 0.2"), "utf-8"
    ),
}


@pytest.mark.parametrize("named", CHANGES)
def test_changed_conditions_are_refused_by_name_and_change_nothing(
    named: str, language: LanguageJobs, tmp_path: Path
) -> None:
    data = Path(shutil.copy(language.text, tmp_path / "text.txt"))
    tree = language.tree(MASKED, data__train=str(data), train__epochs=1)
    broken = language.killed(tree, tmp_path / "broken", "event step", 3)
    CHANGES[named](broken, data)
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file() and path.name != ".reserve"}
    with pytest.raises(RunError, match=re.escape(named)) as refused:
        resume(str(broken))
    assert refused.value.__notes__ == [f"Nothing in {broken} was changed"]
    assert {path: path.read_bytes() for path in before} == before
    resume(str(broken), force=True)
    assert read(broken, "run.json")["state"] == "finished"


@pytest.mark.parametrize(
    ("story", "pattern"),
    [(NER, "open .*scores.json"), (CAUSAL, "half written checkpoint tensors"), (MASKED, "rename .model.new")],
)
def test_a_full_disk_is_one_message_and_a_run_that_goes_on(
    story: str, pattern: str, language: LanguageJobs, tmp_path: Path
) -> None:
    moments = [i for i, tick in enumerate(language.ticks(story), 1) if re.search(pattern, tick)]
    tree = language.tree(story, output__cache=str(tmp_path / "cache"))
    out, said = tmp_path / "run", tmp_path / "said"
    status = language.ask(tree, out, "full disk", moments[len(moments) // 2], said=said)
    told = said.read_text("utf-8")
    assert status == "ended with 2", told
    assert told.count("finesmith: ") == 1, told
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert read(out, "run.json")["state"] == "failed"
    assert {path.name for path in out.rglob(".*")} <= {".lock"}, "nothing half done is left"
    resume(str(out))
    assert_same(language.uninterrupted(story), out)
