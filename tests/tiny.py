"""Tiny models for tests: real architectures and tokenizers, random weights, milliseconds to run."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "the",
    "a",
    "film",
    "movie",
    "story",
    "is",
    "was",
    "good",
    "bad",
    "great",
    "awful",
    "fun",
    "dull",
    "warm",
    "cold",
    "bright",
    "dark",
    "really",
    "very",
    "not",
    "and",
    "but",
    "with",
    "for",
    "of",
    "in",
    "on",
    "at",
    "to",
    "it",
    "this",
    "that",
    "acting",
    "plot",
    "music",
    "scene",
    "end",
    "start",
    "love",
    "hate",
    "like",
    "enjoy",
    "boring",
    "clever",
    "silly",
    "moving",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "refund",
    "order",
    "late",
    "card",
    "bank",
    "app",
    "broken",
    "thanks",
]


def bert_tokenizer() -> object:
    """Return a fast WordPiece tokenizer over `WORDS`, letters and digits."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    del BertTokenizerFast
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"!?.,'-", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *WORDS]))}
    engine = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def write_tiny_bert(folder: Path) -> Path:
    """Write a 2-layer BERT of width 32 with its tokenizer; return the folder."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def write_tiny_llama(folder: Path) -> Path:
    """Write a 2-layer Llama of width 32 with a tokenizer of words that begins each text; return the folder."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = bert_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_t5(folder: Path, *, bart: bool = False) -> Path:
    """Write a T5, or a BART, of 2 + 2 layers of width 32, whose tokenizer ends each text; return the folder."""
    import torch
    from tokenizers import processors
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer = bert_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    begins = "[CLS] " if bart else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begins}$A [SEP]",
        special_tokens=[("[CLS]", tokenizer.bos_token_id), ("[SEP]", tokenizer.eos_token_id)],
    )
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    if bart:
        config = BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
            forced_bos_token_id=tokenizer.bos_token_id, **ids,
        )  # fmt: skip
        BartForConditionalGeneration(config).save_pretrained(folder)
    else:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        t5 = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes, **ids)
        T5ForConditionalGeneration(t5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
