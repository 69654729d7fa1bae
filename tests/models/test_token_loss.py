"""Losses, logits and log probabilities of supervised tokens against transformers' own forward, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_families import ALL, RAGGED, TOLERANCE, same
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    GPTNeoXConfig,
)

from finesmith.models import decoder, decoder_parts
from finesmith.models.attention import layout_of
from finesmith.models.cross_entropy import log_probabilities, summed
from finesmith.models.forward import DECODERS, Network
from finesmith.models.language import choose_token_attention
from finesmith.models.token_heads import MASKED, TokenNetwork, head_of
from finesmith.models.token_loss import token_log_probabilities, token_logits, token_loss
from finesmith.types import Batch

# peft and transformers 5.23 disagree on a name, which has nothing to do with what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

VOCABULARY, CLASSES = 101, 3
LENGTHS = [2, 5, 5, 9, 13, 20, 30]
AUTO: dict[str, Any] = {
    "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "token": AutoModelForTokenClassification,
}  # fmt: skip
NAMES = {name: name.split()[0] for name in RAGGED if name != "modernbert cls"}
CASES = (
    [("causal", name) for name, family in NAMES.items() if family in DECODERS]
    + [("masked", name) for name, family in NAMES.items() if family in MASKED]
    + [("token", name) for name in NAMES if name != "phi3"]
)
WALKED = ("llama", "mistral", "qwen2", "qwen3")


def build(kind: Any, name: str, attention: Any = "auto", seed: int = 0, **changes: Any) -> tuple[TokenNetwork, Any]:
    """Return a network and an untouched copy of its transformers model, both in float64, dropout off."""
    torch.manual_seed(seed)
    config = copy.deepcopy(ALL[name])
    config.classifier_dropout = 0.0
    for key, value in changes.items():
        setattr(config, key, value)
    model: Any = AUTO[kind].from_config(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(model)
    network = TokenNetwork(model, model, None, False, "", 0, kind=kind)  # type: ignore[arg-type]
    choose_token_attention(network, attention)
    return network, plain


def make(kind: str, *, seed: int = 1, share: float = 0.4, lengths: list[int] = LENGTHS) -> Batch:
    """A batch with some supervised tokens; for next words already shifted, none at a sequence's end."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    tokens = torch.randint(1, VOCABULARY, (sum(lengths),), generator=random)
    keep = torch.rand(len(tokens), generator=random) < share
    if kind == "causal":
        targets = tokens.roll(-1)
        keep[sizes.cumsum(0) - 1] = False
    else:
        targets = torch.randint(0, CLASSES if kind == "token" else VOCABULARY, (len(tokens),), generator=random)
    return Batch(tokens, sizes, None, torch.where(keep, targets, -100), torch.arange(len(lengths)))


