"""How well a model's implicit rewards agree with people's choices between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finesmith.evaluate.measurement import Measurement, mean_of

if TYPE_CHECKING:
    import numpy.typing as npt


def preferences(
    chosen: Sequence[float] | npt.NDArray[Any], rejected: Sequence[float] | npt.NDArray[Any]
) -> dict[str, Measurement]:
    """Measure `reward_accuracy` (0 to 1) and `reward_margin` (in the rewards' unit) over pairs of answers.

    chosen, rejected: [N] rewards of the preferred and the other answer; for DPO beta times the difference of the
    summed log probabilities, in nats, under the model and the reference (Rafailov et al. 2023). Accuracy is the share
    of pairs whose chosen answer has the higher reward; equal rewards count half, as a coin would. The margin is the
    mean of chosen less rejected.

    Raises ValueError when the two differ in length, are empty or not finite.
    """
    import numpy as np

    better, worse = (np.asarray(values, dtype=np.float64) for values in (chosen, rejected))
    if better.ndim != 1 or better.shape != worse.shape:
        raise ValueError(f"rewards of {better.shape} chosen answers do not fit {worse.shape} rejected ones")
    margins = mean_of("reward_margin", better - worse, "real")
    agrees = (np.sign(margins.per_example) + 1) / 2
    return {"reward_accuracy": mean_of("reward_accuracy", agrees), "reward_margin": margins}
