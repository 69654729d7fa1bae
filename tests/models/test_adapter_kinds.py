"""Every kind of adapter: the base model's function at first, ragged as padded, off and on, saved and loaded."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from finesmith.errors import ModelError
from finesmith.models.adapter_files import load_adapter, purpose_of, save_adapter, saved_tensors, screen_any_adapter
from finesmith.models.adapter_kinds import (
    Kind,
    Purpose,
    adapter_off,
    add_adapter,
    is_pissa,
    kept_per_token,
    prompted,
)
from finesmith.models.attention import RAGGED, layout_of, register
from finesmith.models.forward import Network, logits, ragged_hidden
from finesmith.models.probe import choose_attention
from finesmith.models.vocabulary import add_words
from finesmith.train.memory import estimate, shape_of
from finesmith.types import Batch
from tiny import bert_tokenizer

VOCABULARY = 60
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": 3, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    **COMMON, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES, **STILL),
    "roberta": RobertaConfig(**SIZES, **STILL),
    "distilbert": DistilBertConfig(
        **COMMON, dim=24, n_layers=2, n_heads=3, hidden_dim=48, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "gpt2": GPT2Config(
        **COMMON, bos_token_id=1, eos_token_id=2, n_embd=24, n_layer=2, n_head=3, n_positions=64, attn_pdrop=0.0,
        embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "t5": T5Config(
        **COMMON, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, dropout_rate=0.0, decoder_start_token_id=0,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
CLASSES: dict[Purpose, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
SMALL: dict[str, dict[str, Any]] = {
    **{kind: {"r": 3, "lora_alpha": 6} for kind in ("lora", "rslora", "dora", "pissa")},
    "ia3": {},
    "prompt": {"num_virtual_tokens": 4},
}
INSIDE: tuple[Kind, ...] = ("lora", "rslora", "dora", "pissa", "ia3")
PLACES: list[tuple[str, Purpose]] = [
    *((name, "sequence_classification") for name in ("bert", "distilbert", "gpt2", "llama")),
    ("bert", "token_classification"), ("bert", "masked"), ("llama tied", "causal"), ("t5", "seq2seq"),
]  # fmt: skip


def base(name: str, purpose: Purpose, kind: Kind = "lora") -> Any:
    """Return a model with weights away from their first values; in float64, or float32 for PiSSA."""
    torch.manual_seed(0)
    model = CLASSES[purpose].from_config(copy.deepcopy(CONFIGS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval() if kind == "pissa" else model.double().eval()


def network_of(model: Any, tokenizer: Any = None) -> Network:
    return Network(model, model, tokenizer, False, "", 0)


def shake(network: Network) -> Network:
    """Move every trained number, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network


def draw(lengths: list[int]) -> Batch:
    tokens = torch.randint(3, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, torch.tensor(lengths), None, None, torch.arange(len(lengths)))


BATCH = draw([2, 5, 5, 9])


