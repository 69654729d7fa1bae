"""Preferences: the better of two answers to one prompt (DPO, IPO, ORPO), or answers marked good or bad (KTO).

A row is a pair, its two sequences side by side in one micro-batch, or one marked answer. Rewards are measured against
the model before tuning, whose log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import DataError, UserError
from finesmith.tasks import compared_answers
from finesmith.tasks.compared_answers import Compared
from finesmith.tasks.corpus import Answers, Baseline, Choices, Corpus, Encoded, LaidOut, Outcome, Reading, Speech
from finesmith.tasks.language import LanguageTask, targets_by_row
from finesmith.tasks.preference_losses import UNNAMED, Objective
from finesmith.tasks.preference_rivals import Judged, Sides, answers, fit_rival, halved, signs, zeros
from finesmith.tasks.writing import token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.tasks.language import Ints, Progress
    from finesmith.types import Batch

MARKED_LOSS = "kto"
LOSSES = ("dpo", "ipo", "orpo", MARKED_LOSS)


@dataclass(frozen=True, slots=True)
class Placed:
    """What a batch holds: sequences, int64 [B], their places in `Sides.sequences`; divergence: KTO's, of the step."""

    sequences: Ints
    divergence: float = 0.0


@dataclass(frozen=True)
class Preferences(LanguageTask):
    """What people prefer. objective: the loss and its numbers; speech: how conversations are laid out."""

    objective: Objective
    speech: Speech

    name: ClassVar[str] = "preferences"
    unit: ClassVar[str] = "rows"
    kind: ClassVar[Kind] = "causal"
    purpose: ClassVar[Purpose] = "causal"
    baselines: ClassVar[tuple[str, ...]] = ("base", "longer", "majority")
    audits: ClassVar[frozenset[str]] = compared_answers.AUDITS
    usual_length: ClassVar[int | None] = None
    speaks: ClassVar[bool] = True
    apart: ClassVar[str] = "rows with the same prompt share a split"
    # DPO took 1e-6 where tuning takes 1e-5 (Rafailov et al. 2023, appendix B), Zephyr 5e-7 after 2e-5 (Tunstall et al.
    # 2023, arXiv:2310.16944).
    rate_scale: ClassVar[float] = 0.1

    @classmethod
    def read(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read pairs of answers, or answers marked good or bad."""
        return compared_answers.read(sources, reading)

    @classmethod
    def read_unlabelled(cls, sources: Sequence[str], reading: Reading) -> Corpus:
        """Read the same: which answer is said to be better is part of the question, and every row is answered."""
        return compared_answers.read(sources, replace(reading, malformed="stop"))

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay rows end to end."""
        return compared_answers.join(parts)

    @classmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the rows at `positions`."""
        return compared_answers.take(corpus, positions)

    @classmethod
    def of_texts(cls, texts: Sequence[str], where: Sequence[str]) -> Corpus:
        """Refuse: a text alone is no answer to anything."""
        del texts, where
        raise DataError(
            "this model compares answers to prompts, so a text alone says nothing; give a file of rows with prompt, "
            "chosen and rejected to `finesmith predict`"
        )

    @classmethod
    def lay_out(
        cls, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int
    ) -> LaidOut | None:
        """Make tokens of all answers; a row is kept where all of its answers fit."""
        return compared_answers.lay_out(corpus, tokenizer, choices, max_length)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> Preferences:
        """Take what the recipe chose; the rows say whether pairs or marks are learnt.

        Raises UserError when the loss is for other rows.
        """
        asked = choices.objective.loss
        marked = train.content.good is not None
        if marked and len(set(train.content.good)) < 2:
            raise DataError(
                f"all of the {len(train):,} training answers are {'good' if train.content.good[0] else 'bad'}; "
                "expected good and bad ones"
            )
        loss = asked if asked != UNNAMED.loss else MARKED_LOSS if marked else "dpo"
        if (loss == MARKED_LOSS) != marked:
            has = "single answers marked good or bad" if marked else "pairs of a chosen and a rejected answer"
            raise UserError(
                f"train.loss is {loss}, but the rows are {has}; use {'kto' if marked else 'dpo, ipo or orpo'}, or "
                "leave train.loss out"
            )
        return cls(replace(choices.objective, loss=loss), choices.speech)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preferences:
        """Rebuild the task from `state`."""
        objective = Objective(**state["objective"])
        numbers = [value for name, value in asdict(objective).items() if name != "loss"]
        if objective.loss not in LOSSES or not all(type(value) is float for value in numbers):
            raise ValueError(objective)
        return cls(objective, compared_answers.speech_of(state["speech"]))

    @property
    def state(self) -> dict[str, Any]:
        """The objective and how conversations are laid out."""
        return {
            "name": self.name, "objective": asdict(self.objective), "speech": compared_answers.speech_state(self.speech)
        }  # fmt: skip

    @property
    def choices(self) -> Choices:
        """What the rows of the run were laid out by."""
        return Choices(speech=self.speech, objective=self.objective)

    @property
    def settled(self) -> Mapping[str, tuple[Any, str]]:
        """The chat template, and the loss that the rows ask for."""
        rows = "marked answers" if self.marked else "pairs of answers"
        own = self.speech.template == "own"
        return {
            "text.template": (
                self.speech.template, "the tokenizer's own" if own else "the tokenizer has no chat template of its own"
            ),
            "train.loss": (self.objective.loss, f"the default for {rows}"),
        }  # fmt: skip

    @property
    def marked(self) -> bool:
        """Whether rows are single answers marked good or bad."""
        return self.objective.loss == MARKED_LOSS

    @property
    def refers(self) -> bool:
        """Whether the loss compares with the model before tuning."""
        return self.objective.refers

    @property
    def metrics(self) -> tuple[str, ...]:
        """How often rewards agree with people."""
        return ("reward_accuracy",)

    @property
    def labels(self) -> None:
        """Words have no labels."""
        return

    def require_known(self, corpus: Corpus) -> None:
        """Refuse pairs where marked answers are expected, and the other way round."""
        if (corpus.content.good is not None) != self.marked:
            words = ("answers marked good or bad", "pairs of a chosen and a rejected answer")
            raise DataError(
                f"{corpus.where[0]}: the rows are {words[self.marked]}, but this model was tuned on "
                f"{words[not self.marked]}; give rows of that form"
            )

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Return the tokens of rows that were laid out: both answers of a pair are one row."""
        from finesmith.data.chat_template import own_template

        self.require_known(corpus)
        content: Compared = corpus.content
        sequences = content.sequences
        assert sequences is not None, "rows are laid out first"
        told = Answers(token_ids(own_template(tokenizer.chat_template, tokenizer).stops, tokenizer))
        if content.good is None:
            rows = Supervised(sequences.tokens, sequences.offsets[::2], sequences.targets)
            return Encoded(rows, rows.lengths(), Sides(sequences), answers=told)
        import numpy as np

        other = compared_answers.mismatch(sequences, max_length)
        return Encoded(sequences, sequences.lengths(), Sides(sequences, np.array(content.good), other), answers=told)

    def begin(self, network: TokenNetwork, encoded: Encoded, *, cache: Path | None, key: str) -> Encoded:
        """Return rows with the log-probabilities of their answers before tuning, from the cache where they are."""
        from finesmith.tasks.preference_losses import load_reference, reference_key, save_reference

        if not self.refers:
            return encoded
        sides: Sides = encoded.detail
        both = [sides.sequences] + ([] if sides.mismatched is None else [sides.mismatched])
        arrays = {
            f"{name} {number}": getattr(rows, name)
            for number, rows in enumerate(both)
            for name in ("tokens", "offsets", "targets")
        }
        name = reference_key(key, arrays, {})
        sizes = [len(rows) for rows in both]
        found = None if cache is None else load_reference(cache, name, sum(sizes))
        if found is None:
            import numpy as np

            found = np.concatenate([answers(network, rows) for rows in both])
            if cache is not None:
                save_reference(cache, name, found.tolist())
        other = found[sizes[0] :] if len(both) > 1 else None
        return replace(encoded, detail=replace(sides, reference=found[: sizes[0]], mismatched_reference=other))

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the answers of rows, both of a pair, in the order of their lengths."""
        import numpy as np

        from finesmith.data.packing import ragged

        del epoch, seed
        sequences, sides = encoded.detail.sequences, 1 if self.marked else 2
        places = (np.asarray(positions, np.int64)[:, None] * sides + np.arange(sides)).ravel()
        places = places[np.argsort(sequences.lengths()[places], kind="stable")]
        made = ragged(sequences, places, ids=np.repeat(ids, sides), device=device)
        return replace(made, extra=Placed(places))

    def taught(self, encoded: Encoded, batch: Batch) -> list[str]:
        """Return whether each answer is the chosen or the rejected one, or marked good or bad."""
        good, places = encoded.detail.good, batch.extra.sequences.tolist()
        if good is None:
            return ["rejected" if place % 2 else "chosen" for place in places]
        return ["good" if good[place] else "bad" for place in places]

    def prepared(self, network: TokenNetwork, encoded: Encoded, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches of a step with KTO's estimate of how far the network has gone, over all of their rows."""
        sides: Sides = encoded.detail
        if not self.marked or sides.mismatched is None:
            return list(batches)
        import numpy as np

        places = np.concatenate([batch.extra.sequences for batch in batches])
        gone = self._divergence(network, sides, places)
        return [replace(batch, extra=replace(batch.extra, divergence=gone)) for batch in batches]

    def _divergence(self, network: TokenNetwork, sides: Sides, places: Ints) -> float:
        import torch

        from finesmith.tasks.preference_losses import kto_divergence

        assert sides.mismatched is not None
        assert sides.mismatched_reference is not None
        policy = answers(network, sides.mismatched.take(places))
        return float(kto_divergence(torch.from_numpy(policy), torch.from_numpy(sides.mismatched_reference[places])))

    def loss(self, network: TokenNetwork, encoded: Encoded, batch: Batch) -> tuple[torch.Tensor, int]:
        """Return the sum of the losses of a batch's rows, and how many rows."""
        import torch

        from finesmith.models.token_loss import token_log_probabilities
        from finesmith.tasks import preference_losses

        assert batch.targets is not None
        values = token_log_probabilities(network, batch)
        sequence = torch.arange(len(batch.lengths), device=values.device).repeat_interleave(batch.lengths)
        owner = sequence[batch.targets != UNSUPERVISED]
        policy = preference_losses.sums_by_row(values, owner, len(batch.lengths))
        counts = torch.bincount(owner, minlength=len(batch.lengths))
        losses, _ = self._judge(policy, counts, encoded.detail, batch.extra.sequences, batch.extra.divergence)
        return losses.sum(), len(losses)

    def units(self, batches: Sequence[Batch]) -> int:
        """Return how many rows the batches hold."""
        return sum(len(batch.lengths) for batch in batches) // (1 if self.marked else 2)

    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the log-probability of every answer, and rewards where the model before tuning is known."""
        import numpy as np
        import torch

        sides: Sides = encoded.detail
        policy = answers(network, sides.sequences, progress if self.marked else halved(progress))
        counts = targets_by_row(sides.sequences)
        if self.refers and sides.reference is None:
            return Outcome(None, policy, counts)
        gone = 0.0
        if sides.mismatched is not None:
            gone = self._divergence(network, sides, np.arange(len(sides.mismatched)))
        losses, margins = self._judge(
            torch.from_numpy(policy), torch.from_numpy(counts), sides, np.arange(len(policy)), gone
        )
        judged = Judged(margins.numpy(), losses.numpy(), sides.reference)
        return Outcome(judged, policy, counts, float(losses.mean()))

    def _judge(
        self, policy: torch.Tensor, counts: torch.Tensor, sides: Sides, places: Ints, divergence: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses and margins of the rows whose sequences stand at `places`; for pairs in the order of rows."""
        import numpy as np
        import torch

        def known(values: Any, dtype: torch.dtype) -> torch.Tensor:
            # Not every device has the numbers of the reference: they are narrowed before they go there.
            return torch.from_numpy(np.ascontiguousarray(values[places])).to(dtype).to(policy.device)

        reference = None if sides.reference is None else known(sides.reference, policy.dtype)
        if self.marked:
            assert reference is not None
            gone = policy.new_tensor(divergence)
            return self.objective.of_marked(policy, reference, known(sides.good, torch.bool), gone)
        order = np.argsort(places, kind="stable")
        # A row that is drawn more than once in a step is here more than once.
        first, second = (torch.from_numpy(order[places[order] % 2 == side]).to(policy.device) for side in (0, 1))

        def parted(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return values[first], values[second]

        before = None if reference is None else parted(reference)
        return self.objective.of_pairs(parted(policy), before, parted(counts))

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Prefer what the untuned model finds likelier a token, or the longer answer, or nothing."""
        return fit_rival(name, train, encoded, base)

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure how often margins are on people's side; of rewards their mean too, and of a network the loss."""
        from finesmith.evaluate.measurement import mean_of
        from finesmith.evaluate.preference import preferences

        del corpus, encoded
        judged: Judged = outcome.answers
        found = preferences(judged.margins, zeros(len(judged.margins)))
        if judged.losses is None:
            return {"reward_accuracy": found["reward_accuracy"]}
        loss = mean_of("preference_loss", judged.losses, "positive", higher_is_better=False)
        return {**found, "preference_loss": loss}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return which answer is preferred, or whether it is good, the margin and the log-probabilities."""
        import numpy as np

        judged: Judged = outcome.answers
        logs = outcome.log_probabilities
        margins = judged.margins
        sure = (1 / (1 + np.exp(-np.abs(margins)))).tolist()
        shown: dict[str, list[Any]] = {"text": compared_answers.readable(corpus.content)} if quote else {}
        if self.marked:
            good = np.array(corpus.content.good)
            side = signs(good) * margins
            shown["prediction"] = [_named(value, "good", "bad") for value in side.tolist()]
            shown |= {"confidence": sure, "reward": side.tolist()}
            return shown if logs is None else {**shown, "log_probability": logs.tolist()}
        shown["prediction"] = [_named(value, "chosen", "rejected") for value in margins.tolist()]
        shown |= {"confidence": sure, "margin": margins.tolist()}
        if logs is None:
            return shown
        return {
            **shown, "chosen_log_probability": logs[::2].tolist(), "rejected_log_probability": logs[1::2].tolist()
        }  # fmt: skip

    def label_column(self, corpus: Corpus, *, quote: bool) -> list[Any]:
        """Return what people said."""
        del quote
        good = corpus.content.good
        return ["chosen"] * len(corpus) if good is None else ["good" if one else "bad" for one in good]

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Tell how likely answers were before tuning and are now, a token on average."""
        judged: Judged = outcome.answers
        if judged.reference is None or outcome.log_probabilities is None or outcome.targets is None:
            return {}
        good = corpus.content.good
        return {
            "answers": compared_answers.moved(
                judged.reference, outcome.log_probabilities, outcome.targets, None if good is None else list(good)
            )
        }

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Count pairs, or good and bad answers, and prompts."""
        return compared_answers.summary(corpus)


def _named(margin: float, above: str, below: str) -> str:
    return above if margin > 0 else below if margin < 0 else "neither"


TASK: type[LanguageTask] = Preferences
