"""Every key changes something that a run records, beside the recipe itself. A new key must come with a case."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, REMOVED, differences, plan, reviews, tuned, with_values, write_csv
from language_jobs import triplets

from finesmith.errors import FinesmithError, RecipeError
from finesmith.recipe import ADAPTERS, LORA_KINDS, from_dict
from finesmith.recipe.keys import LORA_OPTIONS, keys
from finesmith.workflows.tune import tune
from tiny import write_tiny_llama


@dataclass(frozen=True)
class Case:
    """Run a recipe with and without `key` set to `value`; the files named in `shows` must differ.

    data: which rows; given: other values that both runs share; `error`: words of the refusal that the change brings.
    """

    key: str
    value: Any
    shows: tuple[str, ...] = ()
    data: str = "reviews"
    given: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.key}={json.dumps(self.value)[:30]}"


WEIGHTS = "model/model.safetensors"
ADAPTER = "model/adapter_model.safetensors"
PREDICTIONS = "predictions/test.parquet"
LORA = {"method.name": "lora", "train.learning_rate": 1e-2}
FEATURES = {"method.name": "features", **dict.fromkeys(("train.learning_rate", "train.epochs", "train.evaluations",
            "train.batch_size", "train.micro_batch_size", "model.dropout"), REMOVED)}  # fmt: skip
MASKED = {"task": "masked-text", "data.text": REMOVED, "data.label": REMOVED, "evaluate.baselines": REMOVED,
          "data.max_length": 16}  # fmt: skip
TALKS = {"task": "instruct", "data.text": REMOVED, "data.label": REMOVED, "evaluate.baselines": ["nearest"],
         "model.base": "tiny-llama", "model.dropout": REMOVED, "evaluate.generated_rows": 4,
         "generation.max_new_tokens": 6}  # fmt: skip
ASKED = {**TALKS, "data.prompt": "asked", "data.completion": "said"}
SUMMED = {**ASKED, "task": "summarisation"}
BROKEN = {**TALKS, "data.messages": "broken", "data.malformed": "drop"}
PREFERRED = {"task": "preferences", "data.text": REMOVED, "data.label": REMOVED, "evaluate.baselines": ["longer"],
             "model.base": "tiny-llama", "model.dropout": REMOVED}  # fmt: skip
TIGHT = {"data.max_length": 40, "text.loss": "last"}
SAMPLED = {**TALKS, "generation.strategy": "sample"}
RELATED = {"task": "embeddings", "data.text": "anchor", "data.text_pair": "positive", "data.label": REMOVED,
           "evaluate.baselines": REMOVED}  # fmt: skip
TRIPLETS = {**RELATED, "data.negative": "negative"}
NO_LEARNING = {"train.learning_rate": 0.9, "train.epochs": 8, "train.schedule": "constant", "guards.preflight": "tell"}
ELSEWHERE = {"output.dir", "output.cache", "model.revision", "train.compile"}


def audit(kind: str, value: str, data: str = "faulty", **given: Any) -> Case:
    if value == "stop":
        return Case(f"data.audit.{kind}", value, data=data, given=given, error=f"data.audit.{kind} is stop")
    return Case(f"data.audit.{kind}", value, ("audit.json", "data.json", WEIGHTS), data, given)


CASES = [
    Case("task", "regression", ("data.json", "scores.json", WEIGHTS), "stars", {"task": "classification"}),
    Case("data.train", "other.csv", ("data.json", "splits.parquet", WEIGHTS)),
    Case(
        "data.weights",
        [3, 1],
        ("data.json", "events.jsonl", WEIGHTS),
        given={"data.train": ["reviews.csv", "other.csv"]},
    ),
    Case("data.validation", "other.csv", ("data.json", "splits.parquet", WEIGHTS)),
    Case("data.test", "other.csv", ("data.json", "splits.parquet", "scores.json")),
    Case("data.text", "reply", ("data.json", PREDICTIONS), "wide"),
    Case("data.text_pair", "reply", ("data.json", PREDICTIONS), "wide"),
    Case("data.label", "mood", ("data.json", PREDICTIONS), "wide"),
    Case("data.group", "customer", ("data.json", "splits.parquet"), "wide"),
    Case("data.split", "part", ("data.json", "splits.parquet"), "wide"),
    Case("data.validation_fraction", 0.3, ("data.json", "splits.parquet")),
    Case("data.test_fraction", 0.3, ("data.json", "splits.parquet")),
    Case("data.split_seed", 1, ("splits.parquet", WEIGHTS)),
    Case("data.max_rows", 80, ("data.json", "splits.parquet")),
    Case("data.encoding", "cp1251", ("data.json", PREDICTIONS), "accents"),
    Case("data.max_length", 6, ("data.json", "audit.json", WEIGHTS)),
    Case("data.separator", ",", ("data.json", "scores.json"), "topics", {"task": "multi-label"}),
    Case("data.document_separator", "~", ("data.json", "splits.parquet"), "notes", MASKED),
    Case("data.overlap", 4, (WEIGHTS, "scores.json"), "notes", MASKED),
    Case("mask.rate", 0.4, (WEIGHTS, "scores.json"), "notes", MASKED),
    Case("mask.whole_words", False, (WEIGHTS, "scores.json"), "notes", MASKED),
    Case("data.messages", "other", ("data.json", PREDICTIONS), "talks", TALKS),
    Case("data.prompt", "reply", (PREDICTIONS, WEIGHTS), "talks", ASKED),
    Case("data.completion", "reply", (PREDICTIONS, WEIGHTS), "talks", ASKED),
    Case("data.malformed", "stop", (), "talks", BROKEN, "it has no assistant turn"),
    Case("data.prompt", "reply", (PREDICTIONS, WEIGHTS), "talks", SUMMED),
    Case("data.completion", "reply", (PREDICTIONS, WEIGHTS), "talks", SUMMED),
    Case(
        "data.malformed", "stop", (), "talks", {**SUMMED, "data.malformed": "drop", "data.completion": "gap"}, "empty"
    ),
    Case("data.prompt", "reply", (PREDICTIONS, WEIGHTS), "talks", {**SUMMED, "task": "concept-to-text"}),
    Case("data.completion", "reply", (PREDICTIONS, WEIGHTS), "talks", {**SUMMED, "task": "concept-to-text"}),
    Case("text.template", "alpaca", ("model/chat_template.jinja", WEIGHTS), "talks", TALKS),
    Case("text.loss", "all", (WEIGHTS,), "talks", TALKS),
    Case("text.loss", "last", (WEIGHTS, "scores.json"), "talks", TALKS),
    Case("text.too_long", "shorten", ("data.json", WEIGHTS), "talks", {**TALKS, **TIGHT}),
    Case("text.too_long", "stop", (), "talks", {**TALKS, **TIGHT}, "more than 40 tokens"),
    Case("generation.strategy", "sample", (PREDICTIONS,), "talks", TALKS),
    Case("generation.strategy", "beam", ("model/generation_config.json",), "talks", TALKS),
    Case("generation.max_new_tokens", 3, (PREDICTIONS,), "talks", TALKS),
    Case("generation.temperature", 0.01, (PREDICTIONS,), "talks", SAMPLED),
    Case("generation.top_k", 1, (PREDICTIONS,), "talks", SAMPLED),
    Case("generation.top_p", 0.01, (PREDICTIONS,), "talks", SAMPLED),
    Case("generation.beams", 2, ("model/generation_config.json",), "talks", {**TALKS, "generation.strategy": "beam"}),
    Case("generation.stop", ["a", "e", "i", "o", "u"], (PREDICTIONS,), "talks", TALKS),
    Case("evaluate.shots", 1, ("baselines.json",), "talks", {**TALKS, "evaluate.baselines": ["few_shot"]}),
    Case("evaluate.generated_rows", 3, (PREDICTIONS, "verdict.json"), "talks", TALKS),
    Case("preference.beta", 0.5, ("scores.json", WEIGHTS), "preferred", PREFERRED),
    Case("preference.smoothing", 0.2, ("scores.json", WEIGHTS), "preferred", PREFERRED),
    Case("preference.odds_weight", 0.5, ("scores.json", WEIGHTS), "preferred", {**PREFERRED, "train.loss": "orpo"}),
    Case("preference.desirable_weight", 2, ("scores.json", WEIGHTS), "liked", PREFERRED),
    Case("preference.undesirable_weight", 2, ("scores.json", WEIGHTS), "liked", PREFERRED),
    Case("train.loss", "ipo", ("scores.json", WEIGHTS), "preferred", PREFERRED),
    Case("train.loss", "orpo", ("scores.json", WEIGHTS), "preferred", PREFERRED),
    Case("train.loss", "kto", (), "preferred", PREFERRED, "the rows are pairs"),
    Case("text.template", "alpaca", ("model/chat_template.jinja", WEIGHTS), "preferred", PREFERRED),
    Case(
        "text.too_long",
        "shorten",
        ("data.json", WEIGHTS),
        "preferred",
        {**PREFERRED, "data.max_length": 32, "guards.preflight": "tell"},
    ),
    Case("data.negative", "negative", ("data.json", WEIGHTS), "triplets", RELATED),
    Case("contrast.loss", "triplet", ("events.jsonl", WEIGHTS), "triplets", TRIPLETS),
    Case("contrast.temperature", 0.2, ("events.jsonl", WEIGHTS), "triplets", RELATED),
    Case("contrast.margin", 1e-6, ("events.jsonl", WEIGHTS), "triplets", {**TRIPLETS, "contrast.loss": "triplet"}),
    Case("contrast.widths", [8], ("events.jsonl", "scores.json", WEIGHTS), "triplets", RELATED),
    Case("method.pooling", "cls", ("model.json", WEIGHTS), "triplets", RELATED),
    Case("method.freeze_layers", 1, ("model.json", WEIGHTS), "triplets", RELATED),
    Case("method.layer_decay", 0.5, ("events.jsonl", WEIGHTS), "triplets", RELATED),
    Case("data.domain_words", 3, ("data.json", WEIGHTS), "faulty"),
    Case("data.domain_words", ["moviegoer"], ("data.json", WEIGHTS)),
    audit("empty", "keep"),
    audit("missing_labels", "stop"),
    audit("exact_duplicates", "keep"),
    audit("near_duplicates", "drop"),
    audit("conflicting_labels", "drop"),
    audit("broken_encoding", "fix"),
    audit("broken_encoding", "drop"),
    audit("html", "fix"),
    audit("html", "drop"),
    audit("mixed_language", "drop"),
    audit("personal_data", "fix"),
    audit("personal_data", "drop"),
    audit("imbalance", "stop"),
    audit("small_classes", "drop"),
    audit("length", "drop"),
    audit("truncation", "stop", **{"data.max_length": 8}),
    audit("lexical_diversity", "stop"),
    audit("label_in_text", "stop", "marked"),
    audit("leakage", "keep", "reviews", **{"data.test": "overlapping.csv"}),
    audit("near_leakage", "drop", "reviews", **{"data.test": "overlapping.csv"}),
    audit("group_leakage", "drop", "wide", **{"data.group": "customer", "data.split": "part"}),
    Case("data.clean.unicode", True, ("data.json", "predictions"), "faulty"),
    Case("data.clean.whitespace", True, ("data.json", "predictions"), "faulty"),
    Case("data.clean.html", True, ("data.json", PREDICTIONS), "faulty"),
    Case("data.clean.lemmatise", "en", ("data.json", PREDICTIONS)),
    Case("data.clean.redact", True, ("data.json", PREDICTIONS), "faulty"),
    Case("model.base", "other-model", ("model.json", WEIGHTS)),
    Case("model.dropout", 0.3, ("model.json", WEIGHTS)),
    Case("model.attention", "padded", ("model.json",)),
    *(Case("method.name", name, ("model.json", ADAPTER)) for name in ADAPTERS),
    Case("method.name", "features", ("model.json", "events.jsonl"), given={**FEATURES, "method.name": "full"}),
    Case("method.name", "head_then_full", ("events.jsonl", WEIGHTS)),
    Case("method.lora", {"r": 4}, ("model.json", ADAPTER), given=LORA),
    *(
        Case("method.lora", {"r": 4}, ("model.json", ADAPTER), given={**LORA, "method.name": name})
        for name in LORA_KINDS
        if name != "lora"
    ),
    Case("method.prompt_tokens", 4, ("model.json", ADAPTER), given={**LORA, "method.name": "prompt"}),
    Case("method.layer_decay", 0.5, ("events.jsonl", WEIGHTS)),
    Case("method.layer_decay", 0.5, ("events.jsonl", ADAPTER), given=LORA),
    Case("method.freeze_layers", 1, ("model.json", WEIGHTS)),
    Case("method.pooling", "cls", ("model.json", "scores.json"), given=FEATURES),
    Case("train.learning_rate", 1e-3, ("events.jsonl", WEIGHTS)),
    Case("train.learning_rate", "auto", ("events.jsonl", WEIGHTS)),
    Case("train.epochs", 2, ("events.jsonl", WEIGHTS)),
    Case("train.batch_size", 16, ("events.jsonl", WEIGHTS)),
    Case("train.micro_batch_size", 3, ("model.json",)),
    Case("train.seed", 1, ("events.jsonl", WEIGHTS)),
    Case("train.weight_decay", 0.3, (WEIGHTS,)),
    Case("train.warmup", 0.5, ("events.jsonl", WEIGHTS)),
    Case("train.schedule", "cosine", ("events.jsonl", WEIGHTS)),
    Case("train.schedule", "constant", ("events.jsonl", WEIGHTS)),
    Case("train.schedule", "plateau", ("events.jsonl",), given={**NO_LEARNING, "guards.early_stopping": False}),
    Case("train.max_grad_norm", 0.01, ("events.jsonl", WEIGHTS)),
    Case("train.label_smoothing", 0.2, ("events.jsonl", WEIGHTS)),
    Case("train.loss", "focal", ("events.jsonl", WEIGHTS)),
    Case("train.focal_gamma", 5, ("events.jsonl", WEIGHTS), given={"train.loss": "focal"}),
    Case("train.class_weights", "balanced", ("events.jsonl", WEIGHTS), "faulty"),
    Case("train.precision", "float32", ("model.json",)),
    Case("train.activation_checkpointing", True, ("model.json",)),
    Case("train.evaluations", 1, ("events.jsonl",)),
    Case("guards.early_stopping", False, ("events.jsonl",), given={**NO_LEARNING, "guards.patience": REMOVED}),
    Case("guards.preflight", "stop", given=NO_LEARNING, error="preflight, learning rate: 0.9"),
    Case("guards.patience", 1, ("events.jsonl",), given=NO_LEARNING),
    Case("evaluate.metric", "macro_f1", ("events.jsonl", "verdict.json")),
    Case("evaluate.baselines", ["majority", "tfidf"], ("baselines.json", "verdict.json")),
    Case("evaluate.bootstrap_samples", 200, ("scores.json",)),
    Case("output.checkpoint_minutes", 1e-6, ("events.jsonl",)),
    Case("output.keep_checkpoints", 1, ("checkpoints",)),
    Case("output.tensorboard", True, ("tensorboard",)),
    Case("output.redact", True, ("audit.json", "predictions"), "faulty"),
]


WITH_LISTS = {"target_modules": ["query", "value"], "layers_to_transform": [0]}
# Each option of peft's, its value, and options that both runs share.
LORA_CASES: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "r": (4, {}),
    "lora_alpha": (64, {}),
    "lora_dropout": (0.3, {}),
    "target_modules": (["query"], {}),
    "exclude_modules": (["query"], {}),
    "target_parameters": (["bert.embeddings.word_embeddings.weight"], {}),
    "layers_to_transform": ([1], WITH_LISTS),
    "layers_pattern": ("layer", WITH_LISTS),
    "rank_pattern": ({"query": 4}, {}),
    "alpha_pattern": ({"query": 64}, {}),
    "layer_replication": ([[0, 2], [1, 2]], {}),
    "modules_to_save": (["pooler"], {}),
    "trainable_token_indices": ([90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100], {}),
    "ensure_weight_tying": (True, {}),
    "init_lora_weights": ("gaussian", {}),
    "bias": ("lora_only", {}),
    "lora_bias": (True, {}),
    "fan_in_fan_out": (True, {}),
    "use_rslora": (True, {}),
    "use_dora": (True, {}),
}
# What peft itself finds to be without effect on a BERT is refused, and what only says how to look is in its file.
REFUSED_BY_PEFT = {"ensure_weight_tying": "no tied modules", "fan_in_fan_out": "fan_in_fan_out"}
NAMES_ONLY = {"layers_pattern"}

# Settings that cannot matter beside these others: refused, or else something must change.
DOUBTFUL = [
    *(("features", FEATURES, key, value) for key, value in {
        "train.learning_rate": 1e-4, "train.epochs": 3, "train.batch_size": 16, "train.micro_batch_size": 4,
        "train.weight_decay": 0.3, "train.warmup": 0.5, "train.schedule": "cosine", "train.max_grad_norm": 0.1,
        "train.evaluations": 1, "train.activation_checkpointing": True, "train.compile": True,
        "guards.early_stopping": False,
        "guards.patience": 1, "model.dropout": 0.3,
        "method.layer_decay": 0.5, "method.freeze_layers": 1, "method.lora": {"r": 4},
        "output.checkpoint_minutes": 0.001, "output.keep_checkpoints": 1,
    }.items()),
    *((name, {**LORA, "method.name": name}, "method.freeze_layers", 1) for name in ADAPTERS),
    ("lora", LORA, "method.pooling", "cls"),
    ("lora", LORA, "method.prompt_tokens", 4),
    *((name, {**LORA, "method.name": name}, "method.lora", {"r": 4}) for name in ("ia3", "prompt")),
    *((name, {**LORA, "method.name": name}, "method.layer_decay", 0.5) for name in ("ia3", "prompt")),
    ("prompt", {**LORA, "method.name": "prompt"}, "model.attention", "ragged"),
    ("prompt", {**LORA, "method.name": "prompt"}, "data.domain_words", 3),
    ("ia3", {**LORA, "method.name": "ia3"}, "data.domain_words", 3),
    ("full", {}, "method.pooling", "cls"),
    ("full", {}, "method.lora", {"r": 4}),
    ("full", {}, "train.focal_gamma", 3),
    ("full", {}, "data.separator", ";"),
    ("full", {}, "model.revision", "v2"),
    ("no stopping", {"guards.early_stopping": False}, "guards.patience", 1),
    ("given splits", {"data.test": "other.csv", "data.validation": "overlapping.csv"}, "data.split_seed", 1),
    ("given test", {"data.test": "other.csv"}, "data.test_fraction", 0.3),
    ("given validation", {"data.validation": "other.csv"}, "data.validation_fraction", 0.3),
    ("regression", {"task": "regression"}, "train.loss", "focal"),
    ("regression", {"task": "regression"}, "train.label_smoothing", 0.1),
    ("regression", {"task": "regression"}, "train.class_weights", "balanced"),
]  # fmt: skip


def test_every_key_of_the_schema_has_a_case() -> None:
    leaves = {name for name, key in keys().items() if not key.section}
    covered = {case.key for case in CASES} | ELSEWHERE
    assert leaves - covered == set(), "a new key needs a case that shows what it changes"
    assert covered - leaves == set(), "a case is left for a key that has gone"


class Jobs:
    """Runs recipes over the data sets below, each recipe once."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.done = folder, model, dict[str, tuple[Path, str]]()
        self.files = {name: make(folder / f"{name}.csv") for name, make in DATA.items()}
        other_weights(model, folder / "other-model")
        write_tiny_llama(folder / "tiny-llama")

    def tree(self, data: str, given: Mapping[str, Any]) -> dict[str, Any]:
        tree = plan(self.files[data], self.model, self.folder / "cache")
        return with_values(tree, {key: self.place(value) for key, value in given.items()})

    def place(self, value: Any) -> Any:
        """Turn the name of a file made here into its path."""
        if isinstance(value, list):
            return [self.place(each) for each in value]
        return str(self.folder / value) if isinstance(value, str) and (self.folder / value).exists() else value

    def run(self, tree: Mapping[str, Any]) -> tuple[Path, str]:
        """Return the run folder and the message of the error that stopped the run, or an empty text."""
        name = json.dumps(tree, sort_keys=True)
        if name not in self.done:
            out, error = self.folder / f"run-{len(self.done)}", ""
            try:
                tuned(tree, out)
            except FinesmithError as refused:
                error = str(refused)
            self.done[name] = out, error
        return self.done[name]


