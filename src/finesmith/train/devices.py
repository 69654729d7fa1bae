"""The machine a run trains on: device, number type, threads, memory, and the seeds that make it repeat itself."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finesmith.errors import UserError

if TYPE_CHECKING:
    pass

Precision = Literal["auto", "float32", "bfloat16"]
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how to train. Memory in bytes: the GPU's on "cuda", else the machine's or the container's."""

    device: Literal["cpu", "cuda", "mps"]
    dtype: Literal["float32", "bfloat16"]
    threads: int
    cores: int
    memory_total: int
    memory_free: int
    why: str


def choose(precision: Precision) -> Device:
    """Choose the fastest device at hand, and bfloat16 where it computes natively unless told otherwise.

    Raises:
        UserError: bfloat16 was asked for on hardware that only imitates it.
    """
    import torch

    cores = usable_cores()
    threads = min(torch.get_num_threads(), cores)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = _dtype(precision, native, "this GPU")
        why = f"a CUDA GPU ({torch.cuda.get_device_name()}) is there, and {_reason(precision, native)}"
        return Device("cuda", dtype, threads, cores, total, free, why)
    total, free = machine_memory()
    if torch.backends.mps.is_available():
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        return Device("mps", dtype, threads, cores, total, free, f"an Apple GPU is there, with {dtype}")
    native = bool(NATIVE_BFLOAT16 & cpu_flags())
    dtype = _dtype(precision, native, "this CPU")
    return Device("cpu", dtype, threads, cores, total, free, f"no GPU is there, and {_reason(precision, native)}")


def _dtype(precision: Precision, native: bool, what: str) -> Literal["float32", "bfloat16"]:
    if precision == "bfloat16" and not native:
        raise UserError(
            f"train.precision is bfloat16, but {what} has no native bfloat16 instructions and would be 40 to 500 times "
            "slower with it; use float32 or auto"
        )
    return "bfloat16" if native and precision != "float32" else "float32"


def _reason(precision: Precision, native: bool) -> str:
    if precision != "auto":
        return f"{precision} was asked for"
    return "it computes bfloat16 natively" if native else "it has no native bfloat16, so float32"


def cpu_flags(source: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the instruction sets that the CPU names; none where the system does not tell (only Linux does)."""
    if not source.is_file():
        return set()
    for line in source.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use: its affinity, or its container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def machine_memory(container: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Return total and free memory in bytes: the machine's, or its container's where that has a lower limit."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit = container / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        used = int((container / "memory.current").read_text())
        # Cached files count as used there, and go when memory is wanted.
        statistics = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
        used -= int(statistics.get("inactive_file", 0))
        total, free = min(total, int(text)), max(0, min(free, int(text) - used))
    return total, free


def keep_freed_memory() -> None:
    """Ask the C library (glibc) to reuse the memory of freed tensors rather than to hand it back and fetch it anew.

    Each step frees and asks for the same large blocks. Handing them back makes the kernel clear every page again, about
    5 percent of a step on a CPU. Other C libraries are left as they are.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # Older versions refuse more than 32 MB here; either setting alone would freeze the other at its small default.
        if library.mallopt(M_MMAP_THRESHOLD, 2**25):
            library.mallopt(M_TRIM_THRESHOLD, 2**29)


def set_determinism(seed: int, threads: int) -> None:
    """Seed Python, numpy and torch, fix the number of threads, and allow only operations that repeat to the bit.

    Sums are split over threads, so the same bits need the same number of threads on the same machine and versions.

    Raises:
        UserError: the seed or the number of threads is out of range.
    """
    import random

    import numpy as np
    import torch

    if not 0 <= seed < 2**32:
        raise UserError(f"train.seed is {seed}, expected 0 to {2**32 - 1}")
    if threads < 1:
        raise UserError(f"the number of threads is {threads}, expected at least 1")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    # cuBLAS reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What use_deterministic_algorithms(True) sets, without its import of torch's compiler, which takes seconds.
    torch.set_deterministic_debug_mode("error")
    # Filling fresh memory with NaN only serves programs that read it unwritten, and costs a pass over every buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
