"""`finesmith merge` from the command line: what it says, what it refuses, and that nothing half done is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, plan, read, reviews, tuned, write_csv
from safetensors.torch import load_file, save_file

import finesmith
from finesmith.errors import FinesmithError
from finesmith.report.merged_card import merged_card
from finesmith.workflows import merge as room
from finesmith.workflows.apply import load_run
from finesmith.workflows.merge import merge
from terminal import finesmith as command

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)


class Jobs:
    """Runs of one data set."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.base = folder / "base"
        shutil.copytree(model, self.base)
        self.data = write_csv(folder / "reviews.csv", reviews(70))

    def run(self, name: str, method: str, **values: Any) -> Path:
        tree = plan(self.data, self.base, self.folder / "cache", method__name=method, **values)
        return tuned(tree, self.folder / name)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("merge"), tiny_model)


@pytest.fixture(scope="module")
def run(jobs: Jobs) -> Path:
    return jobs.run("run", "lora", train__learning_rate=1e-2)


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "mine"))


def refused(folder: Path, message: str, **more: Any) -> None:
    """Check that a merge is refused in these words and leaves all as it was."""
    before = sorted(str(path) for path in folder.parent.rglob("*"))
    with pytest.raises(FinesmithError, match=message):
        merge(str(folder), **more)
    assert sorted(str(path) for path in folder.parent.rglob("*")) == before


