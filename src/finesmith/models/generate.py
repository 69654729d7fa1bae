"""Generate text: greedily, by sampling or by beam search, each prompt's answer being what it would be by itself.

Prompts of similar length share a batch with a key-value cache; those that are done leave it. Batches of different
shapes round differently, so whatever in a batch is decided by less than rounding could move is decided again from a
plain forward pass over that one sequence. So neither the batch size nor the order of prompts changes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finesmith.errors import DataError, UserError
from finesmith.models.beams import Hypothesis, not_numbers, search
from finesmith.models.runner import Runner, finite_top, own_stop_tokens
from finesmith.models.sampling import Warp, drawn, greatest, keys, penalised
from finesmith.models.stops import Stops

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from finesmith.models.forward import Network
    from finesmith.models.runner import Rows

Strategy = Literal["greedy", "sample", "beam"]
Finished = Literal["stop_token", "stop_string", "length", "context"]
OnToken = Callable[[int, int], None]
OnDone = Callable[[int], None]

DEFAULT_BEAMS = 4
DEFAULT_BATCH_TOKENS = 16_384
# Prompts share a batch while the shortest is padded by at most this share of what the longest may grow to.
MOST_PADDING = 0.5


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model added to a prompt.

    tokens: the new tokens, without the stop token. text: they decoded without special tokens, up to the stop string;
    None where no tokenizer is known. finished: what ended it; "context" means that the model has no more positions.
    log_probability: natural logarithm, summed over the new tokens and the stop token, under the model itself (before
    temperature, filters and penalties); lowest: the least of them, 0 where there are none.
    """

    tokens: tuple[int, ...]
    text: str | None
    finished: Finished
    log_probability: float
    lowest: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """The settings of one call, checked."""

    strategy: Strategy
    max_new_tokens: int
    warp: Warp
    penalty: float
    beams: int
    length_penalty: float
    seed: int


@dataclass(slots=True)
class Job:
    """A prompt on its way: `index` is its place in the caller's list, `id` what its random numbers hang on."""

    index: int
    id: int
    name: str
    prompt: Sequence[int]
    limit: int
    new: list[int]
    logs: list[float]


def generate(
    model: Network | nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    strategy: Strategy = "greedy",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    beams: int | None = None,
    length_penalty: float | None = None,
    stop_tokens: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_token: OnToken | None = None,
    on_done: OnDone | None = None,
    where: Sequence[str] | None = None,
) -> list[Generated]:
    """Continue every prompt; the results are in the order of the prompts.

    model: a causal or encoder-decoder model of transformers, plain, wrapped by peft or in a Network. For an
    encoder-decoder a prompt is what the encoder reads. temperature, top_k and top_p belong to "sample", beams (default
    4) and length_penalty (default 1: a beam's score is its log-probability divided by its length to this power) to
    "beam". repetition_penalty counts the tokens of a causal model's prompt too. stop_tokens: None for the model's own.
    ids: what each prompt's random numbers hang on besides the seed and the position, default its place in the list.
    batch_tokens: how many tokens, prompts and room for new ones, beams and padding included, are held at once; a
    single prompt may hold more. on_token(index, token) is called for every new token but stop tokens, in order for
    each prompt; with beams when a prompt is done. on_done(index) is called when a prompt is. where: the prompts' names
    in messages.

    Tokens do not depend on batch_tokens, nor on the order of prompts with their ids, for weights in float32 or
    float64 and products in their full precision; log-probabilities differ by rounding. In bfloat16 and float16 near
    ties may fall otherwise in another batch.

    Raises UserError for settings that are wrong or would change nothing, DataError for a prompt that is empty, holds
    an unknown token or leaves no room in the model's context, ModelError for a model that cannot generate or whose
    logits are not numbers.
    """
    if tokenizer is None and stop_strings:
        tokenizer = _own_tokenizer(model)
    decoding = _decoding(
        strategy, max_new_tokens, temperature, top_k, top_p, repetition_penalty, beams, length_penalty, seed
    )
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}, expected at least 1")
    runner = Runner(model)
    stops = Stops(own_stop_tokens(model) if stop_tokens is None else stop_tokens, stop_strings, tokenizer)
    _check_stop_tokens(stops, runner.vocabulary)
    jobs = _jobs(runner, prompts, decoding, ids, where)
    results: list[Generated | None] = [None] * len(jobs)

    def keep(index: int, result: Generated) -> None:
        results[index] = result
        if on_done is not None:
            on_done(index)

    with runner.ready():
        for batch in batches(jobs, batch_tokens, runner.pads, decoding.beams):
            if decoding.strategy == "beam":
                _search(runner, batch, decoding, stops, on_token, keep)
            else:
                _walk(runner, batch, decoding, stops, on_token, keep)
    return [result for result in results if result is not None]


