"""Models as sequences of named stages, and cutting them in two.

A model is an ``nn.Sequential`` whose children are named *stages*; cutting is slicing. Add one by writing a function
``(num_classes, image_size) -> nn.Sequential``, or for what is no image ``(inputs) -> nn.Sequential`` with an
`sglr_flower.data.inputs.Inputs`, and a line in ``_MODELS``; or outside the package by naming such a function in the
run-config: ``model = "package.module:function"``.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sglr_flower import imports
from sglr_flower.data.inputs import Inputs, rgb
from sglr_flower.data.samples import Tensors, each, one
from sglr_flower.errors import UserError
from sglr_flower.models import own
from sglr_flower.models.alexnet import alexnet
from sglr_flower.models.mlp import mlp
from sglr_flower.models.resnet16 import resnet16
from sglr_flower.models.resnet18 import resnet18
from sglr_flower.models.vit import vit
from sglr_flower.seeds import seed_torch


@dataclass(frozen=True)
class Model:
    """How to build a network, and where it is cut unless the user says otherwise.

    Attributes
    ----------
    build : Callable[[int, int], nn.Sequential] | Callable[[Inputs], nn.Sequential]
        From the number of classes and the image size in pixels to the whole network: input
        (n, 3, image_size, image_size), output logits (n, classes). Or, with one parameter, from a description of the
        input with the number of outputs. Raises UserError if it is not made for that.
    cut : str
        The client segment's last stage, or the number of its stages; empty if the user has to say it.
    """

    build: Callable[..., nn.Sequential]
    cut: str

    def network(self, name: str, inputs: Inputs) -> nn.Sequential:
        """The whole network for such inputs.

        Raises
        ------
        UserError
            If the model, whose ``name`` is for the sentence, is made for images and these are none.
        """
        if own.takes_inputs(self.build):
            return self.build(inputs)
        own.refuse_what_is_no_image(name, inputs)
        return self.build(inputs.outputs, inputs.image_size)


_MODELS = {
    "resnet16": Model(resnet16, cut="stage2"),
    "alexnet": Model(alexnet, cut="conv1"),
    "resnet18": Model(resnet18, cut="layer1"),
    "vit": Model(vit, cut="block2"),
    "mlp": Model(mlp, cut="layer1"),
}


def get(name: str) -> Model:
    """Look a model up by its name in the run-config, or import one's own.

    Parameters
    ----------
    name : str
        A registered model, or ``package.module:function`` for a function with a signature of `Model.build`; its
        attribute ``cut``, if it has one, is where it is cut unless the user says otherwise.

    Raises
    ------
    UserError
        If it is unknown; the sentence lists the known ones. If it is an import path: see `own.load`.
    """
    if imports.is_path(name):
        build, cut = own.load(name)
        return Model(build, cut)
    try:
        return _MODELS[name]
    except KeyError:
        known = ", ".join(_MODELS)
        raise UserError(
            f"run-config key model = {name!r}: it must be one of {known}, or package.module:function"
        ) from None


def stage_names(network: nn.Sequential) -> list[str]:
    """The stages' names, in order; unlike ``named_children`` with a module that occurs twice."""
    return list(network._modules)


def cut_index(network: nn.Sequential, cut: str) -> int:
    """Number of stages in the client segment, for a cut given as a stage's name or as that number.

    Raises
    ------
    UserError
        If there is no such stage, or one of the segments would be empty; the sentence lists the right cuts.
    """
    names = stage_names(network)
    # A number first: the stages of an nn.Sequential without names are called 0, 1, ..., which are no counts.
    if cut.isdecimal() and 1 <= int(cut) < len(names):
        return int(cut)
    if cut in names[:-1] and not cut.isdecimal():
        return names.index(cut) + 1
    raise UserError(
        f"run-config key cut = {cut!r}: it must be one of {', '.join(names[:-1])}, "
        f"or a number of stages from 1 to {len(names) - 1}"
    )


class MixedPrecision(nn.Sequential):
    """Stages that compute in bfloat16 where `torch.autocast` does; weights, input and output keep their dtype.

    Slices are of the same class, so both segments of such a network compute like this.
    """

    def forward(self, batch: Tensors) -> torch.Tensor:
        """The stages in order, (n, *shape)."""
        first = one(batch)
        with torch.autocast(first.device.type, torch.bfloat16):
            output: torch.Tensor = super().forward(batch)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return output.to(first.dtype if first.is_floating_point() else torch.float32)


