"""Contrastive losses against naive loops and another library; the cached gradient against the large batch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from finesmith.errors import DivergenceError, UserError
from finesmith.tasks.contrastive import (
    cached_backward,
    nested_loss,
    ranking_loss,
    similarity_loss,
    supervised_contrastive_loss,
    triplet_loss,
)
from finesmith.train.loop import mix
from finesmith.types import Batch

Rows = list[list[float]]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in left) * math.fsum(b * b for b in right))


def naive_ranking(a: Rows, p: Rows, n: Rows, temperature: float) -> float:
    """Equation by loops: one softmax a row, over all candidates."""
    total = 0.0
    for i in range(len(a)):
        found = [math.exp(cosine(a[i], candidate) / temperature) for candidate in p + n]
        total -= math.log(found[i] / math.fsum(found))
    return total


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("hard", [False, True])
def test_ranking_equals_the_naive_loop(temperature: float, hard: bool) -> None:
    a, p, n = draw(5, 7, seed=1), draw(5, 7, seed=2), draw(3, 7, seed=3)
    found, count = ranking_loss(a, p, n if hard else None, temperature=temperature)
    expected = naive_ranking(a.tolist(), p.tolist(), n.tolist() if hard else [], temperature)
    assert count == 5
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_triplets_equal_the_naive_loop() -> None:
    a, p, n = (draw(9, 4, seed=seed) for seed in range(3))
    expected = [
        max(0.0, cosine(x, z) - cosine(x, y) + 0.3) for x, y, z in zip(a.tolist(), p.tolist(), n.tolist(), strict=True)
    ]
    found, count = triplet_loss(a, p, n, margin=0.3)
    assert count == 9
    assert found.item() == pytest.approx(math.fsum(expected), rel=1e-12)
    assert any(value == 0 for value in expected)
    assert any(value > 0 for value in expected)


def test_supervised_contrast_equals_the_naive_loop() -> None:
    e, labels = draw(8, 5), [0, 1, 0, 2, 1, 1, 0, 3]
    rows, total, counted = e.tolist(), 0.0, 0
    for i in range(8):
        fellows = [j for j in range(8) if j != i and labels[j] == labels[i]]
        if not fellows:
            continue
        counted += 1
        below = math.fsum(math.exp(cosine(rows[i], rows[a]) / 0.07) for a in range(8) if a != i)
        total -= math.fsum(math.log(math.exp(cosine(rows[i], rows[p]) / 0.07) / below) for p in fellows) / len(fellows)
    found, count = supervised_contrastive_loss(e, torch.tensor(labels))
    assert count == counted == 6
    assert found.item() == pytest.approx(total, rel=1e-12)


def test_labels_without_fellows_give_no_loss_and_no_broken_gradient() -> None:
    e = draw(4, 3).requires_grad_()
    loss, count = supervised_contrastive_loss(e, torch.arange(4))
    loss.backward()
    assert (loss.item(), count) == (0.0, 0)
    assert e.grad is not None
    assert torch.equal(e.grad, torch.zeros_like(e))


def test_similarity_and_nesting_equal_the_naive_loop() -> None:
    a, b, targets = draw(6, 8), draw(6, 8, seed=1), draw(6, seed=2).clamp(-1, 1)

    def naive(width: int) -> float:
        return math.fsum(
            (cosine(x[:width], y[:width]) - t) ** 2
            for x, y, t in zip(a.tolist(), b.tolist(), targets.tolist(), strict=True)
        )

    found, count = similarity_loss(a, b, targets)
    assert (found.item(), count) == (pytest.approx(naive(8), rel=1e-12), 6)
    nested, count = nested_loss(lambda each: similarity_loss(each[0], each[1], targets), [a, b], [8, 4, 2])
    assert (nested.item(), count) == (pytest.approx((naive(8) + naive(4) + naive(2)) / 3, rel=1e-12), 6)


LOSSES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, int]]] = {
    "ranking": lambda e: ranking_loss(e[:4], e[4:8], e[8:], temperature=0.5),
    "triplet": lambda e: triplet_loss(e[:4], e[4:8], e[8:], margin=2.5),
    "labels": lambda e: supervised_contrastive_loss(e, torch.tensor([0, 1, 0, 2, 1, 1, 0, 3, 0, 0, 2, 2])),
    "similarity": lambda e: similarity_loss(e[:6], e[6:], torch.linspace(-1, 1, 6)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_are_those_of_the_value(name: str) -> None:
    e = draw(12, 5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: LOSSES[name](each)[0], (e,))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_what_is_out_of_range_is_refused(bad: float) -> None:
    e = draw(2, 3)
    with pytest.raises(UserError, match="temperature is"):
        ranking_loss(e, e, temperature=bad)
    with pytest.raises(UserError, match="temperature is"):
        supervised_contrastive_loss(e, torch.arange(2), temperature=bad)
    with pytest.raises(UserError, match="margin is"):
        triplet_loss(e, e, e, margin=bad)


@pytest.mark.parametrize("widths", [[], [0], [4], [2, -1]])
def test_widths_that_cannot_be_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"nested widths are .*from 1 to 3"):
        nested_loss(lambda each: similarity_loss(each[0], each[1], torch.ones(2)), [draw(2, 3), draw(2, 3)], widths)


# --- another library -------------------------------------------------------------------------------------------------


def test_losses_equal_those_of_sentence_transformers() -> None:
    theirs = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric

    class Taken(torch.nn.Module):
        """Stands for a model: hands out the embeddings it is given."""

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    a, p, n = (draw(6, 8, seed=seed) for seed in range(3))

    def ask(loss: Any, parts: list[torch.Tensor], labels: torch.Tensor) -> float:
        return float(loss([{"sentence_embedding": part} for part in parts], labels))

    model, none = Taken(), torch.zeros(6)
    cases = [
        (theirs.MultipleNegativesRankingLoss(model, scale=20.0), [a, p, n], none, ranking_loss(a, p, n)),
        (theirs.MultipleNegativesRankingLoss(model, scale=10.0), [a, p], none, ranking_loss(a, p, temperature=0.1)),
        (
            theirs.TripletLoss(model, TripletDistanceMetric.COSINE, 0.5), [a, p, n], none,
            triplet_loss(a, p, n, margin=0.5),
        ),
        (
            theirs.CosineSimilarityLoss(model), [a, p], torch.linspace(-1, 1, 6).double(),
            similarity_loss(a, p, torch.linspace(-1, 1, 6).double()),
        ),
    ]  # fmt: skip
    for loss, parts, labels, (total, count) in cases:
        assert total.item() / count == pytest.approx(ask(loss, parts, labels), rel=1e-10), type(loss).__name__


# --- gradient caching ------------------------------------------------------------------------------------------------


class Encoder(torch.nn.Module):
    """Means of token vectors through two layers and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(50, 12)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 6)
        )
        self.double()
        self.most = 0

    def forward(self, batch: Batch) -> torch.Tensor:
        self.most = max(self.most, len(batch.lengths))
        parts = [part.mean(0) for part in self.tokens(batch.tokens).split(batch.lengths.tolist())]
        return self.layers(torch.stack(parts))  # type: ignore[no-any-return]


