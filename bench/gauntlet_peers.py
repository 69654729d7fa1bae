"""The same faults in peers: transformers' Trainer and TRL's SFTTrainer, one step each, in a Python that has them.

    python bench/gauntlet_peers.py FOLDER     # run by gauntlet.py --peer-python; prints a line of JSON

Only faults that come in by files, settings or the model can be put into them without changing their code. Stopped means
that the peer raised an error before or in its first step; warned, that it wrote a warning of its own meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], None]


def compare(python: Path) -> dict[str, Any]:
    """Run the peers in their own Python; return how many faults each stopped, and print them all."""
    from gauntlet import World

    with tempfile.TemporaryDirectory(prefix="finesmith-peers-") as folder:
        World(Path(folder))
        done = subprocess.run([str(python), __file__, folder], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peers ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    for peer, faults in found.items():
        print(f"\n| {peer} | |\n|---|---|")
        for fault, how in faults.items():
            print(f"| {fault} | {how} |")
    return {
        peer: {"faults": len(faults) - 1, "stopped": sum(how.startswith("stopped") for how in faults.values())}
        for peer, faults in found.items()
    }


def setting(**values: Any) -> Change:
    """Change arguments of the trainer."""
    return lambda job: job["arguments"].update(values)


def numbers(value: float, part: str = "") -> Change:
    """Put numbers into the model's weights."""

    def change(job: dict[str, Any]) -> None:
        for name, parameter in job["model"].named_parameters():
            if part in name:
                parameter.data.fill_(value) if value != value else parameter.data.mul_(value)

    return change


