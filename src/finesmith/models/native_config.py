"""The configuration of a plain BERT, read straight from its folder, without transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.models.load import load_config
from finesmith.models.screen import SMALL_JSON, read_object

if TYPE_CHECKING:
    from finesmith.models.load import Base

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
# What these keys must say, where a configuration has them, for the plain case.
PLAIN: dict[str, Any] = {
    "model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "classifier_dropout": None, "pruned_heads": {},
    "quantization_config": None,
}  # fmt: skip
# What else may stand there without a say in what the model computes, and of which types; transformers checks some.
HARMLESS: dict[str, tuple[type, ...]] = {
    "_name_or_path": (str,), "architectures": (list,), "bos_token_id": (int, type(None)), "directionality": (str,),
    "dtype": (str,), "eos_token_id": (int, type(None)), "gradient_checkpointing": (bool,), "id2label": (dict,),
    "label2id": (dict,), "pad_token_id": (int,), "problem_type": (str, type(None)), "tie_word_embeddings": (bool,),
    "torch_dtype": (str,), "transformers_version": (str,), "use_cache": (bool,),
}  # fmt: skip
TYPES = ("float32", "float16", "bfloat16")


@dataclass(slots=True)
class NativeConfig:
    """The configuration of a plain BERT, under the names that transformers gives it."""

    values: dict[str, Any]
    num_labels: int = 2
    problem_type: str | None = None
    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] = field(default_factory=dict)
    attribute_map: dict[str, str] = field(default_factory=dict)

    model_type = "bert"
    hidden_act = "gelu"
    is_encoder_decoder = False
    is_decoder = False

    @property
    def vocab_size(self) -> int:
        """The number of rows of the word embeddings."""
        return int(self.values["vocab_size"])

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers."""
        return int(self.values["num_hidden_layers"])

    @property
    def pad_token_id(self) -> int:
        """The id of padding."""
        return int(self.values["pad_token_id"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dict(self.values)

    def get_text_config(self) -> NativeConfig:
        """Return itself: nothing but text here."""
        return self


def native_config(base: Base) -> NativeConfig | None:
    """Return the configuration of a base model that is a plain BERT in a local folder; None for all others."""
    folder = Path(base.location)
    if not (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").exists():
        return None
    values = read_object(folder / "config.json", SMALL_JSON)
    if "model_type" not in values or not all(_plain(key, value) for key, value in values.items()):
        return None
    if not all(key in values for key in (*SIZES, *RATES, "pad_token_id")) or values["layer_norm_eps"] == 0:
        return None
    if values["hidden_size"] % values["num_attention_heads"] or not 0 <= values["pad_token_id"] < values["vocab_size"]:
        return None
    return NativeConfig({key: value for key, value in values.items() if key != "_name_or_path"})


def _plain(key: str, value: Any) -> bool:
    """Whether a key of config.json is known, and its value one that transformers takes and that asks for no more."""
    if key in PLAIN:
        return type(value) is type(PLAIN[key]) and value == PLAIN[key]
    if key in SIZES:
        return type(value) is int and value > 0
    if key in RATES:
        return (type(value) is float or (type(value) is int and "dropout" in key)) and 0 <= value < 1
    if type(value) not in HARMLESS.get(key, ()):
        return False
    if key == "id2label":
        return all(place.isdecimal() and type(label) is str for place, label in value.items())
    if key == "label2id":
        return all(type(place) is int for place in value.values())
    return key not in {"dtype", "torch_dtype"} or value in TYPES


def config_of(base: Base) -> Any:
    """Return the configuration of any base model: a plain BERT's as it stands, another's through transformers.

    Raises ModelError where it cannot be read.
    """
    return native_config(base) or load_config(base)
