"""Bits per byte and perplexity from sums, by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finesmith.evaluate.language_scores import bits_per_byte, perplexity
from finesmith.evaluate.paired import interval


def test_a_uniform_model_has_the_size_of_its_vocabulary_as_perplexity() -> None:
    tokens = np.array([3, 10, 40])
    ours = perplexity(-tokens * math.log(512), tokens)
    assert ours.value == pytest.approx(512)
    assert ours.per_example == pytest.approx([512] * 3)
    assert not ours.higher_is_better


def test_uniform_bytes_cost_eight_bits_whatever_the_tokens() -> None:
    lengths = np.array([5, 100])
    assert bits_per_byte(-lengths * math.log(256), lengths).value == pytest.approx(8.0)


def test_documents_weigh_by_their_length_and_not_alike() -> None:
    sums, tokens = [-1.0, -300.0], [1, 100]
    assert perplexity(sums, tokens).value == pytest.approx(math.exp(301 / 101))
    assert bits_per_byte(sums, [4, 400]).value == pytest.approx(301 / 404 / math.log(2))
    assert perplexity(sums, tokens, metric="pseudo_perplexity").metric == "pseudo_perplexity"


def test_the_interval_is_that_of_a_ratio_of_means() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 400).astype(float)
    sums = -sizes * rng.normal(1.0, 0.2, 400).clip(0.1)
    ours = interval(bits_per_byte(sums, sizes))
    assert ours is not None
    assert ours.low is not None
    assert ours.high is not None
    bits = -sums / math.log(2)
    error = np.sqrt(((bits - ours.value * sizes) ** 2).sum()) / sizes.sum()
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(
    ("sums", "sizes", "named"),
    [
        ([-1.0, 0.5], [1, 1], "document 1"),
        ([-1.0], [0], "document 0"),
        ([float("nan")], [1], "document 0"),
        ([-1.0], [1, 2], "do not fit"),
        ([], [], "do not fit"),
    ],
)
def test_impossible_sums_are_refused(sums: list[float], sizes: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        bits_per_byte(sums, sizes)
