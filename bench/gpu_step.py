"""Speed and memory of a training step on a GPU: finesmith's ragged one against transformers' own padded one.

    python bench/gpu_step.py                                   # 1B and 8B Llama shapes, full and LoRA; needs a GPU
    python bench/gpu_step.py --shapes 1b --methods lora --checkpointing on
    python bench/gpu_step.py --shapes tiny --device cpu        # the same code in seconds; its numbers say nothing

Weights are random, made on the device and never written to disk. Lengths of rows are drawn as chats have them: a
log-normal with a median of 300 tokens, 16 to 2,048 of them, the last 30 to 80 percent of each an answer that is
learnt. A step is one batch of `--rows` rows through one model, forwards, backwards, clipping and fused AdamW.

Both sides train the same model in turns, a step each, on the same rows: finesmith lays the tokens end to end and
computes its head where something is learnt; the other pads to the longest row and calls the model's own forward with
torch's attention (sdpa). The losses of the first step of each, from the same weights, must agree. With checkpointing
both compute their layers again on the way back; with --compile both run them through torch's compiler.

tokens_per_second    real tokens; padding does not count. Medians over steps, without the first ones
ratio                finesmith over transformers
peak_mb              the most memory that a step held, weights and optimiser included (on a CPU: of the process so far)
share_of_peak        products that real tokens need (two operations for each weight and direction; nothing for what is
                     computed again), over what a large product reaches on this device in the same type

Weights are float32 under bfloat16 autocast, as in a run, or all in bfloat16 (--weights; the usual for 8b, which does
not fit otherwise). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128_256, "hidden_size": 2_048, "intermediate_size": 8_192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
METHODS = ("full", "lora")
MEDIAN, SPREAD, SHORTEST, LONGEST = 300, 0.9, 16, 2_048
NO_GPU = "no GPU is at hand, so there is nothing to measure; --shapes tiny --device cpu runs the same code on a CPU"
# The largest difference of the two sides' first losses, by the type they are computed in.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}


def batches(count: int, rows: int, vocabulary: int, longest: int, device: Any) -> list[Any]:
    """Draw batches of rows in ascending order of length, each row the same on every machine."""
    import numpy as np
    import torch

    from finesmith.types import Batch

    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        lengths = np.exp(draw.normal(math.log(MEDIAN), SPREAD, rows)).astype(int)
        lengths = np.sort(lengths.clip(SHORTEST, LONGEST) * longest // LONGEST).clip(4)
        tokens = torch.from_numpy(draw.integers(2, vocabulary, lengths.sum()))
        targets, begin = torch.full_like(tokens, -100), 0
        for length in lengths.tolist():
            asked = length - max(1, round(length * draw.uniform(0.3, 0.8)))
            targets[begin + asked : begin + length - 1] = tokens[begin + asked + 1 : begin + length]
            begin += length
        made.append(
            Batch(tokens.to(device), torch.from_numpy(lengths).to(device), None, targets.to(device), torch.arange(rows))
        )
    return made


def make(shape: str, method: str, weights: str, device: str, checkpointing: bool, compiled: bool = False) -> Any:
    """Return a network of finesmith's around a model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from finesmith.models.adapter_kinds import add_adapter
    from finesmith.models.blocks import compile_blocks, recompute_blocks
    from finesmith.models.language import choose_token_attention
    from finesmith.models.token_heads import TokenNetwork

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8_192, rope_theta=500_000.0, pad_token_id=0)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype({"float32": torch.float32, "bfloat16": torch.bfloat16}[weights])
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer: Any = None
    network = TokenNetwork(model, model, tokenizer, False, "", 0, kind="causal")
    choose_token_attention(network, "ragged")
    if method == "lora":
        add_adapter(network, "lora", {}, seed=0, purpose="causal")
    if compiled:
        compile_blocks(network)
    if checkpointing:
        recompute_blocks(network)
    return network


def ragged_loss(network: Any, batch: Any) -> tuple[Any, int]:
    from finesmith.models.token_loss import token_loss

    return token_loss(network, batch)  # type: ignore[no-any-return]


def padded_loss(network: Any, batch: Any) -> tuple[Any, int]:
    """Return the loss as transformers' own forward computes it."""
    import torch

    from finesmith.models.forward import padded

    inputs = padded(network, batch)
    real = inputs["attention_mask"].bool()
    shifted = torch.full_like(inputs["input_ids"], -100)
    shifted[real] = batch.targets
    logits = network.module(**inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), reduction="sum")
    return loss, int((batch.targets != -100).sum())


@contextmanager
def attention(network: Any, name: str) -> Iterator[None]:
    before = network.classifier.config._attn_implementation
    network.classifier.set_attn_implementation(name)
    try:
        yield
    finally:
        network.classifier.set_attn_implementation(before)


