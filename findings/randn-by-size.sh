#!/usr/bin/env bash
# torch 2.14.1: the first normal numbers of a seed depend on how many are drawn, and on whether the tensor is contiguous.
#
# A good guess: a seed fixes a sequence; who draws more of it gets the same beginning. So noise for a batch of 17 is the
# noise for its first 16 samples and one more, and noise for a tensor does not depend on its strides. torch.rand is so.
# Seen: on the CPU fewer than 16 numbers come from one algorithm, from 16 on another takes blocks of 16, and where the number is
# no multiple of 16 the last 16 are drawn anew: of 17 numbers only the first is that of the draw of 16. A transposed tensor
# is filled by the first algorithm, whatever its size. So noise, or initial weights, that two programs shall have in common
# have to be drawn in the same pieces, in the same layout.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.4.6
"$python" - <<'PY'
import torch


def drawn(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def common(few, many):
    """How many of the first numbers the draws of these sizes have in common."""
    return int((drawn(few) == drawn(many)[:few]).sum())


transposed = torch.empty(4, 8).t().normal_(generator=torch.Generator().manual_seed(0))
uniform = [torch.rand(count, generator=torch.Generator().manual_seed(0)) for count in (16, 17)]
in_memory = transposed.t().flatten()
print(f"torch {torch.__version__}, seed 0: draws of 8 and 15 have their first {common(8, 15)} in common, of 15 and 16 {common(15, 16)},")
print(f"of 16 and 17 {common(16, 17)}, of 16 and 32 {common(16, 32)}; of torch.rand 16 and 17 {int((uniform[0] == uniform[1][:16]).sum())}.")
print(f"A transposed tensor of 32 has {int((in_memory == drawn(32)).sum())} of the 32 numbers drawn at once, ", end="")
print(f"and {int((in_memory[:15] == drawn(15)).sum())} of its first 15 are those of a draw of 15.")
assert (common(8, 15), common(15, 16), common(16, 17), common(16, 32)) == (8, 0, 1, 16), "changed: torch.randn"
assert torch.equal(uniform[0], uniform[1][:16]), "changed: torch.rand"
assert not (in_memory == drawn(32)).any() and torch.equal(in_memory[:15], drawn(15)), "changed: a transposed tensor"
PY
