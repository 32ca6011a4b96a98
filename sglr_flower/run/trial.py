"""A network and a method of one's own tried on zeros before anything starts: in training mode, forward and backward."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from sglr_flower import imports
from sglr_flower.data.samples import Tensors, each, one
from sglr_flower.data.targets import Kind, Values
from sglr_flower.errors import Diverged, UserError
from sglr_flower.models import MixedPrecision
from sglr_flower.models.own import through
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.loss import Loss, link_function
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import LocalLink, TrainSession, train_locally, train_round
from sglr_flower.split.server import ServerSegment

COUNT = 2
"""Samples of the batch that is tried: the fewest that batch norm has statistics of."""


@dataclass(frozen=True)
class Parts:
    """Two segments to be tried, which nobody trains afterwards, and what they are called.

    Attributes
    ----------
    lower, upper : nn.Module
        Client and server segment, cut from one network; an empty ``nn.Sequential`` is no server segment.
    wrong : str
        The beginning of a sentence on them: ``run-config key model = 'mine:network'``.
    names : tuple[str, str]
        What the sentence calls each.
    function : object
        What has made them; its line is named where no other is the user's.
    """

    lower: nn.Module
    upper: nn.Module
    wrong: str
    names: tuple[str, str] = ("its client segment", "its server segment")
    function: object = None

    def refusal(self, part: int, words: str, *owners: object) -> UserError:
        """A sentence on the client's (0) or the server's (1) segment, with the place in the user's code."""
        place = next(filter(None, map(imports.defined, (*owners, self.function))), "")
        return UserError(f"{self.wrong}: {self.names[part]} {words}" + f" ({place})" * bool(place))

    def forward(self, part: int, inputs: Tensors, wrong: str = "") -> object:
        """What one of them makes of a batch in training mode; a stage that fails is a sentence."""
        segment = (self.lower, self.upper)[part].train()
        mixed = isinstance(segment, MixedPrecision)
        with torch.autocast(one(inputs).device.type, torch.bfloat16, enabled=mixed):
            plain = nn.Sequential(OrderedDict(segment.named_children())) if mixed else segment
            made = through(plain, inputs, wrong or f"{self.wrong}: {self.names[part]} is tried", self.function)
        return made.float() if mixed and isinstance(made, Tensor) else made


@dataclass(frozen=True)
class Tried:
    """What two segments made of a batch: smashed data and outputs, without a graph."""

    smashed: Tensor
    outputs: Tensor


def network(parts: Parts, inputs: Tensors) -> Tried:
    """Train two segments on a batch, without a step of their optimizers.

    Parameters
    ----------
    parts : Parts
        Their gradients and buffers are changed.
    inputs : Tensors
        A batch of `COUNT` samples or more.

    Raises
    ------
    UserError
        If a stage fails; if at the cut or the end there is not one tensor with a row for each sample; if there is no
        way for a gradient to a client segment's weights; if a weight is in both segments.
    """
    check_weights(parts)
    count = len(one(inputs))
    with _alone(inputs):
        smashed = _tensor(parts, 0, parts.forward(0, inputs), count)
        if not smashed.requires_grad:
            raise _without_graph(parts, 0, inputs)
        cut = smashed.detach().requires_grad_()
        outputs = _tensor(parts, 1, parts.forward(1, cut), count) if _weighs(parts.upper) else cut
        if not outputs.requires_grad:
            raise _without_graph(parts, 1, cut)
        _backward(parts, 1, outputs, torch.ones_like(outputs))
        if cut.grad is None:
            raise parts.refusal(1, "does not use the smashed data: no gradient comes back to the cut")
        _backward(parts, 0, smashed, cut.grad)
    return Tried(smashed.detach(), outputs.detach())


