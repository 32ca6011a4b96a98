"""The cohort: all clients of one node, computed together.

Callers see `Cohort.forward` and `Cohort.backward` for all clients at once and never a single client's loop, so the loop
in here can become ``torch.func.vmap`` over stacked segments without a change outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from sglr_flower import splitavg
from sglr_flower.data.datasets import ImageSet, to_input
from sglr_flower.seeds import generator, torch_seed
from sglr_flower.split import averaging, optimizers
from sglr_flower.split.loss import mean_loss
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan


class Cohort:
    """The client segments, optimizers and data of one node's clients.

    Parameters
    ----------
    data : Mapping[int, ImageSet]
        Client -> its images and labels.
    build_segment : Callable[[int], nn.Module]
        Client -> its initial client segment.
    optimizer : str
        ``adam`` or ``sgd``.
    dtype : torch.dtype
        Of inputs, weights and smashed data.
    device : torch.device
        Where the segments live and compute.
    """

    def __init__(
        self,
        data: Mapping[int, ImageSet],
        build_segment: Callable[[int], nn.Module],
        optimizer: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.data = dict(sorted(data.items()))
        self.segments = {client: build_segment(client).to(self.device) for client in self.data}
        self._optimizers = {
            client: optimizers.build(optimizer, segment.parameters()) for client, segment in self.segments.items()
        }
        self._batches: dict[int, tuple[Tensor, ...]] = {}
        self._outputs: dict[int, Tensor] = {}

    @property
    def clients(self) -> tuple[int, ...]:
        """The node's clients, ascending."""
        return tuple(self.data)

    def begin(self, plan: RoundPlan) -> None:
        """Lay out the round, or a turn of it: the batches of those of this node's clients that take part in it."""
        self._batches = {
            client: plan.batches(client, len(self.data[client])) for client in self.clients if client in plan.clients
        }
        for client in self._batches:
            self.segments[client].train()
            optimizers.set_lr(self._optimizers[client], plan.client_lr)

    def forward(self, plan: RoundPlan, step: int, *, recompute: bool = False) -> Upload:
        """Forward every client's batch of this step up to the cut.

        Parameters
        ----------
        plan : RoundPlan
            The round laid out by `begin`.
        step : int
            From 0, below the largest number of batches of a client here.
        recompute : bool
            The same forward again, for its graph only (an exchange that keeps no graph between messages): batch-norm
            statistics stay as they are, and dropout draws the same mask because its seed is the step's.
        """
        present = tuple(client for client, batches in self._batches.items() if step < len(batches))
        labels: list[Tensor] = []
        for client in present:
            inputs, targets = self._batch(plan, client, step)
            segment = self.segments[client]
            self._outputs[client] = _without_moving_buffers(segment, inputs) if recompute else segment(inputs)
            labels.append(targets)
        outputs = [self._outputs[client].detach() for client in present]
        return Upload(
            server_round=plan.server_round,
            step=step,
            split="train",
            clients=present,
            sizes=tuple(len(output) for output in outputs),
            smashed=torch.cat(outputs),
            labels=torch.cat(labels),
            last=all(step + 1 >= len(batches) for batches in self._batches.values()),
        )

    def backward(self, download: Download) -> None:
        """Finish the backward pass of the last `forward` with the gradients received, and step at eta_c."""
        others = [client for client in self._outputs if client not in download.active]
        sizes = [len(self._outputs[client]) for client in others]
        own = iter(() if download.own is None else download.own.to(self.device).split(sizes))
        average = None if download.average is None else download.average.to(self.device)
        for client, output in self._outputs.items():
            if client in download.active:
                assert average is not None
                gradient = splitavg.received(average, len(output))
            else:
                gradient = next(own)
            optimizer = self._optimizers[client]
            optimizer.zero_grad()
            output.backward(gradient)
            optimizer.step()
        self._outputs = {}

    def local_step(self, plan: RoundPlan, step: int) -> tuple[float, int]:
        """One step of local training, where the client segment is the whole network; no exchange.

        Returns
        -------
        float, int
            The loss summed over the samples of all clients here, and their number; 0 when all batches are used up.
        """
        total, samples = 0.0, 0
        for client, batches in self._batches.items():
            if step >= len(batches):
                continue
            inputs, labels = self._batch(plan, client, step)
            loss = mean_loss(plan.loss, self.segments[client](inputs), labels.to(self.device))
            optimizer = self._optimizers[client]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, samples = total + loss.item() * len(labels), samples + len(labels)
        return total, samples

    def _batch(self, plan: RoundPlan, client: int, step: int) -> tuple[Tensor, Tensor]:
        """A client's inputs on the device and labels on the CPU; then seeds its forward's random numbers."""
        batch = self.data[client].take(self._batches[client][step])
        images = batch.images
        if plan.augment is not None:
            images = plan.augment(images, generator(plan.seed, "augment", client, plan.server_round, step))
        torch.manual_seed(torch_seed(plan.seed, "client", client, plan.server_round, step))
        return to_input(images.to(self.device), self.dtype), batch.labels

    def average(self, plan: RoundPlan) -> tuple[dict[str, Tensor], int]:
        """The mean of this node's participants' segments weighted by n_i, and the sum of their n_i."""
        here = [client for client in self.clients if client in plan.clients]
        sizes = [len(self.data[client]) for client in here]
        return averaging.mean([self.segments[client].state_dict() for client in here], sizes), sum(sizes)

    def load_shared(self, weights: Mapping[str, Tensor], clients: Collection[int]) -> None:
        """Give those of ``clients`` that are here the same segment; their optimizers keep their moments."""
        for client in self.segments.keys() & clients:
            averaging.load(self.segments[client], weights)

    def state(self, client: int) -> dict[str, Tensor]:
        """A client's weights, buffers and optimizer state as flat named tensors (see `optimizers.flat_state`)."""
        return optimizers.flat_state(self.segments[client], self._optimizers[client])

    def load_state(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Take a client's state back."""
        optimizers.load_flat_state(self.segments[client], self._optimizers[client], state)


def _without_moving_buffers(segment: nn.Module, inputs: Tensor) -> Tensor:
    """Forward with copies of the buffers, so that batch-norm statistics move in the copies only."""
    copies = {name: buffer.clone() for name, buffer in segment.named_buffers()}
    output: Tensor = torch.func.functional_call(segment, copies, (inputs,))
    return output