def faulty(path: Path) -> Path:
    """Write reviews with every fault that the audit looks for."""
    rows = reviews(160, seed=2, words=12)
    some = [row for row in rows[:40] if row[1] == "negative"]
    spanish = ("no me gusta nada esta película tan larga", "una historia preciosa que recomiendo a todo el mundo",
               "los actores están muy bien y la música también", "el final me pareció aburrido y demasiado lento",
               "volvería a verla mañana mismo con mis amigos", "qué pérdida de tiempo y de dinero, no vayan",
               "la fotografía es hermosa pero el guion no convence")  # fmt: skip
    rows += [("", "positive"), ("   ", "negative"), ("a film with no label", ""), ("another without one", "")]
    rows += [some[0], some[1], (some[2][0], "positive")]
    rows += [(f"{text} indeed", label) for text, label in reviews(6, seed=5, words=14)]
    rows += [(f"{text} really", label) for text, label in reviews(6, seed=5, words=14)]
    rows += [("the cafÃ© scene was good and fun", "positive"), ("it was naÃ¯ve and dull", "negative")]
    rows += [("<p>the plot is <b>great</b></p>", "positive"), ("dull &amp; cold <br/> film", "negative")]
    rows += [(text, "positive") for text in spanish]
    rows += [
        ("write to jane.doe@example.com about it, good", "positive"),
        ("call +44 20 7946 0958 bad film", "negative"),
    ]
    rows += [("a strange film in between", "mixed"), ("neither here nor there", "mixed")]
    rows += [(" ".join(["the film goes on and on"] * 12), "negative"), ("  two   spaces   good", "positive")]
    rows += [("e\u0301toile good film \u200b fun", "positive")]
    return write_csv(path, rows)


