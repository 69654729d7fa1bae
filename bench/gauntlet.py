"""The preflight gauntlet: known ways of training wrongly put into runs, and clean runs that nothing may stop.

    python bench/gauntlet.py                                 # everything, about four minutes on 2 quiet cores
    python bench/gauntlet.py --every 8                       # every eighth fault and clean run
    python bench/gauntlet.py --peer-python ../trl/bin/python # the same faults in transformers' Trainer and TRL too

A fault comes in by the files, by the recipe, by a base model's folder, or by wrapping the very part that a probe looks
at, once model and data are loaded. A run ends when its preflight is over, right after the first step. Caught means that
it was stopped with a message, or that the audit mended the data and said so. `gauntlet_faults.py` holds the faults;
those of conversations are put into the rows that `data.render` makes, and probed as a run would probe them.

The last line is JSON: {"caught": share of the faults, "false_alarms": n, "faults": n}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(Path(__file__).resolve().parent), str(TESTS), str(TESTS / "workflows")]

from jobs import REMOVED, plan, reviews, with_values, write_csv  # noqa: E402 - helpers of the tests
from language_jobs import language_plan, sentences, write_conll  # noqa: E402

from tiny import WORDS, bert_tokenizer, write_tiny_bert  # noqa: E402

STEPS = {"train.epochs": 1, "train.evaluations": 1}


class Passed(BaseException):
    """The preflight is over and stopped nothing."""


@dataclass(frozen=True)
class Case:
    """A run with a fault, or without (`fault` is empty).

    values: what is set in the recipe, by dotted keys; files: changes data or base model, given a new folder and the
    recipe, and returns the recipe; loaded: wraps or changes what was loaded, given a patch, data and setup; told: an
    audit finding that mends the fault; leaf: probes rows that no run has yet; resumed: changes an interrupted run
    before it is resumed.
    """

    fault: str
    variant: str
    task: str
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Callable[[Path, dict[str, Any]], dict[str, Any]] | None = None
    loaded: Callable[[Patch, Any, Any], None] | None = None
    told: str = ""
    leaf: Callable[[World], list[Any]] | None = None
    resumed: Callable[[Path], None] | None = None


class Patch:
    """Sets attributes, and puts them back."""

    def __init__(self) -> None:
        self.recipe: Any = None
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute."""
        self._before.append((owner, name, owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back."""
        while self._before:
            owner, name, value = self._before.pop()
            setattr(owner, name, value)


class World:
    """Tiny base models and data of every task, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bert = write_tiny_bert(folder / "bert")
        self.llama = write_llama(folder / "llama", tied=False)
        self.tied = write_llama(folder / "tied", tied=True)
        self.masked = write_masked(folder / "masked", self.bert)
        self.reviews = write_csv(folder / "reviews.csv", reviews(80))
        self.stars = write_csv(folder / "stars.csv", [(t, 4 if y == "positive" else 1.5) for t, y in reviews(80)])
        said = [
            (f"{text} moviegoer storyline" if i % 3 else text, label) for i, (text, label) in enumerate(reviews(80))
        ]
        self.worded = write_csv(folder / "worded.csv", said)
        self.starred = write_csv(folder / "starred.csv", [(t, 4 if y == "positive" else 1.5) for t, y in said])
        self.topics = write_csv(folder / "topics.csv", topics())
        self.conll = write_conll(folder / "ner.conll", sentences(80))
        self.long = write_conll(folder / "long.conll", long_sentences())
        self.text = folder / "text.txt"
        self.text.write_text(documents(), "utf-8")
        from gauntlet_written import write_world

        self.written = write_world(self)

    def tree(self, task: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of a task, `values` set in it."""
        cache = self.folder / "cache"
        language = {"token-classification": (self.conll, self.bert), "causal-text": (self.text, self.llama),
                    "masked-text": (self.text, self.masked), **self.written}  # fmt: skip
        if task in language:
            data, model = language[task]
            tree = language_plan(task, data, model, cache)
            if task in ("causal-text", "instruct", "preferences", "concept-to-text", "summarisation"):
                tree["model"].pop("dropout")
        else:
            data = {"regression": self.stars, "multi-label": self.topics}.get(task, self.reviews)
            tree = plan(data, self.bert, cache, task=task)
        return with_values(tree, {**STEPS, **{key: self.placed(value) for key, value in values.items()}})

    def placed(self, value: Any) -> Any:
        """Return a value of a recipe, the path in place of an @name."""
        if isinstance(value, list):
            return [self.placed(one) for one in value]
        return str(getattr(self, value[1:])) if isinstance(value, str) and value.startswith("@") else value


def write_llama(folder: Path, *, tied: bool) -> Path:
    """Write a tiny Llama whose texts begin with [CLS] and end with [SEP]."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = bert_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_masked(folder: Path, bert: Path) -> Path:
    """Write a tiny BERT with its head of masked words, tied."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def topics() -> list[tuple[str, str]]:
    """Return reviews with one or two labels."""
    return [(text, f"{label};long" if i % 3 == 0 else label) for i, (text, label) in enumerate(reviews(80))]


def long_sentences() -> list[list[tuple[str, str]]]:
    """Return sentences of some thirty words."""
    short = sentences(240)
    return [[pair for row in short[at : at + 5] for pair in row] for at in range(0, 240, 5)]


def documents(count: int = 50, longest: int = 30) -> str:
    """Return documents whose words follow each other in a fixed order."""
    lengths = [6 + (i * 7) % (longest - 5) for i in range(count)]
    texts = [" ".join(WORDS[(i * 11 + at) % len(WORDS)] for at in range(n)) for i, n in enumerate(lengths)]
    return "\n\n".join(texts)


@contextmanager
def wrapped(case: Case) -> Iterator[Patch]:
    """Have the fault put in when data and model are loaded, and no report made."""
    import finesmith.report.page
    from finesmith.workflows import preflight
    from finesmith.workflows.language import preflight as language

    patch = Patch()
    patch.set(finesmith.report.page, "build", lambda folder: folder / "report.html")
    for module in (preflight, language):

        def look(recipe: Any, run: Any, data: Any, setup: Any, original: Any = module.before_training) -> Any:
            patch.recipe = recipe
            if case.loaded is not None:
                case.loaded(patch, data, setup)
            return original(recipe, run, data, setup)

        patch.set(module, "before_training", look)
    try:
        yield patch
    finally:
        patch.undo()


def attempt(case: Case, world: World, out: Path) -> str:
    """Run a case to the end of its preflight; return how it was caught, an empty text where it was not."""
    from finesmith.errors import FinesmithError
    from finesmith.recipe import from_dict
    from finesmith.workflows.tune import resume, tune

    if case.leaf is not None:
        try:
            failed = [probe for probe in case.leaf(world) if not probe.passed]
        except FinesmithError as error:
            return f"{type(error).__name__}: {error}"
        return failed[0].line() if failed else ""
    told: list[str] = []

    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "audit" and event["kind"] == case.told and event["message"].endswith("[drop]"):
            told.append(f"mended, and said: {event['message']}")
        if event["event"] == "preflight" and not event["failed"] and case.resumed is None:
            raise Passed
        if event["event"] == "step" and event["step"] == 3 and case.resumed is not None:
            raise KeyboardInterrupt

    try:
        tree = world.tree(case.task, case.values)
        tree = tree if case.files is None else case.files(out.with_suffix(".files"), tree)
        with wrapped(case):
            tune(from_dict(tree), out=str(out), listeners=[hear])
    except Passed:
        return told[0] if told else ""
    except KeyboardInterrupt:
        assert case.resumed is not None
        case.resumed(out)
        try:
            resume(str(out))
        except FinesmithError as error:
            return f"{type(error).__name__}: {error}"
        return ""
    except FinesmithError as error:
        return f"{type(error).__name__}: {error}"
    # A method that takes no step.
    return told[0] if told else ""


def run(cases: list[Case], world: World) -> dict[int, str]:
    """Run cases; return how each was caught, by its place. What breaks otherwise counts as not caught."""
    found = {}
    for place, case in enumerate(cases):
        out = Path(tempfile.mkdtemp(prefix="run-", dir=world.folder)) / "run"
        began = time.perf_counter()
        try:
            found[place] = attempt(case, world, out)
        except Exception as error:
            traceback.print_exc()
            found[place] = f"BROKE: {type(error).__name__}" if not case.fault else ""
        shutil.rmtree(out.parent, ignore_errors=True)
        seconds = time.perf_counter() - began
        mark = "caught" if found[place] else "missed" if case.fault else "clean"
        name = case.fault or "clean"
        print(
            f"{mark:7} {seconds:5.1f} s  {name} / {case.task} / {case.variant}: {found[place][:150]}", file=sys.stderr
        )
    return found


def table(faults: list[Case], found: Mapping[int, str]) -> list[str]:
    """Return a line for each fault: how many variants on which tasks, and how many were caught."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, case in enumerate(faults):
        groups[case.fault].append(place)
    lines = ["| fault | variants | tasks | caught |", "|---|---|---|---|"]
    for fault, places in groups.items():
        variants = len({faults[place].variant for place in places})
        tasks = ", ".join(dict.fromkeys(faults[place].task for place in places))
        caught = sum(bool(found[place]) for place in places)
        lines.append(f"| {fault} | {variants} | {tasks} | {caught} of {len(places)} |")
    return lines


CLEAN: list[tuple[str, str, dict[str, Any]]] = [
    ("classification", "as it comes", {}),
    ("classification", "LoRA", {"method.name": "lora", "train.learning_rate": 1e-2}),
    ("classification", "LoRA at a tiny rate", {"method.name": "lora", "train.learning_rate": 1e-5}),
    ("classification", "LoRA of queries", {"method.name": "lora", "method.lora": {"target_modules": ["query"]}}),
    ("classification", "a tiny rate", {"train.learning_rate": 1e-6}),
    ("classification", "the head first", {"method.name": "head_then_full"}),
    ("classification", "frozen layers", {"method.freeze_layers": 1}),
    ("classification", "everything but the top frozen", {"method.freeze_layers": 2}),
    ("classification", "rates by layer", {"method.layer_decay": 0.5}),
    ("classification", "padded", {"model.attention": "padded"}),
    ("classification", "micro-batches of one row", {"train.micro_batch_size": 1, "train.batch_size": 4}),
    ("classification", "soft labels", {"train.label_smoothing": 0.6}),
    ("classification", "focal loss, weights", {"train.loss": "focal", "train.class_weights": "balanced"}),
    ("classification", "a long warm-up", {"train.warmup": 0.9, "train.schedule": "constant"}),
    ("classification", "words added", {"data.train": "@worded", "data.domain_words": ["moviegoer", "storyline"]}),
    ("classification", "words added that no text has", {"data.domain_words": ["moviegoer"]}),
    ("classification", "30 rows", {"data.train": "@small"}),
    ("classification", "nine in ten of one class", {"data.train": "@skewed"}),
    ("classification", "a decoder", {"model.base": "@llama", "model.dropout": REMOVED}),
    ("classification", "frozen features", {"method": {"name": "features"}, "train": {}, "model.dropout": REMOVED}),
    ("regression", "as it comes", {}),
    ("regression", "LoRA, ratings far apart", {"data.train": "@wild", "method.name": "lora"}),
    ("multi-label", "as it comes", {"data.separator": ";"}),
    ("token-classification", "as it comes", {}),
    ("token-classification", "LoRA", {"method.name": "lora"}),
    ("token-classification", "a decoder", {"model.base": "@llama", "model.dropout": REMOVED}),
    ("token-classification", "sentences of two words", {"data.train": "@words"}),
    ("causal-text", "as it comes", {}),
    ("causal-text", "tied, LoRA", {"model.base": "@tied", "method.name": "lora"}),
    ("causal-text", "short pieces that overlap", {"model.base": "@tied", "data.max_length": 12, "data.overlap": 3}),
    ("causal-text", "documents of one sentence", {"data.train": "@short"}),
    ("masked-text", "as it comes", {}),
    ("masked-text", "a head that the checkpoint lacks", {"model.base": "@bert", "mask.rate": 0.4}),
    ("masked-text", "LoRA, documents of one sentence", {"data.train": "@short", "method.name": "lora"}),
]  # fmt: skip


def clean_cases(world: World) -> list[Case]:
    """Write the data that only clean runs use; return them."""
    rows = reviews(200)
    world.small = write_csv(world.folder / "small.csv", rows[:30])  # type: ignore[attr-defined]
    few = [row for row in rows if row[1] == "positive"][:8]
    world.skewed = write_csv(  # type: ignore[attr-defined]
        world.folder / "skewed.csv", [row for row in rows if row[1] == "negative"] + few
    )
    wild = [(text, 1e4 if i % 40 == 0 else i % 7) for i, (text, _) in enumerate(rows)]
    world.wild = write_csv(world.folder / "wild.csv", wild)  # type: ignore[attr-defined]
    tags = {"anna": "B-PER", "rome": "B-LOC"}
    said = [f"{word} {name}" for word in WORDS[:20] for name in tags]
    words = [[(word, tags.get(word, "O")) for word in text.split()] for text in said]
    world.words = write_conll(world.folder / "words.conll", words)  # type: ignore[attr-defined]
    world.short = world.folder / "short.txt"  # type: ignore[attr-defined]
    world.short.write_text(documents(60, 8), "utf-8")  # type: ignore[attr-defined]
    from gauntlet_chat import CLEAN_CHAT
    from gauntlet_written import clean_written

    return [*(Case("", variant, task, values) for task, variant, values in CLEAN), *CLEAN_CHAT, *clean_written()]


def main() -> None:
    """Run everything, or a share of it."""
    import gauntlet_faults

    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="", help="faults whose name, task or variant holds this")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--shared", type=Path, help="data and models for clean runs of real weights")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finesmith-gauntlet-") as folder:
        world = World(Path(folder))
        faults = [one for one in gauntlet_faults.FAULTS if asked.only in f"{one.fault} {one.task} {one.variant}"]
        faults = faults[:: asked.every]
        clean = clean_cases(world)
        if asked.shared is not None:
            from gauntlet_real import real_cases

            clean += real_cases(world, asked.shared)
        clean = [one for one in clean if asked.only in f"clean {one.task} {one.variant}"][:: asked.every]
        found = run(faults, world)
        alarms = run(clean, world)
    print("\n".join(table(faults, found)))
    false = [clean[place].variant for place, caught in alarms.items() if caught]
    print(f"\n{len(clean)} clean runs, {len(false)} stopped{': ' + ', '.join(false) if false else ''}")
    result = {
        "caught": sum(map(bool, found.values())) / max(1, len(found)),
        "false_alarms": len(false),
        "faults": len(found),
    }
    if asked.peer_python is not None:
        import gauntlet_peers

        result["peers"] = gauntlet_peers.compare(asked.peer_python)  # type: ignore[assignment]
    print(json.dumps(result))


if __name__ == "__main__":
    # Faults import this module by its name.
    sys.modules["gauntlet"] = sys.modules["__main__"]
    main()
