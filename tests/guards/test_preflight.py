"""Every probe passes on a good model and stops on the fault it is there for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finesmith.guards import preflight
from finesmith.models import forward
from finesmith.models.adapter_kinds import add_adapter
from finesmith.models.forward import Network
from finesmith.models.layers import freeze_lowest
from finesmith.models.load import find, load_classifier, load_tokenizer
from finesmith.train.adamw import AdamW
from finesmith.train.memory import estimate, shape_of
from finesmith.train.optimiser import parameter_groups
from finesmith.types import Batch

LABELS = ("bad", "good", "so so")


@pytest.fixture
def network(tiny_model: Path) -> Network:
    base = find(str(tiny_model))
    found, _ = load_classifier(
        base, load_tokenizer(base), outputs=3, problem="single_label_classification", labels=LABELS, seed=0
    )
    return found


def batch(ids: tuple[int, ...] = (7, 8)) -> Batch:
    tokens = torch.tensor([2, 60, 61, 3, 2, 62, 63, 64, 65, 3])
    return Batch(tokens, torch.tensor([4, 6]), None, torch.tensor([0, 2]), torch.tensor(ids))


def loss_of(network: Network) -> Any:
    def loss_sum(part: Batch) -> tuple[torch.Tensor, int]:
        found = torch.nn.functional.cross_entropy(forward.logits(network, part), part.targets, reduction="sum")
        return found, len(part.lengths)

    return loss_sum


def optimizer_of(network: Network) -> Any:
    return lambda: AdamW(parameter_groups(network.module, learning_rate=1e-3, weight_decay=0.01))


def test_finite_loss_passes_and_leaves_no_gradients(network: Network) -> None:
    found = preflight.finite_on_longest(network.module, loss_of(network), [batch()])
    assert found.passed
    assert "finite gradients on 2 sequences of up to 6 tokens" in found.evidence
    assert all(p.grad is None for p in network.module.parameters())


def test_weights_that_are_no_numbers_are_found(network: Network) -> None:
    with torch.no_grad():
        network.classifier.get_input_embeddings().weight[60] = float("nan")
    found = preflight.finite_on_longest(network.module, loss_of(network), [batch()])
    assert not found.passed
    assert "[7, 8]" in found.evidence
    assert found.line().startswith("STOP  finite loss")
    assert all(p.grad is None for p in network.module.parameters())


def test_a_gradient_that_is_no_number_is_found(network: Network) -> None:
    plain = loss_of(network)

    def steep(part: Batch) -> tuple[torch.Tensor, int]:
        loss, count = plain(part)
        return loss + (forward.logits(network, part) * 0).sum().sqrt(), count

    found = preflight.finite_on_longest(network.module, steep, [batch()])
    assert not found.passed
    assert "NON-FINITE gradients" in found.evidence


@pytest.mark.parametrize(
    ("loss", "new", "passed"),
    [(1.15, True, True), (9.0, True, False), (float("nan"), True, False), (9.0, False, True), (0.01, True, True)],
)
def test_an_absurd_initial_loss_is_found(loss: float, new: bool, passed: bool) -> None:
    found = preflight.initial_loss(loss, math.log(3), head_is_new=new)
    assert found.passed == passed
    assert ("STOP" in found.line()) != passed


@pytest.mark.parametrize("method", ["full", "lora", "frozen", "head alone"])
def test_everything_trainable_moves_and_the_trial_is_undone(method: str, network: Network) -> None:
    if method == "lora":
        add_adapter(network, "lora", {"r": 2}, seed=0)
    if method == "frozen":
        freeze_lowest(network.classifier, 1)
    if method == "head alone":
        network.classifier.base_model.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    found = preflight.every_tensor_learns(network.module, loss_of(network), [batch()], optimizer_of(network))
    assert found.passed, found.evidence
    assert "moved in a trial step (undone)" in found.evidence
    for name, parameter in network.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_a_tensor_without_gradient_is_found(network: Network) -> None:
    network.module.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    found = preflight.every_tensor_learns(network.module, loss_of(network), [batch()], optimizer_of(network))
    assert not found.passed
    assert "at rest: idle" in found.evidence


def test_a_frozen_tensor_that_moves_is_found(network: Network) -> None:
    freeze_lowest(network.classifier, 1)
    name, frozen = next((n, p) for n, p in network.module.named_parameters() if not p.requires_grad)

    class Careless(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            with torch.no_grad():
                frozen.add_(0.01)

    before = frozen.detach().clone()
    found = preflight.every_tensor_learns(
        network.module, loss_of(network), [batch()],
        lambda: Careless([p for p in network.module.parameters() if p.requires_grad], lr=0.1),
    )  # fmt: skip
    assert not found.passed
    assert f"frozen but moved: {name}" in found.evidence
    assert torch.equal(frozen, before)


def test_nothing_trainable_is_found(network: Network) -> None:
    network.module.requires_grad_(False)
    network.module.register_parameter("alone", torch.nn.Parameter(torch.zeros(1)))

    def detached(part: Batch) -> tuple[torch.Tensor, int]:
        return forward.logits(network, part).sum() + 0 * dict(network.module.named_parameters())["alone"].sum(), 2

    found = preflight.every_tensor_learns(network.module, detached, [batch()], optimizer_of(network))
    assert not found.passed


@pytest.mark.parametrize(("rate", "passed"), [(1e-4, True), (1e-5, True), (1e-3, True), (1.0, False), (1e-9, False)])
def test_a_learning_rate_out_of_range_is_found(rate: float, passed: bool) -> None:
    found = preflight.learning_rate_in_range(rate, 1e-4, "full")
    assert found.passed == passed
    assert passed or "--set train.learning_rate=0.0001" in found.line()


@pytest.mark.parametrize(("free", "passed"), [(2**40, True), (2**20, False)])
def test_a_forecast_beyond_memory_is_found(free: int, passed: bool, network: Network) -> None:
    shape = shape_of(network.classifier.config, parameters=10_000, trainable=10_000)
    forecast = estimate(shape, [64] * 8, free=free, dtype="float32").as_json()
    found = preflight.memory_fits(forecast, 8, 32)
    assert found.passed == passed
    assert "for 8 of 32 sequences at a time" in found.evidence


def test_permuted_labels_are_found(network: Network) -> None:
    good: dict[int, str] = dict(network.classifier.config.id2label)
    assert preflight.label_order(LABELS, good).passed
    assert preflight.label_order(None, {0: "LABEL_0"}).passed
    permuted = preflight.label_order(LABELS, {0: "good", 1: "bad", 2: "so so"})
    assert not permuted.passed
    assert "NOT as in the data" in permuted.evidence
    assert not preflight.label_order(LABELS, {0: "bad", 1: "good"}).passed
