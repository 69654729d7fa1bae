"""The house stands: imports go down only, rooms on a floor do not know each other, heavy imports wait."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import finesmith

PACKAGE = Path(finesmith.__file__).parent

FLOORS = {
    "discreet": -1,
    "__init__": 0, "errors": 0, "types": 0, "aside": 1,
    "recipe": 1, "run": 1,
    "data": 2, "models": 2, "train": 2, "evaluate": 2,
    "tasks": 3, "privacy": 3, "report": 3,
    "guards": 4,
    "workflows": 5,
    "search": 6, "deploy": 6,
    "api": 7, "console": 7, "cli": 7, "__main__": 8,
}  # fmt: skip

# Siblings that may know each other.
ALLOWED = {("__init__", "api"), ("cli", "console"), ("cli", "api")}

# Rooms that may see a Recipe.
RECIPE_READERS = {"recipe", "workflows", "search", "cli", "api"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports() -> list[tuple[str, str, str]]:
    """Every import of a finesmith module: (room, room imported, place)."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finesmith" and not node.level:
                parts = (node.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name.split(".")[1] for a in node.names if a.name.startswith("finesmith.")]
            for name in names:
                target = name if name in FLOORS else "__init__"
                found.append((room_of(path), target, f"{path.relative_to(PACKAGE)}:{node.lineno}"))
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(FLOORS)


def test_imports_go_down() -> None:
    wrong = [
        f"{place}: {room} imports {target}"
        for room, target, place in imports()
        if room != target and FLOORS[target] >= FLOORS[room] and target != "__init__" and (room, target) not in ALLOWED
    ]
    assert wrong == []


def test_only_the_upper_floors_see_a_recipe() -> None:
    wrong = [place for room, target, place in imports() if target == "recipe" and room not in RECIPE_READERS]
    assert wrong == []


def test_the_walk_sees_imports_inside_functions() -> None:
    assert any(room == "workflows" and target == "models" for room, target, _ in imports())


def test_importing_finesmith_and_its_command_line_is_light() -> None:
    script = (
        "import sys, finesmith, finesmith.cli; "
        "heavy = ('torch', 'transformers', 'numpy', 'pyarrow', 'sklearn', 'pydantic', 'yaml'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_files_and_functions_stay_small() -> None:
    long_files = [str(p) for p in PACKAGE.rglob("*.py") if p.read_text("utf-8").count("\n") > 480]
    assert long_files == []
    story = (PACKAGE / "workflows" / "tune.py").read_text("utf-8")
    assert story.count("\n") <= 200
