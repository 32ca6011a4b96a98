"""The training loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sglr_flower import imports
from sglr_flower.data.samples import Tensors


def mean_loss(name: str, logits: Tensor, labels: Tensors) -> Tensor:
    """The loss of (n, classes) logits and int64 (n,) labels, averaged over the n samples.

    ``cross-entropy`` as in the paper, or the authors' code's ``binary-cross-entropy``: softmax, then binary
    cross-entropy against the one-hot label, averaged over the outputs too. Or a function's import path.
    """
    if imports.is_path(name):
        own: Tensor = imports.load(name, "loss")(logits, labels)
        return own
    assert isinstance(labels, Tensor)
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels)
    # Of a run that diverged torch's function refuses what softmax gives, where cross-entropy and its gradient are nan.
    # So are these, without a look at the values: for that a step would wait for its device.
    finite = logits.isfinite().all()
    doubt = torch.where(finite, 0.0, math.nan).to(logits.dtype)
    target = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), 1.0)
    return F.binary_cross_entropy(logits.where(finite, 0.0).softmax(1), target) + (logits * doubt).sum()
