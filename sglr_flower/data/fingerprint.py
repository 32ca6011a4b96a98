"""What tells a run's data from others, cheap enough to be taken whenever a run begins or goes on."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from sglr_flower.data.pinned import Part
from sglr_flower.data.samples import Batch, Samples, Tensors, all_targets
from sglr_flower.data.source import Source

_MOST_BYTES = 16_000_000
"""Of inputs in memory that are hashed, spread over all: a hundredth of a second."""

_SPREAD = 16
"""Inputs that are hashed where they are not in memory."""


def parts(source: Source) -> dict[str, Part]:
    """Of each part of a source its samples per class, and a hash of its targets and of some of its inputs."""
    every = {"train": source.train, "validation": source.validation, "test": source.test}
    return {name: _part(source, samples) for name, samples in every.items()}


def _part(source: Source, samples: Samples) -> Part:
    if not len(samples):
        return Part()
    targets = all_targets(samples)
    labels = source.labels(samples)
    counts = {"samples": len(samples)}
    if labels is not None:
        found = torch.bincount(labels, minlength=len(source.classes)).tolist()
        counts = dict(zip(source.classes, found, strict=True))
    some = (
        samples
        if isinstance(samples, Batch)
        else samples.take(torch.arange(len(samples))[:: -(-len(samples) // _SPREAD)])
    )
    hashed = hashlib.sha256()
    for values in (targets, some.inputs):
        _add(hashed, values)
    return Part(counts, hashed.hexdigest()[:32])


def _add(hashed: hashlib._Hash, values: Tensors) -> None:
    named = {"": values} if isinstance(values, Tensor) else values
    for name, tensor in sorted(named.items()):
        few = tensor[:: max(1, -(-tensor.nbytes // _MOST_BYTES))].contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(few.reshape(-1).view(torch.uint8).numpy().data)
