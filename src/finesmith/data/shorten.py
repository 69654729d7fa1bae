"""Rows that were tokenised whole, cut to a length as the tokenizer would cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finesmith.data.chunks import count_words, engine_of, unknown_id
from finesmith.data.template import template_of
from finesmith.data.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

# More would take more memory than tokenising again.
MOST_TOKENS = 50_000_000


def shorten(
    whole: Tokens,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: npt.NDArray[np.int64],
    max_length: int,
) -> Tokens | None:
    """Return what `tokenize` would of texts and pairs, the rows `rows` of `whole`, with at most `max_length` tokens.

    None where only the tokenizer can tell: pairs, tokenizers written in Python, templates of a kind not known here.
    """
    import numpy as np

    engine = engine_of(tokenizer)
    if engine is None or pairs is not None or int(whole.offsets[-1]) > MOST_TOKENS:
        return None
    template = template_of(engine, paired=False)
    if template is None:
        return None
    text = next(place for place, part in enumerate(template) if part.sequence is not None)
    before, after = (sum(len(part.ids) for part in parts) for parts in (template[:text], template[text + 1 :]))
    if whole.special != before + after or max_length <= whole.special:
        return None
    starts, lengths = np.asarray(whole.offsets)[rows], whole.lengths()[rows]
    cut = np.minimum(lengths, max_length)
    offsets = np.concatenate([[0], np.cumsum(cut)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], cut)
    # Of a row that is too long the beginning and the end stay, and the special tokens around.
    head = np.repeat(cut - after if tokenizer.truncation_side == "right" else np.full(len(cut), before), cut)
    source = np.repeat(starts, cut) + place + np.where(place < head, 0, np.repeat(lengths - cut, cut))
    pool = np.asarray(whole.tokens)
    unknown = _unknown(pool, starts, lengths, unknown_id(tokenizer, engine))
    return replace(
        whole,
        tokens=pool[source],
        offsets=offsets.astype(np.int64),
        original_lengths=np.asarray(whole.original_lengths)[rows],
        words=count_words(texts, None),
        characters=sum(map(len, texts)),
        unknown=unknown,
    )


def _unknown(
    pool: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], token: int | None
) -> int:
    """Count a token in some rows of a pool."""
    import numpy as np

    if token is None:
        return 0
    counts = np.concatenate([[0], np.cumsum(pool == token)])
    return int((counts[starts + lengths] - counts[starts]).sum())
