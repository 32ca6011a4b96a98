"""A user's own model by its import path, checked so that a mistake in it is one sentence."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglr_flower import imports
from sglr_flower.data.inputs import Inputs, rgb
from sglr_flower.errors import UserError

_GIVEN: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()
"""Weights of networks that there are: of each client they must be others."""
_SIGNATURE = "(num_classes: int, image_size: int) -> torch.nn.Sequential"


def takes_inputs(function: Callable[..., object]) -> bool:
    """Whether a model's function takes a description of the input, its one parameter, in place of an image's size."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    by_place = [own for own in parameters if own.kind in (own.POSITIONAL_ONLY, own.POSITIONAL_OR_KEYWORD)]
    return len(by_place) == 1 and not any(own.kind is own.VAR_POSITIONAL for own in parameters)


def load(path: str) -> tuple[Callable[..., nn.Sequential], str]:
    """The function that ``path`` names, with its networks checked, and its attribute ``cut``, empty if it has none.

    Parameters
    ----------
    path : str
        ``package.module:function``; the function is called with the number of classes and the image size in pixels, or
        if it has one parameter with an `sglr_flower.data.inputs.Inputs`, which has the number of outputs too.

    Raises
    ------
    UserError
        If there is no such function, or it cannot be called so. The function returned raises it if the network is not
        an ``nn.Sequential`` of two stages or more that maps images to logits, or takes these inputs.
    """
    function = imports.load(path, "model")
    wrong = f"run-config key model = {path!r}: it must"
    # Neither a network instead of the function that makes one, nor what a slip of the pen names, such as os:kill.
    if not callable(function) or isinstance(function, nn.Module) or inspect.isbuiltin(function):
        raise UserError(f"{wrong} be a function {_SIGNATURE}, not a {type(function).__name__}")
    general = takes_inputs(function)
    try:
        inspect.signature(function).bind(*([rgb(32)] if general else [10, 32]))
    except (TypeError, ValueError) as error:  # ValueError: some functions written in C have no signature
        raise UserError(f"{wrong} be a function {_SIGNATURE}, this one cannot be called so ({error})") from None

    def checked(network: object) -> nn.Sequential:
        if not isinstance(network, nn.Sequential):
            raise UserError(f"{wrong} return a torch.nn.Sequential of stages, not a {type(network).__name__}")
        if len(network) < 2:
            raise UserError(f"{wrong} return two stages or more, one on each side of the cut, not {len(network)}")
        return network

    def made(*given: object) -> nn.Sequential:
        network = function(*given)
        checked(network)
        for weight in network.parameters():
            if _GIVEN.get(id(weight)) is weight:
                raise UserError(
                    f"{wrong} return a new network each time it is called, and it gave the same weights twice"
                )
            _GIVEN[id(weight)] = weight
        return network  # type: ignore[no-any-return]  # what has been looked at

    def for_inputs(inputs: Inputs) -> nn.Sequential:
        network = made(inputs)
        _output(network, inputs, f"{wrong} take {inputs.words()}")
        return network

    def for_images(num_classes: int, image_size: int) -> nn.Sequential:
        network = made(num_classes, image_size)
        _check_logits(network, num_classes, image_size, wrong)
        return network

    return for_inputs if general else for_images, str(getattr(function, "cut", ""))


@torch.no_grad()
def _output(network: nn.Sequential, inputs: Inputs, wrong: str) -> object:
    """Try one sample, in evaluation mode, in which no batch-norm statistics move; lazy layers get their shapes here."""
    try:
        output = network.eval()(inputs.example(1, torch.float32))
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{wrong}, it fails with: {error}") from error
    network.train()
    return output


def _check_logits(network: nn.Sequential, num_classes: int, image_size: int, wrong: str) -> None:
    size = (1, 3, image_size, image_size)
    logits = _output(network, rgb(image_size), f"{wrong} map images {size} to logits (1, {num_classes})")
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{wrong} map images {size} to logits (1, {num_classes}), not to {found}")
