"""Every family answers and learns on ragged batches as transformers does on padded ones, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from finesmith.errors import ModelError
from finesmith.models import bert_layer, forward
from finesmith.models.attention import layout_of
from finesmith.models.forward import BERT_LAYERS, OFFSET_POSITIONS, Network
from finesmith.models.load import choose_attention
from finesmith.types import Batch

VOCABULARY, CLASSES, WINDOW = 101, 3, 4
LENGTHS = [2, 5, 5, 9, 13, 20, 30]  # together longer than any model's 64 positions

COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": CLASSES, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    **COMMON, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODERN = {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}

RAGGED: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES, **STILL),
    "roberta": RobertaConfig(**SIZES, **STILL),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **STILL),
    "camembert": CamembertConfig(**SIZES, **STILL),
    "electra": ElectraConfig(**SIZES, **STILL, embedding_size=16, summary_last_dropout=0.0),
    "distilbert": DistilBertConfig(
        **COMMON, dim=24, n_layers=2, n_heads=3, hidden_dim=48, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "modernbert mean": ModernBertConfig(**MODERN, classifier_pooling="mean", local_attention=2 * WINDOW),
    "modernbert cls": ModernBertConfig(**MODERN, classifier_pooling="cls", local_attention=2 * WINDOW),
    "gpt2": GPT2Config(
        **COMMON, **ENDS, n_embd=24, n_layer=2, n_head=3, n_positions=64, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1),
    "qwen2": Qwen2Config(
        **SIZES, num_key_value_heads=1, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=WINDOW),
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8),
    "phi3": Phi3Config(**SIZES, **ENDS, num_key_value_heads=3, sliding_window=WINDOW),
}  # fmt: skip
PADDED: dict[str, PreTrainedConfig] = {
    "deberta-v2": DebertaV2Config(**SIZES, **STILL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "albert": AlbertConfig(**SIZES, **STILL, embedding_size=16, classifier_dropout_prob=0.0),
    "mpnet": MPNetConfig(**SIZES, **STILL),
    # In float64 and with a short window transformers' own padding gives NaN here, so the window is long.
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=64),
    "opt": OPTConfig(
        **COMMON, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=48, word_embed_proj_dim=24,
        max_position_embeddings=64, dropout=0.0,
    ),
}  # fmt: skip
ALL = {**RAGGED, **PADDED}
DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gemma2", "opt")
# These two round to float32 in their norms or their attention, whatever the weights are.
TOLERANCE = {"gemma": 1e-5, "gemma2": 1e-5}
WINDOWED = ("modernbert mean", "modernbert cls", "qwen2", "mistral", "phi3")


def build(kind: str, attention: Any = "auto") -> tuple[Network, Any]:
    """Return a network and an untouched copy of its transformers model, both in float64."""
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(copy.deepcopy(ALL[kind])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from the zeros and ones of a fresh model
    plain = copy.deepcopy(model)
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, attention)
    return network, plain


def make(lengths: list[int], *, seed: int = 1, low: int = 1) -> Batch:
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    tokens = torch.randint(low, VOCABULARY, (sum(lengths),), generator=random)
    targets = torch.randint(0, CLASSES, (len(lengths),), generator=random)
    return Batch(tokens, sizes, None, targets, torch.arange(len(lengths)))


def rectangle(batch: Batch) -> dict[str, torch.Tensor]:
    rows = batch.tokens.split(batch.lengths.tolist())
    mask = torch.arange(int(batch.lengths.max()))[None] < batch.lengths[:, None]
    inputs = {"input_ids": pad_sequence(list(rows), batch_first=True), "attention_mask": mask.long()}
    if batch.segments is not None:
        parts = batch.segments.split(batch.lengths.tolist())
        inputs["token_type_ids"] = pad_sequence(list(parts), batch_first=True)
    return inputs


def one_by_one(plain: Any, batch: Batch) -> torch.Tensor:
    """Each sequence alone through transformers' own forward, where nothing is padded."""
    return torch.cat([plain(input_ids=row[None]).logits for row in batch.tokens.split(batch.lengths.tolist())])


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> bool:
    scale = max(float(expected.detach().abs().max()), 1e-3)
    return float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("kind", ALL)
def test_logits_loss_and_every_gradient_equal_the_padded_model(kind: str) -> None:
    network, plain = build(kind)
    batch = make(LENGTHS)
    found = forward.logits(network, batch)
    # No text holds the padding id 0, so transformers finds the last token of a decoder by itself.
    expected = plain(**rectangle(batch)).logits

    assert network.ragged == (kind in RAGGED)
    tolerance = TOLERANCE.get(kind, 1e-9)
    assert same(found, expected, tolerance)
    losses = [cross_entropy(logits, batch.targets) for logits in (found, expected)]
    assert same(*losses, tolerance)
    for loss in losses:
        loss.backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in network.module.named_parameters():
        if wanted[name].grad is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert same(parameter.grad, wanted[name].grad, tolerance), name


