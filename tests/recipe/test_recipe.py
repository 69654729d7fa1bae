from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from finesmith.errors import Problem, RecipeError
from finesmith.recipe import (
    ADAPTERS,
    LORA_KINDS,
    Recipe,
    flatten,
    from_dict,
    is_recipe,
    load,
    replace,
    to_dict,
    to_yaml,
    with_absolute_paths,
)
from finesmith.recipe.document import document
from finesmith.recipe.keys import _SYNONYMS, LORA_OPTIONS, SECTION_KEY, keys, nearest
from finesmith.recipe.scalars import clip, parse_scalar, show

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = {"data": {"train": "a.csv"}}


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def messages(error: pytest.ExceptionInfo[RecipeError]) -> list[str]:
    return [problem.message for problem in error.value.problems]


def refused(tree: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(RecipeError) as error:
        from_dict(tree)
    return {problem.key: problem.message for problem in error.value.problems}


def problems_of(make: Callable[[], Recipe]) -> tuple[Problem, ...]:
    try:
        make()
    except RecipeError as error:
        return error.problems
    return ()


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        inside = tree
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = value
    return tree


# Random recipes: one strategy per key of the schema.

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
awkward = st.sampled_from(
    [*["yes", "NO", "null", "~", "1e5", "2", ".5", "a: b", "#x", "- a", "...", "---", "C:\\d\\x.csv", "é", "\x85", "y"],
     *["x ", "007", "1_0", "a\nb", "'", '"', "!t", "&a", "*a", "[a", "{", "|", ">", "%", "@", "`", "\x7f", "=", "<<"],
     *[",", "?", "on", "\u2028", "\ufeff", "\U0001f600"]]
)  # fmt: skip
text = words | awkward


def choice(key: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(keys()[key].schema["enum"])


def share(low: float = 0.0, high: float = 1.0, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, **options)


open_unit = share(exclude_min=True, exclude_max=True)
half_open = share(exclude_max=True)
counts = st.integers(1, 10**12)
seeds = st.integers(0, 2**32 - 1)
files = text | st.lists(text, min_size=1, max_size=40)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
lora = st.fixed_dictionaries(
    {},
    optional={
        "r": st.integers(1, 512),
        "lora_alpha": st.floats(0, 512, exclude_min=True),
        "lora_dropout": half_open,
        "target_modules": text | st.lists(text, min_size=1),
        "rank_pattern": st.dictionaries(text, st.integers(1, 64), max_size=3),
        "layers_to_transform": st.lists(st.integers(0, 99)),
        "use_dora": st.booleans(),
        "bias": plain,
    },
)
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "data.train": files,
    "data.weights": st.lists(st.floats(0, 1e300, exclude_min=True), min_size=1, max_size=4),
    "data.validation": files,
    "data.test": files,
    "data.validation_fraction": share(0.001, 0.5),
    "data.test_fraction": share(0.001, 0.39),
    "data.split_seed": seeds,
    "data.encoding": st.sampled_from(["utf-8", "latin-1", "cp1252"]),
    "data.max_length": st.integers(4, 10**6),
    "data.domain_words": st.integers(0, 10**6) | st.lists(text, max_size=30),
    "data.clean.lemmatise": st.sampled_from(["en", "es", "no", "on"]),
    "data.overlap": st.integers(0, 10**6),
    "mask.rate": open_unit,
    "generation.temperature": share(0, 100, exclude_min=True),
    "generation.top_p": share(exclude_min=True),
    "generation.beams": st.integers(2, 10**6),
    "generation.stop": st.lists(text, max_size=3),
    "evaluate.generated_rows": st.integers(2, 10**6),
    "contrast.temperature": share(0, 10, exclude_min=True),
    "contrast.margin": share(0, 2, exclude_min=True),
    "contrast.widths": st.lists(st.integers(1, 4096), min_size=1, max_size=5),
    "preference.beta": share(0, 1e6, exclude_min=True),
    "preference.smoothing": share(0, 0.499),
    "preference.odds_weight": share(0, 1e6, exclude_min=True),
    "preference.desirable_weight": share(0, 1e6, exclude_min=True),
    "preference.undesirable_weight": share(0, 1e6, exclude_min=True),
    "model.dropout": half_open,
    "method.lora": lora,
    "method.layer_decay": share(exclude_min=True),
    "method.freeze_layers": st.integers(0, 99),
    "train.learning_rate": open_unit | st.just("auto"),
    "train.epochs": share(0, 1000, exclude_min=True),
    "train.batch_size": counts,
    "train.seed": seeds,
    "train.weight_decay": half_open,
    "train.warmup": half_open,
    "train.max_grad_norm": st.floats(0, 1e300, exclude_min=True),
    "train.label_smoothing": half_open,
    "train.focal_gamma": share(0, 10, exclude_min=True),
    "evaluate.baselines": st.permutations(["majority", "tfidf", "features", "zero_shot"]).map(lambda b: b[:2]),
    "evaluate.bootstrap_samples": st.integers(100, 10**6),
    "output.checkpoint_minutes": st.floats(0, 1e9, exclude_min=True),
}


def strategy(key: str) -> st.SearchStrategy[Any]:
    schema = keys()[key].schema
    if key in SPECIAL:
        return SPECIAL[key]
    if "enum" in schema:
        return choice(key)
    kinds = {branch.get("type") for branch in schema.get("anyOf", [schema])}
    return st.booleans() if "boolean" in kinds else counts if "integer" in kinds else text


CLASH = (
    "change nothing",
    "keep one",
    "reads too",
    "different columns",
    "at most train.batch_size",
    "is told from the others",
    "does not have",
    "would move",
    "one number for each",
    "name both",
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    leaves = [key for key, known in keys().items() if not known.section and key != "data.train"]
    chosen = draw(st.lists(st.sampled_from(leaves), max_size=8, unique=True))
    flat = {"data.train": draw(files), **{key: draw(strategy(key)) for key in chosen}}
    flat = {"method.name": "lora", **flat} if "method.lora" in flat else flat
    if "data.weights" in flat and isinstance(flat["data.train"], list) and len(flat["data.train"]) > 1:
        flat["data.weights"] = (flat["data.weights"] * 40)[: len(flat["data.train"])]
    try:
        return from_dict(nest(flat))
    except RecipeError as error:
        # Single values from these strategies are valid; only clashes between settings may be refused.
        unexpected = [str(problem) for problem in error.problems if not any(word in problem.message for word in CLASH)]
        if unexpected:
            raise AssertionError(unexpected) from error
        assume(False)
        raise


quick = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


@quick
@given(recipes(), text, st.booleans())
def test_yaml_written_with_comments_reads_back_to_an_equal_recipe(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, why: str, only_set: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "written.yaml"
    comments = dict.fromkeys(keys(), why)
    path.write_text(to_yaml(recipe, comments, header=why, only_set=only_set), encoding="utf-8")
    with contextlib.chdir(folder):
        again = load("written.yaml")
    assert again == recipe
    assert flatten(again) == flatten(recipe)


@quick
@given(recipes())
def test_a_standard_yaml_reader_sees_the_same_values(recipe: Recipe) -> None:
    assert yaml.safe_load(to_yaml(recipe)) == to_dict(recipe)


@quick
@given(recipes(), recipes())
def test_replacing_every_value_gives_the_other_recipe(one: Recipe, other: Recipe) -> None:
    assert replace(one, to_dict(other)) == other
    assert replace(one, {}) == one


@quick
@given(
    st.recursive(plain | st.just(math.nan), lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)
)
def test_nothing_but_a_recipe_error_comes_out_of_random_values(value: Any) -> None:
    for name in ("data", "train", "method", "task", "nonsense"):
        for tree in ({**MINIMAL, name: value}, {**MINIMAL, "method": {"lora": value}}, {"data": {"train": value}}):
            for problem in problems_of(lambda tree=tree: from_dict(tree)):
                assert len(problem.message) < 700
                assert clip(problem.key) in problem.message


@quick
@given(st.text(max_size=200) | st.lists(awkward | st.sampled_from(["\n", "  ", ": ", "data", "train"])).map("".join))
@pytest.mark.parametrize("suffix", ["yaml", "toml", "json"])
def test_nothing_but_a_recipe_error_comes_out_of_a_random_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random.{suffix}"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert all(problem.message for problem in problems_of(lambda: load(path)))


# Single values.


def test_a_data_path_is_a_whole_recipe_with_defaults() -> None:
    recipe = load("reviews.csv")
    assert recipe.data.train == "reviews.csv"
    assert (recipe.task, recipe.model.base, recipe.method.name) == ("auto", "default", "full")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.learning_rate) == (None, 32, None)
    assert recipe.data.audit.empty == recipe.data.audit.leakage == "drop"
    assert recipe.method.lora == {}
    assert to_dict(recipe, only_set=True) == {"data": {"train": "reviews.csv"}}


def test_a_message_names_value_expectation_and_remedy() -> None:
    assert refused({**MINIMAL, "train": {"learning_rate": 2}}) == {
        "train.learning_rate": "train.learning_rate is 2, expected 0 < learning_rate < 1, or auto, or null; "
        "a usual value for full tuning is 2e-5, for lora 2e-4"
    }


BAD_VALUES = {
    "task": "clasification",
    "data.train": [],
    "data.validation": {},
    "data.text": "",
    "data.label": True,
    "data.validation_fraction": 0,
    "data.test_fraction": 0.9,
    "data.split_seed": 2**32,
    "data.max_rows": 0,
    "data.encoding": "klingon",
    "data.max_length": 3,
    "data.separator": 5,
    "data.domain_words": -1,
    "data.audit.empty": "fix",
    "data.audit.missing_labels": "keep",
    "data.audit.imbalance": "drop",
    "data.audit.truncation": "drop",
    "data.audit.lexical_diversity": "drop",
    "data.audit.label_in_text": "drop",
    "data.audit.near_duplicates": "fix",
    "data.clean.html": "maybe",
    "data.clean.lemmatise": "english",
    "model.base": None,
    "model.dropout": 1.0,
    "model.attention": "flash",
    "method.name": "qlora",
    "method.layer_decay": 0,
    "method.freeze_layers": 1.5,
    "method.pooling": "max",
    "train.learning_rate": True,
    "train.epochs": math.inf,
    "train.batch_size": 2.5,
    "train.micro_batch_size": "many",
    "train.seed": -1,
    "train.weight_decay": math.nan,
    "train.warmup": 1,
    "train.schedule": "step",
    "train.max_grad_norm": 0,
    "train.label_smoothing": 1,
    "train.loss": "hinge",
    "train.focal_gamma": 11,
    "train.class_weights": None,
    "train.precision": "float16",
    "train.evaluations": True,
    "guards.early_stopping": 1,
    "guards.patience": 0,
    "evaluate.metric": 1,
    "evaluate.baselines": ["majority", "tf-idf"],
    "evaluate.bootstrap_samples": 10,
    "output.dir": 5,
    "output.checkpoint_minutes": 0,
    "output.keep_checkpoints": 0,
    "output.tensorboard": 2,
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_a_value_out_of_its_limits_is_refused_by_name(key: str) -> None:
    told = refused(nest({"data.train": "a.csv", key: BAD_VALUES[key]}))
    assert list(told) == [key]
    assert told[key].startswith(key)
    assert ", expected " in told[key]


def test_all_bad_values_are_told_at_once() -> None:
    assert refused(nest(BAD_VALUES)).keys() == BAD_VALUES.keys()


def test_a_bad_item_of_a_list_is_named_with_its_place() -> None:
    told = refused({**MINIMAL, "evaluate": {"baselines": ["majority", "tf-idf"]}})["evaluate.baselines"]
    assert told == "evaluate.baselines[1] is 'tf-idf', expected one of 14 names; did you mean tfidf?"


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("train.learning_rate", "2e-5", 2e-5),
        ("train.learning_rate", "auto", "auto"),
        ("train.epochs", "3", 3.0),
        ("train.epochs", 3, 3.0),
        ("train.batch_size", "1e2", 100),
        ("data.max_rows", 1e5, 100_000),
        ("train.seed", "1_000", 1000),
        ("data.domain_words", "50", 50),
        ("guards.early_stopping", "no", False),
        ("data.clean.html", "true", True),
        ("data.label", 2024, "2024"),
    ],
)
def test_numbers_and_booleans_given_as_text_count(key: str, given: Any, meant: Any) -> None:
    value = flatten(from_dict(nest({"data.train": "a.csv", key: given})))[key]
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2e-5", 2e-5), ("1E5", 1e5), ("-.5", -0.5), ("5.", 5.0), ("10_000", 10_000), ("0", 0), ("007", "007"), ("", None),
     ("~", None), ("null", None), ("true", True), ("no", "no"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"),
     ("e5", "e5"), ("1e", "1e"), ("0x10", "0x10"), ("-", "-"), (".", "."), ("٣", "٣"), ("9" * 5000, "9" * 5000)],
)  # fmt: skip
def test_plain_scalars(written: str, meant: Any) -> None:
    assert parse_scalar(written) == meant
    assert type(parse_scalar(written)) is type(meant)


