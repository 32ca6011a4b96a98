"""What the suite says at its end: for each fault how often it was injected, how often survived, and how fast."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPORT = "SGLR_FAULT_REPORT"
"""Environment: the JSON file that the table is added to."""


@dataclass
class Line:
    """One kind of fault.

    Attributes
    ----------
    fault : str
        As the table names it.
    injected, survived : int
        How often it struck, and how often the run went on or ended as specified.
    seconds : list[float]
        Each time's seconds to recover: until the server went on; of an ending, until no ClientApp was left.
    returned : list[float]
        Seconds until the node took part again, where the run lasted that long.
    wrong : list[str]
        What was not as specified.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    seconds: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def count(self, wrong: Sequence[str], seconds: float | None, returned: float | None = None) -> None:
        """Add one that was injected."""
        self.injected += 1
        self.survived += not wrong
        self.wrong += wrong
        self.seconds += [seconds] if seconds is not None else []
        self.returned += [returned] if returned is not None else []


def report(lines: Sequence[Line]) -> None:
    """Print the table, and add it to the file that `REPORT` names, replacing lines of the same faults there."""
    table = Table("fault", "injected", "survived", "seconds: median", "max", "back after: median", "max")
    for line in lines:
        table.add_row(
            line.fault, str(line.injected), str(line.survived), *_figures(line.seconds), *_figures(line.returned)
        )
    Console(width=100).print(table)
    if path := os.environ.get(REPORT):
        file = Path(path)
        kept = {entry["fault"]: entry for entry in (json.loads(file.read_text()) if file.exists() else [])}
        kept |= {line.fault: asdict(line) for line in lines}
        file.write_text(json.dumps(list(kept.values()), indent=2) + "\n")


def _figures(seconds: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("", "")
