"""What scores.json says follows from the predictions alone, and a saved model that answers otherwise is not kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jobs import events, read, table, tuned
from language_breaking import LanguageJobs
from safetensors.torch import load_file, save_file

from finesmith.errors import FinesmithError, RunError

NER, CAUSAL, MASKED = "token-classification full", "causal-text full", "masked-text full"


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")


def spans_in(tags: list[str]) -> set[tuple[str, int, int]]:
    """Find spans word by word: a B- or an I- that continues nothing begins one, counted from 1, both ends inside."""
    found, start = set(), None
    for place, tag in enumerate([*tags, "O"], 1):
        goes_on = tag.startswith("I-") and start is not None and start[0] == tag[2:]
        if start is not None and not goes_on:
            found.add((start[0], start[1], place - 1))
            start = None
        if tag != "O" and not goes_on:
            start = (tag[2:], place)
    return found


def shown(spans: list[str]) -> set[tuple[str, int, int]]:
    parsed = [re.fullmatch(r"(.+) (\d+)-(\d+): .+", span) for span in spans]
    return {(each[1], int(each[2]), int(each[3])) for each in parsed if each}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_span_f1_counted_anew(split: str, language: LanguageJobs) -> None:
    folder = language.uninterrupted(NER)
    rows = table(folder / "predictions" / f"{split}.parquet")
    ours, theirs = [spans_in(tags) for tags in rows["tags"]], [shown(label) for label in rows["label"]]
    assert ours == [shown(predicted) for predicted in rows["prediction"]]
    assert [len(label) for label in theirs] == [len(label) for label in rows["label"]]
    right = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
    found, expected = sum(map(len, ours)), sum(map(len, theirs))
    scores = read(folder, "scores.json")[split]
    assert right > 0
    assert scores["span_f1"]["value"] == pytest.approx(2 * right / (found + expected), abs=1e-12)
    assert scores["span_precision"]["value"] == pytest.approx(right / found, abs=1e-12)
    assert scores["span_recall"]["value"] == pytest.approx(right / expected, abs=1e-12)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_bits_per_byte_summed_anew(split: str, language: LanguageJobs) -> None:
    folder = language.uninterrupted(CAUSAL)
    rows = table(folder / "predictions" / f"{split}.parquet")
    sizes = [len(text.encode()) for text in rows["text"]]
    bits = sum(value * size for value, size in zip(rows["bits_per_byte"], sizes, strict=True))
    assert read(folder, "scores.json")[split]["bits_per_byte"]["value"] == pytest.approx(bits / sum(sizes), rel=1e-12)


@pytest.mark.parametrize("story", [NER, CAUSAL, MASKED])
def test_a_verdict_is_of_the_scores_and_the_test_was_opened_once(story: str, language: LanguageJobs) -> None:
    folder = language.uninterrupted(story)
    verdict, scores = read(folder, "verdict.json"), read(folder, "scores.json")["test"]
    assert verdict["tuned"]["value"] == scores[verdict["metric"]]["value"]
    names = [event["event"] for event in events(folder)]
    assert names.count("test_opened") == 1
    assert names.index("test_opened") > max(at for at, name in enumerate(names) if name in {"step", "baseline"})


def test_a_test_split_cannot_be_opened_twice() -> None:
    from finesmith.tasks.causal_text import CausalText
    from finesmith.workflows.language.gather import SealedCorpus

    class Book:
        def record(self, *_: Any, **__: Any) -> None:
            pass

    sealed = SealedCorpus(CausalText.of_texts(["a text"], ["text 1"]))
    sealed.open(Book())  # type: ignore[arg-type]
    with pytest.raises(RunError, match="opened before"):
        sealed.open(Book())  # type: ignore[arg-type]


@pytest.mark.parametrize("story", [NER, CAUSAL])
def test_a_saved_model_that_answers_otherwise_is_not_kept(
    story: str, language: LanguageJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.models import save

    whole = save.save_classifier

    def spoilt(network: Any, folder: Path) -> None:
        whole(network, folder)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("word_embeddings.weight") or "embed_tokens" in name)
        tensors[name] = tensors[name] * 1.05
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(save, "save_classifier", spoilt)
    with pytest.raises(FinesmithError, match="the saved model differs from the evaluated one"):
        tuned(language.tree(story, train__epochs=1, guards__preflight="tell"), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert read(tmp_path / "run", "run.json")["state"] == "failed"
