"""Merge an adapter into its base model: a plain folder, proven to answer as the two together do."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError
from finesmith.models.adapter_files import (
    load_adapter,
    purpose_of,
    require_base,
    saved_tensors,
    screen_any_adapter,
)
from finesmith.models.attention import layout_of
from finesmith.models.load import Base, find, load_config, load_tokenizer
from finesmith.models.screen import SMALL_JSON, screen_tokenizer
from finesmith.run import whole_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig

    from finesmith.models.adapter_kinds import Purpose
    from finesmith.types import Batch

# Everything that a tokenizer may consist of.
TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
# How a model is to be generated from, where a task settled that.
SETTINGS = "generation_config.json"
# How sentence-transformers puts a model together, beside the folders that the first of these names.
LAYOUT, LAYOUT_FILES = "modules.json", ("config_sentence_transformers.json", "sentence_bert_config.json")
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was merged, and how equal it is.

    gap: the largest difference between the outputs of the merged model, loaded anew in `dtype`, and those of adapter on
    base, as a share of the largest output (of 1 at least); tolerance: what was allowed; moved: the same measure between
    adapter on base and base alone, which shows that the comparison could have failed. tied: whether input and output
    embeddings are one tensor; loads_with: the class of transformers that loads it.
    """

    folder: Path
    architecture: str
    loads_with: str
    kind: str
    dtype: str
    sequences: int
    tokens: int
    gap: float
    tolerance: float
    moved: float
    tied: bool


def merge(
    base: str,
    adapter_folder: Path,
    out_folder: Path,
    *,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    device: str = "cpu",
    revision: str | None = None,
    base_sha256: str | None = None,
    complete: Callable[[Path, MergeReport], None] = lambda *_: None,
) -> MergeReport:
    """Write base and adapter as one model that transformers alone loads; return the proof that they are equal.

    The sum is made in float32 (float64 where `dtype` is) and then rounded to `dtype`. What was written is loaded again
    and must hold those very tensors and, on the tokens of `batches`, give the outputs of adapter on base. The folder
    appears whole or not at all, with the tokenizer of the adapter's folder, the layout of sentence-transformers where
    that folder has one, and what `complete` puts into it. `base_sha256` is the hash that the base's weights must have.
    Raises ModelError when the output folder exists, when the adapter cannot be merged (prompt tuning), does not fit the
    base, or when outputs differ.
    """
    import torch

    if out_folder.exists():
        raise ModelError(f"{out_folder} exists; choose another folder for the merged model")
    if not batches or not all(len(batch.lengths) for batch in batches):
        raise ModelError("no texts were given to compare the merged model on; give at least one")
    kind = screen_any_adapter(adapter_folder)
    if kind == "PROMPT_TUNING":
        raise ModelError(
            f"{adapter_folder} holds a tuned prompt, vectors put before every text, which no plain model can hold; "
            "use the adapter as it is, or tune with method.name=lora"
        )
    purpose, found = purpose_of(adapter_folder), find(base, revision)
    require_base(found, base_sha256, adapter_folder)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    model, absent = _load(found, purpose, _config(found, adapter_folder), wide)
    if purpose == "embedding":
        # Vectors are made of the last hidden states, which no pooler has seen.
        absent = {name for name in absent if not name.startswith("pooler.")}
    _refuse_unknown(model, absent, adapter_folder, found.name)
    wrapped = load_adapter(model.to(device), adapter_folder).eval()
    together = _outputs(wrapped, batches)
    with wrapped.disable_adapter():
        moved = _gap(_outputs(wrapped, batches), together)
    merged = _merged(wrapped, adapter_folder)
    _refuse_gap(_gap(_outputs(merged, batches), together), _tolerance(wide), "before it was written")
    merged.to(dtype)
    try:
        with whole_folder(out_folder) as beside:
            merged.save_pretrained(beside)
            _copy_tokenizer(adapter_folder, found, beside)
            _copy_layout(adapter_folder, beside)
            again = _same_tensors(merged, beside, purpose, dtype).to(device)
            gap = _gap(_outputs(again, batches), together)
            _refuse_gap(gap, _tolerance(dtype), "loaded from its folder")
            report = MergeReport(
                folder=out_folder,
                architecture=type(again).__name__,
                loads_with=_auto_class(purpose).__name__,
                kind=kind.lower(),
                dtype=str(dtype).removeprefix("torch."),
                sequences=sum(len(batch.lengths) for batch in batches),
                tokens=sum(len(batch.tokens) for batch in batches),
                gap=gap,
                tolerance=_tolerance(dtype),
                moved=moved,
                tied=_is_tied(again),
            )
            complete(beside, report)
    except OSError as error:
        raise ModelError(
            f"cannot write {out_folder}: {error.strerror or error}; free some space or mend its permissions"
        ) from error
    return report