def wide(path: Path) -> Path:
    """Write reviews with a reply, a second label, a customer and a given split."""
    draw = random.Random(4)
    parts = ["train"] * 7 + ["validation", "test", "test"]
    rows = [
        (text, f"thanks for this {reply} note", label, draw.choice(["calm", "cross"]), f"c{i // 3}", parts[i % 10])
        for i, ((text, label), (reply, _)) in enumerate(zip(reviews(120), reviews(120, seed=9), strict=True))
    ]
    return write_csv(path, rows, ("text", "reply", "label", "mood", "customer", "part"))


def accents(path: Path) -> Path:
    rows = [(f"{text} café naïve élan", label) for text, label in reviews(80)]
    write_csv(path, rows)
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    return path


def topics(path: Path) -> Path:
    """Write labels that hold both ; and , so that the separator decides what a label is."""
    draw = random.Random(6)
    rows = []
    for text, label in reviews(120):
        extra = draw.choice(["plot,long", "music,short"])
        rows.append((text, f"{label};{extra}" if draw.random() < 0.6 else label))
    return write_csv(path, rows)


def stars(path: Path) -> Path:
    draw = random.Random(7)
    return write_csv(path, [(t, draw.choice([4, 5]) if y == "positive" else draw.choice([1, 2])) for t, y in reviews()])


