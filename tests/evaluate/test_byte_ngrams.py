"""The byte model against counts made by hand."""

from __future__ import annotations

import math

import pytest

from finesmith.evaluate.byte_ngrams import fit_bytes, log_probabilities


def test_order_0_is_counts_mixed_with_all_symbols_alike() -> None:
    model = fit_bytes(["aab"], order=0)
    # a a b END: four symbols, three kinds.
    a, b, end = ((count + 3 / 257) / 7 for count in (2, 1, 1))
    assert log_probabilities(model, ["ab", "b"]).tolist() == pytest.approx(
        [math.log(a) + math.log(b) + math.log(end), math.log(b) + math.log(end)]
    )


def test_chances_of_all_texts_of_one_byte_and_of_none_stay_below_1() -> None:
    model = fit_bytes(["a", "b", "ab", ""], order=2)
    texts = ["", *(chr(code) for code in range(128))]
    whole = sum(math.exp(value) for value in log_probabilities(model, texts))
    # What is left is of texts of more bytes.
    assert 0.6 < whole < 1


def test_a_longer_memory_knows_what_follows() -> None:
    texts = ["abcabcabcabc"] * 3
    short, long = (log_probabilities(fit_bytes(texts, order), ["abcabc"])[0] for order in (0, 3))
    assert long > short


def test_texts_do_not_see_each_other() -> None:
    model = fit_bytes(["one two", "three"])
    apart = [log_probabilities(model, [text])[0] for text in ("one", "three")]
    assert log_probabilities(model, ["one", "three"]).tolist() == pytest.approx(apart)
