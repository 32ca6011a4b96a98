"""How a cohort's clients are computed: one after the other, or all at once (`stacked`), to the same numbers.

Either is made for a round, or a turn of it, and works on the clients' own weights and optimizers in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglr_flower.data import samples
from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Batch, Samples, Tensors, each, one
from sglr_flower.data.targets import to_targets
from sglr_flower.models import all_laid_out, functional, upstream
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.split.loss import mean_of_each
from sglr_flower.split.optimizers import Optimizer
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.stacked import Stack, StackedPass

Forwarded = dict[int, tuple[Tensor, Tensors]]
"""Client -> its smashed data (b, *cut shape) without their graph, and its targets (b, ...), ascending."""


class Member(NamedTuple):
    """A client's segment and its optimizer."""

    segment: nn.Module
    optimizer: Optimizer


@dataclass(frozen=True)
class Feed:
    """What a step takes of each client.

    Attributes
    ----------
    data : Mapping[int, Samples]
        Client -> its samples.
    batches : Mapping[int, tuple[Tensor, ...]]
        Client -> the indices of its batches in the round, each int64 (b,); of those that take part.
    dtype : torch.dtype
        Of inputs, and of targets that are not classes.
    device : torch.device
        Where the segments compute.
    memory_format : torch.memory_format
        Of images.
    """

    data: Mapping[int, Samples]
    batches: Mapping[int, tuple[Tensor, ...]]
    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format

    def present(self, step: int) -> tuple[int, ...]:
        """The clients that have a batch in a step."""
        return tuple(client for client, batches in self.batches.items() if step < len(batches))

    def rate(self, plan: RoundPlan, client: int, step: int) -> float:
        """eta_c of a client's step."""
        return plan.client_rate(step, len(self.batches[client]))

    def taken(self, plan: RoundPlan, client: int, step: int) -> Batch:
        """A client's stored inputs of a step, images augmented, and targets in the run's dtype, on the CPU."""
        batch = self.data[client].take(self.batches[client][step])
        inputs = batch.inputs
        if plan.augment is not None:
            draw = generator(plan.seed, "augment", client, plan.server_round, step)
            inputs = plan.augment(one(inputs), draw)
        return Batch(inputs, to_targets(batch.targets, self.dtype))

    def batch(self, plan: RoundPlan, client: int, step: int) -> tuple[Tensors, Tensors]:
        """A client's inputs on the device and targets on the CPU; then seeds its forward's random numbers."""
        batch = self.taken(plan, client, step)
        seed_torch(self.device, plan.seed, "client", client, plan.server_round, step)
        return all_laid_out(to_inputs(self.here(batch.inputs), self.dtype), self.memory_format), batch.targets

    def here(self, values: Tensors) -> Tensors:
        """Tensors on the device."""
        return each(lambda own: own.to(self.device), values)


class OneByOne:
    """A loop over the clients.

    Parameters
    ----------
    members : Mapping[int, Member]
        Client -> what it trains; of those at least that `feed` has batches of.
    feed : Feed
        What they train on.
    recompute : bool
        Keep no activations between a step's forward and its backward, which makes the forward again.
    """

    def __init__(self, members: Mapping[int, Member], feed: Feed, *, recompute: bool) -> None:
        self.feed = feed
        self._members, self._recompute = members, recompute
        self._passes: list[tuple[int, Callable[[], Tensor]]] = []  # client, its smashed data with their graph

    def forward(self, plan: RoundPlan, step: int, *, again: bool = False) -> Forwarded:
        """Forward every client's batch up to the cut; see `Cohort.forward`."""
        self._passes = []
        forwarded: Forwarded = {}
        for client in self.feed.present(step):
            segment, optimizer = self._members[client]
            # What this forward reads and moves; `again` it may move copies only.
            buffers = _copies(dict(segment.named_buffers())) if self._recompute or again else {}
            with torch.set_grad_enabled(not self._recompute):
                output, targets = self._compute(plan, client, step, _copies(buffers) if again else None)
            optimizer.lr = self.feed.rate(plan, client, step)
            once_more = functools.partial(self._recomputed, plan, client, step, buffers)
            self._passes.append((client, once_more if self._recompute else _value(output)))
            forwarded[client] = output.detach(), targets
        return forwarded

    def backward(self, gradients: Mapping[int, Tensor]) -> None:
        """Finish the last `forward` with each client's cut gradient, (b, *cut shape), and make its step."""
        for client, output in self._passes:
            optimizer = self._members[client].optimizer
            upstream.scalar(output(), gradients[client]).backward()
            optimizer.step()
            optimizer.zero_grad()  # now, not before the next step: a thousand clients' gradients are many
        self._passes = []

    def local_step(self, plan: RoundPlan, step: int) -> tuple[float, int]:
        """A step without a server; see `Cohort.local_step`."""
        total, seen = 0.0, 0
        for client in self.feed.present(step):
            optimizer = self._members[client].optimizer
            output, labels = self._compute(plan, client, step)
            optimizer.lr = self.feed.rate(plan, client, step)
            loss = plan.loss(output, self.feed.here(labels))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total, seen = total + loss.item() * len(output), seen + len(output)
        return total, seen

    def _compute(
        self, plan: RoundPlan, client: int, step: int, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensors]:
        """A client's smashed data (b, *cut shape) and targets (b, ...) of a step.

        With ``buffers`` (batch-norm statistics, say) these are used and moved, and the segment's own stay as they are;
        dropout's mask is the same every time, as it comes from the step's seed.
        """
        inputs, labels = self.feed.batch(plan, client, step)
        segment = self._members[client].segment
        smashed = segment(inputs) if buffers is None else functional.call(segment, {**buffers}, inputs)
        return smashed if plan.defence is None else plan.defence.shaped(one(inputs), smashed), labels

    def _recomputed(self, plan: RoundPlan, client: int, step: int, buffers: Mapping[str, Tensor]) -> Tensor:
        return self._compute(plan, client, step, buffers)[0]


