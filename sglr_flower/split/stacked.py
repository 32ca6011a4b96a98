"""Client segments computed together: `torch.func.vmap` over their stacked weights instead of a loop over clients.

A client's step is some hundred small kernels, and on a GPU a loop over clients waits for their launches. Stacked, the
kernels of a step are as many for a thousand clients as for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap

from sglr_flower.data.samples import Tensors, each, one
from sglr_flower.models import MixedPrecision, functional, upstream
from sglr_flower.split.optimizers import Optimizer, OptimizerFactory, Slots

_DIFFERENT = 0.01
"""More than kernels differ, TensorFloat-32's too, and less than a forward that does something else."""
_DIFFERENT_MIXED = 0.05
"""The same of bfloat16, which by itself puts ResNet16's smashed data 0.013 from float32's."""

_Rows = slice | Tensor


@dataclass(frozen=True)
class StackedPass:
    """The forward of some clients that waits for their cut gradients.

    Attributes
    ----------
    clients : tuple[int, ...]
        Whose; k of them.
    output : Tensor
        Their smashed data with the graph, (k, b, *cut shape).
    rows : slice | Tensor
        Their rows of the stack; int64 (k,) where they are not all.
    weights : list[Tensor]
        Their weights, each (k, *shape): the stack itself, or where they are not all a copy.
    lr : float | Tensor
        The learning rate of the step that the cut gradients make.
    """

    clients: tuple[int, ...]
    output: Tensor
    rows: _Rows
    weights: list[Tensor]
    lr: float | Tensor


class Stack:
    """The segments and optimizer states of some clients, one tensor for each weight, buffer and slot.

    What the clients' own modules and optimizers hold becomes rows of these tensors: views of the same memory. So a
    client can be computed with, read and loaded by itself as before, and there is one truth.

    Parameters
    ----------
    members : Mapping[int, tuple[nn.Module, Optimizer]]
        Client -> its segment and optimizer; all of one architecture, in training mode, on one device.
    optimizer : OptimizerFactory
        Which has made theirs; one that is ``stackable``.

    Attributes
    ----------
    alike : bool
        All clients have made the same steps.
    """

    def __init__(self, members: Mapping[int, tuple[nn.Module, Optimizer]], optimizer: OptimizerFactory) -> None:
        self._members, self._optimizer = dict(members), optimizer
        self._row = {client: row for row, client in enumerate(self._members)}
        segments = [segment for segment, _ in self._members.values()]
        self._module = segments[0]
        self._trained = {name: parameter.requires_grad for name, parameter in self._module.named_parameters()}
        self._weights = _gathered([dict(segment.named_parameters()) for segment in segments])
        self._buffers = _gathered([dict(segment.named_buffers()) for segment in segments])
        self._slots: dict[int, Slots] = {}
        states = [optimizer.state() for _, optimizer in self._members.values()]
        for index in sorted(set().union(*states)):
            like = next(state[index] for state in states if index in state)
            # Of a client that has not trained yet they are zeros, as its optimizer would begin with.
            zeros = {name: torch.zeros_like(slot) for name, slot in like.items()}
            rows = [state.get(index, zeros) for state in states]
            self._slots[index] = {name: torch.stack([slots[name] for slots in rows]) for name in like}
        self._share_slots()
        self.alike = _alike([slots["step"] for slots in self._slots.values() if "step" in slots])

    @property
    def clients(self) -> tuple[int, ...]:
        """Whose segments these are, in the order of the rows."""
        return tuple(self._members)

    def tensors(self) -> list[Tensor]:
        """All that a step of the clients reads and moves: weights, buffers, and the optimizers' slots."""
        slots = (slot for own in self._slots.values() for slot in own.values())
        return [*self._weights.values(), *self._buffers.values(), *slots]

    def forward(
        self, clients: Sequence[int], inputs: Tensors, lr: float | Tensor, *, keep_buffers: bool = False
    ) -> StackedPass:
        """The smashed data of some of the clients, with their graph.

        Parameters
        ----------
        clients : Sequence[int]
            k of `clients`, none twice.
        inputs : Tensor
            (k, b, channels, h, w), in the same order.
        lr : float | Tensor
            The learning rate of this step, theirs alike; a tensor () on their device.
        keep_buffers : bool
            Leave batch-norm statistics, say, as they are.
        """
        rows: _Rows = slice(None)
        if tuple(clients) != self.clients:
            rows = torch.tensor([self._row[client] for client in clients], device=one(inputs).device)
        weights = {
            name: stacked.detach()[rows].requires_grad_(self._trained[name]) for name, stacked in self._weights.items()
        }
        buffers = {name: stacked[rows] for name, stacked in self._buffers.items()}
        if keep_buffers:
            buffers = {name: stacked.clone() for name, stacked in buffers.items()}
        output = _together(self._module, weights, buffers, inputs)
        if not keep_buffers:
            _put_back(self._buffers, buffers, rows)
        return StackedPass(tuple(clients), output, rows, list(weights.values()), lr)

    def backward(self, done: StackedPass, gradient: Tensor) -> None:
        """Finish a forward with the cut gradients, (k, b, *cut shape), and make its step."""
        upstream.scalar(done.output, gradient).backward()
        optimizer = self._optimizer.stacked(done.weights, alike=self.alike)
        optimizer.lr = done.lr
        optimizer.adopt(
            {index: {name: slot[done.rows] for name, slot in slots.items()} for index, slots in self._slots.items()}
        )
        optimizer.step()
        if first := optimizer.state().keys() - self._slots.keys():
            count = len(self._members)
            for index in sorted(first):
                new = optimizer.state()[index].items()
                self._slots[index] = {name: slot.new_zeros((count, *slot.shape[1:])) for name, slot in new}
            self._share_slots()
        for index, slots in optimizer.state().items():
            _put_back(self._slots[index], slots, done.rows, new=index in first)
        _put_back(self._weights, dict(zip(self._weights, done.weights, strict=True)), done.rows)
        self.alike = self.alike and not isinstance(done.rows, Tensor)

    def release(self, clients: Sequence[int]) -> None:
        """Give those of ``clients`` that are in the stack memory of their own."""
        for client in clients:
            if client in self._members:
                segment, optimizer = self._members[client]
                for tensor in (*segment.parameters(), *segment.buffers()):
                    tensor.data = tensor.data.clone()
                optimizer.load_state(optimizer.state())

    def _share_slots(self) -> None:
        for row, (_, optimizer) in enumerate(self._members.values()):
            optimizer.adopt(
                {index: {name: slot[row] for name, slot in slots.items()} for index, slots in self._slots.items()}
            )