def alone(model: Any, batch: Batch = BATCH) -> torch.Tensor:
    """Return the outputs of each sequence by itself through transformers' own forward, laid end to end."""
    found = []
    for row in batch.tokens.split(batch.lengths.tolist()):
        more = {"decoder_input_ids": row[None]} if model.config.is_encoder_decoder else {}
        found.append(model(input_ids=row[None], **more).logits.flatten(0, -2))
    return torch.cat(found).detach()


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def rounding(kind: Kind) -> float:
    return 3e-5 if kind == "pissa" else 1e-9


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize(("name", "purpose"), PLACES)
def test_an_adapter_begins_as_the_base_model_and_goes_off_and_on(kind: Kind, name: str, purpose: Purpose) -> None:
    model = base(name, purpose, kind)
    before = alone(model)
    network = network_of(model)
    add_adapter(network, kind, SMALL[kind], seed=0, purpose=purpose)
    network.module.eval()
    assert gap(alone(network.module), before) <= rounding(kind)
    trainable = {key for key, p in network.module.named_parameters() if p.requires_grad}
    shake(network)
    tuned = alone(network.module)
    assert gap(tuned, before) > 1e-3
    with adapter_off(network):
        assert gap(alone(network.module), before) <= rounding(kind)
        assert gap(alone(network.classifier), before) <= rounding(kind), "inside the wrapper too"
    assert torch.equal(alone(network.module), tuned)
    assert {key for key, p in network.module.named_parameters() if p.requires_grad} == trainable
    head = purpose in ("sequence_classification", "token_classification")
    assert any("modules_to_save" in key for key in trainable) == head


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize(("name", "purpose"), [place for place in PLACES if place[0] != "t5"])
def test_ragged_equals_one_by_one_under_every_adapter(kind: Kind, name: str, purpose: Purpose) -> None:
    """Outputs and the gradient of every trained number."""
    model = base(name, purpose, kind)
    network = network_of(model)
    if purpose == "sequence_classification":
        choose_attention(network, "ragged")
    else:
        register()
        model.set_attn_implementation(RAGGED)
    add_adapter(network, kind, SMALL[kind], seed=0, purpose=purpose)
    shake(network)
    network.module.eval()

    def ragged() -> torch.Tensor:
        if purpose == "sequence_classification":
            assert network.ragged
            return logits(network, BATCH)
        return ragged_hidden(model, BATCH, layout_of(BATCH.lengths))

    def one_by_one() -> torch.Tensor:
        model.set_attn_implementation("sdpa")
        rows = [row[None] for row in BATCH.tokens.split(BATCH.lengths.tolist())]
        if purpose == "sequence_classification":
            found = torch.cat([network.module(input_ids=row).logits for row in rows])
        else:
            found = torch.cat([model.base_model(input_ids=row).last_hidden_state[0] for row in rows])
        model.set_attn_implementation(RAGGED)
        return found

    slopes = []
    for outputs in (ragged(), one_by_one()):
        network.module.zero_grad()
        (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
        grads = {key: p.grad.clone() for key, p in network.module.named_parameters() if p.grad is not None}
        slopes.append((outputs.detach(), grads))
    (found, grads), (expected, others) = slopes
    assert gap(found, expected) <= rounding(kind)
    assert grads.keys() == others.keys()
    assert grads
    for key in grads:
        assert float((grads[key] - others[key]).abs().max()) <= 10 * rounding(kind) * (
            1e-6 + max(float(g.abs().max()) for g in others.values())
        ), key


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_lora_is_what_peft_makes_bit_for_bit(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    network = network_of(base(name, "sequence_classification"))
    options = add_adapter(network, "lora", {"r": 4}, seed=11)
    plain = base(name, "sequence_classification")
    torch.manual_seed(11)
    more = {"modules_to_save": ["pre_classifier"]} if name == "distilbert" else {}
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", **copy.deepcopy(more)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = get_peft_model(plain, config).state_dict()
    found = network.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert options == {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", **more}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*INSIDE, "prompt"])
@pytest.mark.parametrize(("name", "purpose"), PLACES)
def test_a_saved_adapter_answers_the_same_on_the_untouched_base(
    kind: Kind, name: str, purpose: Purpose, tmp_path: Path
) -> None:
    if kind == "prompt" and (purpose == "masked" or name == "distilbert"):
        pytest.skip("refused: see below")
    network = network_of(base(name, purpose, kind), bert_tokenizer())
    add_adapter(network, kind, SMALL[kind], seed=0, purpose=purpose)
    shake(network)
    network.module.eval()
    expected = alone(network.module)
    save_adapter(network, tmp_path)
    assert purpose_of(tmp_path) == purpose
    again = load_adapter(base(name, purpose, kind), tmp_path)
    again.eval()
    assert gap(alone(again), expected) <= rounding(kind)
    assert not any(p.requires_grad for p in again.parameters())
    if kind != "pissa":
        assert torch.equal(alone(again), expected), "bit for bit where the base weights did not change"
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "adapter_config.json", "config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    modules = json.loads((tmp_path / "adapter_config.json").read_text("utf-8")).get("target_modules")
    assert modules is None or modules == sorted(modules), "the same bits whatever order this process gives to sets"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"init_lora_weights": "pissa_niter_4"},
                                     {"rank_pattern": {"query": 5}, "alpha_pattern": {"key": 9}}])  # fmt: skip
