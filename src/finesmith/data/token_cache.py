"""Columns of numbers kept on disk under a content key: built aside, published by one rename, checked on reload."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import RunError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

FORMAT = 1
HEADER_BYTES = 128
MANIFEST = "manifest.json"


@dataclass(slots=True)
class Column:
    """One growing array of one type: in memory, or in an .npy file whose header is written at the end."""

    dtype: str
    path: Path | None
    size: int = 0
    _parts: list[Array] = field(default_factory=list)
    _file: BufferedWriter | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            self._file = self.path.open("wb")
            self._file.write(bytes(HEADER_BYTES))

    def append(self, values: Array) -> None:
        """Add values at the end; they are converted to the column's type, which must hold them."""
        import numpy as np

        values = np.ascontiguousarray(values, dtype=self.dtype)
        self.size += values.size
        if self._file is None:
            self._parts.append(values)
        else:
            self._file.write(values.data)

    def finish(self) -> Array | None:
        """Return the whole array, or complete, flush to disk and close the file and return None."""
        import numpy as np

        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.empty(0, self.dtype)
        self._file.seek(0)
        header = {"descr": self.dtype, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        if self._file.tell() != HEADER_BYTES:
            raise AssertionError(f"an .npy header took {self._file.tell()} bytes, not {HEADER_BYTES}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return None

    def close(self) -> None:
        """Close the file, complete or not."""
        if self._file is not None:
            self._file.close()


@dataclass(slots=True)
class Build:
    """The arrays of one key while they are made; nothing is visible under the key before `publish`."""

    folder: Path | None
    target: Path | None
    columns: dict[str, Column] = field(default_factory=dict)

    def column(self, name: str, dtype: str) -> Column:
        """Start an array of a little-endian numpy type."""
        path = None if self.folder is None else self.folder / f"{name}.npy"
        self.columns[name] = Column(dtype, path)
        return self.columns[name]

    def publish(self, counts: Mapping[str, int]) -> dict[str, Array]:
        """Complete the arrays and return them by name: memory-mapped from the published folder where there is one."""
        arrays = {name: column.finish() for name, column in self.columns.items()}
        if self.folder is None or self.target is None:
            return {name: array for name, array in arrays.items() if array is not None}
        files = {f"{name}.npy": _describe(self.folder / f"{name}.npy") for name in arrays}
        content = {"format": FORMAT, "key": self.target.name, "files": files, "counts": dict(counts)}
        with (self.folder / MANIFEST).open("wb") as handle:
            handle.write(_manifest_bytes(content))
            handle.flush()
            os.fsync(handle.fileno())
        if self.target.exists():
            shutil.rmtree(self.target)
        self.folder.rename(self.target)
        return {name: _map(self.target / f"{name}.npy") for name in arrays}


@contextmanager
def open_build(cache: Path | None, key: str) -> Iterator[Build]:
    """Open a build for `key`, in a folder aside when there is a cache; whatever is not published is removed.

    Raises:
        RunError: the cache folder cannot be written, or the disk is full.
    """
    if cache is None:
        yield Build(None, None)
        return
    folder = cache / f".{key}.tmp-{os.getpid()}"
    build = Build(folder, cache / key)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache)
        folder.mkdir()
        yield build
    except OSError as error:
        raise RunError(
            f"{cache}: cannot keep the tokens there: {error.strerror or error}; free some space or make the folder "
            "writable, or choose another output folder"
        ) from error
    finally:
        for column in build.columns.values():
            column.close()
        shutil.rmtree(folder, ignore_errors=True)


def load_cached(cache: Path, key: str) -> tuple[dict[str, Array], dict[str, int]] | None:
    """Return the arrays, memory-mapped, and counts published under `key`; None when absent or damaged."""
    folder = cache / key
    try:
        raw = (folder / MANIFEST).read_bytes()
        content = json.loads(raw)["content"]
        if raw != _manifest_bytes(content) or content["format"] != FORMAT or content["key"] != key:
            return None
        if any(_describe(folder / name) != expected for name, expected in content["files"].items()):
            return None
        arrays = {name.removesuffix(".npy"): _map(folder / name) for name in content["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever is wrong with it, the answer is the same: it is made again.
        return None
    return arrays, content["counts"]


def _map(path: Path) -> Array:
    import numpy as np

    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _manifest_bytes(content: Mapping[str, Any]) -> bytes:
    body = json.dumps(content, sort_keys=True)
    return json.dumps(
        {"content": content, "sha256": hashlib.sha256(body.encode()).hexdigest()}, sort_keys=True
    ).encode()


def _remove_leftovers(cache: Path) -> None:
    """Remove the folders of builds whose process has ended."""
    import psutil

    for folder in cache.glob(".*.tmp-*"):
        process = folder.name.rpartition("-")[2]
        if not process.isdecimal() or int(process) == os.getpid() or not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
