"""Beam search, each prompt's as it would be by itself.

The rules are those of transformers: a sequence that ends among the best `beams` candidates is kept with its score
divided by its length to the power of length_penalty, and the search ends when no running beam could beat the worst of
`beams` kept ones at the present length. Where rounding could decide, the prompt's scores are computed again from plain
forward passes over each of its sequences by itself, and the step is taken again with those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from finesmith.errors import ModelError
from finesmith.models.runner import Runner, finite_top
from finesmith.models.sampling import penalised, tolerance

if TYPE_CHECKING:
    from torch import Tensor

    from finesmith.models.stops import Stops

# The error that each further step adds, as a share of what a step's tolerance allows for.
LATER_ERROR = 1 / 8

Ending = Literal["stop_token", "stop_string"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence of new tokens, the stop token included.

    score: the sum of its log-probabilities as the penalty leaves them; logs: as the model gave them; error: how far
    rounding in batches may have moved the score, 0 where the sequence went through the model by itself; finished: what
    ended it, None while it runs and where its length ended it.
    """

    tokens: tuple[int, ...]
    score: float
    logs: tuple[float, ...]
    error: float = 0.0
    finished: Ending | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What a search goes by; `forced`: how many tokens every answer begins with that nobody chose."""

    beams: int
    length_penalty: float
    penalty: float
    stops: Stops
    forced: int

    @property
    def candidates(self) -> int:
        """How many candidates a step looks at: enough that `beams` go on even if every beam could stop."""
        return max(2, 1 + len(self.stops.tokens)) * self.beams

    def value(self, hypothesis: Hypothesis) -> float:
        """Return the score by which finished sequences are compared."""
        return hypothesis.score / self._weight(hypothesis)

    def doubt(self, hypothesis: Hypothesis) -> float:
        """Return how far rounding may have moved `value`."""
        return hypothesis.error / self._weight(hypothesis)

    def _weight(self, hypothesis: Hypothesis) -> float:
        return math.pow(self.forced + len(hypothesis.tokens), self.length_penalty)


@dataclass(frozen=True, slots=True)
class Search:
    """One prompt's search after some steps.

    running: the beams that go on, best first, and for each of them its place in the step before (parents); kept: the
    finished sequences, best first.
    """

    row: int
    name: str
    prompt: Sequence[int]
    limit: int
    running: tuple[Hypothesis, ...] = (Hypothesis((), 0.0, ()),)
    parents: tuple[int, ...] = (0,)
    kept: tuple[Hypothesis, ...] = ()
    over: bool = False


def search(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    names: Sequence[str],
    beams: int,
    length_penalty: float,
    penalty: float,
    stops: Stops,
    done: Callable[[int, Hypothesis], None],
) -> None:
    """Search for the best continuation of each prompt, at most limits[i] tokens; calls done(i, the best).

    Raises ModelError when logits are not numbers.
    """
    import torch

    rules = Rules(beams, length_penalty, penalty, stops, len(runner.start[1:]))
    rows, logits = runner.begin(prompts)
    searches = [Search(i, *facts) for i, facts in enumerate(zip(names, prompts, limits, strict=True))]
    while True:
        first, source, going = 0, [], []
        for one, grown in zip(searches, _grown(runner, searches, logits, rules), strict=True):
            after, sure = _advanced(one, grown, rules)
            if not sure:
                after, _ = _advanced(*_alone(runner, one, rules), rules)
            if after.over:
                done(after.row, after.kept[0])
            else:
                going.append(after)
                source += [first + parent for parent in after.parents]
            first += len(one.running)
        if not going:
            return
        searches = going
        rows.keep(torch.tensor(source, device=logits.device))
        last = [beam.tokens[-1] for one in searches for beam in one.running]
        logits = rows.step(torch.tensor(last, device=logits.device))


# A candidate: the place of its beam, and that beam with one token more.
Candidate = tuple[int, Hypothesis]


def _grown(runner: Runner, searches: Sequence[Search], logits_RV: Tensor, rules: Rules) -> list[list[Candidate]]:
    """Return each search's candidates, best first, from the logits of all beams of a batch."""
    places = [(one, beam) for one in searches for beam in one.running]
    good = finite_top(logits_RV)
    if not bool(good.all()):
        one, beam = places[good.tolist().index(False)]
        raise not_numbers(one.name, len(beam.tokens))
    slack = tolerance(logits_RV)[:, 0].tolist()
    raw = logits_RV.log_softmax(-1)
    texts = [[*runner.counted(one.prompt), *beam.tokens] for one, beam in places]
    scores, tokens, logs = _best(raw, texts, rules)
    grown, first = [], 0
    for one in searches:
        rows = range(first, first + len(one.running))
        made = [
            _longer(one.running[row - first], row - first, *one_candidate, slack[row])
            for row in rows
            for one_candidate in zip(tokens[row], scores[row], logs[row], strict=True)
        ]
        grown.append(_first_few(made, rules))
        first += len(one.running)
    return grown