def batches(jobs: Sequence[Job], batch_tokens: int, pads: bool, beams: int) -> list[list[Job]]:
    """Cut the jobs, sorted by length, into batches of at most `batch_tokens` tokens with little or no padding."""
    cut: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: (len(job.prompt), job.index)):
        length, room = len(job.prompt), max(job.limit, cut[-1][0].limit if cut else 0)
        shortest = len(cut[-1][0].prompt) if cut else 0
        padding = length - shortest
        alike = padding == 0 or (pads and padding <= MOST_PADDING * (length + room))
        if cut and alike and (len(cut[-1]) + 1) * beams * (length + room) <= batch_tokens:
            cut[-1].append(job)
        else:
            cut.append([job])
    return cut


def _walk(
    runner: Runner,
    jobs: list[Job],
    decoding: Decoding,
    stops: Stops,
    on_token: OnToken | None,
    keep: Callable[[int, Generated], None],
) -> None:
    """Grow every job of a batch token by token, greedily or by sampling."""
    import torch

    rows, logits = runner.begin([job.prompt for job in jobs])
    ids = torch.tensor([job.id for job in jobs], device=logits.device)
    seen = _seen(rows, logits) if decoding.penalty != 1.0 else None
    while True:
        chosen = _choose(runner, jobs, logits, ids, seen, decoding)
        logs = logits.gather(1, chosen[:, None])[:, 0].double() - logits.double().logsumexp(-1)
        going = []
        for row, (job, token, log) in enumerate(zip(jobs, chosen.tolist(), logs.tolist(), strict=True)):
            finished = _grow(job, token, log, stops, decoding)
            if on_token is not None and finished != "stop_token":
                on_token(job.index, token)
            if finished is None:
                going.append(row)
            else:
                text = stops.text(job.new)
                keep(job.index, Generated(tuple(job.new), text, finished, sum(job.logs), min(job.logs)))
        if not going:
            return
        if len(going) < len(jobs):
            left = torch.tensor(going, device=logits.device)
            jobs = [jobs[row] for row in going]
            rows.keep(left)
            chosen, ids = chosen[left], ids[left]
            seen = None if seen is None else seen[left]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        logits = rows.step(chosen)


def _grow(job: Job, token: int, log: float, stops: Stops, decoding: Decoding) -> Finished | None:
    """Give a job its next token; return what ended it, or None."""
    job.logs.append(log)
    if token in stops.tokens:
        return "stop_token"
    job.new.append(token)
    if stops.hit(job.new):
        return "stop_string"
    if len(job.new) < job.limit:
        return None
    return "length" if job.limit == decoding.max_new_tokens else "context"


def _choose(
    runner: Runner, jobs: Sequence[Job], logits: Tensor, ids: Tensor, seen: Tensor | None, decoding: Decoding
) -> Tensor:
    """Return the next token of each row, int64 [B]; what rounding could have decided is decided alone."""
    good = finite_top(logits)
    if not bool(good.all()):
        job = jobs[good.tolist().index(False)]
        raise not_numbers(job.name, len(job.new))
    chosen, sure = _decide(logits, ids, [len(job.new) for job in jobs], seen, decoding)
    for row in (~sure).nonzero()[:, 0].tolist():
        alone = runner.alone(jobs[row].prompt, [jobs[row].new], 1)[0]
        own = None if seen is None else seen[row : row + 1]
        chosen[row], _ = _decide(alone, ids[row : row + 1], [len(jobs[row].new)], own, decoding)
    return chosen


def _decide(
    logits: Tensor, ids: Tensor, positions: list[int], seen: Tensor | None, decoding: Decoding
) -> tuple[Tensor, Tensor]:
    import torch

    scores = logits if seen is None else penalised(logits, seen, decoding.penalty)
    if decoding.strategy == "greedy":
        return greatest(scores)
    return drawn(scores, keys(decoding.seed, ids, torch.tensor(positions, device=ids.device)), decoding.warp)


def _seen(rows: Rows, logits: Tensor) -> Tensor:
    """Return which tokens each row holds already, bool [B, V]; padding counts for nothing."""
    import torch

    seen = torch.zeros_like(logits, dtype=torch.bool)
    tokens = rows.tokens
    if rows.mask is None:
        return seen.scatter_(1, tokens, True)
    # Padding is on the left, so a row's last token stands in for it.
    return seen.scatter_(1, tokens.where(rows.mask.bool(), tokens[:, -1:]), True)


def _search(
    runner: Runner,
    jobs: list[Job],
    decoding: Decoding,
    stops: Stops,
    on_token: OnToken | None,
    keep: Callable[[int, Generated], None],
) -> None:
    """Search with beams for every job of a batch."""

    def done(row: int, best: Hypothesis) -> None:
        job = jobs[row]
        finished: Finished = best.finished or ("length" if job.limit == decoding.max_new_tokens else "context")
        tokens = best.tokens[:-1] if finished == "stop_token" else best.tokens
        if on_token is not None:
            for token in tokens:
                on_token(job.index, token)
        keep(job.index, Generated(tokens, stops.text(tokens), finished, sum(best.logs), min(best.logs)))

    search(
        runner,
        [job.prompt for job in jobs],
        limits=[job.limit for job in jobs],
        names=[job.name for job in jobs],
        beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        penalty=decoding.penalty,
        stops=stops,
        done=done,
    )