def test_shown_values_are_short_and_printable() -> None:
    assert show("a\x1b[31mb\n") == "'a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}'"
    assert len(show("x" * 10**6)) == len(show(list(range(10**4)))) == 80
    assert show(10**5000) == "a int too large to show"
    assert (show(True), show(None), show({"a": 1.5})) == ("true", "empty", '{"a": 1.5}')


def test_lora_options_are_checked_against_names() -> None:
    recipe = from_dict({**MINIMAL, "method": {"name": "lora", "lora": {"r": 8, "use_dora": True}}})
    assert recipe.method.lora == {"r": 8, "use_dora": True}
    told = refused(
        {
            **MINIMAL,
            "method": {"name": "lora", "lora": {"rank": 5, "lora_dropuot": 0, "r": 0, "lora_dropout": math.nan}},
        }
    )
    assert told["method.lora.rank"] == "unknown key method.lora.rank, did you mean method.lora.r?"
    assert told["method.lora.lora_dropuot"].endswith("did you mean method.lora.lora_dropout?")
    assert told["method.lora.r"].startswith("method.lora.r is 0, expected a whole number, r >= 1")
    assert told["method.lora.lora_dropout"] == "method.lora.lora_dropout is NaN, expected finite numbers"


def test_lora_options_exist_in_peft() -> None:
    spec = importlib.util.find_spec("peft")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "tuners" / "lora" / "config.py").read_text(encoding="utf-8")
    config = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "LoraConfig")
    fields = {n.target.id for n in config.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert set(LORA_OPTIONS) <= fields


# Unknown keys.


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rte", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("epochs", "train.epochs"),
        ("data.epochs", "train.epochs"),
        ("train.num-train-epochs", "train.epochs"),
        ("model_name", "model.base"),
        ("label", "data.label"),
        ("data.audit.near_duplicate", "data.audit.near_duplicates"),
        ("trian", "train"),
        ("r", "method.lora.r"),
        ("train.patience", "guards.patience"),
    ],
)
def test_unknown_keys_get_the_nearest_valid_one(key: str, meant: str) -> None:
    told = refused(nest({"data.train": "a.csv", key: {}}))
    assert told == {key: f"unknown key {key}, did you mean {meant}?"}


