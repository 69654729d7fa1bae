"""train.activation_checkpointing and train.compile: the same results, told in the run folder, refused in words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, differences, events, plan, read, reviews, tuned, with_values, write_csv
from language_jobs import conversations, language_plan, write_rows

from finesmith.errors import ModelError, UserError
from finesmith.models import blocks
from tiny import write_tiny_llama

COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
# torch's compiler imports modules of torch's own that are to be given up, and looks at what it then warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute:UserWarning"
)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_layers_computed_again_end_with_the_same_weights(method: str, tmp_path: Path, tiny_model: Path) -> None:
    data = write_csv(tmp_path / "reviews.csv", reviews(60))
    tree = plan(data, tiny_model, "none", method__name=method, train__learning_rate=1e-2)
    plain = tuned(tree, tmp_path / "plain")
    again = tuned(with_values(tree, {"train.activation_checkpointing": True}), tmp_path / "again")
    assert read(again, "model.json")["activation_checkpointing"] is True
    assert read(again, "model.json")["memory"]["activations"] < read(plain, "model.json")["memory"]["activations"]
    # The forecast of memory is another; nothing that was learnt is.
    assert set(differences(plain, again)) <= {"model.json", "probes.json"}


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_a_compiled_run_has_the_same_losses(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(60))
    base = write_tiny_llama(tmp_path / "llama")
    tree = language_plan(
        "instruct", rows, base, "none", train__epochs=1, train__learning_rate=1e-3, evaluate__baselines=["nearest"],
        evaluate__generated_rows=4, generation__max_new_tokens=4, data__prompt="prompt", data__completion="response",
    )  # fmt: skip
    plain = tuned(tree, tmp_path / "plain")
    again = {"train.compile": True, "train.activation_checkpointing": True}
    quick = tuned(with_values(tree, again), tmp_path / "compiled")
    assert (read(plain, "model.json")["compiled"], read(quick, "model.json")["compiled"]) == (False, True)
    told = read(quick, "run.json")["fingerprint"]
    assert told["recipe train.compile"] == told["recipe train.activation_checkpointing"] == "true"
    losses: list[list[Any]] = [[step["loss"] for step in events(run, "step")] for run in (plain, quick)]
    assert len(losses[0]) >= 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    found = [read(run, "scores.json") for run in (plain, quick)]
    assert found[0].keys() == found[1].keys()


def test_without_a_compiler_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"train\.compile is true, but no C\+\+ compiler is there"):
        blocks._require_compiler()


def test_a_block_that_cannot_be_compiled_is_told_in_words() -> None:
    import torch
    from torch._dynamo.exc import Unsupported

    def fails(*_: Any) -> None:
        raise Unsupported("no such thing\nand more")

    block = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="torch could not compile a Linear: no such thing; leave"):
        blocks._compiled(block.forward, fails, block, torch.ones(2))
    block.eval()
    assert blocks._compiled(block.forward, fails, block, torch.ones(2)).shape == (2,)
    block.train()
    with torch.no_grad():
        assert blocks._compiled(block.forward, fails, block, torch.ones(2)).shape == (2,)
