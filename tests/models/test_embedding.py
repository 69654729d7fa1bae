"""The kept gradient of an embedding is the gradient of torch's embedding, step after step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finesmith.models import embedding as module
from finesmith.models.embedding import KeptEmbedding, keep_gradients
from finesmith.train.adamw import AdamW
from finesmith.train.step import clip_gradients

ROWS, WIDTH = 23, 4


def pair(padding: int | None = 0) -> tuple[nn.Embedding, KeptEmbedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(ROWS, WIDTH, padding_idx=padding, dtype=torch.float64)
    return plain, KeptEmbedding(nn.Parameter(plain.weight.detach().clone()), padding)


def tokens_of(step: int, micro: int = 0, high: int = ROWS) -> Tensor:
    random = torch.Generator().manual_seed(100 * step + micro)
    return torch.randint(0, high, (3, 5 + micro), generator=random)


def loss_of(table: nn.Module, tokens: Tensor) -> Tensor:
    shares = torch.linspace(-1, 2, tokens.numel() * WIDTH, dtype=torch.float64).view(*tokens.shape, WIDTH)
    out: Tensor = table(tokens)
    assert out.shape == (*tokens.shape, WIDTH)
    return (out.square() * shares).sum()


def same_gradient(kept: nn.Embedding, plain: nn.Embedding) -> None:
    assert (kept.weight.grad is None) == (plain.weight.grad is None)
    if kept.weight.grad is not None and plain.weight.grad is not None:
        assert torch.allclose(kept.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("padding", [None, 0, 7, -1])
@pytest.mark.parametrize("forget", ["none", "zeros", "in turns"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_are_those_of_torch(padding: int | None, forget: str, micro_batches: int) -> None:
    plain, kept = pair(padding)
    assert kept.padding_idx == plain.padding_idx
    optimizers = [
        AdamW([{"params": [table.weight], "lr": 0.1, "weight_decay": 0.01}], eps=1e-3) for table in (plain, kept)
    ]
    for step in range(12):
        for table, optimizer in zip((plain, kept), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=forget == "none" or (forget == "in turns" and step % 3 == 0))
            if step != 6:  # a step that meets no word
                for micro in range(micro_batches):
                    loss_of(table, tokens_of(step, micro)).backward()  # type: ignore[no-untyped-call]
        same_gradient(kept, plain)
        if plain.weight.grad is not None:
            norms = [clip_gradients([table.weight], 0.5) for table in (plain, kept)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-12)
        same_gradient(kept, plain)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.allclose(kept.weight, plain.weight, rtol=1e-10, atol=1e-12)


def test_rows_not_met_have_no_gradient_and_the_tensor_is_one() -> None:
    _, kept = pair(None)
    loss_of(kept, torch.tensor([[1, 2, 2]])).backward()  # type: ignore[no-untyped-call]
    first = kept.weight.grad
    assert first is not None
    assert first.abs().sum(1).nonzero().flatten().tolist() == [1, 2]
    kept.weight.grad = None
    loss_of(kept, torch.tensor([[5, 2, 9]])).backward()  # type: ignore[no-untyped-call]
    assert kept.weight.grad is first
    assert first.abs().sum(1).nonzero().flatten().tolist() == [2, 5, 9]


def test_a_gradient_set_from_outside_is_added_to_and_does_not_stain_the_kept_one() -> None:
    plain, kept = pair(None)
    for table in (plain, kept):
        loss_of(table, tokens_of(0)).backward()  # type: ignore[no-untyped-call]
        table.weight.grad = torch.full((ROWS, WIDTH), 0.5, dtype=torch.float64)
        loss_of(table, tokens_of(1, high=6)).backward()  # type: ignore[no-untyped-call]
    same_gradient(kept, plain)
    for table in (plain, kept):
        table.weight.grad = None
        loss_of(table, tokens_of(2)).backward()  # type: ignore[no-untyped-call]
    same_gradient(kept, plain)


def test_two_uses_in_one_loss_add_up() -> None:
    plain, kept = pair()
    for table in (plain, kept):
        (loss_of(table, tokens_of(0)) + 3 * loss_of(table, tokens_of(1))).backward()  # type: ignore[no-untyped-call]
    same_gradient(kept, plain)


def test_frozen_tables_and_evaluation_record_nothing() -> None:
    plain, kept = pair()
    with torch.no_grad():
        assert torch.equal(kept(tokens_of(0)), plain(tokens_of(0)))
        assert not kept(tokens_of(0)).requires_grad
    kept.weight.requires_grad_(False)
    assert not kept(tokens_of(0)).requires_grad
    assert kept.total is None
    frozen = KeptEmbedding(nn.Parameter(torch.ones(3, 2), requires_grad=False), None)
    assert not frozen.weight.requires_grad


def test_a_copy_learns_on_its_own() -> None:
    _, kept = pair()
    loss_of(kept, tokens_of(0)).backward()  # type: ignore[no-untyped-call]
    other = copy.deepcopy(kept)
    kept.weight.grad = other.weight.grad = None
    loss_of(other, torch.tensor([[3]])).backward()  # type: ignore[no-untyped-call]
    loss_of(kept, torch.tensor([[4]])).backward()  # type: ignore[no-untyped-call]
    assert kept.weight.grad is not None
    assert other.weight.grad is not None
    assert kept.weight.grad.any(1).nonzero().flatten().tolist() == [4]
    assert other.weight.grad.any(1).nonzero().flatten().tolist() == [3]


# --- which tables are replaced ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_tables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_KEEPING", ROWS * WIDTH)


class Model(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_large_tables_are_replaced_and_keep_their_name_weights_and_mode() -> None:
    plain, _ = pair()
    model = Model(words=plain, places=nn.Embedding(ROWS - 1, WIDTH), head=nn.Linear(WIDTH, 2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert keep_gradients(model) == 1
    assert type(model.words) is KeptEmbedding
    assert type(model.places) is nn.Embedding
    assert not model.words.training
    assert model.words.padding_idx == 0
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(dict(model.named_parameters())) == list(before)
    frozen = Model(words=copy.deepcopy(plain)).requires_grad_(False)
    keep_gradients(frozen)
    assert not frozen.words.weight.requires_grad


def test_tied_tables_are_left() -> None:
    plain, _ = pair()
    head = nn.Linear(WIDTH, ROWS, bias=False, dtype=torch.float64)
    head.weight = plain.weight
    model = Model(words=plain, head=head)
    assert keep_gradients(model) == 0
    assert model.words is plain
    assert head.weight is plain.weight


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_that_stands_in_two_places_is_left(nested: bool) -> None:
    plain, _ = pair()
    model = Model(words=plain, encoder=Model(words=plain)) if nested else Model(words=plain, again=plain)
    assert keep_gradients(model) == 0
    assert {id(part) for part in model.modules() if isinstance(part, nn.Embedding)} == {id(plain)}


class Scaled(nn.Embedding):
    """As in Gemma 3 and others: the rows times a number."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


