"""Checkpoints that are whole or absent: written aside, flushed, verified, published by one rename, hashed on reading.

A checkpoint is the folder `step-00000123` with `tensors.safetensors`, `state.json` and `manifest.json`, which holds the
size and SHA-256 of the other two, the fingerprint of the run, and a SHA-256 of itself. Nothing in it is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import RunError
from finesmith.train.checkpoint_files import (
    JSON,
    canonical,
    describe_file,
    find_aliases,
    read_state,
    read_tensors,
    state_bytes,
    sync_folder,
    tensor_parts,
    write_file,
)

if TYPE_CHECKING:
    import torch

    from finesmith.train.adamw import Optimizer

FORMAT = 2
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
MANIFEST_LIMIT = 64 * 2**20
NAME = re.compile(r"step-(\d{8,18})")
NEEDED = re.compile(r"[a-z]+/step-(\d{8,18})")
LEFTOVER = re.compile(r"(step-\d{8,18})\.(tmp|old|gone)-\d+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that verified. `refused` tells, newest first, which newer ones did not and why."""

    path: Path
    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, JSON]
    fingerprint: Mapping[str, str]
    refused: tuple[str, ...] = ()


class _DamagedError(Exception):
    """Why a checkpoint folder is not used."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    *,
    fingerprint: Mapping[str, str],
    keep: int,
    needs: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint into `folder` (made when absent), verify it, publish it, and only then prune older ones.

    After any failure or kill the checkpoints that were there still are, and none is half made. Tensors that share all
    their memory are written once. The newest `keep` are kept, the new one among them; one that is obviously damaged
    does not count. `needs` names other checkpoints (FOLDER/step-..., below `folder`) with their seals: it is only used
    while they verify too. Only one process may save into a folder. Returns the new checkpoint's path.

    Raises:
        RunError: the disk is full, the folder cannot be written, or what was written reads back differently.
        TypeError: `state` holds what JSON cannot, or a tensor is of a type that safetensors cannot hold.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        _remove_leftovers(folder)
        temporary.mkdir()
        _write(temporary, step, tensors, state, fingerprint, needs or {})
        _verify(temporary, step)
        _publish(temporary, target)
    except BaseException as error:
        if folder.is_dir():
            _remove_leftovers(folder)
        if isinstance(error, OSError | _DamagedError):
            raise RunError(_save_message(folder, step, tensors, error)) from error
        raise
    try:
        _prune(folder, step, keep)
    except OSError as error:
        raise RunError(
            f"{folder}: step {step} is saved, but an older checkpoint cannot be removed: {error.strerror or error}; "
            "make the folder writable, then resume the run"
        ) from error
    return target


def latest(
    folder: Path,
    *,
    fingerprint: Mapping[str, str] | None,
    force: bool = False,
    misfit: Callable[[Checkpoint], str] | None = None,
) -> Checkpoint | None:
    """Load the newest checkpoint in `folder` that verifies; None when there is no checkpoint at all.

    Every byte is hashed before anything is loaded. `fingerprint=None` compares nothing; `force` goes on although the
    fingerprint differs; `misfit` may say why one that verifies is passed over. What a killed save left is removed.

    Raises:
        RunError: there are checkpoints but none verifies; or the fingerprint differs, and what differs is named.
    """
    if not folder.is_dir():
        return None
    try:
        _remove_leftovers(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be tidied after a killed save: {error}; make the folder writable") from error
    refused: list[str] = []
    for step, path in _published(folder):
        try:
            found = _load(path, step, tuple(refused))
            if why := misfit(found) if misfit else "":
                raise _DamagedError(why)
        except _DamagedError as error:
            refused.append(f"{path.name}: {str(error)[:200]}")
            continue
        if fingerprint is not None and not force:
            require_same(found, fingerprint)
        return found
    if refused:
        raise RunError(
            f"{folder}: no checkpoint can be used ({'; '.join(refused)}); restore the folder from a copy, or remove it "
            "to train again from the start, to the same result"
        )
    return None


def of_step(step: int, places: Mapping[Path, str | None]) -> Checkpoint:
    """Load the checkpoint of a step from the first of `places` where it verifies and bears the seal that is named.

    Raises:
        RunError: it is nowhere whole.
    """
    refused = []
    for folder, expected in places.items():
        path = folder / f"step-{step:08d}"
        try:
            _require_seal(path, expected)
            return _load(path, step)
        except _DamagedError as error:
            refused.append(f"{path}: {str(error)[:200]}")
    raise RunError(
        f"the weights of step {step} are lost ({'; '.join(refused)}); resume the run: it trains them again from the "
        "last good checkpoint before them"
    )


def seal(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's manifest, which stands for all that is in it."""
    return str(describe_file(path / MANIFEST)["sha256"])


