"""The benches, which no test runs whole, ask finesmith and the tests' helpers only for what is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
KNOWN = ("finesmith", "jobs", "language_jobs", "tiny")


def asked_for(tree: ast.Module) -> list[tuple[str, str, int]]:
    """Return each module of ours, a name asked of it, and the line."""
    found, modules = [], dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in KNOWN:
            for alias in node.names:
                found.append((str(node.module), alias.name, node.lineno))
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    # A name that stands for something else elsewhere in the file tells nothing.
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            modules.pop(node.id, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.append((modules[node.value.id], node.attr, node.lineno))
    return found


def there(module: str, name: str) -> bool:
    """Whether a module has the name; what is no module is not looked into."""
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        return True
    if isinstance(owner, ModuleType) and name in vars(owner):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.name)
def test_a_bench_asks_for_what_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    wrong = [f"{path.name}:{line}: {module} has no {name}" for module, name, line in asked_for(tree)
             if not there(module, name)]  # fmt: skip
    assert wrong == []


def test_what_is_not_there_is_seen() -> None:
    tree = ast.parse("from finesmith.train import optimiser\nfrom finesmith.run import Walk\noptimiser.adamw(1)\n")
    missing = [name for module, name, _ in asked_for(tree) if not there(module, name)]
    assert missing == ["Walk", "adamw"]
