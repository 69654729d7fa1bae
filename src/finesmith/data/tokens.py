"""Text to token ids, once: ragged arrays, cached on disk by content and memory-mapped on reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data.chunks import Chunk, chunks, engine_of
from finesmith.data.token_cache import Column, load_cached, open_build
from finesmith.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers
    from transformers import PreTrainedTokenizerBase

HASHED_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N rows laid end to end; row i is `tokens[offsets[i]:offsets[i + 1]]`.

    tokens: int32 [T]; offsets: int64 [N + 1]; segments: uint8 [T] token type ids, or None where the rows have no pair
    or the model reads none; original_lengths: int32 [N] tokens before truncation. The arrays may be memory-mapped.
    words (white-space), characters and unknown (unknown tokens) count the whole rows, before truncation; special is
    the number of tokens that the tokenizer's template adds to each row. cached says that nothing was tokenised;
    refused, why the arrays could not be kept in the cache.
    """

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.uint8] | None
    original_lengths: npt.NDArray[np.int32]
    words: int
    characters: int
    unknown: int
    special: int
    cached: bool = False
    refused: str = ""

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    def told(self) -> str:
        """Return in a sentence where the tokens come from and whether they are kept."""
        if self.cached:
            return "tokens taken from the cache"
        return "texts tokenised" + (f"; the cache cannot keep them: {self.refused}" if self.refused else "")

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the tokens in each row after truncation, int64 [N]."""
        import numpy as np

        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """Return the token ids of one row, counted from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def summary(self, *, bins: int = 20) -> dict[str, Any]:
        """Return plain figures: fertility, unknown_rate, lengths, truncation and a histogram of original lengths.

        fertility is tokens per white-space word, and unknown_rate the share of unknown tokens, both before truncation
        and without the template's own tokens. The histogram has at most `bins` bins of equal width, bounds inclusive.
        """
        import numpy as np

        content = int(self.original_lengths.sum(dtype=np.int64)) - self.special * len(self)
        lengths = self.lengths()
        truncated = int((self.original_lengths > lengths).sum())
        return {
            "rows": len(self),
            "tokens": int(self.offsets[-1]),
            "words": self.words,
            "fertility": content / self.words if self.words else 0.0,
            "unknown_rate": self.unknown / content if content else 0.0,
            "mean_length": float(lengths.mean()) if len(self) else 0.0,
            "max_length": int(lengths.max()) if len(self) else 0,
            "longest_original": int(self.original_lengths.max()) if len(self) else 0,
            "truncated_rows": truncated,
            "truncated_share": truncated / len(self) if len(self) else 0.0,
            "histogram": _histogram(self.original_lengths, bins),
        }


