"""AdamW is torch's fused one to the bit, goes on from its saved state, and does without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from finesmith.errors import DivergenceError
from finesmith.train.adamw import AdamW
from finesmith.train.checkpoint import flatten_optimizer, restore_optimizer
from finesmith.train.step import clip_gradients

SHAPES = {"matrix": (7, 5), "vector": (33,), "scalar": (), "empty": (0, 3), "table": (40, 8), "double": (6, 4)}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    found = {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}
    found["double"] = nn.Parameter(found["double"].detach().double())
    return found


def groups(named: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    first, second, third = ["matrix", "double"], ["vector", "scalar", "empty"], ["table"]
    rates = [(first, 1e-2, 0.1), (second, 3e-3, 0.0), (third, 1e-1, 0.01)]
    return [
        {"params": [named[name] for name in names], "lr": rate, "weight_decay": decay, "base_lr": rate}
        for names, rate, decay in rates
    ]


def give(named: dict[str, nn.Parameter], step: int) -> None:
    """Give gradients that depend on the step; some parameters get theirs late, or not at some steps."""
    random = torch.Generator().manual_seed(100 + step)
    for i, (name, parameter) in enumerate(named.items()):
        drawn = torch.randn(parameter.shape, dtype=parameter.dtype, generator=random) * 10.0 ** (i - 3)
        missing = (name == "vector" and step < 4) or (name == "table" and step % 3 == 1)
        parameter.grad = None if missing else drawn
    if step == 9:
        named["matrix"].grad = torch.zeros(SHAPES["matrix"])


def run(optimizer: Any, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        give(named, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * (1 - step / 25) * (step != 11)
        optimizer.step()


def same_bits(one: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> None:
    for name, parameter in one.items():
        assert torch.equal(parameter, other[name]), name


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_twenty_steps_are_those_of_torch_to_the_bit(betas: tuple[float, float], eps: float) -> None:
    mine, theirs = parameters(), parameters()
    own = AdamW(groups(mine), betas=betas, eps=eps)
    reference = torch.optim.AdamW(groups(theirs), betas=betas, eps=eps, fused=True)
    for step in range(20):
        run(own, mine, range(step, step + 1))
        run(reference, theirs, range(step, step + 1))
        same_bits(mine, theirs)
    assert len(own.state) == len(reference.state) == len(SHAPES)
    for name, parameter in mine.items():
        fields, expected = own.state[parameter], reference.state[theirs[name]]
        assert list(fields) == list(expected)
        for field, tensor in expected.items():
            assert torch.equal(fields[field], tensor), (name, field)
            assert fields[field].dtype == tensor.dtype
    assert not torch.equal(mine["matrix"], parameters()["matrix"])


def test_a_parameter_without_a_gradient_has_no_state_and_stays() -> None:
    named = parameters()
    optimizer = AdamW(groups(named))
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    named["vector"].grad = None
    optimizer.step()
    assert named["vector"] not in optimizer.state
    assert torch.equal(named["vector"], parameters()["vector"])
    assert named["matrix"] in optimizer.state
    assert not named["matrix"].grad_fn


def test_nothing_to_do_is_no_error() -> None:
    named = parameters()
    optimizer = AdamW(groups(named))
    optimizer.step()
    assert optimizer.state == {}
    same_bits(named, parameters())
    AdamW([]).step()


def test_gradients_are_forgotten_or_zeroed() -> None:
    named = parameters()
    optimizer = AdamW(groups(named))
    give(named, 5)
    named["table"].grad, kept = None, named["matrix"].grad
    optimizer.zero_grad(set_to_none=False)
    assert named["table"].grad is None
    assert named["matrix"].grad is kept
    assert kept is not None
    assert not kept.any()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in named.values())


@pytest.mark.parametrize("at", [1, 6, 13])
def test_a_restored_state_goes_on_to_the_same_bits(at: int) -> None:
    whole = parameters()
    run(AdamW(groups(whole)), whole, range(20))

    before = parameters()
    optimizer = AdamW(groups(before))
    run(optimizer, before, range(at))
    tensors, state = flatten_optimizer(optimizer, before.items())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    after = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in before.items()}
    resumed = AdamW(groups(after))
    restore_optimizer(resumed, after.items(), tensors, state)
    assert [group["betas"] for group in resumed.param_groups] == [(0.9, 0.999)] * 3
    run(resumed, after, range(at, 20))
    same_bits(after, whole)
    # What was saved is not what is now moved.
    again, _ = flatten_optimizer(optimizer, before.items())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in again.items())


@pytest.mark.parametrize("forth", [True, False])
def test_states_are_those_of_torchs_own_optimiser(forth: bool) -> None:
    whole = parameters()
    run(AdamW(groups(whole)), whole, range(12))

    def make(own: bool, named: dict[str, nn.Parameter]) -> Any:
        return AdamW(groups(named)) if own else torch.optim.AdamW(groups(named), fused=True)

    before = parameters()
    optimizer = make(forth, before)
    run(optimizer, before, range(7))
    tensors, state = flatten_optimizer(optimizer, before.items())
    after = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in before.items()}
    resumed = make(not forth, after)
    restore_optimizer(resumed, after.items(), tensors, state)
    run(resumed, after, range(7, 12))
    same_bits(after, whole)


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e3])
def test_clipping_is_that_of_torch(limit: float) -> None:
    mine, theirs = parameters(), parameters()
    for named in (mine, theirs):
        give(named, 2)
    own = [p for p in mine.values() if p.dtype == torch.float32]
    expected = float(nn.utils.clip_grad_norm_([theirs[n] for n in theirs if n != "double"], limit))
    assert clip_gradients(own, limit) == expected
    for name in mine:
        if name != "double" and mine[name].grad is not None:
            assert torch.equal(mine[name].grad, theirs[name].grad), name  # type: ignore[arg-type]


def test_clipping_nothing_and_what_is_no_number() -> None:
    parameter = nn.Parameter(torch.ones(3))
    assert clip_gradients([parameter], 1.0) == 0.0
    assert clip_gradients([], 1.0) == 0.0
    parameter.grad = torch.tensor([1.0, float("nan"), 0.0])
    with pytest.raises(DivergenceError, match="the gradient's norm is nan"):
        clip_gradients([parameter], 1.0)
    parameter.grad = torch.tensor([3e38, 3e38, 3e38])
    with pytest.raises(DivergenceError, match="the gradient's norm is inf"):
        clip_gradients([parameter], 1.0)
    # Just at the limit nothing is scaled.
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    assert clip_gradients([parameter], 5.0) == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0, 0.0]


STEP = """
import sys, torch
from finesmith.train.adamw import AdamW
from finesmith.train.step import clip_gradients
layer = torch.nn.Linear(3, 2)
optimizer = AdamW([{"params": list(layer.parameters()), "lr": 0.1, "weight_decay": 0.01}])
layer(torch.ones(1, 3)).sum().backward()
clip_gradients(list(layer.parameters()), 1e-3)
optimizer.step()
optimizer.zero_grad()
print([name for name in ("torch._dynamo", "torch._inductor", "transformers", "sympy") if name in sys.modules])
"""


def test_a_step_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"
