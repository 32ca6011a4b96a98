"""What the parts have in common: their options, the time they have left, the data that they find."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks import gpu

Out = Annotated[Path, typer.Option(help="The folder to write into.")]
Seconds = Annotated[float, typer.Option(help="How long it may take.", min=0)]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="The same on the CPU, with as little as possible.")]
TF32 = Literal["nowhere", "convolutions", "everywhere"]
"""Where float32 is multiplied as TensorFloat-32, of 10 bits; torch's default is convolutions."""


class Clock:
    """How much of a part's time is left.

    Parameters
    ----------
    seconds : float
        All of it, from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; negative when it is over."""
        return self._end - time.monotonic()


def place(rehearse: bool) -> torch.device:
    """The GPU, or in a rehearsal the CPU.

    Raises
    ------
    UserError
        If there is no GPU.
    """
    return gpu.place_of("cpu" if rehearse else "cuda")


def dataset() -> str:
    """The real images where SGLR_DATA_DIR has them, else the bundled digits."""
    there = Path(os.environ.get("SGLR_DATA_DIR", "/nowhere"), "FashionMNIST", "raw").is_dir()
    return "fashion-mnist" if there else "digits"


@contextlib.contextmanager
def tensor_float_32(where: TF32) -> Iterator[None]:
    """Let float32 be multiplied as TensorFloat-32 here and not elsewhere; without effect on a CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = where != "nowhere"
    torch.backends.cuda.matmul.allow_tf32 = where == "everywhere"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
