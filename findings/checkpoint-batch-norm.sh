#!/usr/bin/env bash
# torch 2.14.1: activation checkpointing changes what a network with batch norm predicts: its running statistics move twice.
#
# A good guess: checkpointing trades time for memory and nothing else; gradients are the same, and so is everything that
# is saved after training. It even takes care of dropout's random numbers.
# Seen: losses, gradients and weights are the same to the bit, and the evaluation is not: the forward that is computed
# again updates the running mean and variance again, with the same batch. A momentum of 0.1 acts as 0.19, the counter runs at
# double speed. Reentrant or not, it is the same. The training curve shows nothing.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.4.6
"$python" - <<'PY'
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def trained(forward):
    torch.manual_seed(0)
    segment = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 2))
    sgd = torch.optim.SGD(segment.parameters(), lr=0.1)
    for _ in range(3):
        images = torch.randn(8, 3, 8, 8, requires_grad=True)
        sgd.zero_grad()
        forward(segment, images).square().mean().backward()
        sgd.step()
    with torch.no_grad():
        return segment, segment.eval()(torch.ones(1, 3, 8, 8))


plain, logits = trained(lambda segment, images: segment(images))
print(f"torch {torch.__version__}: three steps of a segment with batch norm and dropout, then one image in evaluation:")
print(f"without checkpoint: counter {plain[1].num_batches_tracked}, logits {logits.tolist()}")
for reentrant in (False, True):
    again, found = trained(lambda segment, images: checkpoint(segment, images, use_reentrant=reentrant))
    same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    print(f"use_reentrant={reentrant}: counter {again[1].num_batches_tracked}, logits {found.tolist()}, weights equal: {same}")
    assert same, "changed: the weights differ"
    assert again[1].num_batches_tracked == 6, "changed: the statistics no longer move twice"
    assert not torch.allclose(logits, found, rtol=1e-3), "changed: evaluation no longer differs"
PY
