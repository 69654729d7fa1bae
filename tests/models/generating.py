"""Tiny generating models for tests: real architectures, random weights that prefer some tokens clearly."""

from __future__ import annotations

import random
from typing import Any

CAUSAL = ("llama", "gpt2", "qwen2", "mistral", "bloom")
TWO_PART = ("t5", "bart")
VOCABULARY = 61
STOP = 7


def tiny(kind: str, dtype: str = "float64") -> Any:
    """Return a model of the family in evaluation mode."""
    import torch
    import transformers as t

    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": STOP, "pad_token_id": 0}
    llama = sizes | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(3)
    if kind == "llama":
        model: Any = t.LlamaForCausalLM(t.LlamaConfig(**llama))
    elif kind == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**llama))
    elif kind == "mistral":
        model = t.MistralForCausalLM(t.MistralConfig(**llama, sliding_window=8))
    elif kind == "gpt2":
        config = t.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
        model = t.GPT2LMHeadModel(config)
    elif kind == "bloom":
        model = t.BloomForCausalLM(t.BloomConfig(**sizes, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3))
    elif kind == "t5":
        config = t.T5Config(
            **sizes, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
            initializer_factor=3.0, tie_word_embeddings=False,
        )  # fmt: skip
        model = t.T5ForConditionalGeneration(config)
    else:
        config = t.BartConfig(
            **sizes, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
            decoder_start_token_id=STOP, forced_eos_token_id=None, forced_bos_token_id=None, init_std=0.3,
        )  # fmt: skip
        model = t.BartForConditionalGeneration(config)
    with torch.no_grad():
        # Often enough the greatest: texts that stop early must be among those tested.
        model.get_output_embeddings().weight[STOP] *= 2.2
    return model.to(getattr(torch, dtype)).eval()


def some_prompts(count: int = 9, longest: int = 14, seed: int = 0) -> list[list[int]]:
    """Return prompts of various lengths, some of them equal."""
    rng = random.Random(seed)
    return [[rng.randrange(8, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def theirs(model: Any, prompt: list[int], *, new: int, stop: int | None = STOP, **options: Any) -> list[int]:
    """Return what transformers generates for one prompt by itself, without the stop token."""
    import torch

    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": stop, "pad_token_id": 0, "max_new_tokens": new} | options
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    out = out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]
    return out[: out.index(stop)] if stop in out else out[:new]
