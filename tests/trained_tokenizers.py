"""Small tokenizers of the common kinds, trained in a blink on a few sentences."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "Unbelievable unhappiness: internationalisation of unflinching films!",
    "She sells seashells by the seashore; they're really very good shells.",
    "naïve café in Zürich, 3.14 and 2,718 — numbers, and more numbers.",
] * 3


@lru_cache(maxsize=1)
def byte_level() -> Any:
    """Return a byte-level BPE tokenizer as RoBERTa's: a leading space belongs to the word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    ends = [(token, engine.token_to_id(token)) for token in ("<s>", "</s>")]
    engine.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>", model_max_length=512,
    )  # fmt: skip


@lru_cache(maxsize=1)
def metaspace() -> Any:
    """Return a Unigram tokenizer with a metaspace, as XLM-RoBERTa's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.Unigram())
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    ends = [(token, engine.token_to_id(token)) for token in ("<s>", "</s>")]
    engine.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>", model_max_length=512,
    )  # fmt: skip
