#!/usr/bin/env bash
# torch 2.14.1: SGD whose learning rate is a tensor reads its value once per parameter and step; fused it never does.
#
# A good guess: the rate may be a tensor so that nobody waits for its value, which on a GPU is a synchronisation and in a CUDA
# graph an error; SGD has no flag `capturable` as Adam has, so it needs none, and its three forms differ in speed alone.
# Seen: of four parameters the plain form reads the rate four times a step, momentum or not, the foreach form once; only the
# fused form hands the tensor on. All end with the same weights. What records a step keeps the rate that it had then.
# Why: the plain form adds the gradient times alpha, and alpha is a number; it multiplies by the tensor only where the rate
# itself needs a gradient.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.bash"
install torch==2.14.1 numpy==2.4.6

"$python" - <<'PYTHON'
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Counts how often a tensor's value becomes a number of Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


FORMS = {"plain": {"foreach": False}, "with momentum": {"momentum": 0.9}, "foreach": {"foreach": True}, "fused": {"fused": True}}
seen, ends = {}, {}
for name, settings in FORMS.items():
    for kind, rate in (("number", 0.25), ("tensor", torch.tensor(0.25))):
        weights = [torch.ones(3, requires_grad=True) for _ in range(4)]
        optimizer = torch.optim.SGD(weights, lr=rate, **settings)
        for weight in weights:
            weight.grad = torch.full((3,), 2.0)
        with Reads() as reads:
            optimizer.step()
        seen[name, kind] = reads.count
        ends[name, kind] = [weight.tolist() for weight in weights]
    print(f"SGD, {name}: a rate that is a tensor is read {seen[name, 'tensor']} times in a step of four parameters")

assert all(reads == 0 for (_, kind), reads in seen.items() if kind == "number"), seen
expected = {"plain": 4, "with momentum": 4, "foreach": 1, "fused": 0}
assert {name: seen[name, "tensor"] for name in FORMS} == expected, seen
assert all(end == [[0.5] * 3] * 4 for end in ends.values()), ends
print("torch", torch.__version__, "- as described")
PYTHON
