from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.errors import RunError
from finesmith.train import checkpoint_files
from finesmith.train.checkpoint import (
    flatten_optimizer,
    forget_later,
    latest,
    of_step,
    restore_optimizer,
    save,
    seal,
)
from finesmith.train.checkpoint_files import read_state, state_bytes

FINGERPRINT = {"recipe": "a" * 64, "torch": "2.13.0"}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(5, 3, generator=source),
        "half": torch.randn(7, generator=source).to(torch.bfloat16),
        "transposed": torch.randn(4, 6, generator=source).T,
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "step": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "double": torch.randn(3, generator=source, dtype=torch.float64),
        "special": torch.tensor([math.inf, -math.inf, math.nan, -0.0]),
    }


def put(folder: Path, step: int, *, keep: int = 3, **state: Any) -> Path:
    return save(folder, step, tensors(step), {"step": step, **state}, fingerprint=FINGERPRINT, keep=keep)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    if left.numel() == 0:
        return True
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(one, other)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_bit_comes_back(tmp_path: Path) -> None:
    path = put(tmp_path / "checkpoints", 123, best=math.inf, rate=0.1 + 0.2, order=[1, 2**100], text="naïve", none=None)
    assert path == tmp_path / "checkpoints" / "step-00000123"
    assert names(path) == ["manifest.json", "state.json", "tensors.safetensors"]
    found = latest(tmp_path / "checkpoints", fingerprint=FINGERPRINT)
    assert found is not None
    assert (found.path, found.step, found.refused) == (path, 123, ())
    expected = tensors(123)
    assert found.tensors.keys() == expected.keys()
    assert all(same_bits(found.tensors[name], expected[name]) for name in expected)
    assert found.state == {
        "step": 123,
        "best": math.inf,
        "rate": 0.1 + 0.2,
        "order": [1, 2**100],
        "text": "naïve",
        "none": None,
    }


def test_safetensors_reads_the_file_and_finds_the_bits(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = put(tmp_path, 1)
    loaded = load_file(path / "tensors.safetensors")
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors(1).items())


def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    table = torch.randn(100, 8)
    plain = save(tmp_path / "a", 1, {"input": table}, {}, fingerprint={}, keep=1)
    tied = save(tmp_path / "b", 1, {"input": table, "output": table}, {}, fingerprint={}, keep=1)
    sizes = [(path / "tensors.safetensors").stat().st_size for path in (plain, tied)]
    assert sizes[0] == sizes[1]
    found = latest(tmp_path / "b", fingerprint=None)
    assert found is not None
    assert found.tensors["output"] is found.tensors["input"]
    assert torch.equal(found.tensors["output"], table)
    parts = save(tmp_path / "c", 1, {"top": table[:50], "all": table}, {}, fingerprint={}, keep=1)
    assert parts.is_dir()
    views = latest(tmp_path / "c", fingerprint=None)
    assert views is not None
    assert torch.equal(views.tensors["top"], table[:50])


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_state_comes_back_exactly(value: Any) -> None:
    def exact(item: Any) -> Any:
        if isinstance(item, float):
            return "nan" if math.isnan(item) else struct.pack("<d", item)
        if isinstance(item, list):
            return [exact(inner) for inner in item]
        return {key: exact(inner) for key, inner in item.items()} if isinstance(item, dict) else (type(item), item)

    assert exact(read_state(state_bytes({"value": value}))["value"]) == exact(value)


@pytest.mark.parametrize("value", [{1, 2}, torch.tensor(1), {"a": b"x"}, {1: 2}, {"$float": "inf"}])
def test_state_that_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"state\.odd"):
        put(tmp_path, 1, odd=value)
    assert names(tmp_path) == []


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent", fingerprint=FINGERPRINT) is None
    assert latest(tmp_path, fingerprint=FINGERPRINT) is None


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "tensors.safetensors"])
def test_any_damage_is_found_and_the_previous_good_one_used(tmp_path: Path, file: str) -> None:
    put(tmp_path, 1)
    path = put(tmp_path, 2) / file
    raw = path.read_bytes()
    places = sorted({len(raw) * part // 10 for part in range(10)} | {len(raw) - 1})
    damages = [raw[:place] for place in places]
    damages += [raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :] for place in places]
    damages += [raw + b" ", raw + b"\n", b"", b"[" * 100_000, b'{"content": 1}', b'{"content": {"format": 1}}']

    def check(damage: str) -> None:
        found = latest(tmp_path, fingerprint=FINGERPRINT)
        assert found is not None, damage
        assert found.step == 1, damage
        assert all(same_bits(found.tensors[name], tensor) for name, tensor in tensors(1).items())
        assert len(found.refused) == 1
        assert found.refused[0].startswith(f"step-00000002: {file} "), found.refused

    for damaged in damages:
        path.write_bytes(damaged)
        check(f"{len(damaged)} bytes")
    path.unlink()
    check("removed")
    path.symlink_to(tmp_path / "step-00000001" / file)
    check("a link")
    path.unlink()
    path.write_bytes(raw)
    found = latest(tmp_path, fingerprint=FINGERPRINT)
    assert found is not None
    assert found.step == 2


def test_a_checkpoint_under_another_step_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2).rename(tmp_path / "step-00000009")
    found = latest(tmp_path, fingerprint=FINGERPRINT)
    assert found is not None
    assert found.step == 1
    assert found.refused == ("step-00000009: it is of step 2, not of step 9",)


