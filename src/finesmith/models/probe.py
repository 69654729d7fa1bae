"""Decide how a model runs, ragged, padded or one length at a time, by trying on the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from finesmith.errors import ModelError
from finesmith.models.attention import RAGGED, register
from finesmith.models.forward import READOUTS, Network, logits

if TYPE_CHECKING:
    import torch

    from finesmith.types import Batch

NO_PADDING = "; sequences of one length go together, because padding would change its outputs"


def choose_attention(
    network: Network,
    wanted: Literal["auto", "ragged", "padded"],
    answer: Callable[[Network, Batch], torch.Tensor] = logits,
) -> None:
    """Switch a network to ragged attention where that is wanted and its `answer` agrees with the padded one.

    Raises ModelError when "ragged" was asked for and is not possible.
    """
    kind = network.classifier.config.model_type
    if wanted == "padded":
        network.grouped = _minds_padding(network, answer)
        network.why = "padded, as the recipe asks" + (NO_PADDING if network.grouped else "")
        return
    problem = "its family has no ragged form here" if kind not in READOUTS else _probe(network, answer)
    if problem is None:
        network.why = f"ragged: {kind} gives the same outputs with and without padding (probed on this model)"
        return
    if wanted == "ragged":
        raise ModelError(f"model.attention is ragged, but {kind} cannot run so: {problem}; use auto or padded")
    network.grouped = _minds_padding(network, answer)
    network.why = f"padded: {kind} cannot run ragged ({problem})" + (NO_PADDING if network.grouped else "")


def _probe(network: Network, answer: Callable[[Network, Batch], torch.Tensor]) -> str | None:
    """Compare ragged with padded outputs on three short sequences; return what is wrong, or None."""
    import torch

    batch = probe_batch(network)
    model = network.classifier
    training, before = model.training, model.config._attn_implementation
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            expected = answer(network, batch)
            register()
            model.set_attn_implementation(RAGGED)
            network.ragged = True
            found = answer(network, batch)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        problem: str | None = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    else:
        gap = float((found - expected).abs().max())
        problem = None if gap <= _tolerance(expected) else f"outputs differ by {gap:.2g}"
    finally:
        model.train(training)
    if problem is not None:
        network.ragged = False
        model.set_attn_implementation(before)
    return problem


def _tolerance(expected: torch.Tensor) -> float:
    """Return how far outputs may lie from `expected` by rounding alone."""
    import torch

    scale = max(1.0, float(expected.abs().max()))
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(expected.dtype, 5e-2) * scale


def _minds_padding(network: Network, answer: Callable[[Network, Batch], torch.Tensor]) -> bool:
    """Whether a padded batch and its sequences one by one give different outputs."""
    import torch

    batch, model = probe_batch(network), network.classifier
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            together = answer(network, batch)
            network.grouped = True
            alone = answer(network, batch)
    finally:
        network.grouped = False
        model.train(training)
    # Some families compute their attention in float32 whatever the weights are.
    return float((together - alone).abs().max()) > max(1e-4, _tolerance(alone))


def probe_batch(network: Network) -> Batch:
    """Return three sequences of valid tokens, of unequal lengths, the last one longer than a short sliding window."""
    import torch

    from finesmith.types import Batch

    config = network.classifier.config.to_dict()
    # ModernBERT counts both sides of its window.
    window = config.get("sliding_window") or (config.get("local_attention") or 0) // 2
    most = config.get("max_position_embeddings") or config.get("n_positions") or 4096
    longest = window + 5 if 7 < window <= 1024 else 12
    lengths = torch.tensor([3, 7, longest]).clamp(max=max(1, most - 4))
    vocabulary = network.classifier.config.get_text_config().vocab_size
    tokens = torch.arange(1, 1 + int(lengths.sum())) * 7919 % vocabulary
    tokens[tokens == network.pad_id] = (network.pad_id + 1) % vocabulary
    device = network.device
    return Batch(tokens.to(device), lengths.to(device), None, None, torch.arange(3))
