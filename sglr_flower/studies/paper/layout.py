"""A table as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table as text; lines of a field are separated by a line break."""

    header: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """The table in Markdown: the first column to the left, the others to the right."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        return "\n".join("| " + " | ".join(field.replace("\n", "<br>") for field in line) + " |" for line in lines)