def test_an_unknown_key_like_no_other_gets_the_list() -> None:
    told = refused({**MINIMAL, "guards": {"zzz": 1}})["guards.zzz"]
    assert told == "unknown key guards.zzz; the keys of guards are preflight, early_stopping, patience"
    assert "at the top are task, data, mask, text" in refused({**MINIMAL, "qqqq": 1})["qqqq"]


def test_every_suggestion_is_a_key() -> None:
    known = {*keys(), *(f"method.lora.{name}" for name in LORA_OPTIONS)}
    assert {*_SYNONYMS.values(), *SECTION_KEY.values()} <= known
    assert all(nearest(f"{key}_") in known for key in keys())


def test_a_plain_value_for_a_section_names_the_key_that_was_meant() -> None:
    told = refused({"data": "a.csv", "model": "bert-base", "method": "lora", "train": "b.csv", "output": "runs/a"})
    assert {key: message.rpartition("did you mean ")[2] for key, message in told.items()} == {
        "data": "data.train?",
        "model": "model.base?",
        "method": "method.name?",
        "train": "data.train?",
        "output": "output.dir?",
    }


def test_a_dotted_key_in_a_file_says_where_it_belongs() -> None:
    assert "in the section it belongs to" in refused({**MINIMAL, "train.epochs": 3})["train.epochs"]


