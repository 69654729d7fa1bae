"""Blocks that are computed again on the way back: the same bits, and less kept."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import test_families
import test_token_loss
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

from finesmith.errors import ModelError
from finesmith.models import forward
from finesmith.models.adapter_kinds import add_adapter
from finesmith.models.again import _Call, again
from finesmith.models.blocks import recompute_blocks
from finesmith.models.dropout import quicken_dropout
from finesmith.models.forward import Network
from finesmith.models.language import choose_token_attention
from finesmith.models.load import choose_attention
from finesmith.models.runner import decoder_start
from finesmith.models.token_heads import TokenNetwork
from finesmith.models.token_loss import token_loss
from finesmith.types import Batch

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
DROPPED = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout", "attn_pdrop", "embd_pdrop",
    "resid_pdrop", "mlp_dropout", "embedding_dropout", "hidden_dropout",
)  # fmt: skip


def config_of(name: str, dropout: float) -> Any:
    config = copy.deepcopy(test_families.ALL[name])
    for key in DROPPED:
        if key in config.to_dict():
            setattr(config, key, dropout)
    return config


def results(module: torch.nn.Module, loss_of: Any) -> list[torch.Tensor]:
    """Return the loss, every gradient, and the next random number."""
    module.train()
    module.zero_grad()
    torch.manual_seed(5)
    loss = loss_of()
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [loss.detach(), *(gradient.clone() for gradient in gradients), torch.rand(3)]


def same(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: float = 0.0) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1e-3, float(b.abs().max()))


def classifier(name: str, dropout: float, attention: Any) -> Network:
    torch.manual_seed(0)
    model: Any = test_families.AutoModelForSequenceClassification.from_config(config_of(name, dropout)).double()
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, attention)
    return network


LENGTHS = [2, 5, 5, 9, 13, 20, 30]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows whenever a block runs as one that is computed again."""
    seen: list[int] = []
    run = _Call.run
    monkeypatch.setattr(_Call, "run", lambda call, inputs: seen.append(len(inputs)) or run(call, inputs))
    return seen


def check(network: Network, loss: Any, runs: list[int], blocks: int = 2, tolerance: float = 0.0) -> None:
    before = results(network.module, loss)
    recompute_blocks(network)
    assert runs == []
    same(results(network.module, loss), before, tolerance)
    assert len(runs) == 2 * blocks, "each block there and on the way back"
    runs.clear()
    network.module.eval()
    with torch.no_grad():
        loss()
    assert runs == []


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert mean", "gpt2", "llama", "gemma", "albert", "opt"])
def test_classifiers_give_the_same_bits(name: str, dropout: float, attention: str, runs: list[int]) -> None:
    network, batch = classifier(name, dropout, attention), test_families.make(LENGTHS)
    if dropout:
        quicken_dropout(network.module)
    check(network, lambda: cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum"), runs)


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("causal", "llama"), ("causal", "qwen2"), ("causal", "gpt2"), ("masked", "bert"), ("token", "bert")],
)
def test_losses_of_tokens_give_the_same_bits(
    kind: Any, name: str, dropout: float, attention: Any, runs: list[int]
) -> None:
    torch.manual_seed(0)
    model: Any = test_token_loss.AUTO[kind].from_config(config_of(name, dropout)).double()
    network = TokenNetwork(model, model, None, False, "", 0, kind=kind)  # type: ignore[arg-type]
    choose_token_attention(network, attention)
    assert network.walked == (name in test_token_loss.WALKED and attention == "auto")
    check(network, lambda: token_loss(network, test_token_loss.make(kind))[0], runs)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prompt"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_adapters_learn_in_the_lowest_block_too(method: Any, name: str, runs: list[int]) -> None:
    network, batch = classifier(name, 0.1, "auto"), test_families.make(LENGTHS)
    options = {"num_virtual_tokens": 3} if method == "prompt" else {}
    add_adapter(network, method, options, seed=0)
    groups = 1 if method != "prompt" else len(set(LENGTHS))
    check(
        network, lambda: cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum"), runs, 2 * groups
    )
    learnt = {name: p.grad for name, p in network.module.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in learnt.values())
    lowest = [gradient for name, gradient in learnt.items() if ".0." in name and "lora_A" not in name]
    assert method == "prompt" or (lowest and all(gradient.any() for gradient in lowest if gradient is not None))


def test_long_texts_and_frozen_layers(runs: list[int]) -> None:
    # Beyond 128 tokens a layer of BERT goes another way without gradients, which rounds otherwise.
    config = config_of("bert", 0.0)
    config.max_position_embeddings = 300
    torch.manual_seed(0)
    model: Any = test_families.AutoModelForSequenceClassification.from_config(config).double()
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, "ragged")
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    batch = test_families.make([7, 150, 220])
    loss = lambda: cross_entropy(forward.logits(network, batch), batch.targets, reduction="sum")  # noqa: E731
    check(network, loss, runs, 1)


