"""What the tests of the command line share: a small file, and one finished run that they only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from terminal import finesmith, reviews, write_csv


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache and off the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv of 120 labelled texts."""
    return write_csv(tmp_path_factory.mktemp("data") / "small.csv", reviews())


@pytest.fixture(scope="session")
def tuned(small: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run on `small`."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    said = finesmith("tune", small, "--model", tiny_model, "--out", folder, "--set", "train.epochs=2")
    assert said.status == 0, said.err
    (folder / "said.txt").write_text(f"{said.out}\f{said.err}", "utf-8")
    return folder
