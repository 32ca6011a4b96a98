"""SGLR as a researcher would write it: one process, a model and an Adam per client, a for loop; torch's own threads.

What the step of a run is compared with (`benchmarks.step`). The arithmetic is that of a run, down to
the order of the samples and the draws of SplitAvg, so that the weights are too (`tests/bench/test_plain.py`); data
are made ready before the clock runs. ``python -m benchmarks.plain CONFIG.toml OUT.json`` writes the seconds per step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.floor import synchronize
from sglr_flower.data.inputs import to_input
from sglr_flower.data.samples import Share
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import read_config
from sglr_flower.seeds import generator
from sglr_flower.split.splitavg import draw_active


class PlainLoop:
    """Training of method ``sglr`` with equal batches, the paper's settings, and a constant rate.

    Parameters
    ----------
    config : RunConfig
        Of the run to be compared with.
    device : torch.device | None
        Where everything lies and computes; default: the CPU.
    data : Mapping[int, Share] | None
        Client -> its images; default: the run's.

    Attributes
    ----------
    clients, server
        Client -> its segment, and the server's.
    optimizers : dict[str, torch.optim.Adam]
        ``client-N`` and ``server`` -> its optimizer.
    step_seconds : list[float]
        Wall time of every step so far.
    """

    def __init__(
        self, config: RunConfig, device: torch.device | None = None, data: Mapping[int, Share] | None = None
    ) -> None:
        assert (config.method, config.optimizer, config.loss) == ("sglr", "adam", "cross-entropy")
        self._config, self._device = config, device or torch.device("cpu")
        model = assembly.model(config)
        shares = data or assembly.client_data(config, range(config.num_clients))
        images = {i: own.take(torch.arange(len(own))) for i, own in shares.items()}
        self._images = {i: to_input(own.images.to(self._device), assembly.dtype(config)) for i, own in images.items()}
        self._labels = {i: own.labels.to(self._device) for i, own in images.items()}
        self.clients = {i: model.client_segment(i).to(self._device) for i in shares}
        self.server = model.server_segment().to(self._device)
        self._client_optimizers = {
            i: torch.optim.Adam(c.parameters(), config.client_lr) for i, c in self.clients.items()
        }
        server_lr = config.client_lr * config.num_clients**config.splitlr_alpha
        self._server_optimizer = torch.optim.Adam(self.server.parameters(), server_lr)
        of_clients = {f"client-{i}": optimizer for i, optimizer in self._client_optimizers.items()}
        self.optimizers = of_clients | {"server": self._server_optimizer}
        self.step_seconds: list[float] = []

    def round(self, server_round: int) -> None:
        """All steps of a round."""
        plan = assembly.plan(self._config, server_round)
        batches = {i: plan.batches(i, len(labels)) for i, labels in self._labels.items()}
        for step in range(len(batches[0])):
            started = time.perf_counter()
            draw = generator(plan.seed, "splitavg", server_round, step)
            self._step({i: own[step].to(self._device) for i, own in batches.items()}, draw)
            synchronize(self._device)
            self.step_seconds.append(time.perf_counter() - started)

    def _step(self, indices: Mapping[int, Tensor], draw: torch.Generator) -> None:
        smashed, cuts = {}, {}
        for i, client in self.clients.items():
            smashed[i] = client(self._images[i][indices[i]])
            cuts[i] = smashed[i].detach().requires_grad_()
        joint = torch.cat(list(cuts.values()))
        labels = torch.cat([self._labels[i][indices[i]] for i in self.clients])
        loss = F.cross_entropy(self.server(joint), labels)
        self._server_optimizer.zero_grad()
        loss.backward()
        self._server_optimizer.step()
        gradients = {i: _grad(cut) * len(self.clients) for i, cut in cuts.items()}  # of the own batch's mean
        active = draw_active(tuple(self.clients), self._config.splitavg_phi, draw)
        average = torch.stack([gradients[i] for i in active]).mean(0) if active else None
        for i, optimizer in self._client_optimizers.items():
            optimizer.zero_grad()
            smashed[i].backward(average if i in active else gradients[i])
            optimizer.step()


def _grad(cut: Tensor) -> Tensor:
    assert cut.grad is not None
    return cut.grad


def weights(loop: PlainLoop) -> dict[str, dict[str, Tensor]]:
    """``server`` and every ``client-N`` -> its weights and buffers."""
    modules: dict[str, nn.Module] = {f"client-{i}": client for i, client in loop.clients.items()}
    return {name: module.state_dict() for name, module in ({"server": loop.server} | modules).items()}


def main() -> None:
    """Train as a run-config says; write the seconds per step."""
    config = RunConfig.parse(read_config(Path(sys.argv[1])))
    loop = PlainLoop(config)
    for server_round in range(1, config.num_server_rounds + 1):
        loop.round(server_round)
    Path(sys.argv[2]).write_text(json.dumps(loop.step_seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
