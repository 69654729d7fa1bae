"""The probes of a task that answers for every token."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.guards.preflight import Probed
from finesmith.tasks.language import LanguageTask
from finesmith.types import SPLITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from finesmith.models.token_heads import TokenNetwork
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.tasks.corpus import Encoded
    from finesmith.train.adamw import Optimizer
    from finesmith.types import Batch
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup

PROBE_ROWS = 16
PROBE_TOKENS = 512
# Of a long row the last tokens are enough to try things on.
TRIAL_TOKENS = 128
ACCUMULATED = 4
# Prompts of such lengths are continued by so many tokens.
PROMPTS, NEW_TOKENS = (3, 5, 9), 4
# Larger models are proven only when they are saved in the end: to write and read them takes as long as many steps.
SAVED_AT_ONCE = 64 * 2**20


def before_training(recipe: Recipe, run: Run, data: Gathered, setup: Setup) -> Callable[[Optimizer], None]:
    """Run the probes that need no step; return what runs the others after the first one.

    Raises PreflightError when one does not pass.
    """
    from finesmith.workflows.preflight import Preflight

    guard, given = Preflight(recipe, run), (recipe, data, setup)
    guard.hear(looks(*given))
    return guard.first_step(setup.network.module, lambda: learns(*given), lambda: trials(*given))


def looks(recipe: Recipe, data: Gathered, setup: Setup) -> Iterator[Probed]:
    """Run the probes that need no pass through the network."""
    from finesmith.guards import preflight as probes
    from finesmith.guards import rows
    from finesmith.workflows.language.setup import output_width
    from finesmith.workflows.preflight import beginning_of, learning_rate, smallest_change

    network: Any = setup.network
    report, encoded = setup.report, setup.encoded["train"]
    tokenizer, labels = network.tokenizer, data.task.labels
    if labels is not None:
        names = {int(i): name for i, name in (network.classifier.config.id2label or {}).items()}
        yield probes.label_order(labels, names)
    yield from _labels(data, encoded)
    yield probes.leakage(_shared(data), kept=recipe.data.audit.leakage == "keep")
    yield probes.base_weights(report.loaded, report.missing, len(report.unexpected))
    answers = encoded.answers
    if answers is not None and data.unfit:
        others = sum(len(data.ids[name]) for name in SPLITS[1:])
        answers = replace(answers, lost=data.unfit, others=others)
    if answers is not None and data.task.head == "seq2seq":
        # What generation writes before it chooses must be the beginning of an answer.
        begun = {row: [*prompt, *network.start[1:]] for row, prompt in answers.prompts.items()}
        answers = replace(answers, prompts=begun)
    yield from rows.look_at_rows(
        encoded.rows,
        answers,
        causal=data.task.head == "causal" and type(data.task).loss is LanguageTask.loss,
        two_part=data.task.head == "seq2seq",
        beginning=beginning_of(tokenizer),
        decode=None if labels else lambda ids: str(tokenizer.decode(list(ids))),
        told=data.task.kind != "embedding",
    )
    if labels is not None:
        halved = int((encoded.rows.lengths() * 2 < encoded.lengths).sum())
        yield rows.answers_survive(encoded.rows, 0, halved)
    yield probes.embeddings_fit(network.classifier, len(tokenizer), ())
    lengths = encoded.rows.lengths()
    yield probes.memory_fits(
        setup.forecast,
        setup.micro_batch_size,
        recipe.train.batch_size,
        lambda: smallest_change(recipe, setup, lengths, output_width(network, data.task)),
    )
    yield learning_rate(recipe, setup, data.task.rate_scale)


def _labels(data: Gathered, encoded: Encoded) -> Iterator[Probed]:
    """Compare the targets of some training rows with what the file says."""
    from finesmith.guards.preflight import labels_agree

    if encoded.spelt is not None:
        corpus = data.corpora["train"]
        read, written = encoded.spelt(encoded.rows, min(PROBE_ROWS, len(corpus)))
        yield labels_agree(read, written, "words")


def _shared(data: Gathered) -> dict[str, int]:
    """Count the texts that two splits have in common."""
    train, validation = (set(data.corpora[name].texts) for name in SPLITS[:2])
    return {
        "train and validation": len(train & validation),
        "train and test": data.test.shared(train),
        "validation and test": data.test.shared(validation),
    }


def trials(recipe: Recipe, data: Gathered, setup: Setup) -> Iterator[Probed]:
    """Run the probes that put a few rows through the network; it is left as it was, to the bit."""
    from finesmith.guards import preflight, trials
    from finesmith.workflows.language.fit import loss_of

    network: Any = setup.network
    loss_sum = loss_of(data, setup)
    module, low = network.module, setup.device.dtype == "bfloat16"
    few = longest(data, setup)
    units = data.task.units([few])
    found = trials.finite_on_longest(module, loss_sum, [few], units)
    yield found
    if not found.passed:
        return
    # A head of labels is trained with the prompt; one of words is not.
    weak = recipe.method.name == "prompt" and data.task.labels is None
    fall = trials.LEAST_FALL if weak else trials.FALL
    if type(data.task).loss is not LanguageTask.loss:
        # A loss of pairs or of whole batches: rows cannot be taken apart, and no target has a probability of its own.
        # Of a few texts that are nearly alike no weights tell which belongs to which, so embeddings prove nothing here.
        if data.task.kind != "embedding":
            yield trials.accumulation_equal(module, loss_sum, _cuts(recipe, data, setup), coarse=low)
            yield trials.tiny_batch_learnt(
                module, loss_sum, lambda _: few, units, setup.learning_rate, fall=fall, alone=False
            )
            if not network.prompt:
                yield _generation(setup)
        return
    make, count = _few(data, setup)
    singles = [batch for batch in (make([place]) for place in range(count)) if _told(batch)]
    if singles and not network.prompt:
        outputs = len(data.task.labels or ()) or int(network.classifier.config.get_text_config().vocab_size)
        own = trials.loss_by_its_own_forward(network, singles)
        loss = trials.mean_loss(module, loss_sum, singles)
        yield preflight.own_loss(loss, own, math.log(max(2, outputs)), coarse=low)
    yield trials.accumulation_equal(module, loss_sum, _cuts(recipe, data, setup), coarse=low)

    def answers(batch: Batch) -> Sequence[Tensor]:
        return answers_of(network, batch)

    yield trials.neighbours_apart(module, answers, make, count)
    yield trials.alone_and_together(module, answers, make, count)
    yield trials.tiny_batch_learnt(module, loss_sum, make, count, setup.learning_rate, fall=fall)
    if network.kind in ("causal", "seq2seq") and not network.prompt:
        yield _generation(setup)
    if (
        sum(p.numel() * p.element_size() for p in network.classifier.parameters()) <= SAVED_AT_ONCE
        and not network.prompt
    ):
        yield _saving(recipe, data, setup, answers, make(range(count)))


def learns(recipe: Recipe, data: Gathered, setup: Setup) -> Probed:
    """Try in steps that are undone whether every tensor learns."""
    from finesmith.guards.moves import every_tensor_learns
    from finesmith.workflows.language.fit import loss_of
    from finesmith.workflows.training import new_optimizer

    network, rate = setup.network, max(setup.learning_rate, 1e-4)
    rows = [longest(data, setup)]
    return every_tensor_learns(network.module, loss_of(data, setup), rows, lambda: new_optimizer(recipe, network, rate))


def longest(data: Gathered, setup: Setup) -> Batch:
    """Return the longest training rows, as many as one micro-batch holds: at most 16, and 2 or 512 tokens."""
    import numpy as np

    encoded = setup.encoded["train"]
    lengths = encoded.rows.lengths()
    order = np.argsort(lengths, kind="stable")[::-1][: min(setup.micro_batch_size, PROBE_ROWS)]
    chosen = order[: max(2, int((lengths[order].cumsum() <= PROBE_TOKENS).sum()))][::-1]
    return _made(data, setup, data.task.probed(encoded, chosen))


def _made(data: Gathered, setup: Setup, places: npt.NDArray[np.int64]) -> Batch:
    """Return training rows as a batch that the task's loss takes."""
    import numpy as np

    encoded = setup.encoded["train"]
    chosen = places[np.argsort(encoded.rows.lengths()[places], kind="stable")]
    made = data.task.batch(encoded, chosen, data.ids["train"], 0, 0, setup.network.device)
    return data.task.prepared(setup.network, encoded, [made])[0]


