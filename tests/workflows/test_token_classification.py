"""Token classification, whole: from tagged sentences to a verdict and a model that others load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jobs import PEFT_WARNING, differences, events, read, table, tuned, with_values
from language_jobs import language_plan, sentences, write_conll

import finesmith
from finesmith.deploy.export import write_tables
from finesmith.errors import DataError, RecipeError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check, infer_recipe
from finesmith.workflows.tune import resume
from plain import Plain

TASK = "token-classification"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conll(tmp_path_factory.mktemp("ner") / "ner.conll", sentences(120))


@pytest.fixture(scope="module")
def run(data: Path, tiny_model: Path) -> Path:
    return tuned(language_plan(TASK, data, tiny_model, data.parent / "cache", train__epochs=8), data.parent / "run")


def test_a_run_has_all_the_evidence(run: Path) -> None:
    verdict = read(run, "verdict.json")
    assert verdict["task"] == TASK
    assert verdict["metric"] == "span_f1"
    assert verdict["tuned"]["value"] > 0.5
    assert verdict["gain"]["interval"] is not None
    assert {each["name"] for each in verdict["baselines"]} == {"every word is O", "most frequent tag of each word"}
    names = [event["event"] for event in events(run)]
    assert names.count("test_opened") == 1
    assert names.index("test_opened") > max(at for at, name in enumerate(names) if name == "step")
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    lost = sum(rows for rows in flow.values() if rows < 0)
    assert flow["read"] + lost == flow["train"] + flow["validation"] + flow["test"]
    assert "Span F1" in (run / "report.html").read_text("utf-8")
    card = (run / "model" / "README.md").read_text("utf-8")
    assert "AutoModelForTokenClassification" in card
    assert "pipeline_tag: token-classification" in card
    assert read(run, "model.json")["reload_gap"] < 1e-5


def test_copies_never_straddle_a_split(run: Path) -> None:
    texts = {split: set(table(run / "predictions" / f"{split}.parquet")["text"]) for split in ("train", "test")}
    assert not texts["train"] & texts["test"]


PLAIN_LIBRARIES = """
import json, sys, torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
if sys.argv[3] == "lora":
    from peft import PeftModel
    from transformers import AutoConfig
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForTokenClassification.from_pretrained(sys.argv[4], config=config)
    model = PeftModel.from_pretrained(base, folder).eval()
else:
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
names = model.config.id2label
found = []
for text in texts:
    inputs = tokenizer(text, return_tensors="pt")
    best = model(**inputs).logits[0].argmax(-1).tolist()
    words, tags = inputs.word_ids(0), {}
    for word, label in zip(words, best):
        if word is not None and word not in tags:
            tags[word] = names[label]
    found.append(list(tags.values()))
assert not any(name.startswith("finesmith") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_libraries_give_the_same_tags(method: str, run: Path, data: Path, tiny_model: Path, plain: Plain) -> None:
    if method == "lora":
        tree = language_plan(TASK, data, tiny_model, data.parent / "cache", method__name="lora", train__epochs=4)
        # The head of labels is new: without it an adapter would fit random numbers only.
        run = tuned(tree, data.parent / "lora")
    rows = table(run / "predictions" / "test.parquet")
    out = plain(PLAIN_LIBRARIES, str(run / "model"), json.dumps(rows["text"]), method, str(tiny_model))
    assert json.loads(out) == rows["tags"]


def test_predicting_again_gives_the_tags_of_the_run(run: Path, tmp_path: Path) -> None:
    rows = table(run / "predictions" / "test.parquet")
    words = [[(word, "O") for word in text.split()] for text in rows["text"]]
    [found] = predict_file(str(run), str(write_conll(tmp_path / "new.conll", words)))
    assert found.column("tags").to_pylist() == rows["tags"]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows["text"]))
    [again] = predict_file(str(run), str(tmp_path / "new.jsonl"))
    assert again.column("prediction").to_pylist() == rows["prediction"]
    answered = finesmith.load(run).predict(rows["text"])
    assert [one["tags"] for one in answered] == rows["tags"]


def test_evaluating_the_test_rows_gives_the_score_of_the_run(run: Path, data: Path, tmp_path: Path) -> None:
    ids = table(run / "predictions" / "test.parquet")["id"]
    every = sentences(120)
    found = evaluate_file(str(run), str(write_conll(tmp_path / "t.conll", [every[i] for i in ids])))
    assert found["scores"]["span_f1"]["value"] == read(run, "scores.json")["test"]["span_f1"]["value"]


