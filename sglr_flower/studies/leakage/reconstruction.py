"""How near reconstructed images are to the original ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SSIM_WINDOW = 11
"""Pixels of a side of the Gaussian window of Wang et al. (2004), whose standard deviation is 1.5."""


@dataclass(frozen=True)
class Fidelity:
    """Means over images.

    Attributes
    ----------
    cross_entropy : float
        Binary cross-entropy in nats per pixel and channel, as in Table 5 of arXiv 2112.05929: higher is more private.
        It cannot be below ``entropy``.
    entropy : float
        The floor of it: the cross-entropy of the original images with themselves.
    mse : float
        Mean squared error, of values in [0, 1].
    psnr : float
        Peak signal-to-noise ratio in decibels.
    ssim : float | None
        Structural similarity (Wang et al. 2004) over the windows that lie inside, at most 1; None of images that are
        smaller than its window.
    """

    cross_entropy: float
    entropy: float
    mse: float
    psnr: float
    ssim: float | None


def fidelity(original: Tensor, reconstructed: Tensor) -> Fidelity:
    """Compare images.

    Parameters
    ----------
    original, reconstructed : Tensor
        Floating point (n, channels, height, width), values in [0, 1].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure  # 2 s

    target, guess = original.double(), reconstructed.double()
    noise = peak_signal_noise_ratio(guess, target, data_range=1.0, dim=(1, 2, 3))
    structure = None
    if min(target.shape[-2:]) >= _SSIM_WINDOW:
        _, windows = structural_similarity_index_measure(guess, target, data_range=1.0, return_full_image=True)
        # torchmetrics' own mean is of a map with mirrored borders; that of Wang et al. is of whole windows alone.
        border = _SSIM_WINDOW // 2
        structure = torch.as_tensor(windows)[..., border:-border, border:-border].mean().item()
    return Fidelity(
        cross_entropy=F.binary_cross_entropy(guess, target).item(),
        entropy=F.binary_cross_entropy(target, target).item(),
        mse=F.mse_loss(guess, target).item(),
        psnr=noise.item(),
        ssim=structure,
    )