def rows(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Change every training row."""

    def apply(job: dict[str, Any]) -> None:
        job["rows"] = [change(dict(row)) for row in job["rows"]]

    return apply


def random_body(job: dict[str, Any]) -> None:
    """Load a checkpoint whose tensors have other names."""
    from safetensors.torch import load_file, save_file

    source = Path(job["folder"])
    found = {f"net.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    other = source.with_name(f"{source.name}-renamed")
    if not other.exists():
        import shutil

        shutil.copytree(source, other)
        save_file(found, other / "model.safetensors", {"format": "pt"})
    job["model"] = type(job["model"]).from_pretrained(other)


def reversed_names(job: dict[str, Any]) -> None:
    """Name the head's outputs in another order than the data's."""
    job["model"].config.id2label = {0: "positive", 1: "negative"}


def half_frozen(job: dict[str, Any]) -> None:
    """Add LoRA and freeze the second factors."""
    from peft import LoraConfig, get_peft_model

    job["model"] = get_peft_model(job["model"], LoraConfig(target_modules="all-linear"))
    for name, parameter in job["model"].named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)


def untied(job: dict[str, Any]) -> None:
    """Give the output embeddings a tensor of their own."""
    import torch

    job["model"].config.tie_word_embeddings = True
    job["model"].lm_head.weight = torch.nn.Parameter(job["model"].lm_head.weight.detach().clone() + 0.1)


def pads_with_its_end(job: dict[str, Any]) -> None:
    """Take the end-of-text token for padding."""
    job["tokenizer"].pad_token = job["tokenizer"].eos_token


def nothing(job: dict[str, Any]) -> None:
    """Change nothing."""


TRAINER: dict[str, Change] = {
    "a clean run": nothing,
    "NaN in the embeddings": numbers(float("nan"), "embed"),
    "weights that overflow": numbers(1e30),
    "base weights of other names": random_body,
    "a learning rate of 0.9": setting(learning_rate=0.9),
    "a learning rate of 1e-9": setting(learning_rate=1e-9),
    "test rows in train": lambda job: job.update(rows=[*job["rows"], *job["test"]]),
    "the head's names reversed": reversed_names,
    "texts that write [CLS] too": rows(lambda row: {**row, "text": f"[CLS] {row['text']}"}),
    "half of an adapter frozen": half_frozen,
}
TRL: dict[str, Change] = {
    "a clean run": nothing,
    "NaN in the embeddings": numbers(float("nan"), "embed"),
    "a learning rate of 0.9": setting(learning_rate=0.9),
    "every answer cut away": setting(max_length=6),
    "pad is the end-of-text token": pads_with_its_end,
    "texts that write the beginning too": rows(lambda row: {**row, "prompt": f"[CLS] [CLS] {row['prompt']}"}),
    "packed rows that attend to each other": setting(packing=True, max_length=48),
    "loss on the prompts too": setting(completion_only_loss=False),
    "output embeddings untied by hand": untied,
    "half of an adapter frozen": half_frozen,
}


def trainer_job(folder: Path) -> dict[str, Any]:
    """Return a classification job."""
    import csv

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with (folder / "reviews.csv").open(encoding="utf-8") as file:
        found = [{"text": row["text"], "label": int(row["label"] == "positive")} for row in csv.DictReader(file)]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    return {"model": model, "tokenizer": tokenizer, "rows": found[:60], "test": found[60:], "arguments": {},
            "folder": folder / "bert"}  # fmt: skip


def run_trainer(job: dict[str, Any], out: str) -> None:
    """Take a step with Trainer."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = job["tokenizer"]
    data, test = (
        Dataset.from_list([{**tokenizer(row["text"], truncation=True), "labels": row["label"]} for row in part])
        for part in (job["rows"], job["test"])
    )
    arguments = {"learning_rate": 5e-5, "max_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    settings = TrainingArguments(output_dir=out, use_cpu=True, **{**arguments, **job["arguments"]})
    Trainer(
        model=job["model"], args=settings, train_dataset=data, eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()  # fmt: skip


def trl_job(folder: Path) -> dict[str, Any]:
    """Return a job of prompts and completions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = (folder / "text.txt").read_text("utf-8").split("\n\n")
    pairs = [
        (" ".join(text.split()[:8]), " " + " ".join(text.split()[8:16])) for text in texts if len(text.split()) > 9
    ]
    return {
        "model": AutoModelForCausalLM.from_pretrained(folder / "llama"),
        "tokenizer": AutoTokenizer.from_pretrained(folder / "llama"),
        "rows": [{"prompt": prompt, "completion": answer} for prompt, answer in pairs],
        "arguments": {},
        "folder": folder / "llama",
    }


def run_trl(job: dict[str, Any], out: str) -> None:
    """Take a step with SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = {"learning_rate": 2e-5, "max_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
                 "max_length": 64}  # fmt: skip
    settings = SFTConfig(output_dir=out, use_cpu=True, bf16=False, **{**arguments, **job["arguments"]})
    SFTTrainer(
        model=job["model"], args=settings, train_dataset=Dataset.from_list(job["rows"]),
        processing_class=job["tokenizer"],
    ).train()  # fmt: skip


class Heard(logging.Handler):
    """Keeps the warnings of the peers' own loggers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was said."""
        self.said.append(record.getMessage())


def attempt(make: Callable[[Path], dict[str, Any]], run: Callable[..., None], change: Change, folder: Path) -> Any:
    """Return how a peer took a fault, and the warnings it gave."""
    heard = Heard()
    logging.getLogger().addHandler(heard)
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            job = make(folder)
            change(job)
            run(job, out)
            how = "went on"
        except Exception as error:
            how = f"stopped: {type(error).__name__}: {str(error)[:120]}"
    logging.getLogger().removeHandler(heard)
    return how, {*heard.said, *(str(one.message) for one in told if issubclass(one.category, UserWarning))}


def main() -> None:
    """Run all faults of both peers in this process."""
    folder = Path(sys.argv[1])
    from transformers.utils import logging as hf_logging

    hf_logging.enable_propagation()
    found: dict[str, dict[str, str]] = {}
    peers = {"transformers Trainer": (trainer_job, run_trainer, TRAINER), "TRL SFTTrainer": (trl_job, run_trl, TRL)}
    with contextlib.redirect_stdout(sys.stderr):
        for peer, (make, run, faults) in peers.items():
            usual: set[str] = set()
            for fault, change in faults.items():
                how, said = attempt(make, run, change, folder)
                if fault == "a clean run":
                    usual = said
                new = sorted(one for one in said - usual if one.strip())
                warned = f"warned: {new[0][:120]}" if new and how == "went on" else how
                found.setdefault(peer, {})[fault] = " ".join(warned.split())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