# Settings that clash.

CLASHES = [
    ("train.focal_gamma", {"train.focal_gamma": 3}),
    ("method.lora", {"method.lora": {"r": 8}}),
    ("method.lora", {"method.name": "ia3", "method.lora": {"r": 8}}),
    ("method.lora", {"method.name": "prompt", "method.lora": {"r": 8}}),
    ("method.prompt_tokens", {"method.name": "lora", "method.prompt_tokens": 8}),
    ("method.layer_decay", {"method.name": "features", "method.layer_decay": 0.9}),
    ("method.layer_decay", {"method.name": "prompt", "method.layer_decay": 0.9}),
    ("method.freeze_layers", {"method.name": "features", "method.freeze_layers": 2}),
    *(("method.freeze_layers", {"method.name": name, "method.freeze_layers": 2}) for name in ADAPTERS),
    ("model.attention", {"method.name": "prompt", "model.attention": "ragged"}),
    ("method.name", {"task": "masked-text", "method.name": "prompt"}),
    ("method.pooling", {"method.pooling": "cls"}),
    ("model.revision", {"model.revision": "main"}),
    ("guards.patience", {"guards.early_stopping": False, "guards.patience": 7}),
    ("data.separator", {"task": "classification", "data.separator": ";"}),
    ("train.label_smoothing", {"task": "regression", "train.label_smoothing": 0.1}),
    ("train.loss", {"task": "regression", "train.loss": "focal"}),
    ("train.class_weights", {"task": "regression", "train.class_weights": "balanced"}),
    ("data.validation_fraction", {"data.validation": "v.csv", "data.validation_fraction": 0.2}),
    ("data.test_fraction", {"data.test": "t.csv", "data.test_fraction": 0.2}),
    ("data.split", {"data.split": "fold", "data.validation": "v.csv"}),
    ("data.split", {"data.split": "fold", "data.test": "t.csv"}),
    ("data.test", {"data.test": ["t.csv", "a.csv"]}),
    ("data.test", {"data.test": "v.csv", "data.validation": ["v.csv"]}),
    ("data.label", {"data.text": "x", "data.label": "x"}),
    ("data.test_fraction", {"data.test_fraction": 0.5, "data.validation_fraction": 0.4}),
    ("train.micro_batch_size", {"train.micro_batch_size": 33}),
    ("evaluate.baselines", {"evaluate.baselines": ["tfidf", "tfidf"]}),
]


