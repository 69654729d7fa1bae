"""Tasks: losses against torch and formulas, labels there and back, and a new task in one file."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finesmith import tasks
from finesmith.errors import DataError, UserError
from finesmith.tasks.classification import Classification, label_name, label_order
from finesmith.tasks.losses import sigmoid_loss, softmax_loss, squared_loss
from finesmith.tasks.multi_label import MultiLabel, parse
from finesmith.tasks.protocol import LabelColumn, Options, Task
from finesmith.tasks.regression import Regression

B, C = 40, 5


def where(count: int) -> list[str]:
    return [f"data.csv row {i + 1}" for i in range(count)]


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return (3 * torch.randn(B, C, dtype=torch.float64)).requires_grad_()


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, C, B))


WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)


def same_with_gradient(found: torch.Tensor, expected: torch.Tensor, logits: torch.Tensor) -> None:
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    (one,) = torch.autograd.grad(found, logits, retain_graph=True)
    (other,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (WEIGHTS, 0.0), (None, 0.3)])
def test_classes_equal_torch(weights: Any, smoothing: float, logits: torch.Tensor, targets: torch.Tensor) -> None:
    found = softmax_loss(logits, targets, weights_C=weights, smoothing=smoothing, focal_gamma=None)
    expected = cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum")
    same_with_gradient(found, expected, logits)


def test_weights_scale_the_smoothed_loss_of_whole_examples(logits: torch.Tensor, targets: torch.Tensor) -> None:
    found = softmax_loss(logits, targets, weights_C=WEIGHTS, smoothing=0.3, focal_gamma=None)
    each = cross_entropy(logits, targets, label_smoothing=0.3, reduction="none")
    same_with_gradient(found, (each * WEIGHTS[targets]).sum(), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_equals_its_formula(gamma: float, logits: torch.Tensor, targets: torch.Tensor) -> None:
    found = softmax_loss(logits, targets, weights_C=WEIGHTS, smoothing=0.0, focal_gamma=gamma)
    p = logits.softmax(-1)[torch.arange(B), targets]
    same_with_gradient(found, -(WEIGHTS[targets] * (1 - p) ** gamma * p.log()).sum(), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_loss_stays_finite_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[60.0, -60.0], [-200.0, 200.0], [80.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 0, 0])
    loss = softmax_loss(logits, targets, weights_C=None, smoothing=0.0, focal_gamma=gamma)
    many = sigmoid_loss(logits, torch.eye(2)[targets], positive_C=None, smoothing=0.0, focal_gamma=gamma)
    (gradient,) = torch.autograd.grad(loss + many, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("positive", [None, WEIGHTS])
def test_independent_labels_equal_torch(positive: Any, smoothing: float, logits: torch.Tensor) -> None:
    marks = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (B, C))).double()
    found = sigmoid_loss(logits, marks, positive_C=positive, smoothing=smoothing, focal_gamma=None)
    soft = marks * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(logits, soft, pos_weight=positive, reduction="none").mean(1).sum()
    same_with_gradient(found, expected, logits)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_of_independent_labels_equals_its_formula(gamma: float, logits: torch.Tensor) -> None:
    marks = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (B, C))).double()
    found = sigmoid_loss(logits, marks, positive_C=None, smoothing=0.0, focal_gamma=gamma)
    p = torch.where(marks > 0, logits.sigmoid(), (-logits).sigmoid())
    same_with_gradient(found, -((1 - p) ** gamma * p.log()).mean(1).sum(), logits)


def test_squared_loss_equals_torch() -> None:
    outputs, values = torch.randn(B, 1, dtype=torch.float64), torch.randn(B, dtype=torch.float64)
    expected = torch.nn.functional.mse_loss(outputs[:, 0], values, reduction="sum")
    assert float(squared_loss(outputs, values)) == pytest.approx(float(expected))


def test_balanced_weights_average_one_over_the_training_examples(logits: torch.Tensor) -> None:
    labels = ["a"] * 30 + ["b"] * 6 + ["c"] * 4
    task = Classification.learn(labels, Options(class_weights="balanced"))
    found = task.loss(logits[:, :3], task.tensor(task.encode(labels, where(40))))
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=np.array(labels))
    expected = cross_entropy(
        logits[:, :3], task.tensor(task.encode(labels, where(40))), weight=torch.tensor(weights), reduction="sum"
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "1"), (1.0, "1"), (np.float64(2.0), "2"), (1.5, "1.5"), (" spam ", "spam"), (True, "True"), (-0.0, "0")],
)
def test_names_of_raw_labels(value: Any, name: str) -> None:
    assert label_name(value) == name


def test_numbers_are_ordered_by_value_and_words_by_alphabet() -> None:
    assert label_order({"10", "9", "-1", "2.5"}) == ("-1", "2.5", "9", "10")
    assert label_order({"b", "10", "9"}) == ("10", "9", "b")
    assert label_order({"nan", "2", "inf"}) == ("2", "inf", "nan"), "words, although Python reads them as numbers"


def test_the_order_of_labels_does_not_change_between_processes() -> None:
    """Names of equal value, or none, were once ordered as a set's hashes fall, which differ in every process."""
    program = (
        "from finesmith.tasks.classification import label_order as f;"
        "print(f({'1', '01', '001', '+1'}), f({'nan', '1', '2', '3'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(found) == 1


NAMES = st.lists(st.text("abcdefg ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, unique=True)


@given(NAMES.map(lambda names: list({" ".join(n.split()): n for n in names}.values())).filter(lambda n: len(n) > 1))
def test_classes_there_and_back(names: list[str]) -> None:
    labels = names[:8] * 3
    task = Classification.learn(labels, Options())
    targets = task.encode(labels, where(len(labels)))
    assert targets.dtype == np.float64
    assert task.decode(targets) == labels
    assert set(task.head.labels or ()) == set(labels)
    again = tasks.restore(json.loads(json.dumps(task.state)))
    assert again == task
    assert again.encode(labels, where(len(labels))).tolist() == targets.tolist()


@pytest.mark.parametrize(
    "labels", [[0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0], [True, False, True, False], ["0", "1", "1", "0"]], ids=str
)
def test_numbers_and_truth_values_are_labels(labels: list[Any]) -> None:
    task = Classification.learn(labels, Options())
    assert task.names == (("False", "True") if labels[0] is True else ("0", "1"))
    assert task.counts == (2, 2)
    expected = [1, 0, 1, 0] if labels[0] is True else [0, 1, 1, 0]
    assert task.encode(labels, where(4)).tolist() == expected


def test_whole_numbers_read_as_floats_are_the_same_labels() -> None:
    """A column with one empty cell is read as floats: 1.0 in one file is 1 in another."""
    task = Classification.learn([1, 2, 3], Options())
    assert task.encode([1.0, 3.0, "2"], where(3)).tolist() == [0, 2, 1]


def test_unknown_labels_name_their_places() -> None:
    task = Classification.learn(["ham", "spam"], Options())
    with pytest.raises(DataError) as caught:
        task.encode(["ham", "eggs", "spam", "x" * 900], where(4))
    message = str(caught.value)
    assert "2 labels are not among those of the training data" in message
    assert "'eggs' at data.csv row 2" in message
    assert "data.csv row 4" in message
    assert "'ham', 'spam'" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "pair", [("Spam", "spam"), ("a  b", "a b"), ("caf\u00e9", "cafe\u0301"), ("1", "1.0"), ("2.5", "2.50")], ids=str
)
@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_labels_that_look_alike_are_refused(kind: str, pair: tuple[str, str]) -> None:
    rows: list[Any] = [*pair, *pair, "other"]
    with pytest.raises(DataError, match="would be learnt as two"):
        tasks.get(kind).learn([[row] for row in rows] if kind == "multi-label" else rows, Options())


@pytest.mark.parametrize("pair", [("10", "1"), ("1.05", "1.5"), ("C", "C++"), ("100", "1")])
def test_labels_that_differ_are_not_taken_for_alike(pair: tuple[str, str]) -> None:
    assert set(Classification.learn([*pair] * 3, Options()).names) == set(pair)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 9, "only the label 'a' in 9 examples"),
        ([], "no labels in 0 examples"),
        ([f"text {i}" for i in range(100)], "hardly a set of classes"),
    ],
)
def test_columns_that_hold_no_classes_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classification.learn(labels, Options())