def marked(path: Path) -> Path:
    return write_csv(path, [(f"{t} {'[P1]' if y == 'positive' else '[N0]'}", y) for t, y in reviews(120)])


def overlapping(path: Path) -> Path:
    """Write a test set that holds some training rows, some of them with one word more."""
    long = [row for row in reviews(100) if len(row[0].split()) > 7]
    near = [(f"{text} indeed", label) for text, label in long[3:9]]
    return write_csv(path, [*reviews(30, seed=11), *long[:3], *near])


def notes(path: Path) -> Path:
    """Write documents of some parts each, as plain text."""
    texts = [text for text, _ in reviews(120, words=24)]
    path = path.with_suffix(".txt")
    path.write_text("\n\n".join(" wonderfully ~ ".join(texts[at : at + 2]) for at in range(0, 120, 2)), "utf-8")
    return path


def preferred(path: Path) -> Path:
    """Write pairs of answers, the better of which says what the label is."""
    draw, rows = random.Random(8), []
    for text, label in reviews(60, words=6):
        other = "negative" if label == "positive" else "positive"
        prompt = " ".join(text.split()[: draw.randint(1, 8)])
        rows.append(json.dumps({"prompt": prompt, "chosen": f"it is {label}", "rejected": f"it was {other} and dull"}))
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(rows), "utf-8")
    return path


