"""Tags: schemes found and read as IOB2, and spans as conlleval counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesmith.data.columns import read_conll, sentences_of_lists
from finesmith.data.spans import character_spans, sentences_of_spans, words_of
from finesmith.data.tags import Scheme, label_names, normalised, spans_of, tags_of
from finesmith.errors import DataError

LABELS = ("PER", "LOC")


@st.composite
def spans(draw: st.DrawFn) -> tuple[list[tuple[int, int, str]], int]:
    """Draw spans that do not overlap and the number of words."""
    found, place = [], 0
    for _ in range(draw(st.integers(0, 6))):
        place += draw(st.integers(0, 2))
        size = draw(st.integers(1, 3))
        found.append((place, place + size, draw(st.sampled_from(LABELS))))
        place += size
    return found, place + draw(st.integers(0, 2))


def written(found: list[tuple[int, int, str]], count: int, scheme: Scheme) -> list[str]:
    """Write spans in a scheme, straight from its definition."""
    tags = ["O"] * count
    for start, stop, label in found:
        for place in range(start, stop):
            first, last = place == start, place == stop - 1
            if scheme == "IOB2":
                letter = "B" if first else "I"
            elif scheme == "IOB1":
                touches = any(end == start and kind == label for _, end, kind in found)
                letter = "B" if first and touches else "I"
            else:
                letter = "S" if first and last else "B" if first else "E" if last else "I"
            tags[place] = f"{letter}-{label}"
    return tags


@given(spans(), st.sampled_from(["IOB1", "IOB2", "IOBES"]))
def test_every_scheme_means_the_same_spans(drawn: tuple[list[tuple[int, int, str]], int], scheme: Scheme) -> None:
    found, count = drawn
    (tags,), _, notes = normalised([written(found, count, scheme)], ["row"], scheme=scheme)
    assert spans_of(tags) == found
    assert list(tags) == tags_of(found, count)
    assert not any("cannot follow" in note for note in notes)


@given(st.lists(spans(), min_size=8, max_size=8), st.sampled_from(["IOB1", "IOB2", "IOBES"]))
def test_the_scheme_is_found(drawn: list[tuple[list[tuple[int, int, str]], int]], scheme: Scheme) -> None:
    telling = [(0, 2, "PER"), (2, 3, "PER"), (4, 5, "LOC")]
    rows = [written(found, count, scheme) for found, count in [*drawn, (telling, 6)]]
    tags, found_scheme, _ = normalised(rows, [f"row {i}" for i in range(9)])
    assert found_scheme == scheme
    assert [spans_of(row) for row in tags] == [*(found for found, _ in drawn), telling]


def conlleval(tags: list[str]) -> list[tuple[int, int, str]]:
    """Find spans by the two questions of conlleval: does one end before this word, does one start at it."""
    found, start = [], None
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, kind = (tag[0], tag[2:]) if tag != "O" else ("O", "")
        ends = (before in "BI" and letter in "BO") or (before != "O" and kind_before != kind)
        starts = letter == "B" or (before == "O" and letter == "I") or (letter != "O" and kind_before != kind)
        if start is not None and ends:
            found.append((start, place, kind_before))
            start = None
        if starts:
            start = place
        before, kind_before = letter, kind
    return found


@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), max_size=12))
def test_malformed_sequences_mean_what_conlleval_says(tags: list[str]) -> None:
    assert spans_of(tags) == conlleval(tags)
    (mended,), _, _ = normalised([tags], ["row"], scheme="IOB2")
    assert spans_of(mended) == conlleval(tags)
    assert spans_of(tags_of(spans_of(tags), len(tags))) == spans_of(tags)


def test_tags_that_cannot_follow_are_counted() -> None:
    rows = [["B-PER", "O", "I-PER", "I-LOC", "I-LOC"]]
    assert normalised(rows, ["row"], scheme="IOB2")[2][-1].startswith("2 tags cannot follow")
    rows = [["B-PER", "O", "E-PER", "S-PER", "I-PER", "E-LOC", "B-LOC"]]
    # B- before O, E- after O, I- after S-, E- of another label, B- at the end.
    tags, scheme, notes = normalised(rows, ["row"])
    assert scheme == "IOBES"
    assert notes[-1].startswith("5 tags cannot follow")
    assert tags == (("B-PER", "O", "B-PER", "B-PER", "B-PER", "B-LOC", "B-LOC"),)
    assert normalised([["B-PER", "I-PER"]], ["row"], scheme="IOB1")[2][-1].startswith("1 tags cannot follow")


def test_bilou_is_read_as_the_same_scheme() -> None:
    tags, scheme, _ = normalised([["B-PER", "I-PER", "L-PER", "U-LOC", "O"]], ["row"])
    assert scheme == "IOBES"
    assert spans_of(tags[0]) == [(0, 3, "PER"), (3, 4, "LOC")]


def test_plain_tags_stay() -> None:
    tags, scheme, notes = normalised([["NOUN", "VERB", "WP$"], ["O"]], ["one", "two"])
    assert (tags, scheme, notes) == ((("NOUN", "VERB", "WP$"), ("O",)), "plain", ())
    assert label_names(tags, scheme) == ("NOUN", "O", "VERB", "WP$")
    assert label_names([["O", "B-b", "I-a"]], "IOB2") == ("O", "B-a", "I-a", "B-b", "I-b")
    assert normalised([["O", "O"]], ["row"])[1] == "IOB2"


def test_faulty_tags_are_named() -> None:
    with pytest.raises(DataError, match=r"two: tag 'PER' is neither O nor has a prefix, unlike 'B-PER' \(one\)"):
        normalised([["B-PER"], ["PER"]], ["one", "two"])
    with pytest.raises(DataError, match="one: a word has an empty tag"):
        normalised([["O", ""]], ["one"])
    with pytest.raises(DataError, match="no prefixes such as B-, but the scheme given is IOB2"):
        normalised([["NOUN"]], ["one"], scheme="IOB2")


# --- columns ---------------------------------------------------------------------------------------------------------


def conll(tmp_path: Path, text: str, name: str = "a.conll") -> list[str]:
    (tmp_path / name).write_text(text)
    return [str(tmp_path / name)]


def test_columns_parted_by_tabs(tmp_path: Path) -> None:
    text = "# id = 1\nNew York\tB-LOC\r\nis\tO\n\n \n# big\tO\ncity\tI-LOC\n"
    found = read_conll(conll(tmp_path, text))
    assert found.texts == ("New York is", "# big city")
    assert [found.words(i) for i in range(2)] == [["New York", "is"], ["# big", "city"]]
    assert found.tags == (("B-LOC", "O"), ("O", "B-LOC"))
    assert found.where == (f"{tmp_path}/a.conll line 2", f"{tmp_path}/a.conll line 6")
    assert found.documents == (0, 1)
    assert found.spans() == 2
    assert any("comments" in note for note in found.notes)


def test_columns_parted_by_spaces_with_documents(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN  I-NP O\n\nA DT O O\n\n-DOCSTART- -X- O O\n\n# X O O\n"
    )
    found = read_conll(conll(tmp_path, text) + conll(tmp_path, "b B I-ORG O\nc C O O\n", "b.conll"))
    assert [found.words(i) for i in range(4)] == [["U.N.", "official"], ["A"], ["#"], ["b", "c"]]
    assert found.scheme == "IOB1"
    assert found.tags[0] == ("B-ORG", "O")
    assert found.documents == (0, 0, 1, 2)
    pos = read_conll(conll(tmp_path, text), tag_column=1)
    assert pos.scheme == "plain"
    assert pos.tags[0] == ("NNP", "NN")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tO\nb\n", r"a.conll line 2: one column only \(parted by tabs\)"),
        ("a O\nb O O\n", "line 2: 3 columns .* but 2 in the lines before"),
        ("a\tO\n\tO\n", "line 2: the word is empty"),
        ("a\tO\nb\t \n", "line 2: the tag is empty"),
        ("a O\n\nb X-PER\nc B-PER\n", r"line 3: tag 'X-PER' is neither O nor has a prefix, unlike 'B-PER'"),
        ("\n\n-DOCSTART- O\n", "a.conll holds no sentences"),
        ("word\n", "line 1: one column only"),
    ],
)
def test_faulty_lines_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_conll(conll(tmp_path, text))


def test_faulty_columns_are_named(tmp_path: Path) -> None:
    source = conll(tmp_path, "a O\n")
    with pytest.raises(DataError, match="the tag is in column 5, but there are 2, from 0 to 1"):
        read_conll(source, tag_column=5)
    with pytest.raises(DataError, match="word and tag are both in column 1"):
        read_conll(source, word_column=1)
    with pytest.raises(DataError, match="no such file"):
        read_conll([str(tmp_path / "absent")])
    with pytest.raises(DataError, match="not an ordinary file"):
        read_conll([str(tmp_path)])


def test_wnut17_has_the_published_counts(shared: Path) -> None:
    folder = shared / "data" / "ner_wnut17"
    counts = {"wnut17train.conll": (3394, 62730, 1975), "emerging.dev.conll": (1009, 15733, 836)}
    counts["emerging.test.annotated"] = (1287, 23394, 1079)
    for name, (sentences, words, entities) in counts.items():
        found = read_conll([str(folder / name)])
        assert (len(found), sum(map(len, found.tags)), found.spans()) == (sentences, words, entities)
        assert found.scheme == "IOB2"
        assert len(label_names(found.tags, found.scheme)) == 13


def test_rows_with_lists() -> None:
    names = ["O", "B-PER", "I-PER"]
    found = sentences_of_lists([["John", "Smith"], ["sat"]], [[1, 2], ["O"]], ["row 1", "row 2"], names=names)
    assert found.texts == ("John Smith", "sat")
    assert found.tags == (("B-PER", "I-PER"), ("O",))
    assert found.documents == (0, 1)


@pytest.mark.parametrize(
    ("words", "tags", "said"),
    [
        (["a", "b"], ["O"], "row 1: 2 words but 1 tags"),
        ("a b", ["O"], "row 1: the words are a value of type str, expected a list"),
        (["a"], None, "row 1: the tags are a value of type NoneType"),
        ([], [], "row 1: the words are an empty list"),
        (["a", None], ["O", "O"], "row 1: a word is a value of type NoneType"),
        (["a", ""], ["O", "O"], "row 1: a word is empty"),
        (["a"], [1], "row 1: a tag is the number 1, and no names"),
        (["a"], [True], "row 1: a tag is a value of type bool"),
        (["a"], [None], "row 1: a tag is a value of type NoneType"),
        (["a"], [" "], "row 1: a word has an empty tag"),
    ],
)
def test_faulty_rows_with_lists_are_named(words: object, tags: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sentences_of_lists([words], [tags], ["row 1"])
    with pytest.raises(DataError, match="row 1: a tag is the number 3, expected 0 to 1"):
        sentences_of_lists([["a"]], [[3]], ["row 1"], names=["O", "B-X"])


# --- spans -----------------------------------------------------------------------------------------------------------


def test_words_of_many_scripts() -> None:
    def words(text: str) -> list[str]:
        return [text[start:stop] for start, stop in words_of(text).tolist()]

    assert words("Don't, 3.5mg!") == ["Don", "'", "t", ",", "3", ".", "5mg", "!"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("cafe\u0301 北京abc") == ["cafe\u0301", "北", "京", "abc"]
    assert words(" \n") == []


def test_spans_and_back() -> None:
    text = "Ann Lee (Oslo) met 北京 Ltd."
    given = [{"start": 9, "end": 13, "label": "LOC"}, [0, 7, "PER"], {"start": 19, "end": 25, "label": " ORG "}]
    found = sentences_of_spans([text, "nothing here"], [given, None], ["row 1", "row 2"])
    assert list(found.tags[0]) == tags_of([(0, 2, "PER"), (3, 4, "LOC"), (6, 9, "ORG")], 10)
    assert character_spans(found, 0, found.tags[0]) == [(0, 7, "PER"), (9, 13, "LOC"), (19, 25, "ORG")]
    assert set(found.tags[1]) == {"O"}


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([[0, 3, "A"], [2, 8, "B"]], r"row 7: span 0 to 3 \('A'\) and span 2 to 8 \('B'\) overlap"),
        ([[0, 30, "A"]], "row 7: span 0 to 30 .* lies not inside the text of 20 characters"),
        ([[-1, 3, "A"]], "lies not inside"),
        ([[3, 3, "A"]], "lies not inside"),
        ([[5, 3, "A"]], "lies not inside"),
        (
            [[0, 2, "A"]],
            r"span 0 to 2 \('A'\) does not begin and end with a word; whole words are 0 to 3; mend",
        ),
        ([[0, 4, "A"]], "does not begin and end with a word"),
        ([[3, 4, "A"]], "covers white space only"),
        ([[0, 3]], "a span is not"),
        ([{"start": 0, "stop": 3, "label": "A"}], "a span is not"),
        ([[0.5, 3, "A"]], "a span is not"),
        ([[float("nan"), 3, "A"]], "a span is not"),
        ([[False, 3, "A"]], "a span is not"),
        ([[0, 3, ""]], "a span is not"),
        ([[0, 3, None]], "a span is not"),
        (["PER"], "a span is not"),
        ("PER", "the spans are a value of type str"),
    ],
)
def test_faulty_spans_are_named(spans: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sentences_of_spans(["Ann Lee met in Paris"], [spans], ["row 7"])


def test_whole_numbers_may_be_written_as_decimals() -> None:
    given = [[{"start": 0.0, "end": 3.0, "label": "A"}]]
    assert sentences_of_spans(["Ann Lee"], given, ["row"]).tags == (("B-A", "O"),)


def test_messages_name_rows_and_quote_them_on_a_terminal_only(tmp_path: Path) -> None:
    secret = "Xanthippe"
    calls = [
        lambda: read_conll(conll(tmp_path, f"a\tO\n{secret}\n")),
        lambda: read_conll(conll(tmp_path, f"a O\n{secret} b O\n")),
        lambda: sentences_of_lists([secret], [["O"]], ["row 1"]),
        lambda: sentences_of_lists([[secret, {secret: 1}]], [["O", "O"]], ["row 1"]),
        lambda: sentences_of_lists([["a"]], [[{secret: 1}]], ["row 1"]),
        lambda: sentences_of_spans([secret], [[[1, 4, "A"]]], ["row 1"]),
        lambda: sentences_of_spans([{secret: 1}], [[]], ["row 1"]),
        lambda: sentences_of_spans(["a"], [secret], ["row 1"]),
        lambda: sentences_of_spans(["a"], [[secret]], ["row 1"]),
    ]
    for call in calls:
        with pytest.raises(DataError) as told:
            call()
        assert secret not in str(told.value)
        assert secret[1:4] in told.value.quote


def test_words_without_tags(tmp_path: Path) -> None:
    text = "-DOCSTART-\n\nAnn X-ODD\nLee\n\nin B-LOC I-LOC O\n"
    found = read_conll(conll(tmp_path, text), labelled=False)
    assert [found.words(i) for i in range(2)] == [["Ann", "Lee"], ["in"]]
    assert found.tags == (("O", "O"), ("O",))
    with pytest.raises(DataError, match="line 2: column 0 holds no word"):
        read_conll(conll(tmp_path, "a\tO\n\tO\n"), labelled=False)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_line_ends_and_encodings_change_nothing(end: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(end.join(["Ren\u00e9 B-PER", "sat O", "", "He O"]).encode(codec))
    found = read_conll([str(path)])
    assert found.texts == ("Ren\u00e9 sat", "He")
    assert found.encodings[0].startswith({"utf-8-sig": "utf-8 with BOM"}.get(codec, codec))


def test_faulty_texts_of_spans_are_named() -> None:
    for text in (None, "", " ", 3):
        with pytest.raises(DataError, match="row 1: the text is"):
            sentences_of_spans([text], [[]], ["row 1"])


def test_spans_are_stretched_to_whole_words_by_choice() -> None:
    found = sentences_of_spans(["Ann Lee met in Paris"], [[[1, 6, "A"], [15, 18, "B"]]], ["row"], widen=True)
    assert character_spans(found, 0, found.tags[0]) == [(0, 7, "A"), (15, 20, "B")]
    assert found.notes == ("2 spans were stretched to whole words",)
    with pytest.raises(DataError, match=r"overlap \(in words\)"):
        sentences_of_spans(["Ann Lee"], [[[0, 1, "A"], [2, 5, "B"]]], ["row"], widen=True)


def test_personal_data_of_presidio_comes_back(shared: Path) -> None:
    import json

    (path,) = sorted((shared / "data" / "pii_presidio").glob("*.json"))[:1]
    rows = json.loads(path.read_text())[:200]
    texts = [row["full_text"] for row in rows]
    given = [[[s["start_position"], s["end_position"], s["entity_type"]] for s in row["spans"]] for row in rows]
    found = sentences_of_spans(texts, given, [f"row {i}" for i in range(len(rows))], widen=True)
    whole = 0
    for index, row in enumerate(given):
        back = character_spans(found, index, found.tags[index])
        assert len(back) == len(row)
        whole += [list(each) for each in back] == sorted(row)
    assert whole >= len(rows) - int(found.notes[0].split()[0] if found.notes else 0)
