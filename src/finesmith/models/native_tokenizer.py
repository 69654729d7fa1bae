"""BERT's tokenizer, read straight from its folder, without transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finesmith.models.screen import SMALL_JSON, read_object

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

    from finesmith.models.load import Base

SPECIAL = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
# What a plain BERT's tokenizer_config.json may say; with anything else transformers reads the folder.
KNOWN = {
    *SPECIAL, "clean_up_tokenization_spaces", "do_basic_tokenize", "do_lower_case", "extra_special_tokens", "is_local",
    "local_files_only", "max_length", "model_max_length", "model_specific_special_tokens", "name_or_path",
    "never_split", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "special_tokens_map_file", "stride",
    "strip_accents", "tokenize_chinese_chars", "tokenizer_class", "tokenizer_file", "truncation_side",
    "truncation_strategy", "backend",
}  # fmt: skip


@dataclass(slots=True)
class NativeTokenizer:
    """What finesmith asks of a tokenizer, by the names that transformers gives it."""

    backend_tokenizer: tokenizers.Tokenizer
    base: Base
    model_max_length: int
    model_input_names: list[str]
    pad_token_id: int
    unk_token_id: int
    truncation_side: str = "right"
    split_special_tokens: bool = False

    is_fast = True
    bos_token_id = None
    eos_token_id = None

    def __len__(self) -> int:
        """Return the number of tokens, added ones too."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many tokens the template puts around a text, or a pair of texts."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    def save_pretrained(self, folder: Path) -> None:
        """Save it as transformers does."""
        from finesmith.models.load import load_tokenizer

        load_tokenizer(self.base).save_pretrained(folder)


def native_tokenizer(base: Base) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a base model whose files say what transformers would make of them; None otherwise.

    transformers builds BERT's tokenizer anew from the vocabulary and the settings in tokenizer_config.json. Where
    tokenizer.json describes the very same one, it is read as it stands.
    """
    from tokenizers import Tokenizer

    folder = Path(base.location)
    path = folder / "tokenizer.json"
    settings = read_object(folder / "tokenizer_config.json", SMALL_JSON)
    if not path.is_file() or (folder / "added_tokens.json").exists() or not set(settings) <= KNOWN:
        return None
    if settings.get("tokenizer_class") not in ("BertTokenizer", "BertTokenizerFast") or not _usual(settings):
        return None
    if any(value != SPECIAL.get(key) for key, value in _special(folder).items()):
        return None
    try:
        text = path.read_text("utf-8")
        described: dict[str, Any] = json.loads(text)
        vocabulary: dict[str, int] = described["model"]["vocab"]
        if not _same(described, settings, vocabulary):
            return None
        engine = Tokenizer.from_str(text)
    except Exception:  # the library raises no kind of its own; transformers says what is wrong
        return None
    found = NativeTokenizer(
        engine,
        base,
        settings["model_max_length"],
        ["input_ids", "token_type_ids", "attention_mask"],
        vocabulary["[PAD]"],
        vocabulary["[UNK]"],
    )
    # It has what finesmith asks of transformers' tokenizers.
    return cast("PreTrainedTokenizerBase", found)


def _special(folder: Path) -> dict[str, Any]:
    path = folder / "special_tokens_map.json"
    return read_object(path, SMALL_JSON) if path.is_file() else {}


def _usual(settings: dict[str, Any]) -> bool:
    """Whether the settings that change ids beside those of the normaliser have their usual values."""
    more = {"extra_special_tokens": None, "model_specific_special_tokens": None}
    usual = {**SPECIAL, "padding_side": "right", "truncation_side": "right", **more}
    given = {key: settings.get(key, value) for key, value in usual.items()}
    given.update({key: None for key in more if given[key] == {}})
    if given["extra_special_tokens"] == []:
        given["extra_special_tokens"] = None
    limit = settings.get("model_max_length")
    return given == usual and type(limit) is int and 0 < limit < 1_000_000


def _same(described: dict[str, Any], settings: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Whether tokenizer.json describes the tokenizer that transformers would build from the settings."""
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    model = {key: value for key, value in described.get("model", {}).items() if key != "vocab"}
    usual = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    }  # fmt: skip
    tokens = described.get("added_tokens", [])
    added = {token["content"]: token for token in tokens}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = vocabulary.values()
    return (
        _exact(described.get("normalizer")) == _exact(normalizer)
        and described.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and _exact(model) == _exact(usual)
        # transformers builds it from the words in the order of their ids, of which each must stand once.
        and set(map(type, ids)) == {int}
        and set(ids) == set(range(len(ids)))
        and set(added) == set(SPECIAL.values()) <= set(vocabulary)
        and len(tokens) == len(added)
        and not (described.get("truncation") or {}).get("stride")
        and all(
            _exact(token) == _exact({**plain, "id": vocabulary[name], "content": name}) for name, token in added.items()
        )
        and _exact(described.get("post_processor")) == _exact(_template(vocabulary))
    )


def _exact(value: Any) -> str:
    """Return a value as text, in which 1 is not true."""
    return json.dumps(value, sort_keys=True)


def _template(vocabulary: dict[str, int]) -> dict[str, Any]:
    def special(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def text(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]
    tokens = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special("[SEP]", 1)],
        "special_tokens": tokens,
    }
