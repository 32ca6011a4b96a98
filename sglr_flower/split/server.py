"""The server segment: forward, loss, backward and optimizer step over the clients' smashed data.

`ServerSegment` makes one step over the joint batch of all clients (PSL, SGLR). The two forms of SplitFed (Thapa et al.,
arXiv 2004.12088) differ in just that: `ServerCopies` keeps a segment per client (V1), `ServerInTurn` makes a step per
client (V2). `PrivateServer` learns with differential privacy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sglr_flower.data import samples
from sglr_flower.data.samples import Tensors, each
from sglr_flower.models import laid_out
from sglr_flower.seeds import generator, seed_torch
from sglr_flower.split import averaging, coding, optimizers, privacy, splitavg
from sglr_flower.split.loss import Loss
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import OptimizerFactory
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.score import Scoring


class ServerSegment:
    """The upper part of the network, its optimizer, and a step of Algorithm 1's server side.

    Parameters
    ----------
    segment : nn.Module
        From smashed data (n, *cut shape) to logits (n, classes).
    optimizer : OptimizerFactory
        Makes its optimizer.
    device : torch.device
        Where it computes.
    memory_format : torch.memory_format
        Of the smashed data it computes with (`SplitModel.memory_format`).

    Attributes
    ----------
    segment : nn.Module
        On the device.
    optimizer : Optimizer
        Of its weights; whoever makes a step sets its ``lr`` (`RoundPlan.server_rate`).
    together : bool
        Whether an update is of all clients' batches: what the rate of a round is told for.
    """

    together = True

    def __init__(
        self,
        segment: nn.Module,
        optimizer: OptimizerFactory,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.device, self.memory_format = device or torch.device("cpu"), memory_format
        self.segment = segment.to(self.device)
        self.optimizer = optimizer(self.segment.parameters())

    @property
    def recordable(self) -> bool:
        """Whether its step can be recorded (`split.recording`)."""
        return self.optimizer.recordable

    @property
    def dtype(self) -> torch.dtype:
        """Of the smashed data that it computes with; a segment without weights takes them as they come."""
        return next((weight.dtype for weight in self.segment.parameters()), torch.float32)

    def begin(self, plan: RoundPlan) -> None:
        """Prepare for a round."""

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
            Node -> the cut gradients for its clients, and the loss: mean over the samples of all.
        """
        # In client order, whichever node a client lives on: the joint batch must not depend on the spread.
        decoded = {node: (upload, coding.smashed(plan.up, upload, self.dtype)) for node, upload in uploads.items()}
        smashed = by_client(decoded)
        labels = targets_by_client(uploads.values())
        step = next(iter(uploads.values())).step
        gradients, loss = self.update(plan, step, smashed, labels)
        if plan.up.sparse:
            # What did not travel had no part in the loss: the derivative by a client's own smashed data is 0 there.
            sent = by_client({node: (upload, coding.sent(plan.up, upload)) for node, upload in uploads.items()})
            gradients = {client: gradient * sent[client].to(gradient) for client, gradient in gradients.items()}
        downloads = distribute(plan, step, uploads, gradients)
        return coding.coded_downloads(plan, step, uploads, downloads), loss

    def update(
        self, plan: RoundPlan, step: int, smashed: Mapping[int, Tensor], labels: Mapping[int, Tensors]
    ) -> tuple[dict[int, Tensor], float]:
        """Learn from the clients' smashed data: here one step over their joint batch.

        Parameters
        ----------
        plan : RoundPlan
            The round's settings.
        step : int
            The step within the round.
        smashed, labels : Mapping[int, Tensor], Mapping[int, Tensors]
            Client -> (b_i, *cut shape) and targets (b_i, ...), in client order.

        Returns
        -------
        dict[int, Tensor], float
            Client -> its own cut gradient, and the mean loss.
        """
        joint = torch.cat(list(smashed.values())).to(self.device)
        targets = _on(samples.join(list(labels.values())), self.device)
        seed_torch(self.device, plan.seed, "server", plan.server_round, step, next(iter(smashed)))
        cut, loss = self.learn(plan.loss, joint, targets, plan.server_rate(len(smashed), step))
        gradients = dict(zip(smashed, cut.split([len(tensor) for tensor in smashed.values()]), strict=True))
        if plan.gradient_scale == "own":
            # d(own mean)/ds_i = N / b_i * d(joint mean)/ds_i, with N samples in the joint batch (eq. 5)
            for gradient in gradients.values():
                gradient.mul_(len(joint) / len(gradient))
        return gradients, loss.item()

    def learn(self, loss: Loss, smashed: Tensor, labels: Tensors, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """One forward, loss, backward and optimizer step; it waits for nothing that the device computes.

        Parameters
        ----------
        loss : Loss
            Of the segment's outputs and the labels.
        smashed, labels : Tensor, Tensors
            (n, *cut shape), without a graph, and targets (n, ...), on the server's device.
        lr : float | Tensor
            eta_s; a tensor () on the device.

        Returns
        -------
        Tensor, Tensor
            The cut gradient of the joint batch's mean loss, (n, *cut shape), and that loss, ().
        """
        self.optimizer.zero_grad()  # a step that could not be recorded may have ended in its middle
        joint = laid_out(smashed, self.memory_format).detach().requires_grad_()
        mean = loss(self.segment.train()(joint), labels)
        mean.backward()
        self.optimizer.lr = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert joint.grad is not None
        return joint.grad, mean.detach()

    def end(self) -> None:
        """Close a round."""

    @torch.no_grad()
    def score(self, smashed: Tensor, labels: Tensors, sizes: Sequence[int], scoring: Scoring) -> tuple[Tensor, Tensor]:
        """Predict in evaluation mode, where no sample's result depends on another one's.

        Parameters
        ----------
        smashed, labels : Tensor, Tensors
            (n, *cut shape) and targets (n, ...), of any clients.
        sizes : Sequence[int]
            Samples of each of the clients.
        scoring : Scoring
            The task's.

        Returns
        -------
        Tensor, Tensor
            The score and the loss of each sample, (n,).
        """
        outputs = self.segment.eval()(laid_out(smashed.to(self.device), self.memory_format))
        return scoring.values(outputs, _on(labels, self.device), sizes)

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and optimizer state as flat named tensors."""
        return optimizers.flat_state(self.segment, self.optimizer)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back."""
        optimizers.load_flat_state(self.segment, self.optimizer, state)


class ServerInTurn(ServerSegment):
    """One segment, and in every step an update per client, in an order drawn anew (SplitFed V2, Algorithm 2).

    V2's authors process a client's whole epoch before the next one's; step by step the clients work in parallel.
    """

    together = False

    def update(
        self, plan: RoundPlan, step: int, smashed: Mapping[int, Tensor], labels: Mapping[int, Tensors]
    ) -> tuple[dict[int, Tensor], float]:
        """A forward, backward and optimizer step on each client's batch by itself."""
        draw = generator(plan.seed, "turns", plan.server_round, step)
        clients = list(smashed)
        order = [clients[k] for k in torch.randperm(len(clients), generator=draw).tolist()]
        turns = {i: super(ServerInTurn, self).update(plan, step, {i: smashed[i]}, {i: labels[i]}) for i in order}
        return _gathered(turns, smashed)


class ServerCopies(ServerSegment):
    """A segment and an optimizer for every client, averaged at the end of the round (SplitFed V1, Algorithm 1)."""

    together = False

    def __init__(
        self,
        segment: nn.Module,
        optimizer: OptimizerFactory,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__(segment, optimizer, device, memory_format)
        self._factory = optimizer
        self._copies: dict[int, ServerSegment] = {}
        self._seen: dict[int, int] = {}

    def begin(self, plan: RoundPlan) -> None:
        """Every participant's copy starts from the average; its optimizer keeps its moments."""
        self._seen = dict.fromkeys(plan.clients, 0)
        for client in plan.clients:
            averaging.load(self._copy(client).segment, self.segment.state_dict())

    def update(
        self, plan: RoundPlan, step: int, smashed: Mapping[int, Tensor], labels: Mapping[int, Tensors]
    ) -> tuple[dict[int, Tensor], float]:
        """Each client's batch through its own copy."""
        alone = {i: self._copies[i].update(plan, step, {i: smashed[i]}, {i: labels[i]}) for i in smashed}
        for client, tensor in smashed.items():
            self._seen[client] += len(tensor)
        return _gathered(alone, smashed)

    def end(self) -> None:
        """Average the participants' copies, weighted by the samples that each has seen (n_i times the epochs)."""
        copies = [self._copies[client].segment.state_dict() for client in self._seen]
        averaging.load(self.segment, averaging.mean(copies, list(self._seen.values())))

    def state(self) -> dict[str, Tensor]:
        """The average as ``segment.NAME``, the copies' optimizers as ``client-N/optimizer.INDEX.NAME``."""
        state = super().state()
        for client, copy_ in self._copies.items():
            own = copy_.state().items()
            state |= {f"client-{client}/{name}": tensor for name, tensor in own if name.startswith("optimizer.")}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back; copies that are not in it are gone."""
        self._copies = {}
        average = {name: tensor for name, tensor in state.items() if "/" not in name}
        super().load_state(average)
        owns: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            client, slash, name = key.partition("/")
            if slash:
                owns.setdefault(int(client.removeprefix("client-")), {})[name] = tensor
        weights = {name: tensor for name, tensor in average.items() if name.startswith("segment.")}
        for number, own in owns.items():
            self._copy(number).load_state({**weights, **own})

    def _copy(self, client: int) -> ServerSegment:
        if client not in self._copies:
            segment = copy.deepcopy(self.segment)
            self._copies[client] = ServerSegment(segment, self._factory, self.device, self.memory_format)
        return self._copies[client]


class PrivateServer(ServerSegment):
    """One step on the mean of all clients' gradients, each of them bounded, with noise on that mean.

    Abadi et al., "Deep learning with differential privacy", arXiv 1607.00133, Algorithm 1, with a client's batch in
    place of an example. Each client's batch is computed by itself, so that given the weights no client's cut gradient
    depends on another one's data; batch norm then normalises each batch by itself.
    """

    def update(
        self, plan: RoundPlan, step: int, smashed: Mapping[int, Tensor], labels: Mapping[int, Tensors]
    ) -> tuple[dict[int, Tensor], float]:
        """A forward and backward for each client, and one noisy optimizer step."""
        dp = plan.privacy
        assert dp is not None
        weights = [weight for weight in self.segment.train().parameters() if weight.requires_grad]
        samples = sum(len(own) for own in smashed.values())
        gradients: dict[int, Tensor] = {}
        total = 0.0
        mean = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64, device=self.device)
        for client, own in smashed.items():
            share = len(own) / samples
            batch = laid_out(own.to(self.device).detach(), self.memory_format).requires_grad_()
            seed_torch(self.device, plan.seed, "server", plan.server_round, step, client)
            loss = plan.loss(self.segment(batch), _on(labels[client], self.device))
            cut, *parts = torch.autograd.grad(loss, [batch, *weights], materialize_grads=True)
            gradients[client] = cut if plan.gradient_scale == "own" else cut * share
            flat = torch.cat([part.flatten() for part in parts])
            mean += share * privacy.within(flat[None], dp.server_clip)[0].double()
            total += share * loss.item()
        # Another gradient of the largest client moves the mean by twice its bound, times its share.
        sensitivity = 2 * dp.server_clip * max(len(own) for own in smashed.values()) / samples
        mean = dp.noisy(mean, sensitivity, "dp-server", plan.server_round, step)
        for weight, part in zip(weights, mean.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = torch.empty_like(weight).copy_(part.view(weight.shape))
        self.optimizer.lr = plan.server_rate(len(smashed), step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return gradients, total


def _gathered(
    parts: Mapping[int, tuple[dict[int, Tensor], float]], smashed: Mapping[int, Tensor]
) -> tuple[dict[int, Tensor], float]:
    """Clients' separate updates as one: gradients in client order, and the mean loss over all samples."""
    total = sum(loss * len(smashed[client]) for client, (_, loss) in parts.items())
    gradients = {client: parts[client][0][client] for client in smashed}
    return gradients, total / sum(len(tensor) for tensor in smashed.values())


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
    if plan.privacy is not None:
        average, gradients = privacy.released(plan, step, gradients, active)
    else:
        average = plan.cut_gradient(gradients, active, plan.average_over) if active else None
    chosen = frozenset(active)
    downloads = {}
    for node, upload in uploads.items():
        own = [gradients[client] for client in upload.clients if client not in chosen]
        here = tuple(client for client in upload.clients if client in chosen)
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


def targets_by_client(uploads: Iterable[Upload]) -> dict[int, Tensors]:
    """The clients' targets (b_i, ...), ascending by client over all nodes."""
    pieces: dict[int, Tensors] = {}
    for upload in uploads:
        pieces.update(zip(upload.clients, samples.split(upload.labels, upload.sizes), strict=True))
    return dict(sorted(pieces.items()))


def _on(targets: Tensors, device: torch.device) -> Tensors:
    return each(lambda own: own.to(device), targets)
