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


def write_chat(folder: Path, *, template: str | None = None, change: Any = None, bos: bool = True) -> Path:
    """Write a tiny Llama that reads 256 tokens; `change` gets its tokenizer before it is saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    tokenizer.eos_token, tokenizer.model_max_length = "[SEP]", 256
    if bos:
        tokenizer.bos_token = "[CLS]"
    tokenizer.chat_template = template
    if change is not None:
        change(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, bos_token_id=2, eos_token_id=3, pad_token_id=0,
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
            "embeddings": (world.related, world.bert)}  # fmt: skip


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
    ("three rounds, shortened", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 64}),
    ("shortened", {"text.too_long": "shorten", "data.max_length": 24, "data.train": "@asked"}),
    ("shortened, loss on all", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 64,
     "text.loss": "all"}),
    ("shortened, loss on the last", {"data.train": "@turns", "text.too_long": "shorten", "data.max_length": 40,
     "text.loss": "last"}),
    ("some dropped as too long", {"data.max_length": 30}),
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