@pytest.mark.parametrize("lengths", [[1], [17], [6] * 4, [1, 1, 64]], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_any_shape_of_batch_equals_its_sequences_alone(kind: str, lengths: list[int]) -> None:
    if kind in OFFSET_POSITIONS:
        lengths = [min(length, 62) for length in lengths]  # their positions begin after the padding id
    network, plain = build(kind)
    batch = make(lengths)
    with torch.no_grad():
        assert same(forward.logits(network, batch), one_by_one(plain, batch), TOLERANCE.get(kind, 1e-9))


@pytest.mark.parametrize("kind", RAGGED)
def test_sequences_do_not_see_each_other(kind: str) -> None:
    network, _ = build(kind)
    batch = make(LENGTHS)
    changed = batch.tokens.clone()
    changed[2:7] = (changed[2:7] + 50) % (VOCABULARY - 1) + 1  # the second sequence, which shares its length
    with torch.no_grad():
        before = forward.logits(network, batch)
        after = forward.logits(network, Batch(changed, batch.lengths, None, None, batch.ids))
    others = [0, 2, 3, 4, 5, 6]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("kind", WINDOWED)
def test_sliding_windows_are_honoured(kind: str) -> None:
    network, plain = build(kind)
    batch = make([WINDOW - 2, 40])
    wide = copy.deepcopy(ALL[kind])
    wide.sliding_window = 1000
    everything: Any = AutoModelForSequenceClassification.from_config(wide).double()
    everything.load_state_dict(plain.state_dict())
    with torch.no_grad():
        found, expected, unlimited = (
            forward.logits(network, batch), one_by_one(plain, batch), one_by_one(everything, batch)
        )  # fmt: skip
    assert network.ragged
    assert same(found, expected)
    assert not same(expected[1:], unlimited[1:], 1e-4), "the window must matter for this test to mean anything"


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_decoders_read_the_last_token_even_where_it_is_the_padding_id(kind: str, attention: str) -> None:
    network, plain = build(kind, attention)
    batch = make([3, 6, 9], low=1)
    ends = batch.lengths.cumsum(0) - 1
    batch.tokens[ends] = network.pad_id  # a text that ends in end-of-text, with pad == eos
    with torch.no_grad():
        expected = []
        for row in batch.tokens.split(batch.lengths.tolist()):
            hidden = plain.base_model(input_ids=row[None], attention_mask=torch.ones(1, len(row)).long())
            expected.append(plain.score(hidden.last_hidden_state[:, -1]))
        assert same(forward.logits(network, batch), torch.cat(expected), TOLERANCE.get(kind, 1e-9))


@pytest.mark.parametrize("kind", PADDED)
def test_families_without_a_ragged_form_run_padded_and_say_so(kind: str) -> None:
    network, _ = build(kind)
    assert not network.ragged
    assert network.classifier.config._attn_implementation != "finesmith_ragged"
    assert f"padded: {kind} cannot run ragged" in network.why
    with pytest.raises(ModelError, match=f"model.attention is ragged, but {kind} cannot run so"):
        choose_attention(network, "ragged")


@pytest.mark.parametrize("kind", sorted(BERT_LAYERS))
def test_the_top_layer_in_one_piece_computes_only_what_the_head_reads(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = build(kind)
    seen: list[int] = []
    whole = bert_layer.layer_states

    def watched(states: torch.Tensor, weights: Any, rule: bert_layer.LayerRule) -> torch.Tensor:
        out = whole(states, weights, rule)
        seen.append(len(out))
        return out

    monkeypatch.setattr(bert_layer, "layer_states", watched)
    forward.logits(network, make(LENGTHS))
    assert seen[:-1] == [sum(LENGTHS)] * (len(seen) - 1)
    assert seen[-1] == len(LENGTHS)
    seen.clear()
    forward.embed(network, make(LENGTHS), "mean")
    assert set(seen) == {sum(LENGTHS)}, "the mean reads every token"


@pytest.mark.parametrize("kind", sorted(BERT_LAYERS))
def test_the_top_layer_computes_only_what_the_head_reads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert_layer, "weights_of", lambda _: None)  # as where an adapter is in the layers
    network, _ = build(kind)
    seen: list[int] = []
    top: Any = network.classifier.base_model.encoder.layer[-1]
    for part in (top.attention.self.query, top.attention.self.key, top.intermediate):
        part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    forward.logits(network, make(LENGTHS))
    assert seen == [len(LENGTHS), sum(LENGTHS), len(LENGTHS)]
    seen.clear()
    forward.embed(network, make(LENGTHS), "mean")
    assert seen == [sum(LENGTHS)] * 3, "the mean reads every token"


def test_a_decoder_made_of_such_layers_computes_everything() -> None:
    config = copy.deepcopy(ALL["bert"])
    config.is_decoder = True
    model: Any = AutoModelForSequenceClassification.from_config(config).double()
    plain = copy.deepcopy(model)
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, "ragged")
    batch = make([5, 9])
    with torch.no_grad():
        assert same(forward.logits(network, batch), one_by_one(plain, batch))


