"""Speed and memory of a causal training step against TRL's SFTTrainer: gsm8k, a Llama shape, one step of each in turn.

    python bench/causal_step.py --trl-python /path/to/python/with/trl     # about 15 minutes on 2 quiet cores
    python bench/causal_step.py --turns 2 --settings full

The model has 6 layers, 288 wide, random weights, and a tied vocabulary of 32,000 pieces made from the text at hand:
15.2 million parameters in float32. Rows are questions with worked answers; the loss is on answers only; 16 rows a step,
or three packs of 1,024 tokens with TRL's packing. No gradient checkpointing on either side.

Each side has a process of its own that waits for its turn after every step: SFTTrainer held by a callback, finesmith's
loop between two of its steps. A turn is a run of steps; its first, which finds the caches of the processor full of the
other side's numbers, is not counted. A step's time is all that passes until the next. TRL tokenises and packs;
finesmith takes the same rows in the same steps, unpacked, and the losses of each step must agree to 1e-4. The lines
before the last also say what the same steps cost in processor time, which other work on the machine disturbs less.

full, lora    real tokens a second, finesmith over SFTTrainer, medians over turns; padding does not count as a token
packed        the same with TRL's packing on, the lesser of full and lora
peak_memory   peak resident memory, ours over its, the greater of full and lora without packing

Data is looked for in FINESMITH_SHARED or ../shared. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SETTINGS = ("full", "lora", "full-packed", "lora-packed")
PIECES, ROWS, BATCH, PACKS, PACK = 32_000, 1_600, 16, 3, 1_024
RATE = 1e-4
STEPS_A_TURN = 2


def rows() -> list[dict[str, str]]:
    """Return questions and answers; no piece of text crosses the line break between them."""
    lines = (SHARED / "data" / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:ROWS]
    found = [json.loads(line) for line in lines]
    return [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in found]


def make_base(folder: Path) -> None:
    """Write the tokenizer and the model with random weights."""
    import lzma

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    with lzma.open(SHARED / "corpora" / "english.txt.xz", "rt", encoding="utf-8") as text:
        engine.train_from_iterator((text.read(20_000) for _ in range(400)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=2_048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def adapted(model: Any) -> Any:
    """Wrap a model with the same adapter on both sides."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))


# --- the two sides, each in a process of its own ----------------------------------------------------------------------


class Turns:
    """Hold this process after every step until the parent says go; tell it what the step was."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else prints goes to stderr

    def step(self, loss: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told = {"loss": loss, "peak_mb": peak, "processor": time.process_time()}
        print(json.dumps(told), file=self.out, flush=True)
        if sys.stdin.readline() != "go\n":
            os._exit(0)


def trl_side(setting: str, folder: Path) -> None:
    """Run SFTTrainer on the rows in their order; write down what it made of them."""
    turns = Turns()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    packed = setting.endswith("packed")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    seen: dict[str, float] = {}

    class Held(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step(seen["loss"])

    class Told(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            seen["loss"] = float(loss.detach())
            return loss

    trainer = Told(
        model=adapted(model) if setting.startswith("lora") else model,
        args=SFTConfig(
            output_dir=str(folder / f"trl-{setting}"), num_train_epochs=1, save_strategy="no", report_to=[],
            disable_tqdm=True, seed=0, bf16=False, gradient_checkpointing=False, packing=packed, max_length=PACK,
            per_device_train_batch_size=PACKS if packed else BATCH, learning_rate=RATE, weight_decay=0.0,
            lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows()),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        callbacks=[Held()],
    )  # fmt: skip
    size = PACKS if packed else BATCH
    items = [one_by_one(item) for item in trainer.train_dataset]
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    steps = [[row for item in part for row in item] for part in parts]
    (folder / f"{setting}.json").write_text(json.dumps(steps))
    trainer.train()


def one_by_one(item: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Take an element of TRL's data apart into sequences: token ids and labels."""
    ids, lengths = item["input_ids"], item.get("seq_lengths") or [len(item["input_ids"])]
    labels = item.get("labels")
    if labels is None:
        labels = [token if keep else -100 for token, keep in zip(ids, item["completion_mask"], strict=True)]
    found, begin = [], 0
    for length in lengths:
        found.append((ids[begin : begin + length], labels[begin : begin + length]))
        begin += length
    return found


