"""Recipe files read into plain values, with the line of every key. YAML, TOML and JSON.

Nothing in a file can run code or grow: no tags, no anchors or aliases, 200 kB, 1000 keys and 20 levels at most.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finesmith.errors import Problem, RecipeError
from finesmith.recipe.scalars import clip, parse_scalar, show

LARGEST = 200_000
MOST_KEYS = 1000
DEEPEST = 20
TOO_DEEP = f"nested more than {DEEPEST} levels deep; expected sections, keys and values, as docs/recipe.md lists them"
RECIPE_SUFFIXES = (".yaml", ".yml", ".toml")

KeyPath = tuple[str, ...]


@dataclass(slots=True)
class Source:
    """A recipe as written: nested values, the line of each key's path, and what was wrong on the way."""

    file: str | None = None
    tree: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, key: str) -> int | None:
        """Return the line of a dotted key, or of the nearest section around it."""
        path = tuple(key.split("."))
        starts = [(key,), *(path[:end] for end in range(len(path), 0, -1))]
        return next((self.lines[start] for start in starts if start in self.lines), None)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a recipe may not contain."""


class _Composer(yaml.SafeLoader):
    """Builds nodes only: refuses what could run code or grow, and never constructs an object."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            words = "anchors and aliases are not allowed in a recipe; write the value out, or put quotes around it"
            raise _Refused(problem=words, problem_mark=event.start_mark)
        if event.tag is not None:
            words = f"tags such as {show(event.tag)} are not allowed; remove it, or put quotes around the value"
            raise _Refused(problem=words, problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused(problem=TOO_DEEP, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read(path: Path) -> Source:
    """Read a recipe file. Raises RecipeError when it cannot be read or its syntax is wrong."""
    text = _text(path)
    if path.suffix.lower() == ".toml":
        return _toml(str(path), text)
    if path.suffix.lower() == ".json":
        return _json(str(path), text)
    return _yaml(str(path), text)


def parse_value(text: str) -> Any:
    """Return what a value on the command line means: a list, a mapping or quoted text in YAML, else a plain scalar.

    Raises ValueError when a list, a mapping or a quoted text is not finished or not allowed.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return parse_scalar(text)
    source = Source()
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise ValueError(_syntax(error)[0]) from error
    value = _plain(node, (), source)
    if source.problems:
        raise ValueError(source.problems[0].message)
    return value


def is_recipe_json(path: Path, sections: Iterable[str]) -> bool:
    """Tell whether a JSON file holds a recipe rather than data: an object of sections, or one that names data.train."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    try:
        tree = json.loads(_text(path))
    except (ValueError, RecursionError, RecipeError):
        return False  # whatever it is, the reader of data files says what is wrong with it
    if not isinstance(tree, dict) or not tree:
        return False
    # Under a misspelt section too, so that the mistake is told: rows of data would name it in each of them.
    naming = [value for value in tree.values() if isinstance(value, dict) and "train" in value]
    train = naming[0]["train"] if len(naming) == 1 else None
    names_files = isinstance(train, list) and all(isinstance(item, str) for item in train)
    return (
        isinstance(train, str)
        or names_files
        or (tree.keys() <= set(sections) and all(map(_section_like, tree.items())))
    )


def _section_like(item: tuple[str, Any]) -> bool:
    name, value = item
    if name == "data" and isinstance(value, dict):
        return not any(isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in value.values())
    return isinstance(value, str if name == "task" else dict)


def _text(path: Path) -> str:
    def stop(message: str, line: int | None = None) -> RecipeError:
        return RecipeError([Problem("", message, str(path), line)])

    try:
        if not path.is_file():
            raise stop("is a folder, expected a recipe file" if path.is_dir() else "there is no such recipe file")
        if path.stat().st_size > LARGEST:
            raise stop(f"has {path.stat().st_size:,} bytes, expected a recipe of at most {LARGEST:,}")
        raw = path.read_bytes()
    except OSError as error:
        raise stop(f"cannot be read: {error.strerror or error}") from error
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise stop("is not UTF-8 text; save the recipe as UTF-8", line) from error


def _compose(text: str) -> yaml.Node | None:
    loader = _Composer(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _syntax(error: yaml.YAMLError) -> tuple[str, int | None]:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = error.problem or error.context or "unreadable"
        if "\\t" in words:
            words = "a tab where spaces are expected"
        said = words if isinstance(error, _Refused) else f"not valid YAML: {words[:200]}; {_mend(words)}"
        return said, mark.line + 1 if mark else None
    return f"not valid YAML: {str(error).splitlines()[0][:200]}; mend the line", None


def _mend(words: str) -> str:
    """Return what to do about a fault of YAML's syntax."""
    if "tab" in words:
        return "indent with spaces"
    if "mapping values" in words or "start any token" in words:
        return (
            "indent the keys of a section alike, and put quotes around a value that holds a colon or begins with a sign"
        )
    return "mend the line, or put quotes around the value"


def _yaml(file: str, text: str) -> Source:
    source = Source(file)
    _refuse_control_characters(text, file)
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        message, line = _syntax(error)
        raise RecipeError([Problem("", message, file, line)]) from error
    return _with_tree(source, _plain(node, (), source))


def _refuse_control_characters(text: str, file: str) -> None:
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        words = (
            f"not valid YAML: holds the control character U+{ord(found[0]):04X}; remove it, or save the file as UTF-8"
        )
        raise RecipeError([Problem("", words, file, line)])


def _with_tree(source: Source, tree: Any) -> Source:
    if tree is not None and not isinstance(tree, dict):
        raise RecipeError(
            [Problem("", f"holds {show(tree)}, expected sections such as data: and train:", source.file, 1)]
        )
    _require_small(tree, source)
    source.tree = tree or {}
    return source


def _require_small(tree: Any, source: Source) -> None:
    """Refuse more keys or levels than a recipe has: what looks at each of them later may take its time."""
    level, keys, depth = [tree or {}], 0, 0
    while level:
        inner = [each for value in level for each in (value.values() if isinstance(value, dict) else value)]
        keys, depth = keys + sum(len(value) for value in level if isinstance(value, dict)), depth + 1
        level = [value for value in inner if isinstance(value, dict | list)]
        if keys > MOST_KEYS or depth > DEEPEST:
            most = f"more than {MOST_KEYS:,} keys" if keys > MOST_KEYS else f"nested more than {DEEPEST} levels deep"
            raise RecipeError(
                [Problem("", f"{most}; expected sections, keys and values, as docs/recipe.md lists them", source.file)]
            )


def _plain(node: yaml.Node | None, path: KeyPath, source: Source) -> Any:
    """Return a node's value; record the line of each key and every key written twice."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else parse_scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(i)), source) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append(Problem("", "a key is a list or a mapping, expected a word", source.file, line))
            continue
        inner = (*path, key_node.value)
        if key_node.value in values:
            source.problems.append(_twice(".".join(inner), source, inner, line))
            continue
        source.lines[inner] = line
        values[key_node.value] = _plain(value_node, inner, source)
    return values if node is not None else None


def _twice(name: str, source: Source, path: KeyPath, line: int | None) -> Problem:
    first = f" (first on line {source.lines[path]})" if path in source.lines else ""
    return Problem(name, f"{clip(name)} is given twice{first}; keep one", source.file, line)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object before its keys are known to differ."""


def _json(file: str, text: str) -> Source:
    source = Source(file)

    def plain(value: Any, path: KeyPath) -> Any:
        if len(path) > DEEPEST:
            raise RecursionError
        if isinstance(value, _Pairs):
            names = [name for name, _ in value]
            for name in sorted(name for name, times in Counter(names).items() if times > 1):
                source.problems.append(
                    _twice(".".join((*path, name)), source, (*path, name), source.line(".".join(path)))
                )
            return {name: plain(inner, (*path, name)) for name, inner in value}
        return [plain(item, (*path, str(i))) for i, item in enumerate(value)] if isinstance(value, list) else value

    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
        source.lines = _json_lines(text)
        return _with_tree(source, plain(pairs, ()))
    except json.JSONDecodeError as error:
        words = f"not valid JSON: {error.msg}; mend the line, for example its commas and quotation marks"
        raise RecipeError([Problem("", words, file, error.lineno)]) from error
    except ValueError as error:
        words = f"not valid JSON: {str(error)[:100]}; write a number that a computer can hold"
        raise RecipeError([Problem("", words, file)]) from error
    except RecursionError:
        raise RecipeError([Problem("", TOO_DEEP, file)]) from None


def _json_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of each key; JSON is YAML once its tabs are spaces."""
    source = Source()
    try:
        _plain(_compose(text.replace("\t", " ")), (), source)
    except yaml.YAMLError:
        return {}  # the few JSON texts that PyYAML does not read lose their line numbers, nothing else
    return source.lines


_TABLE = re.compile(r"\s*\[\[?\s*([^\]#]+?)\s*\]")
_ENTRY = re.compile(r"\s*([\w.\"'\-\s]+?)\s*=")


def _toml(file: str, text: str) -> Source:
    source = Source(file)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+)", str(error))
        words = f"not valid TOML: {str(error).split(' (at ')[0][:200]}; mend the line, for example its quotation marks"
        raise RecipeError([Problem("", words, file, int(place[1]) if place else None)]) from error
    except (ValueError, RecursionError) as error:
        words = TOO_DEEP if isinstance(error, RecursionError) else f"not valid TOML: {str(error)[:100]}; mend the value"
        raise RecipeError([Problem("", words, file)]) from error
    table: KeyPath = ()
    for line, words in enumerate(text.splitlines(), 1):
        if found := _TABLE.match(words):
            table = _toml_path(found[1])
            source.lines.setdefault(table, line)
        elif found := _ENTRY.match(words):
            path = (*table, *_toml_path(found[1]))
            for end in range(len(table) + 1, len(path) + 1):
                source.lines.setdefault(path[:end], line)
    return _with_tree(source, tree)


def _toml_path(words: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in words.split("."))


def merged(tree: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """Return a copy of the tree with `value` at `path`. Raises TypeError when a plain value stands in the way."""
    head, *rest = path
    copy = dict(tree)
    if not rest:
        copy[head] = value
        return copy
    inside = copy.get(head)
    if inside is not None and not isinstance(inside, Mapping):
        raise TypeError(head)
    copy[head] = merged(inside or {}, tuple(rest), value)
    return copy