def test_pissa_is_saved_as_the_way_from_its_first_matrices(options: dict[str, Any], tmp_path: Path) -> None:
    if "use_rslora" in options:
        with pytest.raises(ModelError, match=r"method\.name is pissa"):
            add_adapter(network_of(base("bert", "masked", "pissa")), "pissa", options, seed=0, purpose="masked")
        return
    network = network_of(base("bert", "sequence_classification", "pissa"), bert_tokenizer())
    add_adapter(network, "pissa", {"r": 3, **options}, seed=0)
    assert is_pissa(network.module)
    query = network.classifier.bert.encoder.layer[0].attention.self.query
    untouched = base("bert", "sequence_classification", "pissa").bert.encoder.layer[0].attention.self.query
    assert gap(query.base_layer.weight, untouched.weight) > 0.1, "the base weights lack what the adapter holds"
    assert not any("pissa" in key for key in network.module.state_dict())
    shake(network)
    expected = alone(network.module)
    save_adapter(network, tmp_path)
    rank = saved_tensors(tmp_path)["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"].shape[0]
    assert rank == (10 if "rank_pattern" in options else 6)
    again = load_adapter(base("bert", "sequence_classification", "pissa"), tmp_path)
    assert not is_pissa(again)
    assert gap(alone(again.eval()), expected) <= 3e-5
    assert network.module.peft_config["default"].r == 3, "and saving leaves the network as it was"
    assert torch.equal(alone(network.module), expected)


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("auto_mapping", {"parent_library": "os"}), ("prompt_tuning_init", "TEXT"), ("tokenizer_name_or_path", "x"),
     ("target_modules", "(a+)+b"), ("num_virtual_tokens", 10**9)],
)  # fmt: skip
def test_an_adapter_that_asks_for_more_is_refused(kind: Kind, key: str, value: Any, tmp_path: Path) -> None:
    network = network_of(base("bert", "sequence_classification"), bert_tokenizer())
    add_adapter(network, kind, SMALL[kind], seed=0)
    save_adapter(network, tmp_path)
    path = tmp_path / "adapter_config.json"
    said = json.loads(path.read_text("utf-8"))
    if key not in said:
        pytest.skip(f"{kind} has no {key}")
    assert screen_any_adapter(tmp_path) == {"ia3": "IA3", "prompt": "PROMPT_TUNING"}[kind]
    path.write_text(json.dumps({**said, key: value}), "utf-8")
    with pytest.raises(ModelError, match=f"{key} is .*which finesmith never writes"):
        load_adapter(base("bert", "sequence_classification"), tmp_path)


