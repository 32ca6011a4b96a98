"""A module called with other weights and buffers than its own, which stays as it is."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call(module: nn.Module, tensors: MutableMapping[str, Tensor], inputs: Any) -> Tensor:
    """What a module makes of a batch with the given weights and buffers in place of its own.

    As `torch.func.functional_call`, but that (torch 2.14) leaves the given tensors in a module that has two names,
    ``nn.Sequential(conv, relu, conv)`` say: it puts each name's own back in the order in which it took them.

    Parameters
    ----------
    module : nn.Module
        In training mode the given buffers are moved, and not its own.
    tensors : MutableMapping[str, Tensor]
        By the names of ``named_parameters`` and ``named_buffers``, each of its own's shape; others are its own.
    inputs : Tensor or dict of Tensor
        The batch, (b, ...).

    Returns
    -------
    Tensor
        Its output, (b, ...), with its graph.
    """
    known = (*module.named_parameters(), *module.named_buffers())
    given = {id(own): name for name, own in known if name in tensors}
    # Each place of a weight once, by the first name of its module: so none is taken twice.
    places = {
        f"{prefix}.{name}".lstrip("."): given[id(own)]
        for prefix, part in module.named_modules()
        for name, own in (*part._parameters.items(), *part._buffers.items())
        if id(own) in given
    }
    taken = {place: tensors[name] for place, name in places.items()}
    output: Tensor = functional_call(module, taken, (inputs,), tie_weights=False)
    for place, name in places.items():  # a module may put another tensor where its buffer was
        tensors[name] = taken[place]
    return output
