"""A backward pass that begins with a gradient that has come from elsewhere, such as the cut gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scalar(output: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to a tensor is the given one; its value means nothing.

    To hand the gradient to `torch.autograd` itself is the same, but makes torch (2.7 to 2.15) import its symbolic
    shapes, and SymPy with them, in every process that does so: up to a second, and 40 MB.

    Parameters
    ----------
    output : Tensor
        Any shape, such as the smashed data (b, *cut shape).
    gradient : Tensor
        Of its shape and dtype.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if output.shape != gradient.shape:
        raise ValueError(f"a gradient of shape {tuple(gradient.shape)} for a tensor of shape {tuple(output.shape)}")
    result: Tensor = _Given.apply(output, gradient)
    return result


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None
