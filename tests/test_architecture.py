"""The rooms in docs/architecture.md are those of the package, and imports go from the top of that list downwards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sglr_flower"
APART = {"__init__", "app"}


def rooms() -> dict[str, int]:
    """Module or folder -> the line of the list that it stands in."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = text.split("sglr_flower/\n", 1)[1].split("```", 1)[0]
    names = [re.match(r"  (?! )((?:\w+(?:\.py|/)\s*)+)", line) for line in listed.splitlines()]
    return {
        re.sub(r"\.py|/", "", name): number
        for number, found in enumerate(names)
        for name in (found[1].split() if found else ())
    }


def imports(file: Path) -> Iterator[str]:
    """The rooms that a module imports, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglr_flower":
            parts = str(node.module).split(".")
            yield from parts[1:2] or (alias.name for alias in node.names)


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_listed_and_nothing_else() -> None:
    there = {room(file) for file in PACKAGE.rglob("*.py")}
    assert rooms().keys() == there - APART


def test_imports_go_downwards() -> None:
    place = rooms()
    upwards = {
        f"{file.relative_to(PACKAGE)} imports {other}"
        for file in PACKAGE.rglob("*.py")
        for other in imports(file)
        if room(file) not in APART and other in place and place[other] < place[room(file)]
    }
    assert not upwards
