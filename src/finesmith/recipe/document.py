"""Writes docs/recipe.md from the schema: `python -m finesmith.recipe.document > docs/recipe.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from finesmith.recipe.keys import LORA_OPTIONS, Key, keys
from finesmith.recipe.write import flow

_OPENING = """\
# The recipe

<!-- Written by `python -m finesmith.recipe.document > docs/recipe.md`; change the schema, not this page. -->

A recipe is the whole plan of a run in one YAML, TOML or JSON file. Only `data.train` is required:

```yaml
data:
  train: reviews.csv
train:
  learning_rate: 3e-5
```

- `finesmith init reviews.csv > recipe.yaml` writes a recipe with what was inferred from the data, and why.
- `--set key=value` overrides any key and may be repeated: `finesmith tune recipe.yaml --set train.epochs=3 --set
  data.test=test.jsonl`. A value is read as a number, true, false, null or text; `[a, b]` is a list, `{a: 1}` a mapping,
  and quotes make text of anything.
- A path given to `finesmith tune` is a recipe when it ends in `.yaml`, `.yml` or `.toml`, or in `.json` with an object
  whose keys are the sections below; anything else is data, as if it stood under `data.train`.
- A relative path under `data` or in `model.base` is looked for beside the recipe first, then in the current directory.
  Paths in `--set`, and those under `output`, belong to the current directory.
- An unknown key, a value out of its limits, settings that contradict each other and a setting that would change nothing
  are refused, all at once, each with its line. A setting left at its default is never in the way.
- A recipe holds plain values: YAML tags, anchors and aliases, infinite numbers, keys given twice and files over 200 kB
  are refused. `yes`, `no`, `on` and `off` are understood where true or false is expected and are text elsewhere.
"""


def document() -> str:
    """Return the page: one table per section, one row per key."""
    lines = [_OPENING]
    top = [key for key in keys().values() if "." not in key.name]
    lines += ["## At the top\n", *_table([key for key in top if not key.section])]
    for section in (key for key in keys().values() if key.section):
        inner = [k for k in keys().values() if k.name.rpartition(".")[0] == section.name and not k.section]
        lines += [f"## {section.name}\n", f"{section.description}\n", *_table(inner)]
        if section.name == "method":
            lines.append(f"`method.lora` takes {', '.join(f'`{name}`' for name in LORA_OPTIONS)}.\n")
    return "\n".join(lines)


def _table(rows: list[Key]) -> Iterator[str]:
    yield "| key | accepts | default | meaning |"
    yield "|---|---|---|---|"
    for key in rows:
        default = f"`{flow(key.schema['default'])}`" if "default" in key.schema else "required"
        usual = f" For orientation: {key.schema['usual']}." if "usual" in key.schema else ""
        yield f"| `{key.name}` | {_cell(key.accepts)} | {_cell(default)} | {_cell(key.description + usual)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    sys.stdout.write(document())