def test_a_run_is_merged_and_says_how_equal(mine: Path, tmp_path: Path) -> None:
    said = command("merge", mine)
    assert said.status == 0, said.err
    assert f"{mine / 'merged'}: lora merged into BertForSequenceClassification, float32" in said.out
    assert "test rows of the run: outputs differ by" in said.out
    again = command("merge", mine)
    assert again.status == 2
    assert "exists; choose another folder" in again.err
    said = command("merge", mine / "model", "--out", tmp_path / "half", "--dtype", "bfloat16", "--json")
    assert said.status == 0, said.err
    told = json.loads(said.out)
    assert told["folder"] == str(tmp_path / "half")
    assert told["dtype"] == "bfloat16"
    assert told["gap"] <= told["tolerance"] == 0.05
    assert told["compared"] == "12 sequences of random tokens, because a model folder holds no rows"
    assert {str(t.dtype) for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {"torch.bfloat16"}
    assert command("predict", tmp_path / "half", mine.parent.parent / "none.csv").status == 2


def test_predict_and_evaluate_take_the_merged_folder(mine: Path, jobs: Jobs, tmp_path: Path) -> None:
    whole = finesmith.merge(mine, out=tmp_path / "merged")
    assert repr(whole) == f"TunedRun({str(tmp_path / 'merged')!r}, finished)"
    for folder in (mine, tmp_path / "merged"):
        assert command("predict", folder, jobs.data, "-o", tmp_path / f"{folder.name}.jsonl", "-q").status == 0
    here, there = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("mine", "merged")
    )
    assert [row["prediction"] for row in here] == [row["prediction"] for row in there]
    assert [row["confidence"] for row in here] == pytest.approx([row["confidence"] for row in there], abs=1e-5)
    said = command("evaluate", tmp_path / "merged", "--data", jobs.data, "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["examples"] == 70
    assert not (tmp_path / "merged" / "evaluations").exists()


@pytest.mark.parametrize("method", ["full", "features", "prompt"])
def test_what_there_is_nothing_to_merge_of_says_so(method: str, jobs: Jobs) -> None:
    solved = dict.fromkeys(("train", "model"))
    tree = plan(jobs.data, jobs.base, jobs.folder / "cache", method__name=method)
    if method == "features":
        tree |= {**solved, "train": {}, "model": {"base": str(jobs.base)}}
    folder = tuned(tree, jobs.folder / method)
    words = "which no plain model can hold" if method == "prompt" else "whole already: use .*model as it is"
    refused(folder, words)
    assert len(load_run(str(folder / "model")).predict(["a film"])["prediction"]) == 1, "and it works by itself"


def test_a_base_of_other_weights_is_refused_by_merge_and_predict(jobs: Jobs, tmp_path: Path) -> None:
    shutil.copytree(jobs.base, tmp_path / "base")
    folder = tuned(plan(jobs.data, tmp_path / "base", jobs.folder / "cache", method__name="dora"), tmp_path / "run")
    path = tmp_path / "base" / "model.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(path).items()}, path, {"format": "pt"})
    refused(folder, r"base is not the model that the adapter in .* was trained on: its weights have SHA-256 ")
    with pytest.raises(FinesmithError, match="bring the earlier weights back, or tune again"):
        load_run(str(folder))
    shutil.rmtree(tmp_path / "base")
    refused(folder, "which is not a folder")


def test_a_damaged_model_and_a_run_without_one_are_refused(mine: Path) -> None:
    path = mine / "model" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    refused(mine, "is not as it was saved")
    refused(mine / "model", "is not as it was saved")
    (mine / "run.json").write_text(json.dumps({**read(mine, "run.json"), "state": "interrupted"}), "utf-8")
    refused(mine, "was interrupted, so it has no model yet")
    refused(mine / "predictions", "is not a run folder")


def test_an_unknown_number_type_is_refused(run: Path) -> None:
    refused(run, "--dtype is 'int8', expected float32, bfloat16 or float16", dtype="int8")


def test_a_merge_that_fails_at_the_end_leaves_nothing(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finesmith.workflows.seal.seal", full)
    refused(mine, "cannot write .*No space left")


def test_a_run_that_keeps_no_texts_is_compared_on_random_tokens(jobs: Jobs) -> None:
    folder = jobs.run("withheld", "pissa", output__redact=True, output__cache="none")
    made = merge(str(folder))
    assert made["compared"] == "12 sequences of random tokens, because the run keeps no texts"
    assert made["gap"] <= 1e-4


def test_random_tokens_are_the_same_ones_and_hold_the_last_words() -> None:
    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    first, second = (room._of_random_tokens(tokenizer, 16) for _ in range(2))
    assert [batch.tokens.tolist() for batch in first] == [batch.tokens.tolist() for batch in second]
    assert [int(batch.lengths[0]) for batch in first] == [3, 8, 16]
    assert all(len(tokenizer) - 1 in batch.tokens for batch in first)
    assert not any(int(token) in tokenizer.all_special_ids for batch in first for token in batch.tokens)


# --- the card --------------------------------------------------------------------------------------------------------

FACTS = {
    "loads_with": "AutoModelForCausalLM", "method": "dora", "dtype": "bfloat16", "gap": 1.5e-3, "moved": 0.25,
    "compared": "9 test rows of the run",
}  # fmt: skip


def test_the_card_tells_another_way_to_load_and_keeps_the_rest(run: Path) -> None:
    before = (run / "model" / "README.md").read_text("utf-8")
    card = merged_card(before, FACTS, name="merged", sentence_transformers=False)
    assert "PeftModel" in before
    assert "PeftModel" not in card
    assert "library_name: transformers\n" in card
    assert "library_name: peft" not in card
    assert 'AutoModelForCausalLM.from_pretrained("path/to/model")' in card
    assert "An adapter (dora) was merged into its base model, in bfloat16. On 9 test rows of the run" in card
    rest = [part for part in before.split("\n## ")[1:] if not part.startswith("How to load it")]
    assert all(part in card for part in rest)
    assert card.count("## How to load it") == 1


@pytest.mark.parametrize("before", ["", "my own words, without headings", "---\ntitle: x\n---\n## Other\ntext\n"])
def test_a_card_that_people_changed_is_kept(before: str) -> None:
    card = merged_card(before, FACTS, name="a_name", sentence_transformers=True)
    assert before.strip() in card
    assert 'SentenceTransformer("path/to/model")' in card
    assert ("# a\\_name" in card) == (not before)