@pytest.mark.parametrize(("key", "flat"), CLASHES)
def test_a_setting_that_clashes_or_changes_nothing_is_refused(key: str, flat: dict[str, Any]) -> None:
    told = refused(nest({"data.train": "a.csv", **flat}))
    assert list(told) == [key]


@pytest.mark.parametrize(
    "flat",
    [
        {"train.loss": "focal", "train.focal_gamma": 3},
        *({"method.name": name, "method.lora": {"r": 8}} for name in LORA_KINDS),
        {"method.name": "prompt", "method.prompt_tokens": 8},
        {"task": "causal-text", "method.name": "prompt"},
        {"task": "masked-text", "method.name": "ia3"},
        {"method.name": "features", "method.pooling": "cls"},
        {"task": "multi-label", "data.separator": ";"},
        {"data.separator": ";"},
        {"data.validation": "v.csv", "data.validation_fraction": 0.15},
        {"data.validation": "v.csv", "data.test_fraction": 0.85},
        {"train.micro_batch_size": 32},
        {"model.base": "org/name", "model.revision": "main"},
    ],
)
def test_a_setting_that_works_or_equals_its_default_is_not_refused(flat: dict[str, Any]) -> None:
    from_dict(nest({"data.train": "a.csv", **flat}))


def test_clashes_are_told_beside_bad_values_but_not_about_them() -> None:
    told = refused(
        nest({"data.train": "a.csv", "train.loss": "hinge", "train.focal_gamma": 3, "method.pooling": "cls", "lr": 1})
    )
    assert told.keys() == {"train.loss", "method.pooling", "lr"}


