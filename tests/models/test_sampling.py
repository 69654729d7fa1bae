from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finesmith.models import sampling
from finesmith.models.sampling import Warp, drawn, greatest, gumbel, keys, penalised, tolerance


def warped(scores: torch.Tensor, warp: Warp) -> torch.Tensor:
    """The distribution that transformers draws from."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(float(warp.temperature))(None, scores)
    if warp.top_k is not None:
        scores = TopKLogitsWarper(warp.top_k)(None, scores)
    if warp.top_p is not None:
        scores = TopPLogitsWarper(warp.top_p)(None, scores)
    return scores.softmax(-1)


WARPS = [Warp(), Warp(0.5), Warp(1.7, 5), Warp(1.0, None, 0.6), Warp(1.3, 9, 0.8), Warp(1.0, None, 1e-9), Warp(1, 99)]


@pytest.mark.parametrize("warp", WARPS)
def test_draws_follow_the_distribution_that_transformers_draws_from(warp: Warp) -> None:
    torch.manual_seed(1)
    scores = 2 * torch.randn(1, 20, dtype=torch.float64)
    count = 20_000
    ids = torch.arange(count)
    tokens, sure = drawn(scores.expand(count, -1), keys(9, ids, ids * 0), warp)
    expected = warped(scores, warp)[0] * count
    found = torch.bincount(tokens, minlength=20)
    assert not bool(found[expected == 0].any())
    kept = expected > 0
    if int(kept.sum()) > 1:
        assert stats.chisquare(found[kept].numpy(), expected[kept].numpy()).pvalue > 1e-3
    assert float(sure.double().mean()) > 0.98


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3.0),
    top_k=st.none() | st.integers(1, 30),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_the_tokens_kept_are_those_of_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    warp = Warp(temperature, top_k, top_p)
    scores = 3 * torch.randn(4, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slack = torch.full((4, 1), 1e-9, dtype=torch.float64)
    kept, certain, possible = sampling._kept(scores / temperature, slack, warp)
    assert torch.equal(kept, warped(scores, warp) > 0)
    assert torch.equal(kept & certain, certain & possible)
    assert not bool((certain & ~kept).any() | (kept & ~possible).any())


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), warp=st.sampled_from(WARPS), ties=st.booleans())
def test_a_sure_draw_stands_whatever_rounding_does(seed: int, warp: Warp, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(200, 24, generator=generator)
    if ties:
        scores[:, 12:] = scores[:, :12]
    # Half the tolerance each way, which is what two batches may differ by.
    noise = (torch.rand(scores.shape, generator=generator) - 0.5) * tolerance(scores) * 0.999
    made = keys(seed, torch.arange(200), torch.zeros(200, dtype=torch.long))
    for choose in (lambda s: drawn(s, made, warp), greatest):
        first, sure = choose(scores)
        second, _ = choose(scores + noise)
        assert torch.equal(first[sure], second[sure])


def test_equal_scores_are_never_sure_and_the_smallest_id_wins() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0], [1.0, 3.0, 2.9, 0.0]])
    tokens, sure = greatest(scores)
    assert tokens.tolist() == [1, 1]
    assert sure.tolist() == [False, True]


def test_narrow_number_types_have_no_tolerance() -> None:
    assert tolerance(torch.ones(2, 3, dtype=torch.bfloat16)).tolist() == [[0.0], [0.0]]
    assert float(tolerance(torch.tensor([[2.0, -4.0, -math.inf]]))) == pytest.approx(4 * 512 * 2**-23)


def test_noise_is_gumbel_and_hangs_on_every_part_of_its_key() -> None:
    ids = torch.arange(300)
    noise = gumbel(keys(1, ids, ids * 0), 200)
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert len(noise.unique()) == noise.numel()
    for other in (keys(2, ids, ids * 0), keys(1, ids + 300, ids * 0), keys(1, ids, ids * 0 + 1), keys(-1, ids, ids)):
        assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), gumbel(other, 200).flatten()]))[0, 1])) < 0.02
    # Neighbouring prompts at swapped positions share nothing.
    assert not torch.equal(keys(0, torch.tensor([1]), torch.tensor([2])), keys(0, torch.tensor([2]), torch.tensor([1])))
    assert bool(noise.isfinite().all())
    assert torch.equal(gumbel(keys(1, ids, ids * 0), 50), noise[:, :50])


def splitmix(state: int) -> int:
    """The finaliser of splitmix64 on plain integers."""
    full = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & full
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & full
    return state ^ (state >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_mixing_is_that_of_splitmix(value: int) -> None:
    found = int(sampling._mixed(torch.tensor([value]))) & ((1 << 64) - 1)
    assert found == splitmix(value & ((1 << 64) - 1))


def test_the_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    scores, ids = torch.randn(3, 10), torch.tensor([[1, 2, 2], [9, 0, 4], [5, 5, 5]])
    seen = torch.zeros(3, 10, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone())
    assert torch.equal(penalised(scores, seen, 1.3), expected)
