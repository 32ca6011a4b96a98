"""What made a run: which code, on what machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import sglr_flower
from sglr_flower.run.machine import processor

_PACKAGE = Path(sglr_flower.__file__).resolve().parent
ENGINE = (
    *("seeds.py", "data", "models", "split"),
    *("run/accounting.py", "run/assembly.py", "run/metrics.py", "run/training.py"),
)
"""The parts of the package that a run's numbers follow from, whatever carries its tensors; what is measured of the
finished run later, such as an attack on it, is not among them."""


@dataclass(frozen=True)
class Origin:
    """The code and the machine of a process that trained.

    Attributes
    ----------
    version, torch : str
        Of sglr-flower and of torch.
    engine : str
        SHA-256 (its first 16 hexadecimal digits) over the files of `ENGINE`: the same engine, the same numbers.
    commit : str
        Of the checkout that the package lies in, 40 hexadecimal digits, with ``-changed`` where the package's files are
        not that commit's; of a package that is installed, or copied without git, what the environment variable
        SGLR_COMMIT says, else empty.
    machine : str
        The kind of what computed the server segment: the processor's name and how many threads computed, or a GPU's,
        and whether it multiplied float32 as TensorFloat-32 in convolutions.
    """

    version: str
    torch: str
    engine: str
    commit: str
    machine: str


def here(device: torch.device) -> Origin:
    """The origin of what this process trains on ``device``."""
    threads = torch.get_num_threads()
    machine = f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        rounds = torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0)
        machine = torch.cuda.get_device_name(device) + (", TensorFloat-32 convolutions" if rounds else "")
    return Origin(
        version=sglr_flower.__version__,
        torch=torch.__version__,
        engine=engine(_PACKAGE),
        commit=commit(_PACKAGE),
        machine=machine,
    )


def engine(package: Path) -> str:
    """`Origin.engine` of a package folder."""
    parts = [package / name for name in ENGINE]
    files = [file for part in parts for file in (part.rglob("*.py") if part.is_dir() else [part])]
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def commit(package: Path) -> str:
    """`Origin.commit` of a package folder."""
    if not _git(package, "ls-files", "__init__.py"):  # installed, if into an environment inside of some checkout
        return os.environ.get("SGLR_COMMIT", "")
    head = _git(package, "rev-parse", "HEAD")
    changed = head and _git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return f"{head}-changed" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    """What git answers; empty if it does not know the folder, or is not there."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        said = subprocess.run(
            ["git", *arguments], cwd=folder, env=quiet, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