def _best(
    raw_RV: Tensor, texts: Sequence[Sequence[int]], rules: Rules
) -> tuple[list[list[float]], list[list[int]], list[list[float]]]:
    """Return each row's best next tokens: their penalised log-probabilities, ids, and the model's own ones."""
    scores = _penalised(raw_RV, texts, rules)
    top = scores.topk(min(rules.candidates + 1, scores.shape[-1]), -1)
    return top.values.tolist(), top.indices.tolist(), raw_RV.gather(-1, top.indices).tolist()


def _penalised(raw_RV: Tensor, texts: Sequence[Sequence[int]], rules: Rules) -> Tensor:
    import torch

    if rules.penalty == 1.0:
        return raw_RV
    seen = torch.zeros_like(raw_RV, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, torch.tensor(text, device=raw_RV.device)] = True
    return penalised(raw_RV, seen, rules.penalty)


def _longer(beam: Hypothesis, place: int, token: int, score: float, log: float, slack: float) -> Candidate:
    # A single step may err by all its tolerance; the sum of many errs like a random walk of smaller steps.
    error = math.hypot(beam.error, slack * LATER_ERROR) if beam.error else slack / 2
    return place, Hypothesis((*beam.tokens, token), beam.score + score, (*beam.logs, log), error)


def _first_few(made: list[Candidate], rules: Rules) -> list[Candidate]:
    """Return the best candidates and one more, which shows how clear the choice was; equal ones by their tokens."""
    possible = [pair for pair in made if pair[1].score > -math.inf]
    return sorted(possible, key=lambda pair: (-pair[1].score, pair[1].tokens))[: rules.candidates + 1]


def _advanced(one: Search, grown: list[Candidate], rules: Rules) -> tuple[Search, bool]:
    """Take one step; return the search after it, and whether rounding could not have led elsewhere."""
    full = len(grown[0][1].tokens) == one.limit
    marked = [(place, _ending(grown_one, rules)) for place, grown_one in grown]
    ended = [full or hypothesis.finished is not None for _, hypothesis in marked]
    in_reach = marked[: rules.candidates]
    alive = [pair for pair, end in zip(in_reach, ended, strict=False) if not end]
    running = alive[: rules.beams]
    new = [pair[1] for pair, end in zip(in_reach[: rules.beams], ended, strict=False) if end]
    merged = sorted([*one.kept, *new], key=lambda kept: (-rules.value(kept), kept.tokens))
    kept = merged[: rules.beams]
    sure = _ranks_sure([pair[1] for pair in marked], ended, rules) and _values_sure(merged, rules.beams, rules)
    over = not running
    if running and len(kept) == rules.beams:
        best, worst = running[0][1], kept[-1]
        over = rules.value(best) <= rules.value(worst)
        sure = sure and _apart(rules.value(best), rules.value(worst), rules.doubt(best) + max(map(rules.doubt, kept)))
    if over:
        sure = sure and _values_sure(kept, 1, rules)
    after = replace(
        one,
        running=tuple(beam for _, beam in running),
        parents=tuple(place for place, _ in running),
        kept=tuple(kept),
        over=over,
    )
    return after, sure


def _ending(grown: Hypothesis, rules: Rules) -> Hypothesis:
    if grown.tokens[-1] in rules.stops.tokens:
        return replace(grown, finished="stop_token")
    return replace(grown, finished="stop_string") if rules.stops.hit(grown.tokens) else grown


