"""The layer in one piece answers and learns as transformers' layer does, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.models.bert.modeling_bert import BertLayer

from finesmith.models import bert_layer, forward
from finesmith.models.attention import Layout, layout_of
from finesmith.models.bert_layer import LayerRule, layer_states, weights_of
from finesmith.models.forward import Network
from finesmith.models.load import choose_attention
from finesmith.models.native import NativeBert
from finesmith.models.native_config import NativeConfig
from finesmith.types import Batch

WIDTH, HEADS, INNER = 12, 3, 20
EPSILONS = (1e-3, 1e-5)
RAGGED = {
    "one token": [1],
    "one sequence": [7],
    "tokens": [1, 1, 1, 1],
    "equal": [5, 5, 5],
    "ragged": [1, 1, 2, 5, 5, 5, 9, 13],
    "many": [1] * 3 + [2] * 7 + [3] * 11 + [8] * 5 + [40],
}


def reference() -> Any:
    """Return transformers' layer in float64, away from the zeros and ones of a fresh one, its norms unlike."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=INNER, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    layer: Any = BertLayer(config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    layer.attention.output.LayerNorm.eps, layer.output.LayerNorm.eps = EPSILONS
    return layer.train()


def states_of(layout: Layout, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(sum(layout.lengths), WIDTH, dtype=torch.float64, generator=random).requires_grad_()


def rule_of(layout: Layout, *, first: bool = False, attention: float = 0.0, hidden: float = 0.0) -> LayerRule:
    return LayerRule(layout.groups, HEADS, EPSILONS, attention, hidden, layout.starts if first else None)


def one_by_one(layer: Any, states: Tensor, layout: Layout) -> Tensor:
    """Return what transformers computes, one sequence after the other."""
    return torch.cat([layer(part[None])[0] for part in states.split(list(layout.lengths))])


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a sum of unlike shares of `out`."""
    shares = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    return list(torch.autograd.grad((out * shares).sum(), inputs))


def same(found: Sequence[Tensor], expected: Sequence[Tensor], limit: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert float((a - b).detach().abs().max()) <= limit * max(1.0, float(b.detach().abs().max())), f"tensor {i}"


def weights(layer: Any) -> list[Tensor]:
    found = weights_of(layer)
    assert found is not None
    assert {id(tensor) for tensor in found} == {id(parameter) for parameter in layer.parameters()}
    return found


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
def test_outputs_and_gradients_are_those_of_transformers(lengths: list[int], first: bool) -> None:
    layer, layout = reference(), layout_of(torch.tensor(lengths))
    states, tensors = states_of(layout), weights(layer)
    expected = one_by_one(layer, states, layout)
    if first:
        expected = expected[layout.starts]
    found = layer_states(states, tensors, rule_of(layout, first=first))
    same([found], [expected])
    same(gradients(found, [states, *tensors]), gradients(expected, [states, *tensors]))


class Again(torch.autograd.Function):
    """The layer, run anew for each way back: gradcheck goes back more than once."""

    @staticmethod
    def forward(ctx: Any, rule: LayerRule, states: Tensor, *tensors: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(states, *tensors)
        torch.manual_seed(3)
        return layer_states(states, tensors, rule)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            torch.manual_seed(3)
            out = layer_states(inputs[0], inputs[1:], ctx.rule)
        return None, *torch.autograd.grad(out, inputs, upper[0])


@pytest.mark.parametrize(("attention", "hidden"), [(0.0, 0.0), (0.4, 0.3), (0.4, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("first", [False, True])
def test_gradients_are_those_of_differences(first: bool, attention: float, hidden: float) -> None:
    layout = layout_of(torch.tensor([1, 2, 2, 3]))
    random = torch.Generator().manual_seed(5)
    # As in the layer: query, key, value and output of width 4, a norm, the two of the feed-forward, a norm.
    shapes = [(4, 4), 4] * 4 + [4, 4] + [(6, 4), 6, (4, 6), 4] + [4, 4]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_() for shape in [(8, 4), *shapes]]
    rule = LayerRule(layout.groups, 2, EPSILONS, attention, hidden, layout.starts if first else None)
    assert torch.autograd.gradcheck(lambda *each: Again.apply(rule, *each), inputs)


def naive(states: Tensor, tensors: Sequence[Tensor], layout: Layout, rule: LayerRule, masks: Any) -> Tensor:
    """Return the layer in torch's own operations, sequence by sequence, dropping what the masks say."""
    wq, bq, wk, bk, wv, bv, wo, bo, g1, b1, wi, bi, wf, bf, g2, b2 = tensors
    whole = masks.attention
    contexts, at = [], 0
    for first, count, length in rule.groups:
        queries = length if rule.first is None else 1
        size = count * rule.heads * queries * length
        keep = None if whole is None else whole[at : at + size].view(count, rule.heads, queries, length)
        at += size
        for i in range(count):
            x = states[first + i * length : first + (i + 1) * length]
            asked = x if rule.first is None else x[:1]
            q, k, v = (
                linear(y, w, b).view(len(y), rule.heads, -1).transpose(0, 1)
                for y, w, b in ((asked, wq, bq), (x, wk, bk), (x, wv, bv))
            )
            shares = torch.softmax(q @ k.mT * q.shape[2] ** -0.5, -1)
            if keep is not None:
                shares = shares * keep[i] * masks.attention_factor
            contexts.append((shares @ v).transpose(0, 1).flatten(1))
    residual = states if rule.first is None else states[rule.first]

    def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else x * mask * masks.hidden_factor

    d = [states.shape[1]]
    middle = residual + dropped(linear(torch.cat(contexts), wo, bo), masks.first)
    middle = layer_norm(middle, d, g1, b1, rule.epsilons[0])
    outer = linear(gelu(linear(middle, wi, bi)), wf, bf)
    return layer_norm(middle + dropped(outer, masks.second), d, g2, b2, rule.epsilons[1])


@pytest.mark.parametrize(("attention", "hidden"), [(0.1, 0.1), (0.5, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
def test_dropout_drops_what_its_masks_say(lengths: list[int], first: bool, attention: float, hidden: float) -> None:
    layout = layout_of(torch.tensor(lengths))
    states, tensors = states_of(layout), weights(reference())
    rule = rule_of(layout, first=first, attention=attention, hidden=hidden)
    torch.manual_seed(11)
    found = layer_states(states, tensors, rule)
    torch.manual_seed(11)
    masks = bert_layer._draw(rule, len(found), WIDTH, states)
    assert (masks.attention is not None, masks.first is not None) == (attention > 0, hidden > 0)
    expected = naive(states, tensors, layout, rule, masks)
    same([found], [expected])
    same(gradients(found, [states, *tensors]), gradients(expected, [states, *tensors]))


def test_one_seed_gives_the_same_bits_and_another_does_not() -> None:
    layout = layout_of(torch.tensor(RAGGED["ragged"]))
    states, tensors, rule = states_of(layout), weights(reference()), rule_of(layout, attention=0.1, hidden=0.1)

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        out = layer_states(states, tensors, rule)
        return [out, *gradients(out, [states, *tensors])]

    first, again, other = run(4), run(4), run(5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(dropout: float) -> None:
    layout = layout_of(torch.tensor([60] * 20))
    rule, like = rule_of(layout, attention=dropout, hidden=dropout), torch.empty(1200, WIDTH, dtype=torch.float64)
    torch.manual_seed(0)
    masks = bert_layer._draw(rule, 1200, WIDTH, like)
    drawn = (masks.attention, masks.first, masks.second)
    factors = (masks.attention_factor, masks.hidden_factor, masks.hidden_factor)
    for mask, factor in zip(drawn, factors, strict=True):
        assert mask is not None
        assert mask.dtype == torch.float64
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        # Five deviations of a mean of so many independent draws.
        spread = 5 * (dropout / (1 - dropout) / mask.numel()) ** 0.5
        assert abs(float(mask.mean()) * factor - 1) < spread
        assert factor * (1 - dropout) == pytest.approx(1, abs=1e-4)
    assert masks.first is not None
    assert masks.second is not None
    assert not torch.equal(masks.first, masks.second)
    # The mean of what attention gives, over many draws, is what it gives without dropout.
    attended = [rule_of(layout_of(torch.tensor([2000]))), rule_of(layout_of(torch.tensor([2000])), attention=dropout)]
    torch.manual_seed(1)
    projected = [torch.randn(2000, WIDTH, dtype=torch.float64) for _ in range(3)]
    mask = bert_layer._draw(attended[1], 2000, WIDTH, like).attention
    assert mask is not None
    assert mask.numel() == HEADS * 2000 * 2000
    plain, _ = bert_layer._attend(projected, attended[0], None, False)
    dropped, _ = bert_layer._attend(projected, attended[1], mask, False)
    assert (dropped * factors[0] - plain).mean().abs() < 0.005


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("first", [False, True])
def test_attention_weights_made_again_are_those_kept(
    monkeypatch: pytest.MonkeyPatch, first: bool, dropout: float
) -> None:
    layout = layout_of(torch.tensor(RAGGED["many"]))
    states, tensors = states_of(layout), weights(reference())
    rule = rule_of(layout, first=first, attention=dropout, hidden=dropout)
    kept: list[bool] = []
    attend = bert_layer._attend

    def watching(*args: Any) -> Any:
        kept.append(args[3])
        return attend(*args)

    monkeypatch.setattr(bert_layer, "_attend", watching)
    runs = []
    for limit in (bert_layer.KEPT_WEIGHTS, 0):
        monkeypatch.setattr(bert_layer, "KEPT_WEIGHTS", limit)
        torch.manual_seed(2)
        out = layer_states(states, tensors, rule)
        runs.append([out, *gradients(out, [states, *tensors])])
    assert kept == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_long_sequences_do_not_keep_their_weights() -> None:
    # HEADS * length values a token: kept up to the limit, made again beyond.
    torch.manual_seed(0)
    length = bert_layer.KEPT_WEIGHTS // HEADS + 1
    layout = layout_of(torch.tensor([length]))
    states, tensors = states_of(layout), weights(reference())
    out = layer_states(states, tensors, rule_of(layout))
    assert out.grad_fn is not None
    assert out.grad_fn.kept is None  # type: ignore[attr-defined]
    short = layout_of(torch.tensor([8]))
    assert layer_states(states_of(short), tensors, rule_of(short)).grad_fn.kept is not None  # type: ignore[union-attr]
    layer = reference()
    expected = one_by_one(layer, states, layout)
    same(gradients(out, [states, *tensors]), gradients(expected, [states, *weights(layer)]))


def test_some_weights_may_be_frozen() -> None:
    layer, layout = reference(), layout_of(torch.tensor(RAGGED["ragged"]))
    states = states_of(layout)
    layer.attention.requires_grad_(False)
    found, expected = layer_states(states, weights(layer), rule_of(layout)), one_by_one(layer, states, layout)
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    assert len(learning) == 6
    same(gradients(found, [states, *learning]), gradients(expected, [states, *learning]))
    layer_states(states, weights(layer), rule_of(layout)).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in layer.parameters())


def test_nothing_is_kept_without_gradients() -> None:
    layer, layout = reference(), layout_of(torch.tensor(RAGGED["ragged"]))
    states = states_of(layout)
    with torch.no_grad():
        found = layer_states(states, weights(layer), rule_of(layout))
    assert found.grad_fn is None
    same([found], [one_by_one(layer, states, layout)])
    layer.requires_grad_(False)
    assert layer_states(states.detach(), weights(layer), rule_of(layout)).grad_fn is None


def test_going_back_twice_is_refused() -> None:
    layer, layout = reference(), layout_of(torch.tensor([2, 3]))
    states = states_of(layout)
    out = layer_states(states, weights(layer), rule_of(layout))
    (slope,) = torch.autograd.grad(out.square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    out = layer_states(states, weights(layer), rule_of(layout))
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_inputs_are_left_as_they_were() -> None:
    layer, layout = reference(), layout_of(torch.tensor(RAGGED["ragged"]))
    states = states_of(layout)
    before = [tensor.detach().clone() for tensor in (states, *weights(layer))]
    for first in (False, True):
        out = layer_states(states, weights(layer), rule_of(layout, first=first, attention=0.1, hidden=0.1))
        out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (states, *weights(layer)), strict=True))


# --- whole models ----------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 101, "num_labels": 3, "pad_token_id": 0, "hidden_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 3, "intermediate_size": 48, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "bert": BertConfig, "roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig, "camembert": CamembertConfig,
}  # fmt: skip


def build(kind: str, **options: Any) -> tuple[Network, Any]:
    """Return a network and an untouched copy of its transformers model, both in float64."""
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(FAMILIES[kind](**{**SIZES, **options})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(model)
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, "auto")
    return network, plain


def make(lengths: list[int]) -> Batch:
    tokens = torch.randint(1, 101, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, torch.tensor(lengths), None, None, torch.arange(len(lengths)))


def alone(model: Any, batch: Batch) -> Tensor:
    parts = batch.tokens.split(batch.lengths.tolist())
    return torch.cat([model(part[None], attention_mask=torch.ones_like(part[None])).logits for part in parts])


@pytest.fixture
def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows by each layer run in one piece: whether it ran for first tokens only."""
    seen: list[bool] = []
    run = bert_layer.layer_states

    def counting(states: Tensor, tensors: Sequence[Tensor], rule: LayerRule) -> Tensor:
        seen.append(rule.first is not None)
        return run(states, tensors, rule)

    monkeypatch.setattr(bert_layer, "layer_states", counting)
    return seen


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_of_these_layers_run_in_one_piece(kind: str, layers_run: list[bool]) -> None:
    network, plain = build(kind)
    assert network.ragged
    layers_run.clear()
    batch = make([2, 5, 5, 9, 13, 20])
    found, expected = forward.logits(network, batch), alone(plain, batch)
    assert layers_run == [False, False, True]
    same([found], [expected])
    mine, theirs = dict(network.classifier.named_parameters()), dict(plain.named_parameters())
    # The head of BERT reads its pooler, the others' models have none; whatever learns, learns the same.
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in theirs.items():
        grad, own = parameter.grad, mine[name].grad
        assert grad is not None, name
        assert own is not None, name
        same([own], [grad])
    layers_run.clear()
    with torch.no_grad():
        pooled = forward.embed(network, batch, "mean")
        parts = batch.tokens.split(batch.lengths.tolist())
        means = [plain.base_model(part[None]).last_hidden_state[0].mean(0) for part in parts]
    assert layers_run == [False] * 3
    same([pooled], [torch.stack(means)])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("act", ["relu", "gelu_new"])
def test_another_activation_takes_the_other_way(kind: str, act: str, layers_run: list[bool]) -> None:
    network, plain = build(kind, hidden_act=act)
    assert network.ragged
    batch = make([2, 5, 5, 9])
    same([forward.logits(network, batch)], [alone(plain, batch)])
    assert not layers_run


def test_frozen_lower_layers_and_their_embeddings_get_no_gradient() -> None:
    from finesmith.models.layers import freeze_lowest

    network, plain = build("bert")
    freeze_lowest(network.classifier, 2)
    freeze_lowest(plain, 2)
    batch = make([2, 5, 5, 9])
    forward.logits(network, batch).square().sum().backward()
    alone(plain, batch).square().sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in network.classifier.named_parameters():
        other = theirs[name].grad
        assert (parameter.grad is None) == (other is None), name
        if parameter.grad is not None and other is not None:
            same([parameter.grad], [other])


def test_layers_with_an_adapter_take_the_other_way(layers_run: list[bool]) -> None:
    from finesmith.models.adapter_kinds import add_adapter

    network, plain = build("bert")
    add_adapter(network, "lora", {"r": 2, "target_modules": ["query", "value"]}, seed=0)
    layer = network.classifier.base_model.encoder.layer[0]
    assert weights_of(layer) is None
    assert weights_of(plain.bert.encoder.layer[0]) is not None
    batch = make([2, 5, 5, 9])
    layers_run.clear()
    # A fresh adapter adds nothing.
    same([forward.logits(network, batch)], [alone(plain, batch)])
    assert not layers_run
    # One that has learnt does; peft's own forward is the oracle.
    with torch.no_grad():
        for name, parameter in network.module.named_parameters():
            if "lora_" in name:
                parameter.add_(0.5)
    standard = copy.deepcopy(network.classifier)
    standard.set_attn_implementation("eager")
    found, expected = forward.logits(network.__class__(**fields(network)), batch), alone(standard, batch)
    same([found], [expected])
    assert (found - alone(plain, batch)).abs().max() > 1e-3


def fields(network: Network) -> dict[str, Any]:
    from dataclasses import fields as names

    return {field.name: getattr(network, field.name) for field in names(network)}


def test_autocast_takes_the_other_way(layers_run: list[bool]) -> None:
    network, _ = build("bert")
    network.classifier.float()
    layers_run.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = forward.logits(network, make([2, 5]))
    assert not layers_run
    assert out.isfinite().all()
    forward.logits(network, make([2, 5]))
    assert layers_run


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_of_the_layer_follows_the_mode(dropout: float, layers_run: list[bool]) -> None:
    config = BertConfig(**{**SIZES, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout})
    model = NativeBert(NativeConfig(config.to_dict(), num_labels=3)).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    network = Network(model, model, None, True, "", 0)  # type: ignore[arg-type]
    batch = make([2, 5, 5, 9])
    outs = [forward.logits(network, batch) for _ in range(2)]
    assert torch.equal(*outs) == (dropout == 0)
    model.eval()
    outs = [forward.logits(network, batch) for _ in range(2)]
    assert torch.equal(*outs)
    assert len(layers_run) == 12


@pytest.mark.parametrize("first_only", [False, True])
def test_what_is_not_remembered_is_computed_without_all_weights(
    first_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, layout = reference(), layout_of(torch.tensor([1, 3, 5, 5, 9]))
    states, weights = states_of(layout), weights_of(layer)
    assert weights is not None
    rules = [
        LayerRule(layout.groups, HEADS, EPSILONS, 0.0, 0.0, layout.starts if first_only else None, remember)
        for remember in (True, False)
    ]
    with torch.no_grad():
        expected = layer_states(states, weights, rules[0])
        monkeypatch.setattr(bert_layer, "LONG", 2)
        called: list[int] = []
        kernel = nn.functional.scaled_dot_product_attention

        def counted(query: Tensor, *parts: Tensor, **options: Any) -> Tensor:
            called.append(query.shape[-2])
            return kernel(query, *parts, **options)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
        found = layer_states(states, weights, rules[1])
    assert len(called) == 3, "one call for each length above the limit"
    assert float((found - expected).abs().max()) < 1e-10


def test_many_attention_weights_are_dropped_by_bytes_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, layout = reference(), layout_of(torch.tensor([4, 4, 7]))
    weights = weights_of(layer)
    assert weights is not None
    rule = LayerRule(layout.groups, HEADS, EPSILONS, 0.3, 0.2)
    results = []
    for kept in (4096, 0):
        monkeypatch.setattr(bert_layer, "KEPT_WEIGHTS", kept)
        states = states_of(layout).requires_grad_()
        torch.manual_seed(3)
        out = layer_states(states, weights, rule)
        out.square().sum().backward()
        results.append((out.detach(), states.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=0, atol=1e-12)  # type: ignore[arg-type]