def test_a_task_that_was_inferred_is_checked_when_it_is_filled_in() -> None:
    recipe = from_dict({**MINIMAL, "train": {"label_smoothing": 0.1}})
    assert replace(recipe, {"task": "classification"}).task == "classification"
    with pytest.raises(RecipeError, match=r"train\.label_smoothing"):
        replace(recipe, {"task": "regression"})


# Files.


def test_problems_carry_file_and_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "data:\n  train: a.csv\n\ntrain:\n  learning_rate: 2\n  learning_rte: 1\n"
        "  epochs: 1\n  epochs: 2\nguards:\nlr: 3\n",
    )
    with pytest.raises(RecipeError) as error:
        load(path, ["train.seed=-1"])
    assert [(p.file, p.line, p.key) for p in error.value.problems] == [
        ("--set", None, "train.seed"),
        (str(path), 5, "train.learning_rate"),
        (str(path), 6, "train.learning_rte"),
        (str(path), 8, "train.epochs"),
        (str(path), 10, "lr"),
    ]
    assert messages(error)[3] == "train.epochs is given twice (first on line 7); keep one"


def test_toml_and_json_carry_lines_too(tmp_path: Path) -> None:
    toml = write(tmp_path, '[data]\ntrain = "a.csv"\n\n[train]\nseed = 1\nepochs = -1\ndata.x = 1\n', "r.toml")
    with pytest.raises(RecipeError) as error:
        load(toml)
    assert [(p.key, p.line) for p in error.value.problems] == [("train.epochs", 6), ("train.data", 7)]
    js = write(
        tmp_path, '{"data": {"train": "a.csv"},\n\t"train": {\n\t\t"epochs": -1, "seed": 1, "seed": 2}}', "r.json"
    )
    with pytest.raises(RecipeError) as error:
        load(js)
    assert {(p.key, p.line) for p in error.value.problems} == {("train.epochs", 3), ("train.seed", 2)}


