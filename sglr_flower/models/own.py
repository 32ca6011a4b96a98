"""A user's own model by its import path, checked so that a mistake in it is one sentence."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglr_flower import imports
from sglr_flower.data.inputs import Inputs, rgb
from sglr_flower.data.samples import Tensors
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


def refuse_what_is_no_image(name: str, inputs: Inputs) -> None:
    """Refuse inputs that a model made for square images cannot take.

    Raises
    ------
    UserError
        If they are none; ``name`` is the model's, for the sentence.
    """
    if not inputs.image_size:
        raise UserError(
            f"run-config key model = {name!r}: it is made for square images of three channels, and the data set "
            f"has {inputs.words()}: mlp is for tables, a function of one's own with one parameter for anything"
        )


def load(path: str) -> tuple[Callable[[Inputs], nn.Sequential], str]:
    """The function that ``path`` names, with its networks checked, and its attribute ``cut``, empty if it has none.

    Parameters
    ----------
    path : str
        ``package.module:function``; the function is called with the number of classes and the image size in pixels, or
        if it has one parameter with an `sglr_flower.data.inputs.Inputs`, which has the number of outputs too. The one
        returned takes an ``Inputs`` in either case.

    Raises
    ------
    UserError
        If there is no such function, or it cannot be called so. The function returned raises it if it fails, or the
        network is not an ``nn.Sequential`` of two stages or more that maps images to logits, or takes these inputs.
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

    def made(*given: object) -> nn.Sequential:
        try:
            network = function(*given)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own function does
            raise UserError(
                f"run-config key model = {path!r}: calling it fails with {imports.told(error, function)}"
            ) from error
        if not isinstance(network, nn.Sequential):
            raise UserError(f"{wrong} return a torch.nn.Sequential of stages, not a {type(network).__name__}")
        if len(network) < 2:
            raise UserError(f"{wrong} return two stages or more, one on each side of the cut, not {len(network)}")
        for weight in network.parameters():
            if _GIVEN.get(id(weight)) is weight:
                raise UserError(
                    f"{wrong} return a new network each time it is called, and it gave the same weights twice"
                )
            _GIVEN[id(weight)] = weight
        return network

    def build(inputs: Inputs) -> nn.Sequential:
        if general:
            network = made(inputs)
            _output(network, inputs, f"{wrong} take {inputs.words()}", function)
            return network
        refuse_what_is_no_image(path, inputs)
        network = made(inputs.outputs, inputs.image_size)
        _check_logits(network, inputs, wrong, function)
        return network

    return build, str(getattr(function, "cut", ""))


def through(segment: nn.Module, inputs: Tensors, wrong: str, function: object = None) -> object:
    """What a segment makes of a batch, stage by stage, so that the one that fails is named.

    Parameters
    ----------
    segment : nn.Module
        As it is, in training mode or not; of an ``nn.Sequential`` each stage is called.
    inputs : Tensors
        A batch.
    wrong : str
        The sentence's beginning.
    function : object
        What has made it, the last choice of the place that is named.

    Raises
    ------
    UserError
        If it fails, with the stage, and file and line of the user's code.
    """
    whole = type(segment).forward is not nn.Sequential.forward
    given: object = inputs
    for name, stage in [("", segment)] if whole else segment._modules.items():
        assert stage is not None
        try:
            given = stage(given)
        except Exception as error:  # whatever the user's own modules do
            which = f"and its stage {name!r} fails" if name else "and it fails"
            mode = " in training mode" * stage.training
            said = f"{wrong}, {which}{mode} with {imports.told(error, stage, function)}"
            raise UserError(f"{said}{_hint(segment, inputs)}") from error
    return given


def _hint(segment: nn.Module, inputs: Tensors) -> str:
    """What a network made for grey images wants, where it is given others."""
    first = next((module for module in segment.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] == first.in_channels:
        return ""
    if (first.in_channels, inputs.shape[1]) in ((1, 3), (3, 1)):
        return f": it is made for images of {first.in_channels} channel(s), so set channels = {first.in_channels}"
    return ""


@torch.no_grad()
def _output(network: nn.Sequential, inputs: Inputs, wrong: str, function: object) -> object:
    """Try one sample, in evaluation mode, in which no batch-norm statistics move; lazy layers get their shapes here."""
    output = through(network.eval(), inputs.example(1, torch.float32), wrong, function)
    network.train()
    return output


def _check_logits(network: nn.Sequential, inputs: Inputs, wrong: str, function: object) -> None:
    size, wanted = (1, *inputs.shape), (1, inputs.outputs)
    logits = _output(network, inputs, f"{wrong} map images {size} to logits {wanted}", function)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{wrong} map images {size} to logits {wanted}, not to {found}{_odd(network, inputs, function)}"
        )


@torch.no_grad()
def _odd(network: nn.Sequential, inputs: Inputs, function: object) -> str:
    """The stage from which on there is not one row for one sample, if that is what is wrong, and the place in code."""
    given: object = inputs.example(1, torch.float32)
    for name, stage in network.eval()._modules.items():
        assert stage is not None
        given = stage(given)
        if isinstance(given, Tensor) and given.shape[:1] != (1,):
            place = imports.defined(stage) or imports.defined(function)
            return f": its stage {name!r} makes {tuple(given.shape)} of one sample" + f" ({place})" * bool(place)
    return f" ({place})" if (place := imports.defined(function)) else ""
