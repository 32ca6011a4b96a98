"""The cohort: all clients of one node, computed together.

Callers see `Cohort.forward` and `Cohort.backward` for all clients at once and never a single client's. In here that is
a loop over the clients, or where it is asked for and the segment allows it, all of them at once (`stacked`): the same
numbers, on the same weights in memory.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglr_flower.data import samples
from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Batch, Samples, Tensors, each, one
from sglr_flower.data.targets import to_targets
from sglr_flower.models import all_laid_out, laid_out, upstream
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.split import averaging, coding, optimizers, splitavg
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.loss import mean_of_each
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import OptimizerFactory
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.stacked import Stack, StackedPass, refusal

# Below Flower's logger, so that what a node says goes where Flower's log goes.
log = logging.getLogger("flwr.sglr")


class _Member(NamedTuple):
    """A client's segment and its optimizer."""

    segment: nn.Module
    optimizer: optimizers.Optimizer


@dataclass(frozen=True)
class _Pass:
    """A client's forward pass that waits for its cut gradient.

    Attributes
    ----------
    client : int
        Whose.
    output : Callable[[], Tensor]
        Gives the smashed data with their graph, (b, *cut shape).
    """

    client: int
    output: Callable[[], Tensor]


class Cohort:
    """The client segments, optimizers and data of one node's clients.

    A client's segment is made when it is first needed: of ten thousand clients of whom a hundred train in a round, the
    others are no more than the states they came with.

    Parameters
    ----------
    data : Mapping[int, Samples]
        Client -> its samples.
    build_segment : Callable[[int], nn.Module]
        Client -> its initial client segment.
    optimizer : OptimizerFactory
        Makes each client's.
    dtype : torch.dtype
        Of inputs, weights and smashed data.
    device : torch.device
        Where the segments live and compute.
    memory_format : torch.memory_format
        Of the images (`SplitModel.memory_format`); what the network makes of them follows.
    states : Mapping[int, Mapping[str, Tensor]]
        Client -> the state that it goes on from (`Cohort.state`); the others start from their initial segments.
    recompute : bool
        Keep no activations between a step's forward and its backward, which makes the forward again.
    stacked : bool
        Compute all clients with batches of the same size at once, by `torch.func.vmap`. Where the segment does not
        allow it (dropout, say: each client's comes from its own seed), and with ``recompute``, which is one client at
        a time by its nature, the clients are computed one after the other all the same.
    """

    def __init__(
        self,
        data: Mapping[int, Samples],
        build_segment: Callable[[int], nn.Module],
        optimizer: OptimizerFactory,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        states: Mapping[int, Mapping[str, Tensor]] | None = None,
        recompute: bool = False,
        stacked: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype, self.memory_format = dtype, memory_format
        self.data = dict(sorted(data.items()))
        self._build, self._optimizer, self._recompute = build_segment, optimizer, recompute
        self._idle = {client: dict(state) for client, state in (states or {}).items()}
        self._members: dict[int, _Member] = {}
        self._batches: dict[int, tuple[Tensor, ...]] = {}
        self._passes: list[_Pass] = []
        self._down: Codec = OFF  # of the answer to the last forward
        self._sizes: dict[int, int] = {}  # of the batches of the last forward, in the order of its upload
        self._stackable = stacked and not recompute
        self._refusal: str | None = None  # None: not tried yet
        self._stack: Stack | None = None
        self._stacked_passes: list[StackedPass] = []

    @property
    def clients(self) -> tuple[int, ...]:
        """The node's clients, ascending."""
        return tuple(self.data)

    @property
    def segments(self) -> dict[int, nn.Module]:
        """Client -> its segment, of all clients; a client that has never trained keeps none."""
        return {client: self.segment(client) for client in self.clients}

    def segment(self, client: int) -> nn.Module:
        """A client's segment; of one that has never trained its initial one, which is not kept."""
        touched = client in self._idle or client in self._members
        return self._member(client).segment if touched else self._build(client).to(self.device)

    @property
    def stack(self) -> Stack | None:
        """The clients of the round laid out by `begin`, if they are computed all at once."""
        return self._stack

    @property
    def batches(self) -> Mapping[int, tuple[Tensor, ...]]:
        """Client -> the indices of its batches in the round laid out by `begin`, each int64 (b,)."""
        return self._batches

    def _member(self, client: int) -> _Member:
        if client not in self._members:
            segment = self._build(client).to(self.device)
            member = _Member(segment, self._optimizer(segment.parameters()))
            if client in self._idle:
                optimizers.load_flat_state(*member, self._idle.pop(client))
            self._members[client] = member
        return self._members[client]

    def begin(self, plan: RoundPlan) -> None:
        """Lay out the round, or a turn of it: the batches of those of this node's clients that take part in it."""
        taking_part = frozenset(plan.clients)
        self._batches = {
            client: plan.batches(client, len(self.data[client])) for client in self.clients if client in taking_part
        }
        for client in self._batches:
            self._member(client).segment.train()
        if self._stackable:
            self._arrange(plan)

    def _rate(self, plan: RoundPlan, client: int, step: int) -> float:
        """eta_c of a client's step."""
        return plan.client_rate(step, len(self._batches[client]))

    def forward(self, plan: RoundPlan, step: int, *, again: bool = False) -> Upload:
        """Forward every client's batch of this step up to the cut.

        Parameters
        ----------
        plan : RoundPlan
            The round laid out by `begin`.
        step : int
            From 0, below the largest number of batches of a client here.
        again : bool
            The same forward once more, for its graph only (an exchange that keeps no graph between messages).
        """
        present = tuple(client for client, batches in self._batches.items() if step < len(batches))
        self._passes, self._stacked_passes = [], []
        self._down = plan.down
        if self._stack is None:
            outputs, labels = self._forward_each(plan, present, step, again=again)
        else:
            outputs, labels = self._forward_together(self._stack, plan, present, step, again=again)
        self._sizes = {client: len(output) for client, output in zip(present, outputs, strict=True)}
        if plan.defence is not None:
            named = [("smashed", client, plan.server_round, step) for client in present]
            outputs = [plan.defence.sent(output, *name) for output, name in zip(outputs, named, strict=True)]
        upload = Upload(
            server_round=plan.server_round,
            step=step,
            split="train",
            clients=present,
            sizes=tuple(self._sizes.values()),
            smashed=torch.cat(outputs),
            labels=samples.join(labels),
            last=all(step + 1 >= len(batches) for batches in self._batches.values()),
        )
        return coding.coded_upload(plan, upload)

    def _forward_each(
        self, plan: RoundPlan, present: Collection[int], step: int, *, again: bool
    ) -> tuple[list[Tensor], list[Tensors]]:
        """`forward`, one client after the other: their smashed data and labels."""
        outputs: list[Tensor] = []
        labels: list[Tensors] = []
        for client in present:
            # What this forward reads and moves; `again` it may move copies only.
            buffers = _copies(dict(self._members[client].segment.named_buffers())) if self._recompute or again else {}
            with torch.set_grad_enabled(not self._recompute):
                output, targets = self._forward(plan, client, step, _copies(buffers) if again else None)
            self._members[client].optimizer.lr = self._rate(plan, client, step)
            once_more = functools.partial(self._recomputed, plan, client, step, buffers)
            self._passes.append(_Pass(client, once_more if self._recompute else _value(output)))
            outputs.append(output.detach())
            labels.append(targets)
        return outputs, labels

    def backward(self, download: Download) -> None:
        """Finish the backward pass of the last `forward` with the gradients received, and step at eta_c."""
        gradients = self._received(download)
        for done in self._passes:
            optimizer = self._members[done.client].optimizer
            upstream.scalar(done.output(), gradients[done.client]).backward()
            optimizer.step()
            optimizer.zero_grad()  # now, not before the next step: a thousand clients' gradients are many
        for group in self._stacked_passes:
            assert self._stack is not None
            self._stack.backward(group, torch.stack([gradients[client] for client in group.clients]))
        self._passes, self._stacked_passes = [], []

    def _received(self, download: Download) -> dict[int, Tensor]:
        """Client -> its cut gradient (b, *cut shape) in the answer to the last `forward`."""
        download = coding.gradients(self._down, download, self.dtype)
        active = frozenset(download.active)
        sizes = [size for client, size in self._sizes.items() if client not in active]
        own = iter(() if download.own is None else download.own.to(self.device).split(sizes))
        average = None
        if download.average is not None:
            average = laid_out(download.average.to(self.device), self.memory_format)
        gradients = {}
        for client, size in self._sizes.items():
            if client in active:
                assert average is not None
                gradients[client] = splitavg.received(average, size)
            else:
                gradients[client] = next(own)
        return gradients

    def _arrange(self, plan: RoundPlan) -> None:
        """Stack the segments of those that take part, if they are several; whether they can be is tried once."""
        members = {client: self._members[client] for client in self._batches}
        if self._stack is not None and self._stack.clients == tuple(members):
            return
        if self._refusal is None and len(members) > 1:
            client, other = tuple(members)[:2]
            if self._optimizer.stackable:
                images, _ = self._batch(plan, client, 0)
                self._refusal = refusal(members[client].segment, members[other].segment, images)
            else:
                self._refusal = f"{self._optimizer} is for one client at a time"
            if self._refusal:
                log.info("clients are computed one after the other, not stacked: %s", self._refusal)
        before, self._stack = self._stack, None
        if self._refusal == "" and len(members) > 1:
            self._stack = Stack(members, self._optimizer)
        if before is not None:  # else a client that is in no round for long would keep all of its last stack
            before.release([client for client in before.clients if self._stack is None or client not in members])

    def _forward_together(
        self, stack: Stack, plan: RoundPlan, present: Collection[int], step: int, *, again: bool
    ) -> tuple[list[Tensor], list[Tensors]]:
        """`forward`, all clients at once: their smashed data and labels."""
        outputs: dict[int, Tensor] = {}
        labels: dict[int, Tensors] = {}
        for done, targets in self._groups(stack, plan, step, again=again):
            self._stacked_passes.append(done)
            # vmap leaves them interleaved, and of such parts torch joins one after the other.
            outputs.update(zip(done.clients, done.output.detach().contiguous(), strict=True))
            labels.update(zip(done.clients, targets, strict=True))
        return [outputs[client] for client in present], [labels[client] for client in present]

    def _groups(
        self, stack: Stack, plan: RoundPlan, step: int, *, again: bool = False
    ) -> Iterator[tuple[StackedPass, list[Tensors]]]:
        """The forward of a step for each size of batches and learning rate, and each client's targets (b, ...)."""
        batches = {client: self._taken(plan, client, step) for client, own in self._batches.items() if step < len(own)}
        kinds = {client: (len(batch), self._rate(plan, client, step)) for client, batch in batches.items()}
        for size, lr in sorted(set(kinds.values())):
            group = {client: batch for client, batch in batches.items() if kinds[client] == (size, lr)}
            stored = samples.join([batch.inputs for batch in group.values()])
            count, joint = len(group), to_inputs(self._here(stored), self.dtype)
            inputs = each(lambda own: own.unflatten(0, (count, size)), joint)  # noqa: B023 - called now
            labels = [batch.targets for batch in group.values()]
            done = stack.forward(tuple(group), inputs, lr, keep_buffers=again)
            if plan.defence is not None:
                done = replace(done, output=plan.defence.shaped(one(inputs), done.output, batch_dims=2))
            yield done, labels

    def local_step(self, plan: RoundPlan, step: int) -> tuple[float, int]:
        """One step of local training, where the client segment is the whole network; no exchange.

        Returns
        -------
        float, int
            The loss summed over the samples of all clients here, and their number; 0 when all batches are used up.
        """
        if self._stack is not None:
            return self._local_step_together(self._stack, plan, step)
        total, seen = 0.0, 0
        for client, batches in self._batches.items():
            if step >= len(batches):
                continue
            optimizer = self._members[client].optimizer
            output, labels = self._forward(plan, client, step)
            optimizer.lr = self._rate(plan, client, step)
            loss = plan.loss(output, self._here(labels))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total, seen = total + loss.item() * len(output), seen + len(output)
        return total, seen

    def _local_step_together(self, stack: Stack, plan: RoundPlan, step: int) -> tuple[float, int]:
        """`local_step`, all clients at once."""
        total, seen = 0.0, 0
        for done, labels in self._groups(stack, plan, step):
            output = done.output.detach().requires_grad_()
            loss = mean_of_each(plan.loss, output, [self._here(own) for own in labels])
            (loss * len(done.clients)).backward()  # each client's is the mean over its own batch, and these are equal
            assert output.grad is not None
            stack.backward(done, output.grad)
            count = output.shape[0] * output.shape[1]
            total, seen = total + loss.item() * count, seen + count
        return total, seen

    def _forward(
        self, plan: RoundPlan, client: int, step: int, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensors]:
        """A client's smashed data (b, *cut shape) and targets (b, ...) of a step.

        With ``buffers`` (batch-norm statistics, say) these are used and moved, and the segment's own stay as they are;
        dropout's mask is the same every time, as it comes from the step's seed.
        """
        inputs, labels = self._batch(plan, client, step)
        segment = self._members[client].segment
        smashed = segment(inputs) if buffers is None else torch.func.functional_call(segment, {**buffers}, (inputs,))
        return smashed if plan.defence is None else plan.defence.shaped(one(inputs), smashed), labels

    def _recomputed(self, plan: RoundPlan, client: int, step: int, buffers: Mapping[str, Tensor]) -> Tensor:
        return self._forward(plan, client, step, buffers)[0]

    def _batch(self, plan: RoundPlan, client: int, step: int) -> tuple[Tensors, Tensors]:
        """A client's inputs on the device and targets on the CPU; then seeds its forward's random numbers."""
        batch = self._taken(plan, client, step)
        seed_torch(self.device, plan.seed, "client", client, plan.server_round, step)
        return all_laid_out(to_inputs(self._here(batch.inputs), self.dtype), self.memory_format), batch.targets

    def _taken(self, plan: RoundPlan, client: int, step: int) -> Batch:
        """A client's stored inputs of a step, images augmented, and targets in the run's dtype, on the CPU."""
        batch = self.data[client].take(self._batches[client][step])
        inputs = batch.inputs
        if plan.augment is not None:
            draw = generator(plan.seed, "augment", client, plan.server_round, step)
            inputs = plan.augment(one(inputs), draw)
        return Batch(inputs, to_targets(batch.targets, self.dtype))

    def _here(self, values: Tensors) -> Tensors:
        return each(lambda own: own.to(self.device), values)

    def average(self, plan: RoundPlan) -> tuple[dict[str, Tensor], int]:
        """The mean of this node's participants' segments weighted by n_i, and the sum of their n_i."""
        taking_part = frozenset(plan.clients)
        here = [client for client in self.clients if client in taking_part]
        sizes = [len(self.data[client]) for client in here]
        states = [self._member(client).segment.state_dict() for client in here]
        return averaging.mean(states, sizes), sum(sizes)

    def load_shared(self, weights: Mapping[str, Tensor], clients: Collection[int]) -> None:
        """Give those of ``clients`` that are here the same segment; their optimizers keep their moments."""
        for client in self.data.keys() & clients:
            averaging.load(self._member(client).segment, weights)

    def state(self, client: int) -> dict[str, Tensor]:
        """A client's weights, buffers and optimizer state as flat named tensors (see `optimizers.flat_state`)."""
        if client in self._idle:
            return self._idle[client]
        if client in self._members:
            return optimizers.flat_state(*self._members[client])
        initial = self._build(client)  # which is not kept: the client may never train
        return optimizers.flat_state(initial, self._optimizer([]))

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Client -> its state, without those whose state is still the initial one."""
        touched = self._idle.keys() | self._members.keys()
        return {client: self.state(client) for client in self.clients if client in touched}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _value(output: Tensor) -> Callable[[], Tensor]:
    return lambda: output
