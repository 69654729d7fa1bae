"""Decay where it belongs, rates by layer, schedules against closed forms, and AdamW against its formula."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from finesmith.models.layers import depths
from finesmith.train.adamw import AdamW
from finesmith.train.optimiser import Schedule, layer_scales, parameter_groups, set_rate

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


def build(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SIZES))


def test_decay_by_name() -> None:
    model = build("bert")
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, learning_rate=0.01, weight_decay=0.1)
    decayed = {names[id(p)] for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    rest = {names[id(p)] for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert len(groups) == 2
    assert decayed | rest == set(names.values())
    assert not decayed & rest
    expected = {n for n in names.values() if n.endswith("weight") and "LayerNorm" not in n and "embeddings" not in n}
    assert decayed == expected
    assert "classifier.weight" in decayed
    assert {"classifier.bias", "bert.embeddings.word_embeddings.weight"} <= rest


@pytest.mark.parametrize("kind", ["gpt2", "llama", "modernbert", "deberta-v2", "distilbert"])
def test_norms_biases_and_embeddings_are_spared_in_every_family(kind: str) -> None:
    model = build(kind)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(model, learning_rate=0.01, weight_decay=0.1):
        for parameter in group["params"]:
            name = names[id(parameter)]
            spared = parameter.ndim < 2 or any(part in name for part in ("embed", "wte", "wpe"))
            assert group["weight_decay"] == (0.0 if spared else 0.1), name


def test_frozen_parameters_are_in_no_group_and_order_is_fixed() -> None:
    model = build("bert")
    model.bert.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=0.01, weight_decay=0.1)
    assert sum(len(g["params"]) for g in groups) == 2
    again = parameter_groups(model, learning_rate=0.01, weight_decay=0.1)
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in g["params"]] for g in again]


def test_rates_fall_by_depth() -> None:
    model = build("bert")
    scales = layer_scales(depths(model), 0.5)
    assert scales["classifier.weight"] == 1.0
    assert scales["bert.pooler.dense.weight"] == 1.0
    assert scales["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert scales["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert scales["bert.embeddings.word_embeddings.weight"] == 0.125
    assert set(layer_scales(depths(model), 1.0).values()) == {1.0}
    groups = parameter_groups(model, learning_rate=0.08, weight_decay=0.1, scales=scales)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["base_lr"] == pytest.approx(0.08 * scales[names[id(parameter)]])
    optimizer = AdamW(groups)
    assert set_rate(optimizer, 0.5) == pytest.approx(0.04)
    for group in optimizer.param_groups:
        assert group["lr"] == group["base_lr"] * 0.5


def test_linear_and_constant_equal_torch() -> None:
    warmup, total = 4, 20
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(dummy, 1 / warmup, 1.0, warmup - 1)
    down = torch.optim.lr_scheduler.LinearLR(dummy, 1.0, 0.0, total - warmup)
    both = torch.optim.lr_scheduler.SequentialLR(dummy, [warm, down], [warmup])
    schedule, flat = Schedule("linear", total, warmup), Schedule("constant", total, warmup)
    for step in range(total):
        assert schedule.multiplier(step) == pytest.approx(dummy.param_groups[0]["lr"])
        assert flat.multiplier(step) == (pytest.approx(schedule.multiplier(step)) if step < warmup else 1.0)
        dummy.step()
        both.step()
    assert schedule.multiplier(total) == 0.0
    assert schedule.multiplier(total + 5) == 0.0


def test_cosine_equals_torch() -> None:
    total = 17
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(dummy, total)
    schedule = Schedule("cosine", total, 0)
    for step in range(total):
        assert schedule.multiplier(step) == pytest.approx(dummy.param_groups[0]["lr"], abs=1e-12)
        dummy.step()
        theirs.step()
    assert schedule.multiplier(total) == pytest.approx(0.0, abs=1e-12)
    shifted = Schedule("cosine", total + 3, 3)
    assert [shifted.multiplier(s + 3) for s in range(total)] == [schedule.multiplier(s) for s in range(total)]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "plateau"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 3), (5, 9)])
def test_short_schedules_stay_between_zero_and_one_and_never_stand_still(name: Any, steps: int, warmup: int) -> None:
    schedule = Schedule(name, steps, warmup)
    rates = [schedule.multiplier(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_plateau_equals_torch() -> None:
    losses = [1.0, 0.8, 0.9, 0.85, 0.7, 0.7, 0.7, 0.71, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6]
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(dummy, factor=0.5, patience=1, threshold=1e-4)
    schedule = Schedule("plateau", 100, 0, patience=1)
    for loss in losses:
        before = schedule.multiplier(10)
        theirs.step(loss)
        lowered = schedule.observe(loss)
        assert schedule.multiplier(10) == dummy.param_groups[0]["lr"]
        assert lowered == (schedule.multiplier(10) < before)
    assert schedule.multiplier(10) < 1
    assert not Schedule("linear", 10, 0).observe(5.0)


def test_the_state_of_a_plateau_survives_json() -> None:
    first = Schedule("plateau", 10, 0)
    for loss in (1.0, 1.0, 1.0):
        first.observe(loss)
    second = Schedule("plateau", 10, 0)
    second.state.update(json.loads(json.dumps(first.state)))
    assert second.multiplier(5) == first.multiplier(5) == 0.5
    assert second.observe(1.0) == first.observe(1.0)


def test_adamw_equals_its_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, written out."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
    module = torch.nn.ParameterDict({"weight": weight, "bias": bias})
    optimizer = AdamW(parameter_groups(module, learning_rate=0.02, weight_decay=0.3))
    expected = [weight.detach().clone(), bias.detach().clone()]
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in expected]
    for step in range(1, 8):
        set_rate(optimizer, 1 / step)
        rate = 0.02 / step
        for i, (parameter, decay) in enumerate(((weight, 0.3), (bias, 0.0))):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            first, second = moments[i]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            expected[i] -= rate * decay * expected[i]
            expected[i] -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
    for parameter, wanted in zip((weight, bias), expected, strict=True):
        assert torch.allclose(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)
    assert math.isfinite(float(weight.detach().sum()))


@pytest.mark.parametrize("method", ["full", "frozen", "lora"])
def test_training_goes_on_bit_for_bit_from_a_checkpoint(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """Weights, moments and schedule restored at step 4 of 9, dropout on: the same bits as without the break."""
    from finesmith.models import forward
    from finesmith.models.adapter_kinds import add_adapter
    from finesmith.models.layers import freeze_lowest
    from finesmith.models.load import find, load_classifier, load_tokenizer
    from finesmith.train import checkpoint, loop
    from finesmith.types import Batch

    base = find(str(tiny_model))

    def fresh() -> Any:
        network, _ = load_classifier(
            base, load_tokenizer(base), outputs=3, problem="single_label_classification", labels=None, seed=0,
            dropout=0.2,
        )  # fmt: skip
        if method == "lora":
            add_adapter(network, "lora", {"r": 2, "lora_dropout": 0.1}, seed=0)
        if method == "frozen":
            freeze_lowest(network.classifier, 1)
        groups = parameter_groups(network.module, learning_rate=1e-3, weight_decay=0.01)
        return network, AdamW(groups), Schedule("cosine", 9, 2)

    def batches(step: int) -> tuple[list[Batch], int]:
        random = torch.Generator().manual_seed(step)
        made = []
        for lengths in ([3, 5], [5, 8, 9]):
            tokens = torch.randint(5, 100, (sum(lengths),), generator=random)
            targets = torch.randint(0, 3, (len(lengths),), generator=random)
            made.append(Batch(tokens, torch.tensor(lengths), None, targets, torch.arange(len(lengths))))
        return made, 5

    def run(network: Any, optimizer: Any, schedule: Schedule, start: int, stop: int) -> list[float]:
        def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
            found = torch.nn.functional.cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum")
            return found, len(batch.lengths)

        plan = loop.Plan(9, 3, batches, 1.0, 7)
        losses = []
        for step in loop.train(network.module, loss_sum, optimizer, schedule, plan, start=start):
            losses.append(step.loss)
            if step.step == stop:
                break
        return losses

    whole = fresh()
    straight = run(*whole, 0, 9)

    half = fresh()
    first = run(*half, 0, 4)
    trainable = [(n, p) for n, p in half[0].module.named_parameters() if p.requires_grad]
    tensors, state = checkpoint.flatten_optimizer(half[1], trainable)
    tensors = {**tensors, **{f"model.{n}": p.detach() for n, p in trainable}}
    checkpoint.save(tmp_path, 4, tensors, {"optimizer": state}, fingerprint={}, keep=1)

    torch.manual_seed(999)  # a new process knows nothing of the old one's random numbers
    found = checkpoint.latest(tmp_path, fingerprint=None)
    assert found is not None
    again = fresh()
    named = [(n, p) for n, p in again[0].module.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, parameter in named:
            parameter.copy_(found.tensors[f"model.{name}"])
    optimizer_state: Any = found.state["optimizer"]
    checkpoint.restore_optimizer(again[1], named, found.tensors, optimizer_state)
    second = run(*again, found.step, 9)

    assert first + second == straight
    expected = whole[0].module.state_dict()
    for name, tensor in again[0].module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert copy.deepcopy(straight) != first * 2


@pytest.mark.parametrize("kind", ["ia3", "prompt", "lora"])
def test_what_adapters_add_beside_matrices_does_not_decay(kind: Any, tiny_model: Path) -> None:
    from finesmith.models.adapter_kinds import add_adapter
    from finesmith.models.load import find, load_classifier, load_tokenizer

    base = find(str(tiny_model))
    network, _ = load_classifier(
        base, load_tokenizer(base), outputs=3, problem="single_label_classification", labels=None, seed=0
    )
    add_adapter(network, kind, {}, seed=0, new_rows=[80] if kind == "lora" else [])
    names = {id(p): name for name, p in network.module.named_parameters()}
    groups = parameter_groups(network.module, learning_rate=1e-3, weight_decay=0.01)
    decays = {names[id(p)]: group["weight_decay"] > 0 for group in groups for p in group["params"]}
    assert any("ia3_l" in name or "prompt_encoder" in name or "trainable_tokens" in name for name in decays)
    for name, does in decays.items():
        assert does == (
            "lora_A" in name or "lora_B" in name or name.endswith("classifier.modules_to_save.default.weight")
        ), name
