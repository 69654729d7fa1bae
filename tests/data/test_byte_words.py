"""Words cut by the kinds of neighbouring characters: the tokenizer, fed with whole texts, is the oracle."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import word_table
from finesmith.data.byte_words import ByteWords, expression_of

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
SPECIAL = ["<s>", "<|im_end|>", "<|im_end|>\n"]
# One of each kind of neighbour, and what contracts, composes, folds or looks like white space.
ODD = (
    "aBsStl5\u00e9\u00df\u0178'.,(<>| \t\v\n\r\x1c\x00\x7f\u00a0\u0085\u3000\u2028\u180e"
    "\u200b\u0301\u0338\u017f\u212a\u00b2\u0663\u4f60\u00d7\U0001f600"
)
PIECES = [
    *ODD,
    "'s",
    "'LL",
    "  ",
    "\n\n",
    " \n",
    "1234567",
    "don't",
    " word",
    *SPECIAL,
    "<|im_",
    "end|>",
    "e\u0301",
    "...",
]


def byte_level(pattern: str | None, nfc: bool = False) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    engine.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    engine.decoder = decoders.ByteLevel()
    if nfc:
        engine.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2500, initial_alphabet=alphabet, show_progress=False)
    texts = ["".join(PIECES[i:] + PIECES[:i]) for i in range(len(PIECES))]
    engine.train_from_iterator([*texts, *(f"{one}{other} " * 3 for one in PIECES for other in PIECES)], trainer)
    engine.add_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return engine


ENGINES = [byte_level(None), byte_level(None, nfc=True), byte_level(QWEN, nfc=True), byte_level(LLAMA)]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40)


def encode(engine: Any, text: str) -> list[int]:
    ids: list[int] = engine.encode(text, add_special_tokens=False).ids
    return ids


def words_of(engine: Any) -> ByteWords:
    expression = expression_of(engine)
    assert expression is not None
    return ByteWords(engine, expression)


KNOWN = [words_of(engine) for engine in ENGINES]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=5), st.integers(0, len(ENGINES) - 1), st.data())
def test_words_side_by_side_are_the_text(texts: list[str], which: int, data: Any) -> None:
    engine = ENGINES[which]
    starts = list(accumulate(map(len, texts), initial=0))
    inside = [data.draw(st.lists(st.integers(0, len(text)), max_size=4)) for text in texts]
    places = [(row, place) for row, its in enumerate(inside) for place in its]
    found = KNOWN[which].tokenise(texts, np.array([starts[row] + place for row, place in places], np.int64))
    for row, text in enumerate(texts):
        assert found.ids[found.bounds[row] : found.bounds[row + 1]].tolist() == encode(engine, text)
    for (row, place), before, torn in zip(places, found.before.tolist(), found.torn.tolist(), strict=True):
        ids = encode(engine, texts[row])
        count = before - int(found.bounds[row])
        assert torn or ids[:count] == encode(engine, texts[row][:place])


def test_a_place_between_words_and_one_within_a_token() -> None:
    for engine, words in zip(ENGINES, KNOWN, strict=True):
        text = "word word<s>a word"
        found = words.tokenise([text], np.array([0, 4, 7, 9, 10, 12, 13, len(text)], np.int64))
        assert found.torn.tolist() == [False, False, True, False, True, False, False, False]
        ids, special = encode(engine, text), engine.token_to_id("<s>")
        assert found.before[[0, 3, 5, 7]].tolist() == [0, ids.index(special), ids.index(special) + 1, len(ids)]


def test_no_text_has_no_tokens() -> None:
    for texts in ([], [""], ["", ""]):
        found = KNOWN[0].tokenise(texts, np.zeros(0, np.int64))
        assert found.ids.size == 0
        assert found.bounds.tolist() == [0] * (len(texts) + 1)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(ENGINES[0])
    nowhere = np.zeros(0, np.int64)
    words.tokenise(["a word"], nowhere)
    monkeypatch.setattr(word_table, "MAX_WORDS", 40)
    for start in range(0, 400, 20):
        text = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(start, start + 20)) * 2
        assert words.tokenise([text], nowhere).ids.tolist() == encode(ENGINES[0], text)
        assert 2 <= len(words._known) <= 40


@pytest.mark.parametrize("change", ["dropout", "prefix", "pattern", "model", "lowercase", "stripping"])
def test_tokenizers_of_which_it_is_not_proven_are_left_alone(change: str) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert expression_of(engine) is not None
    if change == "dropout":
        engine.model = models.BPE(dropout=0.1)
    elif change == "prefix":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "pattern":
        split = pre_tokenizers.Split(Regex(QWEN.replace("?!", "?=")), "isolated")
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    elif change == "model":
        engine.model = models.WordLevel({"a": 0}, unk_token="a")
    elif change == "lowercase":
        engine.normalizer = normalizers.Lowercase()
    else:
        engine.add_special_tokens([AddedToken("<x>", lstrip=True)])
    assert expression_of(engine) is None
