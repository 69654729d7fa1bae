"""The loop yields after every step, divides losses once, repeats to the bit, and stops before it does harm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from finesmith.data import batches as batching
from finesmith.data.tokens import Tokens
from finesmith.errors import DivergenceError
from finesmith.tasks.classification import Classification
from finesmith.tasks.multi_label import MultiLabel
from finesmith.tasks.protocol import Options, Task
from finesmith.tasks.regression import Regression
from finesmith.train import loop, optimiser
from finesmith.train.adamw import AdamW
from finesmith.train.step import backward
from finesmith.types import Batch

COUNT, WIDTH, CLASSES = 24, 7, 3


class Bag(torch.nn.Module):
    """The mean of a sequence's token vectors under a linear head, with dropout: enough of a model for the loop."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = torch.nn.Embedding(50, WIDTH, dtype=dtype)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(WIDTH, CLASSES, dtype=dtype)

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = self.vectors(batch.tokens).split(batch.lengths.tolist())
        return self.head(self.dropout(torch.stack([row.mean(0) for row in rows])))


@pytest.fixture
def tokens() -> Tokens:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 12, COUNT)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    ids = random.integers(0, 50, offsets[-1]).astype(np.int32)
    return Tokens(ids, offsets, None, lengths.astype(np.int32), 1, 1, 0, 0)


def single_targets() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, CLASSES, COUNT))


LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def begin(
    module: torch.nn.Module,
    tokens: Tokens,
    targets: torch.Tensor,
    *,
    loss: LossOf = cross_entropy,
    micro: int = 8,
    steps: int = 6,
    seed: int = 0,
    start: int = 0,
    max_grad_norm: float = 1.0,
) -> Any:
    def make(step: int) -> tuple[Sequence[Batch], int]:
        chosen = batching.batch_positions(COUNT, 8, seed=seed, step=step)
        parts = batching.micro_batches(chosen, tokens.lengths(), micro)
        return [batching.ragged(tokens, p, ids=np.arange(COUNT) + 100, targets=targets) for p in parts], len(chosen)

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        assert batch.targets is not None
        return loss(module(batch), batch.targets), len(batch.lengths)

    optimizer = AdamW(optimiser.parameter_groups(module, learning_rate=0.01, weight_decay=0.01))
    plan = loop.Plan(steps, 3, make, max_grad_norm, seed)
    return loop.train(module, loss_sum, optimizer, optimiser.Schedule("linear", steps, 2), plan, start=start)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_loop_is_a_generator_that_works_only_when_asked(tokens: Tokens) -> None:
    module = Bag()
    before = weights(module)
    running = begin(module, tokens, single_targets())
    assert inspect.isgenerator(running)
    assert equal(weights(module), before), "nothing happens before the first step is asked for"
    first = next(running)
    after = weights(module)
    assert first.step == 1
    assert first.epoch == pytest.approx(1 / 3)
    assert first.examples == 8
    assert first.learning_rate == pytest.approx(0.005)
    assert first.seconds > 0
    assert not equal(after, before)
    running.close()
    assert equal(weights(module), after)


def test_steps_count_tokens_examples_and_epochs(tokens: Tokens) -> None:
    steps = list(begin(Bag(), tokens, single_targets()))
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.epoch for s in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert sum(s.examples for s in steps[:3]) == COUNT
    assert sum(s.tokens for s in steps[:3]) == len(tokens.tokens)


def test_the_module_trains_although_the_caller_evaluates_between_steps(tokens: Tokens) -> None:
    module = Bag(dropout=0.5)
    for _ in begin(module, tokens, single_targets()):
        assert module.training
        module.eval()


def test_the_same_bits_when_run_again(tokens: Tokens) -> None:
    results = []
    for noise in (1, 2):
        module = Bag(dropout=0.3, dtype=torch.float32)
        torch.manual_seed(noise)  # whatever the process did before
        losses = []
        for step in begin(module, tokens, single_targets(), micro=3):
            losses.append((step.loss, step.grad_norm))
            torch.rand(noise)  # and does in between
        results.append((losses, weights(module)))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])


def test_a_later_start_goes_on_as_the_whole(tokens: Tokens) -> None:
    """With the optimiser's state carried along in the same object; through files in test_optimiser."""
    module = Bag(dropout=0.3)
    running = begin(module, tokens, single_targets())
    for _ in range(3):
        next(running)
    middle = weights(module)
    other = Bag(dropout=0.3)
    with torch.no_grad():
        for parameter, value in zip(other.parameters(), middle, strict=True):
            parameter.copy_(value)
    assert next(begin(other, tokens, single_targets(), start=3)).loss == next(running).loss


def test_dropout_differs_between_steps_and_micro_batches_and_seeds() -> None:
    """Equal micro-batches with equal weights lose differently, because what is dropped differs."""
    module = Bag(dropout=0.5)
    one = Batch(torch.arange(6), torch.tensor([2, 4]), None, torch.tensor([0, 1]), torch.arange(2))
    seen: list[float] = []

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        loss = cross_entropy(module(batch), batch.targets)  # type: ignore[arg-type]
        seen.append(float(loss.detach()))
        return loss, 2

    optimizer = AdamW(optimiser.parameter_groups(module, learning_rate=0.0, weight_decay=0.0))
    for seed in (0, 1):
        plan = loop.Plan(3, 3, lambda _: ([one, one], 4), 1.0, seed)
        list(loop.train(module, loss_sum, optimizer, optimiser.Schedule("constant", 3, 0), plan))
    assert len(set(seen)) == len(seen) == 12


