from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from generating import CAUSAL, STOP, TWO_PART, VOCABULARY, some_prompts, theirs, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.errors import DataError, ModelError, UserError
from finesmith.models import runner as runner_module
from finesmith.models.generate import Generated, generate
from finesmith.models.runner import Rows, Runner

FAMILIES = (*CAUSAL, *TWO_PART)
PROMPTS = some_prompts()
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "sample": {"strategy": "sample", "seed": 5},
    "filtered": {"strategy": "sample", "temperature": 1.5, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.1},
    "beam": {"strategy": "beam", "beams": 3},
    "beam-penalty": {"strategy": "beam", "beams": 4, "length_penalty": 0.4, "repetition_penalty": 1.2},
}


def tokens_of(results: list[Generated]) -> list[list[int]]:
    return [list(result.tokens) for result in results]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: tiny(kind) for kind in FAMILIES}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_is_transformers_one_by_one(models: dict[str, Any], kind: str, penalty: float) -> None:
    model = models[kind]
    found = generate(model, PROMPTS, max_new_tokens=12, repetition_penalty=penalty, stop_tokens=[STOP])
    assert tokens_of(found) == [theirs(model, p, new=12, repetition_penalty=penalty) for p in PROMPTS]
    assert len({tuple(r.tokens) for r in found}) > 3


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("beams", "length_penalty", "penalty", "stop"), [(2, 1.0, 1.0, STOP), (4, 0.0, 1.0, STOP), (3, 2.0, 1.3, 11)]
)
def test_beams_are_those_of_transformers(
    models: dict[str, Any], kind: str, beams: int, length_penalty: float, penalty: float, stop: int
) -> None:
    model = models[kind]
    mine = generate(
        model, PROMPTS, max_new_tokens=10, strategy="beam", beams=beams, length_penalty=length_penalty,
        repetition_penalty=penalty, stop_tokens=[stop],
    )  # fmt: skip
    options = {"num_beams": beams, "length_penalty": length_penalty, "repetition_penalty": penalty, "stop": stop}
    assert tokens_of(mine) == [theirs(model, p, new=10, **options) for p in PROMPTS]


def plain_logs(model: Any, prompt: list[int], new: list[int]) -> list[float]:
    """The log-probability of each new token, by a plain forward pass."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + new]))
        logits = out.logits[0, :-1]
    else:
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(new)), new].tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_log_probabilities_are_those_of_a_plain_forward_pass(models: dict[str, Any], kind: str, way: str) -> None:
    model = models[kind]
    for prompt, found in zip(PROMPTS, generate(model, PROMPTS, max_new_tokens=8, **WAYS[way]), strict=True):
        new = [*found.tokens, STOP] if found.finished == "stop_token" else list(found.tokens)
        expected = plain_logs(model, prompt, new)
        # Some families compute their attention in float32.
        assert found.log_probability == pytest.approx(sum(expected), rel=1e-5, abs=1e-5)
        assert found.lowest == pytest.approx(min(expected), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_neither_batch_size_nor_order_changes_a_token(kind: str, way: str) -> None:
    # Float64 where its own rounding is all there is; float32, where batches differ a million times more, elsewhere.
    model = tiny(kind, "float64" if kind in ("qwen2", "bart") else "float32")
    alone = generate(model, PROMPTS, max_new_tokens=8, batch_tokens=1, **WAYS[way])
    for size in (130, 100_000):
        assert tokens_of(generate(model, PROMPTS, max_new_tokens=8, batch_tokens=size, **WAYS[way])) == tokens_of(alone)
    order = [4, 8, 0, 2, 7, 1, 3, 6, 5]
    mixed = generate(model, [PROMPTS[i] for i in order], ids=order, max_new_tokens=8, **WAYS[way])
    assert tokens_of(mixed) == [list(alone[i].tokens) for i in order]
    assert [r.finished for r in mixed] == [alone[i].finished for i in order]


def noisy(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Make every batch round badly, unlike any other batch: noise of `share` of float32's unit in the last place."""
    generator = torch.Generator().manual_seed(17)
    plain = Rows._read

    def read(self: Rows, tokens: torch.Tensor, count: int) -> torch.Tensor:
        logits = plain(self, tokens, count)
        if not self.cached:
            return logits
        noise = torch.rand(logits.shape, generator=generator).to(logits) * 2 - 1
        return logits + noise * share * torch.finfo(torch.float32).eps * logits.abs().amax(-1, keepdim=True)

    monkeypatch.setattr(Rows, "_read", read)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("way", WAYS)