def refusal(first: nn.Module, second: nn.Module, inputs: Tensors) -> str:
    """Why segments such as these two cannot be computed together; empty if they can.

    Tries it. Random numbers are refused, as every client's are of its own seed (a segment with dropout, say), and so is
    what vmap cannot do, such as a ``.item()``, and what it does differently than a loop over the two.

    Parameters
    ----------
    first, second : nn.Module
        In training mode; stay as they are.
    inputs : Tensors
        A batch, (b, ...).
    """
    segments = (first, second)
    with torch.no_grad():
        weights = _stacked([dict(segment.named_parameters()) for segment in segments])
        before = _stacked([dict(segment.named_buffers()) for segment in segments])
        buffers = {name: stacked.clone() for name, stacked in before.items()}
        after = [{name: buffer.clone() for name, buffer in segment.named_buffers()} for segment in segments]
        alone = [functional.call(segment, moved, inputs) for segment, moved in zip(segments, after, strict=True)]
        try:
            together = _together(first, weights, buffers, each(lambda own: torch.stack([own, own]), inputs))
        except (RuntimeError, ValueError, TypeError) as error:  # the loop has just done it: it is vmap that refuses
            return str(error).strip().partition("\n")[0]
        allowed = _DIFFERENT_MIXED if isinstance(first, MixedPrecision) else _DIFFERENT
        if _differ(together, torch.stack(alone), allowed):
            return "its output is another one than each client's alone"
        for name, expected in _stacked(after).items():
            if _differ(buffers[name], expected, allowed, before[name]):
                return f"its buffer {name} moves otherwise than each client's alone"
    return ""


def _together(
    module: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensors
) -> Tensor:
    def one(own_weights: dict[str, Tensor], own_buffers: dict[str, Tensor], batch: Tensors) -> Tensor:
        return functional.call(module, {**own_weights, **own_buffers}, batch)

    output: Tensor = vmap(one, randomness="error")({**weights}, {**buffers}, inputs)
    return output


def _stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@torch.no_grad()
def _gathered(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack tensors by name, and make each of them a row of the stack."""
    stacks = _stacked(states)
    for row, state in enumerate(states):
        for name, tensor in state.items():
            tensor.data = stacks[name][row]
    return stacks


@torch.no_grad()
def _put_back(stacks: Mapping[str, Tensor], taken: Mapping[str, Tensor], rows: _Rows, *, new: bool = False) -> None:
    """Write rows where they were taken from; a slice of the stack is the stack, unless the rows are new."""
    if new or isinstance(rows, Tensor):
        for name, tensor in taken.items():
            stacks[name][rows] = tensor


def _alike(steps: Sequence[Tensor]) -> bool:
    """Whether in each of some tensors (clients,) all numbers are the same; waits for the device once."""
    return not steps or bool(torch.stack([(own == own[0]).all() for own in steps]).all())


def _differ(ours: Tensor, theirs: Tensor, allowed: float, start: Tensor | None = None) -> bool:
    """Whether two results are further than ``allowed`` apart, of their size; ``start``: what both have moved from."""
    if ours.shape != theirs.shape:
        return True
    ours, theirs = ours.double(), theirs.double()
    distance, size = (ours - theirs).norm(), theirs.norm()
    if start is not None:
        size = (theirs - start.double()).norm() + 1e-3 * size
    return float(distance) > allowed * float(size)  # False of nan: a run that diverged
