"""CIDEr and CIDEr-D agree with the reference implementation, and obey what their paper says of them."""

from __future__ import annotations

import math

import pytest

from finesmith.evaluate.cider import cider

PREDICTIONS = [
    "a dog runs in the park",
    "field field field field in the field",
    "two kids dance in a room with music",
    "a man throws a frisbee to his dog in the field",
]
REFERENCES = [
    ["a dog is running through the park", "the dog runs in a green park", "a brown dog runs"],
    ["the player stood in the field", "someone stands in the field looking at the batter"],
    [
        "a group of kids dance in a living room",
        "two kids dance in the room",
        "kids dance to music in their room",
        "the silly kid loves to dance in her room",
    ],
    ["a man throws a frisbee to his dog in the field"],
]

# Made with pycocoevalcap 1.2, CiderScorer(n=4, sigma=6.0) on these very strings. Its scorer is CIDEr-D; the plain
# values were made with the two lines changed in which the authors' own cider_scorer.py differs (no min, no penalty).
GOLDEN_D = [2.5696235315139133, 0.35457994961179184, 2.8742538423281223, 9.999999999999998]
GOLDEN = [2.6345044383113296, 0.9172147320170582, 2.967425277290797, 9.999999999999998]


def test_agrees_with_the_reference_package() -> None:
    ours = cider(PREDICTIONS, REFERENCES)
    assert ours.per_example == pytest.approx(GOLDEN_D, rel=1e-12)
    assert ours.value == pytest.approx(sum(GOLDEN_D) / 4)
    plain = cider(PREDICTIONS, REFERENCES, variant="cider")
    assert plain.per_example == pytest.approx(GOLDEN, rel=1e-12)
    assert (ours.metric, plain.metric, ours.range) == ("cider_d", "cider", "positive")


def test_by_hand_for_two_rows_of_single_words() -> None:
    # idf of a, b and c is log 2, of d log 1. Cosine of (a b) with (a d): 1 / sqrt(2); three of the four orders are 0.
    ours = cider(["a b", "c"], [["a d"], ["c d"]], variant="cider")
    weight = math.log(2)
    first = 10 / 4 * (weight * weight) / (math.sqrt(2) * weight * weight)
    assert ours.per_example == pytest.approx([first, 10 / 4])


def test_repeating_a_rare_word_gains_nothing_in_cider_d() -> None:
    references = [["a dog runs"], ["the cat sat down there"]]
    for variant in ("cider", "cider_d"):
        once = cider(["dog", "x"], references, variant=variant).per_example[0]
        often = cider(["dog dog dog dog", "x"], references, variant=variant).per_example[0]
        assert (often < once) if variant == "cider_d" else (often == pytest.approx(once))


def test_one_row_and_empty_texts() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        cider(["a"], [["a"]])
    assert cider(["", "b"], [["a"], [""]]).per_example.tolist() == [0.0, 0.0]