def test_the_three_forms_mean_the_same(tmp_path: Path) -> None:
    text_yaml = "task: regression\ndata: {train: [a.csv, b.csv], text: body}\ntrain: {learning_rate: 2e-5}\n"
    text_toml = (
        'task = "regression"\n[data]\ntrain = ["a.csv", "b.csv"]\ntext = "body"\n[train]\nlearning_rate = 2e-5\n'
    )
    text_json = json.dumps(tomllib.loads(text_toml))
    one, two, three = (
        load(write(tmp_path, words, f"r.{suffix}"))
        for suffix, words in (("yml", text_yaml), ("toml", text_toml), ("json", text_json))
    )
    assert one == two == three
    assert one.train.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("data: !!python/object/apply:os.system [ls]\n", 1, "tags such as"),
        ("data: {train: !!str 5}\n", 1, "tags such as"),
        ("data: &a {train: x}\nmodel: *a\n", 1, "anchors and aliases"),
        ("data:\n  train: *a\n", 2, "anchors and aliases"),
        ("data:\n  train: [a\n", 3, "not valid YAML"),
        ("data:\n\ttrain: a\n", 2, "indent with spaces"),
        ("- a\n- b\n", 1, "expected sections"),
        ("just text\n", 1, "expected sections"),
        ("data: {train: a}\n---\ndata: {train: b}\n", 2, "not valid YAML"),
        ("a: " + "[" * 100_000, 1, "nested more than 20 levels"),
        ("? [a, b]\n: c\ndata: {train: a}\n", 1, "a key is a list"),
        ("data: {train: a}\x00", 1, "not valid YAML"),
    ],
)
def test_yaml_that_is_broken_or_dangerous_is_refused(
    tmp_path: Path, content: str, line: int | None, words: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(RecipeError) as error:
        load(path)
    assert len(error.value.problems) == 1
    assert words in error.value.problems[0].message
    assert error.value.problems[0].line == line
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.toml", "a = [1", "not valid TOML"),
        ("r.toml", "data = 1\ndata = 2\n", "not valid TOML"),
        ("r.yaml", "x" * 1_000_001, "1,000,001 bytes"),
        ("r.yaml", "", "data.train is missing, expected a file"),
        ("r.yaml", "data:\ntrain:\n", "data.train is missing, expected a file"),
        ("r.json", '{"data": {"train": "a"}, "train": {"epochs": NaN}}', "train.epochs is NaN"),
    ],
)
def test_other_files_that_cannot_be_a_recipe(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(write(tmp_path, content, name))
    assert words in str(error.value)


def test_missing_files_folders_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        load(tmp_path / "folder.yaml")
    path = tmp_path / "powershell.yaml"
    path.write_bytes("data: {train: é.csv}".encode("utf-16"))
    assert load(path).data.train == "é.csv"
    path.write_bytes("data: {train: é.csv}".encode("utf-8-sig"))
    assert load(path).data.train == "é.csv"
    path.write_bytes("# a\ndata: {train: é.csv}".encode("latin-1"))
    with pytest.raises(RecipeError) as error:
        load(path)
    assert (error.value.problems[0].line, "not UTF-8" in messages(error)[0]) == (2, True)


@pytest.mark.parametrize(
    ("content", "recipe"),
    [
        ('{"data": {"train": "a.csv"}}', True),
        ('{"data": {"train": ["a.csv"]}, "trian": {}}', True),
        ('{"task": "regression", "data": {}}', True),
        ('{"data": [{"text": "a"}]}', False),
        ('{"data": {"train": [{"text": "a"}]}}', False),
        ('{"train": [{"text": "a"}], "test": []}', False),
        ('[{"text": "a"}]', False),
        ('{"text": "a"}\n{"text": "b"}', False),
        ("{}", False),
        ("[" * 100_000, False),
        ("not json", False),
    ],
)
def test_a_json_file_is_a_recipe_only_when_it_has_the_sections(tmp_path: Path, content: str, recipe: bool) -> None:
    path = write(tmp_path, content, "x.json")
    assert is_recipe(path) is recipe
    if not recipe:
        assert load(path).data.train == str(path)


def test_data_paths_are_recognised(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.jsonl.gz", "folder", "org/name", "absent.json"):
        assert load(name).data.train == name


def test_a_path_is_looked_for_beside_the_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        write(folder, "", "both.csv")
    write(here, "", "only_here.csv")
    (there / "model").mkdir()
    recipe = write(
        there,
        "data: {train: both.csv, validation: [only_here.csv], test: org/set}\nmodel: {base: model}\noutput: {dir: x}\n",
    )
    monkeypatch.chdir(here)
    loaded = load(recipe, ["data.test=both.csv"])
    assert loaded.data.train == str(there / "both.csv")
    assert loaded.data.validation == ["only_here.csv"]
    assert loaded.data.test == "both.csv"
    assert loaded.model.base == str(there / "model")
    assert loaded.output.dir == "x"


def test_absolute_paths_let_a_recipe_run_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "", "a.csv")
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = with_absolute_paths(load("a.csv", ["data.test=[org/set, a.csv.gz]"]))
    assert recipe.data.train == str(tmp_path / "a.csv")
    assert recipe.data.test == ["org/set", "a.csv.gz"]
    assert recipe.model.base == "default"
    assert "validation" not in to_dict(recipe, only_set=True)["data"]


# --set.


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("data.test=test.jsonl", "data.test", "test.jsonl"),
        ("train.learning_rate=3e-5", "train.learning_rate", 3e-5),
        (" train.epochs = 3 ", "train.epochs", 3.0),
        ("data.test=[b.csv, 'b c.csv']", "data.test", ["b.csv", "b c.csv"]),
        ("data.separator=|", "data.separator", "|"),
        ("data.separator=,", "data.separator", ","),
        ("data.separator=#", "data.separator", "#"),
        ('data.separator=" "', "data.separator", " "),
        ("data.label=a: b", "data.label", "a: b"),
        ("data.label=123", "data.label", "123"),
        ("data.label=", "data.label", None),
        ("data.train=C:\\x\\y=z.csv", "data.train", "C:\\x\\y=z.csv"),
        ("data.clean.html=yes", "data.clean.html", True),
        ("data.audit.empty=stop", "data.audit.empty", "stop"),
    ],
)
def test_set_overrides_any_key(words: str, key: str, value: Any) -> None:
    assert flatten(load("a.csv", [words]))[key] == value