@dataclass(frozen=True)
class SplitModel:
    """A model, a cut and a seed: everything that fixes the initial weights of all segments.

    Client i's segment and the server segment are cut from whole networks drawn from the run's seed, so client 0's
    segment together with the server segment is one ordinary initialisation of the unsplit model.

    Attributes
    ----------
    name : str
        Registered model, or the import path of one's own.
    cut : str
        Stage name or number of stages; empty for the model's own cut.
    num_classes : int
        Width of the output layer: classes, labels or values.
    inputs : Inputs
        What a sample's input is; images of 32 pixels unless it is said.
    seed : int
        The run's seed.
    shared : bool
        Whether all clients start from the same weights (client 0's).
    dtype : torch.dtype
        Of weights and activations.
    mixed : bool
        Whether segments compute in bfloat16 where autocast does (`MixedPrecision`).
    """

    name: str
    cut: str
    num_classes: int
    inputs: Inputs = field(default=rgb(32), kw_only=True)
    seed: int
    shared: bool = False
    dtype: torch.dtype = torch.float32
    mixed: bool = False

    def whole(self, client: int = 0) -> nn.Sequential:
        """The unsplit network with client ``client``'s initial weights.

        Raises
        ------
        UserError
            If the model is unknown or not made for these inputs.
        """
        model = get(self.name)
        # fork_rng: initialisation must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            seed_torch(torch.device("cpu"), self.seed, "model", 0 if self.shared else client)
            network = model.network(self.name, replace(self.inputs, outputs=self.num_classes)).to(self.dtype)
        work_out_of_place(network)
        return MixedPrecision(OrderedDict(network._modules)) if self.mixed else network

    def client_segment(self, client: int) -> nn.Sequential:
        """Initial client segment of one client: the stages up to the cut."""
        network = self.whole(client)
        return network[: self._index(network)]

    def server_segment(self) -> nn.Sequential:
        """Initial server segment: the stages above the cut."""
        network = self.whole()
        return network[self._index(network) :]

    def segments(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Client 0's initial segment and the server's, cut from one network: what both have is the same object."""
        network = self.whole()
        index = self._index(network)
        return network[:index], network[index:]

    def smashed_shape(self) -> tuple[int, ...]:
        """One sample's smashed data: the cut shape, without the batch's dimension.

        Raises
        ------
        UserError
            If the model is unknown or not made for these inputs, or its client segment gives no tensor.
        """
        # eval: batch norm cannot train on one image.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            smashed = self.client_segment(0).eval()(self.inputs.example(1, self.dtype))
        if not isinstance(smashed, torch.Tensor):
            kind = type(smashed).__name__
            raise UserError(f"run-config key model = {self.name!r}: at its cut there must be one tensor, not a {kind}")
        return tuple(smashed.shape[1:])

    def memory_format(self) -> torch.memory_format:
        """How images and smashed data lie in memory while they are computed with on a CPU.

        ``channels_last`` makes float32 convolutions a sixth faster (`docs/performance.md`). Not every network takes it:
        one's own may ``view`` a convolution's output as if it were contiguous.

        Raises
        ------
        UserError
            As `smashed_shape`.
        """
        return _memory_format(self)

    def _index(self, network: nn.Sequential) -> int:
        return cut_index(network, self.cut or get(self.name).cut)


@functools.lru_cache(maxsize=8)  # a node's process asks for every message
def _memory_format(model: SplitModel) -> torch.memory_format:
    if model.dtype != torch.float32 or not model.inputs.single or len(model.inputs.shape) != 3:
        return torch.contiguous_format
    images = laid_out(one(model.inputs.example(2, model.dtype)), torch.channels_last)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for training in (True, False):
                smashed = model.client_segment(0).train(training)(images)
                model.server_segment().train(training)(laid_out(smashed, torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def laid_out(tensor: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """A batch in a memory format, if it is one of images or feature maps: (n, channels, height, width)."""
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor.contiguous()


def all_laid_out(inputs: Tensors, memory_format: torch.memory_format) -> Tensors:
    """`laid_out`, of one tensor or several."""
    return each(lambda own: laid_out(own, memory_format), inputs)


def work_out_of_place(network: nn.Module) -> None:
    """Turn ``inplace`` off: a stage that is the server segment's first would write into the smashed data."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # torch types a module's attributes as tensors
