"""Put a tokenizer's special tokens around bare token ids and cut long rows, for many rows at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bare:
    """Token ids of N rows end to end without any special tokens: ids int32 [T], offsets int64 [N + 1]."""

    ids: npt.NDArray[np.int32]
    offsets: Ints


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a template: special tokens, or where `sequence` is 0 or 1 the text or its pair; `kind`: type id."""

    kind: int
    sequence: int | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Composed:
    """Rows as a tokenizer returns them, end to end; `originals` are their lengths before they were cut.

    tokens: int32 [T]; lengths, originals: int64 [N]; segments: uint8 [T] type ids, or None where none were asked for.
    """

    tokens: npt.NDArray[np.int32]
    lengths: Ints
    originals: Ints
    segments: npt.NDArray[np.uint8] | None


def template_of(engine: tokenizers.Tokenizer, *, paired: bool) -> tuple[Part, ...] | None:
    """Return the parts of every row in their order, or None where the post-processor is of a kind not known here."""
    if engine.post_processor is None:
        parts: tuple[Part, ...] | None = (Part(0, 0),)
    else:
        parts = _parts(json.loads(engine.post_processor.__getstate__()), paired)
    if parts is None:
        return None
    parts = parts if paired else tuple(part for part in parts if part.sequence != 1)
    sequences = [part.sequence for part in parts if part.sequence is not None]
    return parts if sequences == ([0, 1] if paired else [0]) else None


def _parts(state: dict[str, Any], paired: bool) -> tuple[Part, ...] | None:
    if state["type"] == "Sequence":
        # a byte-level processor mends offsets only
        others = [each for each in state["processors"] if each["type"] != "ByteLevel"]
        return _parts(others[0], paired) if len(others) == 1 else None
    if state["type"] == "BertProcessing":
        first, last = (state["cls"][1],), (state["sep"][1],)
        head = Part(0, ids=first), Part(0, 0), Part(0, ids=last)
        return (*head, Part(1, 1), Part(1, ids=last)) if paired else head
    if state["type"] == "RobertaProcessing":
        first, last = (state["cls"][1],), (state["sep"][1],)
        head = Part(0, ids=first), Part(0, 0), Part(0, ids=last)
        return (*head, Part(0, ids=last), Part(0, 1), Part(0, ids=last)) if paired else head
    if state["type"] != "TemplateProcessing":
        return None
    parts = []
    for piece in state["pair" if paired else "single"]:
        if "Sequence" in piece:
            parts.append(Part(piece["Sequence"]["type_id"], "AB".index(piece["Sequence"]["id"])))
        else:
            special = piece["SpecialToken"]
            parts.append(Part(special["type_id"], ids=tuple(state["special_tokens"][special["id"]]["ids"])))
    return tuple(parts)


def compose(
    template: Sequence[Part], columns: Sequence[Bare], *, max_length: int | None, left: bool, segmented: bool
) -> Composed:
    """Return the rows of one or two columns with special tokens, each of at most `max_length` tokens.

    `left` cuts at the beginning. A pair loses tokens from its longer side first.
    """
    import numpy as np

    special = sum(len(part.ids) for part in template)
    sizes = [np.diff(column.offsets) for column in columns]
    originals = sizes[0] + special if len(sizes) == 1 else sizes[0] + sizes[1] + special
    kept = sizes if max_length is None else _cut(sizes, max_length - special)
    rows, parts = len(originals), len(template)
    starts, lengths = np.empty((rows, parts), np.int64), np.empty((rows, parts), np.int64)
    pool: list[npt.NDArray[np.int32]] = []
    size = 0
    for place, part in enumerate(template):
        if part.sequence is None:
            pool.append(np.array(part.ids, np.int32))
            starts[:, place], lengths[:, place] = size, len(part.ids)
        else:
            column, keep = columns[part.sequence], kept[part.sequence]
            pool.append(column.ids)
            starts[:, place], lengths[:, place] = column.offsets[:-1] + size, keep
            if left:
                starts[:, place] += sizes[part.sequence] - keep
        size += pool[-1].size
    tokens = gather(np.concatenate(pool), starts.ravel(), lengths.ravel())
    segments = None
    if segmented:
        kinds = np.tile(np.array([part.kind for part in template], np.uint8), rows)
        segments = np.repeat(kinds, lengths.ravel())
    return Composed(tokens, lengths.sum(axis=1), originals, segments)


def gather(pool: npt.NDArray[np.int32], starts: Ints, lengths: Ints) -> npt.NDArray[np.int32]:
    """Return `pool[start:start + length]` of every start and length, end to end."""
    import numpy as np

    ends = np.cumsum(lengths)
    index = np.arange(int(ends[-1]) if ends.size else 0)
    index += np.repeat(starts - ends + lengths, lengths)
    return pool[index]


def _cut(sizes: Sequence[Ints], room: int) -> Sequence[Ints]:
    """Return how many tokens each sequence keeps when a row's sequences together may have `room`."""
    import numpy as np

    if len(sizes) == 1:
        return [np.minimum(sizes[0], room)]
    short, long = np.minimum(*sizes), np.maximum(*sizes)
    # The longer one is cut down to the shorter one's length at most; what is still too much is halved.
    long = np.where(short > room, short, np.maximum(short, room - short))
    both = short + long > room
    short, long = np.where(both, room // 2, short), np.where(both, room - room // 2, long)
    fits, swapped = sizes[0] + sizes[1] <= room, sizes[0] > sizes[1]
    first, second = np.where(swapped, long, short), np.where(swapped, short, long)
    return [np.where(fits, sizes[0], first), np.where(fits, sizes[1], second)]
