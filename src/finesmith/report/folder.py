"""Read a run folder as it is: finished, running, broken off or copied from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finesmith.errors import RunError
from finesmith.report.format import cut

LONGEST_RECIPE = 100_000


def mapping(value: object) -> dict[str, Any]:
    """Return `value` when it is an object, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def records(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list, else an empty list."""
    return [mapping(item) for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def items(value: object) -> list[Any]:
    """Return `value` when it is a list, else an empty one."""
    return value if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What the files of a run hold; a missing file is an empty value, a damaged one is named in `problems`."""

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    next: dict[str, Any] = field(default_factory=dict)
    baselines: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the folder's own name."""
        return self.path.resolve().name

    @property
    def task(self) -> str:
        """Return the task's name, from whichever file knows it."""
        for source in (self.verdict, self.data, self.run):
            if isinstance(source.get("task"), str):
                return str(source["task"])
        return ""

    @property
    def withheld(self) -> bool:
        """Tell whether the recipe has the data's texts kept out of the folder."""
        return mapping(self.settings.get("output")).get("redact") is True

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return every event of one name, in order."""
        return [record for record in self.events if record.get("event") == event]


def read(path: Path) -> RunFolder:
    """Read every file of the run folder that is there, except the predictions.

    Raises:
        RunError: `path` is not a folder.
    """
    if not path.is_dir():
        raise RunError(f"{cut(path, 300)} is not a run folder; give the folder that `finesmith tune` wrote")
    problems: list[str] = []

    def load(name: str) -> Any:
        content = _text(path / name, problems)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        expected = list if name == "baselines.json" else dict
        if not isinstance(value, expected):
            problems.append(f"{name} is damaged and was left out")
        return value

    recipe = _text(path / "recipe.yaml", problems) or ""
    return RunFolder(
        path=path,
        run=mapping(load("run.json")),
        data=mapping(load("data.json")),
        audit=mapping(load("audit.json")),
        probes=mapping(load("probes.json")),
        examples=mapping(load("examples.json")),
        model=mapping(load("model.json")),
        scores=mapping(load("scores.json")),
        verdict=mapping(load("verdict.json")),
        next=mapping(load("next.json")),
        baselines=tuple(records(load("baselines.json"))),
        events=tuple(_events(path / "events.jsonl", problems)),
        recipe=recipe,
        settings=_settings(recipe, problems),
        problems=tuple(problems),
    )


def _text(path: Path, problems: list[str]) -> str | None:
    """Return a file's text, or None where there is no such file or it cannot be read."""
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
        if path.exists() or path.is_symlink():
            problems.append(f"{path.name} is not an ordinary file and was left out")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    return None


def _events(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    lines = (_text(path, problems) or "").split("\n")
    found: list[dict[str, Any]] = []
    broken = 0
    for position, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            found.append(mapping(json.loads(line)))
        except (ValueError, RecursionError):
            # A process that is writing, or was killed, leaves its last line torn.
            broken += position < len(lines) - 1
    if broken:
        problems.append(f"{broken} damaged lines of events.jsonl were left out")
    return found


def _settings(recipe: str, problems: list[str]) -> dict[str, Any]:
    import yaml

    if len(recipe) > LONGEST_RECIPE:
        problems.append(f"recipe.yaml has more than {LONGEST_RECIPE:,} characters; it is shown as text only")
        return {}
    try:
        return mapping(yaml.safe_load(recipe)) if recipe else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        problems.append("recipe.yaml is not valid YAML; it is shown as text only")
        return {}
