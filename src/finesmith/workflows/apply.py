"""Use a finished run: load its model, predict on new texts, score other data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError, RunError
from finesmith.recipe import ADAPTERS
from finesmith.run import read_state, refuse_links
from finesmith.workflows.about import is_model, keep_evaluation, read_about
from finesmith.workflows.inference import Predictor
from finesmith.workflows.language import apply as language
from finesmith.workflows.language.apply import TunedLanguageModel
from finesmith.workflows.seal import require_sealed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.clean import Cleaning
    from finesmith.data.sources import Source
    from finesmith.tasks.protocol import Task

    Floats = npt.NDArray[np.float64]

# Memory grows with these, not with the file: tokens, outputs and columns of so many rows are held at once.
ROWS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class Reading:
    """How the files of the run were read, and others are: their encoding where it was named, and decimal commas."""

    encoding: str | None
    commas: bool


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
    reading: Reading

    def read(self, source: str, encoding: str | None = None) -> Source:
        """Read a source as the run read its own, or by another encoding.

        Raises DataError when it cannot be read.
        """
        from finesmith.data.sources import read

        return read([source], encoding=encoding or self.reading.encoding, commas=self.reading.commas)

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Return the columns of a prediction file, a value for each text.

        Raises DataError when pairs are given to a model of single texts, or are missing.
        """
        return self.task.columns(self.outputs(texts, pairs))

    def outputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, progress: Callable[[int], None] | None = None
    ) -> Floats:
        """Return probabilities [N, C], or values [N] for regression, in the order of `texts`.

        Equal texts are answered once. Raises DataError when pairs are given to a model of single texts, or are missing.
        """
        import numpy as np

        from finesmith.data.clean import clean
        from finesmith.data.tokens import tokenize

        if (pairs is None) != (self.text_pair is None):
            need = "one text, not a pair" if self.text_pair is None else f"pairs of texts (column {self.text_pair!r})"
            raise DataError(f"this model was tuned on {need}")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts and {len(pairs):,} second texts do not make pairs")
        rows = list(zip(texts, texts if pairs is None else pairs, strict=True))
        place: dict[tuple[str, str], int] = {}
        places = np.fromiter((place.setdefault(row, len(place)) for row in rows), np.int64, len(rows))
        if progress is not None and len(place) < len(rows):
            progress(len(rows) - len(place))
        first = clean([row[0] for row in place], self.cleaning).texts
        second = None if pairs is None else clean([row[1] for row in place], self.cleaning).texts
        tokens = tokenize(first, second, self.predictor.network.tokenizer, max_length=self.max_length, cache=None)
        logits = self.predictor.logits(tokens, np.arange(len(tokens)), progress)
        return self.task.outputs(logits)[places] if rows else logits


def load_model(folder: Path, *, device: str | None = None) -> TunedModel:
    """Load a saved model folder.

    Raises RunError or ModelError when something is missing or damaged.
    """
    from finesmith.data.clean import Cleaning
    from finesmith.models.reload import read_dense, reload_network
    from finesmith.train.devices import choose
    from finesmith.train.linear import LinearHead

    about, task = read_about(folder)
    network = reload_network(
        folder,
        adapter_on=about["base"] if about["method"] in ADAPTERS else None,
        revision=about["revision"],
        base_sha256=about.get("base_sha256"),
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
        Reading(**about["reading"]),
    )


def model_of(folder: str) -> Path:
    """Return the model folder of a run, or the folder itself where it is one.

    Raises RunError when the run has not finished, or its model is gone or no longer what was saved.
    """
    place = Path(folder)
    if is_model(place):
        refuse_links(place)
        require_sealed(place)
        return place
    state = read_state(place)
    if state == "running":
        raise RunError(f"{folder} is still running, so it has no model yet; wait until it has finished")
    if state != "finished":
        how = "has failed" if state == "failed" else "was interrupted"
        raise RunError(f"{folder} {how}, so it has no model yet; `finesmith resume {folder}` goes on with it")
    require_sealed(place / "model")
    return place / "model"


def load_run(folder: str) -> TunedModel | TunedLanguageModel:
    """Load the tuned model of a run, or a model folder.

    Raises RunError when the run has not finished, or its model is gone or no longer what was saved.
    """
    place = model_of(folder)
    return language.load_model(place) if language.is_language(place) else load_model(place)


