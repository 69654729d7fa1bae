"""What a run writes down must not say whose machine it ran on: home folders become ~, secrets become their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

# A variable of such a name holds a secret; shorter values are switches and numbers.
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY|APIKEY|AUTH|PAT)(_ID|_VALUE)?$", re.IGNORECASE
)
_SHORTEST_SECRET = 8
# Tokens by the form that their makers give them, what follows Bearer, and a name with a password in an address.
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abprs]-|pypi-|AKIA)[A-Za-z0-9_-]{12,}"
    r"|(?<=Bearer )[^\s'\"]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def discreet(text: str) -> str:
    """Return `text` with the home folder as ~ and without the values of secret environment variables and tokens."""
    secrets = tuple(
        (value, name)
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)
    )
    return _without(text, os.path.expanduser("~"), secrets)  # noqa: PTH111 - Path.home raises where there is none


def discreet_values(value: Any) -> Any:
    """Return plain values with every text in them made discreet."""
    if isinstance(value, str):
        return discreet(value)
    if isinstance(value, Mapping):
        return {key: discreet_values(inner) for key, inner in value.items()}
    return [discreet_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def _without(text: str, home: str, secrets: tuple[tuple[str, str], ...]) -> str:
    for value, name in secrets:
        if value in text:
            text = text.replace(value, f"[{name}]")
    text = _TOKEN.sub("[token]", text)
    pattern = _homes(home)
    return text if pattern is None else pattern.sub("~", text)


@lru_cache(maxsize=8)
def _homes(home: str) -> re.Pattern[str] | None:
    """Return the pattern of a home folder as it is called and as it is, or None where it is none of one's own."""
    names = sorted({home.rstrip("/\\"), os.path.realpath(home)}, key=len, reverse=True)
    own = [re.escape(name) for name in names if len(Path(name).parts) > 1]
    return re.compile(rf"(?<![\w.~-])(?:{'|'.join(own)})(?![\w-]|\.\w)") if own else None
