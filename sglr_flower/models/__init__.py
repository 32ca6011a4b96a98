"""Models as sequences of named stages, and cutting them in two.

A model is an ``nn.Sequential`` whose children are named *stages*; cutting is slicing. Add one by writing a function
``(num_classes) -> nn.Sequential`` and a line in ``_MODELS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sglr_flower.errors import UserError
from sglr_flower.models.resnet16 import resnet16
from sglr_flower.seeds import torch_seed


@dataclass(frozen=True)
class Model:
    """How to build a network, and where it is cut unless the user says otherwise.

    Attributes
    ----------
    build : Callable[[int], nn.Sequential]
        From the number of classes to the whole network, input (n, 3, h, w), output logits (n, classes).
    cut : str
        Name of the client segment's last stage.
    """

    build: Callable[[int], nn.Sequential]
    cut: str


_MODELS = {"resnet16": Model(resnet16, cut="stage2")}


def get(name: str) -> Model:
    """Look a model up by its name in the run-config.

    Raises
    ------
    UserError
        If it is unknown; the sentence lists the known ones.
    """
    try:
        return _MODELS[name]
    except KeyError:
        known = ", ".join(_MODELS)
        raise UserError(f"run-config key model = {name!r}: it must be one of {known}") from None


def cut_index(network: nn.Sequential, cut: str) -> int:
    """Number of stages in the client segment, for a cut given as a stage's name or as that number.

    Raises
    ------
    UserError
        If there is no such stage, or one of the segments would be empty; the sentence lists the right cuts.
    """
    names = [name for name, _ in network.named_children()]
    if cut in names[:-1]:
        return names.index(cut) + 1
    if cut.isdecimal() and 1 <= int(cut) < len(names):
        return int(cut)
    raise UserError(
        f"run-config key cut = {cut!r}: it must be one of {', '.join(names[:-1])}, "
        f"or a number of stages from 1 to {len(names) - 1}"
    )


@dataclass(frozen=True)
class SplitModel:
    """A model, a cut and a seed: everything that fixes the initial weights of all segments.

    Client i's segment and the server segment are cut from whole networks drawn from the run's seed, so client 0's
    segment together with the server segment is one ordinary initialisation of the unsplit model.

    Attributes
    ----------
    name : str
        Registered model.
    cut : str
        Stage name or number of stages; empty for the model's own cut.
    num_classes : int
        Width of the output layer.
    seed : int
        The run's seed.
    shared : bool
        Whether all clients start from the same weights (client 0's).
    dtype : torch.dtype
        Of weights and activations.
    """

    name: str
    cut: str
    num_classes: int
    seed: int
    shared: bool = False
    dtype: torch.dtype = torch.float32

    def whole(self, client: int = 0) -> nn.Sequential:
        """The unsplit network with client ``client``'s initial weights."""
        model = get(self.name)
        # fork_rng: initialisation must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.seed, "model", 0 if self.shared else client))
            return model.build(self.num_classes).to(self.dtype)

    def client_segment(self, client: int) -> nn.Sequential:
        """Initial client segment of one client: the stages up to the cut."""
        network = self.whole(client)
        return network[: self._index(network)]

    def server_segment(self) -> nn.Sequential:
        """Initial server segment: the stages above the cut."""
        network = self.whole()
        return network[self._index(network) :]

    def _index(self, network: nn.Sequential) -> int:
        return cut_index(network, self.cut or get(self.name).cut)
