"""Use a finished run of a task that answers for every token: load its model, predict on new rows, score other data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError, ModelError
from finesmith.recipe import ADAPTERS, LANGUAGE
from finesmith.run import read_json
from finesmith.tasks.corpus import Outcome, Reading, groups_of
from finesmith.tasks.language import LanguageTask
from finesmith.workflows.about import LONGEST, damaged, keep_evaluation

if TYPE_CHECKING:
    from finesmith.models.forward import Network
    from finesmith.tasks.corpus import Corpus, Encoded

METHODS = frozenset({"full", *ADAPTERS})


@dataclass(frozen=True, slots=True)
class TunedLanguageModel:
    """A tuned network with all it needs to answer: task, tokenizer limit, and how its files were read.

    base: loads the model before tuning, for tasks that compare with it.
    """

    network: Network
    task: LanguageTask
    max_length: int
    reading: Reading
    metric: str
    base: Callable[[], Network]

    def answer(
        self, corpus: Corpus, progress: Callable[[int], None] | None = None, *, scored: bool = False
    ) -> tuple[Encoded, Outcome]:
        """Return the rows as tokens, and what the network made of them; `scored`: all by which it is measured."""
        from finesmith.models.adapter_kinds import before_tuning

        encoded = self.task.encode(corpus, self.network.tokenizer, self.max_length)
        if self.task.refers:
            with before_tuning(self.network, self.base) as network:
                encoded = self.task.begin(network, encoded, cache=None, key="")
        if scored:
            encoded = self.task.narrow(encoded, "scored")
        return encoded, self.task.answer(self.network, encoded, progress)

    def laid_out(self, corpus: Corpus) -> Corpus:
        """Return the rows that the model can read."""
        found = self.task.lay_out(corpus, self.network.tokenizer, self.task.choices, self.max_length)
        return corpus if found is None else found.corpus

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Return the columns of a prediction file, a value for each text.

        Raises DataError when pairs are given, or a text holds nothing.
        """
        if pairs is not None:
            raise DataError("this model reads one text, not a pair")
        corpus = self.laid_out(self.task.of_texts(texts, [f"text {i}" for i in range(1, len(texts) + 1)]))
        return self.task.columns(corpus, self.answer(corpus)[1], quote=True)


def is_language(folder: Path) -> bool:
    """Whether a model folder is of a task that answers for every token."""
    about = read_json(folder / "finesmith.json")
    task = about.get("task") if isinstance(about, Mapping) else None
    name = task.get("name") if isinstance(task, Mapping) else None
    return isinstance(name, str) and name in LANGUAGE


def load_model(folder: Path, *, device: str | None = None) -> TunedLanguageModel:
    """Load a saved model folder.

    Raises RunError or ModelError when something is missing or damaged.
    """
    import torch

    from finesmith.models.adapter_files import require_base, wear
    from finesmith.models.load import find, load_tokenizer
    from finesmith.models.reload import find_tokenizer
    from finesmith.train.devices import choose
    from finesmith.workflows.setup import longest_sequence

    about, task = read_about(folder)
    adapted = about["method"] in ADAPTERS
    base = find(about["base"], about["revision"]) if adapted else find(str(folder))
    tokenizer = load_tokenizer(find_tokenizer(folder), template=task.speaks)
    if about["max_length"] > longest_sequence(base, tokenizer):
        raise damaged(folder / "finesmith.json", "max_length", about["max_length"])
    if adapted:
        require_base(base, about.get("base_sha256"), folder)
    how: Any = {"seed": 0, "dtype": torch.float32, "device": device or choose("auto").device}
    network, report = task.load(base, tokenizer, **how)
    if adapted:
        wear(network, folder)
    elif lacking := report.missing + report.new:
        raise ModelError(f"{folder} lacks the weights {', '.join(lacking[:3])}; the folder is damaged")
    network.module.eval()

    def load_base() -> Network:
        try:
            untouched: Network = task.load(find(about["base"], about["revision"]), tokenizer, **how)[0]
        except ModelError as error:
            raise ModelError(f"{task.name} are judged by how far the model has moved from its base: {error}") from error
        return untouched

    return TunedLanguageModel(
        network, task, about["max_length"], Reading(**about["reading"]), about["metric"], load_base
    )


