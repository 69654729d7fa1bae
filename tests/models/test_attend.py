"""Attention and dropout of our own on a CPU, against plain formulas and torch's own differentiation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from finesmith.models.attend import Rule, attend
from finesmith.models.attention import Group, layout_of
from finesmith.models.dropout import CpuDropout, keep_mask, quicken_dropout

LENGTHS = torch.tensor([1, 3, 3, 7, 12])
HEADS, WIDTH = 3, 4


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, keep: Any) -> torch.Tensor:
    """Attend one sequence and one head at a time; `keep` yields the mask of each group, [H, n, queries, length]."""
    out, row = [], 0
    for (first, count, length), mask in zip(rule.groups, keep, strict=True):
        for one in range(count):
            tokens = slice(first + one * length, first + (one + 1) * length)
            queries = 1 if rule.single else length
            heads = []
            for head in range(HEADS):
                scores = query[head, row : row + queries] @ key[head, tokens].T * rule.scaling
                for i in range(queries):
                    for j in range(length):
                        hidden = rule.causal and j > i
                        hidden |= rule.window is not None and abs(i - j) >= rule.window
                        if hidden and not rule.single:
                            scores[i, j] = -math.inf
                heads.append(scores.softmax(-1) * mask[head, one] @ value[head, tokens])
            out.append(torch.stack(heads))
            row += queries
    return torch.cat(out, 1)


def masks(groups: tuple[Group, ...], single: bool, dropout: float) -> Iterator[torch.Tensor]:
    """Draw the masks that `attend` draws when torch is seeded alike, already scaled."""
    shapes = [(HEADS, count, 1 if single else length, length) for _, count, length in groups]
    sizes = [math.prod(shape) for shape in shapes]
    if not dropout:
        yield from (torch.ones(shape, dtype=torch.float64) for shape in shapes)
        return
    keep, factor = keep_mask([sum(sizes)], dropout)
    for part, shape in zip(keep.split(sizes), shapes, strict=True):
        yield part.view(shape).double() * factor


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("causal", "window", "single"),
    [(False, None, False), (True, None, False), (False, 3, False), (True, 3, False), (False, None, True)],
)
def test_attention_and_its_gradients_equal_the_naive_loop(
    causal: bool, window: int | None, single: bool, dropout: float
) -> None:
    layout = layout_of(LENGTHS)
    rule = Rule(layout.groups, WIDTH**-0.5, dropout, causal, window, single)
    rows = len(LENGTHS) if single else int(LENGTHS.sum())
    torch.manual_seed(0)
    inputs = [
        torch.randn(HEADS, count, WIDTH, dtype=torch.float64, requires_grad=True)
        for count in (rows, int(LENGTHS.sum()), int(LENGTHS.sum()))
    ]
    weight = torch.randn(HEADS, rows, WIDTH, dtype=torch.float64)

    torch.manual_seed(1)
    found = attend(inputs[0], inputs[1], inputs[2], rule)
    torch.manual_seed(1)
    expected = naive(inputs[0], inputs[1], inputs[2], rule, masks(layout.groups, single, dropout))

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.999, 1e-5])
def test_the_mask_keeps_its_share_and_its_mean(dropout: float) -> None:
    torch.manual_seed(0)
    count = 1_000_003
    keep, factor = keep_mask([count], dropout)
    share = 1 - float(keep.double().mean())
    assert share == pytest.approx(dropout, abs=5 * math.sqrt(dropout * (1 - dropout) / count) + 1 / 131072)
    kept = 1 - round(dropout * 65536) / 65536
    assert factor == pytest.approx(1 / kept), "what is kept is scaled by the share that is kept indeed"


def test_the_mask_follows_from_torch_seed_alone() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([keep_mask([50, 3], 0.5)[0], keep_mask([50, 3], 0.5)[0]])

    np.random.seed(1)
    first = draw(7)
    np.random.seed(2)
    assert torch.equal(first, draw(7))
    assert not torch.equal(first, draw(8))
    assert not torch.equal(first[:50], first[50:]), "each call draws anew"


def test_neighbouring_bits_do_not_agree_more_than_by_chance() -> None:
    torch.manual_seed(3)
    keep = keep_mask([400_000], 0.5)[0].double()
    for lag in (1, 2, 3, 4, 64):
        together = float((keep[lag:] * keep[:-lag]).mean())
        assert together == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / 400_000)), lag


def test_dropout_forwards_and_backwards() -> None:
    module = CpuDropout(0.25)
    x = torch.randn(200, 30, dtype=torch.float64, requires_grad=True)
    out = module(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert set(gradient.unique().tolist()) == {0.0, 1 / 0.75}
    torch.testing.assert_close(out, x * gradient)
    module.eval()
    assert module(x) is x
    assert torch.equal(CpuDropout(1.0)(x), torch.zeros_like(x))
    assert CpuDropout(0.0)(x) is x


def test_every_dropout_of_a_model_is_replaced_in_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0)))
    model[1].eval()
    names = list(model.state_dict())
    assert quicken_dropout(model) == 2
    assert [type(m) for m in (model[0], model[1][1])] == [CpuDropout, CpuDropout]
    assert (model[0].p, model[0].training, model[1][1].training) == (0.2, True, False)
    assert list(model.state_dict()) == names
    assert quicken_dropout(model) == 0


@pytest.mark.parametrize("kind", ["bert", "llama", "qwen3"])
def test_gradients_under_bfloat16_autocast_are_those_of_float32_roughly(kind: str) -> None:
    from test_families import LENGTHS as SIZES
    from test_families import build, make

    from finesmith.models import forward

    network, _ = build(kind)
    network.module.float()
    gradients = []
    for low in (False, True):
        network.module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = forward.logits(network, make(SIZES))
        logits.float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.module.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05
