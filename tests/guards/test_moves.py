"""After the first step: what is trainable moved, what is frozen did not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from finesmith.guards.moves import Watch, checksum, may_rest
from finesmith.guards.preflight import Probed
from finesmith.train.adamw import AdamW


class Small(nn.Module):
    """Two layers, the first of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.body.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def again() -> Probed:
    return Probed("every tensor learns", False, "looked again")


def stepped(
    module: nn.Module,
    rate: float = 1e-3,
    before: Callable[[], object] = lambda: None,
    params: list[nn.Parameter] | None = None,
) -> Probed:
    """Take a step and probe it; `before` happens between gradient and step."""
    watch = Watch(module)
    chosen = [p for p in module.parameters() if p.requires_grad] if params is None else params
    optimizer = AdamW([{"params": chosen, "lr": rate, "weight_decay": 0.1}])
    module(torch.ones(3, 4)).square().sum().backward()
    before()
    optimizer.step()
    return watch.probed(optimizer, again)


def test_a_good_step_passes() -> None:
    found = stepped(Small())
    assert found.passed
    assert found.evidence == "2 of 2 trainable tensors moved in the first step"


def test_a_step_too_small_for_float32_to_show_passes() -> None:
    assert stepped(Small(), 1e-12).passed


def test_a_frozen_tensor_that_moves_is_found() -> None:
    module = Small()

    def touch() -> None:
        with torch.no_grad():
            module.body.bias[1] += 1e-6

    found = stepped(module, before=touch)
    assert not found.passed
    assert "frozen but moved: body.bias" in found.evidence


def test_a_tensor_that_the_optimiser_does_not_know_is_found() -> None:
    module = Small()
    found = stepped(module, params=[module.head.weight])
    assert not found.passed
    assert "not in the optimiser: head.bias" in found.evidence


def test_a_copy_in_the_optimiser_is_found() -> None:
    module = Small()
    copies = [nn.Parameter(p.detach().clone()) for p in module.head.parameters()]
    assert not stepped(module, params=copies).passed


@pytest.mark.parametrize("how", ["none", "zero", "undone"])
def test_a_tensor_at_rest_is_looked_at_again(how: str) -> None:
    module = Small()

    def rest() -> None:
        if how == "none":
            module.head.bias.grad = None
        elif how == "zero":
            assert module.head.bias.grad is not None
            module.head.bias.grad.zero_()

    if how == "undone":
        watch = Watch(module)
        optimizer = AdamW([{"params": list(module.head.parameters()), "lr": 1e-3, "weight_decay": 0.0}])
        kept = module.head.weight.detach().clone()
        module(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            module.head.weight.copy_(kept)
        assert watch.probed(optimizer, again).evidence == "looked again"
    else:
        assert stepped(module, before=rest).evidence == "looked again"


def test_the_first_factor_of_lora_may_wait() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lora_B(self.lora_A(x)) + x  # type: ignore[no-any-return]

    assert stepped(Adapted()).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_one_number_changes_the_checksum(dtype: torch.dtype) -> None:
    for shape in [(), (1,), (7,), (3, 5), (2, 4, 8)]:
        tensor = torch.arange(1, 1 + int(torch.tensor(shape).prod())).reshape(shape).to(dtype)
        other = tensor.clone()
        other.view(-1)[-1] += 1
        assert checksum(tensor) == checksum(tensor.clone())
        assert checksum(tensor) != checksum(other)
    base = torch.arange(24.0).reshape(4, 6)
    assert checksum(base.t()) == checksum(base.t().contiguous())
    assert checksum(base[1:, 1:]) == checksum(base[1:, 1:].contiguous())


@pytest.mark.parametrize(
    ("name", "rests"),
    [
        ("bert.embeddings.position_embeddings.weight", True), ("model.layers.0.mlp.experts.3.up_proj.weight", True),
        ("encoder.layer.0.attention.self.key.bias", True), ("encoder.layer.0.attention.self.query.bias", False),
        ("transformer.mask_emb", True), ("classifier.weight", False),
    ],
)  # fmt: skip
def test_what_may_rest(name: str, rests: bool) -> None:
    assert may_rest(name) == rests