def _auto_class(purpose: Purpose) -> Any:
    import transformers as hf

    return {
        "sequence_classification": hf.AutoModelForSequenceClassification,
        "token_classification": hf.AutoModelForTokenClassification,
        "causal": hf.AutoModelForCausalLM,
        "masked": hf.AutoModelForMaskedLM,
        "seq2seq": hf.AutoModelForSeq2SeqLM,
        "embedding": hf.AutoModel,
    }[purpose]


def _config(base: Base, adapter_folder: Path) -> PreTrainedConfig:
    """Return the configuration that the adapter was trained with (labels, padding), with the base's vocabulary."""
    own = load_config(base)
    if "quantization_config" in own.__dict__:
        raise ModelError(f"{base.name} is quantised, and sums cannot be stored in it; name the model it was made from")
    if not (adapter_folder / "config.json").is_file():
        return own
    tuned = load_config(Base(str(adapter_folder), adapter_folder.name, None, None, None))
    if tuned.model_type != own.model_type:
        raise ModelError(
            f"the adapter in {adapter_folder} was made on a {tuned.model_type[:40]}, but {base.name} is a "
            f"{own.model_type}; name the base model that it was made on"
        )
    # An adapter trained on a quantised base is merged into the weights of full precision.
    tuned.__dict__.pop("quantization_config", None)
    tuned.get_text_config().vocab_size = own.get_text_config().vocab_size
    return tuned


