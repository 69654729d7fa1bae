"""Language: right on real English and Spanish, silent where a text says too little."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import language
from finesmith.data.language import LANGUAGES, detect, detect_many


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the plot is thin but the acting carries it", "en"),
        ("la película es larga pero merece la pena", "es"),
        ("Das ist ein schöner Tag und ich gehe spazieren", "de"),
        ("Bonjour, je voudrais savoir où se trouve la gare", "fr"),
        ("Questo film mi è piaciuto molto", "it"),
        ("Não gostei muito do filme, mas a música é boa", "pt"),
        ("Ik vind deze film erg leuk", "nl"),
        ("Это предложение на русском языке", "ru"),
        ("これは日本語の文です", "ja"),
        ("这是一个中文句子", "zh"),
        ("한국어 문장입니다", "ko"),
        ("هذه جملة باللغة العربية", "ar"),
        ("THE PLOT IS THIN BUT THE ACTING CARRIES IT", "en"),
        ("see https://www.ejemplo.es/la/pelicula/mala for what the critics say about it", "en"),
    ],
)
def test_languages_are_recognised(text: str, language: str) -> None:
    assert detect(text) == language


@pytest.mark.parametrize("text", ["", " ", "ok", "wow!!", "12345 67890 12", "\x00" * 100, "\ud800" * 50, "😀" * 30])
def test_what_says_too_little_has_no_language(text: str) -> None:
    assert detect(text) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_string_gets_a_known_code_or_none(text: str) -> None:
    assert detect(text) in {*LANGUAGES, None}
    assert detect_many([text, text]) == [detect(text)] * 2


def test_a_megabyte_is_read_as_fast_as_a_line() -> None:
    began = time.process_time()
    assert detect("the plot is thin but the acting carries it " * 25_000) == "en"
    assert time.process_time() - began < 3  # the first call loads the model


def test_odd_english_is_not_taken_for_another_language(shared: Path) -> None:
    lines = (shared / "data/film_reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if len((text := json.loads(line)["text"]).split()) >= 5]
    detect("load the model first")
    began = time.process_time()
    languages = detect_many(texts)
    seconds = time.process_time() - began
    # 40-odd reviews are in Spanish or Portuguese indeed; they are told by words that English does not have
    foreign = re.compile(r"\b(?:el|los|las|una|que|uma|não|é|o|os|do|da|em|por|del|como|para|y)\b|[ãõçñ¿¡]")
    wrong = [t for t, language in zip(texts, languages, strict=True) if language not in ("en", None)]
    mistaken = [t for t in wrong if len(foreign.findall(t)) < 2]
    assert len(mistaken) / len(texts) < 0.002, mistaken
    assert len(wrong) / len(texts) < 0.007
    assert languages.count("en") / len(texts) > 0.98
    assert seconds / len(texts) * 100_000 < 40  # 12 s on an idle core


def test_spanish_sentences_are_recognised(shared: Path) -> None:
    lines = (shared / "data/spanish_fakenews/train.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [
        sentence
        for line in lines
        for sentence in re.split(r"(?<=[.!?])\s+|\n", json.loads(line)["text"])
        if len(sentence.split()) >= 8
    ][:4000]
    languages = detect_many(sentences)
    assert languages.count("es") / len(sentences) >= 0.99
    assert sum(language not in ("es", None) for language in languages) / len(sentences) < 0.002


def test_many_side_by_side_are_told_as_the_library_tells_each_alone(shared: Path) -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    library.set_languages([*LANGUAGES, language.NOT_A_LANGUAGE])
    lines = (shared / "data/film_reviews/validation.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    spanish = (shared / "data/spanish_fakenews/development.jsonl").read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in lines] + re.findall(r"[^\W\d_]{4,}(?: \w+){0,6}", spanish)[:1500]
    texts += ["Ovo je vrlo lijep i zanimljiv jezik", "Ово је врло леп и занимљив језик", "THE PLOT IS THIN", "ok", ""]
    expected = []
    for text in texts:
        content = language._bytes(text)
        name, likelihood = library.classify(content) if content else (language.NOT_A_LANGUAGE, 1.0)
        sure = likelihood >= language.SURER.get(name, language.CONFIDENCE) and name != language.NOT_A_LANGUAGE
        expected.append(name if sure else None)
    assert len({*expected}) > 4
    assert detect_many(texts) == expected
    assert [detect(text) for text in texts[-50:]] == expected[-50:]
