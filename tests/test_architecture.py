"""The package's folders are its rooms: imports go from each to those before it, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sglr_flower"
LEAVES = ("choices", "errors", "files", "imports", "seeds")
ROOMS = ("data", "models", "split", "exchange", "run", "federation", "flower", "studies", "cli")
APART = "app"
"""Of a built package: Flower's app beside it, which a checkout has in its root."""


def modules() -> dict[str, Path]:
    """Dotted name within the package -> file."""
    files = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] != APART]
    parts = {file: file.relative_to(PACKAGE).with_suffix("").parts for file in files}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): file for file, names in parts.items()}


def imports(file: Path, known: dict[str, Path], *, inside: bool) -> Iterator[str]:
    """The modules of the package that one imports; ``inside``: those too that a function of it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglr_flower":
            base = ".".join(str(node.module).split(".")[1:])
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                yield name if name in known else base


def height(module: str) -> int:
    """Where a module's room stands; all leaves stand on the ground."""
    room = module.split(".")[0]
    return -1 if room in LEAVES else ROOMS.index(room)


def test_there_are_rooms_and_leaves_and_nothing_else() -> None:
    there = {entry.name.removesuffix(".py") for entry in PACKAGE.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    assert there - {"__init__", "__pycache__", APART} == {*LEAVES, *ROOMS}


def test_imports_go_one_way() -> None:
    known = modules()
    upwards = {
        f"{module} imports {other}"
        for module, file in known.items()
        if module
        for other in imports(file, known, inside=True)
        if other and height(other) > height(module)
    }
    assert not upwards


def test_no_files_import_each_other_in_a_circle() -> None:
    known = modules()
    graph = {module: set(imports(file, known, inside=False)) - {module, ""} for module, file in known.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_rooms_are_described() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [
        line.split()[0] for line in text.split("sglr_flower/\n", 1)[1].split("```", 1)[0].splitlines() if line[2] != " "
    ]
    assert [name.removesuffix("/") for name in listed if name.endswith("/")] == list(ROOMS)
