"""The command ``sglr estimate``: what an epoch of a run would move, compute and hold on each client, method by method.

For equal clients that all take part. Bytes are Table 6's (`analysis.communication`), operations Table 4's
(`analysis.compute`), memory is that of `analysis.footprint`; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sglr_flower import models
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel
from sglr_flower.models.compute import Compute, training_flops
from sglr_flower.models.footprint import training_bytes, weight_bytes
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import parse_assignment, read_config
from sglr_flower.split import methods
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.costs.communication import Average, EpochBytes, Sizes, client_down, epoch_bytes


@dataclass(frozen=True)
class Device:
    """What a client's device can do.

    Attributes
    ----------
    up, down : float
        Bytes per second that it sends and receives.
    flops : float
        Floating-point operations per second.
    """

    up: float
    down: float
    flops: float


@dataclass(frozen=True)
class Estimate:
    """An epoch of one client, where all are alike.

    Attributes
    ----------
    up, down : float
        Bytes that it sends and receives.
    total : float
        Bytes of all clients, both ways; a broadcast counts once.
    flops : float
        Its floating-point operations.
    memory : int
        Bytes that it holds.
    transfer, compute : float
        Seconds that its device needs, one after the other; the server's time is not in them.
    """

    up: float
    down: float
    total: float
    flops: float
    memory: int
    transfer: float
    compute: float

    @property
    def seconds(self) -> float:
        """Of an epoch."""
        return self.transfer + self.compute


class Estimator:
    """Estimates of one run-config's network and clients.

    Parameters
    ----------
    config : RunConfig
        Gives the model, the clients, batches, phi and the optimizer.
    device : Device
        Every client's.

    Raises
    ------
    UserError
        If the run-config does not say how many samples a client has.
    """

    def __init__(self, config: RunConfig, device: Device) -> None:
        if not config.samples_per_client:
            raise UserError("run-config key samples-per-client = 0: an estimate needs the number of a client's samples")
        self.config, self.device = config, device
        self.optimizer = assembly.optimizer(config)
        base = assembly.model(config)  # of FedAvg uncut; here every cut is wanted
        self.model = SplitModel(
            name=base.name,
            cut="",
            num_classes=base.num_classes,
            inputs=base.inputs,
            seed=base.seed,
            dtype=base.dtype,
        )
        self.network = self.model.whole()
        self.cuts = models.stage_names(self.network)[:-1]
        self._compute: dict[str, Compute] = {}

    def chosen_cut(self) -> str:
        """The run-config's cut, or the model's own."""
        index = models.cut_index(self.network, self.config.cut or models.get(self.config.model).cut)
        return models.stage_names(self.network)[index - 1]

    def of(self, method: str, cut: str) -> Estimate:
        """An epoch with this method and cut."""
        config, composed = self.config, methods.get(method)
        index = models.cut_index(self.network, cut)
        segment = self.network if composed.whole else self.network[:index]
        samples = config.samples_per_client * (config.num_clients if composed.pooled else 1)
        moved = self._bytes(method, cut)
        phi = config.splitavg_phi if composed.cut_gradient else 0.0
        up, down = moved.up / config.num_clients, client_down(moved, config.num_clients, phi)
        counted = self._flops(cut)
        flops = float(samples * (counted.whole if composed.whole else counted.client))
        return Estimate(
            up=up,
            down=down,
            total=moved.total,
            flops=flops,
            memory=training_bytes(segment, self.optimizer.nbytes(segment), config.batch_size, self.model.inputs),
            transfer=up / self.device.up + down / self.device.down,
            compute=flops / self.device.flops,
        )

    def _bytes(self, method: str, cut: str) -> EpochBytes:
        config = self.config
        segment = self.network[: models.cut_index(self.network, cut)]
        shape = replace(self.model, cut=cut).smashed_shape()
        up, down = (codec.nbytes(shape, self.model.dtype) for codec in assembly.wire_codecs(config))
        sizes = Sizes(
            clients=config.num_clients,
            samples=config.num_clients * config.samples_per_client,
            batch_size=config.batch_size,
            cut=up,
            cut_down=down,
            client_segment=weight_bytes(segment),
            network=weight_bytes(self.network),
        )
        average: Average = "clients-and-samples" if config.splitavg_over == "clients-and-samples" else "clients"
        return epoch_bytes(methods.get(method), sizes, config.splitavg_phi, average)

    def _flops(self, cut: str) -> Compute:
        if cut not in self._compute:
            index = models.cut_index(self.network, cut)
            self._compute[cut] = training_flops(self.network, index, self.model.inputs)
        return self._compute[cut]


def command(config: Path | None, settings: Sequence[str] | None, up: float, down: float, gflops: float) -> None:
    """Show the estimates of a run-config; ``up`` and ``down`` in Mbit/s, ``gflops`` in 10^9 operations per second."""
    values = read_config(config) if config else {}
    values |= dict(parse_assignment(text) for text in settings or [])
    parsed = RunConfig.parse(values)
    estimator = Estimator(parsed, Device(up * 1e6 / 8, down * 1e6 / 8, gflops * 1e9))
    console = Console()
    console.print(_methods_table(estimator))
    console.print(_cuts_table(estimator))


def _methods_table(estimator: Estimator) -> Table:
    config, cut = estimator.config, estimator.chosen_cut()
    title = f"An epoch of one of {config.num_clients} clients, {config.samples_per_client} samples each, "
    title += f"{config.model} cut after {cut}"
    table = _table("method", title)
    for method in METHODS:
        _add(table, method, estimator.of(method, cut))
    return table


def _cuts_table(estimator: Estimator) -> Table:
    method = estimator.config.method
    if methods.get(method).whole:
        method = "sglr"
    found = {cut: estimator.of(method, cut) for cut in estimator.cuts}
    best = min(found, key=lambda cut: found[cut].seconds)
    table = _table("cut after", f"{method} at every cut; the fastest is bold")
    for cut, estimate in found.items():
        _add(table, cut, estimate, style="bold" if cut == best else "")
    return table


def _table(first: str, title: str) -> Table:
    table = Table(first, title=title)
    for heading in ("up (MB)", "down (MB)", "all clients (MB)", "GFLOP", "memory (MB)", "transfer (s)", "compute (s)"):
        table.add_column(heading, justify="right")
    return table


def _add(table: Table, name: str, estimate: Estimate, style: str = "") -> None:
    table.add_row(
        name,
        f"{estimate.up / 1e6:,.1f}",
        f"{estimate.down / 1e6:,.1f}",
        f"{estimate.total / 1e6:,.0f}",
        f"{estimate.flops / 1e9:,.0f}",
        f"{estimate.memory / 1e6:,.1f}",
        f"{estimate.transfer:,.1f}",
        f"{estimate.compute:,.1f}",
        style=style,
    )