class Together:
    """All clients with batches of the same size at once.

    Parameters
    ----------
    stack : Stack
        Those that `feed` has batches of.
    feed : Feed
        What they train on.
    """

    def __init__(self, stack: Stack, feed: Feed) -> None:
        self.stack, self.feed = stack, feed
        self._passes: list[StackedPass] = []

    def forward(self, plan: RoundPlan, step: int, *, again: bool = False) -> Forwarded:
        """Forward every client's batch up to the cut; see `Cohort.forward`."""
        self._passes = []
        forwarded: Forwarded = {}
        for done, targets in self._groups(plan, step, again=again):
            self._passes.append(done)
            # vmap leaves them interleaved, and of such parts torch joins one after the other.
            outputs = done.output.detach().contiguous()
            forwarded.update(zip(done.clients, zip(outputs, targets, strict=True), strict=True))
        return {client: forwarded[client] for client in self.feed.present(step)}

    def backward(self, gradients: Mapping[int, Tensor]) -> None:
        """Finish the last `forward` with each client's cut gradient, (b, *cut shape), and make its step."""
        for done in self._passes:
            self.stack.backward(done, torch.stack([gradients[client] for client in done.clients]))
        self._passes = []

    def local_step(self, plan: RoundPlan, step: int) -> tuple[float, int]:
        """A step without a server; see `Cohort.local_step`."""
        total, seen = 0.0, 0
        for done, labels in self._groups(plan, step):
            output = done.output.detach().requires_grad_()
            loss = mean_of_each(plan.loss, output, [self.feed.here(own) for own in labels])
            (loss * len(done.clients)).backward()  # each client's is the mean over its own batch, and these are equal
            assert output.grad is not None
            self.stack.backward(done, output.grad)
            count = output.shape[0] * output.shape[1]
            total, seen = total + loss.item() * count, seen + count
        return total, seen

    def _groups(
        self, plan: RoundPlan, step: int, *, again: bool = False
    ) -> Iterator[tuple[StackedPass, list[Tensors]]]:
        """The forward of a step for each size of batches and learning rate, and each client's targets (b, ...)."""
        feed = self.feed
        batches = {client: feed.taken(plan, client, step) for client in feed.present(step)}
        kinds = {client: (len(batch), feed.rate(plan, client, step)) for client, batch in batches.items()}
        for size, lr in sorted(set(kinds.values())):
            group = {client: batch for client, batch in batches.items() if kinds[client] == (size, lr)}
            stored = samples.join([batch.inputs for batch in group.values()])
            count, joint = len(group), to_inputs(feed.here(stored), feed.dtype)
            inputs = each(lambda own: own.unflatten(0, (count, size)), joint)  # noqa: B023 - called now
            done = self.stack.forward(tuple(group), inputs, lr, keep_buffers=again)
            if plan.defence is not None:
                done = replace(done, output=plan.defence.shaped(one(inputs), done.output, batch_dims=2))
            yield done, [batch.targets for batch in group.values()]


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _value(output: Tensor) -> Callable[[], Tensor]:
    return lambda: output