def predict_file(
    folder: str, source: str, *, text: str | None = None, text_pair: str | None = None, encoding: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield the rows of `source` in order, as pyarrow tables of at most 50,000, the prediction's columns added.

    There is at least one table, and all have the same columns and types. `encoding` replaces what the run's recipe
    says of its own files. Raises DataError when the source cannot be read or lacks the columns that the model reads.
    """
    model = load_run(folder)
    if isinstance(model, TunedLanguageModel):
        return language.predictions(model, source, text=text, text_pair=text_pair, encoding=encoding, progress=progress)
    return predictions(model, source, text=text, text_pair=text_pair, encoding=encoding, progress=progress)


def predictions(
    model: TunedModel, source: str, *, text: str | None = None, text_pair: str | None = None,
    encoding: str | None = None, progress: Callable[[int, int], None] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield what `predict_file` yields, from a model that is loaded already."""
    table = model.read(source, encoding).table
    first, second = _columns(model, table, source, text, text_pair)
    count = _counting(progress, table.num_rows)
    for start in range(0, max(table.num_rows, 1), ROWS_AT_ONCE):
        part = table.slice(start, ROWS_AT_ONCE)
        outputs = model.outputs(_strings(part, first), None if second is None else _strings(part, second), count)
        for name, values in (model.task.columns(outputs) if part.num_rows else {"prediction": []}).items():
            part = part.append_column(_free(name, part.column_names), _column(values))
        yield part


def _column(values: Sequence[Any]) -> Any:
    """Return values as an array, its type the same where all lists are empty."""
    import pyarrow as pa

    array = pa.array(values)
    return array.cast(pa.list_(pa.string())) if array.type == pa.list_(pa.null()) else array


def _free(name: str, taken: Sequence[str]) -> str:
    """Return `name`, or a form of it that is not taken."""
    found, number = name, 1
    while found in taken:
        found = f"finesmith_{name}" + (f"_{number}" if number > 1 else "")
        number += 1
    return found


def evaluate_file(
    folder: str, source: str, *, text: str | None = None, text_pair: str | None = None, label: str | None = None,
    encoding: str | None = None, progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a model on another labelled file; return scores with intervals, kept in the run folder if there is one.

    Rows without a label are left out and counted in `unlabelled`. `encoding` replaces what the run's recipe says of its
    own files. Raises DataError when the source cannot be read, lacks columns, has no labels, or has labels that the
    model does not know.
    """
    from dataclasses import asdict

    from finesmith.evaluate.statistics import bootstrap
    from finesmith.workflows.rows import read_labels

    model = load_run(folder)
    if isinstance(model, TunedLanguageModel):
        return language.evaluate(
            folder, model, source, text=text, text_pair=text_pair, label=label, encoding=encoding, progress=progress
        )
    data = model.read(source, encoding)
    first, second = _columns(model, data.table, source, text, text_pair)
    name = label or model.label
    _require(data.table, source, name, "label", "label")
    labels = read_labels(data.table.column(name).to_pylist(), model.task.label_kind)
    given = [i for i, value in enumerate(labels) if value is not None]
    if not given:
        raise DataError(f"{source}: column {name!r} holds no labels in {len(labels):,} rows; name another with --label")
    texts = _picked(_strings(data.table, first), given)
    pairs = None if second is None else _picked(_strings(data.table, second), given)
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
    keep_evaluation(folder, f"{Path(source).name}-{data.origins[0].sha256[:8]}", result)
    return result


def _columns(
    model: TunedModel, table: Any, source: str, text: str | None, text_pair: str | None
) -> tuple[str, str | None]:
    """Return the names of the columns that the model reads."""
    if text_pair is not None and model.text_pair is None:
        raise DataError("this model was tuned on one text, not a pair; leave --text-pair out")
    first = text or model.text
    _require(table, source, first, "text", "text")
    if model.text_pair is None:
        return first, None
    second = text_pair or model.text_pair
    _require(table, source, second, "text", "text-pair")
    return first, second


def _strings(table: Any, name: str) -> list[str]:
    """Return a column as texts; absent values are empty texts."""
    return ["" if value is None else str(value) for value in table.column(name).to_pylist()]


def _picked(values: Sequence[str], positions: Sequence[int]) -> list[str]:
    return [values[position] for position in positions]


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
