"""Cases of recipes: `load` returns all that the file says, and it writes itself back; or a message tells why not."""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finesmith.errors import FinesmithError
from finesmith.recipe import Recipe, flatten, from_dict, load, to_dict, to_yaml
from finesmith.recipe.keys import LORA_OPTIONS, keys
from fuzz.mutate import ODD_TEXTS, mutate_bytes, mutate_tree, odd_value
from fuzz.oracle import Outcome, judge, require

WORDS = (*keys(), *(key.rpartition(".")[2] for key in keys()), *LORA_OPTIONS)

# Values that are right, by dotted key; some contradict others, which is a case of its own.
VALID: dict[str, tuple[Any, ...]] = {
    "task": ("classification", "multi-label", "regression"),
    "data.train": ("reviews.csv", ["a.csv", "b.csv"], "org/name", "dir/"),
    "data.validation": ("val.csv",),
    "data.test": (["test.csv"],),
    "data.text": ("review", "7"),
    "data.text_pair": ("title",),
    "data.label": ("stars", "étiquette"),
    "data.group": ("customer",),
    "data.validation_fraction": (0.2, "1e-1"),
    "data.test_fraction": (0.1,),
    "data.split_seed": (3, 2**32 - 1),
    "data.max_rows": (10, 1e5),
    "data.encoding": ("utf-8", "cp1252"),
    "data.max_length": (64, "128"),
    "data.separator": ("|", ", "),
    "data.domain_words": (5, ["foo", "b a r"]),
    "data.audit.empty": ("keep", "stop"),
    "data.audit.html": ("fix",),
    "data.audit.length": ("drop",),
    "data.clean.unicode": (True, "yes"),
    "data.clean.lemmatise": ("en",),
    "model.base": ("default", "org/model", "./model"),
    "model.dropout": (0, 0.2),
    "model.attention": ("padded",),
    "method.name": ("full", "lora", "features", "head_then_full"),
    "method.lora": ({"r": 8}, {"r": 4, "target_modules": ["query", "value"], "bias": "none"}),
    "method.layer_decay": (0.9,),
    "method.freeze_layers": (2,),
    "train.learning_rate": (2e-5, "auto", "3e-4"),
    "train.epochs": (3, 0.5),
    "train.batch_size": (16,),
    "train.micro_batch_size": (4,),
    "train.seed": (7,),
    "train.warmup": (0.0,),
    "train.schedule": ("cosine",),
    "train.loss": ("focal",),
    "train.focal_gamma": (1.5,),
    "guards.early_stopping": (False, "no"),
    "guards.patience": (2,),
    "evaluate.metric": ("macro_f1",),
    "evaluate.baselines": (["majority", "tfidf"],),
    "evaluate.bootstrap_samples": (500,),
    "output.dir": ("runs/x",),
    "output.checkpoint_minutes": (1.5,),
    "output.keep_checkpoints": (3,),
    "output.tensorboard": (True,),
}
# Those that contradict others or change nothing without them.
QUARRELSOME = {"task", "data.text_pair", "data.validation", "data.test", "method.name", "method.lora",
               "train.focal_gamma", "guards.early_stopping", "train.micro_batch_size"}  # fmt: skip


def run_case(draw: random.Random, folder: Path) -> Outcome:
    """Write a recipe, mostly a damaged one, load it, and judge what comes back."""
    tree = _tree(draw)
    suffix = draw.choice([".yaml", ".yaml", ".yml", ".json", ".toml"])
    how = draw.random()
    if 0.1 <= how < 0.45:
        tree = mutate_tree(draw, tree, WORDS)
    raw = _written(tree, suffix)
    if 0.45 <= how < 0.9:
        raw = mutate_bytes(draw, raw)
    path = folder / f"recipe{suffix}"
    path.write_bytes(raw)
    sets = [_set(draw) for _ in range(draw.choice([0, 0, 0, 0, 1, 2]))] if how < 0.9 else [_set(draw)]
    places = (path.name, "--set", *(key for key in keys() if "." in key))
    try:
        recipe = load(path, sets)
    except FinesmithError as error:
        judge(str(error), places)
        return Outcome("refused", str(error))
    if recipe.data.train == str(path):
        return _as_data(recipe, path)
    _round_trips(recipe, folder)
    _holds_everything(recipe, path, sets)
    return Outcome("accepted")


