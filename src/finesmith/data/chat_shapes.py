"""Render conversations of one shape without running the template for each.

Two conversations have the same shape when the same roles speak in the same order and neither has more than texts. A
template is run once a shape, on stand-ins that notice when it looks into one. Where it only writes them, or strips
blanks from their ends, it would write every conversation of that shape in the same way: fixed pieces, and the texts
between them. What it asks of a text (`"</think>" in content`) is answered with no and kept as a condition: where a row
answers yes to one of them, the template is run on that row itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import contains, eq
from typing import Any

from finesmith.data.chat import Conversation
from finesmith.data.chat_sandbox import LOOKING, ObservedError, Opaque, TemplateRefusedError, looked
from finesmith.data.chat_template import ChatTemplate, Cut, cut

_OPEN, _CLOSE = "\ue0f1", "\ue0f2"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_MOST_SHAPES = 500


@dataclass(frozen=True, slots=True)
class _Stripped:
    """The text of turn `turn`, after blanks (None: all kinds) were taken from its ends."""

    turn: int
    strips: tuple[tuple[Callable[[str, str | None], str], str | None], ...] = ()

    def of(self, texts: Sequence[str]) -> str:
        text = texts[self.turn]
        for strip, blanks in self.strips:
            text = strip(text, blanks)
        return text


_ASKS: Mapping[str, Callable[[str, str], bool]] = {
    "in": contains,
    "eq": eq,
    "startswith": str.startswith,
    "endswith": str.endswith,
}
Piece = str | _Stripped


class _Trace:
    """What a template did with the texts of one conversation."""

    def __init__(self) -> None:
        self.said: list[_Stripped] = []
        self.asked: set[tuple[_Stripped, str, str]] = set()

    def stand_in(self, said: _Stripped) -> Opaque:
        self.said.append(said)
        made = _StandIn(f"{_OPEN}{len(self.said) - 1}{_CLOSE}")
        made.trace, made.said = self, said
        return made

    def pieces(self, text: str) -> list[Piece]:
        """Cut what the template wrote into its own words and the texts."""
        parts = _MARK.split(text)
        found: list[Piece] = [self.said[int(part)] if place % 2 else part for place, part in enumerate(parts)]
        return [piece for piece in found if piece != ""]


class _Blind(Opaque):
    """A stand-in at which nothing may be looked at all."""


for _name in LOOKING:
    setattr(_Blind, _name, looked)


class _StandIn(_Blind):
    """Stands for a text that is not blank; answers no to questions that are kept, and can be stripped of blanks."""

    trace: _Trace
    said: _Stripped

    def _stripped(self, strip: Callable[[str, str | None], str], blanks: object) -> Opaque:
        if not (blanks is None or (type(blanks) is str and (blanks == "" or blanks.isspace()))):
            raise ObservedError
        return self.trace.stand_in(_Stripped(self.said.turn, (*self.said.strips, (strip, blanks))))

    def _ask(self, kind: str, asked: object) -> bool:
        if type(asked) is not str:
            raise ObservedError
        self.trace.asked.add((self.said, kind, asked))
        return False

    def strip(self, blanks: Any = None, /) -> str:
        return self._stripped(str.strip, blanks)

    def lstrip(self, blanks: Any = None, /) -> str:
        return self._stripped(str.lstrip, blanks)

    def rstrip(self, blanks: Any = None, /) -> str:
        return self._stripped(str.rstrip, blanks)

    def startswith(self, asked: Any, /) -> bool:  # type: ignore[override]
        return self._ask("startswith", asked)

    def endswith(self, asked: Any, /) -> bool:  # type: ignore[override]
        return self._ask("endswith", asked)

    def split(self, parting: Any, /) -> list[str]:  # type: ignore[override]
        self._ask("in", parting)
        return [self]

    def __contains__(self, asked: Any, /) -> bool:
        return self._ask("in", asked)

    def __eq__(self, asked: object, /) -> bool:
        return self._ask("eq", asked)

    def __ne__(self, asked: object, /) -> bool:
        return not self._ask("eq", asked)

    __hash__ = looked


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a template writes for one shape.

    Pieces are written end to end, but at each of `places` stands the one of `said` in its stead. An answer's beginning
    and end are (piece, characters into it); `asked` are questions that must be answered no, about one of `said` each.
    """

    said: tuple[_Stripped, ...]
    pieces: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    answers: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    asked: tuple[tuple[Callable[[str, str], bool], int, str], ...]

    def cut(self, texts: Sequence[str]) -> Cut | None:
        """Return a conversation of these texts as the template would write it; None where it must be asked itself."""
        said = [each.of(texts) for each in self.said]
        for asks, number, asked in self.asked:
            if asks(said[number], asked):
                return None
        written = list(self.pieces)
        for place, number in self.places:
            written[place] = said[number]
        ends = [0, *accumulate(map(len, written))]
        spans = [(ends[at] + more, ends[to] + further) for (at, more), (to, further) in self.answers]
        return Cut("".join(written), tuple(spans))


