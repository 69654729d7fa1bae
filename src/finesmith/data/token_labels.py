"""Labels of words on the pieces that a tokenizer makes of them, and predictions for pieces back on the words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from finesmith.data.pieces import Placed, frame_of, gather, placed, surround
from finesmith.data.supervised import Supervised
from finesmith.data.tags import OUTSIDE, Sentences, spans_of
from finesmith.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """Sentences as rows of pieces whose targets are positions in `names`, -100 where nothing is asked.

    heads: int64 [W], the piece of `rows` that speaks for each word, -1 where none does; shared: bool [W], true where it
    belongs to an earlier word, which this one then continues; word_offsets: int64 [N + 1], the words of each sentence.
    Words without a piece: `cut_words` lie beyond the maximum length, `empty_words` are nothing to the tokenizer
    (control characters, say). cut_rows: sentences that lost words; cut_spans: labelled spans that lost a word;
    hidden_spans: those whose first word has no piece of its own, so that no target tells of it.
    """

    rows: Supervised
    names: tuple[str, ...]
    heads: Ints
    shared: npt.NDArray[np.bool_]
    word_offsets: Ints
    cut_rows: int
    cut_words: int
    cut_spans: int
    empty_words: int
    hidden_spans: int

    def word_tags(self, predicted: npt.NDArray[np.integer]) -> list[list[str]]:
        """Return every sentence's tags from the class predicted for each piece, int [T]; O for words without one."""
        import numpy as np

        inner = np.asarray([_inside(name) for name in self.names])
        found = np.asarray(predicted)[self.heads]
        tags = np.where(self.shared, inner[found], np.asarray(self.names)[found])
        tags[self.heads < 0] = OUTSIDE
        cuts = self.word_offsets.tolist()
        listed: list[str] = tags.tolist()
        return [listed[start:stop] for start, stop in pairwise(cuts)]


def label_tokens(
    sentences: Sentences,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    all_pieces: bool = False,
) -> TokenLabels:
    """Tokenise sentences of at most `max_length` tokens and put each word's label on its first piece.

    `names` are the classes in the order of the head. With `all_pieces` a word's later pieces are labelled too, with I-
    where the word has B-. Special tokens, later pieces and white space have the target -100.

    Raises:
        DataError: a tag is not among `names`, or a text is not valid Unicode.
        ModelError: the tokenizer has no fast engine.
        UserError: `max_length` leaves no room.
    """
    import numpy as np

    frame = frame_of(tokenizer)
    size = max_length - len(frame)
    if size < 1:
        raise UserError(
            f"the maximum length is {max_length} tokens, of which this tokenizer's own special tokens take {len(frame)}"
            f"; expected at least {len(frame) + 1}, a usual value is 128 to 512"
        )
    labels = _labels(sentences, names)
    found = placed(sentences.texts, tokenizer, where=sentences.where)
    words, piece_words, first = _words_and_pieces(sentences, found)
    whole = np.diff(found.offsets)
    kept = np.minimum(whole, size)
    chosen = gather(found.offsets[:-1], kept)
    tokens, offsets, inner = surround(found.tokens[chosen], np.concatenate([[0], np.cumsum(kept)]), frame)
    targets = np.full(tokens.size, -100, np.int32)
    targets[inner] = _targets(labels, piece_words, first, names, all_pieces)[chosen]
    heads, shared = words
    # One entry more than there are pieces: a word without a piece, -1, looks it up and stays -1.
    moved = np.full(found.tokens.size + 1, -1, np.int64)
    moved[chosen] = np.flatnonzero(inner)
    lost = heads >= 0
    heads = moved[heads]
    lost &= heads < 0
    word_offsets = np.concatenate([[0], np.cumsum([len(row) for row in sentences.tags], dtype=np.int64)])
    cut_spans, hidden_spans = _spans_without(sentences, word_offsets, lost, (heads < 0) | shared)
    return TokenLabels(
        rows=Supervised(tokens, offsets, targets),
        names=tuple(names),
        heads=heads,
        shared=shared & (heads >= 0),
        word_offsets=word_offsets,
        cut_rows=int((whole > size).sum()),
        cut_words=int(lost.sum()),
        cut_spans=cut_spans,
        empty_words=int(((heads < 0) & ~lost).sum()),
        hidden_spans=hidden_spans,
    )


