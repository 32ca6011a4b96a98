"""What a model reads: a description of one sample's input, and stored inputs made into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sglr_flower.data.samples import Tensors, each


@dataclass(frozen=True)
class Inputs:
    """The input of one sample, without its numbers; hashable. A model's function may take it as its one parameter.

    Attributes
    ----------
    parts : tuple of (str, tuple of int, torch.dtype or None)
        Name, shape (without the batch's dimension) and dtype of each tensor; None for floating point, which is cast to
        the run's dtype. A single tensor has the name "", several are a dict of these names.
    outputs : int
        Numbers that the network shall answer with: classes, labels or values; 0 where that is not said.
    """

    parts: tuple[tuple[str, tuple[int, ...], torch.dtype | None], ...]
    outputs: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the single tensor, or of the first of several."""
        return self.parts[0][1]

    @property
    def single(self) -> bool:
        """Whether it is one tensor."""
        return self.parts[0][0] == ""

    @property
    def image_size(self) -> int:
        """Pixels of a side where it is one square image of three channels, or of one; else 0."""
        if not self.single or len(self.shape) != 3 or self.parts[0][2] is not None:
            return 0
        channels, height, width = self.shape
        return height if channels in (1, 3) and height == width else 0

    def example(self, count: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensors:
        """A batch of zeros, floating point in ``dtype``."""
        tensors = {
            name: torch.zeros(count, *shape, dtype=own or dtype, device=device) for name, shape, own in self.parts
        }
        return tensors[""] if self.single else tensors

    def words(self) -> str:
        """The same for a sentence."""
        if self.image_size:
            grey = " and one channel" * (self.shape[0] == 1)
            return f"images of {self.image_size} x {self.image_size} pixels{grey}"
        told = (f"{name} {shape}".strip() + (f" {dtype}" if dtype else "") for name, shape, dtype in self.parts)
        return f"inputs of shape {', '.join(told)}"


def rgb(side: int, channels: int = 3) -> Inputs:
    """Square images of so many pixels a side, with three channels: what stored images become; or with one."""
    return Inputs((("", (channels, side, side), None),))


def describe(inputs: Tensors) -> Inputs:
    """What a model reads of stored inputs (a batch of them)."""

    def part(name: str, stored: Tensor) -> tuple[str, tuple[int, ...], torch.dtype | None]:
        read = _to_input(stored[:1], torch.float32)
        return name, tuple(read.shape[1:]), None if read.is_floating_point() else read.dtype

    if isinstance(inputs, Tensor):
        return Inputs((part("", inputs),))
    return Inputs(tuple(part(name, stored) for name, stored in inputs.items()))


def to_inputs(stored: Tensors, dtype: torch.dtype) -> Tensors:
    """Turn stored inputs into what a model reads.

    Parameters
    ----------
    stored : Tensors
        Each [batch, ...]; images uint8 [batch, 1 or 3, height, width].
    dtype : torch.dtype
        Floating point type of the result.

    Returns
    -------
    Tensors
        On the same device: of images `to_input`; other floating point numbers in `dtype`; whole numbers, such as token
        ids, as they are.
    """
    return each(lambda own: _to_input(own, dtype), stored)


def is_image(stored: Tensor) -> bool:
    """Whether these are stored images: of three channels once they are read, or of one (`of_one_channel`)."""
    return stored.ndim == 4 and stored.shape[1] in {torch.uint8: (1, 3), torch.int8: (1,)}.get(stored.dtype, ())


def of_one_channel(images: Tensor) -> Tensor:
    """Stored images as such that a model reads with one channel, grey: int8 [n, 1, height, width], the levels less 128.

    Parameters
    ----------
    images : torch.Tensor
        uint8 [n, 1 or 3, height, width], colour made grey as PIL does; or the result itself.
    """
    if images.dtype == torch.int8:
        return images
    return (grey(images) if images.shape[1] == 3 else images).bitwise_xor(128).view(torch.int8)


def grey(images: Tensor) -> Tensor:
    """Grey images as PIL's ``convert("L")`` makes them of colour ones; torchvision's are a level darker.

    Parameters
    ----------
    images : Tensor
        uint8 (n, 3, h, w).

    Returns
    -------
    Tensor
        uint8 (n, 1, h, w).
    """
    red, green, blue = images.int().split(1, dim=1)
    # ITU-R 601-2 luma in 16-bit fixed point, rounded.
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma.to(torch.uint8)


def to_input(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn stored images into what a model reads, as the authors' code does.

    Parameters
    ----------
    images : torch.Tensor
        uint8 [batch, 1 or 3, height, width], or int8 of `of_one_channel`.
    dtype : torch.dtype
        Floating point type of the result.

    Returns
    -------
    torch.Tensor
        `dtype` [batch, 3, height, width] on the same device: 0..255 scaled to -1..1, grey repeated to three
        channels; of int8 images [batch, 1, height, width].
    """
    if one_channel := images.dtype == torch.int8:
        images = images.view(torch.uint8).bitwise_xor(128)
    # Scaled in float32 at least: a half type would round twice.
    scaled = images.to(torch.promote_types(dtype, torch.float32)).div_(127.5).sub_(1.0)
    if one_channel:
        return scaled.to(dtype)
    return scaled.to(dtype).expand(-1, 3, -1, -1).contiguous()


def _to_input(stored: Tensor, dtype: torch.dtype) -> Tensor:
    if is_image(stored):
        return to_input(stored, dtype)
    return stored.to(dtype) if stored.is_floating_point() else stored