@pytest.mark.parametrize(
    ("value", "separator", "expected"),
    [
        ("a|b", "|", ["a", "b"]),
        (" a | b |", "|", ["a", "b"]),
        ("a|b", None, ["a|b"]),
        ("", "|", []),
        (None, "|", []),
        (["b", "a", "b"], None, ["b", "a"]),
        ([1, 2.0], None, ["1", "2"]),
        ((), None, []),
        (3, None, ["3"]),
    ],
)
def test_cells_of_several_labels(value: Any, separator: str | None, expected: list[str]) -> None:
    assert parse(value, separator) == expected


@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True), min_size=1, max_size=9).filter(any))
def test_label_lists_there_and_back(rows: list[list[str]]) -> None:
    joined = [";".join(row) for row in rows]
    task = MultiLabel.learn(joined, Options(separator=";"))
    targets = task.encode(joined, where(len(rows)))
    assert [set(found) for found in task.decode(targets)] == [set(row) for row in rows]
    assert task.counts == tuple(sum(name in row for row in rows) for name in task.names)
    assert tasks.restore(json.loads(json.dumps(task.state))) == task
    with pytest.raises(DataError, match=r"'zebra' at data.csv row 1"):
        task.encode(["zebra"], where(1))


def test_no_labels_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no training example carries a label"):
        MultiLabel.learn(["", None, []], Options(separator=","))


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_numbers_there_and_back(values: list[int]) -> None:
    task = Regression.learn(values, Options())
    targets = task.encode([str(v) for v in values], where(len(values)))
    assert task.decode(targets) == values
    standard = task.tensor(targets).double()
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(task.outputs(standard.numpy()[:, None]), targets, rtol=1e-4, atol=1e-3)
    assert tasks.restore(json.loads(json.dumps(task.state))) == task
    assert task.plain_loss(np.full(len(values), np.mean(values)), targets) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[0.1] * 7, [3, 3, 3], []])
