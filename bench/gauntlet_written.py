"""Tasks of written answers, preferences and embeddings in the gauntlet: their data, clean runs, and faults of files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from jobs import BAD, GOOD, PLAIN, reviews, write_csv
from language_jobs import labelled, triplets, write_rows

from gauntlet import REMOVED, Case

ASKED = ("what is the colour of", "tell me about", "how many are in", "is it late for")
METHODS = ("rslora", "dora", "pissa", "ia3", "prompt")
USUAL = {"train.learning_rate": REMOVED}
# A template with marks of its own, as base models for conversations have them.
OWN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def pairs(count: int = 90) -> list[tuple[str, str]]:
    """Return prompts and short answers that go with them."""
    draw = random.Random(0)
    return [
        (f"{draw.choice(ASKED)} {' '.join(draw.choices(PLAIN, k=draw.randint(3, 7)))}",
         " ".join(draw.choices(PLAIN, k=draw.randint(2, 5))))
        for _ in range(count)
    ]  # fmt: skip


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON list, as Alpaca and ShareGPT files are."""
    path.write_text(json.dumps(rows), "utf-8")
    return path


def talks(rounds: int, count: int = 60) -> list[dict[str, Any]]:
    """Return conversations of several rounds, some with a system turn."""
    said, rows = pairs(count * rounds), []
    for at in range(0, len(said), rounds):
        turns = [{"role": "system", "content": "love the film"}] if at % 2 else []
        for asked, answer in said[at : at + rounds]:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns})
    return rows


def tools() -> list[dict[str, Any]]:
    """Return conversations in ShareGPT's form whose answers call a tool."""
    found = []
    for at, (asked, answer) in enumerate(pairs(60)):
        call = json.dumps({"name": "order", "arguments": {"card": at}})
        turns = [("human", asked), ("function_call", call), ("observation", json.dumps({"late": at})), ("gpt", answer)]
        listed = json.dumps([{"name": "order", "description": "the order", "parameters": {"type": "object"}}])
        said = [{"from": who, "value": text} for who, text in (turns if at % 3 else [turns[0], turns[-1]])]
        found.append({"conversations": said, "tools": listed if at % 3 else ""})
    return found


def preferred(count: int = 80) -> list[dict[str, Any]]:
    """Return prompts with an answer that speaks well and one that does not."""
    draw = random.Random(0)
    return [
        {"prompt": " ".join(draw.choices(PLAIN, k=5)), **{side: f"{' '.join(draw.choices(PLAIN, k=draw.randint(1, 4)))}"
         f" {draw.choice(of)}" for side, of in (("chosen", GOOD), ("rejected", BAD))}}
        for _ in range(count)
    ]  # fmt: skip


def worded(count: int = 70) -> list[dict[str, Any]]:
    """Return sets of three words, each with a sentence that holds them."""
    draw = random.Random(2)
    sets = {tuple(sorted(draw.sample(PLAIN, 3))): None for _ in range(4 * count)}
    return [
        {"concept_set": "#".join(words), "scene": [f"the {words[0]} and the {words[1]} with a {words[2]}"]}
        for words in list(sets)[:count]
    ]


def told_short(count: int = 70) -> list[dict[str, Any]]:
    """Return texts whose first words are their summary."""
    draw = random.Random(3)
    texts = [draw.choices(PLAIN, k=14) for _ in range(count)]
    return [{"document": " ".join(words), "summary": " ".join(words[:3])} for words in texts]


def write_chat(folder: Path, *, template: str | None = None, change: Any = None, bos: bool = True) -> Path:
    """Write a tiny Llama that reads 512 tokens; `change` gets its tokenizer before it is saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    tokenizer.eos_token, tokenizer.model_max_length = "[SEP]", 512
    if bos:
        tokenizer.bos_token = "[CLS]"
    tokenizer.chat_template = template
    if change is not None:
        change(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pad_with_end(tokenizer: Any) -> None:
    """Pad with the token that ends a text."""
    tokenizer.pad_token = tokenizer.eos_token


def marks(tokenizer: Any) -> None:
    """Add the marks of ChatML."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})


