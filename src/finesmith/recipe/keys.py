"""The dotted keys of the schema, what each accepts, and the nearest one to a key that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_origin

from finesmith.recipe.fields import Section
from finesmith.recipe.scalars import clip
from finesmith.recipe.schema import Recipe

# Options of peft's LoraConfig that a text file can express; kept here because importing peft takes seconds. What
# finesmith sets itself (task_type, inference_mode ...) and what needs an object in code (eva_config ...) is left out.
LORA_OPTIONS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
    "init_lora_weights",
    "bias",
    "lora_bias",
    "fan_in_fan_out",
    "use_rslora",
    "use_dora",
)

_SYNONYMS = {
    "adapter": "method.name",
    "base_model": "model.base",
    "batch": "train.batch_size",
    "checkpoint": "model.base",
    "cache_dir": "output.cache",
    "classes": "data.label",
    "dataset": "data.train",
    "decay": "train.weight_decay",
    "dev": "data.validation",
    "early_stopping_patience": "guards.patience",
    "epoch": "train.epochs",
    "eval": "evaluate",
    "evaluation": "evaluate",
    "file": "data.train",
    "gradient_accumulation": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "input": "data.text",
    "lora_r": "method.lora.r",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "max_epochs": "train.epochs",
    "max_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name": "model.base",
    "model_name_or_path": "model.base",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "out": "output.dir",
    "output_dir": "output.dir",
    "peft": "method.lora",
    "per_device_train_batch_size": "train.batch_size",
    "rank": "method.lora.r",
    "scheduler": "train.schedule",
    "sentence": "data.text",
    "target": "data.label",
    "text_column": "data.text",
    "label_column": "data.label",
    "train_file": "data.train",
    "training": "train",
    "valid": "data.validation",
    "val": "data.validation",
    "validation_file": "data.validation",
    "test_file": "data.test",
    "warmup_ratio": "train.warmup",
    "wd": "train.weight_decay",
}

# What someone means who gives a plain value where a section is expected.
SECTION_KEY = {
    "data": "data.train",
    "model": "model.base",
    "method": "method.name",
    "train": "data.train",
    "guards": "guards.early_stopping",
    "evaluate": "evaluate.metric",
    "output": "output.dir",
    "text": "data.text",
    "generation": "generation.max_new_tokens",
    "preference": "train.loss",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema; `schema` is its JSON schema, empty for a section."""

    name: str
    section: bool
    description: str
    schema: Mapping[str, Any]

    @property
    def accepts(self) -> str:
        """What the key accepts, in words."""
        return _words(self.name.rsplit(".", 1)[-1], self.schema)

    @property
    def item(self) -> str:
        """What each item of a list under the key must be, in words."""
        branches = [self.schema, *self.schema.get("anyOf", ())]
        return next((_words(self.name, branch["items"]) for branch in branches if "items" in branch), self.accepts)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the key accepts, where it accepts only some."""
        branches = [self.schema, *self.schema.get("anyOf", ()), self.schema.get("items", {})]
        return tuple(str(choice) for branch in branches for choice in (*branch.get("enum", ()), *_constant(branch)))


@cache
def keys() -> Mapping[str, Key]:
    """Return every section and key of the schema under its dotted name, in the schema's order."""
    return {key.name: key for key in _walk(Recipe, "")}


def _walk(model: type[Section], prefix: str) -> Iterator[Key]:
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Section):
            yield Key(prefix + name, True, (kind.__doc__ or "").strip(), {})
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, False, field.description or "", properties[name])


def _constant(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return (schema["const"],) if "const" in schema else ()


def _words(name: str, schema: Mapping[str, Any]) -> str:
    if "accepts" in schema:
        return str(schema["accepts"])
    if "anyOf" in schema:
        branches = [_words(name, branch) for branch in schema["anyOf"]]
        return (", or " if any("," in words or "<" in words for words in branches) else " or ").join(branches)
    if "enum" in schema or "const" in schema:
        *others, last = [str(choice) for choice in (*schema.get("enum", ()), *_constant(schema))]
        return f"{', '.join(others)} or {last}" if others else last
    kind = schema.get("type")
    if kind == "array":
        return f"a list of {_words(name, schema['items'])}"
    if kind in ("integer", "number"):
        limits = _limits(name, schema)
        return f"a whole number, {limits}" if kind == "integer" else limits
    return {"boolean": "true or false", "string": "text", "null": "null"}[str(kind)]


def _limits(name: str, schema: Mapping[str, Any]) -> str:
    low = next(
        (f"{schema[k]:g} {sign} " for k, sign in (("minimum", "<="), ("exclusiveMinimum", "<")) if k in schema), ""
    )
    top = next(
        (f" {sign} {_bound(schema[k])}" for k, sign in (("maximum", "<="), ("exclusiveMaximum", "<")) if k in schema),
        "",
    )
    if low and not top:
        return f"{name} {'>=' if '<=' in low else '>'} {low.split()[0]}"
    return f"{low}{name}{top}"


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def usual(name: str) -> str:
    """Return `; a usual value ...` where the schema knows one, else an empty text."""
    words = keys()[name].schema.get("usual", "")
    return f"; {words}" if words else ""


def nearest(name: str) -> str | None:
    """Return the key that a person probably meant by an unknown dotted one, or None."""
    known = [*keys(), *(f"method.lora.{option}" for option in LORA_OPTIONS)]
    prefix, _, last = name.lower().replace("-", "_").rpartition(".")
    if last in _SYNONYMS and _SYNONYMS[last] != name:
        return _SYNONYMS[last]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == prefix}
    if close := difflib.get_close_matches(last, siblings, 1, 0.75):
        return siblings[close[0]]
    elsewhere: dict[str, str] = {}
    for key in known:
        elsewhere.setdefault(key.rpartition(".")[2], key)
    if close := difflib.get_close_matches(last, elsewhere, 1, 0.75):
        return elsewhere[close[0]]
    whole = difflib.get_close_matches(name, known, 1, 0.8)
    return whole[0] if whole else None


def unknown(name: str) -> str:
    """Return the message for a key that does not exist: the one probably meant, or those there are."""
    shown = clip(name)
    if meant := nearest(name[:200]):
        return f"unknown key {shown}, did you mean {meant}?"
    section = name.rpartition(".")[0]
    if section == "method.lora":
        return f"unknown key {shown}; method.lora takes {', '.join(LORA_OPTIONS)}"
    there = ", ".join(k.rpartition(".")[2] for k in keys() if k.rpartition(".")[0] == section)
    return f"unknown key {shown}; the keys {f'of {section}' if section else 'at the top'} are {there}"
