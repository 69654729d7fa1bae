"""How often the verdict says "better" when nothing is, and when the gain is the one it said it could show.

    python bench/verdict_calibration.py [--runs 200] [--resamples 1000]

Every run draws a fresh test set and two models' synthetic predictions, correlated as real models' are: a share of the
rows is answered alike by both, the rest independently. With `edge` = 0 the models are equally good (A/A). For power,
`edge` is raised until the true gain (on 200,000 rows) equals the mean smallest detectable gain that runs state.
Prints two tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from finesmith.evaluate.metrics import HIGHER_IS_BETTER, measure
from finesmith.evaluate.statistics import paired
from finesmith.evaluate.verdict import judge


@dataclass(frozen=True)
class Scenario:
    metric: str
    rows: int
    alike: float
    classes: int = 2
    accuracy: float = 0.75
    rare: bool = False
    constant: bool = False

    @property
    def kind(self) -> str:
        return "number" if self.metric in ("rmse", "r2", "spearman") else "single"

    def __str__(self) -> str:
        rival = "constant" if self.constant else "model"
        return f"{self.metric:10} {self.rows:4} {self.alike:5} {self.classes:7} {rival:8}"


def draw(scenario: Scenario, rng: np.random.Generator, edge: float = 0.0, rows: int | None = None) -> tuple[Any, ...]:
    """Return (targets, tuned, baseline) of one run; with probability `edge` the tuned model mends an own mistake.

    A constant baseline is the mean, or the commonest class: it shares no answers.
    """
    n = rows or scenario.rows
    alike = rng.random(n) < scenario.alike
    if scenario.kind == "number":
        targets = rng.normal(size=n)
        shared, own, other = rng.standard_t(8, size=(3, n))
        common = np.sqrt(scenario.alike) * shared
        rest = np.sqrt(1 - scenario.alike)
        baseline = np.zeros(n) if scenario.constant else targets + common + rest * other
        return targets, targets + common + (1 - edge) * rest * own, baseline
    prior = np.ones(scenario.classes)
    prior[0] = 6.0 if scenario.rare else 1.0
    prior /= prior.sum()
    targets = rng.choice(scenario.classes, size=n, p=prior)

    def answers(mend: float) -> np.ndarray:
        wrong = rng.random(n) > scenario.accuracy
        wrong &= rng.random(n) >= mend
        slip = (targets + rng.integers(1, scenario.classes, size=n)) % scenario.classes
        return np.where(wrong, slip, targets)

    both = answers(0.0)
    eye = np.eye(scenario.classes) * 0.8 + 0.2 / scenario.classes
    tuned, other = (np.where(alike, both, own) for own in (answers(edge), answers(0.0)))
    return targets, eye[tuned], np.tile(prior, (n, 1)) if scenario.constant else eye[other]


def verdict(scenario: Scenario, seed: int, edge: float = 0.0, resamples: int = 1000) -> Any:
    rng = np.random.default_rng([seed, scenario.rows, int(1000 * scenario.alike)])
    targets, tuned, baseline = draw(scenario, rng, edge)
    return judge(
        task="synthetic",
        kind=scenario.kind,
        metric=scenario.metric,
        targets=targets,
        tuned=tuned,
        baselines={"baseline": baseline},
        against="baseline",
        seed=seed,
        resamples=resamples,
    )


def true_gain(scenario: Scenario, edge: float) -> float:
    targets, tuned, baseline = draw(scenario, np.random.default_rng(7), edge, rows=200_000)
    values = [measure(scenario.kind, targets, p)[scenario.metric] for p in (tuned, baseline)]
    return (values[0] - values[1]) * (1 if HIGHER_IS_BETTER[scenario.metric] else -1)


def stated_gain(scenario: Scenario, edge: float, pilots: int = 24) -> float:
    """Return the mean over pilot runs of the smallest detectable gain that a verdict states."""
    higher = HIGHER_IS_BETTER[scenario.metric]
    rngs = [np.random.default_rng([99, pilot]) for pilot in range(pilots)]
    stated = [
        paired(scenario.kind, scenario.metric, *draw(scenario, rng, edge), higher, resamples=1).smallest_detectable
        for rng in rngs
    ]
    return float(np.mean([value for value in stated if value is not None]))


def matching_edge(scenario: Scenario) -> float | None:
    """Return the edge whose true gain is the stated one, by bisection; None where no edge reaches it."""
    low, high = 0.0, 1.0
    if true_gain(scenario, high) < stated_gain(scenario, high):
        return None
    for _ in range(7):
        middle = (low + high) / 2
        if true_gain(scenario, middle) < stated_gain(scenario, middle):
            low = middle
        else:
            high = middle
    return high


EQUAL = [
    Scenario(metric, rows, alike, classes, accuracy, rare)
    for metric, classes, accuracy, rare in (
        ("accuracy", 2, 0.75, False),
        ("accuracy", 2, 0.95, False),
        ("macro_f1", 2, 0.75, True),
        ("macro_f1", 8, 0.7, False),
        ("rmse", 2, 0.75, False),
    )
    for rows in (60, 300, 2000)
    for alike in (0.3, 0.8)
]
POWERED = [
    Scenario("accuracy", 60, 0.2, 2, 0.6),
    Scenario("accuracy", 300, 0.6),
    Scenario("accuracy", 2000, 0.8, 2, 0.85),
    Scenario("macro_f1", 100, 0.2, 3, 0.6),
    Scenario("macro_f1", 300, 0.5, 2, 0.75, rare=True),
    Scenario("macro_f1", 2000, 0.7, 8, 0.7),
    Scenario("rmse", 60, 0.3),
    Scenario("rmse", 2000, 0.7),
    Scenario("macro_f1", 60, 0.0, 2, 0.8, rare=True, constant=True),
    Scenario("macro_f1", 300, 0.0, 2, 0.7, rare=True, constant=True),
    Scenario("mcc", 150, 0.0, 2, 0.7, rare=True, constant=True),
    Scenario("rmse", 60, 0.0, constant=True),
    Scenario("r2", 60, 0.0, constant=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    started = time.perf_counter()
    print(f"A/A: {options.runs} runs a line\n{'metric':10} rows alike classes rival     better   worse")
    equal = []
    for scenario in EQUAL:
        runs = [verdict(scenario, seed, 0.0, options.resamples) for seed in range(options.runs)]
        better = float(np.mean([run.better for run in runs]))
        significant = float(np.mean([run.comparison.p_value < 0.05 for run in runs]))
        equal.append((better, significant))
        print(f"{scenario} {better:7.3f} {significant - better:7.3f}", flush=True)
    print(f"\nPower at the stated gain\n{'metric':10} rows alike classes rival       gain  better")
    powers = []
    for scenario in POWERED:
        edge = matching_edge(scenario)
        if edge is None:
            print(f"{scenario}  no edge reaches the stated gain")
            continue
        runs = [verdict(scenario, seed, edge, options.resamples) for seed in range(options.runs)]
        powers.append(float(np.mean([run.better for run in runs])))
        print(f"{scenario} {true_gain(scenario, edge):7.3f} {powers[-1]:7.3f}", flush=True)
    result = {
        "runs": options.runs,
        "equal_better_mean": round(float(np.mean([b for b, _ in equal])), 4),
        "equal_better_worst": round(max(b for b, _ in equal), 4),
        "equal_significant_mean": round(float(np.mean([s for _, s in equal])), 4),
        "power_mean": round(float(np.mean(powers)), 4),
        "power_worst": round(min(powers), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