def _few(data: Gathered, setup: Setup) -> tuple[Callable[[Sequence[int]], Batch], int]:
    """Return what makes batches of the ends of a few training rows with targets, and how many there are."""
    import torch

    from finesmith.types import Batch
    from finesmith.workflows.preflight import few_places

    encoded, device = setup.encoded["train"], setup.network.device
    chosen = few_places(encoded.rows.lengths())
    rows: list[Batch] = []
    for place in chosen:
        one = data.task.batch(encoded, _array([place]), data.ids["train"], 0, 0, device)
        assert one.targets is not None
        told = (one.targets != -100).nonzero()
        end = min(len(one.tokens), int(told.max()) + 2) if len(told) else len(one.tokens)
        first = end - TRIAL_TOKENS
        if data.task.head == "seq2seq":
            # Something of the prompt stays, and the beginning of the answer.
            begin = int(told.min())
            first, end = begin - TRIAL_TOKENS // 2, min(end, begin + TRIAL_TOKENS // 2)
        # Rows keep unequal lengths when they are cut.
        part = slice(max(0, first + 8 * (len(chosen) - len(rows))), end)
        size = torch.tensor([part.stop - part.start], device=device)
        segments = None if one.segments is None else one.segments[part]
        rows.append(Batch(one.tokens[part], size, segments, one.targets[part], one.ids))
    rows.sort(key=lambda row: len(row.tokens))

    def make(places: Sequence[int]) -> Batch:
        parts = [rows[place] for place in places]
        return Batch(
            tokens=torch.cat([part.tokens for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            segments=None
            if parts[0].segments is None
            else torch.cat([p.segments for p in parts if p.segments is not None]),
            targets=torch.cat([part.targets for part in parts if part.targets is not None]),
            ids=torch.cat([part.ids for part in parts]),
        )

    return make, len(rows)


def _cuts(recipe: Recipe, data: Gathered, setup: Setup) -> list[tuple[Sequence[Batch], int]]:
    """Return the first rows of training in one micro-batch and one by one, as the plan of training makes them."""
    from finesmith.recipe import replace as with_values
    from finesmith.workflows.language.fit import plan_of

    small = with_values(recipe, {"train.batch_size": ACCUMULATED, "train.micro_batch_size": None})
    return [plan_of(small, data, replace(setup, micro_batch_size=size)).batches(0) for size in (ACCUMULATED, 1)]


def _generation(setup: Setup) -> Probed:
    """Continue the beginnings of a few training rows."""
    from finesmith.guards.trials import generation_equal
    from finesmith.models.generate import generate

    rows = setup.encoded["train"].rows
    order = rows.lengths().argsort(kind="stable")[::-1][: len(PROMPTS)]
    prompts = [rows.row(int(place))[0][:size].tolist() for place, size in zip(order, PROMPTS, strict=False)]

    def continued(chosen: Any) -> list[Sequence[int]]:
        return [one.tokens for one in generate(setup.network, chosen, max_new_tokens=NEW_TOKENS)]

    return generation_equal(setup.network.module, continued, prompts)


def _saving(
    recipe: Recipe, data: Gathered, setup: Setup, answers: Callable[[Batch], Sequence[Tensor]], batch: Batch
) -> Probed:
    """Save the network as it will be saved, load it again, and compare; an adapter is merged as well."""
    import torch

    from finesmith.guards.trials import survives_saving
    from finesmith.models.adapter_files import save_adapter
    from finesmith.models.language import load_language_model
    from finesmith.models.load import find
    from finesmith.models.merge import merge
    from finesmith.models.save import save_classifier
    from finesmith.models.token_heads import TokenNetwork
    from finesmith.recipe import ADAPTERS

    network, adapted = setup.network, recipe.method.name in ADAPTERS
    assert isinstance(network, TokenNetwork)
    kind = network.kind

    def again() -> Sequence[Tensor]:
        with tempfile.TemporaryDirectory(prefix="finesmith-probe-") as scratch:
            folder = Path(scratch) / "saved"
            if adapted:
                save_adapter(network, folder)
                plain, out = [replace(batch, targets=None)], folder.with_name("merged")
                merge(
                    setup.base.location, folder, out, batches=plain, dtype=torch.float32, revision=setup.base.revision
                )
                folder = out
            else:
                save_classifier(network, folder)
            labels, device = data.task.labels, setup.device.device
            found, _ = load_language_model(
                find(str(folder)), network.tokenizer, kind=kind, labels=labels, seed=0, device=device
            )
            found.module.eval()
            with torch.no_grad():
                return answers_of(found, batch)

    what = "saved, merged and loaded again" if adapted else "saved and loaded again"
    return survives_saving(network.module, lambda: answers(batch), again, what)


def answers_of(network: TokenNetwork, batch: Batch) -> Sequence[Tensor]:
    """Return the log probabilities of the targets of each row."""
    import torch

    from finesmith.models.token_loss import token_log_probabilities

    assert batch.targets is not None
    told = [int((row != -100).sum()) for row in torch.split(batch.targets, batch.lengths.tolist())]
    return torch.split(token_log_probabilities(network, batch), told)


def _told(batch: Batch) -> bool:
    return batch.targets is not None and bool((batch.targets != -100).any())


def _array(places: Sequence[int]) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.array(places, np.int64)
