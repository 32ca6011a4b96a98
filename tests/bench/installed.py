"""Virtual environments with some of this one's packages only, which they share."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

_DEPTH = 2
"""Folders that several packages have together, as ``google`` and ``nvidia``, are looked into so far."""


def environment(folder: Path, names: Iterable[str]) -> Path:
    """Make an environment in ``folder`` that has those of the named packages that this one has; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    wanted = {canonicalize_name(name) for name in names}
    owners: dict[Path, set[str]] = defaultdict(set)  # a path and what is above it -> the packages that have it
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"])
        # What `found.files` would make an object of each of, a hundred thousand of them.
        files = [line.partition(",")[0].split("/") for line in (found.read_text("RECORD") or "").splitlines()]
        for path in {tuple(file[:depth]) for file in files for depth in range(1, min(_DEPTH, len(file)) + 1)}:
            if path[0] not in ("..", "__pycache__"):  # of ../../bin the environment has its own
                owners[Path(*path)].add(name)
    here = Path(sysconfig.get_path("purelib"))
    there = folder / here.relative_to(sys.prefix)
    for path, packages in sorted(owners.items()):
        inside_a_link = any((there / parent).is_symlink() for parent in path.parents)
        if not packages & wanted or inside_a_link:
            continue
        if packages <= wanted or len(path.parts) == _DEPTH:
            (there / path).symlink_to(here / path)
        else:
            (there / path).mkdir()
    return folder / "bin" / "python"
