"""Settings that contradict each other, and settings that would change nothing: refused, never ignored in silence.

A setting counts as made when it differs from its default, so a recipe with every default written out is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from finesmith.recipe.language import (
    ADAPTERS,
    BASELINES,
    LANGUAGE,
    LORA_KINDS,
    PREFERENCE_LOSSES,
    READ_BY,
    UNREAD,
    methods_of,
)
from finesmith.recipe.scalars import show
from finesmith.recipe.schema import USUAL_BASELINES, Data, Recipe


@dataclass(frozen=True, slots=True)
class Conflict:
    """What is wrong between settings; `keys` are those involved, first the one to complain about."""

    keys: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class _Idle:
    """`key` changes nothing when `holds`, because of the value of `cause`."""

    key: str
    cause: str
    holds: Callable[[Recipe], bool]
    remedy: str


def _method(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.method.name in names


def _task(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.task in names


def _not_task(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.task not in names


# A solved head takes no steps.
_OF_STEPS = (
    "train.learning_rate", "train.epochs", "train.batch_size", "train.micro_batch_size", "train.weight_decay",
    "train.warmup", "train.schedule", "train.max_grad_norm", "train.evaluations", "guards.early_stopping",
    "train.activation_checkpointing", "train.compile", "guards.patience", "model.dropout",
    "output.checkpoint_minutes", "output.keep_checkpoints",
)  # fmt: skip

_IDLE = (
    *(_Idle(key, "method.name", _method("features"), "set method.name: full") for key in _OF_STEPS),
    _Idle("train.focal_gamma", "train.loss", lambda r: r.train.loss != "focal", "set train.loss: focal"),
    _Idle("method.lora", "method.name", lambda r: r.method.name not in LORA_KINDS, "set method.name: lora"),
    _Idle("method.prompt_tokens", "method.name", lambda r: r.method.name != "prompt", "set method.name: prompt"),
    _Idle("method.layer_decay", "method.name", _method("features", "prompt"), "set method.name: full"),
    _Idle("data.weights", "method.name", _method("features"), "set method.name: full"),
    _Idle("method.freeze_layers", "method.name", _method("features", *ADAPTERS), "set method.name: full"),
    _Idle("model.attention", "method.name", _method("prompt"), "set method.name: lora"),
    _Idle(
        "method.pooling",
        "method.name",
        lambda r: r.method.name != "features" and r.task != "embeddings",
        "set method.name: features",
    ),
    _Idle("contrast.margin", "contrast.loss", lambda r: r.contrast.loss != "triplet", "set contrast.loss: triplet"),
    _Idle(
        "contrast.temperature",
        "contrast.loss",
        lambda r: r.contrast.loss in ("triplet", "similarity"),
        "set contrast.loss: ranking",
    ),
    _Idle("model.revision", "model.base", lambda r: r.model.base == "default", "set model.base to a hub id"),
    _Idle(
        "guards.patience",
        "guards.early_stopping",
        lambda r: not r.guards.early_stopping and r.method.name != "features",
        "turn early stopping on",
    ),
    _Idle(
        "data.split_seed",
        "data.test",
        lambda r: r.data.test is not None and r.data.validation is not None,
        "split rows off by leaving data.test out",
    ),
    _Idle("data.separator", "task", _task("classification", "regression"), "set task: multi-label"),
    _Idle("train.label_smoothing", "task", _task("regression"), "set task: classification"),
    _Idle("train.loss", "task", _task("regression"), "set task: classification"),
    _Idle("train.class_weights", "task", _task("regression"), "set task: classification"),
    _Idle(
        "data.validation_fraction",
        "data.validation",
        lambda r: r.data.validation is not None,
        "split rows off by leaving data.validation out",
    ),
    _Idle(
        "data.test_fraction", "data.test", lambda r: r.data.test is not None, "split rows off by leaving data.test out"
    ),
    *(
        _Idle(
            f"generation.{key}",
            "generation.strategy",
            lambda r, kind=kind: r.generation.strategy != kind,  # type: ignore[misc]
            f"set generation.strategy: {kind}",
        )
        for key, kind in (("temperature", "sample"), ("top_k", "sample"), ("top_p", "sample"), ("beams", "beam"))
    ),
    _Idle(
        "evaluate.shots",
        "evaluate.baselines",
        lambda r: tuple(r.evaluate.baselines) != USUAL_BASELINES and "few_shot" not in r.evaluate.baselines,
        "add few_shot to evaluate.baselines",
    ),
    *(
        _Idle(key, "text.template", lambda r: r.text.template == "none", "name a causal model.base")
        for key in ("text.loss", "evaluate.shots")
    ),
    *(
        _Idle(
            f"preference.{key}",
            "train.loss",
            lambda r, key=key: key not in PREFERENCE_LOSSES.get(r.train.loss, (key,)),  # type: ignore[misc]
            "set train.loss: " + next(loss for loss, read in PREFERENCE_LOSSES.items() if key in read),
        )
        for key in dict.fromkeys(key for read in PREFERENCE_LOSSES.values() for key in read)
    ),
    *(_Idle(key, "task", _task(task), "set another task") for task, unread in UNREAD.items() for key in unread),
)

# Two sentences of each of two labels.
FEWEST_IN_BATCH = 4

_ALL = (*_IDLE, *(_Idle(key, "task", _not_task(*tasks), f"set task: {tasks[0]}") for key, tasks in READ_BY.items()))

_COLUMNS = ("text", "text_pair", "negative", "label", "group", "split", "messages", "prompt", "completion")


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Yield everything wrong between the settings of a recipe whose single values are valid."""
    data, train = recipe.data, recipe.train
    for idle in _ALL:
        if not idle.holds(recipe):
            continue
        value, default = value_of(recipe, idle.key), value_of(_DEFAULTS, idle.key)
        if value != default:
            made = {k: v for k, v in value.items() if default.get(k) != v} if isinstance(value, dict) else value
            yield Conflict(
                (idle.key, idle.cause),
                f"{idle.key} is {show(made)} but {idle.cause} is {show(value_of(recipe, idle.cause))}, so it would "
                f"change nothing; {idle.remedy}, or remove {idle.key}",
            )
    yield from _data_conflicts(data)
    if train.micro_batch_size is not None and train.micro_batch_size > train.batch_size:
        yield Conflict(
            ("train.micro_batch_size", "train.batch_size"),
            f"train.micro_batch_size is {train.micro_batch_size}, expected at most train.batch_size "
            f"({train.batch_size}); lower it, or leave it out to have it fitted to the memory",
        )
    yield from _task_conflicts(recipe)
    names = recipe.evaluate.baselines
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        yield Conflict(
            ("evaluate.baselines",), f"evaluate.baselines names {', '.join(repeated)} more than once; name each once"
        )


