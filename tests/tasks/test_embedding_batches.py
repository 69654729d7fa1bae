"""The task of embeddings: what is a batch, and the gradient of one that is cut into micro-batches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesmith.data.batches import micro_batches
from finesmith.data.related import Related, groups
from finesmith.models.load import find, load_tokenizer
from finesmith.tasks.corpus import Contrast, Corpus
from finesmith.tasks.embedding_rows import laid_out
from finesmith.tasks.embeddings import Embeddings
from finesmith.train.step import backward

PAIRS = [
    ("good film one", "red card"), ("bad film two", "blue card late"), ("warm plot three", "green order"),
    ("cold plot four", "the bank is late"), ("dull scene five", "a refund"), ("great scene six", "the order was late"),
    ("good film one", "another order"), ("silly music seven", "red card"),
]  # fmt: skip


def corpus(kind: Any) -> Corpus:
    if kind == "labelled":
        texts = [text for pair in PAIRS for text in pair]
        rows = Related("labelled", {"text": tuple(texts)}, tuple("abca"[i % 4] for i in range(16)), tuple(texts))
    else:
        columns = {"text": tuple(a for a, _ in PAIRS), "text_pair": tuple(p for _, p in PAIRS)}
        if kind == "triplets":
            columns["negative"] = tuple(f"not {p}" for _, p in PAIRS)
        scores = tuple(0.5 * i for i in range(len(PAIRS))) if kind == "scored pairs" else None
        rows = Related(kind, columns, None, tuple(f"row {i}" for i in range(len(PAIRS))), scores=scores)
    return laid_out(rows, (), {}, None)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("pairs", Contrast()),
        ("triplets", Contrast(widths=(8, 16))),
        ("triplets", Contrast(loss="triplet", margin=0.4)),
        ("labelled", Contrast(temperature=0.1)),
        ("scored pairs", Contrast(widths=(8, 16))),
    ],
)
def test_micro_batches_have_the_gradient_of_the_batch(kind: Any, choices: Contrast, tiny_model: Path) -> None:
    base = find(str(tiny_model))
    task = Embeddings(kind, choices, (0.0, 5.0) if kind == "scored pairs" else None)
    network, _ = task.load(base, load_tokenizer(base), seed=0, dropout=0.0, dtype=torch.float64)
    rows = corpus(kind)
    encoded = task.encode(rows, network.tokenizer, 16)
    everything, ids = np.arange(len(rows)), np.arange(len(rows)) + 100
    found = []
    for size in (len(rows), 3, 1):
        network.module.zero_grad()
        parts = micro_batches(everything, encoded.rows.lengths(), size)
        batches = [task.batch(encoded, part, ids, 0, 0, "cpu") for part in parts]
        step = task.backward(network, nullcontext)
        loss, examples, tokens = step(
            lambda batch: task.loss(network, encoded, batch), batches, task.units(batches), lambda _: None
        )
        assert examples == len(rows)
        assert tokens == len(encoded.rows.tokens)
        gradients = {n: p.grad.clone() for n, p in network.module.named_parameters() if p.grad is not None}
        found.append((loss, gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-10)
        assert gradients.keys() == found[0][1].keys()
        # Vectors pass through float32 between the two passes nowhere.
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-8, atol=1e-10)
    assert max(float(gradient.abs().max()) for gradient in found[0][1].values()) > 1e-4


def test_an_ordinary_sum_over_micro_batches_is_another_gradient(tiny_model: Path) -> None:
    """The reason for the hook: a ranking among one answer has no loss at all."""
    base = find(str(tiny_model))
    task = Embeddings("pairs", Contrast())
    network, _ = task.load(base, load_tokenizer(base), seed=0, dtype=torch.float64)
    rows = corpus("pairs")
    encoded = task.encode(rows, network.tokenizer, 16)
    batches = [task.batch(encoded, np.asarray([row]), np.arange(len(rows)), 0, 0, "cpu") for row in range(len(rows))]
    loss, _, _ = backward(lambda batch: task.loss(network, encoded, batch), batches, len(rows), lambda _: None)
    assert loss == 0.0


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_every_row_comes_once_in_the_batches_that_follow_each_other(kind: Any, tiny_model: Path) -> None:
    task = Embeddings(kind, Contrast())
    rows = corpus(kind)
    encoded = task.encode(rows, load_tokenizer(find(str(tiny_model))), 16)
    usable = {row for row in range(len(rows)) if kind == "pairs" or rows.labels.count(rows.labels[row]) > 1}  # type: ignore[union-attr]
    step = 0
    for _ in range(4):
        seen: list[int] = []
        while len(seen) < len(usable):
            seen += task.order(encoded, 4, 1, step).tolist()
            step += 1
        assert sorted(seen) == sorted(usable)
    fresh = task.encode(rows, load_tokenizer(find(str(tiny_model))), 16)
    for late in (step - 1, 0, step // 2):
        assert (task.order(fresh, 4, 1, late) == task.order(encoded, 4, 1, late)).all()
    texts = [set(rows.texts[row].split("\n")) for row in range(len(rows))]
    for at in range(step if kind == "pairs" else 0):
        batch = task.order(encoded, 4, 1, at).tolist()
        assert len(set().union(*(texts[row] for row in batch))) == 2 * len(batch)


def test_validation_loss_is_that_of_a_batch_of_the_same_rows(tiny_model: Path) -> None:
    base = find(str(tiny_model))
    task = Embeddings("triplets", Contrast(batch_size=64))
    network, _ = task.load(base, load_tokenizer(base), seed=0, dropout=0.0)
    rows = task.take(corpus("triplets"), range(6))
    encoded = task.encode(rows, network.tokenizer, 16)
    network.module.eval()
    batch = task.batch(encoded, np.arange(6), np.arange(6), 0, 0, "cpu")
    loss, count = task.loss(network, encoded, batch)
    assert count == 6
    assert task.predict(network, encoded).loss == pytest.approx(float(loss.detach()) / 6, rel=1e-4)


def test_pairs_that_share_a_text_hang_together() -> None:
    anchors = ("where is my new card now", "a", "where is my new card", "b", "alone", "c")
    positives = ("x", "it comes soon", "y", "It  comes soon", "z", "alone too")
    rows = Related("pairs", {"text": anchors, "text_pair": positives}, None, ("w",) * 6)
    found = groups(rows)
    assert found is not None
    assert found[0] == found[2], "near copies of one anchor"
    assert found[1] == found[3], "one positive"
    assert len(set(found)) == 4
    assert groups(rows.take([0, 1, 4])) is None
