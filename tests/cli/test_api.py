"""The Python API: the same names, the same behaviour and the same numbers as the command line."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import finesmith
from finesmith.errors import DataError, FinesmithError, RecipeError, RunError
from terminal import finesmith as command
from terminal import read_json, reviews, write_csv, write_jsonl


def untimed(value: Any) -> Any:
    """Return a verdict without its seconds, and without the sentence that speaks of them."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if "seconds" not in k and k != "conclusion"}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def test_tune_gives_what_the_command_line_gives(
    tuned: Path, small: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = finesmith.tune(small, model=tiny_model, out=tmp_path / "run", settings={"train.epochs": 2})
    assert capfd.readouterr().out == "", "a library prints nothing"
    assert run.state == "finished"
    assert run.folder == tmp_path / "run"
    assert run.scores == read_json(tuned / "scores.json")
    assert untimed(run.verdict) == untimed(read_json(tuned / "verdict.json"))
    digests = {
        hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
        for folder in (run.folder, tuned)
    }
    assert len(digests) == 1
    assert run.report.is_file()


def test_predict_gives_what_the_command_line_gives(tuned: Path, small: Path) -> None:
    run = finesmith.load(tuned)
    texts = [text for text, _ in reviews()]
    answers = run.predict(texts)
    rows = list(csv.DictReader(io.StringIO(command("predict", tuned, small).out)))
    assert [answer["prediction"] for answer in answers] == [row["prediction"] for row in rows]
    assert [answer["confidence"] for answer in answers] == [float(row["confidence"]) for row in rows]
    assert run.predict(texts[:1])[0]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    assert run.predict([]) == []


def test_evaluate_gives_what_the_command_line_gives(tuned: Path, small: Path) -> None:
    found = finesmith.load(str(tuned)).evaluate(small)
    assert (
        found["scores"]["accuracy"]
        == read_json(next((tuned / "evaluations").glob("small.csv-*.json")))["scores"]["accuracy"]
    )
    assert f"{found['scores']['accuracy']['value']:.4f}" in command("evaluate", tuned, "--data", small).out


def test_pairs(tiny_model: Path, tmp_path: Path) -> None:
    rows = reviews()
    pairs = [
        {"premise": t, "hypothesis": rows[i // 2][0], "label": int(y == rows[i // 2][1])}
        for i, (t, y) in enumerate(rows)
    ]
    run = finesmith.tune(
        {"data": {"train": str(write_jsonl(tmp_path / "p.jsonl", pairs))}, "method": {"name": "features"}},
        model=str(tiny_model),
        out=str(tmp_path / "run"),
    )
    assert run.predict(["good film"], ["bad film"])[0]["prediction"] in {"0", "1"}
    with pytest.raises(DataError, match="pairs of texts"):
        run.predict(["good film"])
    with pytest.raises(DataError, match="do not make pairs"):
        run.predict(["good film"], ["bad film", "dull film"])


def test_several_files_and_events(tiny_model: Path, tmp_path: Path) -> None:
    rows, seen = reviews(), []
    files = [write_csv(tmp_path / f"{i}.csv", rows[i::2][:40] + rows[1 - i :: 2][:20]) for i in range(2)]
    run = finesmith.tune(
        files, model=tiny_model, out=tmp_path / "run", settings={"method.name": "features"}, listeners=[seen.append]
    )
    assert read_json(run.folder / "data.json")["flow"][0] == {"stage": "read", "rows": 120}
    names = [event["event"] for event in seen]
    assert names[0] == "stage"
    assert names[-1] == "verdict"


def test_mistakes_are_exceptions_with_one_message(tuned: Path, small: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        finesmith.tune(tmp_path / "absent.csv", model=tiny_model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"did you mean train\.epochs"):
        finesmith.tune(small, settings={"train.epoch": 3}, out=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data\.train is missing"):
        finesmith.tune({}, out=tmp_path / "run")
    with pytest.raises(RunError, match="not a run folder"):
        finesmith.load(tmp_path)
    with pytest.raises(RunError, match="has finished"):
        finesmith.resume(tuned)
    with pytest.raises(DataError, match="one text, not a pair"):
        finesmith.load(tuned).predict(["a"], ["b"])
    with pytest.raises(TypeError, match=r"run\.predict\(\[text\]\)"):
        finesmith.load(tuned).predict("good film")
    with pytest.raises(TypeError, match="number 1 is a NoneType"):
        finesmith.load(tuned).predict(["good film", None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_keeps_the_original_error(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "one.csv", [(t, "pos") for t, _ in reviews()])
    with pytest.raises(FinesmithError, match="only the label 'pos'") as caught:
        finesmith.tune(file, model=tiny_model, out=tmp_path / "run")
    assert caught.value.__notes__ == [
        f"What was done is kept in {tmp_path / 'run'}; its report is {tmp_path / 'run' / 'report.html'}"
    ]
    assert "FAILED" in repr(finesmith.load(tmp_path / "run")).upper()
    with pytest.raises(RunError, match=r"verdict\.json is missing"):
        _ = finesmith.load(tmp_path / "run").verdict


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, finesmith; sys.exit(', '.join({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
