"""The probes of a run: before its first step those that only look, right after it those that run the network."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError, PreflightError
from finesmith.guards.preflight import Probed
from finesmith.types import SPLITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.memory import Shape
    from finesmith.types import Batch
    from finesmith.workflows.language.setup import Setup as LanguageSetup
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

PROBE_SEQUENCES = 16
PROBE_TOKENS = 512
LABELS_LOOKED_AT = 64
# Of the training rows in order of length: some short ones of unequal lengths, for a trial costs what its tokens cost.
FEW = (0.1, 0.3, 0.5)
ACCUMULATED = 4


class Preflight:
    """What the probes of a run found, kept in probes.json. The first that fails ends the run, where the recipe says so.

    Used once in a run: before and right after its first step. A run that goes on from a checkpoint has passed.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self._run, self._stops = run, recipe.guards.preflight == "stop"
        self._found: list[Probed] = []

    def hear(self, probes: Iterable[Probed]) -> None:
        """Take what probes find, one after the other.

        Raises PreflightError when one does not pass.
        """
        for probe in probes:
            self._found.append(probe)
            if probe.passed:
                continue
            message = f"preflight, {probe.name}: {probe.evidence}. {probe.remedy}"
            if self._stops:
                self.end()
                raise PreflightError(f"{message}. To go on all the same: --set guards.preflight=tell")
            self._run.record("note", message=message)

    def end(self) -> None:
        """Write down what was found."""
        self._run.write_json("probes.json", {"probes": [probe.as_json() for probe in self._found]})
        failed = [probe.name for probe in self._found if not probe.passed]
        self._run.record("preflight", probes=len(self._found), failed=failed)

    def first_step(
        self, module: nn.Module, learns: Callable[[], Probed], trials: Callable[[], Iterable[Probed]]
    ) -> Callable[[Optimizer], None]:
        """Look at the weights as they are; return what is to be called after the first step, its gradients there.

        learns: tries in steps of its own whether every tensor learns.
        """
        from finesmith.guards.moves import Watch

        watch = Watch(module)

        def begun(optimizer: Optimizer) -> None:
            self.hear([watch.probed(optimizer, learns)])
            self.hear(trials())
            self.end()

        return begun


def before_training(recipe: Recipe, run: Run, data: Prepared, setup: Setup) -> Preflight:
    """Run the probes that need no step; return what runs the others after the first one.

    Raises PreflightError when one does not pass.
    """
    guard = Preflight(recipe, run)
    guard.hear(looks(recipe, data, setup))
    if recipe.method.name == "features":
        guard.end()
    return guard


def looks(recipe: Recipe, data: Prepared, setup: Setup) -> Iterator[Probed]:
    """Run the probes that need no pass through the network."""
    from finesmith.guards import preflight as probes
    from finesmith.guards.rows import one_beginning

    network, report, tokenizer = setup.network, setup.report, setup.network.tokenizer
    names = {int(i): name for i, name in (network.classifier.config.id2label or {}).items()}
    yield probes.label_order(data.task.head.labels, names)
    yield _labels(data)
    yield probes.leakage(_shared(data), kept=recipe.data.audit.leakage == "keep")
    yield probes.base_weights(report.loaded, report.missing, len(report.unexpected))
    yield one_beginning(setup.tokens.tokens, setup.tokens.offsets, beginning_of(tokenizer))
    if network.source is None:
        # What finesmith's own modules run has as many vectors as its configuration says, and nothing tied.
        yield probes.embeddings_fit(network.classifier, len(tokenizer), added_ids(setup))
    lengths = setup.tokens.lengths()[data.positions["train"]]
    yield probes.memory_fits(
        setup.forecast,
        setup.micro_batch_size,
        recipe.train.batch_size,
        lambda: smallest_change(recipe, setup, lengths),
    )
    if recipe.method.name != "features":
        yield learning_rate(recipe, setup)


