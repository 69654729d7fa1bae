"""Probes of token rows pass on good rows and stop on the fault they are there for."""

from __future__ import annotations

import numpy as np
import pytest

from finesmith.data.supervised import Supervised
from finesmith.guards import rows as probes
from finesmith.tasks.corpus import Answers

BOS, EOS = 1, 2


def supervised(*rows: tuple[list[int], list[int]]) -> Supervised:
    """Return rows of (tokens, 1 where the token itself is to be learnt), shifted as a causal model wants them."""
    tokens = np.concatenate([np.array(row, np.int32) for row, _ in rows])
    offsets = np.cumsum([0, *(len(row) for row, _ in rows)]).astype(np.int64)
    targets = []
    for row, mask in rows:
        targets += [row[i + 1] if i + 1 < len(row) and mask[i + 1] else -100 for i in range(len(row))]
    return Supervised(tokens, offsets, np.array(targets, np.int32))


GOOD = supervised(([BOS, 5, 6, 7, EOS], [0, 0, 0, 1, 1]), ([BOS, 8, 9, EOS], [0, 0, 1, 1]))
TURNS = supervised(([BOS, 5, 6, EOS, 7, 8, EOS], [0, 0, 1, 1, 0, 1, 1]))


def test_good_rows_pass() -> None:
    assert probes.supervised_share(GOOD, whole=False).passed
    assert probes.stop_supervised(GOOD, {EOS}).passed
    assert probes.stop_supervised(TURNS, {EOS}).passed
    assert "2 of 2" in probes.stop_supervised(TURNS, {EOS}).evidence
    assert probes.one_beginning(GOOD.tokens, GOOD.offsets, BOS).passed
    assert probes.answers_survive(GOOD, 0, 0, bare=0).passed


@pytest.mark.parametrize("told", [0, 1])
def test_a_mask_of_zeros_or_ones_is_found(told: int) -> None:
    rows = supervised(([BOS, 5, 6, EOS], [told] * 4), ([BOS, 8, EOS], [told] * 3))
    found = probes.supervised_share(rows, whole=False)
    assert not found.passed
    assert f"{5 * told} of 5 tokens" in found.evidence
    assert probes.supervised_share(rows, whole=True).passed == bool(told)


def test_what_is_supervised_is_shown_span_by_span() -> None:
    found = probes.supervised_share(TURNS, whole=False, decode=lambda ids: " ".join(map(str, ids)))
    assert found.shows == "6 2 … 8 2"
    assert "6 2" not in found.evidence


def test_an_unsupervised_stop_token_is_found() -> None:
    rows = supervised(([BOS, 5, 6, 7, EOS], [0, 0, 0, 1, 0]), ([BOS, 8, 9, EOS], [0, 0, 1, 1]))
    found = probes.stop_supervised(rows, {EOS})
    assert not found.passed
    assert "1 of 2 supervised answers end with a stop token; not in rows 0" in found.evidence
    assert probes.stop_supervised(rows, {EOS}, cut=[0]).passed


def test_the_stop_of_one_turn_of_several_is_missed() -> None:
    rows = supervised(([BOS, 5, 6, EOS, 7, 8, EOS], [0, 0, 1, 0, 0, 1, 1]))
    assert not probes.stop_supervised(rows, {EOS}).passed


def test_a_stop_that_generation_does_not_know_is_found() -> None:
    assert not probes.stop_supervised(GOOD, set()).passed
    assert not probes.stop_supervised(GOOD, {99}).passed


def test_rows_supervised_whole_need_a_stop_somewhere() -> None:
    ends = supervised(([BOS, 5, EOS, 3], [0, 1, 1, 1]))
    assert not probes.stop_supervised(ends, {EOS}).passed
    assert probes.stop_supervised(ends, {EOS}, whole=True).passed
    assert not probes.stop_supervised(supervised(([BOS, 5, 3], [0, 1, 1])), {EOS}, whole=True).passed
    assert probes.stop_supervised(supervised(([BOS, 5, 3], [0, 1, 1])), {EOS}, whole=True, cut=[0]).passed


