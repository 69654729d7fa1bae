"""Masks for masked language modelling: drawn anew each epoch, or one token at a time to score a text.

A mask is a pure function of (seed, epoch, row): it depends neither on the batch that a row falls into nor on what was
drawn before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finesmith.data.pieces import gather
from finesmith.data.raw_text import FIXED, INSIDE, START
from finesmith.data.supervised import UNSUPERVISED, Supervised
from finesmith.errors import DataError, ModelError, UserError
from finesmith.types import Batch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.raw_text import MaskedText

    Ints = npt.NDArray[np.int64]
    Words = npt.NDArray[np.uint64]

USUAL_RATE = 0.15
_GOLDEN = 0x9E3779B97F4A7C15
_DRAWS = 2


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How sequences are masked.

    rate: the share of words (or tokens) that is to be guessed; of the tokens chosen, the share `hidden` becomes
    `mask_id`, the share `random` any of `ordinary` (int64 [V], every id but the special ones), and the rest stays.
    """

    mask_id: int
    ordinary: Ints
    rate: float = USUAL_RATE
    whole_words: bool = True
    hidden: float = 0.8
    random: float = 0.1


def mask_rule(
    tokenizer: PreTrainedTokenizerBase,
    *,
    rate: float = USUAL_RATE,
    whole_words: bool = True,
    hidden: float = 0.8,
    random: float = 0.1,
) -> MaskRule:
    """Return the rule for a tokenizer; 15 percent and 80/10/10 as in BERT (Devlin et al. 2019).

    Raises:
        ModelError: the tokenizer has no mask token.
        UserError: a share is out of range.
    """
    import numpy as np

    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) has no mask token, so its model was not made to guess masked "
            "words; expected an encoder such as BERT; tune this model on raw text as a causal one"
        )
    if not 0 < rate < 1:
        raise UserError(f"the masked share is {rate:g}, expected 0 < share < 1; a usual value is 0.15, or 0.3")
    if not (hidden >= 0 and random >= 0 and hidden + random <= 1):
        raise UserError(
            f"of the masked tokens {hidden:g} become the mask and {random:g} random ones; expected shares of at least "
            "0 that sum to at most 1, such as 0.8 and 0.1"
        )
    ordinary = np.setdiff1d(np.fromiter(tokenizer.get_vocab().values(), np.int64), tokenizer.all_special_ids)
    return MaskRule(int(tokenizer.mask_token_id), ordinary, rate, whole_words, hidden, random)


