"""What the attacks share: a place to attack in, a small file, a tiny model, and one finished run to copy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks import Attack

from terminal import finesmith, reviews, write_csv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and links as Linux has them")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests out of the user's cache and off the network."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv of 120 labelled texts."""
    return write_csv(tmp_path_factory.mktemp("data") / "small.csv", reviews())


@pytest.fixture
def attack(tmp_path: Path, cache: Path) -> Attack:
    """Return a place to attack in."""
    return Attack(tmp_path, cache)


@pytest.fixture(scope="session")
def finished(small: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the method full, to be copied and never changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ("--set", "train.epochs=1", "--set", "evaluate.baselines=[majority]")
    said = finesmith("tune", small, "--model", tiny_model, "--out", folder, *words)
    assert said.status == 0, said.err
    return folder


@pytest.fixture(scope="session")
def adapted(small: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the method lora, to be copied and never changed."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    words = ("--set", "method.name=lora", "--set", "train.epochs=1", "--set", "evaluate.baselines=[majority]")
    said = finesmith("tune", small, "--model", tiny_model, "--out", folder, *words)
    assert said.status == 0, said.err
    return folder


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the tiny model to where it can be spoilt."""

    def copy() -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / "model"))

    return copy