def forget_later(found: Checkpoint) -> None:
    """Remove the checkpoints after one that a run goes on from: they were passed over, and none may return.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = found.path.parent
    try:
        for step, path in _published(folder):
            if step > found.step:
                _remove(path)
        sync_folder(folder)
    except OSError as error:
        raise RunError(
            f"{folder}: checkpoints after step {found.step} cannot be removed: {error.strerror or error}; make the "
            "folder writable"
        ) from error


def _load(path: Path, step: int, refused: tuple[str, ...] = ()) -> Checkpoint:
    try:
        content = _verify(path, step)
        for name, expected in content.get("needs", {}).items():
            _verify_needed(path.parent, name, expected)
        return Checkpoint(
            path=path,
            step=step,
            tensors=read_tensors(path / TENSORS, content["aliases"]),
            state=read_state((path / STATE).read_bytes()),
            fingerprint=content["fingerprint"],
            refused=refused,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(str(error)) from error


def _verify_needed(folder: Path, name: str, expected: str) -> None:
    match = NEEDED.fullmatch(name)
    if match is None:
        raise _DamagedError(f"it needs {name[:80]!r}, which is no checkpoint")
    try:
        _require_seal(folder / name, expected)
        _verify(folder / name, int(match[1]))
    except (_DamagedError, OSError) as error:
        raise _DamagedError(f"it needs {name}: {error}") from error


def _require_seal(path: Path, expected: str | None) -> None:
    if not (path / MANIFEST).is_file():
        raise _DamagedError(f"{MANIFEST} is missing or not a plain file")
    if expected is not None and seal(path) != expected:
        raise _DamagedError(f"{MANIFEST} is not the one that was written")


def _write(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    fingerprint: Mapping[str, str],
    needs: Mapping[str, str],
) -> None:
    aliases = find_aliases(tensors)
    unique = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    content = {
        "format": FORMAT,
        "step": step,
        "files": {
            STATE: write_file(folder / STATE, [state_bytes(state)]),
            TENSORS: write_file(folder / TENSORS, tensor_parts(unique)),
        },
        "aliases": aliases,
        "fingerprint": dict(fingerprint),
        "needs": dict(needs),
    }
    write_file(folder / MANIFEST, [_manifest_bytes(content)])
    sync_folder(folder)


def _manifest_bytes(content: Mapping[str, Any]) -> bytes:
    return canonical({"content": content, "sha256": hashlib.sha256(canonical(content)).hexdigest()})


def _verify(path: Path, step: int, *, hashing: bool = True) -> dict[str, Any]:
    """Return the manifest's content when every byte of the checkpoint (or its sizes) is as it was written."""
    for name in (MANIFEST, STATE, TENSORS):
        if (path / name).is_symlink() or not (path / name).is_file():
            raise _DamagedError(f"{name} is missing or not a plain file")
    if (path / MANIFEST).stat().st_size > MANIFEST_LIMIT:
        raise _DamagedError(f"{MANIFEST} is too large to be one")
    raw = (path / MANIFEST).read_bytes()
    try:
        content: dict[str, Any] = json.loads(raw)["content"]
        if raw != _manifest_bytes(content):
            raise _DamagedError(f"{MANIFEST} is not what was written")
        version, its_step, files = content["format"], content["step"], content["files"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _DamagedError(f"{MANIFEST} is not what was written") from error
    if version != FORMAT:
        raise _DamagedError(f"written in format {str(version)[:20]}, this version of finesmith reads {FORMAT}")
    if its_step != step:
        raise _DamagedError(f"it is of step {str(its_step)[:20]}, not of step {step}")
    for name in (STATE, TENSORS):
        size = (path / name).stat().st_size
        if size != files[name]["size"]:
            raise _DamagedError(f"{name} has {size} bytes, expected {files[name]['size']}")
        if hashing and describe_file(path / name)["sha256"] != files[name]["sha256"]:
            raise _DamagedError(f"{name} does not match its SHA-256")
    return content


def _publish(temporary: Path, target: Path) -> None:
    """Rename; one of the same step that is there already is moved aside first and comes back if we are killed."""
    if target.exists():
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        target.rename(old)
        temporary.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    sync_folder(target.parent)


def _published(folder: Path) -> list[tuple[int, Path]]:
    """Return the published checkpoints by step, newest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` of the right sizes (hashing them at every save would double its cost).

    A good one of a later step is never touched.
    """
    good = 1
    for other, path in _published(folder):
        if other == step:
            continue
        if other > step or good < keep:
            try:
                _verify(path, other, hashing=False)
            except _DamagedError:
                _remove(path)
                continue
            except OSError:
                # It may be whole: that it cannot be read now is no reason to lose it.
                continue
            good += other < step
        else:
            _remove(path)


def _remove(path: Path) -> None:
    gone = path.with_name(f"{path.name}.gone-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone)


def _remove_leftovers(folder: Path) -> None:
    """Clear away what a killed save left. What cannot be removed stays: it has a name that is never read."""
    for path in folder.iterdir():
        if match := LEFTOVER.fullmatch(path.name):
            if match[2] == "old" and not (folder / match[1]).exists():
                path.rename(folder / match[1])
            else:
                shutil.rmtree(path, ignore_errors=True)


def _save_message(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], error: Exception) -> str:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return (
        f"{folder}: cannot save the checkpoint of step {step}: {reason}; it takes {needed:,.0f} MB and "
        f"{shutil.disk_usage(place).free / 1e6:,.0f} MB are free; earlier checkpoints are untouched: free some space "
        "or make the folder writable, then resume the run"
    )


def require_same(found: Checkpoint, fingerprint: Mapping[str, str]) -> None:
    """Refuse a checkpoint whose fingerprint differs.

    Raises:
        RunError: it differs; each thing that does is named with both values.
    """
    then, now = found.fingerprint, dict(fingerprint)
    differs = [
        f"{key} was {_short(then.get(key))}, is now {_short(now.get(key))}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if differs:
        raise RunError(
            f"{found.path}: this checkpoint was made under other conditions: {'; '.join(differs)}; bring these back, "
            "or resume with --force to go on knowingly (the result will not be that of an uninterrupted run)"
        )


def _short(value: str | None) -> str:
    return "absent" if value is None else value if len(value) <= 80 else f"{value[:77]}..."


def flatten_optimizer(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], dict[str, JSON]]:
    """Return an optimiser's state as tensors and JSON, by parameter name; the tensors are not copied.

    Raises:
        ValueError: the optimiser holds a parameter that `named_parameters` does not name.
    """
    import torch

    names: dict[int, str] = {}
    for name, parameter in named_parameters:
        names.setdefault(id(parameter), name)
    tensors: dict[str, torch.Tensor] = {}
    groups: list[JSON] = []
    values: dict[str, JSON] = {}
    for position, group in enumerate(optimizer.param_groups):
        if not all(id(parameter) in names for parameter in group["params"]):
            raise ValueError(f"parameter group {position} of the optimiser holds a parameter without a name")
        settings: dict[str, Any] = {}
        for key, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"group.{position}.{key}"] = value
            elif key != "params":
                settings[key] = list(value) if isinstance(value, tuple) else value
        parameters: list[JSON] = [names[id(parameter)] for parameter in group["params"]]
        groups.append({"parameters": parameters, "settings": settings})
    for parameter, fields in optimizer.state.items():
        plain: dict[str, JSON] = {}
        for field, value in fields.items():
            if isinstance(value, torch.Tensor):
                tensors[f"state.{names[id(parameter)]}.{field}"] = value
            else:
                plain[field] = value
        values[names[id(parameter)]] = {"fields": list(fields), "values": plain}
    return tensors, {"optimizer": type(optimizer).__name__, "groups": groups, "state": values}