def _labels(sentences: Sentences, names: Sequence[str]) -> npt.NDArray[np.int32]:
    import numpy as np

    known = {name: number for number, name in enumerate(names)}
    flat: list[int] = []
    for row, place in zip(sentences.tags, sentences.where, strict=True):
        for tag in row:
            if tag not in known:
                shown = ", ".join(name[:40] for name in names[:12]) + (", ..." if len(names) > 12 else "")
                raise DataError(f"{place}: tag {tag[:80]!r} is not among those trained on ({shown}); mend the tag")
            flat.append(known[tag])
    return np.asarray(flat, np.int32)


def _words_and_pieces(
    sentences: Sentences, found: Placed
) -> tuple[tuple[Ints, npt.NDArray[np.bool_]], Ints, npt.NDArray[np.bool_]]:
    """Return for each word its head and whether that is shared; for each piece its word, -1 for none, and if it heads.

    All texts are laid end to end, so that one search finds the words of all pieces.
    """
    import numpy as np

    sizes = np.fromiter(map(len, sentences.texts), np.int64, len(sentences)) + 1
    bases = np.cumsum(sizes) - sizes
    counts = np.fromiter(map(len, sentences.places), np.int64, len(sentences))
    empty = np.empty((0, 2), np.int32)
    places = np.concatenate([empty, *sentences.places]) + np.repeat(bases, counts)[:, None]
    spots = found.places + np.repeat(bases, np.diff(found.offsets))[:, None]
    starts, stops = places[:, 0], places[:, 1]
    word = np.searchsorted(stops, spots[:, 0], side="right")
    held = np.append(starts, np.iinfo(np.int64).max)[word] < spots[:, 1]
    word = np.where(held & (spots[:, 1] > spots[:, 0]), word, -1)
    first = np.zeros(word.size, np.bool_)
    owners, at = np.unique(word, return_index=True)
    at, owners = at[owners >= 0], owners[owners >= 0]
    first[at] = True
    heads = np.full(starts.size, -1, np.int64)
    heads[owners] = at
    shared = np.zeros(starts.size, np.bool_)
    if word.size:
        # A word that heads no piece may lie in one that began before it.
        orphans = np.flatnonzero(heads < 0)
        over = np.searchsorted(spots[:, 0], stops[orphans], side="left") - 1
        covered = (over >= 0) & (spots[over, 1] > starts[orphans]) & (word[over] >= 0)
        heads[orphans[covered]] = over[covered]
        shared[orphans[covered]] = True
    return (heads, shared), word, first


def _targets(
    labels: npt.NDArray[np.int32],
    words: Ints,
    first: npt.NDArray[np.bool_],
    names: Sequence[str],
    all_pieces: bool,
) -> npt.NDArray[np.int32]:
    import numpy as np

    targets = np.full(words.size, -100, np.int32)
    targets[first] = labels[words[first]]
    if all_pieces:
        known = {name: number for number, name in enumerate(names)}
        inside = np.asarray([known.get(_inside(name), number) for number, name in enumerate(names)], np.int32)
        later = (words >= 0) & ~first
        targets[later] = inside[labels[words[later]]]
    return targets


def _inside(name: str) -> str:
    return f"I-{name[2:]}" if name.startswith("B-") else name


def _spans_without(
    sentences: Sentences, word_offsets: Ints, lost: npt.NDArray[np.bool_], headless: npt.NDArray[np.bool_]
) -> tuple[int, int]:
    """Count the spans that lost a word, and of the others those whose first word heads no piece."""
    if sentences.scheme == "plain" or not headless.any():
        return 0, 0
    cut = hidden = 0
    for tags, base in zip(sentences.tags, word_offsets.tolist(), strict=False):
        for start, stop, _ in spans_of(tags):
            missing = bool(lost[base + start : base + stop].any())
            cut += missing
            hidden += not missing and bool(headless[base + start])
    return cut, hidden
