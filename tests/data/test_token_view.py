"""Tokens as a person reads them: exact against the tokenizers' own answers, and harmless whatever the data hold."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.token_view import MOST_TOKENS, readable, reader_of, supervision, view
from tiny import bert_tokenizer
from trained_tokenizers import byte_level, metaspace

ODD = "a\x1b[31mred\x1b[0m \u202eevil\u202c b\x00c\r\n\tend  \u200d\u00a0x\u0301 שלום مرحبا 日本 🙂"


@pytest.fixture(scope="module")
def story_tokenizer(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf")


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def test_byte_level_pieces_read_as_text_and_lone_bytes_as_numbers() -> None:
    tokenizer = byte_level()
    reader = reader_of(tokenizer)
    texts = [reader.text(token) for token in plain_ids(tokenizer, "The dog’s 🙂")]
    # Whatever was learnt as one piece, the characters of an emoji are not: its four bytes stand alone.
    assert "".join(texts).endswith(r"\xf0\x9f\x99\x82")
    assert "".join(texts).startswith("The dog")
    assert reader.text(tokenizer.convert_tokens_to_ids("</s>")) == "</s>"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12))
def test_byte_level_pieces_join_to_the_text(word: str) -> None:
    tokenizer = byte_level()
    reader = reader_of(tokenizer)
    ids = tokenizer.backend_tokenizer.encode(word, add_special_tokens=False).ids
    assert "".join(reader.text(token) for token in ids) == word


def test_every_single_byte_of_a_byte_level_vocabulary_is_decoded() -> None:
    tokenizer = byte_level()
    reader, engine = reader_of(tokenizer), tokenizer.backend_tokenizer
    single = [token for token in range(5, len(tokenizer)) if len(engine.id_to_token(token)) == 1]
    assert len(single) == 256
    for token in single:
        # The library's decoder is the oracle; it has one sign for all bytes that make no character alone.
        oracle = engine.decode([token])
        shown = reader.text(token)
        assert (shown == readable(oracle)) if oracle != "\ufffd" else shown[:2] == "\\x"
    assert len({reader.text(token) for token in single}) == 256


def test_spaces_of_a_metaspace_are_spaces() -> None:
    tokenizer = metaspace()
    reader = reader_of(tokenizer)
    texts = [reader.text(token) for token in plain_ids(tokenizer, "the quick dog")]
    assert "▁" not in "".join(texts)
    assert "".join(texts).replace("␣", " ").split() == ["the", "quick", "dog"]


def test_bytes_that_a_sentencepiece_model_falls_back_to_are_decoded(story_tokenizer: Any) -> None:
    reader = reader_of(story_tokenizer)
    ids = plain_ids(story_tokenizer, "Once\n🙂")
    texts = [reader.text(token) for token in ids]
    assert "↵" in texts
    assert texts[-4:] == [r"\xf0", r"\x9f", r"\x99", r"\x82"]
    assert "<0x" not in "".join(texts)
    assert reader.special == {0, 1, 2}


def test_word_pieces_stay_as_they_are_and_special_ones_are_known() -> None:
    tokenizer: Any = bert_tokenizer()
    reader = reader_of(tokenizer)
    ids = tokenizer("films?")["input_ids"]
    assert reader.text(ids[0]) == "[CLS]"
    assert reader.text(ids[2]).startswith("##")
    records = view(np.array(ids), reader)
    assert [record["kind"] for record in records] == ["special", *["plain"] * (len(ids) - 2), "special"]
    assert reader.text(10**6) == "[token 1000000]"


def test_a_tokenizer_written_in_python_is_read_too() -> None:
    class Slow:
        is_fast = False
        all_special_ids = (0,)

        def __len__(self) -> int:
            return 3

        def convert_ids_to_tokens(self, token: int) -> str:
            return ["<s>", "▁the", "re"][token]

    reader = reader_of(Slow())  # type: ignore[arg-type]
    assert [reader.text(token) for token in range(4)] == ["<s>", " the", "re", "[token 3]"]
    assert reader.special == {0}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", " the"), ("the", "the"), (" ", "␣"), ("   ", "␣␣␣"), ("    if", "␣␣␣ if"), ("a  b", "a␣␣b"),
        ("a b", "a b"), ("a ", "a␣"), ("\n", "↵"), ("\n\n", "↵↵"), ("\t", "⇥"), ("\r", "[U+000D]"),
        ("\x1b[31m", "[U+001B][31m"), ("\u202e", "[U+202E]"), ("\u200d", "[U+200D]"), ("\u0301", "◌\u0301"),
        ("\ud800", "[U+D800]"), ("x" * 50, "x" * 39 + "…"), ("שלום", "שלום"), ("", ""),
    ],
)  # fmt: skip
def test_nothing_invisible_is_left(text: str, shown: str) -> None:
    assert readable(text) == shown


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()))
def test_no_text_can_steer_a_terminal_or_reorder_a_line(text: str) -> None:
    shown = readable(text)
    assert all(character.isprintable() for character in shown)
    assert not any(unicodedata.bidirectional(c) in {"RLE", "LRE", "RLO", "LRO", "RLI", "LRI", "FSI"} for c in shown)
    assert not shown or not unicodedata.category(shown[0]).startswith("M")
    for tokenizer in (byte_level(), metaspace(), bert_tokenizer()):
        engine, reader = tokenizer.backend_tokenizer, reader_of(tokenizer)  # type: ignore[attr-defined]
        for token in engine.encode(ODD + text.encode("utf-8", "replace").decode()).ids:
            assert reader.text(token).isprintable()


def test_of_a_causal_row_the_token_that_is_learnt_is_marked_not_the_one_before() -> None:
    tokenizer = byte_level()
    reader = reader_of(tokenizer)
    prompt, answer = plain_ids(tokenizer, "the quick"), [*plain_ids(tokenizer, " dog"), tokenizer.eos_token_id]
    tokens = np.array([tokenizer.bos_token_id, *prompt, *answer])
    # As the data make them: the target of a token is the token after it, -100 where that is not learnt.
    targets = np.append(tokens[1:], -100)
    targets[: len(prompt)] = -100
    learnt, labels = supervision(tokens, targets, "causal", reader)
    assert learnt.tolist() == [False] * (1 + len(prompt)) + [True] * len(answer)
    assert labels == {}
    records = view(tokens, reader, learnt=learnt, labels=labels)
    said = "".join(record["text"] for record in records if record["kind"] == "supervised")
    assert said == " dog</s>"
    assert records[-1] == {"text": "</s>", "kind": "supervised", "special": True}
    assert records[0] == {"text": "<s>", "kind": "special"}


def test_a_target_that_is_not_the_next_token_is_told() -> None:
    reader = reader_of(byte_level())
    learnt, labels = supervision(np.array([70, 71, 72]), np.array([-100, 70, -100]), "causal", reader)
    assert learnt.tolist() == [False, True, False]
    assert labels == {1: reader.text(70)}


def test_masked_tokens_have_their_answer_and_words_their_label() -> None:
    tokenizer: Any = bert_tokenizer()
    reader = reader_of(tokenizer)
    whole = tokenizer("the film was good")["input_ids"]
    tokens = np.array(whole)
    tokens[4] = tokenizer.mask_token_id
    targets = np.full(len(tokens), -100)
    targets[4] = whole[4]
    learnt, labels = supervision(tokens, targets, "masked", reader)
    assert view(tokens, reader, learnt=learnt, labels=labels)[4] == {
        "text": "[MASK]", "kind": "supervised", "special": True, "label": "good",
    }  # fmt: skip
    targets[1:5] = [0, 1, 0, 0]
    learnt, labels = supervision(np.array(whole), targets, "token", reader, ("O", "B-\x1bX"))
    assert labels == {1: "O", 2: "B-[U+001B]X", 3: "O", 4: "O"}


def shown_places(records: list[dict[str, Any]]) -> list[int]:
    """Return the places that records stand for, by counting."""
    place, shown = 0, []
    for record in records:
        if record["kind"] == "skipped":
            place += record["count"]
        elif record["kind"] != "cut":
            shown.append(place)
            place += 1
    return shown


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.integers(0, 599), st.integers(1, 200)), max_size=4),
    st.one_of(st.none(), st.integers(0, 600)),
    st.integers(8, 60),
)
def test_long_rows_are_shortened_and_every_token_is_accounted_for(
    count: int, runs: list[tuple[int, int]], cut: int | None, most: int
) -> None:
    reader = reader_of(byte_level())
    learnt = np.zeros(count, np.bool_)
    for start, size in runs:
        learnt[start : start + size] = True
    where = None if cut is None else (min(cut, count), 7)
    records = view(np.full(count, 70), reader, learnt=learnt, cut=where, most=most)
    tokens = sum(record.get("count", 1) for record in records if record["kind"] != "cut")
    taught = sum(record["kind"] == "supervised" for record in records) + sum(r.get("supervised", 0) for r in records)
    assert (tokens, taught) == (count, learnt.sum())
    assert sum(record["kind"] == "cut" for record in records) == (where is not None)
    shown = shown_places(records)
    # At most `most`, and what small gaps between them held.
    assert len(shown) <= 3 * most
    assert {0, count - 1} <= set(shown)
    assert len(records) <= 2 * len(shown) + 2


def test_what_is_kept_of_a_long_row_stands_around_the_answers() -> None:
    learnt = np.zeros(1000, np.bool_)
    learnt[400:420] = learnt[700:900] = True
    shown = shown_places(view(np.full(1000, 70), reader_of(byte_level()), learnt=learnt))
    assert abs(len(shown) - MOST_TOKENS) <= 12
    assert set(range(392, 428)) <= set(shown)
    assert {699, 700, 899, 900} <= set(shown)
    assert 550 not in shown
    assert 800 not in shown, "the middle of a long answer is told, not shown"
