#!/usr/bin/env bash
# torch 2.14.1: FlopCounterMode counts a float32 LSTM on the CPU as nothing, a float64 one right; attention only with dropout.
#
# A good guess: the counter says that it counts theoretical operations from shapes; so a layer has one count, whatever its
# dtype, and dropout adds none.
# Seen: operators without a formula count as none, silently, and which operators a layer becomes is for the backend to
# choose. On the CPU an LSTM is one oneDNN operator in float32, without a formula, and matrix products in float64;
# attention is a fused operator without one, and matrix products as soon as its scores have dropout. Setting
# dropout from 0 to 0.1 takes the scores of a transformer from 0 to all of them. (torch 2.15.0 has a formula for the attention
# and none for the LSTM.)
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.4.6
"$python" - <<'PY'
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def counted(compute):
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def lstm(dtype):
    layer, words = nn.LSTM(8, 16, dtype=dtype), torch.zeros(5, 2, 8, dtype=dtype)  # five words of two sentences
    return counted(lambda: layer(words))


def attention(dropout):
    tokens = torch.zeros(2, 4, 10, 8)  # four heads of ten tokens, width 8
    return counted(lambda: scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=dropout))


single, double, plain, dropped = lstm(torch.float32), lstm(torch.float64), attention(0.0), attention(0.1)
print(f"torch {torch.__version__} on the CPU, operations counted:")
print(f"an LSTM layer: {single:,} in float32, {double:,} in float64; attention: {plain:,} without dropout, {dropped:,} with.")
assert (single, double) == (0, 2 * (5 * 2) * 4 * 16 * (8 + 16)), "changed: an LSTM"
assert (plain, dropped) == (0, 2 * (2 * (2 * 4) * 10 * 10 * 8)), "changed: attention"
PY
