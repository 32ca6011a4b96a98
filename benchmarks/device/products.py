"""Convolutions as matrix products: image patches as columns, and one batched product for all clients.

For the stack a convolution of all clients is one with as many groups as clients. How fast those are depends on the
library and the GPU; a batched matrix product is fast on every one, but has to write the patches first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ByProducts(TorchFunctionMode):
    """While it is entered, `torch.nn.functional.conv2d` without groups is `convolution`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and _taken(*args, **(kwargs or {})):
            return convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of (n, channels, h, w) without groups, with its gradients."""
    assert groups == 1
    (tall, wide), (down, right), (border_y, border_x), (apart_y, apart_x) = (
        (of, of) if isinstance(of, int) else of for of in (weight.shape[-2:], stride, padding, dilation)
    )
    height = (images.shape[-2] + 2 * border_y - apart_y * (tall - 1) - 1) // down + 1
    width = (images.shape[-1] + 2 * border_x - apart_x * (wide - 1) - 1) // right + 1
    patches = F.unfold(images, (tall, wide), (apart_y, apart_x), (border_y, border_x), (down, right))
    output = (weight.flatten(1) @ patches).unflatten(-1, (height, width))
    return output if bias is None else output + bias.view(-1, 1, 1)


def _taken(*args: Any, groups: int = 1, padding: Any = 0, **kwargs: Any) -> bool:
    """Whether a call of conv2d is one that `convolution` can take the place of."""
    groups = args[6] if len(args) > 6 else groups
    padding = args[4] if len(args) > 4 else padding
    return groups == 1 and not isinstance(padding, str)