def test_numbers_that_do_not_differ_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="training values are equal"):
        Regression.learn(values, Options())


def test_numbers_beyond_arithmetic_are_refused() -> None:
    with pytest.raises(DataError, match="too far or too near for arithmetic"):
        Regression.learn([1.0, 1e300, -1e308], Options())


@pytest.mark.parametrize("value", ["good", None, "nan", float("inf"), [1]])
def test_labels_that_are_no_numbers_name_their_places(value: Any) -> None:
    task = Regression.learn([1, 2], Options())
    with pytest.raises(DataError, match=r"1 labels are not numbers: .* at data.csv row 2"):
        task.encode([1, value, 3], where(3))


def test_what_is_left_of_a_rescaling() -> None:
    task = Regression.learn([10, 20], Options())
    assert task.rescaling == (5.0, 15.0)
    assert task.rescaled(1.0, 0.0).outputs(np.array([[3.0]])).tolist() == [3.0]
    with pytest.raises(NotImplementedError):
        Classification.learn(["a", "b"], Options()).rescaled(1, 0)


LEARNT: dict[str, tuple[Task, list[Any]]] = {
    "classification": (Classification.learn(["a", "b", "c"] * 4, Options()), ["a", "b", "c"] * 4),
    "multi-label": (MultiLabel.learn(["a|b", "b", "", "a"] * 3, Options(separator="|")), ["a|b", "b", "", "a"] * 3),
    "regression": (Regression.learn(list(range(12)), Options()), list(range(12))),
}