def write_world(world: Any) -> dict[str, tuple[Path, Path]]:
    """Write data and models of these tasks; return those of each task."""
    folder = world.folder
    alpaca = [
        {"instruction": asked, "input": "" if at % 2 else "card bank", "output": answer}
        for at, (asked, answer) in enumerate(pairs())
    ]
    world.alpaca = write_json(folder / "alpaca.json", alpaca)
    world.tools = write_json(folder / "tools.json", tools())
    world.turns = write_rows(folder / "turns.jsonl", talks(3))
    asked = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs()]
    world.asked = write_rows(folder / "asked.jsonl", asked)
    world.preferred = write_rows(folder / "preferred.jsonl", preferred())
    single = [
        {"prompt": row["prompt"], "completion": row["rejected" if at % 2 else "chosen"], "label": at % 2 == 0}
        for at, row in enumerate(preferred())
    ]
    world.marked = write_rows(folder / "marked.jsonl", single)
    world.worded_sets = write_rows(folder / "sets.jsonl", worded())
    world.told_short = write_rows(folder / "summaries.jsonl", told_short())
    three = triplets()
    world.related = write_csv(folder / "related.csv", [row[:2] for row in three], ("query", "passage"))
    world.triplets = write_csv(folder / "triplets.csv", three, ("anchor", "positive", "negative"))
    world.labelled = write_csv(folder / "labelled.csv", labelled(), ("text", "category"))
    world.others = write_csv(folder / "others.csv", reviews(60, seed=9))
    world.more = folder / "more.txt"
    world.more.write_text("\n\n".join(text for text, _ in reviews(60, seed=7, words=20)), "utf-8")
    world.chat = write_chat(folder / "chat")
    world.own = write_chat(folder / "own", template=OWN)
    world.marks = write_chat(folder / "marks", change=marks)
    world.padded = write_chat(folder / "padded", change=pad_with_end)
    return {"instruct": (world.alpaca, world.chat), "preferences": (world.preferred, world.chat),
            "embeddings": (world.related, world.bert), "concept-to-text": (world.worded_sets, world.chat),
            "summarisation": (world.told_short, world.chat)}  # fmt: skip


def adapters(task: str, **values: Any) -> list[Case]:
    return [
        Case("", f"{name} at {'the usual rate' if rate else '1e-2'}", task, {"method.name": name, **rate, **values})
        for name in METHODS
        for rate in ({}, USUAL)
    ]


INSTRUCT: list[tuple[str, dict[str, Any]]] = [
    ("Alpaca", {}),
    ("Alpaca, LoRA", {"method.name": "lora"}),
    ("Alpaca, the usual rate", USUAL),
    ("prompts and completions", {"data.train": "@asked"}),
    ("ShareGPT with tools", {"data.train": "@tools", "model.base": "@marks", "text.template": "chatml"}),
    ("ShareGPT with tools, LoRA",
     {"data.train": "@tools", "model.base": "@marks", "text.template": "chatml", "method.name": "lora"}),
    ("three rounds", {"data.train": "@turns"}),
    ("three rounds, loss on the last", {"data.train": "@turns", "text.loss": "last"}),
    ("three rounds, loss on all", {"data.train": "@turns", "text.loss": "all"}),
    ("loss on all, LoRA", {"text.loss": "all", "method.name": "lora"}),
    ("three rounds, shortened", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 100}),
    ("shortened", {"text.too_long": "shorten", "data.max_length": 34, "data.train": "@asked"}),
    ("shortened, loss on all", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 100,
     "text.loss": "all"}),
    ("shortened, loss on the last", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 90,
     "text.loss": "last"}),
    ("some dropped as too long", {"data.max_length": 40}),
    ("its own template", {"model.base": "@own"}),
    ("its own template, three rounds", {"model.base": "@own", "data.train": "@turns"}),
    ("padding is the end", {"model.base": "@padded"}),
    ("template alpaca", {"text.template": "alpaca"}),
    ("template inst", {"text.template": "inst", "data.train": "@turns"}),
    ("micro-batches of one row", {"train.micro_batch_size": 1, "train.batch_size": 4}),
    ("two sources by weight", {"data.train": ["@alpaca", "@asked"], "data.weights": [1, 3]}),
    ("untied, LoRA", {"model.base": "@llama", "method.name": "lora"}),
]  # fmt: skip
SMALL = {"train.batch_size": 4, "train.micro_batch_size": 4}
KTO = {"data.train": "@marked"}