def batches(sizes: Sequence[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    made, first = [], 0
    for size in sizes:
        lengths = torch.randint(1, 6, (size,), generator=generator).sort().values
        tokens = torch.randint(0, 50, (int(lengths.sum()),), generator=generator)
        made.append(Batch(tokens, lengths, None, None, torch.arange(first, first + size)))
        first += size
    return made


def seed(i: int) -> None:
    torch.manual_seed(mix(3, 11, i))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [[12], [5, 4, 3], [1] * 12])
def test_the_cached_gradient_is_that_of_the_large_batch(name: str, dropout: float, sizes: list[int]) -> None:
    loss, parts = LOSSES[name], batches(sizes)
    whole, cached = Encoder(dropout), Encoder(dropout)
    embeddings = []
    for i, part in enumerate(parts):
        seed(i)
        embeddings.append(whole(part))
    total, count = loss(torch.cat(embeddings))
    (total / count).backward()  # type: ignore[no-untyped-call]

    value, sequences, tokens = cached_backward(cached, parts, loss, None, seed)
    assert value == pytest.approx(total.item() / count, rel=1e-12)
    assert (sequences, tokens) == (12, sum(len(part.tokens) for part in parts))
    assert cached.most == max(sizes), "no more than one micro-batch is encoded at once"
    for (key, one), (_, other) in zip(whole.named_parameters(), cached.named_parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert float((one.grad - other.grad).abs().max()) <= 1e-10, key
        assert float(one.grad.abs().max()) > 0, key


def test_micro_batches_by_themselves_are_not_the_large_batch() -> None:
    """The reason for the cache: a ranking among four answers is not one among twelve."""
    sizes, loss = [4, 4, 4], LOSSES["labels"]
    cached, apart = Encoder(0.0), Encoder(0.0)
    cached_backward(cached, batches(sizes), loss, None, seed)
    for part in batches(sizes):
        total, _ = supervised_contrastive_loss(apart(part), torch.tensor([0, 1, 0, 1]))
        (total / 12).backward()
    assert cached.tokens.weight.grad is not None
    assert apart.tokens.weight.grad is not None
    assert float((cached.tokens.weight.grad - apart.tokens.weight.grad).abs().max()) > 1e-3


def test_units_are_what_the_sum_is_divided_by() -> None:
    once, halved = Encoder(0.0), Encoder(0.0)
    cached_backward(once, batches([6, 6]), LOSSES["ranking"], 4, seed)
    cached_backward(halved, batches([6, 6]), LOSSES["ranking"], 8, seed)
    assert once.tokens.weight.grad is not None
    assert halved.tokens.weight.grad is not None
    torch.testing.assert_close(once.tokens.weight.grad, 2 * halved.tokens.weight.grad, rtol=1e-12, atol=0)


def test_a_loss_that_is_no_number_stops_and_names_the_examples() -> None:
    encoder = Encoder(0.0)
    with pytest.raises(DivergenceError, match="ids \\[0, 1, 2"):
        cached_backward(encoder, batches([6, 6]), lambda e: (e.sum() * math.nan, 12), None, seed)
    assert encoder.tokens.weight.grad is None
