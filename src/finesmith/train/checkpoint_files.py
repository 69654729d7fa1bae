"""The files inside a checkpoint: tensors as safetensors, state as JSON, every byte written through one function."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

if TYPE_CHECKING:
    import torch

JSON: TypeAlias = Union[bool, int, float, str, "list[JSON]", "dict[str, JSON]", None]
FLOAT_TAG = "$float"


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, flush it to the disk, and return its size in bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as handle:
        for part in parts:
            write_part(handle, part)
            digest.update(part)
            size += len(part)
        handle.flush()
        os.fsync(handle.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def write_part(handle: BinaryIO, part: bytes | memoryview) -> None:
    """Write some bytes; the only place where a checkpoint writes."""
    handle.write(part)


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and SHA-256."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return the one JSON spelling of plain values, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """Return state as JSON from which every float, infinite and NaN too, and the order of keys are read back exactly.

    Raises:
        TypeError: a value is not None, bool, int, float, str, list, tuple or a mapping with string keys.
    """
    return json.dumps(_plain(state, "state"), allow_nan=False, separators=(",", ":")).encode()


def read_state(raw: bytes) -> dict[str, JSON]:
    """Read what `state_bytes` wrote; tuples come back as lists."""
    state: dict[str, JSON] = json.loads(raw, object_hook=_restore_float)
    return state


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_TAG: repr(float(value))}
    if isinstance(value, Mapping):
        if FLOAT_TAG in value or not all(isinstance(key, str) for key in value):
            raise TypeError(f"{place} has a key that is not a string, or the reserved key {FLOAT_TAG}")
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{position}]") for position, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which JSON cannot hold")


def _restore_float(value: dict[str, Any]) -> Any:
    return float(value[FLOAT_TAG]) if value.keys() == {FLOAT_TAG} else value


def find_aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return, for every tensor that is the same memory as an earlier one, that one's name."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def tensor_parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, holding one tensor's copy at a time.

    The format: an 8-byte little-endian length, that many bytes of JSON (name to dtype, shape and byte range), then the
    tensors. Wider types come first so that each is aligned.
    """
    import torch

    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    codes, end = _type_codes(), 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in codes:
            raise TypeError(f"{name} is a tensor of {tensor.dtype}, which safetensors cannot hold")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def read_tensors(path: Path, aliases: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Load a safetensors file to the CPU; an alias is the very tensor it stands for."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors | {name: tensors[first] for name, first in aliases.items()}


def _type_codes() -> dict[torch.dtype, str]:
    import torch

    return {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