def test_two_beginnings_are_found_but_not_one_row_that_says_so() -> None:
    twice = supervised(([BOS, BOS, 5, EOS], [0, 0, 1, 1]), ([BOS, BOS, 6, EOS], [0, 0, 1, 1]))
    assert not probes.one_beginning(twice.tokens, twice.offsets, BOS).passed
    rows = [([BOS, BOS, 5, EOS], [0, 0, 1, 1])] + [([BOS, 6, EOS], [0, 1, 1])] * 20
    once = supervised(*rows)
    assert probes.one_beginning(once.tokens, once.offsets, BOS).passed
    assert probes.one_beginning(twice.tokens, twice.offsets, None).passed


def test_a_row_of_one_token_begins_once() -> None:
    rows = supervised(([BOS], [0]), ([BOS, 5], [0, 1]))
    assert probes.one_beginning(rows.tokens, rows.offsets, BOS).passed


def test_other_prompts_at_inference_are_found() -> None:
    trained = [[BOS, 5, 6, 7, EOS], [BOS, 8, 9, EOS]]
    assert probes.prompts_agree(trained, [[BOS, 5, 6], [BOS, 8]]).passed
    found = probes.prompts_agree(trained, [[BOS, 5, 6], [BOS, BOS, 8]])
    assert not found.passed
    assert "otherwise in rows 1" in found.evidence


@pytest.mark.parametrize(("lost", "cut", "passed"), [(0, 0, True), (2, 0, True), (3, 0, False), (1, 2, False)])
def test_answers_lost_to_truncation_are_found(lost: int, cut: int, passed: bool) -> None:
    assert probes.answers_survive(GOOD, lost, cut, bare=0).passed == passed


def test_rows_of_other_splits_count_with_those_left_out() -> None:
    # Of all splits 3 of 7 rows were left out, though more than training kept.
    found = probes.answers_survive(GOOD, 3, 0, bare=0, others=2)
    assert found.passed
    assert found.evidence == "4 of 7 rows keep their answer whole; 3 left out"


def test_lost_answers_are_found_where_all_tokens_are_supervised() -> None:
    def names(lost: int) -> list[str]:
        answers = Answers((EOS,), whole=True, lost=lost)
        found = probes.look_at_rows(GOOD, answers, causal=True, beginning=BOS, decode=None)
        return [one.name for one in found if one.name == "answers survive" and not one.passed]

    assert names(9) == ["answers survive"]
    assert not names(1)


def test_rows_without_targets_of_their_own_are_not_asked_for_them() -> None:
    rows = supervised(([BOS, 5, 6], [0, 0, 0]))
    found = list(probes.look_at_rows(rows, None, causal=False, beginning=BOS, decode=None, told=False))
    assert [one.name for one in found] == ["beginning of text"]
    assert found[0].passed


def test_a_row_without_an_answer_is_found_where_each_has_one() -> None:
    rows = supervised(([BOS, 5, 6], [0, 0, 0]), ([BOS, 8, EOS], [0, 1, 1]))
    assert not probes.answers_survive(rows, 0, 0, bare=0).passed
    assert probes.answers_survive(rows, 0, 0).passed
    assert not probes.answers_survive(supervised(([BOS, 5], [0, 0])), 0, 0).passed


def test_targets_shifted_twice_or_not_at_all_are_found() -> None:
    assert probes.shifted_once(GOOD).passed
    assert "5 of 5 targets" in probes.shifted_once(supervised(([BOS, 5, 6, 7, 8, EOS], [1] * 6))).evidence
    for wrong in (np.roll(GOOD.targets, 1), np.roll(GOOD.targets, -1)):
        assert not probes.shifted_once(Supervised(GOOD.tokens, GOOD.offsets, wrong)).passed
    across = GOOD.targets.copy()
    across[4] = GOOD.tokens[5]
    assert not probes.shifted_once(Supervised(GOOD.tokens, GOOD.offsets, across)).passed
