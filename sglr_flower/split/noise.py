"""Gaussian noise that nobody can predict or take away again.

Torch's own generator will not do for privacy: on a CPU it has 2^32 seeds, which can be tried one after the other, and
the seed of a run is in its run-config, which the server and all nodes have. Here the random bits are the output of
SHAKE-256 (FIPS 202), a cryptographic function, for a key of 256 bits: fresh from the operating system for every draw,
or where a test or an experiment wants the same noise again, named as all other draws are.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from sglr_flower.seeds import named

FRESH = -1
"""The run-config's ``noise-seed`` with which every draw has a key of its own from the operating system."""


def key(noise_seed: int, *name: str | int) -> bytes:
    """32 bytes for one draw.

    Parameters
    ----------
    noise_seed : int
        `FRESH`: random bytes of the operating system, others with every call. Else, from 0: what follows from it and
        the name, so that any node, exchange and resumed run draws the same, and whoever knows the seed can take the
        noise away.
    name : str | int
        Of the draw, as in `sglr_flower.seeds`.
    """
    if noise_seed == FRESH:
        return os.urandom(32)
    return named("noise", noise_seed, *name)


def gaussian(drawn: bytes, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float64 on the CPU, that follow from a key alone.

    Box and Muller's transform of uniform numbers with 52 random bits, never 0 or 1.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    if not pairs:
        return torch.zeros(*shape, dtype=torch.float64)
    stream = bytearray(hashlib.shake_256(drawn).digest(16 * pairs))
    bits = torch.frombuffer(stream, dtype=torch.int64).view(2, pairs)
    # The upper 52 bits, as a number in [-2^51, 2^51), to the middles of 2^52 equal parts of (0, 1): exact in float64.
    uniform = ((bits >> 12).double() + (2**51 + 0.5)) * 2.0**-52
    radius, angle = (-2 * uniform[0].log()).sqrt_(), uniform[1] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(*shape)


def noised(value: Tensor, deviation: float, drawn: bytes) -> Tensor:
    """A tensor with Gaussian noise of a standard deviation: a new one, with its dtype, device and order in memory.

    The sum is made in float64 and rounded once.
    """
    noise = gaussian(drawn, value.shape).mul_(deviation).to(value.device)
    return torch.empty_like(value).copy_(value.double() + noise)
