"""A part of the gauntlet: every fault once, and some clean runs; bench/gauntlet.py runs them all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
PEFT_WARNING = "ignore:.*(is_gradient_checkpointing|have invalid shape)"
pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")]
# Of the clean runs, those that are likeliest to be stopped by mistake.
CLEAN = (
    "LoRA at a tiny rate",
    "the head first",
    "soft labels",
    "words added",
    "sentences of two words",
    "short pieces that overlap",
    "ShareGPT with tools",
    "shortened, loss on all",
    "some dropped as too long",
    "kto, lora",
    "labelled, lora, batches of 4",
    "ia3 at 1e-2",
    "two sources, 5 to 1",
)
# Faults of written answers that no probe but one sees.
WRITTEN = ("most rows dropped, loss on all", "answers: weight 0", "a template without one")


@pytest.fixture(scope="module")
def gauntlet() -> Iterator[ModuleType]:
    before, path = set(sys.modules), list(sys.path)
    spec = importlib.util.spec_from_file_location("gauntlet", BENCH / "gauntlet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gauntlet"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    for name in {"gauntlet", "gauntlet_faults", "gauntlet_chat", "gauntlet_written"} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def world(gauntlet: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = gauntlet.World(tmp_path_factory.mktemp("gauntlet"))
    gauntlet.clean_cases(found)
    return found


def faults() -> list[str]:
    """Return the names of the faults as the file gives them, without importing it."""
    import re

    text = "".join((BENCH / f"gauntlet_{name}.py").read_text("utf-8") for name in ("faults", "chat"))
    calls = re.findall(r'(?:put|file_fault|plan_fault)\(\s*"([^"]+)"', text)
    return sorted({*calls, "asked otherwise than trained", "resumed otherwise"})


@pytest.mark.parametrize("fault", faults())
def test_every_fault_is_caught(fault: str, gauntlet: ModuleType, world: Any) -> None:
    import gauntlet_faults

    cases = [case for case in gauntlet_faults.FAULTS if case.fault == fault]
    # Another variant for each fault, so that all kinds of them come up.
    case = cases[len(fault) % len(cases)]
    found = gauntlet.run([case], world)
    assert found[0], f"{case.task}: {case.variant}"


@pytest.mark.parametrize("variant", WRITTEN)
def test_a_fault_of_instructions_is_caught(variant: str, gauntlet: ModuleType, world: Any) -> None:
    import gauntlet_faults

    case = next(case for case in gauntlet_faults.FAULTS if case.variant == f"written: {variant}")
    assert gauntlet.run([case], world)[0]


@pytest.mark.parametrize("variant", CLEAN)
def test_a_clean_run_is_not_stopped(variant: str, gauntlet: ModuleType, world: Any) -> None:
    case = next(case for case in gauntlet.clean_cases(world) if case.variant == variant)
    assert gauntlet.run([case], world) == {0: ""}


def test_the_gauntlet_is_long_enough(gauntlet: ModuleType) -> None:
    import gauntlet_faults

    assert len(gauntlet.CLEAN) >= 30
    names = {case.fault for case in gauntlet_faults.FAULTS}
    assert set(faults()) <= names
    for name in names:
        cases = [case for case in gauntlet_faults.FAULTS if case.fault == name]
        assert len({case.variant for case in cases}) >= 3, name
