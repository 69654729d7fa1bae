"""Texts as tokens, a row or more of them, each a sequence by itself: what is trained on and embedded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finesmith.errors import ModelError
from finesmith.tasks.language import SEQUENCES_PER_BATCH, TOKENS_ELSEWHERE, TOKENS_ON_CPU

if TYPE_CHECKING:
    import torch

    from finesmith.data.pairs import Pairs
    from finesmith.data.supervised import Supervised
    from finesmith.data.tokens import Tokens
    from finesmith.models.forward import Network
    from finesmith.tasks.language import Floats, Ints, Progress
    from finesmith.types import Batch

# In a batch of labelled sentences so many of each label at least, while there are labels enough.
FELLOWS = 4


@dataclass(slots=True)
class Detail:
    """Rows of encoded texts.

    tokens: of every text, those of a row beside each other; answers: int64, one for each text: its label's number, or
    its column (0 anchor, 1 positive, 2 negative); pairs: the texts, where they are pairs; scores: [rows], how alike the
    texts of scored pairs are to be, 0 to 1 in training; epochs: the batches of the epochs asked for last, by batch
    size, seed and epoch, and the number of those of any.
    """

    tokens: Tokens
    answers: Ints
    pairs: Pairs | None
    scores: Floats | None = None
    epochs: dict[tuple[int, int, int], tuple[Ints, ...]] = field(default_factory=dict)
    counts: dict[tuple[int, int, int], int] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The texts of a row."""
        return 1 if self.pairs is None else 2 if self.pairs.negatives is None else 3

    def rows(self) -> Supervised:
        """Return the texts of each row laid end to end, without anything to predict."""
        import numpy as np

        from finesmith.data.supervised import UNSUPERVISED, Supervised

        nothing = np.full(len(self.tokens.tokens), UNSUPERVISED, np.int32)
        return Supervised(self.tokens.tokens, self.tokens.offsets[:: self.width], nothing)

    def places(self, rows: Ints) -> Ints:
        """Return the places of the texts of rows among all texts."""
        import numpy as np

        return (rows[:, None] * self.width + np.arange(self.width)).ravel()

    def step(self, size: int, seed: int, step: int) -> Ints:
        """Return the rows of a step (from 0): the batches of one epoch after those of the other, however many."""
        epoch = 0
        while step >= (count := self._count(size, seed, epoch)):
            epoch, step = epoch + 1, step - count
        return self.batches(size, seed, epoch)[step]

    def batches(self, size: int, seed: int, epoch: int) -> tuple[Ints, ...]:
        """Return the batches of an epoch: no two rows of one contradict, and each has others to be told from."""
        key = size, seed, epoch
        if key not in self.epochs:
            while len(self.epochs) > 1:
                self.epochs.pop(next(iter(self.epochs)))
            self.epochs[key] = self._made(size, seed, epoch)
            self.counts[key] = len(self.epochs[key])
        return self.epochs[key]

    def _count(self, size: int, seed: int, epoch: int) -> int:
        key = size, seed, epoch
        return self.counts[key] if key in self.counts else len(self.batches(size, seed, epoch))

    def _made(self, size: int, seed: int, epoch: int) -> tuple[Ints, ...]:
        import numpy as np

        from finesmith.data.pairs import class_batches, pair_batches

        if self.pairs is not None:
            return pair_batches(self.pairs, size, seed=seed, epoch=epoch)
        several = int((np.bincount(self.answers) > 1).sum())
        classes = max(2, min(several, size // FELLOWS))
        return class_batches(self.answers, classes, max(2, size // classes), seed=seed, epoch=epoch)[0]


def over_texts(
    network: Network, tokens: Tokens, function: Callable[[Batch], torch.Tensor], progress: Progress
) -> Floats:
    """Apply `function` (batch -> [B, D]) to all texts without gradients; return float64 [texts, D] in their order.

    `progress` is told how many texts are done. Raises ModelError when an output is not finite.
    """
    import numpy as np
    import torch

    from finesmith.data.batches import in_length_order, ragged

    size = TOKENS_ON_CPU if network.device.type == "cpu" else TOKENS_ELSEWHERE
    ids, found = np.arange(len(tokens)), np.zeros((len(tokens), 0))
    training = network.module.training
    network.module.eval()
    try:
        with torch.no_grad():
            for places in in_length_order(tokens.lengths(), size, SEQUENCES_PER_BATCH):
                values = function(ragged(tokens, places, ids=ids, device=network.device)).double().cpu().numpy()
                if not found.shape[1]:
                    found = np.zeros((len(tokens), values.shape[1]))
                found[places] = values
                progress(len(places))
    finally:
        network.module.train(training)
    if not np.isfinite(found).all():
        raise ModelError(
            "the model's outputs are not numbers for some texts; its weights may be damaged, or its numbers too large "
            "for this precision: try another model.base"
        )
    return found
