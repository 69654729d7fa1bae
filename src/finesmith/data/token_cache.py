"""Columns of numbers kept on disk under a content key: built aside, published by one rename, checked on reload."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

FORMAT = 1
HEADER_BYTES = 128
MANIFEST = "manifest.json"


@dataclass(slots=True)
class Column:
    """One growing array of one type: in an .npy file whose header is written at the end, or in memory.

    refused: why it moved from disk to memory on the way; empty when it did not.
    """

    dtype: str
    path: Path | None
    size: int = 0
    refused: str = ""
    _parts: list[Array] = field(default_factory=list)
    _file: FileIO | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            try:
                self._file = self.path.open("wb", buffering=0)
                _write(self._file, memoryview(bytes(HEADER_BYTES)))
            except OSError as error:
                self._leave_disk(error)

    def append(self, values: Array) -> None:
        """Add values at the end; they are converted to the column's type, which must hold them."""
        import numpy as np

        values = np.ascontiguousarray(values, dtype=self.dtype)
        if self._file is not None:
            try:
                _write(self._file, values.data.cast("B"))
            except OSError as error:
                self._leave_disk(error)
        if self._file is None:
            self._parts.append(values)
        self.size += values.size

    def finish(self) -> None:
        """Complete the file and flush it to the disk."""
        import numpy as np

        if self._file is None:
            return
        header = BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self.dtype, "fortran_order": False, "shape": (self.size,)}
        )
        if header.tell() != HEADER_BYTES:
            raise AssertionError(f"an .npy header took {header.tell()} bytes, not {HEADER_BYTES}")
        try:
            self._file.seek(0)
            _write(self._file, header.getbuffer())
            os.fsync(self._file.fileno())
        except OSError as error:
            self._leave_disk(error)

    def values(self) -> Array:
        """Return the whole array, in memory."""
        import numpy as np

        if self._file is not None and self.path is not None:
            return np.fromfile(self.path, self.dtype, self.size, offset=HEADER_BYTES)
        return np.concatenate(self._parts) if self._parts else np.empty(0, self.dtype)

    def close(self) -> None:
        """Close the file, complete or not."""
        if self._file is not None:
            self._file.close()

    def _leave_disk(self, error: OSError) -> None:
        """Go on in memory, with what the file holds so far."""
        self.refused = error.strerror or str(error)
        if self._file is not None and self.size:
            self._parts = [self.values()]
        self.close()
        self._file = None


def _write(file: FileIO, rest: memoryview) -> None:
    """Write all of it: one call may take a part only."""
    while rest:
        rest = rest[file.write(rest) :]


@dataclass(slots=True)
class Build:
    """The arrays of one key while they are made; nothing is visible under the key before `publish`.

    refused: why nothing is kept although there is a cache.
    """

    folder: Path | None
    target: Path | None
    refused: str = ""
    columns: dict[str, Column] = field(default_factory=dict)

    def column(self, name: str, dtype: str) -> Column:
        """Start an array of a little-endian numpy type."""
        path = None if self.folder is None else self.folder / f"{name}.npy"
        self.columns[name] = Column(dtype, path)
        return self.columns[name]

    def publish(self, counts: Mapping[str, int]) -> dict[str, Array]:
        """Complete the arrays and return them by name: memory-mapped from the published folder where there is one.

        A disk that is full or read-only stops nothing: the arrays are then in memory, and `refused` says why.
        """
        for column in self.columns.values():
            column.finish()
            self.refused = self.refused or column.refused
        if self.folder is not None and self.target is not None and not self.refused:
            try:
                _publish(self.folder, self.target, list(self.columns), counts)
                return {name: _map(self.target / f"{name}.npy") for name in self.columns}
            except OSError as error:
                self.refused = error.strerror or str(error)
        return {name: column.values() for name, column in self.columns.items()}


def _publish(folder: Path, target: Path, names: Sequence[str], counts: Mapping[str, int]) -> None:
    files = {f"{name}.npy": _describe(folder / f"{name}.npy") for name in names}
    content = {"format": FORMAT, "key": target.name, "files": files, "counts": dict(counts)}
    with (folder / MANIFEST).open("wb") as handle:
        handle.write(_manifest_bytes(content))
        handle.flush()
        os.fsync(handle.fileno())
    old = folder.with_name(f".{target.name}.old.tmp-{os.getpid()}")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def open_build(cache: Path | None, key: str) -> Iterator[Build]:
    """Open a build for `key`, in a folder aside when there is a cache; whatever is not published is removed."""
    if cache is None:
        yield Build(None, None)
        return
    folder = cache / f".{key}.tmp-{os.getpid()}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache)
        folder.mkdir()
    except OSError as error:
        yield Build(None, None, refused=error.strerror or str(error))
        return
    build = Build(folder, cache / key)
    try:
        yield build
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