def tokenize(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    cache: Path | None,
) -> Tokens:
    """Tokenise every row as `tokenizer(text, pair, truncation=True, max_length=max_length)` would.

    Rows keep their order. Pairs lose tokens from the longer side first. `max_length=None` cuts nothing. The tokenizer's
    own padding and truncation settings are neither used nor changed. With `cache`, a folder, the arrays are kept there
    under a name made from the texts, the tokenizer's content and `max_length`, and reused when all of these are equal.

    Raises:
        DataError: `pairs` is of another length than `texts`, or a text is not valid Unicode.
        UserError: `max_length` leaves no room beside the template's own tokens.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(pairs)} pair texts; every row needs one of each")
    special = int(tokenizer.num_special_tokens_to_add(pair=pairs is not None))
    if max_length is not None and max_length <= special:
        raise UserError(
            f"the maximum length is {max_length} tokens, of which this tokenizer's own special tokens take {special}; "
            f"expected at least {special + 1}, a usual value is 128 to 512"
        )
    engine = engine_of(tokenizer)
    segmented = pairs is not None and "token_type_ids" in tokenizer.model_input_names
    key = _key(texts, pairs, tokenizer, engine, max_length)
    if cache is not None and (found := load_cached(cache, key)) is not None:
        return _assemble(*found, cached=True)
    with open_build(cache, key) as build:
        tokens, offsets = build.column("tokens", "<i4"), build.column("offsets", "<i8")
        originals = build.column("original_lengths", "<i4")
        segments = build.column("segments", "|u1") if segmented else None
        rows = chunks(texts, pairs, tokenizer, engine, max_length=max_length, segmented=segmented)
        characters = sum(sum(map(len, column)) for column in (texts, pairs or ()))
        counts = {
            "special": special,
            "characters": characters,
            **_collect(rows, tokens, segments, offsets, originals),
        }
        arrays = build.publish(counts)
    return _assemble(arrays, counts, cached=False, refused=build.refused)


def _assemble(
    arrays: Mapping[str, npt.NDArray[Any]], counts: Mapping[str, int], *, cached: bool, refused: str = ""
) -> Tokens:
    return Tokens(
        tokens=arrays["tokens"],
        offsets=arrays["offsets"],
        segments=arrays.get("segments"),
        original_lengths=arrays["original_lengths"],
        words=counts["words"],
        characters=counts["characters"],
        unknown=counts["unknown"],
        special=counts["special"],
        cached=cached,
        refused=refused,
    )


def _collect(
    rows: Iterator[Chunk], tokens: Column, segments: Column | None, offsets: Column, originals: Column
) -> dict[str, int]:
    """Append every chunk to the columns; return the numbers of unknown tokens and of words."""
    import numpy as np

    end = 0
    counts = {"unknown": 0, "words": 0}
    offsets.append(np.zeros(1, np.int64))
    for chunk in rows:
        tokens.append(chunk.tokens)
        offsets.append(end + np.cumsum(chunk.lengths))
        end += chunk.tokens.size
        originals.append(chunk.originals)
        if segments is not None and chunk.segments is not None:
            segments.append(chunk.segments)
        counts["unknown"] += chunk.unknown
        counts["words"] += chunk.words
    return counts


def _key(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    engine: tokenizers.Tokenizer | None,
    max_length: int | None,
) -> str:
    """Return a SHA-256 over everything that the arrays depend on."""
    import hashlib
    import json

    import numpy as np
    import tokenizers

    if engine is None:
        import transformers

        content = json.dumps([sorted(tokenizer.get_vocab().items()), repr(sorted(tokenizer.init_kwargs.items()))])
        engine_version = transformers.__version__
    else:
        content, engine_version = engine.to_str(), tokenizers.__version__
    settings: list[Any] = [type(tokenizer).__name__, engine_version, max_length, tokenizer.truncation_side]
    settings += [tokenizer.split_special_tokens, tokenizer.model_input_names, pairs is not None, len(texts)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(content.encode())
    for column in (texts, pairs or ()):
        for start in range(0, len(column), HASHED_ROWS):
            rows = column[start : start + HASHED_ROWS]
            digest.update(np.fromiter(map(len, rows), "<i8", len(rows)).tobytes())
            try:
                digest.update("".join(rows).encode())
            except UnicodeEncodeError as error:
                raise _not_unicode(rows, start) from error
    return digest.hexdigest()


def _not_unicode(rows: Sequence[str], start: int) -> DataError:
    bad = next(position for position, row in enumerate(rows) if any("\ud800" <= letter <= "\udfff" for letter in row))
    return DataError(
        f"text {start + bad + 1} of those to tokenise holds half of a character (a lone surrogate): "
        f"{ascii(rows[bad])[:80]}; expected valid Unicode; write the file again as UTF-8 or drop the row"
    )


def _histogram(lengths: npt.NDArray[np.int32], bins: int) -> list[dict[str, int]]:
    import numpy as np

    if not lengths.size:
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // bins)
    rows = np.bincount((lengths - low) // width)
    return [
        {"low": low + width * place, "high": low + width * (place + 1) - 1, "rows": int(count)}
        for place, count in enumerate(rows)
    ]
