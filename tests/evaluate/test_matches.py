"""Right answers are told from wrong ones, numbers read exactly or not at all."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesmith.evaluate.matches import exact_match, final_number, final_number_match, normalised, normalised_match

STRICT = [
    ("#### 72", 72),
    ("so\n#### 1,234.50 clips", Fraction("1234.5")),
    ("#### -$3", -3),
    ("#### $-3", -3),
    ("####18.", 18),
    ("#### 3/4 of it", Fraction(3, 4)),
    ("#### 50%", 50),
    ("a #### 3 b #### 4", 4),
    ("#### \N{MINUS SIGN}7", -7),
    ("#### +7", 7),
    ("#### .5", Fraction(1, 2)),
    ("#### 1,5", None),
    ("#### 12,34", None),
    ("#### 1/0", None),
    ("#### B2", None),
    ("#### the answer is 7", None),
    ("the answer is 7", None),
    ("####", None),
    ("#### " + "9" * 5000, None),
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), STRICT)
def test_strict_final_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5-3", 3),
        ("from 10-12", 12),
        ("it costs $1,000.", 1000),
        ("a -$5,000.25 loss", Fraction("-5000.25")),
        ("(-5)", -5),
        ("72clips", 72),
        ("x = 3, 4", 4),
        ("half, 1/2.", Fraction(1, 2)),
        ("room B2", None),
        ("#### the answer is 7", 7),
        ("#### 3 then 9", 3),
        ("no number", None),
    ],
)
def test_lenient_final_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text, strict=False) == number


@given(st.decimals(-(10**9), 10**9, places=3))
def test_numbers_survive_any_usual_spelling(number: object) -> None:
    for text in (f"#### {number}", f"#### {number:,} units", f"####{number:+}."):
        assert final_number(text) == Fraction(str(number))


def test_every_gsm8k_answer_is_read_like_the_published_rule_reads_it(shared: Path) -> None:
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    for answer in answers:
        # The number behind the mark without its commas (Cobbe et al. 2021).
        assert final_number(answer) == Fraction(answer.rsplit("#### ", 1)[1].replace(",", ""))
    assert final_number_match(answers, [[answer] for answer in answers]).value == 1.0


def test_matches_take_any_reference() -> None:
    references = [["Paris", "the City"], ["1,000"], ["yes"]]
    predictions = [" the City\n", "1000", "Yes!"]
    assert exact_match(predictions, references).per_example.tolist() == [1, 0, 0]
    assert normalised_match(predictions, references).per_example.tolist() == [1, 0, 1]
    numbers = final_number_match(["#### 3.0", "#### 4", "5"], [["3", "2"], ["so #### 5"], ["5"]])
    assert numbers.per_example.tolist() == [1, 0, 0]
    assert numbers.is_mean
    lenient = final_number_match(["x", "it is 5"], [["3"], ["5"]], strict=False)
    assert lenient.per_example.tolist() == [0, 1]


def test_a_reference_without_number_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1: the reference ends in no number: 'none'"):
        final_number_match(["1", "2"], [["1"], ["none"]])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat, sat!", "the cat sat"),
        ("3.14 and 1,000.", "3.14 and 1,000"),
        ("-5", "-5"),
        ("well-known", "well known"),
        ("“STRASSE” …", "strasse"),
        ("Straße", "strasse"),
        ("50% $5", "50% $5"),
        ("\N{FULLWIDTH LATIN SMALL LETTER A}", "a"),
    ],
)
def test_normalised(text: str, plain: str) -> None:
    assert normalised(text) == plain


@given(st.text())
def test_normalising_twice_is_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