def _tree(draw: random.Random) -> dict[str, Any]:
    peaceful = draw.random() < 0.6
    chosen = draw.sample([key for key in VALID if not (peaceful and key in QUARRELSOME)], draw.choice([1, 3, 6, 12]))
    tree: dict[str, Any] = {}
    for key in dict.fromkeys(["data.train", *chosen]):
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = draw.choice(VALID[key])
    return tree


def _written(tree: Any, suffix: str) -> bytes:
    if suffix == ".json":
        return json.dumps(tree, indent=1).encode()
    if suffix == ".toml" and isinstance(tree, dict):
        return "".join(_toml(tree, "")).encode("utf-8", "surrogatepass")
    return yaml.safe_dump(tree, sort_keys=False, width=100_000).encode("utf-8", "surrogatepass")


def _toml(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(str(k))} = {shown(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(shown, value)) + "]"
        if isinstance(value, float) and not math.isfinite(value):
            return {"nan": "nan", "inf": "inf", "-inf": "-inf"}[str(value)]
        return '""' if value is None else json.dumps(value)

    for name, value in tree.items():
        if not isinstance(value, dict):
            yield f"{json.dumps(str(name))} = {shown(value)}\n"
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"[{prefix}{json.dumps(str(name))}]\n"
            yield from _toml(value, f"{prefix}{json.dumps(str(name))}.")


def _set(draw: random.Random) -> str:
    key = draw.choice([*VALID, *WORDS, "method.lora.r", "nonsense", "data", "", ".", "a..b", draw.choice(ODD_TEXTS)])
    how = draw.random()
    if how < 0.4 and key in VALID:
        return f"{key}={json.dumps(draw.choice(VALID[key]))}"
    value = odd_value(draw)
    words = f"{key}={value if draw.random() < 0.5 else json.dumps(value)}"
    return (
        words if how < 0.9 else mutate_bytes(draw, words.encode("utf-8", "replace")).decode("utf-8", "surrogateescape")
    )


def _as_data(recipe: Recipe, path: Path) -> Outcome:
    """A .json file that is no recipe is data: as such it must be refused, with words that help."""
    from finesmith.workflows.rows import read_rows

    try:
        read_rows(recipe)
    except FinesmithError as error:
        judge(str(error), (path.name,))
        return Outcome("refused", str(error))
    raise AssertionError(f"a damaged recipe was read as data: {path.read_text('utf-8', 'replace')[:300]}")


def _round_trips(recipe: Recipe, folder: Path) -> None:
    again = folder / "again.yaml"
    for only_set in (False, True):
        again.write_text(to_yaml(recipe, only_set=only_set), "utf-8")
        require(
            load(again) == recipe, f"writing the recipe and reading it gives another one: {again.read_text('utf-8')}"
        )
        require(from_dict(to_dict(recipe, only_set)) == recipe, "plain values give another recipe")


def _holds_everything(recipe: Recipe, path: Path, sets: list[str]) -> None:
    """Every value that another reader finds in the file is in the recipe, unless `--set` replaced it."""
    raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            tree = json.loads(raw)
        elif path.suffix == ".toml":
            tree = tomllib.loads(raw.decode("utf-8-sig"))
        else:
            tree = yaml.load(raw, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return  # YAML 1.1 refuses some dates and tabs that are plain text to us
    given = {words.partition("=")[0].strip() for words in sets}
    flat = flatten(recipe, only_set=True)
    for key, value in _leaves(tree, ""):
        if any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in given):
            continue
        require(key in flat or key == "method.lora", f"{key} stands in the file but not in the recipe")
        if key in flat:
            same = _agree(value, flat[key], numbers=path.suffix in (".json", ".toml"))
            require(same, f"{key} is {value!r} in the file and {flat[key]!r} in the recipe")


def _agree(value: Any, got: Any, *, numbers: bool) -> bool:
    """Whether a value of the file is that of the recipe; YAML's older readers disagree with us on some numbers."""
    if isinstance(value, str) and isinstance(got, str):
        return value == got
    if isinstance(value, list) and isinstance(got, list):
        return len(value) == len(got) and all(_agree(*pair, numbers=numbers) for pair in zip(value, got, strict=True))
    if isinstance(value, (bool, int, float)) and isinstance(got, (bool, int, float)):
        return not numbers or value == got
    return True


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in (tree or {}).items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key != "method.lora":
            yield from _leaves(value, f"{key}.")
        elif value is not None:
            yield key, value