def test_set_reaches_lora_and_the_last_one_wins() -> None:
    recipe = load(
        "a.csv", ["method.name=lora", "method.lora.r=8", "method.lora.r=4", "method.lora.rank_pattern={q.0: 2}"]
    )
    assert recipe.method.lora["r"] == 4
    assert recipe.method.lora["rank_pattern"] == {"q.0": 2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("foo", "'foo' is not key=value; write for example --set train.epochs=3"),
        ("=3", "'=3' is not key=value"),
        ("data.test=[a", "data.test is '[a': not valid YAML"),
        ("data.test=[*a]", "anchors and aliases are not allowed"),
        ("train.lr=3", "unknown key train.lr, did you mean train.learning_rate?"),
        ("train..epochs=3", "unknown key train..epochs, did you mean train.epochs?"),
        ("train.epochs.x=3", "train.epochs is"),
        ("method=lora", "did you mean method.name?"),
        ("task.name=regression", "task is"),
        ("train.epochs=.inf", "train.epochs is Infinity"),
    ],
)
def test_a_wrong_set_is_explained(words: str, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("a.csv", [words])
    assert [p.file for p in error.value.problems] == ["--set"]
    assert told in messages(error)[0]


def test_a_set_inside_a_plain_value_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {train: a}\nmethod: lora\n")
    with pytest.raises(RecipeError) as error:
        load(path, ["method.lora.r=8"])
    assert any("because method is given as a plain value; set method.name" in message for message in messages(error))


# Writing.


def test_comments_stand_at_their_keys_on_one_line() -> None:
    recipe = load("reviews.csv", ["data.text=body"])
    written = to_yaml(
        recipe, {"data.text": "inferred:\nthe longest\x07 column", "data": "x" * 500}, header="one\ntwo", only_set=True
    )
    assert written == (
        f"# one\n# two\n\ndata:  # {'x' * 197}...\n  train: reviews.csv\n"
        "  text: body  # inferred: the longest\N{REPLACEMENT CHARACTER} column\n"
    )
    with pytest.raises(ValueError, match=r"train\.lr"):
        to_yaml(recipe, {"train.lr": "x"})


def test_the_whole_recipe_is_written_with_every_key() -> None:
    tree = yaml.safe_load(to_yaml(load("a.csv")))
    leaves = {key for key, known in keys().items() if not known.section}
    for key in leaves:
        inside = tree
        for part in key.split("."):
            inside = inside[part]
    assert set(flatten(load("a.csv"))) == leaves - {"method.lora"}, "which is written option by option"


def test_only_what_was_set_survives_replace() -> None:
    recipe = replace(load("a.csv"), {"train.epochs": 3, "method.name": "lora", "method.lora.r": 4})
    assert to_dict(recipe, only_set=True)["train"] == {"epochs": 3.0}
    assert recipe.method.lora["r"] == 4
    with pytest.raises(RecipeError, match=r"did you mean train\.learning_rate"):
        replace(recipe, {"train.lr": 1})


def test_a_recipe_cannot_be_changed() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        load("a.csv").train.epochs = 3  # type: ignore[misc]


# The page and the import.


def test_the_page_in_docs_is_up_to_date() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m finesmith.recipe.document > docs/recipe.md"


def test_every_key_is_documented_and_says_what_it_accepts() -> None:
    page = document()
    for key, known in keys().items():
        assert known.description.endswith("."), key
        assert (f"## {key}\n" if known.section else f"| `{key}` |") in page


def test_importing_the_recipe_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pyarrow", "transformers", "peft", "sklearn", "pandas")
    code = f"import sys, finesmith.recipe; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert result.stdout.strip() == "[]"
