#!/usr/bin/env bash
# torch 2.14.1 with ml_dtypes 0.6.0: an infinity becomes 448 in float8_e4m3fn, where it is NaN by ml_dtypes, and was in torch 2.7.
#
# A good guess: the format has no infinity but has a NaN, so what is out of range becomes NaN, as it does in JAX's types and
# did in PyTorch; or, if a library saturates, then finite values only, and in float8_e5m2, which has infinities, not either.
# Seen: PyTorch saturates everything, infinities too, at 448: a gradient that has overflowed arrives as an ordinary number,
# and a check with isfinite on what was received says that all is well. (torch 2.7.0 gives NaN above 464, as ml_dtypes
# does.) In float8_e5m2 the same release overflows to infinity. So two ends of a wire that agree on the format, and on all
# 256 codes, need not agree on what is sent.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 ml_dtypes==0.6.0 numpy==2.4.6
"$python" - <<'PY'
import ml_dtypes
import numpy as np
import torch

values = [448.0, 464.0, 480.0, 1e6, float("inf"), float("nan")]
ours = torch.tensor(values).to(torch.float8_e4m3fn).float().numpy()
theirs = np.array(values, np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
other = torch.tensor(values).to(torch.float8_e5m2).float().numpy()
codes = np.arange(256, dtype=np.uint8)
same = np.array_equal(
    torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy(),
    codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32),
    equal_nan=True,
)
print(f"{values} as float8_e4m3fn")
print(f"by torch {torch.__version__}: {ours.tolist()}")
print(f"by ml_dtypes {ml_dtypes.__version__}: {theirs.tolist()}")
print(f"as float8_e5m2 by torch: {other.tolist()}")
assert same, "changed: the two read the codes differently"
assert ours[2:5].tolist() == [448.0] * 3 and np.isnan(ours[5]), "changed: torch does not saturate at 448"
assert np.isnan(theirs[2:]).all(), "changed: ml_dtypes has no NaN above its range"
assert np.isinf(other[4]) and np.isinf(other[3]), "changed: float8_e5m2 does not overflow to infinity"
PY