def test_padded_on_request_equals_ragged() -> None:
    ragged, _ = build("bert", "ragged")
    padded, _ = build("bert", "padded")
    batch = make(LENGTHS)
    assert ragged.ragged
    assert not padded.ragged
    assert padded.why == "padded, as the recipe asks"
    with torch.no_grad():
        assert same(forward.logits(ragged, batch), forward.logits(padded, batch))


def test_a_model_that_minds_padding_runs_one_length_at_a_time() -> None:
    # XLNet reads the last column of the rectangle, which padding on the right moves away from the last token.
    ALL["xlnet"] = XLNetConfig(
        **COMMON, d_model=24, n_layer=2, n_head=3, d_inner=48, dropout=0.0, summary_last_dropout=0.0, **ENDS
    )
    network, plain = build("xlnet")
    network.module.eval()
    plain.eval()
    batch = make([2, 5, 5, 9])
    with torch.no_grad():
        assert same(forward.logits(network, batch), one_by_one(plain, batch))
        assert not same(plain(**rectangle(batch)).logits, one_by_one(plain, batch))
        rows = batch.tokens.split(batch.lengths.tolist())
        means = torch.cat([plain.base_model(input_ids=row[None]).last_hidden_state.mean(1) for row in rows])
        assert same(forward.embed(network, batch, "mean"), means)
    assert network.grouped
    assert "one length go together" in network.why


@pytest.mark.parametrize("kind", ["bert", "electra", "albert"])
def test_segments_of_pairs_are_honoured(kind: str) -> None:
    network, plain = build(kind)
    batch = make(LENGTHS)
    places = layout_of(batch.lengths).positions
    segments = (places >= torch.repeat_interleave(batch.lengths, batch.lengths) // 2).long()
    pairs = Batch(batch.tokens, batch.lengths, segments, batch.targets, batch.ids)
    with torch.no_grad():
        found = forward.logits(network, pairs)
        assert same(found, plain(**rectangle(pairs)).logits)
        assert not same(found, forward.logits(network, batch), 1e-3)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", ALL)
def test_embeddings_equal_a_naive_loop(kind: str, pooling: Any) -> None:
    network, plain = build(kind)
    batch = make([1, 4, 4, 11])
    rows = []
    with torch.no_grad():
        for row in batch.tokens.split(batch.lengths.tolist()):
            hidden = plain.base_model(input_ids=row[None]).last_hidden_state[0]
            rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
        found = forward.embed(network, batch, pooling)
    assert same(found, torch.stack(rows), TOLERANCE.get(kind, 1e-9))


@pytest.mark.parametrize("attention", ["ragged", "padded"])
def test_dropout_acts_while_training_and_rests_while_evaluating(attention: str) -> None:
    config = copy.deepcopy(ALL["bert"])
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = 0.0, 0.5
    model: Any = AutoModelForSequenceClassification.from_config(config).double()
    network = Network(model, model, None, False, "", 0)  # type: ignore[arg-type]
    choose_attention(network, attention)  # type: ignore[arg-type]
    batch = make(LENGTHS)
    with torch.no_grad():
        model.train()
        assert not torch.equal(forward.logits(network, batch), forward.logits(network, batch))
        model.eval()
        assert torch.equal(forward.logits(network, batch), forward.logits(network, batch))


def test_attention_dropout_keeps_its_share_and_its_mean() -> None:
    from finesmith.models.attention import ragged_attention

    module = torch.nn.Module()
    module.is_causal = False
    layout = layout_of(torch.full((400,), 8))
    query = torch.zeros(1, 1, 3200, 4)
    torch.manual_seed(0)
    # All weights are 1/8; each output is the mean of the values that were kept, over 1 - dropout.
    out, _ = ragged_attention(
        module, query, query, torch.ones_like(query), None, ragged_layout=layout, dropout=0.25, scaling=1.0
    )
    kept = out[0, :, 0, 0] * 8 * 0.75
    assert torch.allclose(kept, kept.round(), atol=1e-4)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


def test_ragged_attention_refuses_a_mask() -> None:
    from finesmith.models.attention import ragged_attention

    module = torch.nn.Module()
    module.is_causal = False
    x = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match="takes no mask"):
        ragged_attention(module, x, x, x, torch.ones(1), ragged_layout=layout_of(torch.tensor([3])))


def test_layouts_say_where_sequences_lie() -> None:
    layout = layout_of(torch.tensor([2, 3, 3, 5]))
    assert layout.lengths == (2, 3, 3, 5)
    assert layout.groups == ((0, 1, 2), (2, 2, 3), (8, 1, 5))
    assert layout.starts.tolist() == [0, 2, 5, 8]
    assert layout.ends.tolist() == [1, 4, 7, 12]
    assert layout.positions.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]