def remarks(parts: Parts, outputs: Tensor | None, loss: Loss) -> list[str]:
    """What a network that can be trained may not be meant to be, a sentence each.

    Parameters
    ----------
    parts : Parts
        As they are.
    outputs : Tensor | None
        What `network` found; None: it is one of ours.
    loss : Loss
        What they go into.
    """
    if outputs is None:
        return []
    found, wanted = [], link_function(loss)
    leaves = [module for module in parts.upper.modules() if not list(module.children())]
    if wanted == "softmax" and _are_probabilities(outputs):
        found.append(
            "its outputs are probabilities (each sample's sum to one), but the loss takes logits: leave out "
            "the softmax at its end, with which it trains badly"
        )
    elif wanted == "sigmoid" and leaves and isinstance(leaves[-1], nn.Sigmoid):
        found.append("it ends in a sigmoid, but the loss takes logits: leave it out, it trains badly with it")
    if _weighs(parts.upper) and is_frozen(parts.upper):
        found.append(f"{parts.names[1]} has no weight that is trained, so the server learns nothing")
    return [f"{parts.wrong}: {sentence}" for sentence in found]


def of_numbers(kind: Kind, loss: Loss) -> str:
    """What is said of targets that are numbers where the loss is one for classes; empty of others."""
    if not isinstance(kind, Values) or link_function(loss) != "softmax":
        return ""
    return (
        "the targets are floating point numbers, so they are no classes and have no accuracy: for classes give each "
        "sample's class number, a whole one (of one-hot rows targets.argmax(1))"
    )


def ones(parts: Parts, sizes: Mapping[int, int], batch_size: int, joint: bool) -> list[str]:
    """What is said of clients all of whose batches are one sample, where batch norm has only them: a sentence or none.

    ``joint``: whether the server segment has the batches of all clients at once.
    """
    clients = [str(client) for client, count in sorted(sizes.items()) if batch_size == 1 or count == 1]
    alone = [parts.lower] if joint else [parts.lower, parts.upper]
    norms = [name for part in alone for name, module in part.named_modules() if isinstance(module, _BatchNorm)]
    if not clients or not norms:
        return []
    named = ", ".join(clients[:10]) + f" and {len(clients) - 10} more" * (len(clients) > 10)
    return [
        f"client(s) {named}: all batches are of one sample, of which batch norm ({norms[0]}) takes its statistics: "
        "take a larger batch-size, or a norm over groups (torch.nn.GroupNorm) in its place"
    ]


def check_on_one(parts: Parts, inputs: Tensors, reasons: tuple[str, str]) -> None:
    """Refuse segments that cannot be trained on one sample where they would have to.

    Parameters
    ----------
    parts : Parts
        Their buffers are changed.
    inputs : Tensors
        A batch of `COUNT` samples.
    reasons : tuple[str, str]
        Why client and server segment get one (`batches_of_one`); empty where they do not.

    Raises
    ------
    UserError
        With the reason, the stage that fails (batch norm over one value a channel) and what it says.
    """
    with _alone(inputs), torch.no_grad():
        if reasons[0]:
            parts.forward(0, each(lambda own: own[:1], inputs), f"{parts.wrong}: {reasons[0]}")
        if reasons[1]:
            smashed = parts.forward(0, inputs)
            assert isinstance(smashed, Tensor)
            parts.forward(1, smashed[:1], f"{parts.wrong}: {reasons[1]}")


