"""Time series of sensors: a recurrent client segment on the device, and the way from a notebook to devices.

In this process, as in a notebook:

    python examples/sensors.py

The same task over Flower, simulated (in this folder):

    sglr run --in-process -s task=sensors:task -s num-clients=4 -s partition=own -s num-server-rounds=6
    sglr run --nodes 2    -s task=sensors:task -s num-clients=4 -s partition=own -s num-server-rounds=6

And on devices: each has a `readings` of its own (docs/api.md).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

import sglr_flower as sglr

STEPS, MACHINES = 24, 4


class Recurrent(nn.Module):
    """From readings (n, time, 2) to what a GRU has made of them at the end, (n, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)

    def forward(self, readings: Tensor) -> Tensor:
        """The GRU's last state."""
        return self.gru(readings)[1][-1]


def recorded(machine: int, count: int) -> tuple[Tensor, Tensor]:
    """Made-up vibrations of a machine: two sensors, healthy (0) or with a bearing that is worn (1)."""
    draw = torch.Generator().manual_seed(machine)
    worn = torch.arange(count) % 2
    speed = 2 + 0.1 * machine + 2 * worn + 0.1 * torch.randn(count, generator=draw)
    time = torch.linspace(0, 2 * math.pi, STEPS)
    angle = speed[:, None] * time + 0.5 * torch.randn(count, 1, generator=draw)
    noise = 0.2 * torch.randn(count, STEPS, 2, generator=draw)
    return torch.stack([angle.sin(), angle.cos()], dim=2) + noise, worn


def readings() -> dict[str, object]:
    """What the clients have, and on what their networks are scored."""
    return {"clients": [recorded(machine, 120) for machine in range(MACHINES)], "test": recorded(MACHINES, 200)}


task = sglr.Task(
    lower=Recurrent, upper=lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), data=readings
)

if __name__ == "__main__":
    data = readings()
    adam = partial(torch.optim.Adam, lr=1e-2)
    run = sglr.SplitLearning(task.lower, task.upper, data["clients"], loss=task.loss, optimizer=adam)
    for done in run.rounds(6):
        print(f"round {done.number}: loss {done.loss:.4f}, accuracy {run.evaluate(data['test']).score:.3f}")