def clean_written() -> list[Case]:
    """Return clean runs of these tasks, of every kind of adapter, and of mixtures."""
    found = [Case("", name, "instruct", values) for name, values in INSTRUCT]
    for loss, values in {"dpo": {}, "ipo": {"train.loss": "ipo"}, "orpo": {"train.loss": "orpo"}, "kto": KTO}.items():
        for method, rate in (("full", 5e-3), ("lora", 2e-2)):
            given = {"method.name": method, "train.learning_rate": rate, **values}
            found.append(Case("", f"{loss}, {method}", "preferences", given))
    for task in ("concept-to-text", "summarisation"):
        found.append(Case("", "as it comes", task))
        found.append(Case("", "the usual rate", task, USUAL))
        found.append(Case("", "LoRA", task, {"method.name": "lora"}))
        found.append(Case("", "its own template", task, {"model.base": "@own"}))
        found.append(Case("", "shortened", task, {"text.too_long": "shorten", "data.max_length": 30}))
        found.append(Case("", "micro-batches of one row", task, {"train.micro_batch_size": 1, "train.batch_size": 4}))
    found.append(Case("", "dpo at the usual rate", "preferences", USUAL))
    found.append(Case("", "kto in micro-batches of one", "preferences", {**KTO, **USUAL, "train.micro_batch_size": 1}))
    for kind in ("related", "triplets", "labelled"):
        for method in ("full", "lora"):
            for size, more in (("8", {}), ("4", SMALL)):
                given = {"data.train": f"@{kind}", "method.name": method, **more}
                found.append(Case("", f"{kind}, {method}, batches of {size}", "embeddings", given))
    found += [Case("", "the usual rate", "embeddings", USUAL)]
    for task in ("classification", "causal-text", "token-classification"):
        found += adapters(task)
    for task in ("instruct", "preferences", "embeddings", "masked-text"):
        found += [one for one in adapters(task) if "prompt at" not in one.variant]
    mixed = {"classification": "@others", "causal-text": "@more"}
    for task, other in mixed.items():
        first = "@reviews" if task == "classification" else "@text"
        for weights in ([1, 1], [5, 1]):
            given = {"data.train": [first, other], "data.weights": weights}
            found.append(Case("", f"two sources, {weights[0]} to {weights[1]}", task, given))
    overlap = {"data.max_length": 12, "data.overlap": 6, "model.base": "@tied"}
    for method in ("lora", "dora"):
        found.append(Case("", f"pieces that overlap, {method}", "causal-text", {**overlap, "method.name": method}))
    return found


# --- faults that come in by files, by a template, or by the recipe ----------------------------------------------------