def test_rounding_of_a_batch_never_decides(monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    model = tiny(kind, "float32")
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        # Near ties everywhere: pairs of tokens whose logits differ by less than a batch's rounding, and equal ones.
        head[30:45] = head[15:30] * (1 + 4e-6 * torch.randn(15, 1))
        head[45:52] = head[8:15]
    prompts = some_prompts(6, seed=2)
    expected = None
    noisy(monkeypatch, 200.0)
    for size in (1, 80, 100_000):
        found = generate(model, prompts, max_new_tokens=7, batch_tokens=size, **WAYS[way])
        expected = expected or found
        assert tokens_of(found) == tokens_of(expected)


def test_without_a_second_look_such_rounding_does_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", "float32")
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[30:45] = head[15:30] * (1 + 4e-6 * torch.randn(15, 1))
    monkeypatch.setattr("finesmith.models.sampling.ROUNDING_UNITS", 0)
    noisy(monkeypatch, 200.0)
    runs = [tokens_of(generate(model, some_prompts(6, seed=2), max_new_tokens=10, stop_tokens=[])) for _ in range(4)]
    assert any(run != runs[0] for run in runs)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    size=st.integers(1, 800),
    way=st.sampled_from(sorted(WAYS)),
    seed=st.integers(0, 99),
)
def test_any_cut_into_batches_gives_the_same(lengths: list[int], size: int, way: str, seed: int) -> None:
    prompts = [[(seed + 3 * i + 5 * k) % VOCABULARY for k in range(n)] for i, n in enumerate(lengths)]
    model = tiny("gpt2", "float32")
    expected = generate(model, prompts, max_new_tokens=6, batch_tokens=1, **WAYS[way])
    assert tokens_of(generate(model, prompts, max_new_tokens=6, batch_tokens=size, **WAYS[way])) == tokens_of(expected)


def test_seed_prompt_and_position_alone_decide_a_draw(models: dict[str, Any]) -> None:
    model = models["llama"]

    def sample(**options: Any) -> list[list[int]]:
        same = [PROMPTS[0]] * 6
        return tokens_of(generate(model, same, max_new_tokens=8, strategy="sample", stop_tokens=[], **options))

    first = sample(seed=1)
    assert sample(seed=1) == first
    assert len({tuple(new) for new in first}) == 6
    assert sample(seed=2) != first
    assert sample(seed=1, ids=[3, 3, 3, 0, 0, 1]) == [first[i] for i in (3, 3, 3, 0, 0, 1)]


def test_what_is_done_leaves_the_batch(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Runner.call

    def call(self: Runner, count: int | None, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return plain(self, count, **inputs)

    monkeypatch.setattr(Runner, "call", call)
    found = generate(models["llama"], PROMPTS, max_new_tokens=12)
    steps = [len(r.tokens) + (r.finished == "stop_token") for r in found]
    batched = [size for size in sizes if size > 1]
    assert "stop_token" in {r.finished for r in found}
    assert batched == [count for t in range(12) if (count := sum(step > t for step in steps)) > 1]


def test_stories_of_a_real_model_are_those_of_transformers(shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "stories260K" / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        "Once upon a time",
        "Lily had a red ball.",
        "The dog was",
        "One day, Tom and his mom went to the park",
        "A",
    ]
    prompts = [tokenizer(text).input_ids for text in texts]
    for mine, options in (({}, {}), ({"strategy": "beam", "beams": 3}, {"num_beams": 3})):
        found = generate(model, prompts, max_new_tokens=30, tokenizer=tokenizer, **mine)  # type: ignore[arg-type]
        assert tokens_of(found) == [theirs(model, p, new=30, stop=2, **options) for p in prompts]
        assert [r.text for r in found] == [tokenizer.decode(r.tokens) for r in found]
    padded = tokenizer(texts, padding=False).input_ids
    width = max(map(len, padded))
    ids = torch.tensor([[2] * (width - len(p)) + p for p in padded])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in padded])
    batch = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=2)
    greedy = generate(model, prompts, max_new_tokens=30)
    assert [row[width:].tolist()[: len(r.tokens)] for row, r in zip(batch, greedy, strict=True)] == tokens_of(greedy)


