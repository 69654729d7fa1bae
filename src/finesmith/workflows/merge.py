"""Merge a tuned adapter into its base model: a plain folder, proven equal on rows that the run kept for its test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError, UserError
from finesmith.recipe import ADAPTERS
from finesmith.run import read_json, write_whole
from finesmith.workflows.about import is_model
from finesmith.workflows.apply import model_of
from finesmith.workflows.finish import PROOF_EXAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.models.merge import MergeReport
    from finesmith.types import Batch

DTYPES = ("float32", "bfloat16", "float16")
# Of random tokens: so many sequences of each length, the longest as long as the model was tuned for at most.
LENGTHS, OF_EACH = (3, 8, 21, 55), 4
TOKENS_PER_BATCH = 2048


def merge(folder: str, *, out: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    """Write the model of a run, or of a model folder, as one that transformers alone loads; return the proof.

    The outputs are compared on test rows of the run, or on random tokens where there is no run or it holds no texts.
    Raises FinesmithError where there is nothing to merge, where it cannot be, or where the outputs differ; nothing is
    left behind then.
    """
    import torch

    from finesmith.models.merge import merge as merge_models
    from finesmith.train.devices import choose

    if dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype[:40]!r}, expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    source = model_of(folder)
    about = read_json(source / "finesmith.json")
    method = str(about.get("method"))
    if method not in ADAPTERS:
        raise ModelError(
            f"{folder} was tuned by the method {method[:40]}, so its model is whole already: "
            f"use {source} as it is, there is nothing to merge"
        )
    if method == "prompt":
        raise ModelError(
            f"{folder} was tuned by the method prompt, vectors put before every text, which no plain model can hold; "
            "use it as it is, or tune with --set method.name=lora"
        )
    place = Path(out) if out else _beside(Path(folder))
    batches, compared = _batches(Path(folder), source)

    def complete(beside: Path, report: MergeReport) -> None:
        from finesmith.report.merged_card import merged_card
        from finesmith.workflows.seal import seal

        _write_chain(about, beside)
        facts = {**_facts(report), "method": method, "compared": compared}
        written = {**about, "method": "full", "merged": facts}
        write_whole(beside / "finesmith.json", _as_json(written))
        earlier = source / "README.md"
        card = earlier.read_text("utf-8", "replace") if earlier.is_file() else ""
        layout = (beside / "modules.json").is_file()
        write_whole(beside / "README.md", merged_card(card, facts, name=place.name, sentence_transformers=layout))
        seal(beside)

    report = merge_models(
        str(about.get("base")),
        source,
        place,
        batches=batches,
        dtype=getattr(torch, dtype),
        device=choose("auto").device,
        revision=about.get("revision"),
        base_sha256=about.get("base_sha256"),
        complete=complete,
    )
    return {"folder": str(place), **_facts(report), "method": method, "compared": compared}


def _write_chain(about: Mapping[str, Any], beside: Path) -> None:
    """Write how embeddings are made of a merged encoder's states, which an adapter's folder leaves to its base."""
    if about["task"].get("name") != "embeddings":
        return
    from finesmith.models.encoder import pooling_of
    from finesmith.models.load import find
    from finesmith.models.save import write_encoder_chain

    config = read_json(beside / "config.json")
    base = find(str(about["base"]), about.get("revision"))
    pooling = pooling_of(about["task"]["contrast"]["pooling"], base, str(config["model_type"]))
    write_encoder_chain(beside, pooling, int(config.get("hidden_size") or config["dim"]), int(about["max_length"]))


def _facts(report: MergeReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key not in {"folder", "kind"}}


def _as_json(value: Mapping[str, Any]) -> str:
    import json

    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _beside(folder: Path) -> Path:
    """Return where a merged model goes: into the run, or beside the model."""
    return folder.with_name(f"{folder.name}-merged") if is_model(folder) else folder / "merged"


def _batches(folder: Path, source: Path) -> tuple[list[Batch], str]:
    """Return what to compare the models on, and what it is in words."""
    from finesmith.models.load import load_tokenizer
    from finesmith.models.reload import find_tokenizer

    tokenizer = load_tokenizer(find_tokenizer(source))
    texts, pairs = ([], None) if is_model(folder) else _held_out(folder)
    if texts:
        return _of_texts(source, tokenizer, texts, pairs), f"{len(texts)} test rows of the run"
    found = _of_random_tokens(tokenizer, int(read_json(source / "finesmith.json")["max_length"]))
    why = "a model folder holds no rows" if is_model(folder) else "the run keeps no texts"
    return found, f"{sum(len(batch.lengths) for batch in found)} sequences of random tokens, because {why}"


def _held_out(run: Path) -> tuple[list[str], list[str] | None]:
    """Return the first test rows of a run as texts, none where the run keeps no texts."""
    import pyarrow.parquet as pq

    path = run / "predictions" / "test.parquet"
    if not path.is_file():
        return [], None
    table = pq.read_table(path).slice(0, PROOF_EXAMPLES)
    if "text" not in table.column_names:
        return [], None
    texts = [str(text) for text in table.column("text").to_pylist()]
    if "text_pair" not in table.column_names:
        return texts, None
    return texts, [str(text) for text in table.column("text_pair").to_pylist()]


def _of_texts(
    source: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None
) -> list[Batch]:
    """Return texts as tokens: what makes a row of them matters to no sum of weights, and differs by task."""
    import numpy as np

    from finesmith.data.batches import in_length_order, ragged
    from finesmith.data.tokens import tokenize

    longest = int(read_json(source / "finesmith.json")["max_length"])
    tokens = tokenize(texts, pairs, tokenizer, max_length=longest, cache=None)
    order = in_length_order(tokens.lengths(), TOKENS_PER_BATCH, PROOF_EXAMPLES)
    return [ragged(tokens, places, ids=np.arange(len(texts))) for places in order]


def _of_random_tokens(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Batch]:
    """Return sequences of random tokens, the same ones always; the last words of the vocabulary are among them."""
    import torch

    from finesmith.types import Batch

    special = set(tokenizer.all_special_ids)
    words = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in sorted({min(length, longest) for length in LENGTHS}):
        drawn = words[torch.randint(len(words), (OF_EACH, length), generator=generator)]
        drawn[0, : min(length, len(words))] = words[-length:]
        sizes = torch.full((OF_EACH,), length)
        found.append(Batch(drawn.flatten(), sizes, None, None, torch.arange(OF_EACH)))
    return found
