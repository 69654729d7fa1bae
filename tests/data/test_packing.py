"""Rows laid end to end, each with its targets."""

from __future__ import annotations

import numpy as np
import pytest

from finesmith.data.packing import ragged
from finesmith.data.supervised import Supervised


def test_rows_lie_end_to_end_with_their_targets() -> None:
    tokens = np.arange(10, dtype=np.int32)
    targets = np.where(tokens % 2 == 0, tokens + 1, -100).astype(np.int32)
    rows = Supervised(tokens, np.array([0, 3, 5, 10]), targets)
    assert len(rows) == 3
    assert rows.lengths().tolist() == [3, 2, 5]
    with pytest.raises(IndexError, match="row 3 of 3"):
        rows.row(3)
    batch = ragged(rows, np.array([1, 2]), ids=np.array([70, 80, 90]))
    assert batch.tokens.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert batch.lengths.tolist() == [2, 5]
    assert batch.ids.tolist() == [80, 90]
    assert batch.targets is not None
    assert batch.targets.tolist() == [*rows.row(1)[1].tolist(), *rows.row(2)[1].tolist()]
    assert str(batch.targets.dtype) == str(batch.tokens.dtype) == "torch.int64"
    assert batch.segments is None
