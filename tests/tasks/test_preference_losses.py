"""Preference losses against scalar arithmetic in high precision, their closed-form slopes, and the saved reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finesmith.errors import DataError, UserError
from finesmith.tasks.preference_losses import (
    Objective,
    dpo_loss,
    ipo_loss,
    kto_divergence,
    kto_loss,
    load_reference,
    mismatched,
    orpo_loss,
    reference_key,
    save_reference,
    sums_by_row,
)

getcontext().prec = 50
logs = st.floats(-300, -0.01)
betas = st.floats(0.01, 2.0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


@given(st.lists(st.tuples(logs, logs, logs, logs), min_size=1, max_size=5), betas, st.floats(0, 0.49))
def test_dpo_equals_the_paper_in_fifty_digits(rows: list[tuple[float, ...]], beta: float, smoothing: float) -> None:
    policy_w, policy_l, reference_w, reference_l = (tensor(*column) for column in zip(*rows, strict=True))
    losses = dpo_loss((policy_w, policy_l), (reference_w, reference_l), beta=beta, smoothing=smoothing)
    losses.sum().backward()
    expected, b, e = Decimal(0), Decimal(beta), Decimal(smoothing)
    assert policy_w.grad is not None
    assert policy_l.grad is not None
    for i, row in enumerate(rows):
        pw, pl, rw, rl = map(Decimal, row)
        z = b * ((pw - rw) - (pl - rl))
        expected -= (1 - e) * sigmoid(z).ln() + e * sigmoid(-z).ln()
        # The slope in the chosen answer's log-probability, in closed form (Rafailov et al., section 4, with smoothing).
        slope = float(b * (e * sigmoid(z) - (1 - e) * sigmoid(-z)))
        assert float(policy_w.grad[i]) == pytest.approx(slope, rel=1e-9, abs=1e-15)
        assert float(policy_l.grad[i]) == pytest.approx(-slope, rel=1e-9, abs=1e-15)
    assert losses.shape == (len(rows),)
    assert losses.sum().item() == pytest.approx(float(expected), rel=1e-10, abs=1e-13)


def test_dpo_of_an_untrained_policy_is_the_logarithm_of_two() -> None:
    same = (tensor(-10.0, -20.0, -3.0), tensor(-11.0, -5.0, -9.0))
    assert dpo_loss(same, same, beta=0.3).tolist() == pytest.approx([math.log(2)] * 3, rel=1e-15)


@given(st.tuples(logs, logs, logs, logs), betas)
def test_ipo_equals_the_paper(row: tuple[float, ...], beta: float) -> None:
    pw, pl, rw, rl = (tensor(value) for value in row)
    loss = ipo_loss((pw, pl), (rw, rl), beta=beta)
    h = (row[0] - row[1]) - (row[2] - row[3])
    assert loss.tolist() == pytest.approx([(h - 1 / (2 * beta)) ** 2], rel=1e-12)
    loss.sum().backward()
    assert pw.grad is not None
    assert float(pw.grad) == pytest.approx(2 * (h - 1 / (2 * beta)), rel=1e-12)


@given(st.tuples(logs, logs), st.tuples(st.integers(1, 300), st.integers(1, 300)), st.floats(0, 2))
def test_orpo_equals_the_paper_in_fifty_digits(row: tuple[float, ...], lengths: tuple[int, int], weight: float) -> None:
    chosen, rejected = (tensor(value) for value in row)
    sizes = (torch.tensor(lengths[:1]), torch.tensor(lengths[1:]))
    loss = orpo_loss((chosen, rejected), sizes, weight=weight)
    loss.sum().backward()
    pw, pl = ((Decimal(value) / length).exp() for value, length in zip(row, lengths, strict=True))
    ratio = (pw / (1 - pw)) / (pl / (1 - pl))
    expected = -pw.ln() - Decimal(weight) * (ratio / (1 + ratio)).ln()
    assert loss.tolist() == pytest.approx([float(expected)], rel=1e-10, abs=1e-13)
    # d log odds / d log p = 1 / (1 - p) (equations 8 to 10 of the paper).
    slope = float((-1 - Decimal(weight) * (1 / (1 + ratio)) / (1 - pw)) / lengths[0])
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(slope, rel=1e-9)


@given(
    st.lists(st.tuples(logs, logs, st.booleans()), min_size=1, max_size=6), betas, st.floats(-5, 20),
    st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
)  # fmt: skip
def test_kto_equals_the_paper_in_fifty_digits(
    rows: list[tuple[float, float, bool]], beta: float, divergence: float, weights: tuple[float, float]
) -> None:
    policy, reference = tensor(*(row[0] for row in rows)), tensor(*(row[1] for row in rows))
    z, good = tensor(divergence), torch.tensor([row[2] for row in rows])
    losses = kto_loss(
        policy, reference, good, z[0], beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1]
    )
    losses.sum().backward()
    assert policy.grad is not None
    expected = Decimal(0)
    for i, (p, r, is_good) in enumerate(rows):
        reward, sign = Decimal(p) - Decimal(r), 1 if is_good else -1
        value = sigmoid(sign * Decimal(beta) * (reward - Decimal(divergence)))
        weight = Decimal(weights[0] if is_good else weights[1])
        expected += weight - weight * value
        slope = float(-weight * sign * Decimal(beta) * value * (1 - value))
        assert float(policy.grad[i]) == pytest.approx(slope, rel=1e-9, abs=1e-15)
    assert losses.shape == (len(rows),)
    assert z.grad is None, "the divergence is an estimate and not a way for the gradient"
    assert losses.sum().item() == pytest.approx(float(expected), rel=1e-9, abs=1e-13)


def test_the_divergence_is_the_batch_mean_over_mismatched_answers_and_never_negative() -> None:
    assert mismatched(4) == [1, 2, 3, 0]
    policy, reference = tensor(-10.0, -20.0, -30.0), tensor(-11.0, -19.0, -33.0)
    found = kto_divergence(policy, reference)
    assert found.item() == pytest.approx((1 - 1 + 3) / 3)
    assert not found.requires_grad
    assert float(kto_divergence(reference, policy)) == 0.0
    with pytest.raises(UserError, match="at least 2 rows"):
        mismatched(1)


def test_sums_are_taken_row_by_row() -> None:
    values = tensor(-1.0, -2.0, -3.0, -4.0)
    found = sums_by_row(values, torch.tensor([0, 2, 1, 2]), 3)
    assert found.tolist() == [-1.0, -3.0, -6.0]
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0] * 4
    with pytest.raises(DataError, match=r"rows \[1\] of this batch have no supervised token"):
        sums_by_row(values, torch.tensor([0, 2, 0, 2]), 3)


def test_margins_are_differences_of_rewards() -> None:
    policy, reference = (tensor(-5.0, -7.0), tensor(-8.0, -7.0)), (tensor(-6.0, -6.0), tensor(-8.0, -8.0))
    lengths = (torch.tensor([2, 3]), torch.tensor([4, 5]))
    for loss, expected in (("dpo", [0.5, -1.0]), ("ipo", [0.5, -1.0])):
        losses, margins = Objective(loss, beta=0.5).of_pairs(policy, reference, lengths)
        assert margins.tolist() == expected
        assert not margins.requires_grad
        assert losses.requires_grad
    _, margins = Objective("orpo").of_pairs(policy, None, lengths)
    odds = [[math.exp(-5 / 2), math.exp(-7 / 3)], [math.exp(-8 / 4), math.exp(-7 / 5)]]
    logs_of = [[math.log(p / (1 - p)) for p in row] for row in odds]
    assert margins.tolist() == pytest.approx([logs_of[0][0] - logs_of[1][0], logs_of[0][1] - logs_of[1][1]])
    good = torch.tensor([True, False])
    losses, margins = Objective("kto", beta=0.5).of_marked(policy[0], reference[0], good, torch.tensor(0.5))
    assert margins.tolist() == [0.25, 0.75]
    assert losses.tolist() == pytest.approx([1 / (1 + math.exp(m)) for m in (0.25, 0.75)])


def _two() -> tuple[torch.Tensor, torch.Tensor]:
    return tensor(-1.0), tensor(-2.0)


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x: dpo_loss(_two(), _two(), beta=x),
        lambda x: ipo_loss(_two(), _two(), beta=x),
        lambda x: kto_loss(tensor(-1.0), tensor(-1.0), torch.tensor([True]), torch.zeros(()), beta=x),
        lambda x: kto_loss(tensor(-1.0), tensor(-1.0), torch.tensor([True]), torch.zeros(()), desirable_weight=x),
        lambda x: kto_loss(tensor(-1.0), tensor(-1.0), torch.tensor([True]), torch.zeros(()), undesirable_weight=x),
        lambda x: orpo_loss(_two(), (torch.ones(1), torch.ones(1)), weight=x if x else -1.0),
        lambda x: dpo_loss(_two(), _two(), smoothing=x if x else 0.5),
    ],
)
def test_what_is_out_of_range_is_refused(loss: Callable[[float], object], bad: float) -> None:
    with pytest.raises(UserError, match="expected"):
        loss(bad)


# --- the saved reference ---------------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    return {"tokens": np.arange(12, dtype=np.int32), "offsets": np.array([0, 5, 12])}


def test_the_reference_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    key = reference_key("abc", arrays(), {"dtype": "float32"})
    assert load_reference(tmp_path, key, 3) is None
    values = [-1.25, -1e-300, -math.pi]
    path = save_reference(tmp_path / "cache", key, values)
    found = load_reference(tmp_path / "cache", key, 3)
    assert found is not None
    assert found.tolist() == values
    assert [entry.name for entry in path.parent.iterdir()] == [f"reference-{key}.npz"]


def test_the_key_changes_with_everything_that_counts() -> None:
    keys = {reference_key("abc", arrays(), {"dtype": "float32"})}
    keys.add(reference_key("abd", arrays(), {"dtype": "float32"}))
    keys.add(reference_key("abc", arrays(), {"dtype": "bfloat16"}))
    for name in arrays():
        for change in (lambda a: a + 1, lambda a: a[:-1], lambda a: a.astype(np.float64), lambda a: a[None]):
            keys.add(reference_key("abc", {**arrays(), name: change(arrays()[name])}, {"dtype": "float32"}))
    keys.add(reference_key("abc", {**arrays(), "targets": np.zeros(1)}, {"dtype": "float32"}))
    assert len(keys) == 3 + 8 + 1
    turned = dict(reversed(arrays().items()))
    assert reference_key("abc", turned, {"dtype": "float32"}) in keys, "the order in which names are given is nothing"


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 is nan"):
        save_reference(tmp_path, "k", [0.0, math.nan])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "short", "type", "nan", "pickle", "other"])
def test_a_damaged_reference_is_computed_again(damage: str, tmp_path: Path) -> None:
    path = save_reference(tmp_path, "k", [-1.0, -2.0, -3.0])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[content.index(np.float64(-2.0).tobytes()) + 3] ^= 1
        path.write_bytes(content)
    elif damage == "other":
        path.write_bytes(b"no archive")
    else:
        wrong = {
            "short": np.zeros(2), "type": np.zeros(3, np.float32), "nan": np.array([0, np.nan, 0]),
            "pickle": np.array([{"a": 1}] * 3, dtype=object),
        }  # fmt: skip
        np.savez(path, values=wrong[damage])
    assert load_reference(tmp_path, "k", 3) is None
