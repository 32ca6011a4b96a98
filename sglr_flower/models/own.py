"""A user's own model by its import path, checked so that a mistake in it is one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglr_flower import imports
from sglr_flower.errors import UserError

_SIGNATURE = "(num_classes: int, image_size: int) -> torch.nn.Sequential"


def load(path: str) -> tuple[Callable[[int, int], nn.Sequential], str]:
    """The function that ``path`` names, with its networks checked, and its attribute ``cut``, empty if it has none.

    Parameters
    ----------
    path : str
        ``package.module:function``; the function is called with the number of classes and the image size in pixels.

    Raises
    ------
    UserError
        If there is no such function, or it cannot be called with those two arguments. The function returned raises it
        if the network is not an ``nn.Sequential`` of two stages or more that maps images to logits.
    """
    function = imports.load(path, "model")
    wrong = f"run-config key model = {path!r}: it must"
    # Neither a network instead of the function that makes one, nor what a slip of the pen names, such as os:kill.
    if not callable(function) or isinstance(function, nn.Module) or inspect.isbuiltin(function):
        raise UserError(f"{wrong} be a function {_SIGNATURE}, not a {type(function).__name__}")
    try:
        inspect.signature(function).bind(10, 32)
    except (TypeError, ValueError) as error:  # ValueError: some functions written in C have no signature
        raise UserError(f"{wrong} be a function {_SIGNATURE}, this one cannot be called so ({error})") from None

    def build(num_classes: int, image_size: int) -> nn.Sequential:
        network = function(num_classes, image_size)
        if not isinstance(network, nn.Sequential):
            raise UserError(f"{wrong} return a torch.nn.Sequential of stages, not a {type(network).__name__}")
        if len(network) < 2:
            raise UserError(f"{wrong} return two stages or more, one on each side of the cut, not {len(network)}")
        _check_logits(network, num_classes, image_size, wrong)
        return network

    return build, str(getattr(function, "cut", ""))


@torch.no_grad()
def _check_logits(network: nn.Sequential, num_classes: int, image_size: int, wrong: str) -> None:
    """Try one image, in evaluation mode, in which no batch-norm statistics move; lazy layers get their shapes here."""
    size = (1, 3, image_size, image_size)
    try:
        logits = network.eval()(torch.zeros(size))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{wrong} map images {size} to logits (1, {num_classes}), it fails with: {error}") from error
    network.train()
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{wrong} map images {size} to logits (1, {num_classes}), not to {found}")
