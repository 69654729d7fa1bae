"""What tasks of written answers share: learnt token by token, chosen by likelihood, judged by what is written.

A task adds how its files are read, by which metrics its answers are measured, and simpler methods of its own. Rows are
conversations whose last answer is asked for (`dialogues`; for encoder-decoders one prompt and one answer, `two_part`);
a row may have several texts that would be good answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finesmith.errors import DataError
from finesmith.tasks import dialogues, two_part, writing
from finesmith.tasks.answer_scores import SCORERS
from finesmith.tasks.corpus import Answers, Baseline, Choices, Corpus, Encoded, LaidOut, Outcome, Speech
from finesmith.tasks.language import LanguageTask, over_tokens, sums_by_row, targets_by_row
from finesmith.tasks.writing import Sheet, Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.evaluate.measurement import Measurement
    from finesmith.models.adapter_kinds import Purpose
    from finesmith.models.token_heads import Kind, TokenNetwork
    from finesmith.tasks.language import Head, Ints, Part, Progress
    from finesmith.types import Batch

LIKELIHOODS = ("bits_per_byte", "perplexity")
# Of the rows whose answers are written on test, the share that is written on validation, to choose a rival by.
VALIDATION_SHARE = 5
PROOF_ROWS = 4
# The longest of the usual training answers has so many tokens, rounded up to a multiple of the second number.
USUAL, ROUNDED = 0.99, 16


@dataclass(frozen=True)
class AnswerTask(LanguageTask):
    """A task of written answers. speech: how rows are laid out and answered; scores: the metrics of what is written,
    the first of which decides.
    """

    speech: Speech
    scores: tuple[str, ...]

    unit: ClassVar[str] = "conversations"
    kind: ClassVar[Kind] = "causal"
    purpose: ClassVar[Purpose] = "causal"
    baselines: ClassVar[tuple[str, ...]] = ("base", "few_shot", "nearest", "frequent")
    audits: ClassVar[frozenset[str]] = dialogues.AUDITS
    usual_length: ClassVar[int | None] = None
    speaks: ClassVar[bool] = True

    @classmethod
    def scores_for(cls, train: Corpus) -> tuple[str, ...]:
        """Return the metrics (of `answer_scores.SCORERS`, or of `measure_more`) that suit the training answers."""
        raise NotImplementedError(train)

    def rival(self, name: str, train: Corpus, encoded: Encoded) -> Baseline:
        """Fit a baseline that only this task has."""
        raise NotImplementedError(name)

    def measure_more(self, corpus: Corpus, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Measurement]:
        """Measure the answers `texts` to the rows `rows` by what only this task measures: by default nothing."""
        del corpus, rows, texts
        return {}

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """Lay conversations end to end."""
        return dialogues.join(parts)

    @classmethod
    def take(cls, corpus: Corpus, positions: Sequence[int] | Ints) -> Corpus:
        """Return the conversations at `positions`."""
        return dialogues.take(corpus, positions)

    @classmethod
    def lay_out(
        cls, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, choices: Choices, max_length: int
    ) -> LaidOut | None:
        """Make tokens of conversations; leave out, or stop at, those that cannot be tokens of a bounded length."""
        if choices.speech.template == two_part.NONE:
            return two_part.lay_out(corpus, tokenizer, choices, max_length)
        return dialogues.lay_out(corpus, tokenizer, choices, max_length)

    @classmethod
    def learn(cls, train: Corpus, choices: Choices) -> AnswerTask:
        """Learn what the training answers are measured by, and how long they are."""
        import numpy as np

        speech = choices.speech
        if speech.max_new_tokens is None:
            lengths = dialogues.answer_lengths(train.content.scored)
            usual = int(np.quantile(lengths, USUAL, method="higher"))
            speech = replace(speech, max_new_tokens=ROUNDED * ceil(usual / ROUNDED))
        return cls(speech, cls.scores_for(train))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AnswerTask:
        """Rebuild the task from `state`."""
        speech, scores = dict(state["speech"]), tuple(state["scores"])
        kinds = {
            field.name: (int, float, str, type(None)) for field in fields(Speech) if field.name != "stop"
        } | {"stop": (list, tuple)}  # fmt: skip
        if speech.keys() != kinds.keys() or not all(isinstance(speech[name], kind) for name, kind in kinds.items()):
            raise ValueError(speech)
        if not scores or not all(isinstance(name, str) for name in (*scores, *speech["stop"])):
            raise ValueError(scores)
        return cls(Speech(**{**speech, "stop": tuple(speech["stop"])}), scores)

    @property
    def state(self) -> dict[str, Any]:
        """The settings of laying out and answering, and the metrics."""
        speech = {**asdict(self.speech), "stop": list(self.speech.stop)}
        return {"name": self.name, "speech": speech, "scores": list(self.scores)}

    @property
    def head(self) -> Head:
        """Next words, of a model that reads prompt and answer as one text or, without a chat template, as two."""
        return "seq2seq" if self.speech.template == two_part.NONE else self.kind

    @property
    def choices(self) -> Choices:
        """What the rows of the run were laid out by."""
        return Choices(speech=self.speech)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of what is written, then those of likelihood."""
        return (*self.scores, *LIKELIHOODS)

    @property
    def why_metric(self) -> str:
        """What the training answers are like."""
        return {
            "final_number_match": "the training answers end in a marked number",
            "normalised_match": "the training answers have few words",
        }.get(self.scores[0], f"the default of {self.name}")

    @property
    def selecting(self) -> str:
        """Bits per byte of the given answers: writing answers at every evaluation would cost more than training."""
        return "bits_per_byte"

    @property
    def settled(self) -> Mapping[str, tuple[Any, str]]:
        """The chat template, and how long an answer may be."""
        why = {"own": "the tokenizer's own", two_part.NONE: "an encoder-decoder reads a prompt as it stands"}
        return {
            "text.template": (
                self.speech.template, why.get(self.speech.template, "the tokenizer has no chat template of its own")
            ),
            "generation.max_new_tokens": (
                self.speech.max_new_tokens, f"{USUAL:.0%} of the training answers are no longer"
            ),
        }  # fmt: skip

    @property
    def labels(self) -> None:
        """Texts have no labels."""
        return

    def require_known(self, corpus: Corpus) -> None:
        """Accept any text."""
        del corpus

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Return the tokens of rows that were laid out; of rows without answers the prompts."""
        import numpy as np

        from finesmith.data.chat_template import own_template
        from finesmith.data.supervised import UNSUPERVISED, Supervised

        content, apart = corpus.content, self.head == "seq2seq"
        template = None if apart else own_template(tokenizer.chat_template, tokenizer)
        names = corpus.groups if corpus.groups is not None else range(len(corpus))
        # Of rows that ask the same the first stands for all.
        first = {name: row for row, name in reversed([*enumerate(names)])}
        everyone = np.sort(np.array(list(first.values()), np.int64))
        if content.references is not None:
            sheet = Sheet(content.scored, None, everyone, template, tokenizer, max_length)
            if template is None:
                asked = two_part.first_prompts(content, tokenizer, self.speech, max_length)
            else:
                asked = dialogues.first_prompts(content, template, tokenizer, max_length)
            stops = template.stops if template is not None else [str(tokenizer.eos_token)]
            told = Answers(writing.token_ids(stops, tokenizer), whole=self.speech.loss == "all", prompts=asked)
            return Encoded(content.trained, content.trained.lengths(), sheet, answers=told)
        prompts = content.prompts
        offsets = np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]).astype(np.int64)
        tokens = np.array([token for prompt in prompts for token in prompt], np.int32)
        rows = Supervised(tokens, offsets, np.full(len(tokens), UNSUPERVISED, np.int32))
        return Encoded(rows, rows.lengths(), Sheet(None, prompts, everyone, template, tokenizer, max_length))

    def batch(self, encoded: Encoded, positions: Ints, ids: Ints, epoch: int, seed: int, device: Any) -> Batch:
        """Return the rows as they are, in every epoch."""
        from finesmith.data.packing import ragged

        del epoch, seed
        return ragged(encoded.rows, positions, ids=ids, device=device)

    def narrow(self, encoded: Encoded, split: Part) -> Encoded:
        """Mark some rows of test and fewer of validation as those to be answered in writing; of train none."""
        import numpy as np

        sheet: Sheet = encoded.detail
        most = {
            "train": 0,
            "validation": min(self.speech.rows, max(20, self.speech.rows // VALIDATION_SHARE)),
            "test": self.speech.rows,
            "proof": PROOF_ROWS,
            "scored": len(sheet.aloud),
        }
        drawn = np.random.Generator(np.random.PCG64([self.speech.seed, 0xA10D])).permutation(len(sheet.aloud))
        return replace(encoded, detail=replace(sheet, aloud=np.sort(sheet.aloud[drawn[: most[split]]])))

    def predict(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the log probability of each row's given answers."""
        from finesmith.models.token_loss import token_log_probabilities

        rows = encoded.detail.scored
        values = over_tokens(network, rows, lambda batch: token_log_probabilities(network, batch), 1, progress)
        return Outcome(None, sums_by_row(values[:, 0], rows.offsets), targets_by_row(rows))

    def answer(self, network: TokenNetwork, encoded: Encoded, progress: Progress | None = None) -> Outcome:
        """Return the log probabilities, and the last answers that the network writes where they are asked for."""
        sheet: Sheet = encoded.detail
        outcome = Outcome(None) if sheet.scored is None else self.predict(network, encoded)
        if sheet.prompts is not None:
            prompts = [sheet.prompts[row] for row in sheet.aloud.tolist()]
        else:
            assert sheet.scored is not None
            prompt_of = two_part.prompt_of if sheet.template is None else dialogues.prompt_of
            prompts = [prompt_of(sheet.scored, row) for row in sheet.aloud.tolist()]
        return replace(outcome, answers=writing.write(network, sheet, prompts, self.speech, progress))

    def differs(self, before: Outcome, after: Outcome) -> str | None:
        """Say which answer a saved network writes otherwise."""
        pairs = zip(before.answers.texts, after.answers.texts, strict=True)
        other = [row for row, (one, two) in enumerate(pairs) if one != two]
        return f"it writes {len(other)} answers otherwise, first that of test row {other[0] + 1}" if other else None

    def complete(self, network: TokenNetwork, folder: Path) -> None:
        """Write how other programs generate as this task does."""
        writing.save_settings(self.speech, network, folder)

    def fit_baseline(self, name: str, train: Corpus, encoded: Encoded, base: Callable[[], TokenNetwork]) -> Baseline:
        """Take the untuned model, with or without examples in its prompt, or copy answers from the training rows."""
        from finesmith.tasks import answer_rivals

        if name == "base":
            return Baseline(name, "untuned base model", lambda _, rows: self.answer(base(), rows))
        if name == "few_shot":
            if self.head == "seq2seq":
                raise DataError("an encoder-decoder takes one prompt, and no examples before it")
            return answer_rivals.few_shot(self, train, encoded, base)
        if name == "nearest":
            return answer_rivals.nearest(train)
        if name == "frequent":
            return answer_rivals.frequent(train)
        return self.rival(name, train, encoded)

    def measure(self, corpus: Corpus, encoded: Encoded, outcome: Outcome) -> dict[str, Measurement]:
        """Measure what was written, on the rows where something was; and how likely the given answers are, on all."""
        del encoded
        return self._measured(corpus, outcome)

    def _measured(self, corpus: Corpus, outcome: Outcome) -> dict[str, Measurement]:
        import numpy as np

        from finesmith.evaluate.language_scores import bits_per_byte, perplexity

        found: dict[str, Measurement] = {}
        content = corpus.content
        if outcome.answers is not None and content.references is not None:
            rows = [row for row, text in enumerate(outcome.answers.texts) if text is not None]
            if rows:
                found |= self._scores(corpus, rows, [outcome.answers.texts[row] for row in rows])
        if outcome.log_probabilities is not None and outcome.targets is not None:
            sizes = dialogues.answer_bytes(content.conversations, last=self.speech.loss == "last")
            logs = np.minimum(outcome.log_probabilities, 0.0)
            found["bits_per_byte"] = bits_per_byte(logs, sizes)
            found["perplexity"] = perplexity(logs, np.maximum(outcome.targets, 1))
        return found

    def answered(self, outcome: Outcome) -> Ints | None:
        """Return the rows to which something was written."""
        import numpy as np

        if outcome.answers is None:
            return None
        return np.array([row for row, text in enumerate(outcome.answers.texts) if text is not None], np.int64)

    def _scores(self, corpus: Corpus, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Measurement]:
        references = [corpus.content.references[row] for row in rows]
        own = self.measure_more(corpus, rows, texts)
        found = {name: SCORERS[name](texts, references) for name in self.scores if name in SCORERS}
        return {name: (found | own)[name] for name in self.scores}

    def columns(self, corpus: Corpus, outcome: Outcome, *, quote: bool) -> dict[str, list[Any]]:
        """Return each row's answer and what ended it, what it was held against, and its metrics."""
        shown: dict[str, list[Any]] = {}
        written: Written | None = outcome.answers
        if written is not None:
            if quote:
                shown["prediction"] = list(written.texts)
            if written.finished is not None and written.tokens is not None:
                shown |= {"finished": list(written.finished), "tokens": list(written.tokens)}
        if quote and corpus.content.references is not None:
            references = corpus.content.references
            several = any(len(each) > 1 for each in references)
            shown["reference"] = [list(each) if several else each[0] for each in references]
        for name, measured in self._measured(corpus, outcome).items():
            values = measured.per_example.tolist()
            if name not in LIKELIHOODS and written is not None:
                each = iter(values)
                values = [None if text is None else next(each) for text in written.texts]
            shown[name] = values
        return shown

    def label_column(self, corpus: Corpus, *, quote: bool) -> None:
        """Return nothing: an answer is not right or wrong as a label is."""
        del corpus, quote

    def details(self, corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
        """Count the answers written, those that ended by themselves, and their tokens."""
        written: Written | None = outcome.answers
        if written is None or written.finished is None or written.tokens is None:
            return {}
        ends = [end for end in written.finished if end is not None]
        sizes = [size for size in written.tokens if size is not None]
        return {
            "written": {
                "rows": len(sizes),
                "of": len(corpus if corpus.groups is None else set(corpus.groups)),
                "stopped": sum(end.startswith("stop") for end in ends),
                "cut": sum(end in ("length", "context") for end in ends),
                "unanswered": len(ends) - len(sizes),
                "mean_tokens": sum(sizes) / max(1, len(sizes)),
                "max_new_tokens": self.speech.max_new_tokens,
            }
        }

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        """Count conversations, answers to be imitated, and their words."""
        content: dialogues.Dialogues = corpus.content
        turns = [turn for one in content.conversations for turn in one.turns]
        answers = [turn for turn in turns if turn.role == "assistant" and turn.trained]
        words = sum(len(turn.content.split()) for turn in answers)
        return {
            "summary": {
                "conversations": len(corpus), "turns": len(turns), "answers": len(answers), "words_of_answers": words
            }
        }  # fmt: skip
