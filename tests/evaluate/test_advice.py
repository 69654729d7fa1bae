"""Each piece of advice follows from what a run showed, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finesmith.evaluate.advice import Evidence, advise

CALM = Evidence(
    method="full", epochs=2, learning_rate=1e-4, examples=5000, test_size=1000, train=0.9, validation=0.88,
    severity="none", last_is_best=False, stopped_early=False, rose=False, features_gap=0.05,
    smallest_detectable=0.02, gain=0.06, seed=4,
)  # fmt: skip


def first(**shown: object) -> dict[str, object]:
    return dict(advise(replace(CALM, **shown))[0].changes)


@pytest.mark.parametrize(
    ("shown", "changes"),
    [
        ({}, {"train.seed": 5}),
        ({"last_is_best": True}, {"train.epochs": 4}),
        ({"features_gap": -0.01}, {"method.name": "head_then_full", "train.learning_rate": 3.3e-5}),
        ({"severity": "strong"}, {"method.name": "lora", "train.learning_rate": None}),
        ({"severity": "strong", "method": "lora"}, {"train.epochs": 1.0, "train.learning_rate": 5e-5}),
        ({"method": "features"}, {"method.name": "full"}),
        ({"imbalance": 9.0}, {"train.class_weights": "balanced", "evaluate.metric": "macro_f1"}),
        ({"truncated_share": 0.2, "max_length": 128, "model_limit": 512}, {"data.max_length": 256}),
        ({"gain": -0.03}, {"train.learning_rate": "auto"}),
        ({"overconfidence": 0.2}, {"train.label_smoothing": 0.1}),
    ],
)
def test_what_stands_out_decides_what_to_try(shown: dict[str, object], changes: dict[str, object]) -> None:
    assert first(**shown) == changes


@pytest.mark.parametrize(
    "shown",
    [
        {"last_is_best": True, "stopped_early": True},
        {"last_is_best": True, "rose": True},
        {"overconfidence": -0.4},
        {"overconfidence": 0.2, "label_smoothing": 0.1},
        {"truncated_share": 0.2, "max_length": 512, "model_limit": 512},
        {"imbalance": 9.0, "class_weights": "balanced"},
        {"imbalance": 9.0, "task": "multi-label"},
    ],
)
def test_what_cannot_help_is_not_advised(shown: dict[str, object]) -> None:
    assert first(**shown) == {"train.seed": 5}


def test_a_test_split_too_small_to_show_the_gain_is_said() -> None:
    advice = advise(replace(CALM, gain=0.01, smallest_detectable=0.09))
    assert "0.090" in advice[0].why
    assert not advice[0].changes, "more labels are needed; another cut of the same rows would test on rows seen before"
    assert dict(advice[-1].changes) == {"train.seed": 5}
