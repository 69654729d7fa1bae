"""Run a network over many examples: sorted by length, without gradients, results in the order asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finesmith.data.tokens import Tokens
    from finesmith.models.forward import Network, Pooling
    from finesmith.train.linear import LinearHead
    from finesmith.types import Batch

    Floats = npt.NDArray[np.float64]
    Positions = npt.NDArray[np.int64]

# On a processor the states of so few tokens stay near it; an accelerator wants to be kept busy.
TOKENS_ON_CPU = 2048
TOKENS_ELSEWHERE = 8192
SEQUENCES_PER_BATCH = 256


@dataclass(slots=True)
class Predictor:
    """What turns tokens into logits: a network alone, or a frozen one with a linear head on its pooled states."""

    network: Network
    head: LinearHead | None = None
    pooling: Pooling = "mean"
    # What is known of some tokens already: them, and their pooled states, float32 [N, D].
    known: tuple[Tokens, npt.NDArray[np.float32]] | None = None

    def logits(self, tokens: Tokens, positions: Positions, progress: Callable[[int], None] | None = None) -> Floats:
        """Return the logits of the examples at `positions`, float64 [n, C]."""
        from finesmith.models import forward

        if self.head is None:
            return run(self.network, tokens, positions, lambda batch: forward.logits(self.network, batch), progress)
        import torch

        if self.known is not None and self.known[0] is tokens:
            return self.head.logits(torch.from_numpy(self.known[1][positions])).numpy()
        features = run(
            self.network, tokens, positions, lambda batch: forward.embed(self.network, batch, self.pooling), progress
        )
        return self.head.logits(torch.from_numpy(features)).numpy()


def run(
    network: Network,
    tokens: Tokens,
    positions: Positions,
    function: Callable[[Batch], torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> Floats:
    """Apply `function` (batch -> [B, D]) to the examples at `positions`; return float64 [n, D] in their order."""
    import numpy as np
    import torch

    from finesmith.data.batches import in_length_order, ragged

    lengths = tokens.lengths()[positions]
    ids = np.arange(len(tokens))
    size = TOKENS_ON_CPU if network.device.type == "cpu" else TOKENS_ELSEWHERE
    training = network.module.training
    network.module.eval()
    result: Any = None
    try:
        with torch.no_grad():
            for places in in_length_order(lengths, size, SEQUENCES_PER_BATCH):
                batch = ragged(tokens, positions[places], ids=ids, device=network.device)
                values = function(batch).double().cpu().numpy()
                _refuse_nonfinite(values, batch)
                if result is None:
                    result = np.empty((len(positions), values.shape[1]))
                result[places] = values
                if progress is not None:
                    progress(len(places))
    finally:
        network.module.train(training)
    if result is None:
        return np.empty((0, 0))
    return result  # type: ignore[no-any-return]


def _refuse_nonfinite(values: Floats, batch: Batch) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        first = int(batch.ids[int(bad[0])])
        raise ModelError(
            f"the model's outputs are not numbers for {bad.size} of {len(values)} examples (the first is example "
            f"{first}); its weights may be damaged, or its numbers too large for this precision: try another model.base"
        )