def restore_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> None:
    """Give an optimiser, built over the same parameters, the very state that `flatten_optimizer` returned.

    Moments go to their parameter's device in the type they were saved in, so every bit comes back. The tensors given
    are copied.

    Raises:
        RunError: the optimiser is of another kind or its groups hold other parameters.
    """
    parameters: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}
    for name, parameter in named_parameters:
        parameters[name] = parameter
        names.setdefault(id(parameter), name)
    now = [[names.get(id(parameter), "?") for parameter in group["params"]] for group in optimizer.param_groups]
    then = [group["parameters"] for group in state["groups"]]
    if state["optimizer"] != type(optimizer).__name__ or now != then:
        raise RunError(
            f"the checkpoint's optimiser is {state['optimizer']} over {sum(map(len, then))} parameters in {len(then)} "
            f"groups, this run's is {type(optimizer).__name__} over {sum(map(len, now))} in {len(now)}"
            f"{_first_difference(then, now)}; resume with the recipe and versions that began the run"
        )
    for position, (group, saved) in enumerate(zip(optimizer.param_groups, state["groups"], strict=True)):
        for key, value in saved["settings"].items():
            group[key] = tuple(value) if isinstance(value, list) else value
        for name in [name for name in tensors if name.startswith(f"group.{position}.")]:
            group[name.removeprefix(f"group.{position}.")] = tensors[name].clone()
    # Step counters live on the CPU, except those of fused and capturable optimisers, which sit beside the parameter.
    beside = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    optimizer.state.clear()
    for name, saved in state["state"].items():
        parameter, fields = parameters[name], {}
        for field in saved["fields"]:
            if field in saved["values"]:
                fields[field] = saved["values"][field]
                continue
            tensor = tensors[f"state.{name}.{field}"]
            on_device = field != "step" or id(parameter) in beside
            fields[field] = tensor.to(parameter.device if on_device else "cpu", copy=True)
        optimizer.state[parameter] = fields


def _first_difference(then: list[list[str]], now: list[list[str]]) -> str:
    for position, (before, after) in enumerate(zip(then, now, strict=False)):
        if odd := sorted(set(before) ^ set(after)):
            return f" (group {position + 1}, {odd[0][:80]})"
    return ""
