"""Use a finished run: load its model, predict on new texts, score other data."""

from __future__ import annotations

import difflib
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
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts and {len(pairs):,} second texts do not make pairs")
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
        revision=about["revision"],
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

    Raises RunError when the run has not finished or its model is gone.
    """
    place = Path(folder)
    state = read_state(place)
    if state == "running":
        raise RunError(f"{folder} is still running, so it has no model yet; wait until it has finished")
    if state != "finished":
        how = "has failed" if state == "failed" else "was interrupted"
        raise RunError(f"{folder} {how}, so it has no model yet; `finesmith resume {folder}` goes on with it")
    if not (place / "model" / "finesmith.json").is_file():
        raise RunError(f"{folder} has finished but its model folder is gone or damaged; copy it back or tune again")
    return load_model(place / "model")


def predict_file(
    folder: str, source: str, *, text: str | None = None, text_pair: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:  # fmt: skip
    """Return a pyarrow table of the rows of `source` in order, with the prediction's columns added.

    Raises DataError when the source cannot be read or lacks the columns that the model reads.
    """
    import pyarrow as pa

    from finesmith.data.sources import read

    model = load_run(folder)
    table = read([source]).table
    texts, pairs = _columns(model, table, source, text, text_pair)
    outputs = model.outputs(texts, pairs, _counting(progress, len(texts)))
    for name, values in (model.task.columns(outputs) if len(texts) else {"prediction": []}).items():
        table = table.append_column(_free(name, table.column_names), pa.array(values))
    return table


def _free(name: str, taken: Sequence[str]) -> str:
    """Return `name`, or a form of it that is not taken."""
    found, number = name, 1
    while found in taken:
        found = f"finesmith_{name}" + (f"_{number}" if number > 1 else "")
        number += 1
    return found


def evaluate_file(
    folder: str, source: str, *, text: str | None = None, text_pair: str | None = None, label: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a run's model on another labelled file; return scores with intervals, and keep them in the run folder.

    Rows without a label are left out and counted in `unlabelled`. Raises DataError when the source cannot be read,
    lacks columns, has no labels, or has labels that the model does not know.
    """
    from dataclasses import asdict

    from finesmith.data.sources import read
    from finesmith.evaluate.statistics import bootstrap
    from finesmith.workflows.rows import read_labels

    model = load_run(folder)
    data = read([source])
    texts, pairs = _columns(model, data.table, source, text, text_pair)
    name = label or model.label
    _require(data.table, source, name, "label", "label")
    labels = read_labels(data.table.column(name).to_pylist(), model.task.label_kind)
    given = [i for i, value in enumerate(labels) if value is not None]
    if not given:
        raise DataError(f"{source}: column {name!r} holds no labels in {len(labels):,} rows; name another with --label")
    texts, pairs = [texts[i] for i in given], None if pairs is None else [pairs[i] for i in given]
    targets = model.task.encode([labels[i] for i in given], [data.where(i) for i in given])
    outputs = model.outputs(texts, pairs, _counting(progress, len(texts)))
    scores = {k: None if s is None else asdict(s) for k, s in bootstrap(model.task.kind, targets, outputs).items()}
    result = {
        "data": Path(source).name,
        "examples": len(texts),
        "unlabelled": len(labels) - len(given),
        "metric": model.metric,
        "scores": scores,
        "details": model.task.details(targets, outputs),
    }
    run = Run(Path(folder))
    try:
        run.write_json(f"evaluations/{Path(source).name}-{data.origins[0].sha256[:8]}.json", result)
    finally:
        run.close()
    return result


def _columns(
    model: TunedModel, table: Any, source: str, text: str | None, text_pair: str | None
) -> tuple[list[str], list[str] | None]:
    """Return the texts (and their pairs) that the model reads; absent values are empty texts."""
    if text_pair is not None and model.text_pair is None:
        raise DataError("this model was tuned on one text, not a pair; leave --text-pair out")

    def strings(name: str, option: str) -> list[str]:
        _require(table, source, name, "text", option)
        return ["" if value is None else str(value) for value in table.column(name).to_pylist()]

    first = strings(text or model.text, "text")
    return first, None if model.text_pair is None else strings(text_pair or model.text_pair, "text-pair")


def _require(table: Any, source: str, name: str, role: str, option: str) -> None:
    if name in table.column_names:
        return
    near = difflib.get_close_matches(name, table.column_names, 1)
    meant = f"; is it {near[0]!r}? Its" if near else "; its"
    raise DataError(
        f"{source} has no {role} column {name[:80]!r}{meant} columns are "
        f"{', '.join(each[:40] for each in table.column_names[:20])}: name the right one with --{option} COLUMN"
    )


def _counting(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return add
