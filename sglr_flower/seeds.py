"""Random numbers without state: every draw has a name, and its seed follows from the run's seed and that name.

No generator has to be carried between steps, nodes or processes or be written to a checkpoint: a recomputed forward,
another spread of clients over nodes and a resumed run draw the same numbers because they ask for the same names.
"""

from __future__ import annotations

import hashlib

import torch


def torch_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the draw called ``name`` in the run with ``seed`` (SHA-256 of both)."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(device: torch.device, seed: int, *name: str | int) -> None:
    """Seed what torch itself draws from in a forward on ``device``, its dropout say, for the draw called ``name``.

    Not by `torch.manual_seed`: where a build of torch could have a GPU and has none, that keeps a stack trace of every
    call, in case one comes; 3 % of a small client's step, and memory that grows with every step.
    """
    value = torch_seed(seed, *name)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


def generator(seed: int, *name: str | int) -> torch.Generator:
    """A fresh CPU generator for the draw called ``name``."""
    return torch.Generator().manual_seed(torch_seed(seed, *name))