@pytest.mark.parametrize("adapter", ["lora", "prompt", "prefix"])
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_models_wrapped_by_peft(adapter: str) -> None:
    import peft

    torch.manual_seed(5)
    configs = {
        "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    base = tiny("llama", "float32")
    plain = tokens_of(generate(base, PROMPTS, max_new_tokens=8, stop_tokens=[]))
    wrapped = peft.get_peft_model(base, configs[adapter]()).eval()
    found = tokens_of(generate(wrapped, PROMPTS, max_new_tokens=8, stop_tokens=[]))
    assert found != plain
    assert found == [theirs(wrapped, p, new=8, stop=None) for p in PROMPTS]
    assert found == tokens_of(generate(wrapped, PROMPTS, max_new_tokens=8, stop_tokens=[], batch_tokens=1))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_encoder_decoder_wrapped_by_peft() -> None:
    import peft

    torch.manual_seed(5)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny("t5", "float32"), config).eval()
    found = generate(wrapped, PROMPTS, max_new_tokens=8, stop_tokens=[])
    assert tokens_of(found) == [theirs(wrapped, p, new=8, stop=None) for p in PROMPTS]


def test_a_forced_first_token_belongs_to_what_the_decoder_begins_with() -> None:
    model = tiny("bart")
    model.generation_config.forced_bos_token_id = 9
    found = generate(model, PROMPTS, max_new_tokens=7)
    expected = [theirs(model, p, new=8) for p in PROMPTS]
    assert all(new[0] == 9 for new in expected)
    assert tokens_of(found) == [new[1:] for new in expected]
    beams = generate(model, PROMPTS, max_new_tokens=7, strategy="beam", beams=3, length_penalty=2.0)
    expected = [theirs(model, p, new=8, num_beams=3, length_penalty=2.0) for p in PROMPTS]
    assert tokens_of(beams) == [new[1:] for new in expected]


def test_the_model_is_left_as_it_was() -> None:
    from finesmith.models.attention import RAGGED, register
    from finesmith.models.forward import Network

    model = tiny("llama")
    expected = tokens_of(generate(model, PROMPTS, max_new_tokens=5))
    register()
    model.set_attn_implementation(RAGGED)
    model.train()
    model.lm_head.eval()
    network = Network(model, model, None, True, "", 0)  # type: ignore[arg-type]
    assert tokens_of(generate(network, PROMPTS, max_new_tokens=5)) == expected
    assert model.config._attn_implementation == RAGGED
    assert model.model.training
    assert not model.lm_head.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("way", ["greedy", "sample", "beam"])
def test_tokens_are_told_as_they_come(models: dict[str, Any], way: str) -> None:
    told: list[tuple[int, int]] = []
    found = generate(models["llama"], PROMPTS, max_new_tokens=9, on_token=lambda i, t: told.append((i, t)), **WAYS[way])
    assert [[t for i, t in told if i == index] for index in range(len(PROMPTS))] == tokens_of(found)
    assert generate(models["llama"], PROMPTS, max_new_tokens=9, **WAYS[way]) == found


