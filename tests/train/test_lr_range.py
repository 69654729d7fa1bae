"""The learning-rate range test: leaves no trace, and suggests a rate that trains."""

from __future__ import annotations

import pytest
import torch

from finesmith.errors import DivergenceError
from finesmith.train import loop, lr_range, optimiser
from finesmith.train.adamw import AdamW
from finesmith.types import Batch

WIDTH = 12


class Toy(torch.nn.Module):
    """A two-layer network on one token's vector, with a norm that keeps running figures (a buffer)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = torch.nn.Embedding(200, WIDTH)
        self.vectors.weight.requires_grad_(False)
        self.inner, self.norm = torch.nn.Linear(WIDTH, 32), torch.nn.BatchNorm1d(32)
        self.drop, self.outer = torch.nn.Dropout(0.1), torch.nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.outer(self.drop(self.norm(self.inner(self.vectors(tokens))).relu()))


def pieces(learning_rate: float = 1e-3) -> tuple[Toy, object, torch.optim.Optimizer, loop.Plan]:
    module = Toy()
    truth = (module.vectors.weight.detach()[:, :3].sum(1) > 0).long()

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        found = torch.nn.functional.cross_entropy(module(batch.tokens), batch.targets, reduction="sum")
        return found, len(batch.lengths)

    def make(step: int) -> tuple[list[Batch], int]:
        chosen = torch.randperm(200, generator=torch.Generator().manual_seed(step))[:32]
        return [Batch(chosen, torch.ones(32, dtype=torch.long), None, truth[chosen], chosen)], 32

    optimizer = AdamW(optimiser.parameter_groups(module, learning_rate=learning_rate, weight_decay=0.01))
    return module, loss_sum, optimizer, loop.Plan(40, 7, make, 1.0, 0)


def test_weights_and_buffers_are_put_back_to_the_bit() -> None:
    module, loss_sum, optimizer, plan = pieces()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = lr_range.range_test(module, loss_sum, optimizer, plan, steps=20)  # type: ignore[arg-type]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in module.parameters())
    assert len(found.learning_rates) == len(found.losses) <= 20
    ratios = [b / a for a, b in zip(found.learning_rates, found.learning_rates[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert found.learning_rates[0] == pytest.approx(1e-6)


def test_the_suggestion_trains_better_than_rates_far_from_it() -> None:
    module, loss_sum, optimizer, plan = pieces()
    suggestion = lr_range.range_test(module, loss_sum, optimizer, plan).suggestion  # type: ignore[arg-type]

    def final(rate: float) -> float:
        fresh, loss, optimizer, plan = pieces(rate)
        steps = list(loop.train(fresh, loss, optimizer, optimiser.Schedule("linear", 40, 4), plan))  # type: ignore[arg-type]
        return sum(s.loss for s in steps[-5:]) / 5

    assert 1e-4 <= suggestion <= 5e-2
    assert final(suggestion) < 0.7 * final(suggestion / 300)
    assert final(suggestion) < 0.35


def test_the_same_suggestion_whatever_the_rate_it_started_from() -> None:
    found = []
    for rate in (1e-5, 1e-2):
        module, loss_sum, optimizer, plan = pieces(rate)
        found.append(lr_range.range_test(module, loss_sum, optimizer, plan, steps=30))  # type: ignore[arg-type]
    assert found[0].suggestion == found[1].suggestion
    assert found[0].losses == pytest.approx(found[1].losses)


def test_divergence_ends_the_test_and_the_weights_come_back() -> None:
    module, loss_sum, optimizer, plan = pieces()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    calls = 0

    def breaking(batch: Batch) -> tuple[torch.Tensor, int]:
        nonlocal calls
        calls += 1
        loss, count = loss_sum(batch)  # type: ignore[operator]
        return (loss * float("nan") if calls > 10 else loss), count

    found = lr_range.range_test(module, breaking, optimizer, plan, steps=40)
    assert len(found.losses) == 10
    assert found.suggestion <= found.learning_rates[-1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_loss_that_is_never_finite_is_told() -> None:
    module, loss_sum, optimizer, plan = pieces()

    def broken(batch: Batch) -> tuple[torch.Tensor, int]:
        loss, count = loss_sum(batch)  # type: ignore[operator]
        return loss * float("inf"), count

    with pytest.raises(DivergenceError, match="not finite at its first rate, 1e-06"):
        lr_range.range_test(module, broken, optimizer, plan)
