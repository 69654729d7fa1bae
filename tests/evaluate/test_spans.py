"""Spans are those of conlleval and seqeval, well-formed and malformed; scores come from counts."""

from __future__ import annotations

import numpy as np
import pytest

from finesmith.evaluate.spans import span_f1, span_scores, spans_of

# Correct, predicted and expected spans over the 20 sentences of `tagged`. "conlleval": the counting of the Perl script
# of CoNLL-2000 (version 2004-01-26), cut down to that; "seqeval": seqeval 1.2.2, get_entities, which knows S too. On BI
# and IE seqeval gave the same counts as conlleval.
GOLDEN = [
    ("conlleval", "BI", 0, (57, 87, 86), (26, 42, 46), (31, 45, 40)),
    ("conlleval", "BI", 1, (60, 82, 81), (30, 40, 42), (30, 42, 39)),
    ("conlleval", "BI", 2, (59, 80, 82), (32, 43, 46), (27, 37, 36)),
    ("conlleval", "I", 0, (35, 64, 64), (18, 35, 34), (17, 29, 30)),
    ("conlleval", "I", 1, (31, 57, 62), (15, 27, 33), (16, 30, 29)),
    ("conlleval", "I", 2, (36, 58, 57), (19, 29, 26), (17, 29, 31)),
    ("conlleval", "IE", 0, (59, 91, 83), (28, 45, 41), (31, 46, 42)),
    ("conlleval", "IE", 1, (63, 81, 83), (30, 36, 42), (33, 45, 41)),
    ("conlleval", "IE", 2, (61, 85, 81), (31, 44, 44), (30, 41, 37)),
    ("seqeval", "BIES", 0, (72, 105, 103), (41, 57, 57), (31, 48, 46)),
    ("seqeval", "BIES", 1, (77, 99, 95), (36, 44, 50), (41, 55, 45)),
    ("seqeval", "BIES", 2, (72, 96, 93), (42, 55, 49), (30, 41, 44)),
]

Sentences = list[list[str]]


def tagged(seed: int, prefixes: str) -> tuple[Sentences, Sentences]:
    """Return predicted and expected random tags, most of them malformed sequences, seven in ten alike."""
    rng = np.random.default_rng(seed)
    tags = ["O", *[f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC")]]
    sizes = rng.integers(1, 12, 20)
    expected = [[tags[i] for i in rng.integers(0, len(tags), size)] for size in sizes]
    predicted = [[t if rng.random() < 0.7 else tags[rng.integers(0, len(tags))] for t in s] for s in expected]
    return predicted, expected


@pytest.mark.parametrize(("oracle", "prefixes", "seed", "total", "places", "people"), GOLDEN)
def test_counts_are_those_of_the_reference_scripts(
    oracle: str, prefixes: str, seed: int, total: tuple[int, ...], places: tuple[int, ...], people: tuple[int, ...]
) -> None:
    predicted, expected = tagged(seed, prefixes)
    micro, by_type = span_scores(predicted, expected)
    for score, counts in ((micro, total), (by_type["LOC"], places), (by_type["PER"], people)):
        assert (score.correct, score.predicted, score.expected) == counts
    measured = span_f1(predicted, expected)
    assert measured.value == pytest.approx(2 * total[0] / (total[1] + total[2]))
    assert measured.value == pytest.approx(micro.f1)
    assert tuple(measured.statistics.sum(axis=0)) == total


def test_the_published_example_of_the_conlleval_package() -> None:
    # Expected and predicted chunks of one CoNLL-2000 sentence; figures as its README prints them.
    expected = "NP:3 NP:2 VP:1 NP:1 VP:1 NP:3 VP:1 NP:2 PP:1 NP:2 VP:2 NP:2 PP:1 NP:1 NP:3"
    predicted = "NP:3 NP:2 VP:1 NP:1 VP:1 NP:3 VP:1 NP:2 PP:1 NP:2 PP:1 VP:1 NP:2 PP:1 NP:1 NP:3"

    def tags(chunks: str) -> list[str]:
        sizes = [(kind, int(size)) for kind, size in (chunk.split(":") for chunk in chunks.split())]
        return [f"{'I' if i else 'B'}-{kind}" for kind, size in sizes for i in range(size)] + ["O"]

    micro, by_type = span_scores([tags(predicted)], [tags(expected)])
    assert (micro.precision, micro.recall, micro.f1) == pytest.approx((0.875, 14 / 15, 0.9032258064516129))
    assert {kind: round(score.f1, 9) for kind, score in by_type.items()} == {"NP": 1.0, "PP": 0.8, "VP": 0.75}


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("I-A I-A B-A O", [("A", 0, 2), ("A", 2, 3)]),  # IOB1
        ("B-A I-A O B-B", [("A", 0, 2), ("B", 3, 4)]),  # IOB2
        ("B-A E-A S-B I-A E-A", [("A", 0, 2), ("B", 2, 3), ("A", 3, 5)]),  # IOBES
        ("B-A L-A U-B", [("A", 0, 2), ("B", 2, 3)]),  # BILOU
        ("O I-A I-B O", [("A", 1, 2), ("B", 2, 3)]),  # malformed: no B, type changes inside
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
        ("E-A E-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),  # hyphens in the type
        ("B I O", [("", 0, 2)]),
        ("", []),
    ],
)
def test_spans_of(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def test_nothing_to_find_is_undefined_and_scores_0_in_the_table() -> None:
    measured = span_f1([["O"], ["O"]], [["O"], ["O"]])
    assert measured.value is None
    micro, by_type = span_scores([["O"]], [["O"]])
    assert (micro.f1, by_type) == (0.0, {})


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="sentence 1: 2 predicted tags for 1 tokens"):
        span_f1([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="sentence 0: tag 'PER' at token 1: expected O"):
        span_f1([["O", "PER"]], [["O", "O"]])
    with pytest.raises(ValueError, match="1 predicted sentences for 2"):
        span_scores([["O"]], [["O"], ["O"]])