# --- new words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "purpose"),
    [("lora", "llama", "causal"), ("dora", "llama tied", "causal"), ("pissa", "llama tied", "causal"),
     ("lora", "gpt2", "causal"), ("lora", "bert", "sequence_classification"), ("lora", "t5", "seq2seq")],
)  # fmt: skip
def test_new_words_are_trained_saved_and_loaded(kind: Kind, name: str, purpose: Purpose, tmp_path: Path) -> None:
    tokenizer: Any = bert_tokenizer()
    CONFIGS[name].vocab_size = len(tokenizer)
    try:
        network = network_of(base(name, purpose, kind), tokenizer)
        added = add_words(network.classifier, tokenizer, ["zyxwv", "qqqq"])
        rows = list(added.rows)
        batch = Batch(torch.tensor([5, rows[0], 9, 7, rows[1], 8]), torch.tensor([3, 3]), None, None, torch.arange(2))
        table = network.classifier.get_input_embeddings().weight.detach().clone()
        before = alone(network.module, batch)
        add_adapter(network, kind, SMALL[kind], seed=0, purpose=purpose, new_rows=rows)
        network.module.eval()
        assert gap(alone(network.module, batch), before) <= rounding(kind)
        optimiser = torch.optim.SGD([p for p in network.module.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            ids = batch.tokens.view(2, 3)
            more = {"decoder_input_ids": ids} if purpose == "seq2seq" else {}
            network.module(input_ids=ids, **more).logits.square().sum().backward()
            optimiser.step()
        expected = alone(network.module, batch)
        save_adapter(network, tmp_path)
        again = load_adapter(base(name, purpose, kind), tmp_path)
        assert gap(alone(again.eval(), batch), expected) <= rounding(kind)
        merged = again.merge_and_unload()
        moved = (merged.get_input_embeddings().weight.detach() - table).abs().amax(1)
        assert {int(i) for i in moved.nonzero()} == set(rows), "the new rows moved, and no other"
        assert not any(len(tensor) == len(table) for tensor in saved_tensors(tmp_path).values()), "no whole table"
        output = merged.get_output_embeddings()
        if output is not None and name in ("llama tied", "gpt2", "t5"):
            assert torch.equal(output.weight, merged.get_input_embeddings().weight), "still tied"
    finally:
        CONFIGS[name].vocab_size = VOCABULARY


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_kinds_that_cannot_train_new_words_say_so(kind: Kind) -> None:
    with pytest.raises(ModelError, match=f"which method.name {kind} does not do"):
        add_adapter(network_of(base("llama", "causal")), kind, SMALL[kind], seed=0, purpose="causal", new_rows=[59])


def test_an_output_bias_that_peft_would_drop_is_refused() -> None:
    """peft's layer for trained rows computes the output without its bias, in 0.21."""
    with pytest.raises(ModelError, match=r"peft drops the bias of cls\.predictions\.decoder"):
        add_adapter(network_of(base("bert", "masked")), "lora", {"r": 2}, seed=0, purpose="masked", new_rows=[59])


def test_a_new_masked_head_is_trained_whole_and_stays_tied(tmp_path: Path) -> None:
    model = base("bert", "masked")
    names = [f"cls.predictions.{name}" for name in
             ("bias", "transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight")]  # fmt: skip
    network = Network(model, model, bert_tokenizer(), False, "", 0, fresh=tuple(names))  # type: ignore[arg-type]
    options = add_adapter(network, "lora", {"r": 2}, seed=0, purpose="masked")
    assert options["modules_to_save"] == ["cls.predictions.transform.LayerNorm", "cls.predictions.transform.dense"]
    expected = alone(shake(network).module)
    save_adapter(network, tmp_path)
    assert torch.equal(alone(load_adapter(base("bert", "masked"), tmp_path)), expected)
    decoder = network.classifier.get_output_embeddings()
    assert decoder.weight is network.classifier.get_input_embeddings().weight


# --- prompt tuning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "purpose"),
    [("llama", "sequence_classification"), ("bert", "sequence_classification"), ("bert", "token_classification"),
     ("llama", "causal"), ("gpt2", "causal")],
)  # fmt: skip
def test_a_prompt_is_vectors_before_every_text(name: str, purpose: Purpose) -> None:
    model = base(name, purpose)
    network = network_of(model)
    if purpose == "sequence_classification":
        choose_attention(network, "auto")
        assert network.ragged
        assert model.config._attn_implementation == RAGGED
    plain = alone(base(name, purpose))
    add_adapter(network, "prompt", SMALL["prompt"], seed=3, purpose=purpose)
    network.module.eval()
    assert not network.ragged
    assert "no ragged form" in network.why
    vectors = network.module.prompt_encoder["default"].embedding.weight
    words = model.get_input_embeddings().weight
    assert all(bool((words == vector).all(1).any()) for vector in vectors), "a prompt begins as words"
    shake(network)
    found, expected = prompted(network, BATCH).detach(), []
    for row in BATCH.tokens.split(BATCH.lengths.tolist()):
        inside = torch.cat([vectors, words[row]])[None]
        out = network.classifier(inputs_embeds=inside).logits
        expected.append(out if out.dim() == 2 else out[0, 4:])
    assert gap(found, torch.cat(expected).detach()) <= 1e-9
    trained = {key for key, p in network.module.named_parameters() if p.requires_grad}
    assert all(key.startswith("prompt_encoder.") or ".modules_to_save." in key for key in trained)
    with adapter_off(network):
        assert gap(prompted(network, BATCH).detach(), plain) <= 1e-9
    assert gap(prompted(network, BATCH).detach(), plain) > 1e-3
    prompted(network, BATCH).sum().backward()
    moved = {key for key, p in network.module.named_parameters() if p.grad is not None}
    assert moved == trained
    assert any(".modules_to_save." in key for key in moved) == (purpose != "causal")


@pytest.mark.parametrize(
    ("name", "purpose", "message"),
    [("bert", "masked", "peft has no prompt tuning for masked models"),
     ("distilbert", "sequence_classification", "pre_classifier must be trained too")],
)  # fmt: skip
def test_where_prompts_cannot_go_they_are_refused(name: str, purpose: Purpose, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_adapter(network_of(base(name, purpose)), "prompt", SMALL["prompt"], seed=0, purpose=purpose)


@pytest.mark.parametrize("count", [0, 64, -1])
def test_prompts_that_leave_no_room_are_refused(count: int) -> None:
    with pytest.raises(ModelError, match=r"prompt_tokens is .* expected 1 to 63"):
        add_adapter(network_of(base("bert", "token_classification")), "prompt", {"num_virtual_tokens": count},
                    seed=0, purpose="token_classification")  # fmt: skip


# --- memory ----------------------------------------------------------------------------------------------------------


def kept(network: Network, batch: Batch) -> float:
    """Return the numbers that a forward pass keeps of every token for the way back, weights aside."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = logits(network, batch)
        size = sum(seen.values())
        del outputs
    return size / 4 / len(batch.tokens)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", [*INSIDE, "prompt"])
def test_the_forecast_of_memory_covers_what_adapters_keep(kind: Kind, dropout: float) -> None:
    batch, kept_by = draw([20] * 8), []
    if dropout and kind in ("ia3", "prompt"):
        pytest.skip("has none of its own")
    both: list[tuple[Kind, dict[str, Any]]] = [("lora", {}), (kind, {"lora_dropout": dropout} if dropout else {})]
    for each, more in both:
        network = network_of(base("llama", "sequence_classification", "pissa").train())
        choose_attention(network, "auto")
        add_adapter(network, each, SMALL[each] | more, seed=0)
        network.module.train()
        width, found = kept_per_token(network.module), kept(network, batch)
        shape = shape_of(network.classifier.config, parameters=1, trainable=1, adapter_width=width)
        forecast = estimate(shape, [20 + network.prompt] * 8, free=0, dtype="float32")
        assert found <= (forecast.activations + forecast.attention) / 4 / len(batch.tokens)
        kept_by.append(found)
    if kind == "dora" or dropout:
        assert 0.5 * width < kept_by[1] - kept_by[0] < 1.4 * width, "and no more than that"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lora", {"target_modules": ["nowhere"]}, "which peft refuses"),
        ("lora", {"rank": 4}, "which peft refuses"),
        ("lora", {"r": 0}, "which peft refuses"),
        ("lora", {"init_lora_weights": "pissa"}, "set it to pissa"),
        ("ia3", {"use_dora": True}, "but method.name is ia3; set it to dora"),
        ("pissa", {"use_dora": True}, "but method.name is pissa"),
        ("dora", {"use_dora": False}, "remove the one or the other"),
        ("lora", {"target_modules": "(a+)+b"}, "take for ever"),
        ("ia3", {"target_modules": ["key"], "feedforward_modules": "(a+)+b"}, "take for ever"),
    ],
)
def test_adapters_that_cannot_be_are_refused(kind: Kind, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_adapter(network_of(base("bert", "sequence_classification", kind)), kind, options, seed=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pissa_wants_base_weights_that_it_does_not_round(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match="expected float32"):
        add_adapter(network_of(base("bert", "masked").to(dtype)), "pissa", {}, seed=0, purpose="masked")


def test_a_whole_model_has_no_adapter_to_switch_off(tmp_path: Path) -> None:
    network = network_of(base("bert", "masked"))
    with pytest.raises(ModelError, match="no adapter to switch off"), adapter_off(network):
        pass
    with pytest.raises(ModelError, match="no adapter to save"):
        save_adapter(network, tmp_path)


def test_an_error_inside_leaves_the_adapter_on() -> None:
    network = network_of(base("bert", "sequence_classification", "pissa"))
    add_adapter(network, "pissa", SMALL["pissa"], seed=0)
    expected = alone(shake(network).module)
    with pytest.raises(RuntimeError, match="stop"), adapter_off(network):
        raise RuntimeError("stop")
    assert torch.equal(alone(network.module), expected)


@pytest.mark.parametrize("kind", INSIDE)
def test_adding_an_adapter_warns_of_nothing(kind: Kind) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_adapter(network_of(base("gpt2", "causal", kind)), kind, SMALL[kind], seed=0, purpose="causal")


def test_the_recipe_knows_the_kinds_there_are() -> None:
    from finesmith.models.adapter_kinds import DEFAULTS
    from finesmith.recipe import ADAPTERS, LORA_KINDS
    from finesmith.report.card import ADAPTER_METHODS
    from finesmith.workflows.setup import default_learning_rate

    assert tuple(DEFAULTS) == ADAPTERS
    assert set(ADAPTERS) == ADAPTER_METHODS
    assert {kind for kind in ADAPTERS if "r" in DEFAULTS[kind]} == set(LORA_KINDS)
    for kind in ADAPTERS:
        rates = [default_learning_rate(kind, size)[0] for size in (10**7, 10**8, 10**9)]
        assert sorted(rates, reverse=True) == rates, "larger models bear less"
