"""Sentences from concepts and summaries: from files of several forms to verdicts on what is written."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jobs import events, read, table, tuned
from language_jobs import language_plan, write_rows

import finesmith
from finesmith.errors import DataError, RecipeError
from finesmith.recipe import from_dict
from finesmith.tasks.asked_tables import RowError
from finesmith.tasks.concept_to_text import ConceptToText, concepts_of
from finesmith.tasks.corpus import Reading, groups_of
from finesmith.tasks.summarisation import Summarisation
from finesmith.workflows.apply import evaluate_file, predict_file

NOUNS = ("film", "story", "plot", "music", "scene", "refund", "order", "card", "bank", "app", "red", "blue", "green")
OTHERS = ("really", "very", "not", "but", "this", "that", "warm", "cold", "dark", "late", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def concept_rows(count: int = 60) -> list[tuple[list[str], list[str]]]:
    """Return different sets of three words, each with one to three sentences that hold them."""
    draw = random.Random(0)
    sets = {tuple(sorted(draw.sample(NOUNS, 3))): None for _ in range(4 * count)}
    rows = []
    for number, (a, b, c) in enumerate(list(sets)[:count]):
        sentences = [f"the {a} and the {b} with a {c}", f"a {c} is on the {b} of the {a}", f"{a} {b} {c}"]
        rows.append(([a, b, c], sentences[: 1 + number % 3]))
    return rows


def summary_rows(count: int = 70) -> list[dict[str, str]]:
    """Return texts of three sentences of which the first is nearly the summary."""
    draw = random.Random(1)
    rows = []
    for _ in range(count):
        noun, *words = draw.choice(NOUNS), *draw.sample(OTHERS, 8)
        said = f"The {noun} is {words[0]}"
        rows.append(
            {"document": f"{said} {words[1]}. {' '.join(words[2:5]).title()}! {' '.join(words[5:])}.", "summary": said}
        )
    return rows


def write_concepts(folder: Path, rows: list[tuple[list[str], list[str]]]) -> list[Path]:
    """Write sets as CommonGen's jsonl, and as a csv with a row for each sentence."""
    first, second = rows[::2], rows[1::2]
    marked = [{"concept_set": "#".join(f"{word}_N" for word in words), "scene": said} for words, said in first]
    lines = ["words,sentence", *(f"{' '.join(words)},{one}" for words, said in second for one in said)]
    (folder / "sets.csv").write_text("\n".join(lines), "utf-8")
    return [write_rows(folder / "sets.jsonl", marked), folder / "sets.csv"]


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    plan = language_plan(
        "concept-to-text", "", llama, folder / "cache", train__epochs=3, model__dropout=None,
        generation__max_new_tokens=10,
        data__train=[str(path) for path in write_concepts(folder, concept_rows())], evaluate__generated_rows=6,
    )  # fmt: skip
    return tuned(plan, folder / "run")


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    (folder / "rows.json").write_text(json.dumps({f"id{i}": row for i, row in enumerate(summary_rows())}), "utf-8")
    plan = language_plan(
        "summarisation", folder / "rows.json", llama, folder / "cache", train__epochs=3, model__dropout=None,
        generation__max_new_tokens=10,
        evaluate__generated_rows=6,
    )  # fmt: skip
    return tuned(plan, folder / "run")


def cider_d(texts: list[str], references: list[list[str]]) -> float:
    """Compute CIDEr-D from its formula (Vedantam et al. 2015), one n-gram at a time."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.lower().split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for text, several in zip(texts, references, strict=True):
        for n in (1, 2, 3, 4):
            for reference in several:
                ours, theirs = grams(text, n), grams(reference, n)
                weight = {
                    gram: math.log(len(texts) / max(1, sum(any(gram in grams(r, n) for r in rs) for rs in references)))
                    for gram in {*ours, *theirs}
                }
                lengths = [math.sqrt(sum((count * weight[g]) ** 2 for g, count in c.items())) for c in (ours, theirs)]
                if all(lengths):
                    shared = sum(min(ours[g], theirs[g]) * theirs[g] * weight[g] ** 2 for g in ours)
                    gap = len(text.split()) - len(reference.split())
                    total += math.exp(-(gap**2) / 72) * shared / math.prod(lengths) * 10 / 4 / len(several)
    return total / len(texts)


def written(run: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Return what was asked of the test rows that were answered, what was written, and the references."""
    rows = table(run / "predictions" / "test.parquet")
    at = [place for place, text in enumerate(rows["prediction"]) if text is not None]
    references = [rows["reference"][place] for place in at]
    several = [[each] if isinstance(each, str) else each for each in references]
    return [rows["text"][place] for place in at], [rows["prediction"][place] for place in at], several