def liked(path: Path) -> Path:
    """Write answers marked good or bad, three good ones for each bad one."""
    rows = [
        json.dumps({"prompt": text, "completion": f"it is {label}", "label": number % 4 != 0})
        for number, (text, label) in enumerate(reviews(60, words=6))
    ]
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(rows), "utf-8")
    return path


def talks(path: Path) -> Path:
    """Write conversations in several columns, one of which has a row that is none."""
    rows = []
    for number, ((text, label), (reply, _)) in enumerate(zip(reviews(60), reviews(60, seed=9), strict=True)):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        more = [{"role": "user", "content": reply}, {"role": "assistant", "content": "thanks"}]
        row = {"messages": turns + more * (number % 4 == 0), "asked": text, "said": label, "reply": reply}
        row |= {"gap": label if number else ""}
        row |= {"other": more + turns, "broken": turns[:1] if number == 5 else turns}
        rows.append(json.dumps(row))
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(rows), "utf-8")
    return path


DATA: dict[str, Callable[[Path], Path]] = {
    "reviews": lambda path: write_csv(path, reviews(100)),
    "other": lambda path: write_csv(path, reviews(60, seed=3)),
    "faulty": faulty,
    "wide": wide,
    "accents": accents,
    "topics": topics,
    "stars": stars,
    "marked": marked,
    "overlapping": overlapping,
    "notes": notes,
    "talks": talks,
    "preferred": preferred,
    "liked": liked,
    "triplets": lambda path: write_csv(path, triplets(90), ("anchor", "positive", "negative")),
}


