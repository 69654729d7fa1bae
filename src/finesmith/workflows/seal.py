"""The seal of a tuned model's folder: a SHA-256 of each file, so that one that changed is never used in silence.

It finds damage and mistakes. It is no signature: whoever means harm can seal a folder anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from finesmith.errors import RunError
from finesmith.models.load import sha256_of
from finesmith.run import read_json, write_whole

SEAL = "seal.json"
# People may write about a model as they like.
OPEN = frozenset({SEAL, "README.md"})


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of a model folder, those for people aside."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OPEN
    }
    write_whole(folder / SEAL, json.dumps({"files": files, "sha256": _digest(files)}, indent=1) + "\n")


def require_sealed(folder: Path) -> None:
    """Refuse a model folder of which a file is missing or is not as it was saved; files beside them do not count.

    Raises:
        RunError: the file is named.
    """
    remedy = "copy the model folder back from where it is whole, or tune again"
    if not folder.is_dir():
        raise RunError(f"{folder.parent} has finished, but its model folder is gone or damaged; {remedy}")
    if not (folder / SEAL).is_file():
        raise RunError(f"{folder / SEAL} is missing, so nobody can tell whether the model is whole; {remedy}")
    content = read_json(folder / SEAL)
    files = content.get("files") if isinstance(content, Mapping) else None
    if not isinstance(files, Mapping) or content.get("sha256") != _digest(files):
        raise RunError(f"{folder / SEAL} is not as it was saved; {remedy}")
    for name, sha256 in files.items():
        path = folder / name
        try:
            whole = path.is_file() and not path.is_symlink() and sha256_of(path) == sha256
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
        if not whole:
            what = "is not as it was saved" if path.is_file() else "is missing"
            raise RunError(f"{path} {what}; {remedy}")


def _digest(files: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