def test_a_run_on_concepts_has_all_the_evidence(concepts: Path) -> None:
    verdict, scores = read(concepts, "verdict.json"), read(concepts, "scores.json")
    assert verdict["metric"] == "cider_d"
    assert verdict["test_size"] == 6
    assert {each["name"] for each in verdict["baselines"]} == {
        "untuned base model", "answer of the nearest training prompt",
        "concepts copied in their order",
    }  # fmt: skip
    copied = next(each for each in read(concepts, "baselines.json") if each["name"].startswith("concepts"))["scores"]
    assert copied["test"]["coverage"]["value"] == 1
    notes = [event["message"] for event in events(concepts) if event["event"] == "note"]
    assert "no concept set straddles a border between splits" in notes
    assert any(note.endswith("prompt in column 'concept_set' and completion in column 'scene'") for note in notes)
    assert any(note.endswith("30 concept sets") for note in notes)
    sources = scores["by_source"]["test"]
    assert [Path(each["source"]).name for each in sources] == ["sets.jsonl", "sets.csv"]
    assert sum(each["rows"] for each in sources) == len(table(concepts / "predictions" / "test.parquet")["id"])
    assert "6 of" in (concepts / "report.html").read_text("utf-8")


def test_rows_of_a_set_stay_together_and_it_is_written_once(concepts: Path) -> None:
    splits = {}
    for split in ("train", "validation", "test"):
        rows = table(concepts / "predictions" / f"{split}.parquet")
        splits[split] = set(rows["text"])
        for text in splits[split]:
            at = [place for place, each in enumerate(rows["text"]) if each == text]
            # Every row of a set has all of its sentences, its own first.
            assert len({tuple(sorted(rows["reference"][place])) for place in at}) == 1
            assert len({rows["reference"][place][0] for place in at}) == len(rows["reference"][at[0]]) == len(at)
            if split != "train":
                assert sum(rows["prediction"][place] is not None for place in at) <= 1
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 60
    rows = table(concepts / "predictions" / "test.parquet")
    assert len(rows["bits_per_byte"]) > len(splits["test"])


def test_scores_of_concepts_are_those_of_the_predictions(concepts: Path) -> None:
    import sacrebleu

    asked, texts, references = written(concepts)
    scores = {name: score["value"] for name, score in read(concepts, "scores.json")["test"].items()}
    assert scores["cider_d"] == pytest.approx(cider_d(texts, references), abs=1e-9)
    covered = [sum(word in text.split() for word in a.split(", ")) / 3 for a, text in zip(asked, texts, strict=True)]
    assert scores["coverage"] == pytest.approx(sum(covered) / len(covered))
    most = max(map(len, references))
    columns = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, columns, force=True).score / 100)  # type: ignore[arg-type]
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, columns).score / 100)  # type: ignore[arg-type]