def options(**changes: Any) -> Options:
    return Options(**changes)


LABELS = ["a"] * 4 + ["b"] * 9 + ["c"] * 11
LISTS = [["a"], ["b", "c"], [], ["a", "b", "c"]] * 6
TASKS: dict[str, tuple[Task, list[Any]]] = {
    "plain": (Classification.learn(LABELS, options()), LABELS),
    "class-weighted": (Classification.learn(LABELS, options(class_weights="balanced")), LABELS),
    "focal": (Classification.learn(LABELS, options(loss="focal")), LABELS),
    "smoothed": (Classification.learn(LABELS, options(label_smoothing=0.2)), LABELS),
    "everything": (
        Classification.learn(LABELS, options(label_smoothing=0.1, loss="focal", class_weights="balanced")), LABELS,
    ),
    "multi-label": (MultiLabel.learn(LISTS, options(class_weights="balanced")), LISTS),
    "multi-label focal": (MultiLabel.learn(LISTS, options(loss="focal", label_smoothing=0.1)), LISTS),
    "regression": (Regression.learn(list(range(COUNT)), options()), list(range(COUNT))),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_accumulation_equals_the_large_batch(name: str, tokens: Tokens) -> None:
    """Gradients, losses and norms do not depend on how a batch is cut, whatever the lengths and the loss."""
    task, labels = TASKS[name]
    targets = task.tensor(task.encode(labels, [f"row {i}" for i in range(COUNT)]))
    found = []
    for micro in (8, 3, 1):
        module = Bag()
        steps = list(begin(module, tokens, targets, loss=task.loss, micro=micro))
        found.append(([s.loss for s in steps], [s.grad_norm for s in steps], weights(module)))
    for losses, norms, final in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=1e-12)
        np.testing.assert_allclose(norms, found[0][1], rtol=1e-10)
        for one, other in zip(final, found[0][2], strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_mean_over_examples(tokens: Tokens) -> None:
    module = Bag()
    targets = single_targets()
    chosen = batching.batch_positions(COUNT, 8, seed=0, step=0)
    whole = batching.ragged(
        tokens, batching.micro_batches(chosen, tokens.lengths(), 8)[0], ids=np.arange(COUNT), targets=targets
    )
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(module(whole), whole.targets)
    assert next(begin(module, tokens, targets, micro=3)).loss == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_loop_before_the_weights_change(where: str, tokens: Tokens) -> None:
    module = Bag()
    bad = 17  # the example with id 117

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        logits = module(batch)
        loss = cross_entropy(logits, batch.targets)  # type: ignore[arg-type]
        if armed and (batch.ids == 100 + bad).any():
            # The square root of zero is finite, and its slope is not.
            zero = (logits * 0).sum()
            loss = loss + (float("nan") if where == "loss" else 0) + zero.sqrt() * (where == "gradient")
        return loss, len(batch.lengths)

    def make(step: int) -> tuple[Sequence[Batch], int]:
        chosen = batching.batch_positions(COUNT, 8, seed=0, step=step)
        parts = batching.micro_batches(chosen, tokens.lengths(), 3)
        return [batching.ragged(tokens, p, ids=np.arange(COUNT) + 100, targets=single_targets()) for p in parts], 8

    armed = True
    at = next(s for s in range(3) if bad in batching.batch_positions(COUNT, 8, seed=0, step=s))
    optimizer = AdamW(optimiser.parameter_groups(module, learning_rate=0.01, weight_decay=0.1))
    plan = loop.Plan(6, 3, make, 1.0, 0)
    running = loop.train(module, loss_sum, optimizer, optimiser.Schedule("linear", 6, 0), plan)
    for _ in range(at):
        next(running)
    before = weights(module)
    with pytest.raises(DivergenceError, match=f"at step {at + 1} of 6") as caught:
        next(running)
    assert equal(weights(module), before)
    assert "117" in str(caught.value)
    assert "Lower train.learning_rate" in str(caught.value)
    assert where in str(caught.value)
    assert caught.value.exit_status == 2


def test_clipping_changes_the_step_and_not_the_norm_that_is_told(tokens: Tokens) -> None:
    loose = next(begin(Bag(), tokens, single_targets(), max_grad_norm=1e9))
    tight = next(begin(Bag(), tokens, single_targets(), max_grad_norm=1e-3))
    assert loose.grad_norm == tight.grad_norm


def test_backward_names_the_examples_with_a_loss_that_is_not_finite() -> None:
    module = Bag()
    batch = Batch(torch.arange(3), torch.tensor([3]), None, torch.tensor([0]), torch.tensor([42]))
    with pytest.raises(DivergenceError, match=r"the loss is inf in examples with ids \[42\]"):
        backward(lambda b: (module(b).sum() * 0 + float("inf"), 1), [batch], 1, lambda _: None)


def test_mixed_seeds_do_not_meet() -> None:
    seeds = {loop.mix(seed, step, micro) for seed in range(5) for step in range(40) for micro in range(10)}
    assert len(seeds) == 2000
    assert all(0 <= s < 2**63 for s in seeds)
    assert loop.mix(0, 1) != loop.mix(1, 0)