def learning_rate(recipe: Recipe, setup: Setup | LanguageSetup, scale: float = 1.0) -> Probed:
    """Probe the learning rate; scale: times the usual rates, for a task that needs others."""
    from finesmith.guards.preflight import learning_rate_in_range
    from finesmith.workflows.setup import default_learning_rate

    size = setup.report.parameters
    usual, _ = default_learning_rate(recipe.method.name, size)
    return learning_rate_in_range(setup.learning_rate, usual * scale, recipe.method.name, size)


def beginning_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that begins a text, None where there is none."""
    from finesmith.data.pieces import frame_of

    beginning: int | None = tokenizer.bos_token_id
    if not tokenizer.is_fast:
        return next(iter(frame_of(tokenizer).before), beginning)
    one = tokenizer.backend_tokenizer.encode("a")
    for token, special, real in zip(one.ids, one.special_tokens_mask, one.attention_mask, strict=True):
        if real:
            return int(token) if special else beginning
    return beginning


def added_ids(setup: Setup) -> list[int]:
    """Return the id of each added word as the tokenizer reads it, -1 where it reads it as several."""
    return _ids_of(setup.network.tokenizer, setup.added_words)


def _ids_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    found = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    return [int(ids[0]) if len(ids) == 1 else -1 for ids in found]


def _labels(data: Prepared) -> Probed:
    """Compare the targets of some training rows with their labels."""
    from finesmith.guards.preflight import labels_agree
    from finesmith.tasks.classification import label_name

    some = data.positions["train"][:LABELS_LOOKED_AT]
    where = [data.where[int(data.examples.ids[i])] for i in some]
    raw = [(data.examples.labels or ())[int(i)] for i in some]
    task = data.task
    written = [label_name(label) for label in raw] if task.kind == "single" else task.decode(task.encode(raw, where))
    return labels_agree(task.decode(data.targets["train"][: len(some)]), written, "rows")


def _shared(data: Prepared) -> dict[str, int]:
    """Count the texts that two splits have in common."""
    texts, pairs = data.examples.texts, data.examples.pairs
    sets = [
        {texts[i] if pairs is None else (texts[i], pairs[i]) for i in data.positions[name].tolist()} for name in SPLITS
    ]
    ways = ((0, 1), (0, 2), (1, 2))
    return {f"{SPLITS[a]} and {SPLITS[b]}": len(sets[a] & sets[b]) for a, b in ways}


def smallest_change(
    recipe: Recipe, setup: Setup | LanguageSetup, lengths: npt.NDArray[np.int64], output_width: int = 0
) -> str:
    """Name the smallest change with which training is forecast to fit into memory."""
    from finesmith.train.memory import estimate
    from finesmith.workflows.setup import memory_shape

    usual = memory_shape(recipe, setup.network, output_width)
    free, dtype, padded = setup.device.memory_free, setup.device.dtype, not setup.network.ragged

    def fits(size: int, longest: int, shape: Shape) -> bool:
        chosen = sorted(lengths.clip(max=longest).tolist(), reverse=True)[:size]
        return estimate(shape, chosen, free=free, dtype=dtype, padded=padded).fits

    longest, all_at_once = int(lengths.max()), setup.micro_batch_size
    sizes = [all_at_once // 2**i for i in range(all_at_once.bit_length())]
    for size in sizes[1:]:
        if fits(size, longest, usual):
            return f"--set train.micro_batch_size={size} fits"
    least, also = replace(usual, recomputed=True), ""
    # A solved head keeps nothing for a way back.
    if not usual.recomputed and recipe.method.name != "features":
        also = "--set train.activation_checkpointing=true "
        for size in sizes:
            if fits(size, longest, least):
                smaller = f"--set train.micro_batch_size={size} " if size < all_at_once else ""
                return f"{also}{smaller}fits"
    else:
        least = usual
    for length in (longest * part // 8 for part in range(7, 0, -1)):
        if length >= 8 and fits(1, length, least):
            return f"{also}--set data.max_length={length} --set train.micro_batch_size=1 fits"
    lora = "" if recipe.method.name == "lora" else "--set method.name=lora, or "
    return f"No length fits: {lora}name a smaller model.base"


def trials(recipe: Recipe, data: Prepared, setup: Setup, loss_tokens: int = PROBE_TOKENS) -> Iterator[Probed]:
    """Run the probes that put a few rows through the network; it is left as it was, to the bit."""
    from finesmith.guards import trials as probes
    from finesmith.guards.preflight import initial_loss
    from finesmith.models import forward
    from finesmith.workflows.fit import loss_of

    network, loss_sum = setup.network, loss_of(data, setup)
    module, low = network.module, setup.device.dtype == "bfloat16"
    found = probes.finite_on_longest(module, loss_sum, longest_batches(data, setup))
    yield found
    if not found.passed:
        return
    start, expected = initial_losses(data, setup, loss_tokens)
    # A head that was solved on frozen features knows something already.
    untrained = bool(setup.report.new) and recipe.method.name != "head_then_full"
    yield initial_loss(start, expected, head_is_new=untrained)
    yield probes.accumulation_equal(module, loss_sum, _cuts(recipe, data, setup), coarse=low)

    def answers(batch: Batch) -> Sequence[Tensor]:
        return forward.logits(network, batch).unbind(0)

    make, count = _few(data, setup)
    yield probes.neighbours_apart(module, answers, make, count)
    yield probes.alone_and_together(module, answers, make, count)
    softened = recipe.train.label_smoothing
    yield probes.tiny_batch_learnt(module, loss_sum, make, count, setup.learning_rate, softened=softened)
    if setup.added_words:
        batch, added = _with_added(data, setup), added_ids(setup)
        table, owners = _table_of(module, network.classifier.get_input_embeddings().weight, added)
        yield probes.added_words_learn(module, loss_sum, batch, table, added, owners=owners)
        if owners is None:
            yield probes.survives_saving(
                module, lambda: answers(batch), lambda: _reloaded(data, setup, batch), "saved whole and loaded again"
            )


def _table_of(module: nn.Module, whole: Any, added: Sequence[int]) -> tuple[Any, list[int] | None]:
    """Return the vectors that are trained of added words, and their tokens where an adapter holds theirs alone."""
    apart = [tensor for name, tensor in module.named_parameters() if ".trainable_tokens_delta." in name]
    return (apart[0], sorted({token for token in added if token >= 0})) if apart else (whole, None)


def learns(recipe: Recipe, data: Prepared, setup: Setup) -> Probed:
    """Try in steps that are undone whether every tensor learns."""
    from finesmith.guards.moves import every_tensor_learns
    from finesmith.workflows.fit import loss_of
    from finesmith.workflows.training import new_optimizer

    network, rate = setup.network, max(setup.learning_rate, 1e-4)
    batches = longest_batches(data, setup)
    return every_tensor_learns(
        network.module, loss_of(data, setup), batches, lambda: new_optimizer(recipe, network, rate)
    )


def longest_batches(data: Prepared, setup: Setup) -> list[Batch]:
    """Return the longest training sequences, as many as one micro-batch holds: at most 16, and 2 or 512 tokens."""
    import numpy as np

    from finesmith.data import batches

    train, lengths = data.positions["train"], setup.tokens.lengths()
    size = min(setup.micro_batch_size, PROBE_SEQUENCES)
    longest = train[np.argsort(lengths[train], kind="stable")[-size:]]
    chosen = longest[-within(lengths[longest[::-1]], PROBE_TOKENS, 2) :]
    return [_batch(data, setup, part) for part in batches.micro_batches(chosen, lengths, size)]


def _batch(data: Prepared, setup: Setup, positions: npt.NDArray[np.int64]) -> Batch:
    from finesmith.data import batches
    from finesmith.workflows.fit import targets_by_position

    targets, device = targets_by_position(data, setup), setup.network.device
    return batches.ragged(setup.tokens, positions, ids=data.examples.ids, targets=targets, device=device)


def within(lengths: npt.NDArray[np.int64], tokens: int, fewest: int) -> int:
    """Return how many of the first sequences have at most so many tokens in all, `fewest` at least."""
    return max(fewest, int((lengths.cumsum() <= tokens).sum()))


def initial_losses(data: Prepared, setup: Setup, tokens: int) -> tuple[float, float]:
    """Return the network's loss on a few validation examples, of about so many tokens, and that of knowing nothing."""
    import numpy as np

    from finesmith.guards.trials import undone
    from finesmith.workflows.inference import Predictor

    some = data.positions["validation"]
    some = some[: within(setup.tokens.lengths()[some], tokens, PROBE_SEQUENCES)]
    targets = data.targets["validation"][: len(some)]
    with undone(setup.network.module):
        logits = Predictor(setup.network).logits(setup.tokens, some)
    nothing = data.task.plain_loss(data.task.outputs(np.zeros_like(logits)), targets)
    return data.task.plain_loss(data.task.outputs(logits), targets), max(nothing, math.log(2))


