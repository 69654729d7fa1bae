"""Documents to sequences for continued pre-training, causal or masked, without losing or repeating a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finesmith.data.documents import Documents
from finesmith.data.pieces import Frame, Pieces, frame_of, gather, pieces, surround, windows
from finesmith.data.supervised import Supervised
from finesmith.data.tokens import Tokens
from finesmith.errors import DataError, ModelError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    Ints = npt.NDArray[np.int64]

# What may be masked: nothing, a word from here on, or the rest of the word before.
FIXED, START, INSIDE = 0, 1, 2
FEWEST_CONTENT = 2


@dataclass(frozen=True, slots=True)
class CausalText:
    """Sequences that predict every token of every document once.

    documents: int64 [N], each sequence's document; bytes: int64 [D], each document's size in UTF-8. `refused` says why
    tokens could not be kept in the cache.
    """

    rows: Supervised
    documents: Ints
    bytes: Ints
    cached: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True)
class MaskedText:
    """Sequences to mask, each with the tokenizer's special tokens around it.

    maskable: uint8 [T], for every token FIXED (special, unknown, or context given before), START of a word or INSIDE
    one; documents: int64 [N]; bytes: int64 [D]; unmaskable: sequences left out because none of their tokens can be
    masked.
    """

    tokens: Tokens
    maskable: npt.NDArray[np.uint8]
    documents: Ints
    bytes: Ints
    unmaskable: int = 0


def causal_text(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlap: int = 0,
    cache: Path | None,
) -> CausalText:
    """Cut documents into sequences of at most `max_length` tokens whose targets are the next tokens.

    Each document begins as the tokenizer begins a text (with a BOS token, or without) and ends with the end-of-text
    token, which is supervised. Without a BOS token nothing predicts the first token of a document. A following sequence
    begins with the token that its first target needs, and with `overlap` tokens before it: context, not supervised
    again. No sequence holds two documents.

    Raises:
        DataError: a document is not valid Unicode.
        ModelError: the tokenizer has no end-of-text token or no fast engine.
        UserError: `max_length` or `overlap` leave no room.
    """
    import numpy as np

    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) has no end-of-text token, so a model could not learn where a "
            "document ends; expected eos_token in its tokenizer_config.json; choose a causal model.base or set it"
        )
    before = frame_of(tokenizer).before
    step = max_length - 1 - overlap
    if overlap < 0 or step < max(1, len(before)):
        raise UserError(
            f"the maximum length is {max_length} tokens with an overlap of {overlap}; expected an overlap of at least "
            f"0 and a maximum length of at least {overlap + 1 + max(1, len(before))}: lower data.overlap, or raise "
            "data.max_length where the model can take more"
        )
    found = pieces(documents.texts, tokenizer, where=documents.where, words=False, cache=cache)
    stream, ends, _ = surround(found.tokens, found.offsets, Frame(before, (int(tokenizer.eos_token_id),)))
    document, starts, lengths = windows(ends, max_length, step)
    # A document that is nothing to the tokenizer, with no BOS token before it, leaves an end that nothing predicts.
    telling = lengths > 1
    document, starts, lengths = document[telling], starts[telling], lengths[telling]
    index = gather(starts, lengths)
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    tokens = stream[index]
    targets = np.full(tokens.size, -100, np.int32)
    targets[:-1] = tokens[1:]
    targets[offsets[1:] - 1] = -100
    place = np.arange(tokens.size) - np.repeat(offsets[:-1], lengths)
    opening = starts == ends[:-1][document]
    given = np.where(opening, max(0, len(before) - 1), overlap)
    targets[place < np.repeat(given, lengths)] = -100
    rows = Supervised(tokens, offsets, targets)
    return CausalText(rows, document, documents.bytes(), found.cached, found.refused)


def masked_text(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlap: int = 0,
    cache: Path | None,
) -> MaskedText:
    """Cut documents into sequences of at most `max_length` tokens, special tokens included, ready to be masked.

    A following sequence begins with `overlap` tokens of the one before, which give context and are never masked. A word
    that a cut parts counts as two.

    Raises:
        DataError: a document is not valid Unicode, or no sequence has a token that can be masked.
        ModelError: the tokenizer has no fast engine.
        UserError: `max_length` or `overlap` leave no room.
    """
    import numpy as np

    frame = frame_of(tokenizer)
    size = max_length - len(frame)
    if not 0 <= overlap < size or size < FEWEST_CONTENT:
        raise UserError(
            f"the maximum length is {max_length} tokens with an overlap of {overlap}, and {len(frame)} are special "
            f"tokens; expected an overlap of at least 0 and a maximum length of at least "
            f"{len(frame) + max(FEWEST_CONTENT, overlap + 1)}: lower data.overlap, or raise data.max_length where the "
            "model can take more"
        )
    found = pieces(documents.texts, tokenizer, where=documents.where, words=True, cache=cache)
    document, starts, lengths = windows(found.offsets, size, size - overlap)
    index = gather(starts, lengths)
    codes = _codes(found, tokenizer)[index]
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    place = np.arange(index.size) - np.repeat(offsets[:-1], lengths)
    opening = starts == found.offsets[:-1][document]
    codes[place < np.repeat(np.where(opening, 0, overlap), lengths)] = FIXED
    # The first token that may be masked begins a word for its sequence, even when a cut parted the word.
    codes[(codes == INSIDE) & np.append(True, codes[:-1] == FIXED)] = START
    first = offsets[:-1][lengths > 0]
    codes[first] = np.where(codes[first] == INSIDE, START, codes[first])
    kept = np.zeros(lengths.size, np.bool_)
    kept[np.repeat(np.arange(lengths.size), lengths)[codes != FIXED]] = True
    if not kept.any():
        raise DataError(
            f"none of the {kept.size} sequences of {len(documents)} documents has a token that can be masked: all are "
            "unknown to the tokenizer; expected text in a language that the base model knows"
        )
    chosen = np.repeat(kept, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[kept])])
    tokens, offsets, inner = surround(found.tokens[index[chosen]], offsets, frame)
    maskable = np.zeros(tokens.size, np.uint8)
    maskable[inner] = codes[chosen]
    return MaskedText(
        _as_tokens(tokens, offsets, documents, tokenizer, len(frame), found),
        maskable,
        document[kept],
        documents.bytes(),
        int(kept.size - kept.sum()),
    )


def _codes(found: Pieces, tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.uint8]:
    import numpy as np

    if found.starts is None:
        raise AssertionError("pieces were made without words")
    codes = np.where(found.starts, np.uint8(START), np.uint8(INSIDE))
    # Unknown tokens count among the special ones: to guess one teaches nothing.
    codes[np.isin(found.tokens, list(tokenizer.all_special_ids))] = FIXED
    return codes


def _as_tokens(
    tokens: npt.NDArray[np.int32],
    offsets: Ints,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    special: int,
    found: Pieces,
) -> Tokens:
    import numpy as np

    unknown_id = tokenizer.unk_token_id
    return Tokens(
        tokens=tokens,
        offsets=offsets,
        segments=None,
        original_lengths=np.diff(offsets).astype(np.int32),
        words=sum(len(text.split()) for text in documents.texts),
        characters=sum(map(len, documents.texts)),
        unknown=0 if unknown_id is None else int((found.tokens == unknown_id).sum()),
        special=special,
        cached=found.cached,
        refused=found.refused,
    )
