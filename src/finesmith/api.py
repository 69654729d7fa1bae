"""The Python API: the same names and behaviour as the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.run import Listener, read_json, read_state

if TYPE_CHECKING:
    from finesmith.workflows.apply import TunedModel
    from finesmith.workflows.language.apply import TunedLanguageModel


class TunedRun:
    """A run: its folder, its verdict, and its model, loaded at the first prediction."""

    def __init__(self, folder: str | Path) -> None:
        from finesmith.workflows.about import is_model

        self.folder = Path(folder)
        # A model folder by itself is what a finished run left.
        self.state = "finished" if is_model(self.folder) else read_state(self.folder)
        self._model: TunedModel | TunedLanguageModel | None = None

    def __repr__(self) -> str:
        return f"TunedRun({str(self.folder)!r}, {self.state})"

    @property
    def verdict(self) -> dict[str, Any]:
        """The verdict as in verdict.json: task, metric, baselines, tuned, gain, overfitting, conclusion.

        Raises RunError when the run has not come so far.
        """
        return read_json(self.folder / "verdict.json")  # type: ignore[no-any-return]

    @property
    def scores(self) -> dict[str, Any]:
        """Every metric of every split with its interval, as in scores.json."""
        return read_json(self.folder / "scores.json")  # type: ignore[no-any-return]

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"

    @property
    def model(self) -> TunedModel | TunedLanguageModel:
        """The tuned model.

        Raises RunError when the run has not finished.
        """
        if self._model is None:
            from finesmith.workflows.apply import load_run

            self._model = load_run(str(self.folder))
        return self._model

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return a dictionary for each text: prediction, and confidence and probabilities where the task has them.

        Raises DataError when pairs are missing or not wanted.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts; got one string: write run.predict([text])")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts and {len(pairs)} second texts do not make pairs")
        for column in (texts, pairs or ()):
            for position, text in enumerate(column):
                if not isinstance(text, str):
                    raise TypeError(f"predict takes texts; number {position} is a {type(text).__name__}")
        if not texts:
            return []
        columns = self.model.predict(list(texts), None if pairs is None else list(pairs))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def evaluate(
        self, data: str | Path, *, text: str | None = None, text_pair: str | None = None, label: str | None = None,
        encoding: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Score the model on another labelled file; return scores with intervals."""
        from finesmith.workflows.apply import evaluate_file

        return evaluate_file(
            str(self.folder), str(data), text=text, text_pair=text_pair, label=label, encoding=encoding
        )


def merge(folder: str | Path, *, out: str | Path | None = None, dtype: str = "float32") -> TunedRun:
    """Merge the adapter of a run, or of a model folder, into its base model; return the plain model that results.

    It stands in `out`, or in the folder `merged` of the run. dtype: float32, bfloat16 or float16. Raises FinesmithError
    where there is nothing to merge, or where the merged model would answer otherwise.
    """
    from finesmith.workflows.merge import merge as run_merge

    return TunedRun(run_merge(str(folder), out=None if out is None else str(out), dtype=dtype)["folder"])


def tune(
    data: str | Path | Sequence[str | Path] | Mapping[str, Any],
    *,
    model: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    listeners: Sequence[Listener] = (),
) -> TunedRun:
    """Tune a model and return the run.

    data: a file, several, a folder, a hub id, a recipe file, or a recipe as a dictionary; model: the base model;
    settings: recipe values by dotted key, such as {"train.epochs": 3}. Raises FinesmithError with one clear message.
    """
    from finesmith.workflows.tune import tune as run_tune

    values = dict(settings or {})
    if model is not None:
        values["model.base"] = str(model)
    recipe = _recipe(data, values)
    return TunedRun(
        run_tune(recipe, out=None if out is None else str(out), command="finesmith.tune", listeners=listeners)
    )


def _recipe(data: Any, values: Mapping[str, Any]) -> Any:
    from finesmith.recipe import from_dict, load, replace

    if isinstance(data, Mapping):
        recipe = from_dict(dict(data))
    elif isinstance(data, str | Path):
        recipe = load(data)
    else:
        recipe = from_dict({"data": {"train": [str(item) for item in data]}})
    return replace(recipe, values) if values else recipe


def resume(folder: str | Path, *, force: bool = False, listeners: Sequence[Listener] = ()) -> TunedRun:
    """Go on with an interrupted run and return it."""
    from finesmith.workflows.tune import resume as run_resume

    return TunedRun(run_resume(str(folder), force=force, listeners=listeners))


def load(folder: str | Path) -> TunedRun:
    """Open a run folder, or a model folder by itself (which has no verdict and keeps no evaluations).

    Raises RunError when it is neither.
    """
    return TunedRun(folder)
