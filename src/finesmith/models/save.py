"""Write a tuned model as a folder that plain transformers, peft or sentence-transformers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from finesmith.models.encoder import Encoder
    from finesmith.models.forward import Network, Pooling


def save_classifier(network: Network, folder: Path) -> None:
    """Save a trained model whole, and its tokenizer."""
    from finesmith.models.native import as_transformers

    folder.mkdir(parents=True, exist_ok=True)
    as_transformers(network)
    with standard_attention(network):
        network.classifier.save_pretrained(folder)
    network.tokenizer.save_pretrained(folder)


class standard_attention:  # noqa: N801 - reads as a verb at its place of use
    """Give a network's configuration an attention that other programs know while it is being saved, and no bar."""

    def __init__(self, network: Network) -> None:
        self.config = network.classifier.config

    def __enter__(self) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.before = self.config._attn_implementation
        self.config._attn_implementation = "sdpa" if self.before.startswith("finesmith") else self.before

    def __exit__(self, *_: object) -> None:
        self.config._attn_implementation = self.before


def save_features(
    network: Network, folder: Path, weight: torch.Tensor, bias: torch.Tensor, *, pooling: Pooling, max_length: int
) -> None:
    """Save a frozen encoder with its linear head in the form of sentence-transformers.

    weight: [C, D], bias: [C]. The folder is a chain Transformer -> Pooling -> Dense, whose last output are the logits;
    `AutoModel.from_pretrained` loads the encoder alone.
    """
    from safetensors.torch import save_file

    dense = folder / "2_Dense"
    dense.mkdir(parents=True, exist_ok=True)
    outputs, width = weight.shape
    save_file(
        {"linear.weight": weight.float().contiguous(), "linear.bias": bias.float().contiguous()},
        dense / "model.safetensors",
    )
    _write(
        dense / "config.json",
        {
            "in_features": width,
            "out_features": outputs,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    _save_body(network, folder)
    _write_chain(folder, pooling, width, max_length, "Dense")


def save_encoder(network: Encoder, folder: Path, *, max_length: int) -> None:
    """Save an encoder in the form of sentence-transformers: Transformer -> Pooling -> Normalize.

    `AutoModel.from_pretrained` loads the encoder alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_body(network, folder)
    width = network.classifier.config.get_text_config().hidden_size
    write_encoder_chain(folder, network.pooling, width, max_length)


def write_encoder_chain(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """Write beside an encoder's weights that its states are pooled and normalised."""
    (folder / "2_Normalize").mkdir(exist_ok=True)
    _write(folder / "2_Normalize" / "config.json", {})
    _write_chain(folder, pooling, width, max_length, "Normalize")


def _save_body(network: Network, folder: Path) -> None:
    from finesmith.models.native import as_transformers

    as_transformers(network)
    with standard_attention(network):
        network.classifier.base_model.save_pretrained(folder)  # type: ignore[operator]
    network.tokenizer.save_pretrained(folder)


def _write_chain(folder: Path, pooling: Pooling, width: int, max_length: int, last: str) -> None:
    """Write how the states of a body are pooled, and the chain that ends in module `last`."""
    pool = folder / "1_Pooling"
    pool.mkdir(exist_ok=True)
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
    _write(pool / "config.json", {"word_embedding_dimension": width, **{k: m == pooling for m, k in modes.items()}})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), (f"2_{last}", last)]
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