def mask(
    tokens: Ints, maskable: npt.NDArray[np.uint8], lengths: Ints, rows: Ints, rule: MaskRule, *, seed: int, epoch: int
) -> tuple[Ints, Ints]:
    """Mask a ragged micro-batch; return its inputs and its targets, both int64 [T], -100 where nothing is guessed.

    tokens [T] and maskable [T] (FIXED, START, INSIDE) lie end to end as `lengths` [B] says; `rows` [B] names each
    sequence for the random numbers. Of U words or tokens that may be masked a sequence masks rate * U, rounded up or
    down at random so that the mean is exact, but at least one.

    Raises:
        DataError: a sequence has nothing to mask.
    """
    import numpy as np

    units, unit_rows = _units(maskable, lengths, rule.whole_words)
    counts = np.bincount(unit_rows, minlength=lengths.size)
    if counts.size and not counts.all():
        raise DataError(f"sequence {int(rows[counts == 0][0])} has no token that can be masked; leave it out")
    keys = _keys(seed, epoch, rows)
    token_keys = np.repeat(keys, lengths)
    place = np.arange(tokens.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    draws = _mix(token_keys + (place * _DRAWS + 2).astype(np.uint64) * np.uint64(_GOLDEN))
    chosen = _chosen(draws[units], unit_rows, counts, _fraction(_mix(keys + np.uint64(_GOLDEN))), rule.rate)
    if rule.whole_words:
        whole = np.zeros(tokens.size, np.bool_)
        whole[units] = chosen
        # Every token takes the choice made at the start of its word.
        latest = np.maximum.accumulate(np.where(maskable == START, np.arange(tokens.size), 0))
        picked = np.flatnonzero(whole[latest] & (maskable != FIXED))
    else:
        picked = units[chosen]
    inputs = tokens.copy()
    targets = np.full(tokens.size, -100, np.int64)
    targets[picked] = tokens[picked]
    second = _mix(token_keys[picked] + (place[picked] * _DRAWS + 3).astype(np.uint64) * np.uint64(_GOLDEN))
    fate = (second >> np.uint64(40)).astype(np.float64) * 2.0**-24
    other = ((second & np.uint64(0xFFFFFFFF)) * np.uint64(rule.ordinary.size)) >> np.uint64(32)
    changed = np.where(fate < rule.hidden, rule.mask_id, rule.ordinary[other.astype(np.int64)])
    inputs[picked] = np.where(fate < rule.hidden + rule.random, changed, tokens[picked])
    return inputs, targets


def masked_batch(
    text: MaskedText,
    positions: Ints,
    rule: MaskRule,
    *,
    seed: int,
    epoch: int,
    device: str | torch.device = "cpu",
) -> Batch:
    """Return the sequences at `positions` (ascending in length) as one ragged batch, masked for this epoch."""
    import numpy as np

    offsets = np.asarray(text.tokens.offsets)
    lengths = offsets[positions + 1] - offsets[positions]
    index = gather(offsets[positions], lengths)
    tokens = np.asarray(text.tokens.tokens)[index].astype(np.int64)
    inputs, targets = mask(tokens, text.maskable[index], lengths, positions, rule, seed=seed, epoch=epoch)
    return _batch(inputs, lengths, targets, positions, device)


def draw_tokens(text: MaskedText, most: int, *, seed: int) -> Ints:
    """Return places in `text` of tokens that may be masked, int64 [K], so many that masking each costs about `most`.

    Masking one costs a sequence, so K is `most` over the mean length of a token's sequence; all where they cost no
    more. They are drawn without replacement, each as likely as another, and in order.
    """
    import numpy as np

    offsets: Ints = np.asarray(text.tokens.offsets)
    lengths = np.diff(offsets)
    places = np.flatnonzero(text.maskable != FIXED)
    cost = int(np.repeat(lengths, lengths)[places].sum())
    if cost <= most:
        return places
    count = max(1, most * places.size // cost)
    drawn = np.random.Generator(np.random.PCG64([seed, 0x10C3])).choice(places, count, replace=False)
    return np.sort(drawn)


def one_at_a_time(text: MaskedText, rule: MaskRule, places: Ints) -> Supervised:
    """Return a sequence for each token of `text` at `places` [K], with that token masked and to be guessed.

    The log-probabilities of all tokens of a text are its pseudo-log-likelihood (Salazar et al. 2020). The rest of the
    token's word is masked too, so that a rare word cannot be read off its own ending (Kauf and Ivanova 2023).
    """
    import numpy as np

    offsets, pool = np.asarray(text.tokens.offsets), np.asarray(text.tokens.tokens)
    rows = np.searchsorted(offsets, places, side="right") - 1
    lengths = np.diff(offsets)[rows]
    begins = np.concatenate([[0], lengths.cumsum()])
    at = places - offsets[rows] + begins[:-1]
    tokens = pool[gather(offsets[rows], lengths)].astype(np.int32)
    targets = np.full(tokens.size, UNSUPERVISED, np.int32)
    targets[at] = tokens[at]
    tokens[gather(at, _word_ends(text.maskable)[places] - places)] = rule.mask_id
    return Supervised(tokens, begins, targets)


def _units(maskable: npt.NDArray[np.uint8], lengths: Ints, whole_words: bool) -> tuple[Ints, Ints]:
    """Return the index of each unit's first token and its sequence, int64."""
    import numpy as np

    units = np.flatnonzero(maskable == START if whole_words else maskable != FIXED)
    return units, np.repeat(np.arange(lengths.size), lengths)[units]


def _chosen(
    draws: Words, unit_rows: Ints, counts: Ints, rounding: npt.NDArray[np.float64], rate: float
) -> npt.NDArray[np.bool_]:
    """Choose in every sequence the units of the smallest draws: rate * count of them in the mean, at least one."""
    import numpy as np

    take = np.maximum(np.floor(rate * counts + rounding).astype(np.int64), 1)
    # Sequence in the high bits, draw in the low ones: one sort serves all sequences.
    order = np.argsort((unit_rows.astype(np.uint64) << np.uint64(40)) | (draws >> np.uint64(24)), kind="stable")
    rank = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.empty(order.size, np.bool_)
    chosen[order] = rank < np.repeat(take, counts)
    return chosen


def _word_ends(maskable: npt.NDArray[np.uint8]) -> Ints:
    """Return for every token the index after the last token of its word, int64 [T]."""
    import numpy as np

    count = maskable.size
    borders = np.append(np.flatnonzero(maskable != INSIDE), count)
    return np.asarray(borders[np.searchsorted(borders, np.arange(count), side="right")], np.int64)


def _keys(seed: int, epoch: int, rows: Ints) -> Words:
    """Return a key for each row, uint64 [B], from all three numbers."""
    import numpy as np

    base = np.random.SeedSequence([seed, epoch, 0x3A5C]).generate_state(1, np.uint64)
    return _mix(base ^ _mix(rows.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(1)))


def _mix(values: Words) -> Words:
    """Scramble 64-bit numbers: the output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = values ^ (values >> np.uint64(31))
    return mixed


def _fraction(values: Words) -> npt.NDArray[np.float64]:
    import numpy as np

    fraction: npt.NDArray[np.float64] = (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fraction


def _batch(inputs: Ints, lengths: Ints, targets: Ints, ids: Ints, device: str | torch.device) -> Batch:
    import numpy as np
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (inputs, lengths, targets, ids)]
    return Batch(tokens=tensors[0], lengths=tensors[1], segments=None, targets=tensors[2], ids=tensors[3])