def batches_of_one(plans: Iterable[RoundPlan], sizes: Mapping[int, int], joint: bool) -> tuple[str, str]:
    """Why a client segment, and why the server segment, is to be trained on one sample; empty where neither is.

    Parameters
    ----------
    plans : Iterable[RoundPlan]
        Rounds, of all that are different in who takes part.
    sizes : Mapping[int, int]
        Client -> its number of samples.
    joint : bool
        Whether the server learns from the batches of all clients of a step at once.
    """
    lower = upper = ""
    for plan in plans:
        size, seen = plan.batch_size, set[int]()
        for client in sorted(sizes.keys() & set(plan.clients)):
            count = sizes[client]
            if (count % size != 1 and size > 1) or (joint and not plan.sequential and count in seen):
                continue
            seen.add(count)
            reason = f"client {client}'s {count} sample(s) leave a batch of one with batch-size = {size}"
            lower = lower or reason
            batches = -(-count // size)
            ends = (epoch * batches + batches - 1 for epoch in range(plan.local_epochs))
            if not joint or plan.sequential or any(sum(plan.sizes_at(end, sizes).values()) == 1 for end in ends):
                upper = upper or f"{reason}, and the server segment has no other sample in that step"
        if lower and upper:
            break
    return lower, upper


def step(wrong: str, plan: RoundPlan, cohort: Cohort, server: ServerSegment | None) -> None:
    """Train a round on a cohort, so that what a method of one's own does in it is found.

    Raises
    ------
    UserError
        If it fails, with the place in the user's code. That numbers of zeros are not finite says nothing.
    """
    try:
        with torch.random.fork_rng(devices=[cohort.device] if cohort.device.type == "cuda" else []):
            for turn in plan.turns():
                if server is None:
                    train_locally(cohort, turn)
                else:
                    train_round(server, turn, LocalLink({0: TrainSession(cohort, turn)}))
    except Diverged:
        return
    except Exception as error:  # whatever the user's own parts do
        raise UserError(f"{wrong}: a step of training fails with {imports.told(error)}") from error


def is_frozen(segment: nn.Module) -> bool:
    """Whether none of a segment's weights is trained."""
    return not any(weight.requires_grad for weight in segment.parameters())


def _are_probabilities(outputs: Tensor) -> bool:
    if outputs.ndim != 2 or outputs.shape[1] < 2 or bool((outputs < 0).any()):
        return False
    return bool((outputs.sum(1) - 1).abs().max() < 1e-3)


def _weighs(segment: nn.Module) -> bool:
    """Whether there is a segment at all: an ``nn.Sequential`` without stages hands through what it is given."""
    return not isinstance(segment, nn.Sequential) or len(segment) > 0


def _backward(parts: Parts, part: int, made: Tensor, gradient: Tensor) -> None:
    try:
        torch.autograd.backward(made, gradient)
    except Exception as error:  # whatever the user's own modules do
        raise parts.refusal(part, f"fails in the backward pass with {imports.told(error)}") from error


def _tensor(parts: Parts, part: int, made: object, count: int) -> Tensor:
    segment = (parts.lower, parts.upper)[part]
    last = list(segment)[-1] if isinstance(segment, nn.Sequential) else segment
    end = "at the cut" if part == 0 and _weighs(parts.upper) else "at its end"
    if isinstance(made, Tensor) and made.is_floating_point() and made.shape[:1] == (count,):
        return made
    found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
    words = f"must give one floating point tensor {end}, with a row for each of {count} samples, and gives {found}"
    raise parts.refusal(part, f"{words}{_stage(segment, last)}", last)


def _without_graph(parts: Parts, part: int, inputs: Tensors) -> UserError:
    """The sentence for an output that no gradient comes back from, with the stage that has lost the graph."""
    segment = (parts.lower, parts.upper)[part]
    if part == 0 and is_frozen(segment):
        why = " (all are frozen: requires_grad = False)" * any(True for _ in segment.parameters())
        return parts.refusal(0, f"must have a weight that is trained{why}: cut it above the first such stage")
    given, lost = inputs, segment
    for stage in segment if isinstance(segment, nn.Sequential) else ():
        given = stage(given)
        if not one(given).requires_grad and not is_frozen(stage):
            lost = stage
            break
    words = "gives a tensor without a graph (a detach or no_grad"
    return parts.refusal(part, f"{words}{_stage(segment, lost)}), so what is below cannot be trained", lost)


def _stage(segment: nn.Module, stage: nn.Module) -> str:
    """Which stage of a segment one is, for a sentence; empty if it is the segment itself."""
    return next((f" in stage {name!r}" for name, own in segment._modules.items() if own is stage), "")


def check_weights(parts: Parts) -> None:
    """Refuse a weight in both segments, which would become two, and two weights in one memory."""
    lower = {id(weight) for weight in parts.lower.parameters()}
    both = [name for name, weight in parts.upper.named_parameters() if id(weight) in lower]
    if both:
        words = f"has a weight that {parts.names[0]} has too ({both[0]}): each side would train one of its own"
        raise parts.refusal(1, f"{words}, so cut it where the weight is on one side, or make two")
    for part, segment in enumerate((parts.lower, parts.upper)):
        places = [weight.data_ptr() for weight in segment.parameters() if not is_lazy(weight) and weight.numel()]
        if len(set(places)) < len(places):
            raise parts.refusal(part, "has two weights in the same memory: share the torch.nn.Parameter itself")


@contextlib.contextmanager
def _alone(inputs: Tensors) -> Iterator[None]:
    """Without a trace in torch's random numbers."""
    device = one(inputs).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
