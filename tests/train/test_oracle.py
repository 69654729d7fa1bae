"""Training agrees with a plain padded transformers loop in float64: losses, gradients and one epoch's weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, RobertaConfig

from finesmith.data import batches
from finesmith.data.tokens import Tokens
from finesmith.models import forward
from finesmith.models.adapter_kinds import add_adapter
from finesmith.models.forward import Network
from finesmith.models.layers import freeze_lowest
from finesmith.models.load import choose_attention
from finesmith.train import loop, optimiser
from finesmith.train.adamw import AdamW
from finesmith.train.step import backward, clip_gradients

COUNT, BATCH = 37, 8
TINY = {
    "vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 48, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "roberta": RobertaConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": LlamaConfig(**TINY, num_key_value_heads=1),
}


@pytest.fixture
def data() -> tuple[Tokens, torch.Tensor]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 20, COUNT)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    ids = random.integers(3, 100, offsets[-1]).astype(np.int32)
    tokens = Tokens(ids, offsets, None, lengths.astype(np.int32), 1, 1, 0, 0)
    return tokens, torch.from_numpy(random.integers(0, 3, COUNT))


def network_of(kind: str, method: str) -> Network:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIGS[kind])).double()
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, "ragged")
    if method == "lora":
        add_adapter(network, "lora", {"r": 2, "lora_alpha": 4}, seed=0)
        with torch.no_grad():
            for name, parameter in network.module.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
    if method == "frozen":
        freeze_lowest(model, 1)
    return network


def padded_copy(network: Network) -> torch.nn.Module:
    """The same weights with transformers' own attention, fed padded rectangles through the public forward."""
    module = copy.deepcopy(network.module)
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    inner.set_attn_implementation("sdpa")
    return module


def rectangle(tokens: Tokens, positions: np.ndarray) -> dict[str, torch.Tensor]:
    rows = [torch.from_numpy(tokens.row(int(p)).astype(np.int64)) for p in positions]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    # Key biases have a gradient of exactly 0 (softmax ignores a shift): only rounding noise far below 1e-12.
    found, expected = found.detach(), expected.detach()
    scale = max(float(expected.abs().max()), 1e-4)
    return float((found - expected).abs().max()) <= 1e-8 * scale


def ours(network: Network, tokens: Tokens, targets: torch.Tensor, micro: int, epochs: int = 1) -> tuple[list, list]:
    groups = optimiser.parameter_groups(network.module, learning_rate=1e-3, weight_decay=0.01)
    optimizer = AdamW(groups)
    per = batches.steps_per_epoch(COUNT, BATCH)
    schedule = optimiser.Schedule("linear", per * epochs, 2)

    def make(step: int):
        chosen = batches.batch_positions(COUNT, BATCH, seed=0, step=step)
        parts = batches.micro_batches(chosen, tokens.lengths(), micro)
        return [batches.ragged(tokens, p, ids=np.arange(COUNT), targets=targets) for p in parts], len(chosen)

    def loss_sum(batch):
        return torch.nn.functional.cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum"), len(
            batch.lengths
        )

    plan = loop.Plan(per * epochs, per, make, 1.0, 0)
    steps = list(loop.train(network.module, loss_sum, optimizer, schedule, plan))
    return [s.loss for s in steps], [s.grad_norm for s in steps]


def reference(module: torch.nn.Module, tokens: Tokens, targets: torch.Tensor, epochs: int = 1) -> tuple[list, list]:
    """Plain padded loop over the whole batch, mean loss, torch's own AdamW and lambda schedule."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, eps=1e-8
    )
    total = batches.steps_per_epoch(COUNT, BATCH) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / 2 if s < 2 else max(0.0, 1 - (s - 2) / (total - 2))
    )
    losses, norms = [], []
    module.train()
    for step in range(total):
        chosen = batches.batch_positions(COUNT, BATCH, seed=0, step=step)
        out = module(**rectangle(tokens, chosen), labels=targets[chosen])
        optimizer.zero_grad()
        out.loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainable, 1.0)))
        optimizer.step()
        schedule.step()
        losses.append(float(out.loss.detach()))
    return losses, norms


@pytest.mark.parametrize("micro", [BATCH, 3, 1])
@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_an_epoch_equals_the_padded_loop(kind: str, method: str, micro: int, data: tuple) -> None:
    tokens, targets = data
    network = network_of(kind, method)
    plain = padded_copy(network)
    before = {name: p.detach().clone() for name, p in network.module.named_parameters()}

    losses, norms = ours(network, tokens, targets, micro)
    expected_losses, expected_norms = reference(plain, tokens, targets)

    np.testing.assert_allclose(losses, expected_losses, rtol=1e-8)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-8)
    expected = dict(plain.named_parameters())
    for name, parameter in network.module.named_parameters():
        assert close(parameter, expected[name]), name
        assert parameter.requires_grad or torch.equal(parameter, before[name]), f"frozen {name} moved"
    assert any(not torch.equal(p, before[n]) for n, p in network.module.named_parameters())


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_gradients_equal_the_padded_batch(kind: str, data: tuple) -> None:
    tokens, targets = data
    network = network_of(kind, "full")
    plain = padded_copy(network)
    chosen = np.arange(COUNT)
    parts = batches.micro_batches(chosen, tokens.lengths(), 5)
    made = [batches.ragged(tokens, p, ids=np.arange(COUNT), targets=targets) for p in parts]

    def loss_sum(batch):
        return torch.nn.functional.cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum"), len(
            batch.lengths
        )

    loss, examples, count = backward(loss_sum, made, COUNT, lambda _: None)
    out = plain(**rectangle(tokens, chosen), labels=targets)
    out.loss.backward()

    assert examples == COUNT
    assert count == len(tokens.tokens)
    assert loss == pytest.approx(float(out.loss.detach()), rel=1e-10)
    expected = dict(plain.named_parameters())
    for name, parameter in network.module.named_parameters():
        if parameter.grad is None:
            assert expected[name].grad is None, name
        else:
            assert close(parameter.grad, expected[name].grad), name


def test_clipping_scales_to_the_norm_and_reports_the_norm_before() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2, 2), 1.0)
    assert clip_gradients(parameters, 1.0) == pytest.approx(4.0)
    after = torch.cat([p.grad.flatten() for p in parameters]).norm()
    assert float(after) == pytest.approx(1.0, abs=1e-5)