def test_the_context_ends_a_text(models: dict[str, Any]) -> None:
    long = [10] * 60
    for way in ("greedy", "sample", "beam"):
        (found,) = generate(models["llama"], [long], max_new_tokens=50, stop_tokens=[], **WAYS[way])
        assert (len(found.tokens), found.finished) == (4, "context")
    (found,) = generate(models["llama"], [long], max_new_tokens=4, stop_tokens=[])
    assert (len(found.tokens), found.finished) == (4, "length")
    # Relative positions have no end; T5's n_positions is only what it was trained with.
    (found,) = generate(models["t5"], [[10] * 600], max_new_tokens=3, stop_tokens=[])
    assert found.finished == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "row 4 is empty, expected at least one token"),
        ([9] * 65, "row 4 has 65 tokens, but the model's context holds 64"),
        ([9] * 64, "row 4 has 64 tokens and fills the model's context of 64, so there is no room"),
        ([9, 61], "row 4 holds the token 61, but the model knows 0 to 60"),
        ([9, -1], "row 4 holds the token -1"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(models: dict[str, Any], prompt: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(models["llama"], [[9], prompt], max_new_tokens=3, where=["row 3", "row 4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"strategy": "best"}, "strategy is 'best', expected greedy, sample or beam"),
        ({"temperature": 0.7}, "temperature is 0.7, which changes nothing with strategy greedy"),
        ({"beams": 3}, "beams is 3, which changes nothing"),
        ({"strategy": "beam", "top_k": 3}, "top_k is 3, which changes nothing with strategy beam"),
        ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0, expected above 0; for 0 take greedy"),
        ({"strategy": "sample", "temperature": math.nan}, "temperature is nan"),
        ({"strategy": "sample", "top_p": 1.2}, "top_p is 1.2, expected above 0 and at most 1"),
        ({"strategy": "sample", "top_k": 0}, "top_k is 0, expected at least 1"),
        ({"strategy": "beam", "beams": 1}, "beams is 1, expected at least 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected above 0"),
        ({"stop_tokens": [61]}, "the stop token 61 is unknown: the model knows the tokens 0 to 60"),
        ({"stop_strings": ["."]}, "stop_strings need the tokenizer"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"ids": [1, 2]}, "ids has 2 entries for 1 prompts"),
    ],
)
def test_a_wrong_setting_is_refused(models: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(models["llama"], [[9]], **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize("way", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_stop_it(way: str, value: float) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = value
    with pytest.raises(ModelError, match=r"logits for row 8 at new token 1 are not finite numbers"):
        generate(model, [[9, 10]], max_new_tokens=3, where=["row 8"], **WAYS[way])


def test_tokens_that_a_model_shuts_out_are_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Rows._read

    def read(self: Rows, tokens: torch.Tensor, count: int) -> torch.Tensor:
        logits = plain(self, tokens, count).clone()
        logits[..., 20:] = -math.inf
        return logits

    monkeypatch.setattr(Rows, "_read", read)
    for way in WAYS.values():
        found = generate(tiny("llama"), PROMPTS, max_new_tokens=6, **way)
        assert max(max(r.tokens, default=0) for r in found) < 20
        assert all(math.isfinite(r.log_probability) for r in found)


def test_a_model_without_a_language_head_is_refused(tiny_model: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(ModelError, match="BertModel cannot generate text: it has no language-model head"):
        generate(AutoModel.from_pretrained(tiny_model), [[5]], max_new_tokens=2)


def test_no_prompts_give_no_results(models: dict[str, Any]) -> None:
    assert generate(models["llama"], [], max_new_tokens=3) == []


def test_the_models_own_stop_tokens_are_the_default(models: dict[str, Any]) -> None:
    assert runner_module.own_stop_tokens(models["llama"]) == (STOP,)
    own = generate(models["llama"], PROMPTS, max_new_tokens=12)
    assert own == generate(models["llama"], PROMPTS, max_new_tokens=12, stop_tokens=[STOP])
    assert own != generate(models["llama"], PROMPTS, max_new_tokens=12, stop_tokens=[])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_encoder_decoder_with_a_learned_prompt() -> None:
    import peft

    torch.manual_seed(5)
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(tiny("t5", "float32"), config).eval()
    found = generate(wrapped, PROMPTS, max_new_tokens=6, stop_tokens=[])
    for prompt, one in zip(PROMPTS, found, strict=True):
        new = [0, *one.tokens[:-1]]
        logits = wrapped(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([new])).logits[0]
        assert logits.argmax(-1).tolist() == list(one.tokens)


def test_a_decoder_whose_positions_begin_after_the_padding_id() -> None:
    from transformers import RobertaConfig, RobertaForCausalLM

    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, is_decoder=True, pad_token_id=1, initializer_range=0.3, eos_token_id=STOP,
    )  # fmt: skip
    model = RobertaForCausalLM(config).eval()
    found = generate(model, PROMPTS, max_new_tokens=6, stop_tokens=[])
    for prompt, one in zip(PROMPTS, found, strict=True):
        whole = torch.tensor([[*prompt, *one.tokens]])
        assert model(whole).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == list(one.tokens)