def rectangle(batch: Batch, kind: str) -> dict[str, torch.Tensor]:
    """What transformers wants: padded, with labels at the token itself, which its causal loss shifts."""
    sizes = batch.lengths.tolist()
    mask = torch.arange(max(sizes))[None] < batch.lengths[:, None]
    assert batch.targets is not None
    labels = []
    for row in batch.targets.split(sizes):
        labels.append(torch.cat([row.new_full((1,), -100), row[:-1]]) if kind == "causal" else row)
    return {
        "input_ids": pad_sequence(list(batch.tokens.split(sizes)), batch_first=True),
        "attention_mask": mask.long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def oracle(plain: Any, batch: Batch, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of losses, the mean as transformers tells it, and the supervised logits."""
    inputs = rectangle(batch, kind)
    out = plain(**inputs)
    logits, labels = out.logits, inputs["labels"]
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = logits[labels != -100]
    return cross_entropy(kept, labels[labels != -100], reduction="sum"), out.loss, kept


def check_gradients(network: Network, plain: Any, tolerance: float) -> None:
    wanted = dict(plain.named_parameters())
    seen = 0
    for name, parameter in network.module.named_parameters():
        if wanted[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            assert parameter.grad is not None, name
            assert same(parameter.grad, wanted[name].grad, tolerance), name
            seen += 1
    assert seen > 5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_loss_and_every_gradient_equal_transformers(kind: str, name: str, attention: str, seed: int) -> None:
    network, plain = build(kind, name, attention, seed)
    batch = make(kind, seed=seed)
    assert network.ragged == (attention == "auto")
    assert network.split
    assert network.walked == (network.ragged and NAMES[name] in WALKED)
    expected, mean, logits = oracle(plain, batch, kind)
    found, count = token_loss(network, batch, chunk=7)
    tolerance = TOLERANCE.get(name, 1e-9)

    assert count == len(logits)
    assert same(found, expected, tolerance)
    # Some of its losses are computed in float32 whatever the model is.
    assert float(found.detach()) / count == pytest.approx(
        float(mean.detach()), rel=1e-6 if mean.dtype == torch.float32 else 1e-8
    )
    assert same(token_logits(network, batch), logits, tolerance)
    found.backward()
    expected.backward()
    check_gradients(network, plain, tolerance)


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize(("kind", "name"), [("causal", "llama"), ("causal", "gpt2"), ("masked", "bert")])
def test_log_probabilities_and_their_gradients(kind: str, name: str, attention: str) -> None:
    network, plain = build(kind, name, attention)
    batch = make(kind)
    assert batch.targets is not None
    _, _, logits = oracle(plain, batch, kind)
    targets = batch.targets[batch.targets != -100]
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    found = token_log_probabilities(network, batch, chunk=5)

    assert same(found, expected)
    weight = torch.randn(len(found), dtype=torch.float64)
    (torch.sigmoid(found) * weight).sum().backward()
    (torch.sigmoid(expected) * weight).sum().backward()
    check_gradients(network, plain, 1e-9)
    with torch.no_grad():
        assert same(token_log_probabilities(network, batch), expected)
        assert same(token_loss(network, batch)[0], -expected.sum())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_tied_untied_and_frozen_heads(tied: bool, frozen: bool) -> None:
    network, plain = build("causal", "llama", tie_word_embeddings=tied)
    batch = make("causal")
    for model in (network.classifier, plain):
        model.get_output_embeddings().weight.requires_grad_(not frozen)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    token_loss(network, batch, chunk=16)[0].backward()
    oracle(plain, batch, "causal")[0].backward()
    check_gradients(network, plain, 1e-9)
    head: Any = network.classifier.get_output_embeddings()
    assert (head.weight.grad is None) == frozen


SAVED: dict[str, Any] = {"modules_to_save": ["lm_head", "norm"]}


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("all-linear", {}),
        ("all-linear", {"use_dora": True}),
        ("all-linear", SAVED),
        ("all-linear", {"lora_bias": True}),
        ("all-linear", {"use_rslora": True}),
        (["q_proj", "lm_head"], {}),
        (["q_proj", "lm_head"], {"use_dora": True}),
        (["embed_tokens", "v_proj"], {}),
        (["embed_tokens", "v_proj"], {"use_dora": True}),
        (["embed_tokens", "v_proj"], SAVED),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*lora_bias=True.*:UserWarning")
def test_adapters_in_the_layers_and_in_the_head(target: Any, options: dict[str, Any]) -> None:
    network, _ = build("causal", "llama", tie_word_embeddings=False)
    torch.manual_seed(0)
    network.module = get_peft_model(network.classifier, LoraConfig(r=2, lora_alpha=6, target_modules=target, **options))
    network.module.double()
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped: Any = copy.deepcopy(network.module)
    wrapped.get_base_model().set_attn_implementation("sdpa")
    batch = make("causal")
    found, _ = token_loss(network, batch, chunk=9)
    expected, _, _ = oracle(wrapped, batch, "causal")
    assert same(found, expected)
    found.backward()
    expected.backward()
    check_gradients(network, wrapped, 1e-8)
    with wrapped.disable_adapter(), network.module.disable_adapter():  # type: ignore[operator]
        assert same(token_loss(network, batch)[0], oracle(wrapped, batch, "causal")[0])


def test_a_family_with_capped_logits() -> None:
    network, plain = build("causal", "gemma2", final_logit_softcapping=2.0)
    batch = make("causal")
    expected, _, logits = oracle(plain, batch, "causal")
    assert head_of(network).cap == 2.0
    assert network.split
    assert float(logits.detach().abs().max()) < 2
    found, _ = token_loss(network, batch, chunk=10)
    assert same(found, expected, 1e-5)
    found.backward()
    expected.backward()
    check_gradients(network, plain, 1e-5)


def test_a_family_that_nobody_listed_still_gives_transformers_answers() -> None:
    ALL["gpt_neox"] = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        max_position_embeddings=64, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    try:
        network, plain = build("causal", "gpt_neox")
    finally:
        del ALL["gpt_neox"]
    batch = make("causal")
    assert not network.ragged
    assert network.split
    assert same(token_loss(network, batch)[0], oracle(plain, batch, "causal")[0])


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_the_pieces_equal_one_product(bias: bool, cap: float | None) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50, bias=bias).double()
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (23,))

    def naive() -> torch.Tensor:
        logits = linear(hidden) * 4
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return cross_entropy(logits, targets, reduction="none")

    leaves = [hidden, *linear.parameters()]
    expected = torch.autograd.grad(naive().sum() * 3, leaves)
    four = copy.deepcopy(linear)
    with torch.no_grad():
        for parameter in four.parameters():
            parameter.mul_(4)
    for piece in (1, 7, 23, 100):
        loss = summed(hidden, four, targets, cap, piece)
        assert same(loss, naive().sum(), 1e-12)
        found = torch.autograd.grad(loss * 3, [hidden, *four.parameters()])
        each = torch.autograd.grad(
            -log_probabilities(hidden, four, targets, cap, piece).sum() * 3, [hidden, *four.parameters()]
        )
        for ours, also, theirs in zip(found, each, expected, strict=True):
            scale = 1 if theirs.shape == hidden.shape else 4
            assert same(ours * scale, theirs, 1e-12)
            assert same(also * scale, theirs, 1e-12)


def test_a_loss_so_large_that_its_probability_underflows_is_exact() -> None:
    linear = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[500.0, 0], [0, 0], [-500.0, 0]]))
    hidden = torch.tensor([[1.0, 0], [-1.0, 0]], requires_grad=True)
    targets = torch.tensor([2, 0])
    assert float(summed(hidden, linear, targets, None, 8).detach()) == 2000.0
    assert log_probabilities(hidden, linear, targets, None, 8).tolist() == [-1000.0, -1000.0]


def test_a_loss_that_is_not_finite_shows() -> None:
    linear = torch.nn.Linear(2, 3)
    hidden = torch.tensor([[float("nan"), 0.0]], requires_grad=True)
    assert summed(hidden, linear, torch.tensor([1]), None, 8).isnan()


@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_a_batch_without_targets_has_a_loss_and_gradients_of_zero(attention: str) -> None:
    network, _ = build("causal", "llama", attention)
    batch = make("causal", share=0.0)
    loss, count = token_loss(network, batch)
    assert (float(loss.detach()), count) == (0.0, 0)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.module.parameters())
    assert token_log_probabilities(network, batch).shape == (0,)


@pytest.mark.parametrize("name", WALKED)
@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [17], [3, 3, 60], [40] * 3, [2] * 30, [61, 62, 63, 64], [30, 31, 32]], ids=str
)
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_walking_the_layers_equals_transformers_for_any_shape_of_batch(
    name: str, lengths: list[int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_parts, "BLOCK", 16)
    network, plain = build("causal", name)
    batch = make("token", share=share, lengths=lengths)
    assert batch.targets is not None
    batch.targets[-1] = 1
    assert network.walked
    found = token_logits(network, batch)
    rows = torch.cat([plain(input_ids=row[None]).logits[0] for row in batch.tokens.split(lengths)])
    assert same(found, rows[batch.targets != -100])
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (rows[batch.targets != -100] * weight).sum().backward()
    check_gradients(network, plain, 1e-9)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert"])
def test_packed_sequences_do_not_see_each_other(name: str) -> None:
    kind = "masked" if name == "bert" else "causal"
    network, _ = build(kind, name)
    batch = make("token", share=1.0)
    changed = batch.tokens.clone()
    changed[2:7] = (changed[2:7] + 50) % (VOCABULARY - 1) + 1
    with torch.no_grad():
        before = token_logits(network, batch)
        after = token_logits(network, Batch(changed, batch.lengths, None, batch.targets, batch.ids))
    moved = (before != after).any(-1)
    assert moved[2:7].any()
    assert not moved[:2].any()
    assert not moved[7:].any()


def test_the_top_layer_computes_supervised_tokens_only() -> None:
    network, _ = build("causal", "llama")
    batch = make("causal")
    assert batch.targets is not None
    count, seen = int((batch.targets != -100).sum()), []
    top: Any = network.classifier.base_model.layers[-1]
    for part in (top.self_attn.q_proj, top.self_attn.k_proj, top.mlp.up_proj):
        part.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    token_loss(network, batch)
    assert seen == [sum(LENGTHS), count, count]


@pytest.mark.parametrize("change", ["dropout", "checkpointing", "autocast"])
def test_what_cannot_be_walked_is_not(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = build("causal", "llama")
    monkeypatch.setattr(decoder, "states", None)
    batch = make("causal")
    model: Any = network.classifier.float()
    model.train()
    if change == "dropout":
        model.config.attention_dropout = 0.1
    if change == "checkpointing":
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        loss, _ = token_loss(network, batch)
    loss.backward()
    assert loss.isfinite()


def test_rms_norm_and_its_gradients_in_float64() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    found = decoder_parts.rms_norm(x, weight, 1e-3)
    assert same(found, weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt(), 1e-12)
    assert torch.autograd.gradcheck(lambda a, b: decoder_parts.rms_norm(a, b, 1e-3), (x, weight))


def test_lora_and_its_gradients_in_float64() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 4).double()
    x, down, up = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 5), (2, 5), (4, 2)))
    found = decoder_parts.lora(x, base, down, up, 0.7)
    assert same(found, base(x) + 0.7 * x @ down.T @ up.T, 1e-12)
    assert torch.autograd.gradcheck(lambda a, b, c: decoder_parts.lora(a, base, b, c, 0.7), (x, down, up))
    leaves = [x, base.weight, base.bias, down, up]
    ours = torch.autograd.grad(decoder_parts.lora(x, base, down, up, 0.7).square().sum(), leaves)
    theirs = torch.autograd.grad((base(x) + 0.7 * x @ down.T @ up.T).square().sum(), leaves)
    assert all(same(a, b, 1e-12) for a, b in zip(ours, theirs, strict=True))


def test_every_query_has_one_part_and_sees_its_past_only() -> None:
    layout = layout_of(torch.tensor([3, 50, 60, 300]))
    rows = torch.arange(0, 413, 3)
    parts = decoder_parts.parts_of(layout, rows, None, torch.float32)
    assert [p.rows.start for p in parts[1:]] == [p.rows.stop for p in parts[:-1]]
    assert (parts[0].rows.start, parts[-1].rows.stop) == (0, len(rows))
    for part in parts:
        for row, mask in zip(rows[part.rows].tolist(), part.mask, strict=True):
            start = max(s for s in layout.starts.tolist() if s <= row)
            seen = (mask == 0).nonzero()[:, 0] + part.tokens.start
            assert seen.tolist() == list(range(start, row + 1))


def test_autocast_and_bfloat16_are_float32_roughly() -> None:
    losses, gradients = [], []
    for dtype, low in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        network, _ = build("causal", "llama")
        network.module.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss, _ = token_loss(network, make("causal"))
        assert loss.dtype == torch.float32
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten().float() for p in network.module.parameters()]))  # type: ignore[union-attr]
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=0.01)
        assert float((gradients[0] - gradients[other]).norm() / gradients[0].norm()) < 0.1