def test_a_run_on_summaries_has_all_the_evidence(summaries: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    verdict, scores = read(summaries, "verdict.json"), read(summaries, "scores.json")["test"]
    assert verdict["metric"] == "rouge_l"
    assert {each["name"] for each in verdict["baselines"]} == {
        "untuned base model", "answer of the nearest training prompt",
        "first sentence of the text",
    }  # fmt: skip
    assert set(scores) == {"rouge_l", "rouge_1", "rouge_2", "chrf", "bits_per_byte", "perplexity"}
    _, texts, references = written(summaries)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        values = [scorer.score(one[0], text)[theirs].fmeasure for text, one in zip(texts, references, strict=True)]
        assert scores[name]["value"] == pytest.approx(sum(values) / len(values))
    led = table(summaries / "predictions" / "baselines.parquet")["first sentence of the text"]
    rows = table(summaries / "predictions" / "test.parquet")
    assert [text for text in led if text is not None] == [
        text.split(".")[0] + "." for text, one in zip(rows["text"], rows["prediction"], strict=True) if one is not None
    ]


def test_saved_models_write_and_measure_as_the_runs_did(concepts: Path, summaries: Path, tmp_path: Path) -> None:
    for run, column in ((concepts, "concepts"), (summaries, "text")):
        asked, texts, _ = written(run)
        prompts = write_rows(tmp_path / f"{column}.jsonl", [{column: each} for each in asked])
        [found] = predict_file(str(run), str(prompts))
        assert found.column("prediction").to_pylist() == texts
        assert finesmith.load(run).predict([asked[0]])[0]["prediction"] == texts[0]
    asked, _, references = written(concepts)
    given = [{"concepts": text.split(", "), "references": all_} for text, all_ in zip(asked, references, strict=True)]
    scored = evaluate_file(str(concepts), str(write_rows(tmp_path / "given.jsonl", given)))
    expected = read(concepts, "scores.json")["test"]
    assert scored["examples"] == sum(map(len, references))
    for name in ("cider_d", "coverage", "bleu"):
        assert scored["scores"][name]["value"] == pytest.approx(expected[name]["value"])
    with pytest.raises(DataError, match="expected at least 2 sets"):
        evaluate_file(str(concepts), str(write_rows(tmp_path / "one.jsonl", given[:1])))


@pytest.mark.parametrize(
    "value", ["field#look#stand", "field,look , stand", " field  look stand", ["field", "look", "stand"],
              "field_N#look_V#stand_V", '["field", "look", "stand"]', ["field", "look", "stand", "field"]],
)  # fmt: skip
def test_concepts_in_any_form(value: Any) -> None:
    assert concepts_of(value) == ["field", "look", "stand"]


@pytest.mark.parametrize("value", ["", "#", [], None, 3, ["field", 3]])
def test_what_holds_no_concepts_is_said(value: Any) -> None:
    with pytest.raises(RowError, match="concepts"):
        concepts_of(value)


def test_concepts_of_several_words_and_with_marks_in_some(tmp_path: Path) -> None:
    assert concepts_of("ice  cream, U_S") == ["ice cream", "U_S"]
    rows = [
        {"concepts": "b a", "text": "a b"},
        {"concepts": ["A", "b"], "text": "b a"},
        {"concepts": "b a", "text": "a b"},
    ]
    corpus = ConceptToText.read([str(write_rows(tmp_path / "rows.jsonl", rows))], Reading())
    assert corpus.texts == ["b, a", "b, a"]
    assert corpus.content.references == (("a b", "b a"), ("b a", "a b"))
    assert list(corpus.where) == [f"{tmp_path / 'rows.jsonl'} row 1", f"{tmp_path / 'rows.jsonl'} row 2"]
    assert corpus.groups == ["a#b", "a#b"]
    assert dict(corpus.lost) == {"the same sentence of the same set": 1}


def test_intervals_take_the_groups_of_the_rows_that_were_measured(tmp_path: Path) -> None:
    import numpy as np

    rows = [{"concepts": "a b", "text": ["1", "2"]}, {"concepts": "c d", "text": ["3", "4", "5"]}]
    corpus = ConceptToText.read([str(write_rows(tmp_path / "rows.jsonl", rows))], Reading())
    assert groups_of(corpus, 5, np.array([0, 2])) == ["a#b"] * 2 + ["c#d"] * 3
    assert groups_of(corpus, 2, np.array([0, 2])) == ["a#b", "c#d"]
    both = ConceptToText.join([corpus, ConceptToText.take(corpus, [4, 0])])
    assert both.groups == [*(corpus.groups or ()), "c#d", "a#b"]


FAULTS: dict[str, tuple[type[ConceptToText | Summarisation], dict[str, Any], str]] = {
    "no concepts": (ConceptToText, {"concepts": "", "text": "a"}, "no concepts"),
    "no reference": (ConceptToText, {"concepts": "a b", "text": ""}, "'text' is empty"),
    "an empty reference": (ConceptToText, {"concepts": "a b", "text": ["a b", " "]}, "'text' is empty"),
    "a number": (ConceptToText, {"concepts": "a b", "text": [1]}, "holds 1, expected a text"),
    "no text": (Summarisation, {"text": "", "summary": "a"}, "'text' is empty"),
    "no summary": (Summarisation, {"text": "a b", "summary": None}, "'summary' holds nothing"),
    "a list": (Summarisation, {"text": "a b", "summary": ["a", "b"]}, r"'summary' holds \['a', 'b'\]"),
    "half a character": (Summarisation, {"text": "a \ud83d", "summary": "a"}, "half of a character"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_cannot_be_used_is_named_or_dropped(fault: str, tmp_path: Path) -> None:
    kind, row, said = FAULTS[fault]
    good: dict[str, Any] = {**row, **dict.fromkeys(("concepts", "text", "summary"), "a b c")}
    good = {name: good[name] if fault != "an empty reference" or name != "text" else ["a"] for name in row}
    if fault == "a list":
        good["summary"] = ["a b"]
        with pytest.raises(DataError, match="expected a text"):
            kind.read([str(write_rows(tmp_path / "rows.jsonl", [good]))], Reading())
        return
    path = str(write_rows(tmp_path / "rows.jsonl", [good, row]))
    with pytest.raises(DataError, match=said) as raised:
        kind.read([path], Reading())
    assert "row 2" in str(raised.value)
    corpus = kind.read([path], Reading(malformed="drop"))
    assert len(corpus) == 1
    assert dict(corpus.lost) == {"malformed": 1}


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", [{"Body": "a b c", "short": "a"}]))
    with pytest.raises(DataError, match=r"no column called document.*it has Body, short.*data\.prompt"):
        Summarisation.read([path], Reading())
    corpus = Summarisation.read([path], Reading(prompt="Body", completion="short"))
    assert (corpus.texts, corpus.answers) == (["a b c"], ["a"])
    with pytest.raises(DataError, match=r"no column 'body'; it has Body"):
        Summarisation.read([path], Reading(prompt="body", completion="short"))
    plain = tmp_path / "lines.txt"
    plain.write_text("one two\nthree\n", "utf-8")
    assert Summarisation.read_unlabelled([str(plain)], Reading(prompt="Body")).texts == ["one two", "three"]
    assert ConceptToText.read_unlabelled([str(plain)], Reading()).texts == ["one, two", "three"]


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [("summarisation", "data__messages", "turns"), ("concept-to-text", "data__label", "label"),
     ("concept-to-text", "data__audit__conflicting_labels", "drop"), ("summarisation", "data__text", "text")],
)  # fmt: skip
def test_keys_that_these_tasks_do_not_read_are_refused(task: str, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=key.replace("__", r"\.")):
        from_dict(language_plan(task, "rows.jsonl", "model", "cache", **{key: value}))