@pytest.mark.parametrize("name", LEARNT)
def test_every_task_keeps_its_contract(name: str) -> None:
    task, labels = LEARNT[name]
    targets = task.encode(labels, where(12))
    logits = np.random.default_rng(0).normal(size=(12, task.head.outputs))
    outputs = task.outputs(logits)
    assert outputs.dtype == np.float64
    assert set(task.scores(targets, outputs)) == set(task.metrics)
    assert task.default_metric in task.metrics
    assert all(math.isfinite(value) for value in task.scores(targets, outputs).values())
    columns = task.columns(outputs)
    assert all(len(column) == 12 for column in columns.values())
    assert "prediction" in columns
    assert len(task.strata(labels)) == 12
    json.dumps([task.state, task.details(targets, outputs), task.summary(targets), columns])
    assert tasks.get(name) is type(task)
    # The plain loss is the training loss without options, as a mean over examples.
    summed = task.loss(torch.from_numpy(logits), task.tensor(targets))
    assert float(summed) / 12 == pytest.approx(task.plain_loss(outputs, targets), rel=1e-5)


def test_metrics_that_are_undefined_are_left_out() -> None:
    task = LEARNT["classification"][0]
    found = task.scores(np.zeros(3), np.full((3, 3), 1 / 3))
    assert "auroc" not in found
    assert "accuracy" in found


def test_zero_shot_answers_follow_similarity_and_bare_numbers_have_none() -> None:
    similarity = np.array([[0.9, 0.1], [0.2, 0.3]])
    found = Classification.learn(["cats", "dogs"], Options()).zero_shot(similarity)
    assert found is not None
    assert found.argmax(1).tolist() == [0, 1]
    assert found.sum(1) == pytest.approx([1, 1])
    assert Classification.learn([0, 1], Options()).zero_shot(similarity) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("category", "classification"), ("boolean", "classification"), ("constant", "classification"),
        ("number", "regression"), ("rating", "regression"), ("list", "multi-label"),
    ],
)  # fmt: skip
def test_the_label_column_chooses_the_task(kind: str, name: str) -> None:
    task, reason = tasks.choose(LabelColumn("target", kind, 3, 100, "|"))
    assert task.name == name
    assert "'target'" in reason


def test_a_column_that_fits_no_task_lists_the_choices() -> None:
    with pytest.raises(DataError, match=r"no task fits the label column 'body' \(text with 90 .*--set task=NAME"):
        tasks.choose(LabelColumn("body", "text", 90, 100))
    with pytest.raises(UserError, match="there is no task 'poetry'; choose one of causal-text, classification"):
        tasks.get("poetry")


NEW_TASK = '''
"""Yes or no, from any column of one or two values: a task of one file."""
from finesmith.tasks.classification import Classification

class YesNo(Classification):
    name = "yes-no"

    @classmethod
    def fits(cls, column):
        """Say why."""
        return "column holds yes and no" if column.kind in ("answer", "category") else None

TASK = YesNo
'''


def test_a_task_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yes_no.py").write_text(NEW_TASK, "utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        assert {"classification", "multi-label", "regression", "token-classification", "yes-no"} <= set(tasks.names())
        found = tasks.get("yes-no")
        assert found.name == "yes-no"
        assert tasks.choose(LabelColumn("x", "answer", 2, 9))[0] is found
        task = found.learn(["yes", "no", "no"], Options())
        assert type(tasks.restore(json.loads(json.dumps(task.state)))) is found
        with pytest.raises(DataError, match=r"in more than one way: --set task=classification .*--set task=yes-no"):
            tasks.choose(LabelColumn("x", "category", 2, 9))
    finally:
        sys.modules.pop("finesmith.tasks.yes_no", None)
