"""How cells are run on this machine: how many at once, on which GPU, with how many threads, as which command."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sglr_flower.errors import UserError
from sglr_flower.run.machine import available_cpus, steady_memory

PER_GPU = 4
"""Cells at once on a GPU: a cell's small batches leave most of one idle, and each cell needs a CPU beside it."""


@dataclass(frozen=True)
class Workers:
    """Places in which cells run at the same time.

    Attributes
    ----------
    jobs : int
        Number of places.
    cpus : int
        CPUs that they share.
    gpus : tuple[str, ...]
        Names of the GPUs as CUDA_VISIBLE_DEVICES takes them, given to the places in turn; empty: none.
    in_process : bool
        Whether cells are trained without Flower.
    """

    jobs: int
    cpus: int
    gpus: tuple[str, ...]
    in_process: bool

    @property
    def cpus_each(self) -> int:
        """Whole CPUs of one place; places that have more threads than CPUs slow each other down."""
        return max(1, self.cpus // self.jobs)

    def environment(self, place: int) -> dict[str, str]:
        """The environment of a cell in one of the places, from 0."""
        environment = dict(os.environ) | steady_memory()
        if self.jobs > 1:
            environment["OMP_NUM_THREADS"] = str(self.cpus_each)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        return environment

    def train(self, config: Path, run_dir: Path) -> list[str]:
        """The command that trains a new run."""
        command = [*_SGLR, "run", str(config), "--run-dir", str(run_dir), "--nodes", "1"]
        command += ["--cpus-per-node", str(self.cpus_each)]
        if self.in_process:
            command.append("--in-process")
        elif self.gpus:
            command += ["--gpus-per-node", "1"]  # of a Ray of its own, which sees the one GPU of its place
        return command

    def resume(self, run_dir: Path) -> list[str]:
        """The command that continues a run."""
        return [*_SGLR, "resume", str(run_dir)]

    def attack(self, run_dir: Path) -> list[str]:
        """The command that attacks a finished run."""
        return [*_SGLR, "attack", str(run_dir)]


_SGLR = (sys.executable, "-m", "sglr_flower.cli")


def find(jobs: int | None, in_process: bool) -> Workers:
    """The places that this machine has, or as many as the user asks for.

    Raises
    ------
    UserError
        If cells are to go through Flower and it is not installed.
    """
    missing = [name for name in ("flwr", "ray") if importlib.util.find_spec(name) is None]
    if missing and not in_process:
        raise UserError(f"{' and '.join(missing)} cannot be imported: install it, or train without it by --in-process")
    cpus, gpus = available_cpus(), _gpus()
    return Workers(jobs or (min(cpus, PER_GPU * len(gpus)) if gpus else cpus), cpus, gpus, in_process)


def _gpus() -> tuple[str, ...]:
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()] or [str(index) for index in range(count)]
    return tuple(names[:count])
