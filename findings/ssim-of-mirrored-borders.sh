#!/usr/bin/env bash
# torchmetrics 1.9.0 with scikit-image 0.26.0: SSIM of the same 16 x 16 images differs in the second decimal, by the borders.
#
# A good guess: SSIM with the Gaussian window of its paper (11 pixels, sigma 1.5) is one number, and two libraries that
# cite the paper and take its window agree to rounding.
# Seen: torchmetrics mirrors the images at their borders and averages over windows around every pixel, 256 here, of which 220
# hold pixels that are not there; the paper, and scikit-image with the window of the paper, average over the 36 windows that lie
# inside. Which is larger depends on the images; of small ones, which reconstruction attacks and split learning are
# about, most windows are mirrored, and figures of the two are not comparable. The map that torchmetrics gives back has
# both: without 5 pixels of each side its mean is the paper's.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 torchmetrics==1.9.0 scikit-image==0.26.0 numpy==2.3.5
"$python" - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

draw = np.random.default_rng(0)
rows = np.linspace(0, 1, 16)
image = 0.5 + 0.4 * np.outer(np.sin(9 * rows), np.cos(7 * rows))
guess = np.clip(image + 0.08 * draw.standard_normal((16, 16)), 0, 1)

paper = structural_similarity(image, guess, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
pair = [torch.from_numpy(one).view(1, 1, 16, 16) for one in (guess, image)]
mirrored, windows = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
inside = windows[..., 5:-5, 5:-5].mean().item()
print(f"torchmetrics {version('torchmetrics')}: {mirrored.item():.4f}; scikit-image {version('scikit-image')}: {paper:.4f}; ")
print(f"torchmetrics without the 5 pixels of each side, whose windows are mirrored: {inside:.4f}.")
assert abs(mirrored.item() - paper) > 0.005, "changed: the two agree on small images"
assert abs(inside - paper) < 1e-3, "changed: the windows inside are no longer the paper's"
PY