def other_rows(make: Any) -> Any:
    """Have other rows in the data file."""

    def files(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
        folder.mkdir()
        path = write_rows(folder / "rows.jsonl", make())
        return {**tree, "data": {**tree["data"], "train": str(path)}}

    return files


def base_with(*, template: str | None = None, change: Any = None, bos: bool = True) -> Any:
    """Have another base model."""

    def files(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
        write_chat(folder, template=template, change=change, bos=bos)
        return {**tree, "model": {**tree["model"], "base": str(folder)}}

    return files


def untrained(how: str) -> list[dict[str, Any]]:
    """Return conversations in which nothing is to be learnt."""
    rows = talks(2)
    for row in rows:
        if how == "asked only":
            row["messages"] = [turn for turn in row["messages"] if turn["role"] != "assistant"]
        for turn in row["messages"]:
            if turn["role"] == "assistant" and how == "weight 0":
                turn["weight"] = 0
            if turn["role"] == "assistant" and how == "empty":
                turn["content"] = ""
    return rows


def endless(tokenizer: Any) -> None:
    """Have no token that ends a text."""
    tokenizer.eos_token = None


def leaked(how: str) -> Any:
    """Name a test or validation file that repeats training rows."""

    def files(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
        folder.mkdir()
        source = Path(tree["data"]["train"])
        text = source.read_text("utf-8")
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        some = [dict(row) for row in rows[:30]]
        for row in some:
            for key, value in row.items():
                if how == "other answers" and key in ("output", "chosen", "rejected", "summary"):
                    row[key] = f"{value} thanks"
                if how == "other answers" and key == "scene":
                    row[key] = [f"{one} thanks" for one in value]
                if how == "other letters" and isinstance(value, str):
                    row[key] = value.upper()
        path = write_rows(folder / "some.jsonl", some)
        return {**tree, "data": {**tree["data"], "validation" if how == "validation" else "test": str(path)}}

    return files


TURN = "{{ message['role'] }} : {{ message['content'] }}"
EACH = "{% for message in messages %}"
ASK = "{% if add_generation_prompt %}assistant :{% endif %}"
END = "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %} "
TEMPLATES: dict[str, dict[str, str]] = {
    "stop token never supervised": {
        "a template without one": f"{{{{ bos_token }}}}{EACH}{TURN} {{% endfor %}}{ASK}",
        "a template that writes it before": f"{{{{ bos_token }}}}{EACH}{{{{ eos_token }}}} {TURN} {{% endfor %}}{ASK}",
        "a template that ends what was asked": f"{{{{ bos_token }}}}{EACH}{TURN}{{% if message['role'] == 'user' %}}"
        f"{{{{ eos_token }}}}{{% endif %}} {{% endfor %}}{ASK}",
    },
    "double BOS": {
        "a template writes it twice": f"{{{{ bos_token }}}}{{{{ bos_token }}}}{EACH}{TURN}{END}{{% endfor %}}{ASK}",
        "a template writes its name too": f"{{{{ bos_token }}}}[CLS]{EACH}{TURN}{END}{{% endfor %}}{ASK}",
        "a template writes it at every turn": f"{{{{ bos_token }}}}{EACH}{{{{ bos_token }}}}{TURN}{END}{{% endfor %}}"
        f"{ASK}",
    },
    "asked otherwise than trained": {
        "a word more when it asks": "{{ bos_token }}{% if add_generation_prompt %}refund {% endif %}"
        f"{EACH}{TURN}{END}{{% endfor %}}{ASK}",
        "it is opened under another name": f"{{{{ bos_token }}}}{EACH}{TURN}{END}{{% endfor %}}"
        "{% if add_generation_prompt %}model :{% endif %}",
        "a beginning in training alone": "{% if not add_generation_prompt %}{{ bos_token }}{% endif %}"
        f"{EACH}{TURN}{END}{{% endfor %}}{ASK}",
    },
    "mask of zeros or ones": {
        "a template without answers": f"{{{{ bos_token }}}}{EACH}{{% if message['role'] == 'user' %}}{TURN}"
        f"{{% endif %}}{{% endfor %}}{ASK}",
    },
}  # fmt: skip


def faults_written() -> list[Case]:
    """Return the faults that go through whole runs of instructions and of preferences."""
    both, written = ("instruct", "preferences"), ("concept-to-text", "summarisation")
    spoken = both + written
    # A rate of instructions is too high for preferences, and that is not what these are about.
    own: dict[str, dict[str, Any]] = {**{task: {} for task in spoken}, "preferences": {"train.learning_rate": 5e-3}}
    found = [
        Case(fault, name, task, own[task], files=base_with(template=text))
        for fault, variants in TEMPLATES.items()
        for name, text in variants.items()
        for task in spoken
    ]
    for how in ("asked only", "weight 0", "empty"):
        rows = other_rows(lambda how=how: untrained(how))
        found.append(Case("mask of zeros or ones", f"answers: {how}", "instruct", files=rows))
        last = {"text.loss": "last"}
        found.append(Case("mask of zeros or ones", f"answers: {how}, loss on the last", "instruct", last, files=rows))
    end = "stop token never supervised"
    found += [Case(end, "the tokenizer has none", task, own[task], files=base_with(change=endless)) for task in spoken]
    cuts: dict[str, dict[str, Any]] = {
        "all rows dropped": {"data.max_length": 6},
        "some too long, to be stopped at": {"data.max_length": 26, "text.too_long": "stop"},
        "answers longer than what is kept": {"data.max_length": 5, "text.too_long": "shorten"},
    }
    for name, values in cuts.items():
        tasks = both if values.get("text.too_long") == "stop" else spoken
        found += [Case("an answer cut away", name, task, {**own[task], **values}) for task in tasks]
    for task in written:
        most_of_them = {"concept-to-text": 22, "summarisation": 34}[task]
        found.append(Case("an answer cut away", "most rows dropped", task, {"data.max_length": most_of_them}))
    most: dict[str, dict[str, Any]] = {
        "most rows dropped": {"data.max_length": 32},
        "most rows dropped, loss on all": {"data.max_length": 32, "text.loss": "all"},
        "most rows dropped, loss on the last": {"data.max_length": 32, "text.loss": "last"},
    }
    found += [Case("an answer cut away", name, "instruct", values) for name, values in most.items()]
    values = {**own["preferences"], "data.max_length": 25}
    found.append(Case("an answer cut away", "most rows dropped", "preferences", values))
    for how in ("the same rows", "other answers", "other letters", "validation"):
        found += [
            Case("the same rows in two splits", f"a file of training rows: {how}", task, own[task],
                 files=leaked(how), told="leakage")
            for task in spoken
        ]  # fmt: skip
    for kind in ("related", "triplets", "labelled"):
        found.append(
            Case("the same rows in two splits", f"a test file copied from train: {kind}", "embeddings",
                 {"data.train": f"@{kind}"}, files=copied_csv, told="leakage")
        )  # fmt: skip
    return found


def copied_csv(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Name a test file that holds a part of the training file."""
    folder.mkdir()
    head, *rows = Path(tree["data"]["train"]).read_text("utf-8").splitlines()
    path = folder / "test.csv"
    path.write_text("\n".join([head, *rows[:30]]), "utf-8")
    return {**tree, "data": {**tree["data"], "test": str(path)}}
