"""Probes of rows of tokens: what is supervised, how rows begin and end, and what truncation left of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from finesmith.data.supervised import UNSUPERVISED
from finesmith.guards.preflight import Probed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.supervised import Supervised
    from finesmith.tasks.corpus import Answers

    Ints = npt.NDArray[np.int64]

# A fault of a tokenizer or a template is in all rows; what a few rows say by themselves is not one.
FEW = 0.1
# So many of the answers may be lost to truncation before it is no longer what anyone means.
MOST_LOST = 0.5
SHOWN = 3
SHOWN_CHARACTERS = 200


def look_at_rows(
    rows: Supervised,
    answers: Answers | None,
    *,
    causal: bool,
    beginning: int | None,
    decode: Callable[[Sequence[int]], str] | None,
    two_part: bool = False,
    told: bool = True,
) -> Iterator[Probed]:
    """Run every probe of this file that applies; `answers`: what is known of rows that are a prompt and an answer.

    two_part: rows are of an encoder-decoder, whose targets are not shifted, for the decoder is fed with them later.
    told: whether tokens have targets; rows that are only compared with each other have none.
    """
    if not told:
        yield one_beginning(rows.tokens, rows.offsets, beginning)
        return
    yield supervised_share(rows, whole=answers is None or answers.whole, decode=decode)
    if causal or two_part:
        yield shifted_once(rows, by=int(causal))
    yield one_beginning(rows.tokens, rows.offsets, beginning)
    if answers is None:
        return
    yield stop_supervised(rows, answers.stops, cut=answers.cut, whole=answers.whole)
    if answers.prompts:
        firsts = [rows.row(place)[0].tolist() for place in answers.prompts]
        yield prompts_agree(firsts, list(answers.prompts.values()))
    if answers.lost or not answers.whole:
        yield answers_survive(rows, answers.lost, len(answers.cut), bare=0, others=answers.others)


def supervised_share(rows: Supervised, *, whole: bool, decode: Callable[[Sequence[int]], str] | None = None) -> Probed:
    """Check that something is supervised, and, unless `whole` rows are meant to be, that not everything is.

    Of each row every token but the first can be predicted. With `decode` the spans of a few rows are shown.
    """
    told = int((rows.targets != UNSUPERVISED).sum())
    able = max(1, int(rows.targets.size) - len(rows))
    everything = told >= able and not whole
    evidence = f"{told:,} of {able:,} tokens that can be predicted are supervised ({told / able:.1%})"
    return Probed(
        "supervised share",
        told > 0 and not everything,
        evidence + ("; the prompts too" if everything else ""),
        "Nothing but the answers should be supervised, and they all: check roles, template and data.max_length",
        "" if decode is None else " | ".join(_spans(rows, row, decode) for row in range(min(SHOWN, len(rows)))),
    )


def _spans(rows: Supervised, row: int, decode: Callable[[Sequence[int]], str]) -> str:
    """Return what is supervised in a row as text, its spans apart."""
    import numpy as np

    _, targets = rows.row(row)
    on = targets != UNSUPERVISED
    cuts = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8)))
    spans = [decode([int(i) for i in targets[a:b]]) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    said = " … ".join(spans)
    return said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS]}…"


def shifted_once(rows: Supervised, *, by: int = 1) -> Probed:
    """Check that what a model is to predict is the token of the same row `by` places on: 0 or 1."""
    import numpy as np

    on = rows.targets != UNSUPERVISED
    following = rows.tokens
    if by:
        following = np.append(rows.tokens[1:], -1)
        following[rows.offsets[1:][rows.lengths() > 0] - 1] = -1
    right, asked = int((rows.targets[on] == following[on]).sum()), int(on.sum())
    return Probed(
        "shift",
        right == asked,
        f"{right:,} of {asked:,} targets are {'the next token of their row' if by else 'the tokens of their answer'}",
        "Targets must be shifted by one token, once: by the data or by the model, not by both",
    )


def stop_supervised(
    rows: Supervised, stops: Collection[int], *, cut: Collection[int] = (), whole: bool = False
) -> Probed:
    """Check that a stop token ends every supervised span (of a `whole` row: occurs in it); rows in `cut` lack theirs.

    stops: the tokens at which generation will stop.
    """
    import numpy as np

    on = rows.targets != UNSUPERVISED
    is_stop = np.isin(rows.targets, np.fromiter(stops, np.int64, len(stops)))
    ends = on & ~np.concatenate([on[1:], [False]])
    row = np.repeat(np.arange(len(rows)), rows.lengths())
    if whole:
        lacking = sorted(set(row[on].tolist()) - set(row[on & is_stop].tolist()) - set(cut))
        spans = len(set(row[on].tolist()) - set(cut))
    else:
        open_rows = ~np.isin(row, np.fromiter(cut, np.int64, len(cut)))
        lacking = row[ends & ~is_stop & open_rows].tolist()
        spans = int((ends & open_rows).sum())
    return Probed(
        "stop token",
        bool(stops) and not lacking,
        f"{spans - len(lacking):,} of {spans:,} supervised answers end with a stop token"
        + (f"; not in rows {', '.join(str(place) for place in lacking[:SHOWN])}" if lacking else "")
        + ("" if stops else "; generation has none to stop at"),
        "The template must end an answer with the tokenizer's end-of-text token, which must not be taken for padding",
    )


def one_beginning(tokens: npt.NDArray[np.integer], offsets: Ints, beginning: int | None) -> Probed:
    """Check that rows do not begin with two beginning-of-text tokens; `beginning` is None where there is none."""
    name = "beginning of text"
    if beginning is None:
        return Probed(name, True, "the tokenizer has no beginning-of-text token")
    starts, ends = offsets[:-1], offsets[1:]
    starts = starts[ends - starts > 1]
    twice = int(((tokens[starts] == beginning) & (tokens[starts + 1] == beginning)).sum())
    return Probed(
        name,
        twice <= FEW * max(1, len(starts)),
        f"{twice:,} of {len(starts):,} rows begin with it twice",
        "The texts, the template or the tokenizer write it as well; leave it to one of them",
    )


def prompts_agree(trained: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]) -> Probed:
    """Check that each row begins with the very ids that generation will be given.

    trained: the ids of rows; asked: those of their prompts as inference makes them.
    """
    odd = [
        place
        for place, (row, prompt) in enumerate(zip(trained, asked, strict=True))
        if list(row[: len(prompt)]) != list(prompt)
    ]
    return Probed(
        "inference prompt",
        not odd,
        f"{len(asked) - len(odd):,} of {len(asked):,} rows begin as inference will ask"
        + (f"; otherwise in rows {', '.join(str(place) for place in odd[:SHOWN])}" if odd else ""),
        "Training and inference must use one template and one tokenizer, with the same special tokens",
    )


def answers_survive(rows: Supervised, lost: int, cut: int, *, bare: int | None = None, others: int = 0) -> Probed:
    """Check that truncation left the answers.

    lost: rows of any split left out because their answer did not fit; cut: rows that are kept with a part of their
    answer; bare: how many of the kept rows may have no target at all, None where that is what a row may be; others: how
    many rows the other splits hold.
    """
    import numpy as np

    row = np.repeat(np.arange(len(rows)), rows.lengths())
    told = np.bincount(row[rows.targets != UNSUPERVISED], minlength=len(rows))
    empty = int((told == 0).sum())
    whole = len(rows) + others + lost
    said = [f"{whole - lost - cut:,} of {whole:,} rows keep their answer whole"]
    said += [f"{lost:,} left out"] if lost else []
    said += [f"{cut:,} cut"] if cut else []
    said += [f"{empty:,} without any target"] if empty else []
    return Probed(
        "answers survive",
        len(rows) > 0 and empty < len(rows) and lost + cut <= MOST_LOST * whole and (bare is None or empty <= bare),
        "; ".join(said),
        "Raise data.max_length, or shorten the prompts",
    )
