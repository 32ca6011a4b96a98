"""The server segment: one forward, one loss, one backward and one optimizer step over the clients' joint batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower import splitavg, splitlr
from sglr_flower.seeds import generator, torch_seed
from sglr_flower.split import optimizers
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan


class ServerSegment:
    """The upper part of the network, its optimizer, and a step of Algorithm 1's server side.

    Parameters
    ----------
    segment : nn.Module
        From smashed data (n, *cut shape) to logits (n, classes).
    optimizer : str
        ``adam`` or ``sgd``.
    device : torch.device
        Where it computes.
    """

    def __init__(self, segment: nn.Module, optimizer: str, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.segment = segment.to(self.device)
        self._optimizer = optimizers.build(optimizer, self.segment.parameters())

    def step(self, plan: RoundPlan, uploads: Mapping[int, Upload]) -> tuple[dict[int, Download], float]:
        """One training step on the uploads of all nodes of this step.

        Parameters
        ----------
        plan : RoundPlan
            The round's settings.
        uploads : Mapping[int, Upload]
            Node -> its smashed data; not empty, all of one step.

        Returns
        -------
        dict[int, Download], float
            Node -> the cut gradients for its clients, and the loss: mean over the joint batch.
        """
        smashed = by_client({node: (upload, upload.smashed) for node, upload in uploads.items()})
        labels = by_client({node: (upload, upload.labels) for node, upload in uploads.items()})
        step = next(iter(uploads.values())).step
        # In client order, whichever node a client lives on: the joint batch must not depend on the spread.
        joint = torch.cat(list(smashed.values())).to(self.device).requires_grad_()
        torch.manual_seed(torch_seed(plan.seed, "server", plan.server_round, step))
        loss = mean_loss(plan.loss, self.segment.train()(joint), torch.cat(list(labels.values())).to(self.device))
        self._optimizer.zero_grad()
        loss.backward()
        optimizers.set_lr(self._optimizer, splitlr.server_lr(plan.client_lr, len(smashed), plan.alpha))
        self._optimizer.step()
        assert joint.grad is not None
        sizes = [len(tensor) for tensor in smashed.values()]
        gradients = dict(zip(smashed, joint.grad.split(sizes), strict=True))
        if plan.gradient_scale == "own":
            # d(own mean)/ds_i = N / b_i * d(joint mean)/ds_i, with N samples in the joint batch (eq. 5)
            gradients = {i: gradient * (len(joint) / len(gradient)) for i, gradient in gradients.items()}
        return distribute(plan, step, uploads, gradients), loss.item()

    @torch.no_grad()
    def score(self, smashed: Tensor, labels: Tensor) -> tuple[int, float]:
        """Number of right predictions and summed cross-entropy on smashed data, in evaluation mode."""
        logits = self.segment.eval()(smashed.to(self.device))
        labels = labels.to(self.device)
        correct = int((logits.argmax(1) == labels).sum())
        return correct, float(F.cross_entropy(logits, labels, reduction="sum"))

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and optimizer state as flat named tensors."""
        return optimizers.flat_state(self.segment, self._optimizer)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back."""
        optimizers.load_flat_state(self.segment, self._optimizer, state)


def distribute(
    plan: RoundPlan, step: int, uploads: Mapping[int, Upload], gradients: Mapping[int, Tensor]
) -> dict[int, Download]:
    """SplitAvg: draw the active clients, average their cut gradients, address everybody's answer.

    Parameters
    ----------
    plan : RoundPlan
        Gives phi, what is averaged, and the seed of the draw.
    step : int
        The step within the round.
    uploads : Mapping[int, Upload]
        Node -> the upload to answer.
    gradients : Mapping[int, Tensor]
        Client -> its cut gradient, (b_i, *cut shape), in client order.
    """
    draw = generator(plan.seed, "splitavg", plan.server_round, step)
    active = splitavg.draw_active(tuple(gradients), plan.phi, draw)
    average = splitavg.average(gradients, active, plan.average_over) if active else None
    downloads = {}
    for node, upload in uploads.items():
        own = [gradients[client] for client in upload.clients if client not in active]
        here = tuple(client for client in upload.clients if client in active)
        downloads[node] = Download(
            server_round=upload.server_round,
            step=upload.step,
            active=here,
            average=average if here else None,
            own=torch.cat(own) if own else None,
        )
    return downloads


def by_client(parts: Mapping[int, tuple[Upload, Tensor]]) -> dict[int, Tensor]:
    """Split each node's tensor into its clients' parts; ascending by client over all nodes."""
    pieces: dict[int, Tensor] = {}
    for upload, tensor in parts.values():
        pieces.update(zip(upload.clients, tensor.split(list(upload.sizes)), strict=True))
    return dict(sorted(pieces.items()))


def mean_loss(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of (n, classes) logits and int64 (n,) labels, averaged over the n samples.

    ``cross-entropy`` as in the paper, or the authors' code's ``binary-cross-entropy``: softmax, then binary
    cross-entropy against the one-hot label, averaged over the outputs too.
    """
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels)
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy(logits.softmax(1), target)