def test_no_good_checkpoint_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    (put(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(RunError, match=r"no checkpoint can be used \(step-00000001: state\.json is missing"):
        latest(tmp_path, fingerprint=FINGERPRINT)


def test_fingerprint_mismatch_names_both_values(tmp_path: Path) -> None:
    put(tmp_path, 1)
    other = {"recipe": "b" * 200, "torch": "2.13.0", "data": "new"}
    with pytest.raises(RunError) as caught:
        latest(tmp_path, fingerprint=other)
    message = str(caught.value)
    assert f"recipe was {'a' * 64}, is now {'b' * 77}..." in message
    assert "data was absent, is now new" in message
    assert "torch" not in message
    assert "--force" in message
    assert latest(tmp_path, fingerprint=other, force=True) is not None
    assert latest(tmp_path, fingerprint=None) is not None


def test_keep_prunes_the_oldest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        put(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    put(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-00000006"]


def test_pruning_counts_only_good_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step, keep=3)
    (tmp_path / "step-00000003" / "state.json").write_bytes(b"{}")
    put(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_a_later_good_checkpoint_is_never_pruned(tmp_path: Path) -> None:
    put(tmp_path, 9)
    put(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004", "step-00000009"]


def test_the_same_step_saved_again_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, 4, round=1)
    put(tmp_path, 4, round=2)
    found = latest(tmp_path, fingerprint=None)
    assert found is not None
    assert found.state["round"] == 2
    assert names(tmp_path) == ["step-00000004"]


def test_leftovers_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    put(tmp_path, 1)
    for name in ("step-00000002.tmp-77", "step-00000001.gone-77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("half")
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001.old-77")
    found = latest(tmp_path, fingerprint=FINGERPRINT)
    assert found is not None
    assert found.step == 1
    assert names(tmp_path) == ["step-00000001"]


def writes_of_one_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    count = 0

    def counting(handle: BinaryIO, part: bytes) -> None:
        nonlocal count
        count += 1
        handle.write(part)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_part", counting)
        put(folder, 1)
    return count


def test_no_space_at_each_write_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    total = writes_of_one_save(folder, monkeypatch)
    assert total > 8
    for failing in range(total):
        remaining = failing

        def full(handle: BinaryIO, part: bytes) -> None:
            nonlocal remaining
            if remaining == 0:
                handle.write(part[: len(part) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            remaining -= 1
            handle.write(part)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_files, "write_part", full)
            with pytest.raises(RunError, match=r"step 2: No space left on device; it takes .* MB .* free some space"):
                put(folder, 2)
        assert names(folder) == ["step-00000001"]
        found = latest(folder, fingerprint=FINGERPRINT)
        assert found is not None
        assert found.step == 1


def test_no_space_at_each_call_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder made, each file and folder flushed, the new one renamed: the earlier checkpoint stays the one used."""
    folder = tmp_path / "checkpoints"
    put(folder, 1)
    failed = 0
    for failing in range(20):
        remaining = failing

        def refusing(function: Any) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal remaining
                remaining -= 1
                if remaining == -1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return function(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "mkdir"), (os, "fsync"), (Path, "rename"), (Path, "open")):
                patch.setattr(owner, name, refusing(getattr(owner, name)))
            try:
                put(folder, 2, keep=9)
            except RunError as error:
                assert "step 2: No space left on device; it takes" in str(error)  # noqa: PT017 - one save succeeds
                failed += 1
        found = latest(folder, fingerprint=FINGERPRINT)
        assert found is not None
        assert found.refused == ()
        assert all(same_bits(found.tensors[name], tensor) for name, tensor in tensors(found.step).items())
        assert names(folder) in (["step-00000001"], ["step-00000001", "step-00000002"])
        if found.step == 2:
            (folder / "step-00000002").rename(tmp_path / f"done-{failing}")
    assert failed >= 10


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES = ("manifest.json", "state.json", "tensors.safetensors")
WRECKS = {
    "empty": lambda step: [(step / name).unlink() for name in FILES],
    "all flipped": lambda step: [flip(step / name) for name in FILES],
    "data files flipped": lambda step: [flip(step / name) for name in FILES[1:]],
    "all cut": lambda step: [os.truncate(step / name, 7) for name in FILES],
    "folders for files": lambda step: [replace_by_folder(step / name) for name in FILES],
    "a huge manifest": lambda step: os.truncate(step / "manifest.json", 2**40),
    "a file for the folder": lambda step: (step.rename(step.with_name("away")), step.write_text("x")),
    "a link for the folder": lambda step: (step.rename(step.with_name("away")), step.symlink_to(step.with_name("no"))),
    "files swapped": lambda step: [
        (step / name).write_bytes((step.with_name("step-00000001") / name).read_bytes()) for name in FILES[1:]
    ],
}


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_checkpoint_gives_way_to_the_one_before(wreck: str, tmp_path: Path) -> None:
    put(tmp_path, 1)
    WRECKS[wreck](put(tmp_path, 2))
    found = latest(tmp_path, fingerprint=FINGERPRINT)
    assert found is not None
    assert found.step == 1
    assert [line.split(":")[0] for line in found.refused] == ["step-00000002"]
    assert all(same_bits(found.tensors[name], tensor) for name, tensor in tensors(1).items())


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_is_refused_when_what_it_needs_is_damaged(tmp_path: Path, file: str) -> None:
    best = save(tmp_path / "best", 2, {"w": torch.ones(3)}, {}, fingerprint={}, keep=9)
    put(tmp_path, 2)
    save(tmp_path, 3, tensors(3), {}, fingerprint=FINGERPRINT, keep=9, needs={"best/step-00000002": seal(best)})
    whole = latest(tmp_path, fingerprint=FINGERPRINT)
    assert whole is not None
    assert whole.step == 3
    raw = (best / file).read_bytes()
    for place in range(0, len(raw), max(1, len(raw) // 10)):
        (best / file).write_bytes(raw[:place] + bytes([raw[place] ^ 2]) + raw[place + 1 :])
        found = latest(tmp_path, fingerprint=FINGERPRINT)
        assert found is not None
        assert found.step == 2
        assert "it needs best/step-00000002: " in found.refused[0]
        with pytest.raises(RunError, match=r"the weights of step 2 are lost .* resume the run"):
            of_step(2, {tmp_path / "best": seal(best) if file == "state.json" else "0" * 64})
    (best / file).write_bytes(raw)
    assert of_step(2, {tmp_path / "absent": None, tmp_path / "best": seal(best)}).path == best
    other = save(tmp_path / "best", 2, {"w": torch.zeros(3)}, {}, fingerprint={}, keep=9)
    assert other == best
    changed = latest(tmp_path, fingerprint=FINGERPRINT)
    assert changed is not None
    assert changed.step == 2, "weights of another run bear another seal"


def test_what_was_passed_over_never_returns(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
    found = latest(tmp_path, fingerprint=None, misfit=lambda one: "too late" if one.step > 1 else "")
    assert found is not None
    assert found.refused == ("step-00000003: too late", "step-00000002: too late")
    forget_later(found)
    assert names(tmp_path) == ["step-00000001"]


def test_a_write_that_lies_is_caught_before_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_part", lambda handle, part: handle.write(bytes(len(part))))
        with pytest.raises(RunError, match="not what was written"):
            put(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot save the checkpoint of step 1: Not a directory"):
        put(tmp_path / "file" / "checkpoints", 1)


def test_interrupt_inside_a_save_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)

    def interrupted(handle: BinaryIO, part: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_files, "write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


KILLED = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    import torch
    from finesmith.train import checkpoint, checkpoint_files

    folder, moment = Path(sys.argv[1]), int(sys.argv[2])
    passed = 0

    def dying(function):
        def call(*arguments):
            global passed
            if passed == moment:
                os._exit(9)
            passed += 1
            return function(*arguments)
        return call

    def save(step):
        value = {"x": torch.full((1000,), float(step))}
        checkpoint.save(folder, step, value, {"step": step}, fingerprint={}, keep=2)

    # Three good ones, then step 3 again: the hardest case, where a published folder is replaced and another pruned.
    for step in (1, 2, 3):
        save(step)
    checkpoint_files.write_part = dying(checkpoint_files.write_part)
    for name in ("sync_folder", "describe_file"):
        setattr(checkpoint, name, dying(getattr(checkpoint, name)))
    Path.rename = dying(Path.rename)
    checkpoint.shutil.rmtree = dying(checkpoint.shutil.rmtree)
    save(3)
    save(4)
    os._exit(0)
    """
)


def run_killed(folder: Path, moments: Iterator[int]) -> int:
    """Run saves that die at each moment in one forked family, to pay for importing torch once; return kills."""
    family = "import os, sys\nimport torch\nimport finesmith.train.checkpoint\n" + textwrap.dedent(
        f"""
        code = compile({KILLED!r}, "killed", "exec")
        for moment in range(int(sys.argv[2])):
            child = os.fork()
            if child == 0:
                sys.argv[1:] = [os.path.join({str(folder)!r}, str(moment)), str(moment)]
                exec(code, {{"__name__": "__main__"}})
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", family, "", str(len(list(moments)))],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.stdout.split().count("9")


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    kills = run_killed(tmp_path, iter(range(45)))
    assert 20 <= kills < 45
    for moment in range(45):
        found = latest(tmp_path / str(moment), fingerprint={})
        assert found is not None, moment
        assert found.step in (3, 4), moment
        assert found.refused == ()
        assert torch.equal(found.tensors["x"], torch.full((1000,), float(found.step)))
        assert found.state == {"step": found.step}
        assert all(name.startswith("step-") and "." not in name for name in names(tmp_path / str(moment)))


def small_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
    model[2].weight = torch.nn.Parameter(torch.randn(6, 8))
    model[0].bias.requires_grad_(False)
    return model


def adam(model: torch.nn.Module, **options: Any) -> torch.optim.Optimizer:
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    others = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 0.01, "initial_lr": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), **options)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs).square().sum()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.99
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}])
def test_optimizer_goes_on_to_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = small_model(0)
    train(whole, optimizer := adam(whole, **options), range(8))
    first = small_model(0)
    train(first, half := adam(first, **options), range(4))
    moments, state = flatten_optimizer(half, first.named_parameters())
    assert "state.0.weight.exp_avg" in moments
    assert not any("0.bias" in name for name in moments)
    weights = {f"model.{name}": value for name, value in first.state_dict().items()}
    save(tmp_path, 4, weights | moments, {"optimizer": state}, fingerprint={}, keep=1)

    found = latest(tmp_path, fingerprint={})
    assert found is not None
    second = small_model(1)
    second.load_state_dict(
        {name.removeprefix("model."): value for name, value in found.tensors.items() if name.startswith("model.")}
    )
    resumed = adam(second, **options)
    restore_optimizer(resumed, second.named_parameters(), found.tensors, found.state["optimizer"])  # type: ignore[arg-type]
    train(second, resumed, range(4, 8))
    assert all(same_bits(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    expected, hyper = flatten_optimizer(optimizer, whole.named_parameters())
    moments, state = flatten_optimizer(resumed, second.named_parameters())
    assert moments.keys() == expected.keys()
    assert all(same_bits(moments[name], expected[name]) for name in moments)
    assert json.dumps(state) == json.dumps(hyper)
    for ours, theirs in zip(resumed.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}


def test_optimizer_keeps_moments_wider_than_the_parameters() -> None:
    parameter = torch.nn.Parameter(torch.randn(3).to(torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.randn(3, dtype=torch.float64)
    moments, state = flatten_optimizer(optimizer, [("p", parameter)])
    other = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    restore_optimizer(other, [("p", parameter)], moments, state)
    assert same_bits(other.state[parameter]["momentum_buffer"], moments["state.p.momentum_buffer"])
    assert other.state[parameter]["momentum_buffer"] is not moments["state.p.momentum_buffer"]
    assert other.param_groups[0]["lr"] == 0.1


def test_optimizer_over_other_parameters_is_refused() -> None:
    model = small_model(0)
    train(model, optimizer := adam(model), range(1))
    moments, state = flatten_optimizer(optimizer, model.named_parameters())
    renamed = [(f"x.{name}", parameter) for name, parameter in model.named_parameters()]
    with pytest.raises(RunError, match=r"AdamW over 4 parameters in 2 groups, .*\(group 1, 0\.weight\)"):
        restore_optimizer(adam(model), renamed, moments, state)
    with pytest.raises(RunError, match=r"optimiser is AdamW .* this run's is SGD"):
        restore_optimizer(torch.optim.SGD(model.parameters()), model.named_parameters(), moments, state)
    with pytest.raises(ValueError, match="without a name"):
        flatten_optimizer(optimizer, list(model.named_parameters())[:1])
