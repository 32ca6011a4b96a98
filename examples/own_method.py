"""A method of one's own: the active clients receive the median of the cut gradients instead of their average.

python examples/own_method.py
sglr run --in-process -s method=own_method:median        (in this folder)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import sglr_flower as sglr


def median_gradient(gradients: Mapping[int, Tensor], active: Sequence[int], over: str) -> Tensor:
    """The median over the active clients, position by position: one client that sends nonsense does not move it."""
    shortest = min(len(gradients[client]) for client in active)
    middle = torch.stack([gradients[client][:shortest] for client in active]).median(dim=0).values
    longest = max(len(gradients[client]) for client in active)
    return middle[torch.arange(longest) % shortest]  # a client with a larger batch gets a row for each sample


median = sglr.methods.Method(server_lr=sglr.splitlr.server_lr, cut_gradient=median_gradient)

if __name__ == "__main__":
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    run = sglr.SplitLearning(
        lower=lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU()),
        upper=lambda: nn.Linear(32, 2),
        clients=[(x[k:500:5], y[k:500:5]) for k in range(5)],
        method=median,
    )
    for done in run.rounds(10):
        print(f"round {done.number}: loss {done.loss:.4f}")
    print(f"accuracy {run.evaluate((x[500:], y[500:])).score:.3f}")