def _jobs(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    ids: Sequence[int] | None,
    where: Sequence[str] | None,
) -> list[Job]:
    for name, given in (("ids", ids), ("where", where)):
        if given is not None and len(given) != len(prompts):
            raise UserError(f"{name} has {len(given):,} entries for {len(prompts):,} prompts; expected one each")
    jobs = []
    for i, prompt in enumerate(prompts):
        name = where[i] if where is not None else f"prompt {i}"
        limit = _room(runner, prompt, decoding.max_new_tokens, name)
        jobs.append(Job(i, ids[i] if ids is not None else i, name, prompt, limit, [], []))
    return jobs


def _room(runner: Runner, prompt: Sequence[int], wanted: int, name: str) -> int:
    """Return how many tokens a prompt may grow by, after checking it."""
    if not len(prompt):
        raise DataError(f"{name} is empty, expected at least one token; give it the tokenizer's BOS token or drop it")
    wrong = next((token for token in prompt if not 0 <= token < runner.vocabulary), None)
    if wrong is not None:
        raise DataError(
            f"{name} holds the token {wrong}, but the model knows 0 to {runner.vocabulary - 1}; the tokenizer is not "
            "this model's, or words were added to it and not to the model"
        )
    if runner.context is None:
        return wanted
    if len(prompt) > runner.context:
        raise DataError(
            f"{name} has {len(prompt):,} tokens, but the model's context holds {runner.context:,}; shorten it"
        )
    used = len(runner.start) if runner.two_part else len(prompt)
    if used >= runner.context:
        raise DataError(
            f"{name} has {len(prompt):,} tokens and fills the model's context of {runner.context:,}, so there is no "
            "room for a new one; shorten it"
        )
    return min(wanted, runner.context - used)


def _check_stop_tokens(stops: Stops, vocabulary: int) -> None:
    for token in sorted(stops.tokens):
        if not 0 <= token < vocabulary:
            raise UserError(
                f"the stop token {token} is unknown: the model knows the tokens 0 to {vocabulary - 1}; "
                "take it from the model's own tokenizer"
            )


def _own_tokenizer(model: Any) -> PreTrainedTokenizerBase | None:
    from finesmith.models.forward import Network

    return model.tokenizer if isinstance(model, Network) else None


def _decoding(
    strategy: Strategy,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float,
    beams: int | None,
    length_penalty: float | None,
    seed: int,
) -> Decoding:
    """Check the settings; refuse those that the strategy would not read."""
    if strategy not in ("greedy", "sample", "beam"):
        raise UserError(f"strategy is {str(strategy)[:80]!r}, expected greedy, sample or beam")
    owners = {"temperature": "sample", "top_k": "sample", "top_p": "sample", "beams": "beam", "length_penalty": "beam"}
    given = dict(zip(owners, (temperature, top_k, top_p, beams, length_penalty), strict=True))
    for name, value in given.items():
        if value is not None and strategy != owners[name]:
            raise UserError(
                f"{name} is {value}, which changes nothing with strategy {strategy}; "
                f"leave it out or take strategy {owners[name]}"
            )
    inf = float("inf")
    bounds: dict[str, tuple[float | None, bool, str]] = {
        "max_new_tokens": (max_new_tokens, max_new_tokens >= 1, "at least 1"),
        "temperature": (temperature, 0 < (temperature or 1.0) < inf and temperature != 0, "above 0; for 0 take greedy"),
        "top_k": (top_k, top_k is None or top_k >= 1, "at least 1"),
        "top_p": (top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        "repetition_penalty": (repetition_penalty, 0 < repetition_penalty < inf, "above 0; 1 changes nothing"),
        "beams": (beams, beams is None or beams >= 2, "at least 2; for 1 take greedy"),
        "length_penalty": (length_penalty, -inf < (length_penalty or 0.0) < inf, "a finite number; 1 is usual"),
    }
    for name, (value, good, expected) in bounds.items():
        if not good:
            raise UserError(f"{name} is {value}, expected {expected}")
    return Decoding(
        strategy=strategy,
        max_new_tokens=max_new_tokens,
        warp=Warp(1.0 if temperature is None else temperature, top_k, top_p),
        penalty=repetition_penalty,
        beams=1 if strategy != "beam" else DEFAULT_BEAMS if beams is None else beams,
        length_penalty=1.0 if length_penalty is None else length_penalty,
        seed=seed,
    )