SEQ2SEQ = {
    "t5": T5Config(
        vocab_size=101, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, decoder_start_token_id=0,
        pad_token_id=0, dropout_rate=0.2,
    ),
    "bart": BartConfig(
        vocab_size=101, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, dropout=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders_give_the_same_to_rounding(name: str, runs: list[int]) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(SEQ2SEQ[name])).double()
    network = TokenNetwork(model, model, None, False, "", 0, kind="seq2seq", start=decoder_start(model))  # type: ignore[arg-type]
    lengths = [7, 9, 12]
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 101, (sum(lengths),), generator=random)
    targets = torch.full_like(tokens, -100)
    for end in torch.tensor(lengths).cumsum(0).tolist():
        targets[end - 3 : end] = tokens[end - 3 : end]
    batch = Batch(tokens, torch.tensor(lengths), None, targets, torch.arange(3))
    # What all blocks of the decoder read gets its gradients block by block.
    check(network, lambda: token_loss(network, batch)[0], runs, 4, tolerance=1e-12)


def test_bfloat16_under_autocast_gives_the_same_bits() -> None:
    network, batch = classifier("llama", 0.1, "padded"), test_families.make(LENGTHS)
    network.module.float()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(forward.logits(network, batch).float(), batch.targets, reduction="sum")

    before = results(network.module, loss)
    recompute_blocks(network)
    same(results(network.module, loss), before)


def test_a_model_without_layers_is_refused() -> None:
    model: Any = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"leave train\.activation_checkpointing and train\.compile at false"):
        recompute_blocks(Network(model, model, None, False, "", 0))  # type: ignore[arg-type]


def test_inputs_and_outputs_in_any_form() -> None:
    block = torch.nn.Linear(3, 3).double()
    x, y = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(first: torch.Tensor, *, more: dict[str, Any], name: str) -> tuple[Any, ...]:
        return block(first) * more["other"], name, None, {"same": more["other"], "constant": torch.ones(2)}

    def value(call: Any) -> torch.Tensor:
        product, name, nothing, rest = call(x, more={"other": y}, name="a")
        assert (name, nothing) == ("a", None)
        assert not rest["constant"].requires_grad
        return (product.sin() + rest["same"].square()).sum()

    leaves = [x, y, *block.parameters()]
    expected = torch.autograd.grad(value(function), leaves)
    found = torch.autograd.grad(value(lambda *a, **k: again(function, block, *a, **k)), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # What is not asked for is not computed, and an output that nobody reads brings no gradient.
    product = again(function, block, x.detach(), more={"other": y}, name="a")[0]
    assert torch.autograd.grad(product.sum(), [y])[0].shape == y.shape


PEAK = """
import gc, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig
from finesmith.models import forward
from finesmith.models.blocks import recompute_blocks
from finesmith.models.language import choose_token_attention
from finesmith.models.load import choose_attention
from finesmith.models.token_heads import TokenNetwork
from finesmith.models.token_loss import token_loss
from finesmith.types import Batch
torch.set_num_threads(1)
sizes = dict(vocab_size=101, hidden_size=96, num_hidden_layers=10, num_attention_heads=3, intermediate_size=384,
             max_position_embeddings=64, pad_token_id=0)
def network_of(name):
    if name == "bert":
        model = AutoModelForSequenceClassification.from_config(BertConfig(**sizes))
        network = forward.Network(model, model, None, False, "", 0)
        choose_attention(network, "ragged")
    else:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
        network = TokenNetwork(model, model, None, False, "", 0, kind="causal")
        choose_token_attention(network, "ragged")
    model.train()
    return network
def step(name, network, count):
    tokens = torch.randint(1, 101, (count * 32,))
    batch = Batch(tokens, torch.full((count,), 32), None, tokens, torch.arange(count))
    loss = forward.logits(network, batch).sum() if name == "bert" else token_loss(network, batch)[0]
    loss.backward()
def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
def peak(name, network):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step(name, network, 64)
    return resident("VmHWM") - before
for name in ("bert", "llama"):
    plain, less = network_of(name), network_of(name)
    recompute_blocks(less)
    step(name, plain, 2), step(name, less, 2)
    print(peak(name, less) / peak(name, plain))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux tells it")
def test_peak_memory_is_lower() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=100, check=True)
    shares = [float(line) for line in done.stdout.splitlines()]
    assert len(shares) == 2
    assert max(shares) < 0.4
