"""The base model's view of every text: computed once, cached, reused by baselines and by the method `features`."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finesmith.workflows.inference import run as run_network

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.types import Batch
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup


@dataclass(frozen=True, slots=True)
class Embedded:
    """values: float32 [N, D], of all examples; cached: whether they were there; saved: seconds that this saved."""

    values: npt.NDArray[np.float32]
    cached: bool
    saved: float


def embeddings(run: Run, data: Prepared, setup: Setup) -> Embedded:
    """Return the pooled states of all examples, from the cache where they are there."""
    import numpy as np

    from finesmith.data.token_cache import load_cached, open_build
    from finesmith.models import forward

    name = _key(setup)
    if setup.cache is not None and (found := load_cached(setup.cache, name)) is not None:
        stored = np.array(found[0]["embeddings"]).reshape(len(setup.tokens), -1)
        return Embedded(stored, True, found[1]["milliseconds"] / 1000)
    done, began = 0, time.perf_counter()

    def pooled(batch: Batch) -> torch.Tensor:
        return forward.embed(setup.network, batch, setup.pooling)

    def progress(count: int) -> None:
        nonlocal done
        done += count
        run.record_live("embedding", done=done, total=len(data.examples))

    everything = np.arange(len(setup.tokens))
    values = run_network(setup.network, setup.tokens, everything, pooled, progress).astype(np.float32)
    if setup.cache is not None:
        with open_build(setup.cache, name) as build:
            build.column("embeddings", "<f4").append(values.ravel())
            build.publish({"rows": len(values), "milliseconds": round(1000 * (time.perf_counter() - began))})
        if build.refused:
            run.record("note", message=f"the cache cannot keep the embeddings: {build.refused}")
    return Embedded(values, False, 0.0)


def untouched(recipe: Recipe, data: Prepared, setup: Setup) -> Setup:
    """Return the set-up with the base model as it came: not tuned, and without the words that this run added to it.

    Baselines speak for the base model, and are made when this run's own network has been tuned.
    """
    from finesmith.data.tokens import tokenize
    from finesmith.workflows.setup import load_network, open_tokenizer, weights_key

    if recipe.method.name == "features":
        return setup
    tokenizer = open_tokenizer(recipe, setup.base)
    network, _ = load_network(recipe, data, setup.base, tokenizer, setup.device)
    tokens = setup.tokens
    if setup.added_words:
        texts, pairs = data.examples.texts, data.examples.pairs
        tokens = tokenize(texts, pairs, tokenizer, max_length=setup.max_length, cache=setup.cache)
    return replace(setup, network=network, tokens=tokens, added_words=(), weights_key=weights_key(setup.base, ()))


def _key(setup: Setup) -> str:
    """Return the hash of all that decides the bits of the embeddings: weights, tokens, and how they are computed."""
    import numpy as np
    import torch

    from finesmith.models.native_config import config_of

    attention = "ragged" if setup.network.ragged else "padded"
    where = f"{setup.device.device} {setup.device.threads} threads torch {torch.__version__}"
    config = f"{type(setup.network.classifier).__name__} {json.dumps(config_of(setup.base).to_dict(), default=str)}"
    digest = hashlib.sha256(f"embeddings 4 {setup.weights_key} {setup.pooling} {attention} {where} {config}".encode())
    for column in (setup.tokens.tokens, setup.tokens.offsets, setup.tokens.segments):
        digest.update(b"none" if column is None else np.ascontiguousarray(column).data)
    return digest.hexdigest()