def _apart(a: float, b: float, doubt: float) -> bool:
    """Whether two values keep their order whatever rounding did; exact ones always do."""
    return doubt == 0.0 or abs(a - b) > doubt


def _ranks_sure(grown: Sequence[Hypothesis], ended: Sequence[bool], rules: Rules) -> bool:
    """Whether it is clear which candidates go on and which of those that ended are among the best `beams`."""
    doubt = 2 * max(hypothesis.error for hypothesis in grown)
    scores, beams = [hypothesis.score for hypothesis in grown], rules.beams
    alive = [score for score, end in zip(scores, ended, strict=True) if not end]
    if len(alive) > beams and not _apart(alive[beams - 1], alive[beams], doubt):
        return False
    if len(scores) <= beams:
        return True
    rivals = [scores[beams] if rank < beams else scores[beams - 1] for rank in range(len(scores))]
    return all(_apart(a, b, doubt) for a, b, end in zip(scores, rivals, ended, strict=True) if end)


def _values_sure(merged: Sequence[Hypothesis], count: int, rules: Rules) -> bool:
    """Whether it is clear which `count` of the finished sequences, best first, are the best."""
    if len(merged) <= count:
        return True
    doubt = 2 * max(map(rules.doubt, merged))
    return _apart(rules.value(merged[count - 1]), rules.value(merged[count]), doubt)


def _alone(runner: Runner, one: Search, rules: Rules) -> tuple[Search, list[Candidate]]:
    """Compute every score of a search anew, apart from other prompts; return the search and its next candidates.

    The running beams go through the model together, in the order of their tokens, so that what comes out depends on
    which they are and on nothing else; a kept sequence goes by itself, once.
    """
    order = sorted(range(len(one.running)), key=lambda place: one.running[place].tokens)
    logits = _replayed(runner, one, [one.running[place].tokens for place in order])
    slack = tolerance(logits[:, -1])[:, 0].tolist()
    running, made = list(one.running), []
    for row, place in enumerate(order):
        tokens = running[place].tokens
        running[place] = _scored(runner, one, running[place], logits[row], rules)
        text = [*runner.counted(one.prompt), *tokens]
        scores, ids, logs = _best(logits[row, -1:].log_softmax(-1), [text], rules)
        made += [
            _longer(running[place], place, *best, slack[row]) for best in zip(ids[0], scores[0], logs[0], strict=True)
        ]
    kept = [
        _scored(runner, one, ended, _replayed(runner, one, [ended.tokens[:-1]])[0], rules) if ended.error else ended
        for ended in one.kept
    ]
    return replace(one, running=tuple(running), kept=tuple(kept)), _first_few(made, rules)


def _replayed(runner: Runner, one: Search, new: Sequence[tuple[int, ...]]) -> Tensor:
    """Return the logits at each place of continuations of one length and after them, [N, n + 1, V]."""
    logits = runner.alone(one.prompt, new, len(new[0]) + 1)
    if not bool(finite_top(logits).all()):
        raise not_numbers(one.name, len(new[0]))
    return logits


def _scored(runner: Runner, one: Search, hypothesis: Hypothesis, logits: Tensor, rules: Rules) -> Hypothesis:
    """Return a hypothesis with its score from the logits [at least n, V] at each of its places."""
    import torch

    count = len(hypothesis.tokens)
    if not count:
        return hypothesis
    raw = logits[:count].log_softmax(-1)
    texts = [[*runner.counted(one.prompt), *hypothesis.tokens[:place]] for place in range(count)]
    chosen = torch.tensor(hypothesis.tokens, device=raw.device)[:, None]
    scores = _penalised(raw, texts, rules).gather(1, chosen)[:, 0].tolist()
    return replace(hypothesis, score=sum(scores), logs=tuple(raw.gather(1, chosen)[:, 0].tolist()), error=0.0)


def not_numbers(name: str, count: int) -> ModelError:
    """Return the error for logits that are not numbers, after `count` new tokens."""
    return ModelError(
        f"the model's logits for {name} at new token {count + 1} are not finite numbers; its weights may be damaged or "
        "its training may have diverged, or its number type is too narrow: load it in float32 to find out"
    )