def _task_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Yield values that the task does not know, of keys that it reads."""
    known = BASELINES.get(recipe.task, USUAL_BASELINES)
    names = recipe.evaluate.baselines
    odd = [name for name in names if name not in known]
    if odd and tuple(names) != USUAL_BASELINES:
        yield Conflict(
            ("evaluate.baselines", "task"),
            f"evaluate.baselines names {odd[0]}, which task {recipe.task} does not have; choose of {', '.join(known)}",
        )
    loss, prefers = recipe.train.loss, recipe.task == "preferences"
    if loss != "cross_entropy" and prefers != (loss in PREFERENCE_LOSSES):
        fitting = ", ".join(PREFERENCE_LOSSES) if prefers else "cross_entropy or focal"
        yield Conflict(
            ("train.loss", "task"), f"train.loss is {loss}, which task {recipe.task} does not have; use {fitting}"
        )
    if recipe.task not in LANGUAGE:
        return
    if recipe.method.name not in (methods := methods_of(recipe.task)):
        yield Conflict(
            ("method.name", "task"),
            f"method.name is {recipe.method.name}, which task {recipe.task} does not have; use {' or '.join(methods)}",
        )
    if recipe.task == "embeddings":
        yield from _embedding_conflicts(recipe)
    for name, action in recipe.data.audit:
        if action == "fix":
            yield Conflict(
                (f"data.audit.{name}", "task"),
                f"data.audit.{name} is fix, which would move what task {recipe.task} learns; use keep, drop or stop",
            )


def _embedding_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Yield what embeddings cannot be learnt with."""
    if recipe.train.batch_size < FEWEST_IN_BATCH:
        yield Conflict(
            ("train.batch_size", "task"),
            f"train.batch_size is {recipe.train.batch_size}, expected at least {FEWEST_IN_BATCH}: each row of a batch "
            "is told from the others; a usual value is 32 to 256",
        )
    if recipe.data.label is not None and recipe.data.negative is not None:
        yield Conflict(
            ("data.label", "data.negative"),
            f"data.label is {show(recipe.data.label)} and data.negative names a column too, but of a text that does "
            "not belong to the others no score is learnt; keep one of the two",
        )


