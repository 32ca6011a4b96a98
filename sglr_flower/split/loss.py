"""The training loss."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def mean_loss(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of (n, classes) logits and int64 (n,) labels, averaged over the n samples.

    ``cross-entropy`` as in the paper, or the authors' code's ``binary-cross-entropy``: softmax, then binary
    cross-entropy against the one-hot label, averaged over the outputs too.
    """
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels)
    if not logits.isfinite().all():
        return logits.sum() * math.nan  # a run that diverged: torch's function refuses it, cross-entropy is nan too
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy(logits.softmax(1), target)
