"""What the tests of broken runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking import Jobs
from language_breaking import LanguageJobs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Jobs]:
    found = Jobs(tmp_path_factory.mktemp("jobs"), tiny_model)
    yield found
    found.close()


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LanguageJobs]:
    found = LanguageJobs(tmp_path_factory.mktemp("language"), tiny_model)
    yield found
    found.close()
