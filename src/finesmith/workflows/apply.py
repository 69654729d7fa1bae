"""Use a finished run: load its model, predict on new texts, score other data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError, RunError
from finesmith.run import Run, read_json, read_state
from finesmith.workflows.inference import Predictor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.clean import Cleaning
    from finesmith.tasks.protocol import Task

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A tuned model with all it needs to answer: task, tokenizer limit, cleaning, and the columns it was tuned on."""

    predictor: Predictor
    task: Task
    max_length: int
    cleaning: Cleaning
    text: str
    text_pair: str | None
    label: str
    metric: str

    def outputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, progress: Callable[[int], None] | None = None
    ) -> Floats:
        """Return probabilities [N, C], or values [N] for regression, in the order of `texts`.

        Raises DataError when pairs are given to a model of single texts, or are missing.
        """
        import numpy as np

        from finesmith.data.clean import clean
        from finesmith.data.tokens import tokenize

        if (pairs is None) != (self.text_pair is None):
            need = "one text, not a pair" if self.text_pair is None else f"pairs of texts (column {self.text_pair!r})"
            raise DataError(f"this model was tuned on {need}")
        cleaned = clean(texts, self.cleaning).texts
        second = None if pairs is None else clean(pairs, self.cleaning).texts
        tokens = tokenize(cleaned, second, self.predictor.network.tokenizer, max_length=self.max_length, cache=None)
        logits = self.predictor.logits(tokens, np.arange(len(tokens)), progress)
        return self.task.outputs(logits) if len(tokens) else logits


def load_model(folder: Path, *, device: str | None = None) -> TunedModel:
    """Load a saved model folder.

    Raises RunError or ModelError when something is missing or damaged.
    """
    from finesmith import tasks
    from finesmith.data.clean import Cleaning
    from finesmith.models.reload import read_dense, reload_network
    from finesmith.train.devices import choose
    from finesmith.train.linear import LinearHead

    about = read_json(folder / "finesmith.json")
    task = tasks.restore(about["task"])
    network = reload_network(
        folder,
        adapter_on=about["base"] if about["method"] == "lora" else None,
        outputs=task.head.outputs,
        problem=task.head.problem,
        labels=task.head.labels,
        device=device or choose("auto").device,
    )
    head = None
    if about["method"] == "features":
        weight, bias = read_dense(folder)
        head = LinearHead(weight.double(), bias.double(), 0.0, {})
    predictor = Predictor(network, head, about["pooling"])
    return TunedModel(
        predictor,
        task,
        about["max_length"],
        Cleaning(**about["cleaning"]),
        about["text"],
        about["text_pair"],
        about["label"],
        about["metric"],
    )


def load_run(folder: str) -> TunedModel:
    """Load the tuned model of a run.

    Raises RunError when the run has not finished.
    """
    state = read_state(Path(folder))
    if state != "finished":
        raise RunError(f"{folder} is {state}, so it has no model yet; `finesmith resume {folder}` goes on with it")
    return load_model(Path(folder) / "model")


def predict_file(
    folder: str, source: str, *, text: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Any:
    """Return a pyarrow table of the rows of `source` in order, with the prediction's columns added.

    Raises DataError when the source cannot be read or lacks the columns that the model reads.
    """
    import pyarrow as pa

    from finesmith.data.sources import read

    model = load_run(folder)
    table = read([source]).table
    texts, pairs = _columns(table, source, text or model.text, model.text_pair)
    outputs = model.outputs(texts, pairs, _counting(progress, len(texts)))
    for name, values in (model.task.columns(outputs) if len(texts) else {"prediction": []}).items():
        free = name if name not in table.column_names else f"finesmith_{name}"
        table = table.append_column(free, pa.array(values))
    return table


def evaluate_file(
    folder: str, source: str, *, text: str | None = None, label: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a run's model on another labelled file; return scores with intervals, and keep them in the run folder.

    Raises DataError when the source cannot be read, lacks columns, or has labels that the model does not know.
    """
    from dataclasses import asdict

    from finesmith.data.sources import read
    from finesmith.evaluate.statistics import bootstrap

    model = load_run(folder)
    data = read([source])
    texts, pairs = _columns(data.table, source, text or model.text, model.text_pair)
    name = label or model.label
    if name not in data.table.column_names:
        raise DataError(
            f"{source} has no label column {name!r}; its columns are {', '.join(data.table.column_names)}: "
            "name it with --label COLUMN"
        )
    if not texts:
        raise DataError(f"{source} holds no rows to evaluate")
    targets = model.task.encode(data.table.column(name).to_pylist(), [data.where(i) for i in range(len(texts))])
    outputs = model.outputs(texts, pairs, _counting(progress, len(texts)))
    scores = {k: None if s is None else asdict(s) for k, s in bootstrap(model.task.kind, targets, outputs).items()}
    result = {
        "data": Path(source).name,
        "examples": len(texts),
        "metric": model.metric,
        "scores": scores,
        "details": model.task.details(targets, outputs),
    }
    run = Run(Path(folder))
    try:
        run.write_json(f"evaluations/{Path(source).name}.json", result)
    finally:
        run.close()
    return result


def _columns(table: Any, source: str, text: str, text_pair: str | None) -> tuple[list[str], list[str] | None]:
    for name in (text, text_pair):
        if name is not None and name not in table.column_names:
            raise DataError(
                f"{source} has no column {name!r}, which the model reads; its columns are "
                f"{', '.join(table.column_names)}: name the text column with --text COLUMN"
            )

    def strings(name: str) -> list[str]:
        return ["" if value is None else str(value) for value in table.column(name).to_pylist()]

    return strings(text), None if text_pair is None else strings(text_pair)


def _counting(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return add
