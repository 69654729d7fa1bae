"""The model card of a merged model: that of the adapter, with another way to load it and the proof."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finesmith.report.card import markdown

HEADING = "## How to load it"
_SECTION = re.compile(rf"^{HEADING}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LIBRARY = re.compile(r"\A(---\n(?:(?!---).*\n)*?)library_name: .*\n")

_TRANSFORMERS = """\
```python
from transformers import {loads_with}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/model")
model = {loads_with}.from_pretrained("path/to/model")
```
"""
_SENTENCE_TRANSFORMERS = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/model")
```
"""
_PROOF = """\
An adapter ({method}) was merged into its base model, in {dtype}. On {compared} the outputs of this model differ from
those of the adapter on its base by at most {gap:.1e} of the largest one, where the adapter itself moves them by
{moved:.1e}.
"""


def merged_card(card: str, facts: Mapping[str, Any], *, name: str, sentence_transformers: bool) -> str:
    """Return the card of a merged model, made from the adapter's `card`, which people may have written on, or from
    nothing; `facts` are those of the merge.
    """  # fmt: skip
    how = _SENTENCE_TRANSFORMERS if sentence_transformers else _TRANSFORMERS
    section = f"{HEADING}\n\n{how.format(**facts)}\n{_PROOF.format(**facts)}\n"
    library = "sentence-transformers" if sentence_transformers else "transformers"
    if not card.strip():
        return f"---\nlibrary_name: {library}\ntags:\n- finesmith\n---\n\n# {markdown(name)}\n\n{section}"
    card = _LIBRARY.sub(lambda found: f"{found[1]}library_name: {library}\n", card)
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: section, card, count=1)
    return f"{card.rstrip()}\n\n{section}"