def _load(base: Base, purpose: Purpose, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """Return the base model and the names of the tensors that its files do not hold in this shape."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = _auto_class(purpose).from_pretrained(
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
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load {base.name!r} to merge into: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
    absent = {str(name) for name in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    return model.eval(), absent


def _refuse_unknown(model: Any, absent: set[str], adapter_folder: Path, name: str) -> None:
    """Refuse a model with random values that the adapter does not replace.

    Biases that begin as zeros do so at every loading.
    """
    held = {key.removeprefix(PREFIX) for key in saved_tensors(adapter_folder)}
    values = model.state_dict()
    unknown = sorted(key for key in absent - held if values[key].any())
    if unknown:
        raise ModelError(
            f"neither {name} nor the adapter in {adapter_folder} holds {', '.join(unknown[:3])}; "
            "name the base model that the adapter was made on"
        )


def _merged(wrapped: Any, adapter_folder: Path) -> Any:
    """Return the plain model with the adapter in its weights."""
    import torch

    tied, output = _is_tied(wrapped), wrapped.get_output_embeddings()
    if tied and (_is_adapted(output) or _is_adapted(wrapped.get_input_embeddings())):
        # One tensor would take the change of one end into the other, or that of both twice.
        inner = output.get_base_layer() if _is_adapted(output) else output
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
        wrapped.get_base_model().config.tie_word_embeddings = False
    try:
        with warnings.catch_warnings():
            # T5's configuration calls two tables tied; peft tells that it mends that.
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
            merged = wrapped.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:
        raise ModelError(f"the adapter in {adapter_folder} cannot be merged: {str(error)[:300]}") from error
    if tied:
        first, last = merged.get_input_embeddings(), merged.get_output_embeddings()
        merged.config.tie_word_embeddings = torch.equal(first.weight, last.weight)
        if merged.config.tie_word_embeddings:
            last.weight = first.weight
    return merged


def _is_adapted(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _is_tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def _outputs(model: Any, batches: Sequence[Batch]) -> Tensor:
    """Return all outputs in float64, end to end; sequences of one length run together, so nothing is padded."""
    import torch

    found = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            for first, count, length in layout_of(batch.lengths).groups:
                span = slice(first, first + count * length)
                ids = batch.tokens[span].view(count, length).to(device)
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                if batch.segments is not None:
                    inputs["token_type_ids"] = batch.segments[span].view(count, length).to(device)
                if model.config.is_encoder_decoder:
                    inputs["decoder_input_ids"] = ids
                answer = model(**inputs)
                output = answer.logits if "logits" in answer else answer.last_hidden_state
                found.append(output.double().flatten().cpu())
    return torch.cat(found)


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def _tolerance(dtype: torch.dtype) -> float:
    """Return how far outputs may differ by rounding alone, as a share of the largest."""
    import torch

    return {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2}.get(dtype, 5e-2)


def _refuse_gap(gap: float, tolerance: float, when: str) -> None:
    # Not "gap > tolerance": a gap that is no number is no proof either.
    if not gap <= tolerance:
        raise ModelError(
            f"the merged model, {when}, answers otherwise than the adapter on its base: outputs differ by {gap:.2g} of "
            f"their size, expected at most {tolerance:.0e}; nothing was written. Ship the adapter as it is"
        )


def _same_tensors(merged: Any, folder: Path, purpose: Purpose, dtype: torch.dtype) -> Any:
    """Return the model loaded anew from its folder, which must hold every tensor bit for bit."""
    import torch

    again, info = _auto_class(purpose).from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    lost = sorted(str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key])
    written, read = merged.state_dict(), again.state_dict()
    lost += sorted(written.keys() ^ read.keys())
    lost += [key for key in written.keys() & read.keys() if not torch.equal(written[key].cpu(), read[key])]
    if lost:
        raise ModelError(
            f"the merged model does not come back from its folder as it was written: {', '.join(lost[:3])}; "
            "nothing was written. Ship the adapter as it is"
        )
    return again.eval()


def _copy_tokenizer(adapter_folder: Path, base: Base, folder: Path) -> None:
    """Copy the adapter's tokenizer, which knows the words added, and settings; without one, the base's tokenizer."""
    screen_tokenizer(adapter_folder)
    found = [adapter_folder / name for name in TOKENIZER_FILES if (adapter_folder / name).is_file()]
    settings = [adapter_folder / SETTINGS] if (adapter_folder / SETTINGS).is_file() else []
    for file in (*found, *settings):
        shutil.copyfile(file, folder / file.name)
    if not found:
        load_tokenizer(base).save_pretrained(folder)


def _copy_layout(adapter_folder: Path, folder: Path) -> None:
    """Copy how sentence-transformers puts the model together, where the adapter's folder says so.

    Raises ModelError where that leads out of the folder.
    """
    path = adapter_folder / LAYOUT
    if not path.is_file():
        return
    try:
        parts = [str(each["path"]) for each in json.loads(path.read_text("utf-8")[:SMALL_JSON])]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is no list of modules ({str(error)[:80]}); get it from its source again") from None
    for name in (part for part in parts if part):
        if Path(name).name != name or not (adapter_folder / name).is_dir():
            raise ModelError(f"{path} names {name[:80]!r}, which is no folder beside it; get it from its source again")
        shutil.copytree(adapter_folder / name, folder / name)
    for file in (LAYOUT, *LAYOUT_FILES):
        if (adapter_folder / file).is_file():
            shutil.copyfile(adapter_folder / file, folder / file)
