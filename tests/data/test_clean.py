"""Cleaning: each step does what it says, leaves sound text alone, and twice is once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import clean as module
from finesmith.data.clean import Cleaning, broken_encoding, clean, has_html
from finesmith.errors import UserError

SOUND = [
    "café señor ¿Qué? ¡Ñandú! 25 °C, 3 €, “sí” – «no»…",
    "L’été à Nîmes, où l’œuvre naïve coûte 10 €",
    "Schöne Grüße aus Köln: Straße, Äpfel, Übung",
    "São Paulo à noite, açúcar",
    "Příliš žluťoučký kůň",
    "Ελληνικά, русский, 日本語, עברית 😀",
    "plain ASCII",
    "",
]


def test_mojibake_is_noticed_and_sound_text_is_not() -> None:
    for text in SOUND:
        assert not broken_encoding(text), text
        for wrong in ("latin-1", "cp1252"):
            try:
                broken = text.encode().decode(wrong)
            except UnicodeDecodeError:
                continue
            assert broken_encoding(broken) == (broken != text), broken
    assert broken_encoding("lost \ufffd here")


def test_mojibake_is_repaired() -> None:
    texts = [text.encode().decode("latin-1") for text in SOUND]
    cleaned = clean(texts, Cleaning(encoding=True))
    assert cleaned.texts[:5] == [*SOUND[:1], SOUND[1].replace("’", "’"), *SOUND[2:5]]
    assert cleaned.changed == {"encoding": 6}


@pytest.mark.parametrize(
    "text",
    ["<b>x</b>", "a<br/>", "<p class='x'>", '<a href="http://x?a>b">y</a>', "x &amp; y", "&#39;", "&#x27;",
     "<!-- c -->", "<!DOCTYPE html>", "</div>", "<input disabled>", "<IMG SRC=x>", "&nbsp;"],
)  # fmt: skip
def test_html_is_noticed(text: str) -> None:
    assert has_html(text)


@pytest.mark.parametrize(
    "text",
    ["a < b and c > d", "I <3 you", "AT&T", "R&D; more", "<unk> and <user>", "if a <b and c> d", "x<y>z", "&copy=2&x;",
     "<jane@example.com>", "-> <- <>", "a&b", "1<2>0", "", "<"],
)  # fmt: skip
def test_what_only_looks_like_html_is_left_alone(text: str) -> None:
    assert not has_html(text)
    assert clean([text], Cleaning(html=True)).texts == [text]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>One</p><p>two</p>", " One  two "),
        ("a<b>b</b>c", "abc"),
        ("x<script>if (a<b) alert('<p>')</script>y", "x y"),
        ("x<style>p {}</style>y", "x y"),
        ("x<!-- <b>no</b> -->y", "xy"),
        ("x<!-- y", "x y"),
        ("fish &amp; chips &lt;now&gt; &#8364;5 caf&eacute;", "fish & chips <now> €5 café"),
        ("&amp;amp;lt;b&amp;gt;bold", "bold"),
        ('<a href="x?a>b">link</a>', "link"),
        ("a<br>b", "a b"),
    ],
)
def test_html_is_stripped(text: str, plain: str) -> None:
    assert clean([text], Cleaning(html=True)).texts == [plain]


def test_unicode_is_composed_and_the_invisible_removed() -> None:
    texts = [
        "cafe\u0301",
        "a\u200bb\ufeff",
        "nul\x00l",
        "line\x0bline",
        "\ud83d\ude00",
        "\ud83d!",
        "so\xadft",
        "ok\tok\n",
    ]
    cleaned = clean(texts, Cleaning(unicode=True))
    assert cleaned.texts == ["café", "ab", "null", "line\nline", "😀", "\ufffd!", "soft", "ok\tok\n"]
    assert cleaned.changed == {"unicode": 7}
    persian, family = "می\u200cخواهم", "👩\u200d👧"
    assert clean([persian, family, "a\u200cb"], Cleaning(unicode=True)).texts == [persian, family, "ab"]


def test_white_space_collapses_and_line_breaks_stay() -> None:
    cleaned = clean(["  a \t b\u00a0\u3000c ", "a \r\n\n  b", "a b"], Cleaning(whitespace=True))
    assert cleaned.texts == ["a b c", "a\nb", "a b"]
    assert cleaned.changed == {"whitespace": 2}


def test_redaction_is_a_step() -> None:
    cleaned = clean(["mail me@example.com", "hello"], Cleaning(redact=True))
    assert (cleaned.texts, cleaned.changed) == (["mail [EMAIL]", "hello"], {"redact": 1})


def test_lemmas_keep_capitals_punctuation_negation_and_placeholders() -> None:
    pytest.importorskip("simplemma")
    cleaned = clean(
        ["The mice were running, weren't they? [EMAIL] RUNNING iPhone McDonald 3rd!"], Cleaning(lemmatise="en")
    )
    assert cleaned.texts == ["The mouse be run, weren't they? [EMAIL] RUN iPhone McDonald 3rd!"]
    assert clean(["Los niños corrían."], Cleaning(lemmatise="es")).texts == ["El niño correr."]


def test_an_unknown_language_or_a_missing_package_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplemma")
    with pytest.raises(UserError, match="lemmatise is 'xx', expected the two-letter code"):
        clean(["a"], Cleaning(lemmatise="xx"))
    module._lemmatiser.cache_clear()
    monkeypatch.setitem(sys.modules, "simplemma", None)
    with pytest.raises(UserError, match=r"pip install 'finesmith\[lemmas\]'"):
        clean(["a"], Cleaning(lemmatise="en"))
    module._lemmatiser.cache_clear()


def test_nothing_asked_changes_nothing() -> None:
    cleaned = clean(iter(SOUND), Cleaning())
    assert (cleaned.texts, cleaned.changed) == (SOUND, {})


STEPS = [
    Cleaning(unicode=True),
    Cleaning(whitespace=True),
    Cleaning(html=True),
    Cleaning(encoding=True),
    Cleaning(redact=True),
    Cleaning(lemmatise="en"),
]
PIECES = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.text(alphabet=st.characters(codec=None, categories=["Cs", "Cc", "Cf", "Mn", "Zs"]), max_size=4),
        st.sampled_from(
            [
                "<",
                "&",
                ";",
                "b>",
                "<b",
                "<p>",
                "</p>",
                "amp;",
                "&lt;",
                "gt;",
                "#38;",
                "<!--",
                "-->",
                "<script>",
                "</script>",
            ]
        ),
        st.sampled_from(["Ã©", "â€™", "\x96", "Â", "cafe\u0301", "\u200d", "Paintings", "gone", "İ", "ŉ", "'s", "SS"]),
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("cleaning", STEPS, ids=["unicode", "whitespace", "html", "encoding", "redact", "lemmatise"])
@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_a_step_run_twice_is_the_step_run_once(cleaning: Cleaning, text: str) -> None:
    if cleaning.lemmatise:
        pytest.importorskip("simplemma")
    once = clean([text], cleaning)
    twice = clean(once.texts, cleaning)
    assert twice.texts == once.texts
    assert set(twice.changed.values()) == {0}
    assert set(once.changed.values()) == {int(once.texts != [text])}
    if cleaning.html:
        assert not has_html(once.texts[0])
    if cleaning.unicode:
        once.texts[0].encode("utf-8")
    assert isinstance(broken_encoding(text), bool)


@pytest.mark.parametrize(
    "unit", ["<", "<b", "<b>", "<!--", "&amp;", "&", "<a b=\"", "<a b='c' ", "<script>", "amp;", "</", " ", "\u200d",
             "Ã", "&#38;#38;", "<p ", "<<b>b>", "a ", "e\u0301", "\ud800", "<!doctype "],
)  # fmt: skip
def test_a_hostile_megabyte_takes_seconds(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    began = time.process_time()
    clean([text], Cleaning(unicode=True, whitespace=True, html=True, encoding=True))
    has_html(text)
    broken_encoding(text)
    assert time.process_time() - began < 8


def test_spanish_news_are_not_called_broken(shared: Path) -> None:
    lines = (shared / "data/spanish_fakenews/train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    sound = [text for text in texts if "\ufffd" not in text and not any("\x80" <= c <= "\x9f" for c in text)]
    assert sum(map(broken_encoding, sound)) / len(sound) < 0.01
    halves = [text[:300].encode().decode("latin-1") for text in sound if not text[:300].isascii()]
    assert sum(map(broken_encoding, halves)) / len(halves) >= 0.99