def read_about(folder: Path) -> tuple[dict[str, Any], LanguageTask]:
    """Return what `finesmith.json` of a model folder holds, and its task.

    Raises RunError when it is missing, or a value is not of the kind that finesmith writes.
    """
    from finesmith import tasks

    path = folder / "finesmith.json"
    about = read_json(path)
    texts = {"base": str, "method": str, "metric": str, "max_length": int, "task": dict, "reading": dict}
    for key, kind in texts.items():
        if type(about.get(key)) is not kind:
            raise damaged(path, key, about.get(key))
    if about["method"] not in METHODS:
        raise damaged(path, "method", about["method"])
    for key in ("revision", "base_sha256"):
        if not (about.get(key) is None or isinstance(about[key], str)):
            raise damaged(path, key, about[key])
    if not 0 < about["max_length"] <= LONGEST:
        raise damaged(path, "max_length", about["max_length"])
    known = {field.name for field in fields(Reading)}
    if about["reading"].keys() != known or not all(v is None or type(v) is str for v in about["reading"].values()):
        raise damaged(path, "reading", about["reading"])
    try:
        task = tasks.language_task(about["task"]["name"]).from_state(about["task"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise damaged(path, "task", about["task"]) from None
    if about["metric"] not in task.metrics:
        raise damaged(path, "metric", about["metric"])
    _require_labels(folder, task)
    return about, task


def _require_labels(folder: Path, task: LanguageTask) -> None:
    """Refuse a task whose labels are not those of the saved head, in its order."""
    if task.labels is None:
        return
    config = read_json(folder / "config.json")
    named = config.get("id2label") if isinstance(config, Mapping) else None
    if named != {str(number): label for number, label in enumerate(task.labels)}:
        raise damaged(folder / "finesmith.json", "task", list(task.labels))


def predictions(
    model: TunedLanguageModel,
    source: str,
    *,
    text: str | None,
    text_pair: str | None,
    encoding: str | None,
    progress: Progress | None,
) -> Iterator[Any]:
    """Yield one pyarrow table: the rows of `source` in order, as texts, with what the model makes of each."""
    import pyarrow as pa

    _refuse_pairs(model, text_pair)
    reading = _reading(model, text=text, text_pair=text_pair, encoding=encoding)
    given = model.task.read_unlabelled([source], reading)
    laid = model.task.lay_out(given, model.network.tokenizer, model.task.choices, model.max_length)
    corpus, kept = (given, range(len(given))) if laid is None else (laid.corpus, laid.kept.tolist())
    _, outcome = model.answer(corpus, _counting(progress, len(corpus)))
    if text_pair is not None and len(corpus.columns_of_texts) < 2:
        raise DataError(f"{source} has no column {text_pair[:80]!r}; name the second texts with --text-pair COLUMN")
    columns: dict[str, list[Any]] = {name: list(texts) for name, texts in given.columns_of_texts.items()}
    for name, values in model.task.columns(corpus, outcome, quote=True).items():
        # Rows that the model cannot read stay without an answer.
        column = columns.setdefault(name, [None] * len(given))
        for place, value in zip(kept, values, strict=True):
            column[place] = value
    yield pa.table(columns)


def evaluate(
    folder: str,
    model: TunedLanguageModel,
    source: str,
    *,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    encoding: str | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Score a model on other rows; return scores with intervals, kept in the run folder if there is one."""
    from finesmith.evaluate.paired import interval

    _refuse_pairs(model, text_pair)
    corpus = model.task.read([source], _reading(model, text=text, text_pair=text_pair, label=label, encoding=encoding))
    model.task.require_known(corpus)
    given, corpus = len(corpus) + sum(corpus.lost.values()), model.laid_out(corpus)
    encoded, outcome = model.answer(corpus, _counting(progress, len(corpus)), scored=True)
    measured = model.task.measure(corpus, encoded, outcome)
    answered = model.task.answered(outcome)
    scores = {name: interval(one, groups_of(corpus, len(one), answered)) for name, one in measured.items()}
    result = {
        "data": Path(source).name,
        "examples": len(corpus),
        "unlabelled": 0,
        "left_out": given - len(corpus),
        "metric": model.metric,
        "scores": {name: None if score is None else asdict(score) for name, score in scores.items()},
        "details": model.task.details(corpus, outcome),
    }
    keep_evaluation(folder, f"{Path(source).name}-{corpus.origins[0].sha256[:8]}", result)
    return result


Progress = Callable[[int, int], None]


def _reading(model: TunedLanguageModel, **given: str | None) -> Reading:
    return Reading(**{**asdict(model.reading), **{key: value for key, value in given.items() if value is not None}})


def _counting(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return add


def _refuse_pairs(model: TunedLanguageModel, text_pair: str | None) -> None:
    """Raise DataError where a second text column is named that would not be read."""
    if text_pair is not None and not model.task.reads_pairs:
        raise DataError("this model reads no second text; leave --text-pair out")
