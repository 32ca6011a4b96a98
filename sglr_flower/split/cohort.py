"""The cohort: all clients of one node, computed together.

It holds their data and states, and speaks for all of them at once: callers see `Cohort.forward` and `Cohort.backward`
and never a single client's. How they are computed is an executor's (`executors`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from sglr_flower.data import samples
from sglr_flower.data.samples import Samples
from sglr_flower.models import laid_out
from sglr_flower.split import averaging, coding, optimizers, splitavg
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.executors import Feed, Member, OneByOne, Together
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import OptimizerFactory
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.stacked import Stack, refusal

# Below Flower's logger, so that what a node says goes where Flower's log goes.
log = logging.getLogger("flwr.sglr")


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
        self._members: dict[int, Member] = {}
        self._stackable = stacked and not recompute
        self._refusal: str | None = None  # None: not tried yet
        self._executor: OneByOne | Together = self._one_by_one(self._feed({}))
        self._down: Codec = OFF  # of the answer to the last forward
        self._sizes: dict[int, int] = {}  # of the batches of the last forward, in the order of its upload

    # ---- its clients' states

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

    def _member(self, client: int) -> Member:
        if client not in self._members:
            segment = self._build(client).to(self.device)
            member = Member(segment, self._optimizer(segment.parameters()))
            if client in self._idle:
                optimizers.load_flat_state(*member, self._idle.pop(client))
            self._members[client] = member
        return self._members[client]

    # ---- a round

    @property
    def stack(self) -> Stack | None:
        """The clients of the round laid out by `begin`, if they are computed all at once."""
        return self._executor.stack if isinstance(self._executor, Together) else None

    @property
    def batches(self) -> Mapping[int, tuple[Tensor, ...]]:
        """Client -> the indices of its batches in the round laid out by `begin`, each int64 (b,)."""
        return self._executor.feed.batches

    def begin(self, plan: RoundPlan) -> None:
        """Lay out the round, or a turn of it: the batches of those of this node's clients that take part in it."""
        taking_part = frozenset(plan.clients)
        feed = self._feed(
            {client: plan.batches(client, len(self.data[client])) for client in self.clients if client in taking_part}
        )
        for client in feed.batches:
            self._member(client).segment.train()
        stack = self._arranged(plan, feed) if self._stackable else None
        self._executor = self._one_by_one(feed) if stack is None else Together(stack, feed)

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
        forwarded = self._executor.forward(plan, step, again=again)
        outputs = [output for output, _ in forwarded.values()]
        self._down = plan.down
        self._sizes = {client: len(output) for client, (output, _) in forwarded.items()}
        if plan.defence is not None:
            named = [("smashed", client, plan.server_round, step) for client in forwarded]
            outputs = [plan.defence.sent(output, *name) for output, name in zip(outputs, named, strict=True)]
        upload = Upload(
            server_round=plan.server_round,
            step=step,
            split="train",
            clients=tuple(forwarded),
            sizes=tuple(self._sizes.values()),
            smashed=torch.cat(outputs),
            labels=samples.join([targets for _, targets in forwarded.values()]),
            last=all(step + 1 >= len(batches) for batches in self.batches.values()),
        )
        return coding.coded_upload(plan, upload)

    def backward(self, download: Download) -> None:
        """Finish the backward pass of the last `forward` with the gradients received, and step at eta_c."""
        self._executor.backward(self._received(download))

    def local_step(self, plan: RoundPlan, step: int) -> tuple[float, int]:
        """One step of local training, where the client segment is the whole network; no exchange.

        Returns
        -------
        float, int
            The loss summed over the samples of all clients here, and their number; 0 when all batches are used up.
        """
        return self._executor.local_step(plan, step)

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

    def _feed(self, batches: Mapping[int, tuple[Tensor, ...]]) -> Feed:
        return Feed(self.data, batches, self.dtype, self.device, self.memory_format)

    def _one_by_one(self, feed: Feed) -> OneByOne:
        return OneByOne(self._members, feed, recompute=self._recompute)

    def _arranged(self, plan: RoundPlan, feed: Feed) -> Stack | None:
        """The stack of those that take part, if they are several; whether they can be stacked is tried once."""
        before, clients = self.stack, tuple(feed.batches)
        if before is not None and before.clients == clients:
            return before
        stack = None
        if len(clients) > 1 and self._refuses(plan, feed) == "":
            stack = Stack({client: self._members[client] for client in clients}, self._optimizer)
        if before is not None:  # else a client that is in no round for long would keep all of its last stack
            before.release([client for client in before.clients if stack is None or client not in feed.batches])
        return stack

    def _refuses(self, plan: RoundPlan, feed: Feed) -> str:
        """Why clients cannot be stacked; empty if they can."""
        if self._refusal is None:
            self._refusal = f"{self._optimizer} is for one client at a time"
            if self._optimizer.stackable:
                client, other = tuple(feed.batches)[:2]
                inputs, _ = feed.batch(plan, client, 0)
                self._refusal = refusal(self._members[client].segment, self._members[other].segment, inputs)
            if self._refusal:
                log.info("clients are computed one after the other, not stacked: %s", self._refusal)
        return self._refusal
