"""Random numbers without state: every draw has a name, and its seed follows from the run's seed and that name.

No generator has to be carried between steps, nodes or processes or be written to a checkpoint: a recomputed forward,
another spread of clients over nodes and a resumed run draw the same numbers because they ask for the same names.
"""

from __future__ import annotations

import hashlib
from zlib import crc32

import numpy as np
import torch


def named(*name: str | int) -> bytes:
    """32 bytes that follow from a name alone, the same in every process: SHA-256 of its parts."""
    return hashlib.sha256("/".join(str(part) for part in name).encode()).digest()


def torch_seed(seed: int, *name: str | int) -> int:
    """A seed of 63 bits for the draw called ``name`` in the run with ``seed``.

    torch's CPU generator, a Mersenne twister, takes the lowest 32 of them: of n draws of a run about n² / 2³³ pairs
    have the same numbers, one pair of 93,000. For shuffles, initial weights and dropout that is of no moment; what
    protects somebody is drawn otherwise (`sglr_flower.split.noise`). Checkpoints go on with these draws as they are.
    """
    return int.from_bytes(named(seed, *name)[:8], "big") >> 1


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


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """A fresh generator of NumPy's for a purpose of a run, say "partition": who holds which samples follows from it.

    The draws for one purpose never shift those for another.

    Parameters
    ----------
    seed : int
        The run's seed, at least 0.
    purpose : str
        What the numbers are for.
    """
    # Not `named`: data have been drawn by this from the first version on, and scores are compared on the same data.
    return np.random.default_rng([seed, crc32(purpose.encode())])
