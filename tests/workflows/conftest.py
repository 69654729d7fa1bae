"""What the tests of broken runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking import Jobs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Jobs]:
    found = Jobs(tmp_path_factory.mktemp("jobs"), tiny_model)
    yield found
    found.close()
