"""Attention by torch's variable-length kernel: when it is used, what it is given, and on a GPU what it computes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import test_families
import test_token_loss
import torch
from torch.nn.functional import cross_entropy

from finesmith.models import forward, varlen
from finesmith.models.attention import layout_of, one_each, ragged_attention
from finesmith.models.token_loss import token_loss
from finesmith.types import Batch

LENGTHS = [1, 3, 3, 8, 20]
HALF = torch.bfloat16


def stand_in(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges_q: torch.Tensor, edges_k: torch.Tensor,
    longest_q: int, longest_k: int, *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    """Do on a CPU what torch's documentation says that the kernel does; windows are counted from the last query."""
    assert edges_q.dtype == edges_k.dtype == torch.int32
    assert all(x.is_contiguous() for x in (query, key, value))
    assert longest_q == int(edges_q.diff().max())
    assert longest_k == int(edges_k.diff().max())
    outputs, left, right = [], *window_size
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for i in range(len(edges_q) - 1):
        q, k, v = (
            x[edges[i] : edges[i + 1]].transpose(0, 1)
            for x, edges in ((query, edges_q), (key, edges_k), (value, edges_k))
        )
        distance = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])[None]
        seen = (distance <= left if left >= 0 else True) & (-distance <= right if right >= 0 else distance == distance)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        outputs.append((torch.softmax(scores, -1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def given(heads: int, kept: int, single: bool, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Any:
    random = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    sizes = (heads, len(LENGTHS) if single else tokens), (kept, tokens), (kept, tokens)
    drawn = [torch.randn(1, h, t, 8, generator=random, dtype=torch.float64) for h, t in sizes]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


RULES = [
    {"is_causal": False}, {"is_causal": True}, {"is_causal": False, "sliding_window": 4},
    {"is_causal": True, "sliding_window": 4}, {"is_causal": True, "scaling": 0.1}, {"is_causal": False, "single": True},
]  # fmt: skip


def attended(rule: dict[str, Any], kept: int, **where: Any) -> list[torch.Tensor]:
    """Return what ragged attention makes, and the gradients of query, key and value."""
    single = rule.get("single", False)
    inputs = given(4, kept, single, **where)
    options = {key: value for key, value in rule.items() if key != "single"}
    layout = layout_of(torch.tensor(LENGTHS, device=inputs[0].device))
    out, _ = ragged_attention(torch.nn.Module(), *inputs, None, ragged_layout=layout, **options)
    upper = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad((out * upper).sum(), inputs)]


@pytest.mark.parametrize("kept", [4, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kernel_is_given_what_the_other_way_computes(
    rule: dict[str, Any], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attended(rule, kept)
    monkeypatch.setattr(varlen, "kernel_for", lambda *_, **__: stand_in)
    for found, wanted in zip(attended(rule, kept), expected, strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["bert", "modernbert mean", "llama", "qwen2", "gpt2"])
def test_whole_models_answer_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = test_families.build(name)
    batch = test_families.make(test_families.LENGTHS)
    monkeypatch.setattr("finesmith.models.bert_layer.weights_of", lambda _: None)
    expected = forward.logits(network, batch)
    monkeypatch.setattr(varlen, "kernel_for", lambda *_, **__: stand_in)
    assert test_families.same(forward.logits(network, batch), expected, 1e-12)


def test_edges_are_where_sequences_begin() -> None:
    layout = layout_of(torch.tensor([2, 2, 5]))
    assert layout.edges.tolist() == [0, 2, 4, 9]
    assert layout.edges.dtype == torch.int32
    assert one_each(layout).edges.tolist() == [0, 1, 2, 3]


def test_the_check_tells_a_kernel_that_errs() -> None:
    cpu = torch.device("cpu")
    assert varlen.largest_gap(stand_in, cpu, torch.float64, 8) < 1e-6
    for width in (8, 64, 256):
        assert varlen.largest_gap(stand_in, cpu, HALF, width) < varlen.TOLERANCE

    def one_off(*tensors: Any, window_size: tuple[int, int], **rest: Any) -> torch.Tensor:
        left, right = window_size
        return stand_in(*tensors, window_size=(left + 1 if left > 0 else left, right), **rest)

    def looks_ahead(*tensors: Any, window_size: tuple[int, int], **rest: Any) -> torch.Tensor:
        return stand_in(*tensors, window_size=(window_size[0], -1), **rest)

    def unscaled(*tensors: Any, scale: float | None, **rest: Any) -> torch.Tensor:
        return stand_in(*tensors, scale=None, **rest)

    for wrong in (one_off, looks_ahead, unscaled):
        assert varlen.largest_gap(wrong, cpu, HALF, 64) > 2 * varlen.TOLERANCE


def test_no_random_number_is_drawn_by_the_check() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    varlen.largest_gap(stand_in, torch.device("cpu"), HALF, 8)
    assert torch.equal(torch.rand(2), expected)


def test_why_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, why = torch.device("cuda", 0), varlen.why_not.__wrapped__
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(varlen, "largest_gap", lambda *_: 0.01)
    assert why(torch.device("cpu"), HALF, 64) == "it needs a CUDA GPU"
    assert why(cuda, HALF, 64) is None
    assert why(cuda, torch.float32, 64) == "it takes numbers of two bytes, not float32"
    assert "heads are 60 wide" in why(cuda, HALF, 60)
    assert "heads are 512 wide" in why(cuda, HALF, 512)
    monkeypatch.setattr(varlen, "largest_gap", lambda *_: 0.3)
    assert why(cuda, HALF, 64) == "it differs by 0.3 from what it should compute"
    nothing = torch.tensor([float("nan")])
    monkeypatch.setattr(varlen, "largest_gap", lambda *_: float(nothing.max()))
    assert why(cuda, HALF, 64) is not None

    def old(*_: Any) -> float:
        raise TypeError("varlen_attn() got an unexpected keyword argument 'scale'")

    monkeypatch.setattr(varlen, "largest_gap", old)
    assert why(cuda, HALF, 64) == "TypeError: varlen_attn() got an unexpected keyword argument 'scale'"
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert why(cuda, HALF, 64) == "this build of torch has no flash attention"


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({}, True), ({"dropout": 0.1}, False), ({"device": "cpu"}, False), ({"dtype": torch.float32}, False),
        ({"single": True}, True), ({"window": 4}, True), ({"single": True, "window": 4}, False), ({"width": 12}, False),
    ],
)  # fmt: skip
def test_when_it_is_chosen(change: dict[str, Any], used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"device": "cuda", "dtype": HALF, "dropout": 0.0, "single": False, "window": None, "width": 64, **change}
    monkeypatch.setattr(varlen, "why_not", varlen.why_not.__wrapped__)
    monkeypatch.setattr(varlen, "largest_gap", lambda *_: 0.0)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    tensor: Any = SimpleNamespace(device=torch.device(how["device"]), dtype=how["dtype"], shape=(1, 2, 9, how["width"]))
    kernel = varlen.kernel_for(tensor, tensor, dropout=how["dropout"], single=how["single"], window=how["window"])
    assert (kernel is not None) == used
    # Under autocast float32 comes in and two-byte numbers go to the kernel.
    if how["dtype"] == torch.float32:
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: HALF)
        assert varlen.kernel_for(tensor, tensor, dropout=0.0, single=False, window=None) is not None


def test_what_computes_attention_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = test_families.build("llama")
    padded, _ = test_families.build("llama", "padded")
    assert varlen.told(padded, HALF) == "as transformers has it"
    assert varlen.told(network, HALF) == "finesmith's own, on a CPU"
    seen: list[Any] = []
    monkeypatch.setattr(forward.Network, "device", torch.device("cuda", 0))
    monkeypatch.setattr(varlen, "why_not", lambda *given: seen.append(given))
    assert varlen.told(network, HALF) == "one variable-length call a layer, where no dropout acts in it"
    assert seen == [(torch.device("cuda", 0), HALF, 8)]
    monkeypatch.setattr(varlen, "why_not", lambda *_: "it takes numbers of two bytes, not float32")
    assert varlen.told(network, torch.float32).startswith("a call for each length (it takes numbers of two bytes")


def test_torch_has_the_kernel_with_these_parameters() -> None:
    import inspect

    names = inspect.signature(varlen._kernel()).parameters
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(names)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kept", [4, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_on_a_gpu_the_kernel_gives_what_a_cpu_gives(rule: dict[str, Any], kept: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert varlen.why_not(device, HALF, 8) is None
    for found, wanted in zip(attended(rule, kept, dtype=HALF, device="cuda"), attended(rule, kept), strict=True):
        assert float((found.double().cpu() - wanted).abs().max()) < 0.05 * max(1.0, float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_on_a_gpu_a_model_learns_as_on_a_cpu(name: str) -> None:
    network, _ = test_token_loss.build("causal", name)
    batch = test_token_loss.make("causal")
    loss, count = token_loss(network, batch)
    loss.backward()
    expected = {key: p.grad.clone() for key, p in network.module.named_parameters() if p.grad is not None}
    again = copy.deepcopy(network.module).float().cuda()
    again.zero_grad()
    network.module = network.classifier = again
    there = Batch(
        *(None if x is None else x.cuda() for x in (batch.tokens, batch.lengths, batch.segments, batch.targets)),
        batch.ids,
    )
    with torch.autocast("cuda", HALF):
        found, same = token_loss(network, there)
    found.backward()
    assert same == count
    assert float(found) == pytest.approx(float(loss), rel=2e-2)
    for key, parameter in again.named_parameters():
        if key in expected:
            close = torch.nn.functional.cosine_similarity(
                parameter.grad.double().cpu().flatten(), expected[key].flatten(), dim=0
            )
            assert float(close) > 0.98, key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_classifier_learns_with_dropout_too() -> None:
    network, _ = test_families.build("bert")
    network.module.float().cuda().train()
    batch = test_families.make(test_families.LENGTHS)
    there = Batch(batch.tokens.cuda(), batch.lengths.cuda(), None, batch.targets.cuda(), batch.ids)
    for probability in (0.0, 0.1):
        for layer in network.classifier.base_model.encoder.layer:
            layer.attention.self.dropout.p = probability
        with torch.autocast("cuda", HALF):
            loss = cross_entropy(forward.logits(network, there).float(), there.targets)
        loss.backward()
        assert loss.isfinite()