def few_places(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Return a few rows of unequal lengths, the shortest first."""
    import numpy as np

    order = np.argsort(lengths, kind="stable")
    return [int(order[place]) for place in dict.fromkeys(int(part * (len(order) - 1)) for part in FEW)]


def _few(data: Prepared, setup: Setup) -> tuple[Callable[[Sequence[int]], Batch], int]:
    """Return what makes batches of a few training rows, and how many there are."""
    import numpy as np

    train = data.positions["train"]
    chosen = train[few_places(setup.tokens.lengths()[train])]
    return lambda places: _batch(data, setup, chosen[np.array(list(places))]), len(chosen)


def _with_added(data: Prepared, setup: Setup) -> Batch:
    """Return a few training rows that hold added words."""
    import numpy as np

    train, lengths = data.positions["train"], setup.tokens.lengths()
    holding = np.isin(setup.tokens.tokens, added_ids(setup))
    row = np.repeat(np.arange(len(lengths)), lengths)[holding]
    chosen = train[np.isin(train, row)][:ACCUMULATED]
    return _batch(data, setup, chosen[np.argsort(lengths[chosen], kind="stable")] if len(chosen) else train[:1])


def _cuts(recipe: Recipe, data: Prepared, setup: Setup) -> list[tuple[Sequence[Batch], int]]:
    """Return the first rows of training in one micro-batch and one by one, as the plan of training makes them."""
    from finesmith.recipe import replace as with_values
    from finesmith.workflows.fit import plan_of

    small = with_values(recipe, {"train.batch_size": ACCUMULATED, "train.micro_batch_size": None})
    return [plan_of(small, data, replace(setup, micro_batch_size=size)).batches(0) for size in (ACCUMULATED, 1)]


def _reloaded(data: Prepared, setup: Setup, batch: Batch) -> Any:
    """Save the network as it will be saved, load it again, and return its answers."""
    import torch

    from finesmith.models import forward
    from finesmith.models.reload import reload_network
    from finesmith.models.save import save_classifier

    head = data.task.head
    with tempfile.TemporaryDirectory(prefix="finesmith-probe-") as folder:
        save_classifier(setup.network, Path(folder))
        again = reload_network(
            Path(folder),
            adapter_on=None,
            outputs=head.outputs,
            problem=head.problem,
            labels=head.labels,
            device=setup.device.device,
        )
        if added_ids(setup) != _ids_of(again.tokenizer, setup.added_words):
            raise ModelError("the tokenizer that was saved does not know the words added")
        tables: list[Any] = [n.classifier.get_input_embeddings().weight for n in (setup.network, again)]
        if not all(torch.equal(tables[0][row], tables[1][row]) for row in added_ids(setup)):
            raise ModelError("the vectors of the words added were not saved")
        with torch.no_grad():
            return forward.logits(again, batch).unbind(0)
