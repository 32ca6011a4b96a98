"""A step of clients and server in one process as one recording: forward, loss, backward, SplitAvg, both optimizers.

Nothing of such a step comes from Python, and within a round hardly anything waits for the device: what differs from
step to step (whose images, who is active, the learning rates) lies in tables on the device, of which a step reads the
row of its number, and that number is counted there. The arithmetic is that of `Stack`, `ServerSegment.learn` and
`splitavg`.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Batch, Share, Tensors, each, in_memory, join, nbytes
from sglr_flower.data.targets import to_targets
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.split import finite, splitavg
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.loss import Loss
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.recording import Recorder, Replay
from sglr_flower.split.rounds import RoundResult
from sglr_flower.split.sent import Sent, total
from sglr_flower.split.server import ServerSegment
from sglr_flower.split.stacked import Stack

STEPS_AT_ONCE = 32
"""Steps after which their losses are read, for which the device is waited for."""


class _Kind(NamedTuple):
    """What is the same in all steps of a recording: samples of each client, and numbers that Python decides by."""

    size: int
    active: int
    over: str
    scale: str
    loss: Loss
    alike: bool


@dataclass
class _Tables:
    """What differs from step to step, a row for each step of a kind.

    Attributes
    ----------
    images : Tensor
        int64 (steps, clients * size): positions of the images, client after client.
    active : Tensor
        int64 (steps, active): the active clients' places among those that take part.
    client_lr, server_lr : Tensor
        (steps,), in the dtype of the weights, as optimizers on a GPU want it.
    losses : Tensor
        float64 (steps,): written by the steps.
    at : Tensor
        int64 (1,): the number of the next step.
    """

    images: Tensor
    active: Tensor
    client_lr: Tensor
    server_lr: Tensor
    losses: Tensor
    at: Tensor


@dataclass
class _Steps:
    """The steps of a kind: their tables, and the recording once there is one."""

    tables: _Tables
    tried: bool = False
    replay: Replay | None = None


class WholeStep:
    """The cohort of all clients and the server segment of a process, whose steps are recorded.

    Parameters
    ----------
    cohort : Cohort
        Made with ``stacked``.
    server : ServerSegment
        On the same device.

    Attributes
    ----------
    cohort, server
        These.
    unfit : str
        Why steps are not recorded, found when one was tried; empty if they are. They are made all the same.
    """

    def __init__(self, cohort: Cohort, server: ServerSegment) -> None:
        self.cohort, self.server = cohort, server
        self.unfit = ""
        self._recorder = Recorder(server.device)
        self._steps: dict[_Kind, _Steps] = {}
        self._memory: list[int] = []
        self._cut_bytes = 0  # of one sample's smashed data
        self._samples, self._positions = _resident(cohort)

    def refusal(self, plan: RoundPlan) -> str:
        """Why a round cannot be trained by `train_round`; empty if it can. Lays the round out (`Cohort.begin`)."""
        if type(self.server) is not ServerSegment or plan.server is None or plan.sequential:
            return "the server does not make one step over the joint batch of all clients"
        if plan.phi and plan.cut_gradient is not splitavg.average:
            return "the method has a rule of its own for the cut gradient"
        if plan.defence or plan.privacy or not (plan.up.off and plan.down.off):
            return "smashed data or cut gradients are changed on their way"
        if plan.augment:
            return "images are augmented"
        if not self.server.recordable:
            return "the server's optimizer reads its learning rate from Python"
        if _number(self.server.device) != _number(self.cohort.device):
            return f"the clients are on {self.cohort.device} and the server on {self.server.device}"
        self.cohort.begin(plan)
        if self.cohort.stack is None:
            return "the clients are not computed together"
        if len({len(self.cohort.data[client]) for client in self.cohort.batches}) > 1:
            return "clients have different numbers of samples"
        return ""

    def train_round(
        self, plan: RoundPlan, on_step: Callable[[int, float], None] | None = None
    ) -> tuple[RoundResult, Sent]:
        """All steps of a round that `refusal` has nothing against.

        Parameters
        ----------
        plan : RoundPlan
            The round's settings.
        on_step : Callable[[int, float], None]
            Told the number of steps done and the step's loss, of some steps at a time.

        Returns
        -------
        RoundResult, Sent
            As of `rounds.train_round`, and the bytes of the tensors that would have travelled.

        Raises
        ------
        Diverged
            If a loss is not finite.
        """
        stack = self.cohort.stack
        assert stack is not None
        if self._memory != self._addresses(stack):
            self._steps.clear()  # recordings are of weights at addresses where they are no longer
        sizes = [len(batch) for batch in next(iter(self.cohort.batches.values()))]
        active = splitavg.num_active(plan.phi, len(stack.clients))
        kinds = [_Kind(size, active, plan.average_over, plan.gradient_scale, plan.loss, stack.alike) for size in sizes]
        started = time.perf_counter()
        self._lay_out(plan, stack, kinds)
        self.server.begin(plan)
        losses: list[float] = []
        seconds: list[float] = []
        while len(losses) < len(kinds):
            first = len(losses)
            some = kinds[first : first + STEPS_AT_ONCE]
            for step, kind in enumerate(some, start=first):
                self._step(plan, stack, kind, step)
            losses += self._losses(kinds[:first], some)
            finite.check_losses(plan.server_round, losses[first:])
            seconds.append((time.perf_counter() - started) / len(some))
            started = time.perf_counter()
            if on_step is not None:
                for step in range(first, len(losses)):
                    on_step(step + 1, losses[step])
        self.server.end()
        self._memory = self._addresses(stack)
        clients = len(stack.clients)
        result = RoundResult(
            steps=len(sizes),
            samples=clients * sum(sizes),
            loss=sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes),
            # The first ones hold the recording.
            step_seconds_median=statistics.median(seconds[1:] or seconds),
        )
        return result, total(self._sent(kind, clients) for kind in kinds)

    def _addresses(self, stack: Stack) -> list[int]:
        return [tensor.data_ptr() for tensor in (*stack.tensors(), *self.server.state().values())]

    def _lay_out(self, plan: RoundPlan, stack: Stack, kinds: Sequence[_Kind]) -> None:
        """Write the round's tables, for known kinds where their recordings read them."""
        batches, clients = self.cohort.batches, stack.clients
        images = torch.stack([self._positions[client][torch.cat(batches[client])] for client in clients])
        parts = images.split([kind.size for kind in kinds], dim=1)
        draws = [generator(plan.seed, "splitavg", plan.server_round, step) for step in range(len(kinds))]
        drawn = [splitavg.draw_active(range(len(clients)), plan.phi, draw) for draw in draws]
        client_lr = [plan.client_rate(step, len(kinds)) for step in range(len(kinds))]
        server_lr = [plan.server_rate(len(clients), step) for step in range(len(kinds))]
        for kind in set(kinds):
            steps = [step for step, other in enumerate(kinds) if other == kind]
            tables = _Tables(
                images=torch.stack([parts[step].flatten() for step in steps]),
                active=torch.tensor([drawn[step] for step in steps], dtype=torch.int64).view(len(steps), -1),
                client_lr=torch.tensor([client_lr[step] for step in steps], dtype=self.cohort.dtype),
                server_lr=torch.tensor([server_lr[step] for step in steps], dtype=self.cohort.dtype),
                losses=torch.zeros(len(steps), dtype=torch.float64),
                at=torch.zeros(1, dtype=torch.int64),
            )
            known = self._steps.get(kind)
            if known is None or len(known.tables.losses) != len(steps):
                on_device = {name: table.to(self.server.device) for name, table in vars(tables).items()}
                self._steps[kind] = _Steps(_Tables(**on_device))
            else:
                for name, table in vars(known.tables).items():
                    table.copy_(getattr(tables, name))

    def _step(self, plan: RoundPlan, stack: Stack, kind: _Kind, step: int) -> None:
        """A step of the round: tried the first time, recorded the second, then done again."""
        own = self._steps[kind]
        if own.replay is not None:
            own.replay()
            return
        seed_torch(self.server.device, plan.seed, "server", plan.server_round, step, stack.clients[0])
        compute = functools.partial(self._compute, plan.loss, stack, kind, own.tables)
        if not own.tried:
            own.tried = True
            self.unfit = self._recorder.attempt(compute) or self.unfit
        elif self.unfit:
            compute()
        else:
            try:
                own.replay = self._recorder.record(compute)
            except RuntimeError as error:  # what CUDA could not record it has not computed either
                self.unfit = str(error).strip().partition("\n")[0]
                compute()

    def _compute(self, loss: Loss, stack: Stack, kind: _Kind, tables: _Tables) -> None:
        """A step of all clients and the server; reads and writes tensors that stay where they are."""
        at, clients = tables.at, len(stack.clients)
        chosen = tables.images.index_select(0, at).flatten()

        def taken(values: Tensors) -> Tensors:
            return each(lambda own: own.index_select(0, chosen), values)

        inputs = to_inputs(taken(self._samples.inputs), self.cohort.dtype)
        apart = each(lambda own: own.unflatten(0, (clients, kind.size)), inputs)
        done = stack.forward(stack.clients, apart, tables.client_lr.index_select(0, at).squeeze(0))
        smashed = done.output.detach().flatten(0, 1)
        self._cut_bytes = smashed[0].nbytes
        labels = taken(self._samples.targets)
        cut, mean = self.server.learn(loss, smashed, labels, tables.server_lr.index_select(0, at).squeeze(0))
        gradients = cut.unflatten(0, (clients, kind.size))
        if kind.scale == "own":
            gradients = gradients * clients  # as in `ServerSegment.update`, with batches of one size
        if kind.active:
            active = tables.active.index_select(0, at).flatten()
            of_active = gradients.index_select(0, active)
            over = (0,) if kind.over == "clients" else (0, 1)
            average = of_active.mean(over, keepdim=True)
            gradients = gradients.index_copy(0, active, average.expand_as(of_active))
        stack.backward(done, gradients)
        tables.losses.index_copy_(0, at, mean.double().view(1))
        at.add_(1)

    def _losses(self, before: Sequence[_Kind], some: Sequence[_Kind]) -> list[float]:
        """The losses of some steps, given the kinds of those before them; waits for the device."""
        read = {kind: iter(self._steps[kind].tables.losses.tolist()[before.count(kind) :]) for kind in set(some)}
        return [next(read[kind]) for kind in some]

    def _sent(self, kind: _Kind, clients: int) -> Sent:
        """Bytes of a step, were clients and server apart: as `Upload.payload` and `Download.payload` count them."""
        samples = clients * kind.size
        average = 0 if not kind.active else kind.size if kind.over == "clients" else 1
        return Sent(
            smashed=samples * self._cut_bytes,
            labels=samples * (nbytes(self._samples.targets) // len(self._samples)),
            unicast=(clients - kind.active) * kind.size * self._cut_bytes,
            broadcast=average * self._cut_bytes,
        )


def _number(device: torch.device) -> tuple[str, int]:
    """Of a device, which of its type it is: cuda is cuda:0."""
    return device.type, device.index or 0


def _resident(cohort: Cohort) -> tuple[Batch, dict[int, Tensor]]:
    """All clients' samples on the device, and where each client's are among them, int64 (n,) on the CPU."""
    wholes = {id(data.whole): data.whole for data in cohort.data.values() if isinstance(data, Share)}
    positions: dict[int, Tensor] = {}
    if len(wholes) == 1 and all(isinstance(data, Share) for data in cohort.data.values()):
        together = in_memory(*wholes.values())
        positions = {client: data.indices for client, data in cohort.data.items() if isinstance(data, Share)}
    else:
        own = [in_memory(data) for data in cohort.data.values()]
        together = Batch(join([part.inputs for part in own]), join([part.targets for part in own]))
        starts = itertools.accumulate([len(part) for part in own], initial=0)
        positions = {
            client: torch.arange(start, start + len(data))
            for (client, data), start in zip(cohort.data.items(), starts, strict=False)
        }

    def here(values: Tensors) -> Tensors:
        return each(lambda tensor: tensor.to(cohort.device), values)

    return Batch(here(together.inputs), here(to_targets(together.targets, cohort.dtype))), positions