def finesmith_side(setting: str, folder: Path) -> None:
    """Run finesmith's loop on the same rows in the same steps."""
    turns = Turns()
    from finesmith.cli import share_cores

    share_cores()  # as the command line does
    import numpy as np
    import torch

    from finesmith.models.language import load_language_model
    from finesmith.models.load import find, load_tokenizer
    from finesmith.models.token_loss import token_loss
    from finesmith.train import loop, optimiser
    from finesmith.train.adamw import AdamW
    from finesmith.train.devices import keep_freed_memory
    from finesmith.types import Batch

    keep_freed_memory()
    base = find(str(folder / "base"))
    network, _ = load_language_model(base, load_tokenizer(base), kind="causal", seed=0)
    if setting.startswith("lora"):
        network.module = adapted(network.classifier)
    steps = [
        [(np.array(ids, np.int32), np.array([*labels[1:], -100], np.int32)) for ids, labels in step]
        for step in json.loads((folder / f"{setting}.json").read_text())
    ]

    def batches(step: int) -> tuple[list[Batch], int]:
        chosen = sorted(steps[step], key=lambda row: len(row[0]))
        tokens, targets = (
            torch.from_numpy(np.concatenate([row[part] for row in chosen]).astype(np.int64)) for part in (0, 1)
        )
        lengths = torch.tensor([len(row[0]) for row in chosen])
        return [Batch(tokens, lengths, None, targets, torch.arange(len(chosen)))], int((targets != -100).sum())

    groups = optimiser.parameter_groups(network.module, learning_rate=RATE, weight_decay=0.0)
    schedule = optimiser.Schedule("constant", len(steps), 0)
    plan = loop.Plan(len(steps), len(steps), batches, 1.0, 0)
    for step in loop.train(network.module, lambda batch: token_loss(network, batch), AdamW(groups), schedule, plan):
        turns.step(step.loss)


# --- the measurements -------------------------------------------------------------------------------------------------


class Side:
    """A child process that does one step whenever it is told to."""

    def __init__(self, name: str, setting: str, folder: Path, python: str) -> None:
        self.name = name
        self.log = (folder / f"{name}-{setting}.log").open("w")
        self.process = subprocess.Popen(
            [python, __file__, "--side", name, "--setting", setting, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.steps = [self.told()]

    def told(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: {Path(self.log.name).read_text()[-2000:]}")
        found: dict[str, float] = json.loads(line)
        return found

    def turn(self, tokens: list[int]) -> float:
        """Let it do some steps; return the real tokens a second of all but the first."""
        seconds, first = [], len(self.steps)
        for _ in range(STEPS_A_TURN):
            assert self.process.stdin is not None
            began = time.perf_counter()
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.steps.append(self.told())
            seconds.append(time.perf_counter() - began)
        return sum(tokens[first + 1 : len(self.steps)]) / sum(seconds[1:])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(setting: str, turns: int, folder: Path, python: str) -> dict[str, Any]:
    """Measure one setting; every step's losses must agree."""
    sides: list[Side] = []
    try:
        for name, program in (("trl", python), ("finesmith", sys.executable)):
            sides.append(Side(name, setting, folder, program))
        theirs, ours = sides
        steps = json.loads((folder / f"{setting}.json").read_text())
        tokens = [sum(len(ids) for ids, _ in step) for step in steps]
        rounds = [(theirs.turn(tokens), ours.turn(tokens)) for _ in range(turns)]
    finally:
        for side in sides:
            side.end()
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(theirs.steps, ours.steps, strict=True)]
    if max(gaps) > 1e-4:
        raise SystemExit(f"{setting}: the losses differ by {gaps}")
    peaks = [side.steps[-1]["peak_mb"] for side in sides]
    spent = [side.steps[-1]["processor"] - side.steps[0]["processor"] for side in sides]
    return {
        "setting": setting,
        "ratio": statistics.median(b / a for a, b in rounds),
        "ratios": [round(b / a, 2) for a, b in rounds],
        "processor_seconds": {"trl": spent[0], "finesmith": spent[1], "ratio": spent[0] / spent[1]},
        "tokens_per_second": {
            "trl": statistics.median(a for a, _ in rounds), "finesmith": statistics.median(b for _, b in rounds),
        },
        "peak_mb": {"trl": peaks[0], "finesmith": peaks[1]},
        "peak_memory": peaks[1] / peaks[0],
        "largest_loss_difference": max(gaps),
        "steps_compared": len(gaps),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--trl-python", default=sys.executable, help="a Python that can import trl")
    parser.add_argument("--base", type=Path, help="keep the model and tokenizer here")
    for inner in ("--side", "--setting", "--folder"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        {"trl": trl_side, "finesmith": finesmith_side}[given.side](given.setting, Path(given.folder))
        return
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = given.base or folder / "made"
        if not (base / "config.json").is_file():
            make_base(base)
        (folder / "base").symlink_to(base.resolve())
        for setting in given.settings:
            found[setting] = measure(setting, given.turns, folder, given.trl_python)
            print(json.dumps(found[setting]), flush=True)
    plain = [found[name] for name in ("lora", "full") if name in found]
    packed = [found[name]["ratio"] for name in ("full-packed", "lora-packed") if name in found]
    result = {one["setting"]: round(one["ratio"], 2) for one in plain}
    if packed:
        result["packed"] = round(min(packed), 2)
    if plain:
        result["peak_memory"] = round(max(one["peak_memory"] for one in plain), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
