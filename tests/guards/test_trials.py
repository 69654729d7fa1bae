"""Probes that run a network pass on good ones, stop on the fault they are there for, and leave every bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finesmith.errors import ModelError
from finesmith.guards import trials
from finesmith.models import forward
from finesmith.models.adapter_kinds import add_adapter
from finesmith.models.forward import Network
from finesmith.models.load import find, load_classifier, load_tokenizer
from finesmith.types import Batch

ROWS = [[2, 60, 61, 3], [2, 62, 63, 64, 65, 3], [2, 66, 67, 68, 69, 70, 71, 72, 3]]
TARGETS = [0, 1, 0]


@pytest.fixture
def network(tiny_model: Path) -> Network:
    base = find(str(tiny_model))
    found, _ = load_classifier(
        base, load_tokenizer(base), outputs=2, problem="single_label_classification", labels=("a", "b"), seed=0,
        dropout=0.1,
    )  # fmt: skip
    return found


def make(places: Sequence[int]) -> Batch:
    rows = [ROWS[place] for place in places]
    flat = torch.tensor([token for row in rows for token in row])
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(flat, lengths, None, torch.tensor([TARGETS[place] for place in places]), torch.tensor(list(places)))


def loss_of(network: Network, reduction: str = "sum") -> Callable[[Batch], tuple[torch.Tensor, int]]:
    def loss_sum(part: Batch) -> tuple[torch.Tensor, int]:
        assert part.targets is not None
        logits = forward.logits(network, part)
        return torch.nn.functional.cross_entropy(logits, part.targets, reduction=reduction), len(part.lengths)

    return loss_sum


def answers_of(network: Network) -> trials.Answers:
    return lambda batch: forward.logits(network, batch).unbind(0)


CUTS = [([make([0, 1, 2])], 3), ([make([0]), make([1]), make([2])], 3)]


@pytest.mark.parametrize("lora", [False, True])
def test_all_trials_leave_every_bit_as_it_was(lora: bool, network: Network) -> None:
    if lora:
        add_adapter(network, "lora", {"r": 2, "lora_dropout": 0.1}, seed=0)
    module, loss, answers = network.module, loss_of(network), answers_of(network)
    module.train()
    network.classifier.eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    found = [
        trials.finite_on_longest(module, loss, [make([1, 2])]),
        trials.accumulation_equal(module, loss, CUTS, coarse=False),
        trials.neighbours_apart(module, answers, make, 3),
        trials.alone_and_together(module, answers, make, 3),
        trials.tiny_batch_learnt(module, loss, make, 3, 1e-3),
    ]
    assert all(probe.passed for probe in found), [probe.line() for probe in found]
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_undone_puts_back_weights_after_an_error_too(network: Network) -> None:
    weight = next(network.module.parameters())
    before = weight.detach().clone()

    def fail() -> None:
        with trials.undone(network.module, [weight]), torch.no_grad():
            weight.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(weight, before)


def test_a_mean_of_means_is_found(network: Network) -> None:
    found = trials.accumulation_equal(network.module, loss_of(network, "mean"), CUTS, coarse=False)
    assert not found.passed
    assert "in 1 and 3 parts" in found.evidence


def test_units_counted_by_micro_batch_are_found(network: Network) -> None:
    cuts = [(batches, sum(len(batch.lengths) for batch in batches) // len(batches)) for batches, _ in CUTS]
    assert not trials.accumulation_equal(network.module, loss_of(network), cuts, coarse=False).passed


def test_a_row_that_reads_its_neighbours_is_found(network: Network) -> None:
    def leaking(batch: Batch) -> list[torch.Tensor]:
        logits = forward.logits(network, batch)
        return list((logits + 0.1 * logits.mean(0)).unbind(0))

    found = trials.neighbours_apart(network.module, leaking, make, 3)
    assert not found.passed
    one_row = replace(make([2]), lengths=torch.tensor([9]))
    assert trials.neighbours_apart(network.module, leaking, lambda _: one_row, 1).passed


@pytest.mark.parametrize("first", [True, False])
def test_rows_laid_end_to_end_as_one_are_found(first: bool, network: Network) -> None:
    """What packing without a mask does: the model sees one long text."""

    def packed(batch: Batch) -> list[torch.Tensor]:
        one = replace(batch, lengths=batch.lengths.sum()[None])
        hidden = forward.ragged_hidden(network.classifier, one, forward.layout_of(one.lengths))
        ends = batch.lengths.cumsum(0)
        return list(hidden[ends - batch.lengths if first else ends - 1].unbind(0))

    assert not trials.neighbours_apart(network.module, packed, make, 3).passed


def test_padding_that_changes_answers_is_found(network: Network) -> None:
    def minding(batch: Batch) -> list[torch.Tensor]:
        longest = int(batch.lengths.max())
        rows = batch.tokens.split(batch.lengths.tolist())
        ids = torch.stack([torch.cat([row, row.new_zeros(longest - len(row))]) for row in rows])
        model: Any = network.classifier
        states = model.base_model.embeddings(input_ids=ids)
        return list(states.mean(1).unbind(0))

    assert not trials.alone_and_together(network.module, minding, make, 3).passed


def wrong_sign(network: Network) -> Any:
    return lambda batch: (-loss_of(network)(batch)[0], len(batch.lengths))


def detached(network: Network) -> Any:
    return lambda batch: (loss_of(network)(batch)[0].detach().requires_grad_(), len(batch.lengths))


def constant(network: Network) -> Any:
    return lambda batch: (0 * loss_of(network)(batch)[0] + 2.0, len(batch.lengths))


def not_a_number(network: Network) -> Any:
    return lambda batch: (loss_of(network)(batch)[0] * float("nan"), len(batch.lengths))


@pytest.mark.parametrize("fault", [wrong_sign, detached, constant, not_a_number])
def test_a_loss_that_does_not_follow_the_weights_is_found(fault: Any, network: Network) -> None:
    assert not trials.tiny_batch_learnt(network.module, fault(network), make, 3, 1e-3).passed


@pytest.mark.parametrize("rate", [1e-9, 1e-4, 1e-2, 0.2])
def test_any_rate_fits_a_tiny_batch(rate: float, network: Network) -> None:
    assert trials.tiny_batch_learnt(
        network.module, loss_of(network), make, 3, rate * 1e3 if rate < 1e-6 else rate
    ).passed


def test_equal_texts_with_unlike_labels_are_no_fault(network: Network) -> None:
    def twins(places: Sequence[int]) -> Batch:
        count = len(places)
        return Batch(
            torch.tensor(ROWS[0] * count), torch.tensor([4] * count), None, torch.tensor([0, 1][-count:]),
            torch.arange(count),
        )  # fmt: skip

    found = trials.tiny_batch_learnt(network.module, loss_of(network), twins, 2, 1e-3)
    assert found.passed
    assert "on 1 rows" in found.evidence


def test_a_frozen_body_fits_with_its_head_alone(network: Network) -> None:
    network.classifier.base_model.requires_grad_(False)
    assert trials.tiny_batch_learnt(network.module, loss_of(network), make, 3, 1e-4).passed


def test_softened_targets_fall_less(network: Network) -> None:
    def soft(batch: Batch) -> tuple[torch.Tensor, int]:
        logits = forward.logits(network, batch)
        return torch.nn.functional.cross_entropy(
            logits, batch.targets, reduction="sum", label_smoothing=0.8
        ), len(batch.lengths)  # fmt: skip

    assert trials.tiny_batch_learnt(network.module, soft, make, 3, 1e-3, softened=0.8).passed


def test_generation_that_depends_on_the_batch_is_found(network: Network) -> None:
    prompts = [[1, 2], [3, 4, 5]]
    assert trials.generation_equal(network.module, lambda rows: [row[-1:] for row in rows], prompts).passed
    longest = trials.generation_equal(network.module, lambda rows: [[max(map(len, rows))] for _ in rows], prompts)
    assert not longest.passed
    assert "1 of 2 prompts" in longest.evidence


def test_added_words_without_a_gradient_are_found(network: Network) -> None:
    table = network.classifier.get_input_embeddings().weight
    assert isinstance(table, torch.nn.Parameter)
    found = trials.added_words_learn(network.module, loss_of(network), make([0, 1]), table, [60, 64, 99])
    assert found.passed
    assert "2 of 2 added words" in found.evidence

    def cut(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.index_fill(0, torch.tensor([64]), 0.0)

    table.register_hook(cut)
    assert not trials.added_words_learn(network.module, loss_of(network), make([0, 1]), table, [60, 64]).passed
    table.requires_grad_(False)
    assert not trials.added_words_learn(network.module, loss_of(network), make([0, 1]), table, [60]).passed


def test_what_does_not_come_back_is_found(network: Network) -> None:
    answers = [torch.ones(2), torch.zeros(3)]
    assert trials.survives_saving(network.module, lambda: answers, lambda: answers, "saved").passed
    other = trials.survives_saving(network.module, lambda: answers, lambda: [torch.ones(2), torch.ones(3)], "saved")
    assert not other.passed
    assert "differ by 1.0e+00" in other.evidence

    def lost() -> Sequence[torch.Tensor]:
        raise ModelError("the folder lacks the weights lm_head.weight")

    assert "lm_head.weight" in trials.survives_saving(network.module, lambda: answers, lost, "saved").evidence
