"""What keeps `check` short: probes bounded by tokens, and a forecast that counts them."""

from __future__ import annotations

import numpy as np
import pytest

from finesmith.workflows.preflight import within


@pytest.mark.parametrize(
    ("lengths", "tokens", "fewest", "expected"),
    [([10] * 16, 512, 2, 16), ([64] * 16, 512, 2, 8), ([512] * 16, 512, 2, 2), ([600], 512, 2, 2), ([5, 5], 9, 1, 1)],
)
def test_as_many_sequences_as_the_tokens_allow(lengths: list[int], tokens: int, fewest: int, expected: int) -> None:
    assert within(np.array(lengths), tokens, fewest) == expected
