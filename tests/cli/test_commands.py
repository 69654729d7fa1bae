"""Every command as a user types it, on small files and a tiny model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from terminal import events, finesmith, read_json, refused, reviews, when_step, write_csv, write_jsonl

COMMANDS = ("tune", "init", "check", "resume", "predict", "evaluate", "report", "runs")
WRITTEN = [
    "recipe.yaml",
    "run.json",
    "events.jsonl",
    "data.json",
    "audit.json",
    "examples.json",
    "splits.parquet",
    "model.json",
    "baselines.json",
    "scores.json",
    "verdict.json",
    "next.json",
    "predictions/train.parquet",
    "predictions/validation.parquet",
    "predictions/test.parquet",
    "model/model.safetensors",
    "model/README.md",
    "model/finesmith.json",
    "report.html",
]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_tune_writes_the_run_folder_and_says_where(tuned: Path) -> None:
    out, err = (tuned / "said.txt").read_text("utf-8").split("\f")
    assert [line.split() for line in out.splitlines()] == [
        ["run", str(tuned)],
        ["model", str(tuned / "model")],
        ["report", str(tuned / "report.html")],
    ]
    assert [name for name in WRITTEN if not (tuned / name).is_file()] == []
    assert read_json(tuned / "run.json")["state"] == "finished"
    assert read_json(tuned / "run.json")["error"] is None
    conclusion = read_json(tuned / "verdict.json")["conclusion"]
    assert conclusion in err.splitlines(), "the verdict is told, on one line where nobody wraps it"
    assert "data.label: column 'label' is named like a label" in err


def test_piped_output_is_plain(tuned: Path) -> None:
    said = (tuned / "said.txt").read_text("utf-8")
    assert "\x1b" not in said
    assert "\r" not in said
    assert "━" not in said, "no bar where there is no terminal"


def test_the_test_split_is_opened_once_and_last(tuned: Path) -> None:
    names = [event["event"] for event in events(tuned)]
    assert names.count("test_opened") == 1
    assert names.index("test_opened") > max(i for i, name in enumerate(names) if name in ("step", "baseline"))


def test_quiet_and_json_print_only_the_result(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    said = finesmith(
        "tune", small, "--model", tiny_model, "--out", tmp_path / "r", "--json", "--set", "method.name=features"
    )
    assert said.status == 0
    assert said.err == ""
    found = json.loads(said.out)
    assert found.pop("folder") == str(tmp_path / "r")
    assert found == read_json(tmp_path / "r" / "verdict.json")
    assert {"task", "metric", "test_size", "baselines", "tuned", "gain", "overfitting", "conclusion"} <= set(found)
    assert finesmith("predict", tmp_path / "r", small, "-q", "-o", tmp_path / "p.csv").err == ""


def test_init_makes_a_recipe_that_tunes(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    said = finesmith("init", small, "--model", tiny_model)
    assert (said.status, said.err) == (0, "")
    assert "# inferred: column 'label' is named like a label" in said.out
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(said.out, "utf-8")
    written = yaml.safe_load(said.out)
    assert (written["task"], written["data"]["text"], written["data"]["label"]) == ("classification", "text", "label")

    said = finesmith(
        "tune", recipe, "--set", "train.learning_rate=3e-5", "--set", "train.epochs=1", "--out", tmp_path / "a", "-q"
    )
    assert said.status == 0, said.err
    resolved = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text("utf-8"))
    assert float(resolved["train"]["learning_rate"]) == 3e-5
    assert resolved["train"]["epochs"] == 1


def test_the_resolved_recipe_reruns_the_same_run(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = finesmith("tune", tuned / "recipe.yaml", "--out", "again", "-q")
    assert said.status == 0, said.err
    assert weights(tmp_path / "again") == weights(tuned)
    assert read_json(tmp_path / "again" / "scores.json") == read_json(tuned / "scores.json")


def test_check_trains_nothing_and_leaves_nothing(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = finesmith("check", small, "--model", tiny_model)
    assert said.status == 0, said.err
    assert "ready to tune" in said.out
    assert said.err.count("gives the label away") == 0, "what the result says is not said twice"
    assert said.out.count("gives the label away") == 1
    assert list(tmp_path.iterdir()) == []
    found = json.loads(finesmith("check", small, "--model", tiny_model, "--json").out)
    assert found["ok"] is True
    assert [stage["rows"] for stage in found["flow"]] == [120, 84, 18, 18]


def test_check_shows_rows_as_the_model_sees_them_when_asked(small: Path, tiny_model: Path) -> None:
    said = finesmith("check", small, "--model", tiny_model, "--show", "--quiet")
    assert (said.status, said.err) == (0, "")
    found = json.loads(finesmith("check", small, "--model", tiny_model, "--show", "--json").out)["examples"]
    first = found["examples"][0]
    text, label = reviews()[first["id"]]
    assert [token["text"] for token in first["tokens"]][:4] == ["[CLS]", *text.split()[:3]]
    shown = f"«[CLS]»|{'|'.join(text.split()[:3])}|"
    assert f"{small} row {first['id'] + 1}: {first['length']} tokens, among the first, answer: {label}" in said.out
    assert shown in said.out
    assert shown not in finesmith("check", small, "--model", tiny_model).out
    assert "examples" not in json.loads(finesmith("check", small, "--model", tiny_model, "--json").out)


def test_check_that_finds_a_fault_leaves_with_status_2(small: Path, tiny_model: Path) -> None:
    said = finesmith("check", small, "--model", tiny_model, "--set", "train.learning_rate=0.9")
    assert said.status == 2
    assert "STOP  learning rate" in said.out


def test_report_is_rebuilt_from_the_folder_alone(tuned: Path, tmp_path: Path) -> None:
    made = (tuned / "report.html").read_bytes()
    (tuned / "report.html").unlink()
    said = finesmith("report", tuned)
    assert (said.status, said.out) == (0, f"{tuned / 'report.html'}\n")
    assert (tuned / "report.html").read_bytes() == made


def test_runs_lists_one_line_each(tuned: Path, tmp_path: Path) -> None:
    damaged = tuned.parent / "damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{", "utf-8")
    try:
        lines = finesmith("runs", tuned.parent).out.splitlines()
        found = json.loads(finesmith("runs", tuned.parent, "--json").out)
    finally:
        (damaged / "run.json").unlink()
        damaged.rmdir()
    assert len(lines) == 2
    assert any(str(tuned) in line and "finished" in line and "accuracy" in line for line in lines)
    assert {row["folder"]: row["state"] for row in found} == {str(tuned): "finished", str(damaged): "damaged"}
    assert finesmith("runs", tmp_path).err == f"no runs in {tmp_path}; start one with: finesmith tune FILE\n"


# --- predict and evaluate ---------------------------------------------------------------------------------------


def test_predict_writes_the_same_rows_in_every_form(tuned: Path, small: Path, tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for form in ("csv", "jsonl", "parquet"):
        said = finesmith("predict", tuned, small, "-o", tmp_path / f"p.{form}")
        assert (said.status, said.out) == (0, "")
        assert said.err == f"120 rows written to {tmp_path / f'p.{form}'}\n"
    with (tmp_path / "p.csv").open(newline="") as file:
        rows["csv"] = list(csv.DictReader(file))
    rows["jsonl"] = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").splitlines()]
    rows["parquet"] = pq.read_table(tmp_path / "p.parquet").to_pylist()
    screen = finesmith("predict", tuned, small)
    rows["screen"] = list(csv.DictReader(io.StringIO(screen.out)))
    assert screen.err == ""
    for form, found in rows.items():
        assert [(row["text"], row["label"]) for row in found] == reviews(), form
        assert [row["prediction"] for row in found] == [row["prediction"] for row in rows["parquet"]], form
        sums = [json.loads(p) if isinstance(p := row["probabilities"], str) else p for row in found]
        assert all(abs(sum(each) - 1) < 1e-9 for each in sums), form


def test_predictions_equal_those_of_the_run(tuned: Path, small: Path, tmp_path: Path) -> None:
    kept = {row["text"]: row for row in pq.read_table(tuned / "predictions" / "test.parquet").to_pylist()}
    finesmith("predict", tuned, small, "-o", tmp_path / "p.jsonl")
    again = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").splitlines()]
    compared = [(row["probabilities"], kept[row["text"]]["probabilities"]) for row in again if row["text"] in kept]
    assert len(compared) == len(kept) == 18
    for now, then in compared:
        assert now == pytest.approx(then, abs=1e-5)


def test_a_column_named_prediction_is_kept(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "n.csv", [("good film", "mine", 1)], "text,prediction,finesmith_prediction")
    found = list(csv.DictReader(io.StringIO(finesmith("predict", tuned, file).out)))
    assert found[0]["prediction"] == "mine"
    assert found[0]["finesmith_prediction"] == "1"
    assert found[0]["finesmith_prediction_2"] in {"pos", "neg"}


def test_predict_reads_a_text_column_of_another_name(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "n.csv", [(1, "good film"), (2, "")], "id,body")
    said = finesmith("predict", tuned, file, "--text", "body")
    assert said.status == 0
    assert len(said.out.splitlines()) == 3, "an empty text is answered too"


def test_an_older_file_is_replaced_whole_or_not_at_all(
    tuned: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    out.write_text("precious", "utf-8")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("finesmith.deploy.export._write_csv", full)
        assert "No space left on device" in refused("predict", tuned, small, "-o", out)
    assert out.read_text("utf-8") == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_evaluate_tells_scores_and_keeps_them(tuned: Path, small: Path) -> None:
    said = finesmith("evaluate", tuned, "--data", small)
    assert said.status == 0
    assert said.out.splitlines()[0] == "120 examples of small.csv"
    assert any(line.split()[0] == "accuracy" and "95 % interval" in line for line in said.out.splitlines())
    found = json.loads(finesmith("evaluate", tuned, "--data", small, "--json").out)
    assert found == read_json(next((tuned / "evaluations").glob("small.csv-*.json")))
    predicted = list(csv.DictReader(io.StringIO(finesmith("predict", tuned, small).out)))
    right = sum(row["prediction"] == row["label"] for row in predicted) / len(predicted)
    assert found["scores"]["accuracy"]["value"] == pytest.approx(right, abs=1e-12)


def test_evaluate_leaves_rows_without_a_label_out_and_says_so(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "some.csv", [(t, y if i % 4 else "") for i, (t, y) in enumerate(reviews(40))])
    said = finesmith("evaluate", tuned, "--data", file)
    assert said.status == 0, said.err
    assert said.out.splitlines()[0] == "30 examples of some.csv (10 more have no label)"


# --- tasks and methods ------------------------------------------------------------------------------------------


def multi(i: int, text: str, label: str) -> list[str]:
    return [label, *(["odd"] if i % 3 == 0 else []), *(["late"] if "late" in text else [])]


def write_task(kind: str, folder: Path) -> Path:
    rows = reviews()
    if kind == "multi-label as lists":
        rows_of = [{"text": t, "labels": multi(i, t, y)} for i, (t, y) in enumerate(rows)]
        return write_jsonl(folder / "m.jsonl", rows_of)
    if kind == "multi-label as text":
        return write_csv(
            folder / "m.csv", [(t, "|".join(multi(i, t, y))) for i, (t, y) in enumerate(rows)], "text,tags"
        )
    if kind == "pairs":
        others = [rows[i // 2 + 3] for i in range(120)]
        pairs = [(t, u, int(y == v)) for (t, y), (u, v) in zip(rows, others, strict=True)]
        return write_csv(folder / "p.csv", pairs, "sentence1,sentence2,label")
    if kind == "rating":
        return write_csv(
            folder / "r.csv", [(t, 4.5 - (i % 3) / 2 if y == "pos" else 1.0) for i, (t, y) in enumerate(rows)],
            "text,rating",
        )  # fmt: skip
    return write_csv(folder / "c.csv", rows)


CASES = [
    ("classification", "lora", "classification"),
    ("classification", "features", "classification"),
    ("classification", "head_then_full", "classification"),
    ("multi-label as lists", "full", "multi-label"),
    ("multi-label as text", "features", "multi-label"),
    ("pairs", "full", "classification"),
    ("pairs", "lora", "classification"),
    ("rating", "full", "regression"),
    ("rating", "head_then_full", "regression"),
]


@pytest.mark.parametrize(("kind", "method", "task"), CASES)
def test_every_task_and_method_goes_from_file_to_predictions(
    kind: str, method: str, task: str, tiny_model: Path, tmp_path: Path
) -> None:
    file, run = write_task(kind, tmp_path), tmp_path / "run"
    said = finesmith(
        "tune", file, "--model", tiny_model, "--out", run, "-q",
        "--set", f"method.name={method}", *(() if method == "features" else ("--set", "train.epochs=1")),
    )  # fmt: skip
    assert said.status == 0, said.err
    assert said.err == "", "warnings of other libraries are not the user's business"
    assert read_json(run / "verdict.json")["task"] == task
    out = tmp_path / "scored.jsonl"
    assert finesmith("predict", run, file, "-o", out, "-q").status == 0
    scored = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(scored) == 120
    kept = pq.read_table(run / "predictions" / "test.parquet").to_pylist()
    by_id = {row["id"]: row for row in kept}
    for i, row in enumerate(scored):
        value = row["prediction"]
        if task == "regression":
            assert isinstance(value, float)
        elif task == "multi-label":
            assert set(value) <= {"pos", "neg", "odd", "late"}
        else:
            assert value in {"pos", "neg", "0", "1"}
        if i in by_id:
            probe = "prediction" if task == "regression" else "probabilities"
            # The states of a random network hardly differ, so a head solved on them has weights of thousands.
            slack = 2e-3 if (task, method) == ("regression", "head_then_full") else 1e-4
            assert row[probe] == pytest.approx(by_id[i][probe], rel=1e-4, abs=slack)
    said = finesmith("evaluate", run, "--data", file, "--json")
    assert json.loads(said.out)["examples"] == 120


def test_a_file_for_pairs_needs_both_columns(tiny_model: Path, tmp_path: Path) -> None:
    file, run = write_task("pairs", tmp_path), tmp_path / "run"
    tune = ("tune", file, "--model", tiny_model, "--out", run, "-q", "--set", "method.name=features")
    assert finesmith(*tune).status == 0
    other = write_csv(tmp_path / "o.csv", [("good", "bad")], "sentence1,b")
    assert "no text column 'sentence2'" in refused("predict", run, other)
    assert finesmith("predict", run, other, "--text-pair", "b").status == 0


# --- interruptions ----------------------------------------------------------------------------------------------

LONG = ("--set", "train.epochs=10", "--set", "guards.early_stopping=false", "--set", "evaluate.baselines=[majority]")


@pytest.fixture(scope="module")
def whole(small: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert finesmith("tune", small, "--model", tiny_model, "--out", folder, "-q", *LONG).status == 0
    return folder


def finished_like(folder: Path, whole: Path) -> None:
    assert read_json(folder / "run.json")["state"] == "finished"
    assert weights(folder) == weights(whole)
    assert read_json(folder / "scores.json") == read_json(whole / "scores.json")
    steps = [event["step"] for event in events(folder) if event["event"] == "step"]
    assert steps == list(range(1, 31)), "every step stands in the events once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_resumes_to_the_same_weights(
    number: int, small: Path, tiny_model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.console.Display.__call__", when_step(17, lambda: os.kill(os.getpid(), number)))
        said = finesmith("tune", small, "--model", tiny_model, "--out", folder, *LONG)
    assert said.status == 128 + number, "as a shell expects it of a program that the signal ended"
    assert (folder / "checkpoints" / "step-00000017").is_dir(), "the step is finished and saved"
    assert said.complaint == (
        f"finesmith: interrupted\nWhat was done is kept; go on with: finesmith resume '{folder}'\n"
    )
    assert read_json(folder / "run.json")["state"] == "interrupted"
    assert "Interrupted" in (folder / "report.html").read_text("utf-8")
    assert "was interrupted, so it has no model yet" in refused("predict", folder, small)
    assert "already holds a run (interrupted); go on with `finesmith resume" in refused(
        "tune", small, "--model", tiny_model, "--out", folder
    )
    said = finesmith("resume", folder, "-q")
    assert said.status == 0, said.err
    finished_like(folder, whole)


def test_ctrl_c_in_a_process_of_its_own(small: Path, tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "finesmith", "tune", small, "--model", tiny_model, "--out", folder, *LONG]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (folder / "events.jsonl").exists() or b'"step": 7' not in (folder / "events.jsonl").read_bytes():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith(f"finesmith: interrupted\nWhat was done is kept; go on with: finesmith resume {folder}\n")
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert finesmith("resume", folder, "-q").status == 0, "it goes on with as many threads as it began with"
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    finished_like(folder, whole)


def test_an_interruption_before_anything_was_learnt_is_resumed_from_the_start(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("finesmith.workflows.prepare.prepare", stop)
        assert finesmith("tune", small, "--model", tiny_model, "--out", folder).status == 143
    said = finesmith("resume", folder, "-q", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["folder"] == str(folder)


def test_signals_end_commands_without_a_run_folder_too(
    tuned: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("finesmith.workflows.apply.predict_file", stop)
    said = finesmith("predict", tuned, small)
    assert (said.status, said.out, said.err) == (143, "", "finesmith: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(32, "Broken pipe")])
def test_a_terminal_that_has_gone_does_not_stop_a_run(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesmith.console import Display, complain

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr("os.dup2", lambda *_: None)  # rich turns standard output off
    display = Display()
    display({"event": "note", "message": "nobody reads this"})
    display({"event": "step", "step": 1, "total": 2, "loss": 1.0})
    display.close()
    complain("nor this")


def test_commands_without_a_run_folder_are_interrupted_plainly(
    tuned: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finesmith.workflows.apply.predict_file", stop)
    said = finesmith("predict", tuned, small)
    assert (said.status, said.out, said.err) == (130, "", "finesmith: interrupted\n")


# --- the command line itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(words: list[str]) -> None:
    said = finesmith(*words)
    assert said.status == (0 if words else 2)
    shown = said.out if words else said.err
    assert shown.startswith("Usage: finesmith")
    assert (said.err if words else said.out) == ""
    if len(words) < 2:
        assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


def test_version() -> None:
    from finesmith import __version__

    assert finesmith("--version").out == f"finesmith {__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tone"], "No such command 'tone'"),
        (["tune"], "Missing argument 'DATA|RECIPE'"),
        (["tune", "a.csv", "--bogus"], "No such option: --bogus"),
        (["tune", "a.csv", "--out"], "Option '--out' requires an argument"),
        (["predict", "run"], "Missing argument 'DATA'"),
        (["evaluate", "run"], "Missing option '--data'"),
        (["runs", "a", "b"], "Got unexpected extra argument"),
    ],
)
def test_misuse_is_explained(words: list[str], expected: str) -> None:
    said = refused(*words)
    assert expected in said
    assert "--help` shows what there is" in said


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['finesmith', '--help']\n"
        "from finesmith.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'pyarrow', 'numpy', 'pandas', 'matplotlib'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what data may do to a terminal -----------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def test_control_characters_never_reach_the_terminal(tiny_model: Path, tmp_path: Path) -> None:
    rows = [(f"{t} {HOSTILE}", f"{y}{HOSTILE}") for t, y in reviews()]
    file, run = write_csv(tmp_path / "h.csv", rows), tmp_path / "run"
    for words in (
        ("tune", file, "--model", tiny_model, "--out", run, "--set", "method.name=features"),
        ("check", file, "--model", tiny_model),
        ("check", file, "--model", tiny_model, "--json"),
        ("check", file, "--model", tiny_model, "--show"),
        ("check", file, "--model", tiny_model, "--show", "--json"),
        ("init", file, "--model", tiny_model),
        ("evaluate", run, "--data", file),
        ("evaluate", run, "--data", file, "--json"),
        ("runs", tmp_path),
        ("report", run),
        ("tune", file, "--set", f"data.label={HOSTILE}"),
        ("tune", tmp_path / f"{HOSTILE}.csv", "--model", tiny_model, "--out", tmp_path / "x"),
        ("evaluate", run, "--data", write_csv(tmp_path / "u.csv", [("good", f"new{HOSTILE}")])),
    ):
        said = finesmith(*words)
        assert not [c for c in said.out + said.err if not (c.isprintable() or c == "\n")], words


def test_predictions_are_raw_in_a_pipe_and_harmless_on_a_terminal(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "h.csv", [(f"good {HOSTILE}",)], "text")
    assert HOSTILE in finesmith("predict", tuned, file).out
    shown = finesmith("predict", tuned, file, terminal=True).out
    assert "good" in shown
    assert not [c for c in shown if not (c.isprintable() or c == "\n")]


def test_a_terminal_shows_a_bar_and_takes_it_down(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    said = finesmith("tune", small, "--model", tiny_model, "--out", tmp_path / "r", *LONG, terminal=True)
    assert said.status == 0
    assert "training" in said.err
    assert "30/30" in said.err
    assert "steps/s" in said.err
    assert said.err.count("\x1b[?25l") == said.err.count("\x1b[?25h"), "the cursor comes back"
