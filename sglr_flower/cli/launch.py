"""How a run is started: written beside it, so that it is resumed alike."""

from __future__ import annotations

import math
import os

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglr_flower.choices import NODES
from sglr_flower.errors import UserError
from sglr_flower.federation.simulation import Resources, check_fits
from sglr_flower.run.machine import available_cpus
from sglr_flower.run.rundir import LAUNCH, RunDirectory, read_json
from sglr_flower.run.settings import read_toml


class Launch(BaseModel):
    """How a run is started; written beside it, so that it is resumed alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=NODES, ge=1)
    cpus_per_node: float = Field(default=1.0, gt=0)
    gpus_per_node: float | None = Field(default=None, ge=0)  # None: whatever the machine has when it is started
    in_process: bool = False
    federation: str = ""
    code_dir: str = ""

    @property
    def simulated(self) -> bool:
        """Whether it is a simulation's, on a SuperLink of its own."""
        return not self.federation and not self.in_process

    def resources(self, gpus: int) -> Resources:
        """The size of the simulation on a machine with so many GPUs.

        Raises
        ------
        UserError
            If the machine does not have what a node asks for.
        """
        share = _gpu_share(self.nodes, gpus) if self.gpus_per_node is None else self.gpus_per_node
        resources = Resources(self.nodes, self.cpus_per_node, share)
        check_fits(resources, gpus)
        return resources


def read_launch(directory: RunDirectory) -> Launch:
    """How the run was started; one of `flwr run` itself had no launch file, but its status knows the nodes."""
    path = directory.path / LAUNCH
    if not path.exists():
        nodes = int(read_json(directory.path / "status.json").get("nodes", 2))
        return Launch(nodes=nodes, cpus_per_node=cpu_share(nodes))
    try:
        return Launch.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is damaged: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from None


def _gpu_share(nodes: int, gpus: int) -> float:
    """GPUs per node: one, or where there are fewer than nodes an equal share of one, which Ray takes to 1/10,000."""
    if os.environ.get("RAY_ADDRESS"):
        return 0.0
    return math.floor(10_000 / math.ceil(nodes / gpus)) / 10_000 if gpus else 0.0


def cpu_share(nodes: int) -> float:
    """CPUs per node: all nodes at once as long as Flower can run them at once, else one each."""
    cpus = available_cpus()
    return cpus / nodes if nodes <= min(32, (os.cpu_count() or 1) + 4) else 1.0