class Clock:
    """Times a step to its end, and the most memory that it held."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def step(self, work: Callable[[], float]) -> tuple[float, float, float]:
        """Return what `work` returns, the seconds it took, and the peak in MB."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        value = work()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if self.cuda:
            return value, seconds, torch.cuda.max_memory_allocated() / 2**20
        return value, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_products(device: str, dtype: Any) -> float:
    """Return the operations a second that a large product of matrices reaches."""
    import torch

    size = 8_192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock, found = Clock(device), []
    for _ in range(8):
        _, seconds, _ = clock.step(lambda: float(0 * (a @ b)[0, 0]))
        found.append(2 * size**3 / seconds)
    return max(found)


def operations(network: Any, batch: Any, method: str) -> float:
    """Return the operations of the products that a step needs: forwards, and backwards for what is trained."""
    config = network.classifier.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in network.classifier.model.layers.parameters() if p.dim() == 2)
    trained = 3 if method == "full" else 2
    return 2 * trained * (body * len(batch.tokens) + head * int((batch.targets != -100).sum()))


def measure(setting: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Train one model in turns; return what each side took."""
    import torch

    from finesmith.models import attention as ragged
    from finesmith.train.adamw import AdamW
    from finesmith.train.optimiser import parameter_groups
    from finesmith.train.step import clip_gradients

    device, weights = given.device, setting["weights"]
    low = device == "cuda"
    network = make(setting["shape"], setting["method"], weights, device, setting["checkpointing"], setting["compile"])
    module = network.module.train()
    optimizer = AdamW(parameter_groups(module, learning_rate=1e-5, weight_decay=0.01))
    trained = [p for p in module.parameters() if p.requires_grad]
    longest = LONGEST if setting["shape"] != "tiny" else 64
    rounds = batches(given.steps + given.warmup, given.rows, SHAPES[setting["shape"]]["vocab_size"], longest, device)
    clock = Clock(device)
    sides = {"finesmith": (ragged.RAGGED, ragged_loss), "transformers": ("sdpa", padded_loss)}
    seen: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    dtype = torch.bfloat16 if low or weights == "bfloat16" else torch.float32

    def loss_of(side: str, batch: Any) -> tuple[Any, int]:
        with torch.autocast(device, torch.bfloat16, enabled=low):
            return sides[side][1](network, batch)

    def step(side: str, batch: Any) -> float:
        optimizer.zero_grad()
        loss, units = loss_of(side, batch)
        (loss / units).backward()
        clip_gradients(trained, 1.0)
        optimizer.step()
        return float(loss.detach()) / units

    first = {}
    for side, (kind, _) in sides.items():
        with torch.no_grad(), attention(network, kind):
            first[side] = float(loss_of(side, rounds[0])[0])
    gap = abs(first["finesmith"] - first["transformers"]) / abs(first["transformers"])
    if gap > TOLERANCE[str(dtype).removeprefix("torch.")]:
        raise SystemExit(f"{setting}: the losses of the same weights on the same rows differ by {gap:.2g}: {first}")
    for batch in rounds:
        for side, (kind, _) in sides.items():
            # The way back too, which may compute layers again.
            with attention(network, kind):
                seen[side].append(clock.step(partial(step, side, batch)))
    kept = range(given.warmup, len(rounds))
    tokens = [len(batch.tokens) for batch in rounds]
    speeds = {side: statistics.median(tokens[i] / seen[side][i][1] for i in kept) for side in sides}
    work = [operations(network, batch, setting["method"]) for batch in rounds]
    peak = peak_products(device, dtype)
    shares = {side: statistics.median(work[i] / seen[side][i][1] / peak for i in kept) for side in sides}
    return {
        **setting,
        "tokens_per_second": {side: round(speed, 1) for side, speed in speeds.items()},
        "ratio": round(statistics.median(seen["transformers"][i][1] / seen["finesmith"][i][1] for i in kept), 3),
        "peak_mb": {side: round(max(seen[side][i][2] for i in kept)) for side in sides},
        "share_of_peak": {side: round(share, 4) for side, share in shares.items()},
        "peak_teraflops": round(peak / 1e12, 3),
        "real_tokens_a_step": round(statistics.mean(tokens)),
        "share_of_padding": round(1 - sum(tokens) / sum(len(b.lengths) * int(b.lengths.max()) for b in rounds), 3),
        "loss_difference": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "8b"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--checkpointing", choices=("off", "on", "both"), default="both")
    parser.add_argument("--compile", choices=("off", "on", "both"), default="off")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), help="default: float32, bfloat16 for 8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that count")
    given = parser.parse_args()
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    found: list[dict[str, Any]] = []
    ways = {"off": [False], "on": [True], "both": [False, True]}
    for shape, method, checkpointing, compiled in product(
        given.shapes, given.methods, ways[given.checkpointing], ways[given.compile]
    ):
        setting = {
            "shape": shape, "method": method, "checkpointing": checkpointing, "compile": compiled,
            "weights": given.weights or ("bfloat16" if shape == "8b" else "float32"),
        }  # fmt: skip
        try:
            found.append(measure(setting, given))
        except torch.OutOfMemoryError as error:
            found.append({**setting, "out_of_memory": str(error).splitlines()[0]})
        print(json.dumps(found[-1]), flush=True)
        if given.device == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps({"device": name, "torch": torch.__version__, "settings": found}))


if __name__ == "__main__":
    main()
