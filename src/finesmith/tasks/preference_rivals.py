"""What the task of preferences makes of answers: log-probabilities, margins, and simpler methods to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.tasks.corpus import Baseline, Corpus, Encoded, Outcome
from finesmith.tasks.language import over_tokens, sums_by_row, targets_by_row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.supervised import Supervised
    from finesmith.models.token_heads import TokenNetwork
    from finesmith.tasks.language import Floats, Progress


@dataclass(frozen=True, slots=True)
class Sides:
    """The sequences of N rows: chosen and rejected answers in turn, or one marked answer each.

    good: bool [N] of marked answers, None for pairs. mismatched: each prompt with another row's answer, None where the
    loss does not ask for it. reference: float64, the log-probability of each sequence's answer under the model before
    tuning, and mismatched_reference that of each mismatched one; None until `begin`.
    """

    sequences: Supervised
    good: Any | None = None
    mismatched: Supervised | None = None
    reference: Floats | None = None
    mismatched_reference: Floats | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a method makes of N rows. margins: by how much it agrees with people, 0 where it has no preference.

    losses: of the rows; only with them margins are in the unit of rewards, so that their mean says something.
    reference: log-probabilities of the sequences before tuning, None where unknown.
    """

    margins: Floats
    losses: Floats | None = None
    reference: Floats | None = None


def answers(network: TokenNetwork, rows: Supervised, progress: Progress | None = None) -> Floats:
    """Return the log-probability of each row's targets, float64 [N]."""
    from finesmith.models.token_loss import token_log_probabilities

    values = over_tokens(network, rows, lambda batch: token_log_probabilities(network, batch), 1, progress)
    return sums_by_row(values[:, 0], rows.offsets)


def halved(progress: Progress | None) -> Progress | None:
    """Return the function that is told sequences and tells pairs."""
    if progress is None:
        return None
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        progress((done + count) // 2 - done // 2)
        done += count

    return tell


def zeros(count: int) -> Floats:
    """Return `count` zeros, float64."""
    import numpy as np

    return np.zeros(count)


def signs(good: Any) -> Floats:
    """Return 1 for each true value and -1 for each other, float64."""
    import numpy as np

    return np.where(good, 1.0, -1.0)


def fit_rival(name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
    """Fit a simpler method: what the untuned model finds likelier a token, the longer answer, or no preference.

    Of marked answers the border between good and bad is the one that parts the training answers best.
    """
    pairs = train.content.good is None
    if name == "majority":
        if pairs:
            return Baseline(name, "no preference", lambda corpus, _: Outcome(Judged(zeros(len(corpus)))))
        usual = 1.0 if 2 * sum(train.content.good) >= len(train) else -1.0
        title = f"every answer is {'good' if usual > 0 else 'bad'}"
        return Baseline(name, title, lambda _, rows: Outcome(Judged(signs(rows.detail.good) * usual)))

    def score(rows: Encoded) -> Floats:
        sides: Sides = rows.detail
        counts = targets_by_row(sides.sequences)
        if name == "longer":
            return counts.astype("float64")
        logs = answers(base(), sides.sequences) if sides.reference is None else sides.reference
        return logs / counts

    if pairs:
        title = "longer answer" if name == "longer" else "untuned base model, by log-probability a token"

        def prefer(_: Corpus, rows: Encoded) -> Outcome:
            scores = score(rows)
            return Outcome(Judged(scores[::2] - scores[1::2]))

        return Baseline(name, title, prefer)
    title = "length of the answer" if name == "longer" else "log-probability a token of the untuned base model"
    border, way = best_border(score(encoded), encoded.detail.good)
    return Baseline(
        name,
        f"{title}, with the border that parts train best",
        lambda _, rows: Outcome(Judged(signs(rows.detail.good) * way * (score(rows) - border))),
    )


def best_border(values: Floats, good: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the border that best parts good from bad by `values`, and 1 where good ones lie above it, else -1."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    ordered, marks = values[order], np.where(good[order], 1, -1)
    ends = np.flatnonzero(np.diff(ordered)) + 1
    cuts = np.concatenate([[0], ends, [len(ordered)]])
    below = np.concatenate([[0], marks.cumsum()])[cuts]
    lead = marks.sum() - 2 * below
    best = int(np.argmax(np.abs(lead)))
    cut = int(cuts[best])
    if cut in (0, len(ordered)):
        border = float(ordered[0] - 1 if cut == 0 else ordered[-1] + 1)
    else:
        border = float((ordered[cut - 1] + ordered[cut]) / 2)
    return border, 1.0 if lead[best] >= 0 else -1.0
