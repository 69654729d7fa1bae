"""Embeddings, whole: from texts that belong together to a verdict and an encoder that others load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import PEFT_WARNING, differences, events, read, table, tuned, with_values, write_csv
from language_jobs import labelled, language_plan, scored, triplets

import finesmith
from finesmith.errors import DataError, RecipeError, UserError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check, infer_recipe
from finesmith.workflows.tune import resume, tune
from plain import Plain

TASK = "embeddings"


def write(folder: Path, kind: str, *, seed: int = 0) -> Path:
    if kind == "labelled":
        return write_csv(folder / f"{kind}.csv", labelled(seed=seed), ("text", "category"))
    rows = triplets(seed=seed)
    if kind == "triplets":
        return write_csv(folder / f"{kind}.csv", rows, ("anchor", "positive", "negative"))
    return write_csv(folder / f"{kind}.csv", [row[:2] for row in rows], ("query", "passage"))


def a_plan(data: Path, model: Path, **values: Any) -> dict[str, Any]:
    return language_plan(TASK, data, model, data.parent / "cache", **{"model__dropout": 0.0, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def runs(folder: Path, tiny_model: Path) -> dict[str, Path]:
    """One run of each kind of data."""
    found = {}
    for kind in ("pairs", "triplets", "labelled"):
        tree = a_plan(
            write(folder, kind), tiny_model, train__epochs=6, train__batch_size=16, train__micro_batch_size=16
        )
        found[kind] = tuned(with_values(tree, {"train.learning_rate": 5e-3}), folder / f"run-{kind}")
    return found


@pytest.mark.parametrize("kind", ["pairs", "triplets", "labelled"])
def test_a_run_has_all_the_evidence(kind: str, runs: dict[str, Path]) -> None:
    run = runs[kind]
    verdict = read(run, "verdict.json")
    assert verdict["task"] == TASK
    assert verdict["metric"] == "ndcg@10"
    assert verdict["better"], verdict["conclusion"]
    assert {each["name"] for each in verdict["baselines"]} == {"untuned base model", "TF-IDF"}
    assert set(read(run, "scores.json")["test"]) >= {"ndcg@10", "accuracy@1", "mrr", "map"}
    losses = [event["validation_loss"] for event in events(run, "evaluation")]
    assert losses[-1] < losses[0]
    names = [event["event"] for event in events(run)]
    assert names.count("test_opened") == 1
    assert names.index("test_opened") > max(at for at, name in enumerate(names) if name == "step")
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    lost = sum(rows for rows in flow.values() if rows < 0)
    assert flow["read"] + lost == flow["train"] + flow["validation"] + flow["test"]
    assert "nDCG@10" in (run / "report.html").read_text("utf-8")
    card = (run / "model" / "README.md").read_text("utf-8")
    assert "SentenceTransformer(" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert read(run, "model.json")["reload_gap"] < 1e-5


def test_texts_that_belong_together_never_straddle_a_split(folder: Path, tiny_model: Path) -> None:
    rows = [row[:2] for row in triplets(90)]
    # Every third pair shares its positive with the one before, every third its anchor, in other letters.
    for at in range(0, 90, 3):
        rows[at + 1] = rows[at + 1][0], rows[at][1].upper()
        rows[at + 2] = rows[at + 1][0] + "!", rows[at + 2][1]
    data = write_csv(folder / "shared.csv", rows, ("query", "passage"))
    run = tuned(a_plan(data, tiny_model, train__epochs=1), folder / "shared")
    splits = {split: table(run / "predictions" / f"{split}.parquet") for split in ("train", "validation", "test")}
    for column in ("text", "text_pair"):
        plain = {name: {text.lower().rstrip("!") for text in rows[column]} for name, rows in splits.items()}
        assert not plain["train"] & plain["test"]
        assert not plain["train"] & plain["validation"]
        assert not plain["validation"] & plain["test"]
    assert "no anchor or positive" in read(run, "data.json")["split_notes"][0]


def embedded(run: Path, texts: list[str], tmp_path: Path) -> np.ndarray:
    """Embed texts by a run's model."""
    path = tmp_path / "texts.jsonl"
    name = read(run, "model/finesmith.json")["reading"]["text"]
    path.write_text("".join(json.dumps({name: text}) + "\n" for text in texts))
    [found] = predict_file(str(run), str(path))
    assert str(found.column("embedding").type) == "list<item: float>"
    return np.asarray(found.column("embedding").to_pylist())


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_scores_of_pairs_are_those_of_the_embeddings(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs[kind]
    rows = table(run / "predictions" / "test.parquet")
    documents = sorted({*rows["text_pair"], *rows.get("negative", [])})
    cosines = embedded(run, rows["text"], tmp_path) @ embedded(run, documents, tmp_path).T
    ranks = []
    for row, positive in enumerate(rows["text_pair"]):
        assert rows["text"].count(rows["text"][row]) == 1
        ranks.append(1 + int((cosines[row] > cosines[row][documents.index(positive)]).sum()))
        assert rows["prediction"][row] == documents[int(cosines[row].argmax())]
    assert ranks == rows["rank"]
    ranked = np.asarray(ranks)
    expected = {
        "ndcg@10": np.where(ranked <= 10, 1 / np.log2(ranked + 1), 0.0).mean(),
        "accuracy@1": (ranked == 1).mean(),
        "recall@10": (ranked <= 10).mean(),
        "mrr": (1 / ranked).mean(),
        "map": (1 / ranked).mean(),
    }
    scores = read(run, "scores.json")["test"]
    assert {name: scores[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_scores_of_labels_are_those_of_the_embeddings(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["labelled"]
    rows = table(run / "predictions" / "test.parquet")
    vectors = embedded(run, rows["text"], tmp_path)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -9)
    precision, right = [], []
    for row, label in enumerate(rows["label"]):
        order = np.argsort(-cosines[row])[:-1]
        hits = np.asarray([rows["label"][other] == label for other in order])
        assert rows["rank"][row] == 1 + int(hits.argmax())
        assert rows["prediction"][row] == rows["label"][order[0]]
        assert rows["found"][row] == rows["text"][order[0]]
        right.append(hits[0])
        precision.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
    scores = read(run, "scores.json")["test"]
    assert scores["accuracy@1"]["value"] == pytest.approx(np.mean(right))
    assert scores["map"]["value"] == pytest.approx(np.mean(precision), abs=1e-6)
    assert "recall@10" not in scores


def test_scored_pairs_learn_their_scores(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    from scipy import stats

    data = write_csv(folder / "scored.csv", scored(300), ("here", "there", "alike"))
    columns = {"data__text": "here", "data__text_pair": "there", "data__label": "alike"}
    tree = a_plan(data, tiny_model, train__epochs=8, train__batch_size=16, train__micro_batch_size=8, **columns)
    run = tuned(with_values(tree, {"train.learning_rate": 5e-3}), tmp_path / "run")
    verdict = read(run, "verdict.json")
    assert verdict["metric"] == "spearman"
    assert verdict["better"], verdict["conclusion"]
    assert {each["name"] for each in verdict["baselines"]} == {"untuned base model", "TF-IDF"}
    assert read(run, "model/finesmith.json")["task"]["scale"] == [0.0, 5.0]
    rows = table(run / "predictions" / "test.parquet")
    name = {"here": rows["text"], "there": rows["text_pair"]}
    first, second = (embedded(run, texts, tmp_path) for texts in name.values())
    assert (first * second).sum(axis=1).tolist() == pytest.approx(rows["cosine"], abs=1e-5)
    assert rows["prediction"] == pytest.approx([5 * cosine for cosine in rows["cosine"]])
    scores = read(run, "scores.json")["test"]
    assert scores["spearman"]["value"] == pytest.approx(stats.spearmanr(rows["label"], rows["cosine"])[0])
    assert scores["pearson"]["value"] == pytest.approx(stats.pearsonr(rows["label"], rows["cosine"])[0])
    assert scores["spearman"]["low"] < scores["spearman"]["value"] < scores["spearman"]["high"]
    losses = [event["validation_loss"] for event in events(run, "evaluation")]
    squares = np.square(np.asarray(rows["cosine"]) - np.asarray(rows["label"]) / 5)
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(squares.mean(), rel=0.5)
    # What was settled reruns, and the saved model measures and predicts as the run did.
    assert "loss: similarity" in (run / "recipe.yaml").read_text("utf-8")
    new = write_csv(
        tmp_path / "new.csv", list(zip(*name.values(), rows["label"], strict=True)), tuple(columns.values())
    )
    again = evaluate_file(str(run), str(new))["scores"]
    assert {name: score["value"] for name, score in again.items()} == pytest.approx(
        {name: score["value"] for name, score in scores.items()}
    )
    [answers] = predict_file(str(run), str(new), text_pair="there")
    assert answers.column("prediction").to_pylist() == pytest.approx(rows["prediction"], abs=1e-5)
    page = (run / "report.html").read_text("utf-8")
    assert "Spearman correlation" in page
    found = check(from_dict(with_values(tree, {"train.learning_rate": 1e-3})))
    assert found["ok"], found["probes"]
    assert found["plan"]["metric"] == "spearman"
    with pytest.raises(RecipeError, match=r"contrast\.temperature is 0\.1"):
        tune(from_dict(with_values(tree, {"contrast.temperature": 0.1})), out=str(tmp_path / "refused"))


PLAIN_LIBRARIES = """
import json, sys, torch
folder, method, base, texts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
card = open(folder + "/README.md").read()
code = [block.split("```")[0] for block in card.split("```python")[1:]]
plain = next(block for block in code if "AutoModel" in block)
exec(plain.replace("path/to/model", folder).replace("path/to/base", base))
found = embed(texts)
one_by_one = torch.cat([embed([text]) for text in texts])
assert torch.allclose(found, one_by_one, atol=1e-5)
if sys.argv[5] == "also":
    from sentence_transformers import SentenceTransformer
    theirs = torch.from_numpy(SentenceTransformer(folder, device="cpu").encode(texts))
    assert torch.allclose(found, theirs, atol=1e-5), (found - theirs).abs().max()
assert not any(name.startswith("finesmith") for name in sys.modules)
print(json.dumps(found.tolist()))
"""


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_libraries_give_the_same_embeddings(
    method: str, runs: dict[str, Path], folder: Path, tiny_model: Path, tmp_path: Path, plain: Plain
) -> None:
    run = runs["pairs"]
    if method == "lora":
        tree = a_plan(folder / "pairs.csv", tiny_model, method__name="lora", train__epochs=2)
        run = tuned(tree, folder / "lora")
        assert read(run, "model.json")["reload_gap"] < 1e-5
    else:
        chain = [module["type"].rsplit(".")[-1] for module in read(run, "model/modules.json")]
        assert chain == ["Transformer", "Pooling", "Normalize"]
        assert read(run, "model/1_Pooling/config.json")["pooling_mode_mean_tokens"]
    texts = table(run / "predictions" / "test.parquet")["text"][:8]
    also = "also" if method == "full" and importlib.util.find_spec("sentence_transformers") else "no"
    out = plain(PLAIN_LIBRARIES, str(run / "model"), method, str(tiny_model), json.dumps(texts), also)
    assert np.allclose(json.loads(out), embedded(run, texts, tmp_path), atol=1e-5)


def test_predicting_pairs_adds_their_cosine(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["pairs"]
    rows = table(run / "predictions" / "test.parquet")
    write_csv(tmp_path / "new.csv", zip(rows["text"], rows["text_pair"], strict=True), ("query", "passage"))
    [found] = predict_file(str(run), str(tmp_path / "new.csv"))
    assert np.allclose(found.column("cosine").to_pylist(), rows["cosine"], atol=1e-6)
    write_csv(tmp_path / "other.csv", zip(rows["text"], rows["text_pair"], strict=True), ("ask", "tell"))
    [again] = predict_file(str(run), str(tmp_path / "other.csv"), text="ask", text_pair="tell")
    assert again.column("cosine").to_pylist() == found.column("cosine").to_pylist()
    [alone] = predict_file(str(run), str(tmp_path / "other.csv"), text="ask")
    assert "cosine" not in alone.column_names
    answered = finesmith.load(run).predict(rows["text"][:3])
    assert np.allclose([one["embedding"] for one in answered], embedded(run, rows["text"][:3], tmp_path), atol=1e-6)
    with pytest.raises(DataError, match="no column 'said'"):
        list(predict_file(str(run), str(tmp_path / "other.csv"), text="ask", text_pair="said"))
    with pytest.raises(DataError, match="no text column 'query'"):
        list(predict_file(str(run), str(tmp_path / "other.csv")))


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_evaluating_the_test_rows_gives_the_score_of_the_run(
    kind: str, runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    ids = table(runs[kind] / "predictions" / "test.parquet")["id"]
    every = labelled() if kind == "labelled" else [row[:2] for row in triplets()]
    header = ("text", "category") if kind == "labelled" else ("query", "passage")
    path = write_csv(tmp_path / "test.csv", [every[i] for i in ids], header)
    found = evaluate_file(str(runs[kind]), str(path))
    expected = read(runs[kind], "scores.json")["test"]
    assert found["scores"]["ndcg@10"]["value"] == pytest.approx(expected["ndcg@10"]["value"], abs=1e-9)
    other = "labelled" if kind == "pairs" else "pairs"
    with pytest.raises(DataError):
        evaluate_file(str(runs[kind]), str(write(tmp_path, other)))


def test_an_interrupted_run_ends_with_the_same_bits(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import training

    # In micro-batches of its own, with dropout, and with texts that many rows share: epochs of unequal length.
    answers = [(row[0], row[1] if at > 11 else "the one answer") for at, row in enumerate(triplets(80))]
    data = write_csv(folder / "unequal.csv", answers, ("query", "passage"))
    values = {"train__epochs": 3, "train__micro_batch_size": 3, "model__dropout": 0.1, "train__evaluations": 2}
    tree = a_plan(data, tiny_model, **values)
    whole = tuned(tree, tmp_path / "whole")
    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        tuned(tree, tmp_path / "again")
    monkeypatch.setattr(training, "_save", save)
    resume(str(tmp_path / "again"))
    assert differences(whole, tmp_path / "again") == []


def test_micro_batches_change_nothing_but_rounding(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    losses = []
    for size in (8, 3, 1):
        tree = a_plan(write(tmp_path, "triplets"), tiny_model, train__micro_batch_size=size, train__epochs=1)
        run = tuned(tree, tmp_path / f"run-{size}")
        losses.append([event["loss"] for event in events(run, "step")])
        assert {event["examples"] for event in events(run, "step")[:-1]} == {8}
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_check_probes_without_training(runs: dict[str, Path], folder: Path, tiny_model: Path) -> None:
    for kind in ("pairs", "labelled"):
        tree = a_plan(folder / f"{kind}.csv", tiny_model, train__learning_rate=1e-3, train__batch_size=16)
        found = check(from_dict(tree))
        assert found["ok"], found["probes"]
        assert found["plan"]["metric"] == "ndcg@10"
    written = infer_recipe(from_dict(with_values(tree, {"train.epochs": None})))
    assert "baselines: [base, tfidf]" in written
    assert "label: category" in written


def test_the_last_token_of_a_decoder_is_its_embedding(shared: Path, folder: Path, tmp_path: Path, plain: Plain) -> None:
    data = write_csv(tmp_path / "pairs.csv", [row[:2] for row in triplets(40)], ("query", "passage"))
    tree = a_plan(data, shared / "models" / "stories260K" / "hf", train__epochs=1, train__learning_rate=1e-4)
    run = tuned(with_values(tree, {"model.dropout": None}), tmp_path / "run")
    assert read(run, "model.json")["pooling"] == "last"
    assert read(run, "model/1_Pooling/config.json")["pooling_mode_lasttoken"]
    texts = table(run / "predictions" / "test.parquet")["text"]
    also = "also" if importlib.util.find_spec("sentence_transformers") else "no"
    out = plain(PLAIN_LIBRARIES, str(run / "model"), "full", "", json.dumps(texts), also)
    assert np.allclose(json.loads(out), embedded(run, texts, tmp_path), atol=1e-5)


def test_texts_are_withheld_where_the_recipe_asks(runs: dict[str, Path], folder: Path, tiny_model: Path) -> None:
    for kind in ("pairs", "labelled"):
        tree = language_plan(TASK, folder / f"{kind}.csv", tiny_model, "none", output__redact=True, train__epochs=1)
        run = tuned(tree, folder / f"redacted-{kind}")
        kept = table(run / "predictions" / "test.parquet")
        assert not {"text", "text_pair", "found", "embedding"} & set(kept)
        texts = [text for row in (triplets() if kind == "pairs" else labelled()) for text in row if " " in text]
        texts = [text for text in texts if not text.startswith("topic")]
        for path in run.rglob("*"):
            if path.suffix in {".json", ".jsonl", ".html", ".md", ".yaml"}:
                content = path.read_text("utf-8")
                assert not any(text in content for text in texts), path
        assert "text withheld" in (run / "report.html").read_text("utf-8")


def test_what_was_found_instead_is_in_the_report_escaped(folder: Path, tiny_model: Path) -> None:
    rows = [(anchor, f"<b>{positive}</b>") for anchor, positive, _ in triplets(80)]
    data = write_csv(folder / "markup.csv", rows, ("query", "passage"))
    run = tuned(a_plan(data, tiny_model, train__epochs=1, train__learning_rate=1e-5), folder / "markup")
    page = (run / "report.html").read_text("utf-8")
    found = table(run / "predictions" / "test.parquet")
    worst = max(range(len(found["rank"])), key=lambda row: found["rank"][row])
    assert found["rank"][worst] > 1
    assert f"first right one at place {found['rank'][worst]}" in page
    assert f"&lt;b&gt;{found['prediction'][worst][3:20]}" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        ([("a film", ""), *[row[:2] for row in triplets(40)]], ("query", "passage"), r"row 1: the positive is ''"),
        ([("a film", "a film")] * 9, ("query", "passage"), "both texts are the same"),
        ([(text, "same") for text, _ in labelled(60)], ("text", "label"), "0 labels|1 labels"),
        ([(text, f"only {i}") for i, (text, _) in enumerate(labelled(60))], ("text", "label"), "no class|0 labels"),
        (
            [(*row[:2], 0.5) for row in triplets(40)],
            ("query", "passage", "score"),
            r"odd\.csv .*all 40 scores are 0\.5",
        ),
        ([*scored(40), ("a", "b", "")], ("query", "passage", "score"), r"odd\.csv row 41: the score is missing"),
        ([*scored(40), ("a", "b", "inf")], ("query", "passage", "score"), r"row 41: the score is no finite number"),
        ([*scored(40), ("a", "b", "good")], ("query", "passage", "score"), r"row 41: the score is no finite number"),
        ([*scored(40), ("a", "", 1)], ("query", "passage", "score"), r"row 41: the second text is "),
        ([(*row[:2], 1) for row in triplets(40)], ("query", "passage", "label"), "name it as the score"),
        ([row[:2] for row in triplets(40)], ("here", "there"), r"data\.text=COLUMN"),
        ([(*row[:2], row[1]) for row in triplets(40)], ("anchor", "positive", "negative"), "are the same text"),
        ([("one answer", row[1]) for row in triplets(40)], ("query", "passage"), "independent|too few"),
    ],
)
def test_data_that_teaches_nothing_gets_one_clear_answer(
    rows: list[Any], header: tuple[str, ...], says: str, tiny_model: Path, tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "odd.csv", rows, header)
    with pytest.raises(DataError, match=says) as refused:
        tune(from_dict(a_plan(data, tiny_model)), out=str(tmp_path / "run"))
    assert len(str(refused.value)) < 700


def test_rows_that_teach_nothing_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    equal = [("the same film", "The same  film"), ("one more card", "one more card")]
    data = write_csv(tmp_path / "pairs.csv", [*equal, *[row[:2] for row in triplets(60)]], ("query", "passage"))
    run = tuned(a_plan(data, tiny_model, train__epochs=1), tmp_path / "pairs")
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    assert flow["read"] == 62
    assert flow["dropped: pairs of equal texts"] == -2
    odd = [("", "topic 1"), ("   ", "topic 2"), ("a film without a label", ""), ("a lonely film", "lonely")]
    data = write_csv(tmp_path / "labels.csv", [*odd, *labelled(100)], ("text", "label"))
    run = tuned(a_plan(data, tiny_model, train__epochs=1), tmp_path / "labels")
    flow = {row["stage"]: row["rows"] for row in read(run, "data.json")["flow"]}
    assert flow["dropped: empty"] == -2
    assert flow["dropped: missing_labels"] == -1
    notes = [event["message"] for event in events(run, "note")]
    assert any("1 labels have one sentence here" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"contrast.loss": "triplet"}, "contrast.loss is triplet, but the data holds pairs"),
        ({"contrast.loss": "supervised"}, "contrast.loss is supervised, but the data holds pairs"),
        ({"contrast.widths": [8, 64]}, r"contrast.widths holds 64, but .* makes 32"),
        ({"evaluate.metric": "accuracy"}, "choose one of ndcg@10"),
    ],
)
def test_what_the_data_or_model_cannot_do_is_refused(
    values: dict[str, Any], says: str, folder: Path, runs: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    tree = with_values(a_plan(folder / "pairs.csv", tiny_model), values)
    with pytest.raises((UserError, DataError), match=says):
        tune(from_dict(tree), out=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.label_smoothing", 0.1), ("data.audit.html", "fix"), ("train.loss", "focal"),
        ("method.name", "features"), ("evaluate.baselines", ["majority"]), ("data.group", "doc"),
        ("contrast.margin", 0.1), ("train.batch_size", 2), ("contrast.temperature", 0.0), ("contrast.widths", []),
    ],
)  # fmt: skip
def test_a_setting_that_would_change_nothing_is_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        from_dict(with_values(language_plan(TASK, "data.csv", "x", "y", train__micro_batch_size=None), {key: value}))


def test_scores_and_negatives_at_once_are_refused() -> None:
    tree = language_plan(TASK, "data.csv", "x", "y", data__label="label", data__negative="other")
    with pytest.raises(RecipeError, match="no score is learnt"):
        from_dict(tree)
    with pytest.raises(RecipeError, match=r"contrast\.temperature"):
        from_dict(language_plan(TASK, "d.csv", "x", "y", contrast__loss="triplet", contrast__temperature=0.1))