def test_an_interrupted_run_ends_with_the_same_bits(
    run: Path, data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import training

    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    tree = language_plan(TASK, data, tiny_model, data.parent / "cache", train__epochs=8)
    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        tuned(tree, tmp_path / "again")
    monkeypatch.setattr(training, "_save", save)
    resume(str(tmp_path / "again"))
    told = [name for name in differences(run, tmp_path / "again") if not name.startswith("evaluations/")]
    assert told == []


def test_check_probes_without_training(data: Path, tiny_model: Path) -> None:
    tree = language_plan(TASK, data, tiny_model, data.parent / "cache", train__learning_rate=1e-3)
    found = check(from_dict(tree))
    assert found["ok"], found["probes"]
    assert found["plan"]["metric"] == "span_f1"
    written = infer_recipe(from_dict(with_values(tree, {"train.epochs": None})))
    assert "baselines: [majority, word_tag]" in written


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.separator", ";"), ("data.clean.html", True), ("data.audit.html", "fix"), ("train.loss", "focal"),
        ("method.name", "features"), ("evaluate.baselines", ["tfidf"]), ("data.group", "doc"),
    ],
)  # fmt: skip
def test_a_setting_that_would_change_nothing_is_refused(key: str, value: Any, data: Path) -> None:
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        from_dict(with_values(language_plan(TASK, data, "x", "y"), {key: value}))


def with_spans(rows: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """Return tagged sentences as texts with spans of characters."""
    spans = []
    for row in rows:
        text, found = " ".join(word for word, _ in row), []
        start = 0
        for word, tag in row:
            if tag[0] == "B":
                found.append({"start": start, "end": start + len(word), "label": tag[2:]})
            elif tag[0] == "I":
                found[-1]["end"] = start + len(word)
            start += len(word) + 1
        spans.append({"text": text, "entities": found})
    return spans


def test_rows_with_spans_and_rows_with_lists_tell_the_same(tiny_model: Path, tmp_path: Path) -> None:
    rows = sentences(60)
    lists = [{"tokens": [w for w, _ in row], "ner_tags": [t for _, t in row]} for row in rows]
    spans = with_spans(rows)
    made = []
    for name, given in (("lists", lists), ("spans", spans)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
        made.append(tuned(language_plan(TASK, path, tiny_model, tmp_path / "cache", train__epochs=1), tmp_path / name))
    assert read(made[0], "scores.json") == read(made[1], "scores.json")
    assert "spans" not in table(made[0] / "predictions" / "test.parquet")


def test_texts_get_their_spans_back_as_a_training_file_has_them(tiny_model: Path, tmp_path: Path) -> None:
    # A full stop stands at the last word without a space.
    rows = [{**row, "text": f"{row['text']}."} for row in with_spans(sentences(120))]
    path = tmp_path / "spans.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tuned(language_plan(TASK, path, tiny_model, tmp_path / "cache", train__epochs=8), tmp_path / "run")
    kept = table(run / "predictions" / "test.parquet")
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept["text"]))
    write_tables(predict_file(str(run), str(new)), str(tmp_path / "found.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["spans"] for row in found] == kept["spans"]
    assert sum(map(len, kept["spans"])) > 5
    for row in found:
        # The names of the same spans, read off the text.
        told = [f"{span['label']}: {row['text'][span['start'] : span['end']]}" for span in row["spans"]]
        assert told == [re.sub(r" \d+-\d+:", ":", one) for one in row["prediction"]]
    # What was predicted is read again as what is true.
    again = evaluate_file(str(run), str(tmp_path / "found.jsonl"), label="spans")
    assert again["scores"]["span_f1"]["value"] == 1.0
    assert [one["spans"] for one in finesmith.load(run).predict(kept["text"])] == kept["spans"]


def test_a_tag_that_training_never_saw_is_named(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    odd = write_conll(tmp_path / "odd.conll", [*sentences(20, seed=1), [("wow", "B-EVENT")]])
    with pytest.raises(DataError, match=r"odd\.conll line \d+.*B-EVENT"):
        tuned(language_plan(TASK, data, tiny_model, tmp_path / "cache", data__test=str(odd)), tmp_path / "run")


def test_texts_are_withheld_where_the_recipe_asks(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tuned(
        language_plan(TASK, data, tiny_model, "none", output__redact=True, train__epochs=1), tmp_path / "run"
    )
    kept = table(folder / "predictions" / "test.parquet")
    assert "text" not in kept
    assert not any("anna" in str(value) for column in kept.values() for value in column)
