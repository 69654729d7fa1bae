"""Every probe passes on a good model and stops on the fault it is there for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finesmith.guards import moves, preflight, trials
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
    found = trials.finite_on_longest(network.module, loss_of(network), [batch()])
    assert found.passed
    assert "finite gradients on 2 sequences of up to 6 tokens" in found.evidence
    assert all(p.grad is None for p in network.module.parameters())


def test_weights_that_are_no_numbers_are_found(network: Network) -> None:
    with torch.no_grad():
        network.classifier.get_input_embeddings().weight[60] = float("nan")
    found = trials.finite_on_longest(network.module, loss_of(network), [batch()])
    assert not found.passed
    assert "[7, 8]" in found.evidence
    assert found.line().startswith("STOP  finite loss")
    assert all(p.grad is None for p in network.module.parameters())


def test_a_gradient_that_is_no_number_is_found(network: Network) -> None:
    plain = loss_of(network)

    def steep(part: Batch) -> tuple[torch.Tensor, int]:
        loss, count = plain(part)
        return loss + (forward.logits(network, part) * 0).sum().sqrt(), count

    found = trials.finite_on_longest(network.module, steep, [batch()])
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
    found = moves.every_tensor_learns(network.module, loss_of(network), [batch()], optimizer_of(network))
    assert found.passed, found.evidence
    assert "moved in a trial step (undone)" in found.evidence
    for name, parameter in network.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_a_tensor_without_gradient_is_found(network: Network) -> None:
    network.module.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    found = moves.every_tensor_learns(network.module, loss_of(network), [batch()], optimizer_of(network))
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
    found = moves.every_tensor_learns(
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

    found = moves.every_tensor_learns(network.module, detached, [batch()], optimizer_of(network))
    assert not found.passed


@pytest.mark.parametrize(
    ("rate", "usual", "parameters", "passed"),
    [
        (1e-4, 1e-4, 50_000_000, True), (1e-6, 1e-4, 50_000_000, True), (2e-3, 1e-4, 50_000_000, True),
        (2.1e-3, 1e-4, 50_000_000, False), (1.0, 1e-4, 50_000_000, False), (1e-9, 1e-4, 50_000_000, False),
        (3e-2, 1e-4, 20_000, True), (0.9, 1e-4, 20_000, False), (0.9, 1e-3, 20_000, False),
        (2e-6, 1e-3, 22_000_000, True), (2e-4, 1e-5, 8_000_000_000, True), (3e-4, 1e-5, 8_000_000_000, False),
    ],
)  # fmt: skip
def test_a_learning_rate_out_of_range_is_found(rate: float, usual: float, parameters: int, passed: bool) -> None:
    found = preflight.learning_rate_in_range(rate, usual, "full", parameters)
    assert found.passed == passed
    assert passed or f"--set train.learning_rate={usual:g}" in found.line()


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


def test_labels_that_were_taken_apart_are_found() -> None:
    assert preflight.labels_agree(["good", "bad"], ["good", "bad"], "rows").passed
    found = preflight.labels_agree(["bad", "good", "bad"], ["good", "bad", "bad"], "rows")
    assert not found.passed
    assert "1 of 3 rows" in found.evidence


@pytest.mark.parametrize(
    ("missing", "passed"),
    [((), True), (("bert.pooler.dense.weight",), True), (("bert.encoder.layer.0.output.dense.weight",), False)],
)
def test_a_body_made_of_random_numbers_is_found(missing: tuple[str, ...], passed: bool) -> None:
    found = preflight.base_weights(30, missing, 0)
    assert found.passed == passed
    assert passed or "random instead: bert.encoder" in found.evidence


def test_rows_in_two_splits_are_found_unless_the_recipe_keeps_them() -> None:
    assert preflight.leakage({"train and test": 0}, kept=False).passed
    found = preflight.leakage({"train and test": 3, "train and validation": 0}, kept=False)
    assert not found.passed
    assert found.evidence.endswith("3 in train and test")
    assert preflight.leakage({"train and test": 3}, kept=True).passed


@pytest.mark.parametrize(
    ("loss", "own", "passed"),
    [(4.6, 4.6, True), (4.6, 4.7, False), (12.0, 12.0, False), (0.5, 0.5, True), (math.nan, math.nan, False)],
)
def test_a_loss_that_is_not_the_models_own_is_found(loss: float, own: float, passed: bool) -> None:
    assert preflight.own_loss(loss, own, math.log(100), coarse=False).passed == passed


def test_the_smallest_change_is_asked_for_only_where_memory_lacks() -> None:
    forecast = {"total": 3 * 2**30, "free": 2**30, "fits": False}
    found = preflight.memory_fits(forecast, 8, 32, lambda: "--set train.micro_batch_size=2 fits")
    assert "3.0 GB" in found.line()
    assert found.line().endswith("--set train.micro_batch_size=2 fits")
    assert preflight.memory_fits({**forecast, "fits": True}, 8, 32, lambda: str(1 / 0)).passed


def test_every_probe_says_why_it_is_there(network: Network) -> None:
    found = trials.finite_on_longest(network.module, loss_of(network), [batch()])
    assert found.why == preflight.WHY["finite loss"]
    assert found.as_json() == {
        "name": "finite loss", "passed": True, "evidence": found.evidence, "remedy": "", "why": found.why, "shows": "",
    }  # fmt: skip


class TestEmbeddings:
    """Input and output embeddings of a tiny causal model."""

    @pytest.fixture
    def llama(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    def test_tied_ones_pass(self, llama: Any) -> None:
        assert preflight.embeddings_fit(llama, 50, ()).passed
        assert "tied" in preflight.embeddings_fit(llama, 40, ()).evidence

    def test_untied_by_hand_is_found(self, llama: Any) -> None:
        llama.lm_head.weight = torch.nn.Parameter(llama.lm_head.weight.detach().clone())
        found = preflight.embeddings_fit(llama, 50, ())
        assert not found.passed
        assert "tie_word_embeddings is True, but the two are two" in found.evidence

    def test_more_tokens_than_vectors_are_found(self, llama: Any) -> None:
        assert not preflight.embeddings_fit(llama, 51, ()).passed

    def test_another_vocab_size_is_found(self, llama: Any) -> None:
        llama.config.vocab_size = 40
        assert not preflight.embeddings_fit(llama, 40, ()).passed

    def test_added_words_must_be_trained_and_be_one_token(self, llama: Any) -> None:
        assert preflight.embeddings_fit(llama, 50, (48, 49)).passed
        assert not preflight.embeddings_fit(llama, 50, (-1,)).passed
        llama.get_input_embeddings().weight.requires_grad_(False)
        assert "frozen" in preflight.embeddings_fit(llama, 50, (48,)).evidence