def _weight_conflicts(data: Data) -> Iterator[Conflict]:
    """Yield weights that do not fit to the sources."""
    if data.weights is None:
        return
    sources = [data.train] if isinstance(data.train, str) else data.train
    if len(sources) == 1:
        yield Conflict(
            ("data.weights", "data.train"),
            f"data.weights is {show(data.weights)} but data.train names one source, so it would change nothing; name "
            "several, or remove data.weights",
        )
    elif len(sources) != len(data.weights):
        yield Conflict(
            ("data.weights", "data.train"),
            f"data.weights is {show(data.weights)} but data.train names {len(sources)} sources; expected one number "
            "for each, in their order",
        )


def _data_conflicts(data: Data) -> Iterator[Conflict]:
    if data.messages is not None and (data.prompt is not None or data.completion is not None):
        yield Conflict(
            ("data.messages", "data.prompt", "data.completion"),
            f"data.messages is {show(data.messages)}, but data.prompt or data.completion is named too; a row holds "
            "turns or a prompt and its answer: keep one of the two",
        )
    if (data.prompt is None) != (data.completion is None):
        one, other = ("prompt", "completion") if data.completion is None else ("completion", "prompt")
        yield Conflict(
            (f"data.{one}", f"data.{other}"),
            f"data.{one} is {show(data.prompt or data.completion)} but data.{other} is not named; name both",
        )
    yield from _weight_conflicts(data)
    for given, sources in (("validation", data.validation), ("test", data.test)):
        if sources is not None and data.split is not None:
            yield Conflict(
                ("data.split", f"data.{given}"),
                f"data.split is {show(data.split)} but data.{given} names its own file; keep one of the two",
            )
    named = {
        f"data.{name}": {sources} if isinstance(sources, str) else set(sources)
        for name, sources in (("train", data.train), ("validation", data.validation), ("test", data.test))
        if sources is not None
    }
    for (one, here), (other, there) in combinations(named.items(), 2):
        if both := sorted(here & there):
            yield Conflict(
                (other, one), f"{other} is {show(both[0])}, which {one} reads too; a split needs rows of its own"
            )
    columns = {name: value for name, value in data if name in _COLUMNS and value is not None}
    for (one, column), (other, same) in combinations(columns.items(), 2):
        if column == same:
            yield Conflict(
                (f"data.{other}", f"data.{one}"),
                f"data.{other} is {show(same)}, and so is data.{one}; expected two different columns",
            )
    shares = {
        "data.test_fraction": data.test_fraction if data.test is None else 0,
        "data.validation_fraction": data.validation_fraction if data.validation is None else 0,
    }
    if sum(shares.values()) >= 0.9:
        yield Conflict(
            tuple(shares),
            f"data.validation_fraction and data.test_fraction add up to {sum(shares.values()):g}, expected under 0.9, "
            "so that something is left to learn from; usual values are 0.15 and 0.15",
        )


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the value under a dotted key of the schema."""
    value: Any = recipe
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else vars(value)[part]
    return value


_DEFAULTS = Recipe.model_validate({"data": {"train": "?"}})
