"""The verdict is calibrated, its sentences are English, and its JSON has the promised keys."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from finesmith.errors import DataError
from finesmith.evaluate.statistics import Comparison
from finesmith.evaluate.verdict import Standing, conclude, judge, overfitting
from finesmith.types import Score


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "verdict_calibration.py"
    spec = importlib.util.spec_from_file_location("verdict_calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_of_200_equal_models_at_most_five_percent_are_called_better(bench: ModuleType) -> None:
    runs = [bench.verdict(bench.EQUAL[seed % len(bench.EQUAL)], seed, 0.0, resamples=300) for seed in range(200)]
    assert np.mean([run.better for run in runs]) <= 0.05
    assert np.mean([run.comparison.p_value < 0.05 for run in runs]) <= 0.08


@pytest.mark.parametrize(
    "choice",
    [0, 3, 6, 8, 10, 11],
    ids=["accuracy 60", "macro_f1 100", "rmse 60", "macro_f1 60 constant", "mcc 150 constant", "rmse 60 constant"],
)
def test_a_true_gain_of_the_stated_size_is_called_better(bench: ModuleType, choice: int) -> None:
    scenario = bench.POWERED[choice]
    edge = bench.matching_edge(scenario)
    runs = [bench.verdict(scenario, seed, edge, resamples=200) for seed in range(200)]
    # 0.8 is promised; one standard error of 200 runs is 0.028
    assert np.mean([run.better for run in runs]) >= 0.8 - 0.028


def simple(metric: str = "accuracy", seed: int = 0, lift: float = 0.15, rows: int = 400, **options: object):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, rows)

    def answers(accuracy: float) -> np.ndarray:
        return np.eye(2)[np.where(rng.random(rows) < accuracy, targets, 1 - targets)] * 0.8 + 0.1

    return judge(
        task="classification",
        kind="single",
        metric=metric,
        targets=targets,
        tuned=answers(0.7 + lift),
        baselines={"majority": np.tile([0.45, 0.55], (rows, 1)), "TF-IDF + logistic regression": answers(0.7)},
        against="TF-IDF + logistic regression",
        baseline_seconds={"majority": 0.0, "TF-IDF + logistic regression": 2.0},
        tuned_seconds=800.0,
        resamples=300,
        **options,
    )


def test_json_has_the_promised_keys_and_plain_values() -> None:
    before = overfitting([], 0.9, 0.84, "accuracy")
    verdict = simple(overfitting=before)
    content = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert list(content) == [
        "task", "metric", "test_size", "baselines", "tuned", "gain", "smallest_detectable", "overfitting", "better",
        "conclusion",
    ]  # fmt: skip
    assert [baseline["name"] for baseline in content["baselines"]] == ["majority", "TF-IDF + logistic regression"]
    assert content["test_size"] == 400
    assert content["better"] is True
    assert set(content["gain"]) == {"value", "interval", "p_value", "against", "test"}
    assert content["gain"]["test"] == "exact McNemar"
    assert content["gain"]["value"] == pytest.approx(content["tuned"]["value"] - content["baselines"][1]["value"])
    assert set(content["overfitting"]) == {
        "metric", "train", "validation", "gap", "began_at_step", "severity", "sentence",
    }  # fmt: skip
    assert content["conclusion"].startswith("Fine-tuning helps: accuracy 0.8")
    assert content["conclusion"].endswith("p < 0.001).")
    assert simple().to_json() == simple().to_json()


def test_groups_reach_the_test() -> None:
    assert simple(groups=[row // 4 for row in range(400)]).comparison.test == "paired sign-flip"


def test_worse_is_said() -> None:
    verdict = simple(lift=-0.15)
    assert verdict.conclusion.startswith("Fine-tuning is worse than TF-IDF + logistic regression: accuracy 0.5")
    assert not verdict.better


def test_equal_answers_are_no_proof_of_equality() -> None:
    targets = np.arange(40) % 2
    same = np.eye(2)[targets] * 0.8 + 0.1
    verdict = judge(
        task="t", kind="single", metric="macro_f1", targets=targets, tuned=same, baselines={"b": same}, against="b"
    )
    assert verdict.conclusion == (
        "No difference shown: macro-F1 1.000 against 1.000 for b on 40 unseen examples (gain 0.000, 95 % interval "
        "0.000 to 0.000, p = 1.000); this test set cannot tell models with such equal answers apart."
    )


def sentence(gain: float, low: float, high: float, p: float, smallest: float | None, **options: object) -> str:
    metric = str(options.get("metric", "accuracy"))
    base = float(options.get("base", 0.771))
    sign = -1 if metric in ("rmse", "log_loss") else 1
    tuned = Standing("fine-tuned", Score(base + sign * gain), options.get("tuned_seconds", 800.0))
    rival = Standing("TF-IDF", Score(base), options.get("seconds", 2.0))
    return conclude(metric, tuned, rival, Comparison(gain, low, high, p, "exact McNemar", smallest), 1066)


def test_sentences() -> None:
    assert sentence(0.075, 0.051, 0.099, 0.0001, 0.03) == (
        "Fine-tuning helps: accuracy 0.846 against 0.771 for TF-IDF on 1,066 unseen examples "
        "(gain 0.075, 95 % interval 0.051 to 0.099, p < 0.001)."
    )
    assert sentence(-0.004, -0.02, 0.012, 0.7, 0.03) == (
        "Fine-tuning did not help: TF-IDF is as good and 400 times cheaper: accuracy 0.767 against 0.771 for TF-IDF "
        "on 1,066 unseen examples (gain -0.004, 95 % interval -0.020 to 0.012, p = 0.700)."
    )
    assert sentence(0.02, -0.03, 0.07, 0.4, 0.06, seconds=None) == (
        "No difference shown: accuracy 0.791 against 0.771 for TF-IDF on 1,066 unseen examples (gain 0.020, 95 % "
        "interval -0.030 to 0.070, p = 0.400); this test set could only have shown a gain of 0.060 or more."
    )
    assert sentence(0.1, 0.02, 0.2, 0.01, 0.1, metric="rmse", base=1.2).startswith(
        "Fine-tuning helps: RMSE (lower is better) 1.100 against 1.200 for TF-IDF"
    )
    money = sentence(1500.0, -20.0, 3000.0, 0.06, 4000.0, metric="rmse", base=52_000.0, tuned_seconds=7.0)
    assert "RMSE (lower is better) 50,500 against 52,000" in money
    assert money.endswith("a gain of 4,000 or more; TF-IDF is 3.5 times cheaper.")
    assert "p = 0.04990)" in sentence(0.03, 0.001, 0.06, 0.0499, 0.04)
    assert "cheaper" not in sentence(0.0, -0.01, 0.01, 0.9, 0.03, tuned_seconds=1.0)


def test_an_interval_without_0_is_not_passed_over_and_no_limit_is_claimed_that_the_gain_exceeds() -> None:
    told = sentence(0.286, 0.125, 0.461, 0.262, 0.254, metric="macro_f1", base=0.45, seconds=None)
    assert told == (
        "No difference shown: macro-F1 0.736 against 0.450 for TF-IDF on 1,066 unseen examples (gain 0.286, 95 % "
        "interval 0.125 to 0.461, p = 0.262); the interval excludes 0, but the stricter paired test does not reject "
        "(p = 0.262); this test set shows a true difference of 0.254 about four times in five, yet did not show this "
        "larger one: more test examples are needed to tell."
    )
    inside = sentence(0.2, 0.01, 0.4, 0.1, 0.3)
    assert "the interval excludes 0, but the stricter paired test does not reject (p = 0.100)" in inside
    assert "could only have shown a gain of 0.300 or more" in inside
    negligible = sentence(-0.01, -0.019, -0.001, 0.06, 0.03)
    assert negligible.startswith("Fine-tuning did not help")
    assert negligible.endswith("the interval excludes 0, but the stricter paired test does not reject (p = 0.060).")
    assert "excludes" not in sentence(0.03, 0.001, 0.06, 0.01, 0.04)


def test_a_gain_over_the_majority_is_not_said_to_be_showable_when_it_is_not(bench: ModuleType) -> None:
    """Macro-F1 on 60 rows, 15 percent positive: the smallest gain came from the laxer of the two tests (0.23)."""
    runs, higher = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        targets = (rng.random(60) < 0.15).astype(int)
        answers = np.where(rng.random(60) < 0.85, targets, 1 - targets)
        run = judge(
            task="t", kind="single", metric="macro_f1", targets=targets, tuned=np.eye(2)[answers] * 0.8 + 0.1,
            baselines={"majority": np.tile([0.85, 0.15], (60, 1))}, against="majority", seed=seed, resamples=200,
        )  # fmt: skip
        runs.append(run)
        higher += run.comparison.gain > run.comparison.smallest_detectable and not run.better
    # The true gain, 0.31, is shown in about three runs of ten.
    assert np.mean([run.better for run in runs]) < 0.5
    assert np.mean([run.comparison.smallest_detectable for run in runs]) > 0.36
    assert higher == 0


def test_what_cannot_be_judged_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of accuracy, macro_f1"):
        simple(metric="rmse")
    with pytest.raises(ValueError, match="there are a"):
        judge(
            task="t", kind="number", metric="mae", targets=np.arange(9.0), tuned=np.arange(9.0),
            baselines={"a": np.zeros(9)}, against="b",
        )  # fmt: skip
    with pytest.raises(DataError, match="Spearman correlation is undefined for a on the 9 test rows"):
        judge(
            task="t", kind="number", metric="spearman", targets=np.arange(9.0), tuned=np.arange(9.0),
            baselines={"a": np.zeros(9)}, against="a",
        )  # fmt: skip


def evaluations(train: list[float], validation: list[float]) -> list[dict[str, float | None]]:
    return [
        {"step": 100 * (i + 1), "train_loss": a, "validation_loss": b, "value": 0.8}
        for i, (a, b) in enumerate(zip(train, validation, strict=True))
    ]


def test_overfitting_begins_where_validation_loss_turns() -> None:
    found = overfitting(evaluations([0.6, 0.4, 0.2, 0.1], [0.5, 0.41, 0.47, 0.55]), 0.99, 0.83, "accuracy")
    assert found.began_at_step == 200
    assert found.severity == "strong"
    assert found.gap == pytest.approx(0.16)
    assert found.sentence == (
        "Strong overfitting: accuracy 0.990 on train against 0.830 on validation; after step 200 validation loss rose "
        "from 0.410 to 0.550 while training loss fell."
    )


def test_no_overfitting_where_both_fall_or_training_diverged() -> None:
    falling = overfitting(evaluations([0.6, 0.4, 0.3], [0.6, 0.5, 0.45]), 0.85, 0.84, "accuracy")
    assert (falling.began_at_step, falling.severity) == (None, "none")
    assert falling.sentence.startswith("No overfitting to speak of: accuracy 0.850")
    diverged = overfitting(evaluations([0.4, 0.5, 0.9], [0.5, 0.7, 0.9]), 0.6, 0.6, "accuracy")
    assert diverged.began_at_step is None
    assert overfitting([{"step": 1, "train_loss": 0.3, "validation_loss": None}], 0.5, 1.0, "rmse").gap == 0.5
    assert overfitting([], 0.9, 1.0, "rmse").severity == "mild"