class Shapes:
    """Renders conversations as `chat_template.cut` does, running the template once a shape where that is enough."""

    def __init__(self, template: ChatTemplate, *, last: bool) -> None:
        self._template, self._last = template, last
        self._known: dict[tuple[tuple[str, bool], ...], _Shape | None] = {}

    def cut(self, conversation: Conversation) -> Cut:
        """Render a conversation and find its answers.

        Raises:
            TemplateRefusedError: see `chat_template.cut`.
        """
        texts = [turn.content for turn in conversation.turns if turn.is_plain()]
        found = None
        if len(texts) == len(conversation.turns) and not conversation.tools:
            key = tuple([(turn.role, turn.trained) for turn in conversation.turns])
            if key not in self._known:
                if len(self._known) >= _MOST_SHAPES:
                    self._known.clear()
                self._known[key] = _shape(conversation, self._template, self._last)
            shape = self._known[key]
            found = None if shape is None else shape.cut(texts)
        return cut(conversation, self._template, last=self._last) if found is None else found


def _shape(conversation: Conversation, template: ChatTemplate, last: bool) -> _Shape | None:
    """Run a template on stand-ins; None where it looks into them, refuses, or does not begin answers where it asks."""
    trace = _Trace()
    messages = [
        {"role": turn.role, "content": trace.stand_in(_Stripped(place))}
        for place, turn in enumerate(conversation.turns)
    ]
    answers = [place for place, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    trained = [place for place in answers if conversation.turns[place].trained]
    try:
        pieces = trace.pieces(template.text(messages))
        spans = []
        bound = (len(pieces), 0)
        for place in reversed(answers):
            if last and place < trained[-1]:
                break
            start = _after(trace.pieces(template.text(messages[:place], ask=True)), pieces)
            if start is None:
                return None
            if conversation.turns[place].trained:
                end = _end(pieces, start, bound, place, template.stops)
                if end is None:
                    return None
                spans.append((start, end))
            bound = start
    except (ObservedError, TemplateRefusedError):
        return None
    # A stop token that an answer holds itself is told from its own by counting, which the template's own cut does.
    trace.asked |= {(_Stripped(place), "in", stop) for place in trained for stop in template.stops}
    said = dict.fromkeys(
        [*(piece for piece in pieces if not isinstance(piece, str)), *(about for about, _, _ in trace.asked)]
    )
    numbers = {each: number for number, each in enumerate(said)}
    return _Shape(
        tuple(said),
        tuple(piece if isinstance(piece, str) else "" for piece in pieces),
        tuple((place, numbers[piece]) for place, piece in enumerate(pieces) if not isinstance(piece, str)),
        tuple(reversed(spans)),
        tuple((_ASKS[kind], numbers[about], asked) for about, kind, asked in trace.asked),
    )


def _after(prompt: Sequence[Piece], pieces: Sequence[Piece]) -> tuple[int, int] | None:
    """Return the place in the pieces where a prompt ends, or None where they do not begin with it."""
    if not prompt or len(prompt) > len(pieces) or list(prompt[:-1]) != list(pieces[: len(prompt) - 1]):
        return None
    at, mine, its = len(prompt) - 1, prompt[-1], pieces[len(prompt) - 1]
    if mine == its:
        return at + 1, 0
    return (at, len(mine)) if isinstance(mine, str) and isinstance(its, str) and its.startswith(mine) else None


def _end(
    pieces: Sequence[Piece], start: tuple[int, int], bound: tuple[int, int], turn: int, stops: Sequence[str]
) -> tuple[int, int] | None:
    """Return where the first stop token after an answer's text ends; None where that is not plain."""
    said = [
        place
        for place in range(start[0], min(bound[0] + 1, len(pieces)))
        if not isinstance(pieces[place], str) and (place, 0) < bound
    ]
    if not said:
        return None
    own = said[0]
    answer = pieces[own]
    if not isinstance(answer, _Stripped) or answer.turn != turn or own + 1 >= len(pieces):
        return None
    before = "".join(piece for piece in pieces[start[0] : own] if isinstance(piece, str))[start[1] :]
    after = pieces[own + 1]
    if any(stop in before for stop in stops) or not isinstance(after, str):
        return None
    ends = [found + len(stop) for stop in stops if (found := after.find(stop)) >= 0]
    end = (own + 1, min(ends)) if ends else None
    return end if end is not None and end <= bound else None
