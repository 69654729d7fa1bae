"""Cases of checkpoints: what is loaded is exactly what was saved, and everything that is damaged is told."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

from finesmith.errors import FinesmithError
from fuzz.mutate import flip_bits, mutate_bytes, mutate_tree
from fuzz.oracle import Outcome, judge, require

STEPS = (3, 7, 12)
FINGERPRINT = {"recipe": "a", "data": "b", "threads": "1"}


def saved(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tensors and state as they are saved at a step."""
    import torch

    made = torch.Generator().manual_seed(step)
    weight = torch.randn(6, 5, generator=made)
    tensors = {
        "model.weight": weight,
        "model.tied": weight,
        "model.half": torch.randn(7, generator=made).bfloat16(),
        "state.weight.step": torch.tensor(float(step)),
        "ids": torch.arange(step),
        "empty": torch.empty(0, 3),
    }
    state = {"step": step, "loss": [0.5, float("inf"), float("nan")], "best": {"value": 1 / step, "name": "é\n"}}
    return tensors, state


def write_checkpoints(folder: Path) -> Path:
    """Save one checkpoint for each of STEPS; return the folder."""
    from finesmith.train.checkpoint import save

    for step in STEPS:
        save(folder, step, *saved(step), fingerprint=FINGERPRINT, keep=len(STEPS))
    return folder


def run_case(draw: random.Random, folder: Path, whole: Path) -> Outcome:
    """Damage some files of a copy of the checkpoints in `whole`, load the latest, and judge what comes back."""
    from finesmith.train.checkpoint import latest

    copy = folder / "checkpoints"
    shutil.copytree(whole, copy)
    for _ in range(draw.choice([1, 1, 2, 4])):
        _damage(draw, copy)
    intact = [step for step in STEPS if _same(_standing(copy, step), whole / f"step-{step:08d}")]
    present = [path for path in copy.iterdir() if path.name.startswith("step-")]
    try:
        found = latest(copy, fingerprint=FINGERPRINT)
    except FinesmithError as error:
        judge(str(error), (copy.name,))
        require(not intact, f"step {intact} is whole, yet: {error}")
        return Outcome("refused", str(error))
    if found is None:
        require(not intact, f"step {intact} is whole, yet nothing was found")
        require(not [path for path in present if path.exists()], f"{present} are there, yet nothing was told of them")
        return Outcome("accepted", "nothing there")
    require(intact and found.step == intact[-1], f"step {found.step} was loaded, whole are {intact}")
    _exact(found)
    newer = [f"step-{step:08d}" for step in STEPS if step > found.step and (copy / f"step-{step:08d}").exists()]
    told = " ".join(found.refused)
    require(all(name in told for name in newer), f"passed over {newer}, told of {told!r}")
    return Outcome("accepted", told)


def _standing(copy: Path, step: int) -> Path:
    """Return where the checkpoint of a step is: in its place, or aside, as a kill amid a rename leaves it."""
    place = copy / f"step-{step:08d}"
    aside = [path for path in sorted(copy.iterdir()) if re.fullmatch(rf"{place.name}\.old-\d+", path.name)]
    return aside[0] if aside and not place.exists() else place


def _same(one: Path, other: Path) -> bool:
    if not one.is_dir() or one.is_symlink():
        return False
    names = {path.name for path in one.iterdir()} & {path.name for path in other.iterdir()}
    return len(names) == 3 and all(
        (one / name).is_file()
        and not (one / name).is_symlink()
        and (one / name).read_bytes() == (other / name).read_bytes()
        for name in names
    )


def _exact(found: Any) -> None:
    import torch

    tensors, state = saved(found.step)
    require(list(found.tensors) and found.tensors.keys() == tensors.keys(), "other tensors than were saved")
    for name, tensor in tensors.items():
        got = found.tensors[name]
        same = got.dtype == tensor.dtype and got.shape == tensor.shape
        bits = torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)) if same else False
        require(bits, f"{name} is not what was saved")
    require(repr(found.state) == repr(state), f"the state is {found.state}, saved was {state}")
    require(found.fingerprint == FINGERPRINT, "another fingerprint")


def _damage(draw: random.Random, copy: Path) -> None:
    steps = sorted(path for path in copy.iterdir() if re.fullmatch(r"step-\d+", path.name) and path.is_dir())
    if not steps:
        return
    place = draw.choice([steps[-1], steps[-1], draw.choice(steps)])
    files = [path for path in sorted(place.iterdir()) if path.is_file()]
    what = draw.randrange(12)
    if what == 0:
        shutil.rmtree(place)
    elif what == 1:
        place.rename(place.with_name(f"{place.name}.{draw.choice(['tmp', 'old', 'gone'])}-{draw.randrange(9999)}"))
    elif what == 2:
        _replace(
            place, draw.choice([place.with_name("step-00000099"), place.with_name("step-1"), place.with_name("x")])
        )
    elif what == 3:
        shutil.rmtree(place)
        place.write_bytes(b"not a folder")
    elif not files:
        return
    elif what == 4:
        draw.choice(files).unlink()
    elif what == 5:
        file, other = draw.choice(files), draw.choice(steps)
        if (other / file.name).is_file():
            file.write_bytes((other / file.name).read_bytes())
    elif what == 6:
        one, other = draw.choice(files), draw.choice(files)
        one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
        one.write_bytes(other_bytes)
        other.write_bytes(one_bytes)
    elif what == 7:
        file = draw.choice(files)
        moved = file.rename(copy / f"elsewhere-{draw.randrange(9999)}")
        file.symlink_to(moved) if draw.random() < 0.6 else file.mkdir()
    elif what == 8:
        file = place / draw.choice(["manifest.json", "state.json"])
        if file.is_file():
            tree = mutate_tree(draw, _parsed(file))
            file.write_text(json.dumps(tree), "utf-8")
    else:
        file, damage = draw.choice(files), draw.choice([flip_bits, mutate_bytes])
        file.write_bytes(damage(draw, file.read_bytes()))


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}


def _replace(place: Path, target: Path) -> None:
    if not target.exists():
        place.rename(target)
