"""Recipes of strangers, in YAML, TOML and JSON and on the command line: tags, bombs, depth, numbers, places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attacks import Attack, mentions

NL = "\n"
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + NL.join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: v}\n" + NL.join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))

YAML = {
    "apply": ("data: {train: !!python/object/apply:os.system ['touch CANARY']}", "tags"),
    "new": ("data: !!python/object/new:os.system ['touch CANARY']", "tags"),
    "name": ("train: {epochs: !!python/name:os.system }", "tags"),
    "module": ("train: {epochs: !!python/module:os }", "tags"),
    "constructor": ("data: {train: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']}", "tags"),
    "tag shorthand": ("%TAG ! tag:yaml.org,2002:python/\n---\ndata: !object/apply:os.system ['touch CANARY']", "tags"),
    "tagged key": ("!!python/object/apply:os.system ['touch CANARY']: 1", "tags"),
    "binary": ("data: {train: !!binary gASVIAAAAAAAAACMBXBvc2l4}", "tags"),
    "aliases": (ALIASES, "anchors and aliases"),
    "merges": (MERGES, "anchors and aliases"),
    "an anchor in itself": ("data: &a {train: *a}", "anchors and aliases"),
    "depth": ("data: " + "[" * 5000 + "]" * 5000, "levels deep"),
    "depth of mappings": ("{a: " * 3000 + "1" + "}" * 3000, "levels deep"),
    "depth by indents": (NL.join(" " * i + f"a{i}:" for i in range(400)), "levels deep"),
    "a megabyte": ("# " + "x" * 1_100_000, "bytes, expected a recipe of at most"),
    "a key twice": ("train: {epochs: 1, epochs: 2}\ndata: {train: x.csv}", "twice"),
    "a section twice": ("data: {train: x.csv}\ntrain: {epochs: 1}\ntrain: {epochs: 3}", "twice"),
    "two documents": ("data: {train: x.csv}\n---\ndata: {train: y.csv}", "not valid YAML"),
    "a key that is a list": ("? [a, b]\n: 1\ndata: {train: x.csv}", "a key is a list"),
    "a huge number": ("data: {train: x.csv}\ntrain: {epochs: " + "9" * 100_000 + "}", "train.epochs"),
    "a huge exponent": ("data: {train: x.csv}\ntrain: {epochs: 1e999999999}", "train.epochs"),
    "a base of sixty": ("data: {train: x.csv}\ntrain: {epochs: " + "1:" * 5000 + "1}", "train.epochs"),
    "many keys": ("data: {train: x.csv}\n" + NL.join(f"k{i}: 1" for i in range(5_000)), "more than 1,000 keys"),
    "many items": ("data: {train: [" + "x.csv, " * 50_000 + "]}", "bytes, expected a recipe of at most"),
    "control characters": ("data: {train: 'x\x1b]0;owned\x07.csv'}", "control character"),
    "escaped control characters": ('data: {train: "x\\e]0;owned\\a\\n.csv"}', "control characters"),
    "a null": ('data: {train: "x\\0.csv"}', "x"),
    "an endless file": ("data: {train: /dev/zero}", "not an ordinary file"),
    "the environment": ("data: {train: '${HOME}/x.csv'}", "${HOME}/x.csv"),
    "a template": ("data: {train: '{{ 7 * 7 }}.csv'}", "{{ 7 * 7 }}.csv"),
}


@pytest.mark.parametrize("name", list(YAML))
def test_a_yaml_recipe(name: str, attack: Attack) -> None:
    content, part = YAML[name]
    recipe = attack.place / "recipe.yaml"
    recipe.write_text(content.replace("CANARY", str(attack.canary)), "utf-8")
    mentions(attack.refuse_recipe(recipe, megabytes=400), part)


JSON = {
    "depth": '{"data": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "depth of objects": '{"data": ' * 5000 + "1" + "}" * 5000,
    "a key twice": '{"data": {"train": "a.csv"}, "train": {"epochs": 1, "epochs": 2}}',
    "many keys twice": '{"data": {"train": "a.csv"}, "train": {' + ", ".join(f'"k{i % 40000}": 1' for i in range(60_000)) + "}}",  # noqa: E501
    "a huge number": '{"data": {"train": "a.csv"}, "train": {"epochs": ' + "9" * 100_000 + "}}",
    "infinity": '{"data": {"train": "a.csv"}, "train": {"epochs": Infinity}}',
    "not a number": '{"data": {"train": "a.csv"}, "train": {"learning_rate": NaN}}',
    "constructor": '{"data": {"train": {"__class__": "os.system", "py/object": "os.system"}}}',
    "prototype": '{"data": {"train": "a.csv"}, "__proto__": {"x": 1}, "__init__": {"y": 2}}',
    "half a pair": '{"data": {"train": "\\ud800.csv"}}',
}  # fmt: skip


@pytest.mark.parametrize("name", list(JSON))
def test_a_json_recipe(name: str, attack: Attack) -> None:
    recipe = attack.place / "recipe.json"
    recipe.write_text(JSON[name], "utf-8")
    attack.refuse_recipe(recipe, megabytes=400)


TOML = {
    "depth": "data = " + "[" * 3000 + "]" * 3000,
    "dotted depth": ".".join("a" * 1 for _ in range(5000)) + " = 1",
    "table depth": "[" + ".".join("a" for _ in range(5000)) + "]\nx = 1",
    "a key twice": "[train]\nepochs = 1\nepochs = 2",
    "a table twice": "[data]\ntrain = 'a.csv'\n[data]\ntrain = 'b.csv'",
    "a huge number": "[data]\ntrain = 'a.csv'\n[train]\nepochs = " + "9" * 100_000,
    "not a number": "[data]\ntrain = 'a.csv'\n[train]\nepochs = nan",
    "a date": "[data]\ntrain = 1979-05-27T07:32:00Z",
    "many tables": "\n".join(f"[[t{i}]]\na.b.c = 1" for i in range(5000)),
    "an open text": "data = '''" + "x" * 500_000,
}


@pytest.mark.parametrize("name", list(TOML))
def test_a_toml_recipe(name: str, attack: Attack) -> None:
    recipe = attack.place / "recipe.toml"
    recipe.write_text(TOML[name], "utf-8")
    attack.refuse_recipe(recipe, megabytes=400)


SETS = [
    "data.label=!!python/object/apply:os.system ['touch CANARY']",
    "data.label=['!!python/name:os.system']",
    "data.label={a: !!python/object/apply:os.system ['touch CANARY']}",
    "data.label=[&a [x], *a]",
    "train.epochs=[" + "[" * 5000,
    "train.epochs=" + "9" * 50_000,
    "train.epochs=1e999999",
    "train.epochs={a: {b: " * 50,
    "__class__.__init__=1",
    "data.__class__=1",
    "." * 5000 + "=1",
    "a." * 5000 + "b=1",
    "data.label=\x1b[2J\x1b]0;owned\x07\nfinesmith: all is well",
    "method.lora.target_modules=(.*)*x",
    "=" * 5000,
]


@pytest.mark.parametrize("words", SETS, ids=range(len(SETS)))
def test_a_value_on_the_command_line(words: str, attack: Attack, small: Path) -> None:
    attack.refuse_recipe(small, words.replace("CANARY", str(attack.canary)), megabytes=400)


def test_a_recipe_on_the_command_line(attack: Attack) -> None:
    recipe = attack.place / "recipe.yaml"
    recipe.write_text(YAML["apply"][0].replace("CANARY", str(attack.canary)), "utf-8")
    for command in ("init", "check", "tune"):
        mentions(attack.refuse(command, recipe), "recipe.yaml:1", "tags")


def test_a_recipe_that_names_the_hidden(attack: Attack, small: Path) -> None:
    for key in ("_private", "__dict__", "model_config", "model_fields", "copy", "json"):
        recipe = attack.place / "recipe.json"
        recipe.write_text(json.dumps({"data": {"train": str(small)}, key: {"evil": 1}, "train": {key: 1}}), "utf-8")
        mentions(attack.refuse_recipe(recipe), key)
