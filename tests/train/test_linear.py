"""The linear head equals scikit-learn's at the same penalty, and picks its penalty on validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge

from finesmith.tasks.losses import sigmoid_loss, softmax_loss, squared_loss
from finesmith.train.linear import L2_GRID, LinearHead, fit_linear

N, D = 160, 9


def features(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(N, D)) * np.linspace(0.1, 30, D) + np.linspace(-5, 50, D)


def classes(x: np.ndarray, count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    scores = (x - x.mean(0)) / x.std(0) @ random.normal(size=(D, count)) + random.gumbel(size=(len(x), count))
    return scores.argmax(1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return softmax_loss(logits, targets, weights_C=None, smoothing=0.0, focal_gamma=None)


def fit(x: np.ndarray, y: np.ndarray, loss: Any, outputs: int, l2: list[float], **options: Any) -> LinearHead:
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    return fit_linear(*tensors, loss, outputs=outputs, validation=tensors, l2_grid=l2, **options)


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_logistic_regression(count: int, l2: float, bias: bool) -> None:
    x = features()
    y = classes(x, count)
    head = fit(x, y, cross_entropy, count, [l2], bias=bias)
    scaled = (x - (x.mean(0) if bias else 0)) / x.std(0)
    # Two outputs under softmax share the penalty of one: |w|^2/2 for each half of the difference.
    strength = l2 * N / 2 if count == 2 else l2 * N
    theirs = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000, fit_intercept=bias).fit(scaled, y)
    found = softmax(head.logits(torch.from_numpy(x)).numpy(), axis=1)
    assert np.abs(found - theirs.predict_proba(scaled)).max() < 1e-4
    assert head.l2 == l2
    if not bias:
        assert torch.equal(head.bias, torch.zeros(count).double())


@pytest.mark.parametrize("l2", [1e-3, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_ridge(l2: float, bias: bool) -> None:
    x = features()
    random = np.random.default_rng(3)
    y = (x - x.mean(0)) / x.std(0) @ random.normal(size=D) + random.normal(size=N) + (2 if bias else 0)
    head = fit(x, y, squared_loss, 1, [l2], bias=bias)
    scaled = (x - (x.mean(0) if bias else 0)) / x.std(0)
    theirs = Ridge(alpha=l2 * N / 2, fit_intercept=bias).fit(scaled, y)
    found = head.logits(torch.from_numpy(x)).numpy()[:, 0]
    assert np.abs(found - theirs.predict(scaled)).max() < 1e-4 * np.abs(y).max()


def test_independent_labels_equal_one_logistic_regression_each() -> None:
    x = features()
    y = np.stack([classes(x, 2), classes(x[:, ::-1], 2), np.arange(N) % 2], axis=1)
    loss = lambda logits, targets: sigmoid_loss(  # noqa: E731
        logits, targets, positive_C=None, smoothing=0.0, focal_gamma=None
    )
    head = fit(x, y.astype(np.float64), loss, 3, [0.01])
    scaled = (x - x.mean(0)) / x.std(0)
    found = expit(head.logits(torch.from_numpy(x)).numpy())
    for label in range(3):
        # The loss is the mean over labels, so each label's own penalty is as many times stronger.
        theirs = LogisticRegression(C=1 / (0.01 * 3 * N), tol=1e-10, max_iter=10_000).fit(scaled, y[:, label])
        assert np.abs(found[:, label] - theirs.predict_proba(scaled)[:, 1]).max() < 1e-4


def test_the_penalty_is_chosen_on_validation() -> None:
    x = features()
    random = np.random.default_rng(5)
    noise, signal = random.integers(0, 2, N), classes(x, 2)
    held = (torch.from_numpy(features(9)), torch.from_numpy(random.integers(0, 2, N)))
    nothing = fit_linear(
        torch.from_numpy(x), torch.from_numpy(noise), cross_entropy, outputs=2, validation=held, l2_grid=L2_GRID
    )
    assert nothing.l2 == max(L2_GRID), "nothing to learn: the strongest"
    strongest, next_one = sorted(L2_GRID, reverse=True)[:2]
    assert nothing.losses.keys() == {strongest, next_one}, "weaker ones are not tried once validation loss rises"
    assert nothing.losses[strongest] < nothing.losses[next_one]
    learnt = fit(x, signal, cross_entropy, 2, list(L2_GRID))
    assert learnt.l2 == min(L2_GRID), "validation is training here: the weakest"


def test_validation_losses_are_those_of_the_head_returned() -> None:
    x = features()
    y = torch.from_numpy(classes(x, 3))
    held = features(9)
    head = fit_linear(
        torch.from_numpy(x), y, cross_entropy, outputs=3, validation=(torch.from_numpy(held), y), l2_grid=(0.01, 0.1)
    )
    mean = float(cross_entropy(head.logits(torch.from_numpy(held)), y)) / N
    assert head.losses[head.l2] == pytest.approx(mean, rel=1e-9)


def test_constant_features_and_float32_are_borne() -> None:
    x = features().astype(np.float32)
    x[:, 2] = 7.0
    y = classes(features(), 2)
    head = fit(x, y, cross_entropy, 2, [0.1])
    assert torch.isfinite(head.weight).all()
    assert head.weight.dtype == torch.float64
    smaller = fit(np.delete(x, 2, axis=1), y, cross_entropy, 2, [0.1])
    found = [h.logits(torch.from_numpy(v)).numpy() for h, v in ((head, x), (smaller, np.delete(x, 2, axis=1)))]
    assert np.abs(softmax(found[0], axis=1) - softmax(found[1], axis=1)).max() < 1e-4


def test_a_feature_that_hardly_varies_gets_no_huge_weight_where_that_is_bounded() -> None:
    x = np.random.default_rng(0).normal(size=(N, D))
    x[:, 3] *= 1e-4
    y = (x[:, 3] > 0).astype(np.int64)
    free = fit(x, y, cross_entropy, 2, [1e-2])
    bounded = fit(x, y, cross_entropy, 2, [1e-2], least_spread=0.3)
    assert float(free.weight.abs().max()) > 1e3
    assert float(bounded.weight.abs().max()) < 10
