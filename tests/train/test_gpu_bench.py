"""The benchmark of training steps on a GPU runs on a CPU too, and says in one line where it cannot measure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

# peft 0.21 and transformers 5.23 disagree on a name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
PATH = Path(__file__).resolve().parents[2] / "bench" / "gpu_step.py"
NUMBERS = ("tokens_per_second", "peak_mb", "share_of_peak")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_step", PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_same_code_runs_on_a_cpu(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "gpu_step.py --shapes tiny --device cpu --steps 2 --warmup 1 --rows 4"
    monkeypatch.setattr(sys, "argv", line.split())
    bench.main()
    *each, last = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert last["settings"] == each
    assert [(one["method"], one["checkpointing"]) for one in each] == [
        ("full", False), ("full", True), ("lora", False), ("lora", True),
    ]  # fmt: skip
    for one in each:
        assert one["loss_difference"] < 1e-5
        assert one["ratio"] > 0
        assert all(one[name][side] > 0 for name in NUMBERS for side in ("finesmith", "transformers"))
        assert 0 < one["share_of_padding"] < 1
    assert torch.get_default_dtype() == torch.float32


def test_products_are_counted_by_hand(bench: ModuleType) -> None:
    network = bench.make("tiny", "full", "float32", "cpu", False)
    (batch,) = bench.batches(1, 3, 512, 64, "cpu")
    told = int((batch.targets != -100).sum())
    # Queries and outputs, keys and values, the three of the feed-forward part.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    assert bench.operations(network, batch, "full") == 6 * (2 * layer * len(batch.tokens) + 512 * 64 * told)
    assert bench.operations(network, batch, "lora") == 4 * (2 * layer * len(batch.tokens) + 512 * 64 * told)
    assert 0 < told < len(batch.tokens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_without_a_gpu_it_says_so(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_step.py"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == bench.NO_GPU
    assert "\n" not in bench.NO_GPU