def other_weights(model: Path, folder: Path) -> None:
    """Copy a model and change its weights a little."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t * 1.01 for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Jobs]:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
        yield Jobs(tmp_path_factory.mktemp("every-key"), tiny_model)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_key_changes_something_recorded(case: Case, jobs: Jobs) -> None:
    tree = jobs.tree(case.data, case.given)
    before, refused = jobs.run(tree)
    assert refused == "", "the run to compare with must succeed"
    after, error = jobs.run(with_values(tree, {case.key: jobs.place(case.value)}))
    if case.error:
        assert case.error in error
        return
    assert error == ""
    changed = differences(before, after)
    for shown in case.shows:
        assert any(f"{name}/".startswith(f"{shown}/") for name in changed), f"{shown} is as before: {changed}"


def test_every_option_of_lora_has_a_case() -> None:
    assert set(LORA_CASES) == set(LORA_OPTIONS)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("option", LORA_CASES)
def test_option_of_lora_changes_the_adapter(option: str, jobs: Jobs) -> None:
    value, shared = LORA_CASES[option]
    tree = jobs.tree("reviews", {**LORA, "method.lora": dict(shared)})
    before, refused = jobs.run(tree)
    assert refused == ""
    after, error = jobs.run(with_values(tree, {f"method.lora.{option}": value}))
    if option in REFUSED_BY_PEFT:
        assert REFUSED_BY_PEFT[option] in error
        return
    assert error == ""
    changed = differences(before, after)
    assert "model/adapter_config.json" in changed
    assert (ADAPTER in changed) != (option in NAMES_ONLY), changed


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize(("given", "key", "value"), [d[1:] for d in DOUBTFUL], ids=[f"{d[0]}-{d[2]}" for d in DOUBTFUL])
def test_setting_that_cannot_matter_is_refused(given: dict[str, Any], key: str, value: Any, jobs: Jobs) -> None:
    tree = jobs.tree("stars" if "task" in given else "reviews", given)
    changed = with_values(tree, {key: jobs.place(value)})
    if said := refusal(changed):
        assert key in said
        return
    after, error = jobs.run(changed)
    if error:
        assert key in error
        return
    before, _ = jobs.run(tree)
    # The configuration and the memory forecast repeat the setting, whether anything reads it or not.
    told = set(differences(before, after)) - {"model.json", "model/config.json", "model/finesmith.json"}
    assert told != set(), f"{key} is accepted and changes nothing"


def refusal(tree: Mapping[str, Any]) -> str:
    try:
        from_dict(tree)
    except RecipeError as refused:
        return str(refused)
    return ""


def test_revision_of_a_hub_model_is_the_one_that_is_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    other_weights(tiny_model, tmp_path / "other")
    hub = tmp_path / "hub" / "models--someone--tiny"
    for revision, commit, source in (("main", "a" * 40, tiny_model), ("v2", "b" * 40, tmp_path / "other")):
        shutil.copytree(source, hub / "snapshots" / commit)
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / revision).write_text(commit)
    tree = plan(write_csv(tmp_path / "d.csv", reviews(60)), "someone/tiny", tmp_path / "cache")
    main, v2 = (tuned(with_values(tree, {"model.revision": name}), tmp_path / name) for name in ("main", "v2"))
    assert {"model.json", WEIGHTS} <= set(differences(main, v2))
    assert differences(main, tuned(tree, tmp_path / "unnamed")) == [
        "model.json",
        "model/finesmith.json",
        "model/seal.json",
    ]


def test_output_folder_and_cache_are_where_the_recipe_says(tmp_path: Path, tiny_model: Path) -> None:
    write_csv(tmp_path / "d.csv", reviews(60))
    tree = plan(tmp_path / "d.csv", tiny_model, tmp_path / "kept", output__dir=str(tmp_path / "here"))
    assert tune(from_dict(tree)) == tmp_path / "here"
    assert (tmp_path / "here" / "verdict.json").is_file()
    assert any((tmp_path / "kept").iterdir())
    tuned(with_values(tree, {"output.cache": str(tmp_path / "second")}), tmp_path / "there")
    assert {p.name for p in (tmp_path / "second").iterdir()} == {p.name for p in (tmp_path / "kept").iterdir()}
    assert differences(tmp_path / "here", tmp_path / "there") == []
