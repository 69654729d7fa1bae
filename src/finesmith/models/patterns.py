"""Tell regular expressions that could take for ever from those that cannot."""

from __future__ import annotations

import re

LONGEST = 20_000
MOST_REPEATS = 40
# For patterns over the names of a model's modules, of some sixty characters each.
NAME_REPEATS = 4

_ESCAPE = re.compile(r"\\(?:[pPxu]\{[^}]*\}|.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\[\]]*\]")
_REPEAT = re.compile(r"[*+]|\{\d*,\d*\}|\{\d{2,}\}")


def slow(pattern: str, *, repeats: int = MOST_REPEATS) -> bool:
    """Say whether a pattern repeats a group that itself repeats or chooses: such may try exponentially many ways.

    So does one with more than `repeats` repetitions, which multiply where they follow each other. Errs on the side of
    yes: `(a|b)+` is quick but counts as slow. `.*\\.(query|value)` is fine.
    """
    if len(pattern) > LONGEST:
        return True
    bare = _ESCAPE.sub("x", pattern)
    while (inner := _CLASS.sub("x", bare)) != bare:
        bare = inner
    if len(_REPEAT.findall(bare)) > repeats:
        return True
    open_groups: list[bool] = []
    for position, character in enumerate(bare):
        if character == "(":
            open_groups.append(False)
        elif character == ")" and open_groups:
            restless = open_groups.pop()
            repeated = _REPEAT.match(bare, position + 1) is not None
            if restless and repeated:
                return True
            if open_groups and (restless or repeated):
                open_groups[-1] = True
        elif open_groups and (character == "|" or _REPEAT.match(bare, position)):
            open_groups[-1] = True
    return False
