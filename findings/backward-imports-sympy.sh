#!/usr/bin/env bash
# torch 2.14.1: the first backward pass that is handed a gradient imports SymPy; one that starts at a loss does not.
#
# A good guess: `smashed.backward(cut_gradient)` compares two shapes and enters the C++ engine, as `loss.backward()` does; both
# cost nothing but the pass, and what eager training imports is imported with torch.
# Seen: the shapes are compared by a function of the compiler's symbolic shapes, so some 480 modules are imported within
# the first such pass, SymPy among them. In split learning that is the first step of every client: a good half of a second on a fast
# core, and 40 MB on each device, for comparing two shapes. `torch.autograd.grad` with gradients of the outputs is the same.
# A scalar whose own backward returns the gradient (a `torch.autograd.Function`) gives the same bits without them.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install torch==2.14.1 numpy==2.4.6
"$python" - <<'PY'
import sys
import time

import torch
from torch import nn


class Given(torch.autograd.Function):
    @staticmethod
    def forward(context, output, gradient):
        context.save_for_backward(gradient)
        return output.new_zeros(())

    @staticmethod
    def backward(context, _):
        return (*context.saved_tensors, None)


segment, batch, gradient = nn.Linear(4, 3), torch.ones(2, 4), torch.arange(6.0).reshape(2, 3)


def weights_gradient(backward):
    segment.zero_grad()
    before, began = len(sys.modules), time.process_time()
    backward(segment(batch))
    return segment.weight.grad.clone(), len(sys.modules) - before, time.process_time() - began


_, with_loss, _ = weights_gradient(lambda smashed: smashed.sum().backward())
without_sympy, with_scalar, _ = weights_gradient(lambda smashed: Given.apply(smashed, gradient).backward())
assert "sympy" not in sys.modules, "changed: SymPy is there before any gradient is handed over"
handed_over, with_gradient, seconds = weights_gradient(lambda smashed: smashed.backward(gradient))
print(f"torch {torch.__version__}, modules that a first backward pass imports: {with_loss} from a loss, {with_scalar} from a scalar")
print(f"whose gradient is the given one, {with_gradient} when it is handed over ({seconds:.1f} s of processor time).")
assert torch.equal(without_sympy, handed_over), "changed: the two are no longer the same"
assert "sympy" in sys.modules and with_gradient > 300 > 20 > max(with_loss, with_scalar), "changed: what is imported"
PY
