"""Distance correlation: how much two samples say about each other, by the distances within each."""

from __future__ import annotations

import torch
from torch import Tensor


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """The sample distance correlation of two batches, in [0, 1], with a gradient by both.

    Szekely, Rizzo & Bakirov, "Measuring and testing dependence by correlation of distances", arXiv 0803.4101, eq. 2.8
    to 2.10: the V-statistic, whose bias grows with the dimension and shrinks with the batch. 0, with gradient 0, where
    a batch does not vary at all, as one of a single sample.

    Parameters
    ----------
    x, y : Tensor
        (..., n, p) and (..., n, q), floating point.

    Returns
    -------
    Tensor
        float64 (...).
    """
    # Not by matrix products, in which close samples cancel; the gradient of a distance of zero is zero.
    a, b = (torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").double() for z in (x, y))
    return correlation(a, b)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """`distance_correlation` of two batches whose Euclidean distances are known: both float64 (..., n, n)."""
    a, b = _centred(a), _centred(b)
    covariance = (a * b).mean((-2, -1))
    variances = [(a * a).mean((-2, -1)), (b * b).mean((-2, -1))]
    # Rounding may leave a covariance that is zero a little below; and a root has no gradient at zero.
    varies = (covariance > 0) & (variances[0] > 0) & (variances[1] > 0)
    one = torch.ones_like(covariance)
    covariance = torch.where(varies, covariance, one)
    roots = [torch.where(varies, variance, one).sqrt() for variance in variances]
    return torch.where(varies, (covariance / (roots[0] * roots[1])).sqrt(), torch.zeros_like(one))


def _centred(distances: Tensor) -> Tensor:
    """Their row and column means taken off."""
    rows, columns = distances.mean(-1, keepdim=True), distances.mean(-2, keepdim=True)
    return distances - rows - columns + distances.mean((-2, -1), keepdim=True)