@pytest.mark.parametrize(
    "odd",
    [
        Scaled(ROWS, WIDTH),
        nn.Embedding(ROWS, WIDTH, max_norm=1.0),
        nn.Embedding(ROWS, WIDTH, scale_grad_by_freq=True),
        nn.Embedding(ROWS, WIDTH, sparse=True),
    ],
    ids=["another forward", "max_norm", "scale_grad_by_freq", "sparse"],
)
def test_tables_that_do_more_are_left(odd: nn.Embedding) -> None:
    model = Model(words=odd)
    assert keep_gradients(model) == 0
    assert model.words is odd


@pytest.mark.parametrize("kind", ["gemma3_text", "bert", "gpt2", "roberta", "electra", "modernbert"])
def test_models_answer_and_learn_the_same_with_it(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes: dict[str, Any] = {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": 40,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(0)
    plain: Any = AutoModelForSequenceClassification.from_config(config).double().eval()
    kept = copy.deepcopy(plain)
    # Gemma 3 scales the rows, so its table is left.
    assert (keep_gradients(kept) > 0) == (kind != "gemma3_text")
    for step in range(3):
        ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(step))
        for model in (plain, kept):
            model.zero_grad()
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
        theirs = dict(plain.named_parameters())
        for name, parameter in kept.named_parameters():
            expected = theirs[name].grad
            if expected is None:
                assert parameter.grad is None, name
            else:
                assert parameter.grad is not None, name
                assert torch.allclose(parameter.grad, expected, rtol=1e-9, atol=1e-12), name
