"""Depths of parameters, freezing from below, and where the head is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from finesmith.errors import ModelError
from finesmith.models.layers import (
    blocks,
    capture_input,
    depths,
    final_linear,
    freeze_lowest,
    head_names,
)

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 24, "num_labels": 5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "cls_token_id": 1, "sep_token_id": 2, "num_key_value_heads": 2,
}  # fmt: skip
# family: where its blocks are, and its head's tensors
FAMILIES = {
    "bert": ("bert.encoder.layer", {"classifier.weight", "classifier.bias"}),
    "roberta": (
        "roberta.encoder.layer",
        {"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"},
    ),
    "distilbert": (
        "distilbert.transformer.layer",
        {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    ),
    "deberta-v2": (
        "deberta.encoder.layer",
        {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"},
    ),
    "modernbert": (
        "model.layers", {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}
    ),
    "gpt2": ("transformer.h", {"score.weight"}),
    "llama": ("model.layers", {"score.weight"}),
    "qwen3": ("model.layers", {"score.weight"}),
}  # fmt: skip


def build(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SIZES))


@pytest.mark.parametrize("kind", FAMILIES)
def test_depths_run_from_the_embeddings_to_the_head(kind: str) -> None:
    model = build(kind)
    place, head = FAMILIES[kind]
    assert blocks(model) == [f"{place}.{i}" for i in range(LAYERS)]
    found = depths(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, depth in found.items():
        if name.startswith(f"{place}."):
            assert depth == int(name.removeprefix(f"{place}.").split(".")[0]) + 1
        else:
            # Everything that runs before the first block counts as embeddings; all that runs after the last, as top.
            early = any(part in name for part in ("embed", "wte", "wpe"))
            assert depth == (0 if early else LAYERS + 1), name
    assert set(head_names(model)) == head
    assert {found[name] for name in head} == {LAYERS + 1}


@pytest.mark.parametrize("count", [0, 2, LAYERS])
@pytest.mark.parametrize("kind", FAMILIES)
def test_freezing_holds_embeddings_and_the_lowest_blocks(kind: str, count: int) -> None:
    model = build(kind)
    frozen = freeze_lowest(model, count)
    state = {name: p.requires_grad for name, p in model.named_parameters()}
    assert sorted(frozen) == sorted(name for name, on in state.items() if not on)
    assert all(on == (depths(model)[name] > count) for name, on in state.items())
    inputs = torch.randint(3, 50, (2, 6))
    model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) or state[name], name
    assert dict(model.named_parameters())[sorted(FAMILIES[kind][1])[0]].grad is not None


def test_freezing_more_than_there_is_is_refused() -> None:
    with pytest.raises(ModelError, match=r"method.freeze_layers is 4, but the model has 3 layers; expected 0 to 3"):
        freeze_lowest(build("bert"), 4)


def test_a_model_whose_layers_cannot_be_told_is_refused() -> None:
    model = build("bert")
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="cannot tell the layers of BertForSequenceClassification"):
        depths(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_final_linear_layer_makes_the_logits(kind: str) -> None:
    model = build(kind).eval()
    last = final_linear(model)
    inputs = torch.randint(3, 50, (1, 6))
    with capture_input(last) as seen, torch.no_grad():
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
    assert len(seen) == 1
    found = torch.nn.functional.linear(seen[0], last.weight, last.bias)
    assert torch.allclose(found.reshape(-1, 5)[-1], logits[0], atol=1e-6) or torch.allclose(
        found.reshape(-1, 5)[0], logits[0], atol=1e-6
    )
    model(input_ids=inputs)
    assert len(seen) == 1, "the hook is gone after the block"


def test_the_final_layer_under_an_adapter_is_the_one_in_use() -> None:
    from finesmith.models.adapter_kinds import add_adapter
    from finesmith.models.forward import Network

    model = build("bert")
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    add_adapter(network, "lora", {"r": 5}, seed=0)  # as many columns as there are labels, to tempt a search by shape
    last = final_linear(model)
    inputs = torch.randint(3, 50, (1, 6))
    before = network.module(input_ids=inputs).logits
    with torch.no_grad():
        last.bias += 1
    assert torch.allclose(network.module(input_ids=inputs).logits - before, torch.ones(1, 5), atol=0.5)
    assert last.weight.requires_grad


def test_a_head_without_logits_is_refused() -> None:
    model = build("bert")
    model.classifier = torch.nn.Identity()
    with pytest.raises(ModelError, match="has no linear layer with 5 outputs in its head"):
        final_linear(model)
