"""Find stop strings in what is being generated: they may span tokens and begin in the middle of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finesmith.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Stops:
    """The tokens and strings that end a text.

    Strings are sought in the text without special tokens; a special token is stopped at by its id.
    """

    def __init__(
        self, tokens: Sequence[int], strings: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.tokens = frozenset(tokens)
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) if tokenizer is not None else frozenset()
        if self.strings and tokenizer is None:
            raise UserError("stop_strings need the tokenizer that the prompts were made with; give tokenizer")
        for number, string in enumerate(self.strings):
            if not isinstance(string, str) or not string:
                raise UserError(f"stop_strings[{number}] is {string!r}, expected a text of at least one character")
            if tokenizer is not None and string in tokenizer.all_special_tokens:
                raise UserError(
                    f"stop_strings[{number}] is {string!r}, a special token, which texts never show; "
                    f"stop at it with stop_tokens=[{tokenizer.convert_tokens_to_ids(string)}]"
                )
        # A character takes up to four tokens (its bytes); a few more, so that a cut character cannot hide a string.
        self._window = 4 * max(map(len, self.strings), default=0) + 8

    def hit(self, tokens: Sequence[int]) -> bool:
        """Return whether the text of `tokens` holds a stop string, where that without the last token held none."""
        if not self.strings or not tokens or tokens[-1] in self._special:
            return False
        tail: list[int] = []
        for token in reversed(tokens):
            if token not in self._special:
                tail.append(token)
            if len(tail) == self._window:
                break
        if not self._holds(tail[::-1]):
            return False
        return len(tail) < self._window or self._holds(tokens)

    def _holds(self, tokens: Sequence[int]) -> bool:
        text = self._decode(tokens)
        return any(string in text for string in self.strings)

    def text(self, tokens: Sequence[int]) -> str | None:
        """Return the text of `tokens` up to the first stop string; None where no tokenizer is known."""
        if self.tokenizer is None:
            return None
        text = self._decode(tokens)
        places = [text.index(string) for string in self.strings if string in text]
        return text[: min(places)] if places else text

    def _decode(self, tokens: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
