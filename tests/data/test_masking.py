"""Masks: the right share, at least one, never a special token, whole words, and the same in any batch."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finesmith.data.documents import Documents
from finesmith.data.masking import MaskRule, draw_tokens, mask, mask_rule, masked_batch, one_at_a_time
from finesmith.data.raw_text import FIXED, INSIDE, START, MaskedText, masked_text
from finesmith.errors import DataError, ModelError, UserError
from trained_tokenizers import byte_level, metaspace

MASK = 4
RULE = MaskRule(MASK, np.arange(10, 1000), 0.15, whole_words=True)


def codes_of(words: list[list[int]]) -> np.ndarray:
    """Return the codes of sequences given as the pieces of each word, with a special token at both ends."""
    rows = []
    for row in words:
        rows += [FIXED, *(code for pieces in row for code in [START] + [INSIDE] * (pieces - 1)), FIXED]
    return np.asarray(rows, np.uint8)


def drawn(words: list[list[int]], rule: MaskRule, *, epoch: int = 0, first: int = 0) -> tuple[np.ndarray, ...]:
    codes = codes_of(words)
    lengths = np.asarray([sum(row) + 2 for row in words])
    tokens = np.where(codes == FIXED, 1, 10 + np.arange(codes.size) % 900)
    rows = np.arange(first, first + len(words))
    return tokens, codes, lengths, *mask(tokens, codes, lengths, rows, rule, seed=7, epoch=epoch)


ROWS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=30), min_size=1, max_size=12)


@given(ROWS, st.floats(0.01, 0.9), st.booleans(), st.integers(0, 3))
def test_what_is_masked(words: list[list[int]], rate: float, whole: bool, epoch: int) -> None:
    rule = replace(RULE, rate=rate, whole_words=whole)
    tokens, codes, lengths, inputs, targets = drawn(words, rule, epoch=epoch)
    asked = targets != -100
    assert np.array_equal(targets[asked], tokens[asked])
    assert np.array_equal(inputs[~asked], tokens[~asked])
    assert not asked[codes == FIXED].any()
    assert set(inputs[asked].tolist()) <= {MASK, *tokens[asked].tolist(), *rule.ordinary.tolist()}
    ends = np.cumsum(lengths)
    for row, start, stop in zip(words, ends - lengths, ends, strict=True):
        inner = asked[start + 1 : stop - 1]
        units = len(row) if whole else sum(row)
        if whole:
            parts = np.split(inner, np.cumsum(row)[:-1])
            assert all(part.all() or not part.any() for part in parts)
            count = sum(bool(part.any()) for part in parts)
        else:
            count = int(inner.sum())
        assert count in {max(1, int(np.floor(rate * units))), max(1, int(np.ceil(rate * units)))}


@given(ROWS, st.integers(0, 3), st.randoms())
@settings(deadline=None)
def test_a_mask_does_not_depend_on_the_batch(words: list[list[int]], epoch: int, random: Any) -> None:
    _, _, lengths, inputs, targets = drawn(words, RULE, epoch=epoch)
    ends = np.cumsum(lengths)
    tokens = np.split(drawn(words, RULE)[0], ends[:-1])
    codes = np.split(codes_of(words), ends[:-1])
    order = list(range(len(words)))
    random.shuffle(order)
    found = mask(
        np.concatenate([tokens[row] for row in order]), np.concatenate([codes[row] for row in order]), lengths[order],
        np.asarray(order), RULE, seed=7, epoch=epoch,
    )  # fmt: skip
    for mine, its in zip((inputs, targets), found, strict=True):
        parts = np.split(mine, ends[:-1])
        assert np.array_equal(np.concatenate([parts[row] for row in order]), its)


def test_masks_differ_between_epochs_rows_and_seeds() -> None:
    row = [[1] * 40]
    masks = [drawn(row, RULE, epoch=epoch, first=first)[-1] for epoch in (0, 1) for first in (0, 1)]
    tokens, codes, lengths, *_ = drawn(row, RULE)
    masks.append(mask(tokens, codes, lengths, np.asarray([0]), RULE, seed=8, epoch=0)[1])
    assert len({tuple(each.tolist()) for each in masks}) == 5


def test_the_masks_are_the_same_on_every_machine_and_release() -> None:
    """A resumed run must meet the masks it began with, so a change of them is a change of format."""
    rule = replace(RULE, rate=0.3, hidden=0.4, random=0.4)
    *_, inputs, targets = drawn([[1, 2, 3, 1, 1, 2] * 3], rule, epoch=2)
    assert np.flatnonzero(targets != -100).tolist() == [12, 13, 14, 15, 16, 17, 27, 29, 30]
    assert inputs[targets != -100].tolist() == [4, 648, 125, 4, 4, 4, 612, 901, 4]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_is_exact_in_the_mean(whole: bool, rate: float) -> None:
    """For rows of at least 1 / rate units. Rounding varies less than independent draws, so binomial bounds are wide."""
    generator = np.random.default_rng(0)
    words = [generator.integers(1, 4, size).tolist() for size in generator.integers(7, 60, 4000)]
    rule = replace(RULE, rate=rate, whole_words=whole)
    _, codes, _, _, targets = drawn(words, rule)
    starts = codes == START if whole else codes != FIXED
    hits, trials = int((targets[starts] != -100).sum()), int(starts.sum())
    low, high = stats.binom.interval(0.999, trials, rate)
    assert low <= hits <= high
    # Tokens too: a word is chosen whatever its length.
    pieces = codes != FIXED
    assert abs((targets[pieces] != -100).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) * 2.2 / trials)
    # The first word is no exception.
    ends = np.cumsum([sum(row) + 2 for row in words])
    first = np.asarray([0, *ends[:-1]]) + 1
    hits = int((targets[first] != -100).sum())
    low, high = stats.binom.interval(0.9999, len(words), rate)
    assert low <= hits <= high


def test_a_short_row_still_has_one_mask() -> None:
    *_, targets = drawn([[1]] * 300, replace(RULE, rate=0.01))
    assert (targets != -100).sum() == 300


def test_of_the_chosen_tokens_eighty_percent_are_hidden_and_ten_random() -> None:
    words = [[1] * 100] * 2000
    tokens, _, _, inputs, targets = drawn(words, replace(RULE, rate=0.3))
    asked = targets != -100
    count = int(asked.sum())
    hidden = int((inputs[asked] == MASK).sum())
    stayed = int((inputs[asked] == tokens[asked]).sum())
    changed = inputs[asked & (inputs != MASK) & (inputs != tokens)]
    for hits, share in ((hidden, 0.8), (stayed, 0.1 + 0.1 / RULE.ordinary.size), (changed.size, 0.1)):
        low, high = stats.binom.interval(0.9999, count, share)
        assert low <= hits <= high
    # Random tokens come from everywhere, and never from the special ones.
    assert set(changed.tolist()) <= set(RULE.ordinary.tolist())
    observed = np.bincount((changed - 10) // 99, minlength=10)
    assert stats.chisquare(observed).pvalue > 1e-3
    *_, all_hidden, targets = drawn(words, replace(RULE, hidden=1.0, random=0.0))
    assert set(all_hidden[targets != -100].tolist()) == {MASK}
    _, _, _, kept, targets = drawn(words, replace(RULE, hidden=0.0, random=0.0))
    assert np.array_equal(kept, drawn(words, RULE)[0])


def test_neighbours_are_masked_independently() -> None:
    """The random numbers of one place say nothing about those of the next, or of the same place in the next row."""
    *_, targets = drawn([[1] * 200] * 2000, replace(RULE, rate=0.5))
    asked = (targets != -100).reshape(2000, 202)[:, 1:-1].astype(float)
    # Exactly half of each row: places of one row correlate by -1 / 199.
    one = np.corrcoef(asked[:, :-1].ravel(), asked[:, 1:].ravel())[0, 1]
    other = np.corrcoef(asked[:-1].ravel(), asked[1:].ravel())[0, 1]
    assert abs(one + 1 / 199) < 4 / np.sqrt(asked.size)
    assert abs(other) < 4 / np.sqrt(asked.size)


def test_shares_are_those_of_the_collator_of_transformers() -> None:
    """Its share is drawn token by token, ours by row: equal in the mean, ours closer to it."""
    import torch
    from transformers import DataCollatorForLanguageModeling, set_seed

    tokenizer = metaspace()
    text = text_of(tokenizer, ["She sells seashells by the seashore and they are very good. " * 5] * 40, 64)
    rule = mask_rule(tokenizer, whole_words=False)
    lengths = text.tokens.lengths()
    ours = masked_batch(text, np.argsort(lengths, kind="stable"), rule, seed=0, epoch=0)
    set_seed(0)
    rows = [{"input_ids": text.tokens.row(i).tolist()} for i in range(len(text.tokens))]
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)(rows)
    assert ours.targets is not None
    free = int((text.maskable != FIXED).sum())
    for targets, inputs in ((ours.targets, ours.tokens), (theirs["labels"], theirs["input_ids"])):
        asked = targets != -100
        low, high = stats.binom.interval(0.9999, free, 0.15)
        assert low <= int(asked.sum()) <= high
        hidden = int((inputs[asked] == tokenizer.mask_token_id).sum())
        low, high = stats.binom.interval(0.9999, int(asked.sum()), 0.8)
        assert low <= hidden <= high
        assert not set(targets[asked].tolist()) & set(tokenizer.all_special_ids)
    assert isinstance(ours.tokens, torch.Tensor)


def text_of(tokenizer: Any, texts: list[str], max_length: int) -> MaskedText:
    where = tuple(f"document {i}" for i in range(len(texts)))
    return masked_text(Documents(tuple(texts), where), tokenizer, max_length=max_length, cache=None)


def test_whole_words_of_a_real_text() -> None:
    for tokenizer in (byte_level(), metaspace()):
        text = text_of(tokenizer, ["Unbelievable unhappiness: internationalisation of unflinching films! " * 3], 500)
        batch = masked_batch(text, np.asarray([0]), mask_rule(tokenizer, rate=0.5), seed=0, epoch=0)
        assert batch.targets is not None
        asked = batch.targets.numpy() != -100
        words = np.cumsum(text.maskable == START)
        for word in np.unique(words[text.maskable != FIXED]):
            here = asked[(words == word) & (text.maskable != FIXED)]
            assert here.all() or not here.any()
        assert 0 < asked.sum() < asked.size


def test_the_rule_of_a_tokenizer() -> None:
    tokenizer = byte_level()
    rule = mask_rule(tokenizer)
    assert rule.mask_id == tokenizer.mask_token_id
    assert sorted([*rule.ordinary.tolist(), *tokenizer.all_special_ids]) == sorted(tokenizer.get_vocab().values())
    assert (rule.rate, rule.hidden, rule.random, rule.whole_words) == (0.15, 0.8, 0.1, True)
    for rate in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(UserError, match="expected 0 < share < 1"):
            mask_rule(tokenizer, rate=rate)
    for hidden, random in ((0.9, 0.2), (-0.1, 0.1), (0.5, -0.1)):
        with pytest.raises(UserError, match="sum to at most 1"):
            mask_rule(tokenizer, hidden=hidden, random=random)


def test_a_tokenizer_without_a_mask_is_refused(shared: Path) -> None:
    from transformers import AutoTokenizer

    with pytest.raises(ModelError, match="has no mask token"):
        mask_rule(AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf"))


def test_a_sequence_of_special_tokens_is_named() -> None:
    codes = np.asarray([FIXED, START, FIXED, FIXED], np.uint8)
    with pytest.raises(DataError, match="sequence 42 has no token that can be masked"):
        mask(np.ones(4, np.int64), codes, np.asarray([2, 2]), np.asarray([41, 42]), RULE, seed=0, epoch=0)


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_one_at_a_time_against_a_plain_loop() -> None:
    tokenizer = byte_level()
    text = text_of(tokenizer, ["Unbelievable unhappiness of films!", "the café", "naïve dogs jump over it"], 24)
    rule = mask_rule(tokenizer)
    expected = []
    for row in range(len(text.tokens)):
        place = slice(int(text.tokens.offsets[row]), int(text.tokens.offsets[row + 1]))
        tokens, codes = text.tokens.tokens[place].tolist(), text.maskable[place].tolist()
        for at, code in enumerate(codes):
            if code == FIXED:
                continue
            inputs, targets = list(tokens), [-100] * len(tokens)
            inputs[at], targets[at] = rule.mask_id, tokens[at]
            after = at + 1
            while after < len(codes) and codes[after] == INSIDE:
                inputs[after] = rule.mask_id
                after += 1
            expected.append((inputs, targets))
    assert any(inputs.count(rule.mask_id) > 1 for inputs, _ in expected)
    places = np.flatnonzero(text.maskable != FIXED)
    found = one_at_a_time(text, rule, places)
    assert [tuple(part.tolist() for part in found.row(row)) for row in range(len(found))] == expected
    some = one_at_a_time(text, rule, places[3:8:2])
    assert [tuple(part.tolist() for part in some.row(row)) for row in range(3)] == expected[3:8:2]


def test_drawn_tokens_are_so_many_and_each_as_likely() -> None:
    text = text_of(byte_level(), ["the dog", "Unbelievable unhappiness of films!", "naïve dogs jump over it"], 24)
    lengths = np.diff(text.tokens.offsets)
    everyone = np.flatnonzero(text.maskable != FIXED)
    cost = int(np.repeat(lengths, lengths)[everyone].sum())
    assert draw_tokens(text, cost, seed=0).tolist() == everyone.tolist()
    half = [draw_tokens(text, cost // 2, seed=seed) for seed in range(2000)]
    assert {len(places) for places in half} == {cost // 2 * len(everyone) // cost}
    assert all((np.diff(places) > 0).all() for places in half)
    assert draw_tokens(text, cost // 2, seed=7).tolist() == half[7].tolist()
    assert len(draw_tokens(text, 1, seed=0)) == 1
    counts = np.bincount(np.concatenate(half), minlength=text.maskable.size)
    assert not counts[text.maskable == FIXED].any()
    share = len(half[0]) / len(everyone)
    # Each a binomial of 2,000 draws: five standard deviations.
    assert np.abs(counts[everyone] - 2000 * share).max() < 5 * (2000 * share * (1 - share)) ** 0.5


def test_speed_of_masking() -> None:
    """A guard against a slip into per-row work; the figure itself is in the lab notes."""
    generator = np.random.default_rng(0)
    words = [generator.integers(1, 3, 85).tolist() for _ in range(256)]
    tokens, codes, lengths, *_ = drawn(words, RULE)
    start = time.perf_counter()
    for epoch in range(5):
        mask(tokens, codes, lengths, np.arange(256), RULE, seed=0, epoch=epoch)
    assert tokens.size * 5 / (time.perf_counter() - start) > 500_000
