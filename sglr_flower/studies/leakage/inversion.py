"""Training a decoder on pairs of smashed data and images, and applying it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sglr_flower.models import laid_out
from sglr_flower.run import assembly
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.studies.leakage.decoder import Decoder

_BATCH = 64
_PEAK_LR = 4e-3
"""Of Adam, reached after 30 % of the steps of a one-cycle schedule, which then falls to almost 0."""


def train(smashed: Tensor, images: Tensor, steps: int, seed: int, number: int) -> Decoder:
    """Train a decoder to invert smashed data, with the binary cross-entropy that it is measured by.

    Parameters
    ----------
    smashed : Tensor
        float32 (n, *cut shape), at least two.
    images : Tensor
        Their images: uint8 (n, channels, size, size).
    steps : int
        Of the optimizer, at least two.
    seed, number : int
        Name the draws: initial weights, and the order in each epoch.

    Returns
    -------
    Decoder
        In eval mode, on the GPU if there is one.

    Raises
    ------
    UserError
        As `Decoder`.
    """
    device = assembly.device()
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        seed_torch(cpu, seed, "attack", "decoder", number)
        decoder = Decoder(tuple(smashed.shape[1:]), images.shape[1], images.shape[-1])
    layout = torch.channels_last if device == cpu else torch.contiguous_format
    decoder.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_PEAK_LR, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LR, total_steps=steps)
    for batch in itertools.islice(_batches(len(images), seed, number), steps):
        given = laid_out(smashed[batch].to(device), layout)
        loss = F.binary_cross_entropy_with_logits(decoder(given), as_target(images[batch].to(device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    decoder.eval()
    return decoder


@torch.inference_mode()
def reconstruct(decoder: Decoder, smashed: Tensor) -> Tensor:
    """Decode smashed data.

    Parameters
    ----------
    decoder : Decoder
        From `train`.
    smashed : Tensor
        float32 (n, *cut shape).

    Returns
    -------
    Tensor
        float32 (n, channels, size, size) in [0, 1], on the CPU.
    """
    device = next(decoder.parameters()).device
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    chunks = smashed.split(_BATCH)
    return torch.cat([decoder(laid_out(chunk.to(device), layout)).sigmoid().cpu() for chunk in chunks]).contiguous()


def as_target(images: Tensor) -> Tensor:
    """Stored images, uint8, as float32 in [0, 1]: what a reconstruction is compared with."""
    return images.float().div_(255.0)


def _batches(images: int, seed: int, number: int) -> Iterator[Tensor]:
    """Positions of the images, int64, epoch after epoch in batches of one size; what is left over is left out."""
    size = min(_BATCH, images)
    for epoch in itertools.count():
        order = torch.randperm(images, generator=generator(seed, "attack", "order", number, epoch))
        yield from order[: images - images % size].split(size)
