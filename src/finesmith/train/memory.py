"""How much memory training takes, estimated from shapes before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finesmith.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FLOAT32_BYTES = 4
# Measured on MiniLM in float32 on a CPU: what allocators keep beside the live tensors, and what the first step loads
# (library buffers, code). tests/train/test_devices.py holds the estimate to the measurement.
SAFETY = 1.4
OVERHEAD = 240_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of a transformer depends on.

    `trained_layers` counts the layers that gradients flow through: from the lowest with anything trainable upwards.
    `output_width` is the number of values the model returns per token (the vocabulary of a language model), 0 for a
    model that returns a few values per sequence. `adapter_width` is the number of values that adapters keep per token,
    over all layers. `gated` says that the feed-forward block multiplies two branches, `spelt_out` that its activation
    is made of many small operations, which each keep their numbers (T5's approximate GELU);
    `score_copies` is how many matrices of attention scores a layer makes (4 where positions have their own).
    `recomputed` says that of a layer only its input is kept, and the rest is computed again on the way back.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    parameters: int
    trainable: int
    trained_layers: int
    gated: bool = False
    spelt_out: bool = False
    score_copies: int = 1
    output_width: int = 0
    adapter_width: int = 0
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by part that training adds to the process, as an upper estimate; `fits` compares the total with `free`."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    attention: int
    backward: int
    outputs: int
    overhead: int
    total: int
    free: int
    fits: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The sequences to put through the model at once, how many times make a batch, and what that takes."""

    size: int
    per_batch: int
    estimate: Estimate


def shape_of(
    config: Any,
    *,
    parameters: int,
    trainable: int,
    trained_layers: int | None = None,
    output_width: int = 0,
    adapter_width: int = 0,
) -> Shape:
    """Read a transformers configuration, whichever names its family uses.

    Raises:
        UserError: the configuration does not say how deep or wide the model is.
    """
    values = config.to_dict()
    aliases = dict(config.attribute_map)

    def first(*names: str) -> int | None:
        for name in names:
            value = values.get(aliases.get(name, name), values.get(name))
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    layers, hidden, heads = first("num_hidden_layers"), first("hidden_size"), first("num_attention_heads")
    if layers is None or hidden is None or heads is None:
        raise UserError(
            f"the configuration of this {values.get('model_type', 'unknown')} model does not give its layers, width "
            "and attention heads, so its memory cannot be estimated; set train.micro_batch_size"
        )
    intermediate = (
        first("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "encoder_ffn_dim", "d_ff") or 4 * hidden
    )
    activation = str(values.get("hidden_act", values.get("hidden_activation", "")))
    gated = "rms_norm_eps" in values or "glu" in activation or values.get("model_type") == "modernbert"
    gated = gated or values.get("is_gated_act") is True
    deep = layers if trained_layers is None else trained_layers
    copies = 4 if values.get("pos_att_type") else 1
    return Shape(
        layers, hidden, heads, intermediate, parameters, trainable, deep, gated,
        values.get("dense_act_fn") == "gelu_new", copies, output_width, adapter_width,
    )  # fmt: skip


def estimate(shape: Shape, lengths: Sequence[int], *, free: int, dtype: str, padded: bool = False) -> Estimate:
    """Estimate the memory of one training step over sequences of these lengths, in tokens, put through together.

    Activations kept for the backward pass follow Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) with their
    two-byte numbers made e bytes wide and the width of the feed-forward block left free. Per token and layer, for h
    hidden units, m feed-forward units, a heads and a sequence of s tokens:

        attention       h (5 e + 1) + a s (2 e + 1)      inputs, q, k, v, output; scores with dropout and its mask
        feed-forward    h (e + 1) + 2 m e                (4 m e when gated, 6 m e more when spelt out)
        layer norms     2 h e

    Scores are counted as if they were kept, which they are on a CPU with dropout and not by a fused GPU kernel.
    Weights, gradients and both AdamW moments are float32; bfloat16 training keeps a second copy of the weights. Where
    layers are recomputed (Chen et al. 2016, arXiv:1604.06174) each keeps h e, and one at a time all the rest, with
    gradients.
    """
    longest = max(lengths, default=0)
    counts = [longest] * len(lengths) if padded else list(lengths)
    tokens, squares = sum(counts), sum(count * count for count in counts)
    wide = 2 if dtype == "bfloat16" else FLOAT32_BYTES
    blocks = (4 if shape.gated else 2) + (6 if shape.spelt_out else 0)
    per_token = shape.hidden * (8 * wide + 2) + blocks * shape.intermediate * wide
    per_pair = shape.score_copies * shape.heads * (2 * wide + 1)
    # With layers recomputed one of them is whole at a time, with the gradients of most of it beside it (as measured),
    # and of the others there is what enters them.
    whole = min(1.75, shape.trained_layers) if shape.recomputed else shape.trained_layers
    entering = shape.layers * shape.hidden * wide if shape.recomputed else 0
    adapters = shape.adapter_width / max(1, shape.layers) if shape.recomputed else shape.adapter_width
    work = tokens * (4 * shape.hidden + blocks * shape.intermediate) * wide
    parts = {
        "weights": shape.parameters * (FLOAT32_BYTES + (wide if dtype == "bfloat16" else 0)),
        "gradients": shape.trainable * FLOAT32_BYTES,
        "optimiser": shape.trainable * 2 * FLOAT32_BYTES,
        "activations": int(SAFETY * tokens * (whole * per_token + entering + (3 * shape.hidden + adapters) * wide)),
        "attention": int(SAFETY * squares * whole * per_pair),
        # Whatever depth is trained, one layer's buffers and their gradients are alive at a time.
        "backward": int(SAFETY * (work + squares * shape.score_copies * shape.heads * 2 * wide)),
        "outputs": int(SAFETY * tokens * shape.output_width * 3 * FLOAT32_BYTES),
        "overhead": OVERHEAD,
    }
    total = sum(parts.values())
    return Estimate(**parts, total=total, free=free, fits=total <= free)


def micro_batch(
    shape: Shape,
    *,
    lengths: Sequence[int] | npt.NDArray[np.integer],
    batch_size: int,
    free: int,
    dtype: str,
    padded: bool = False,
) -> MicroBatch:
    """Return the largest even share of a batch whose training step fits in `free` bytes.

    `lengths` are the tokens of every example; the longest of them are assumed to meet in one micro-batch. The batch is
    cut into the fewest parts that fit, as equal as can be: 32 that do not fit become 16 and 16, 30 become 15 and 15.
    When a single sequence does not fit the size is 1 and the estimate says so.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    longest = sorted((int(length) for length in lengths), reverse=True)[:batch_size]
    found = MicroBatch(1, batch_size, estimate(shape, longest[:1], free=free, dtype=dtype, padded=padded))
    for parts in range(1, batch_size + 1):
        size = -(-batch_size // parts)
        needed = estimate(shape, longest[:size], free=free, dtype=dtype, padded=padded)
        if needed.fits:
            return MicroBatch(size, -(-batch_size // size), needed)
    return found
