"""Split learning with NVFlare's ``collab`` interface: one client with the images, the server with the labels.

``python nvflare_job.py FOLDER STEPS`` in an environment that has nvflare and torch: so many steps in its simulator.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from networks import moderate_cnn
from nvflare.collab import CollabRecipe, collab
from nvflare.recipe import SimEnv
from torch import Tensor
from torch.nn import functional as F

BATCH = 64


class Server:
    """The stages above the cut, and the labels."""

    @collab.main
    def run(self) -> None:
        """Have the client train."""
        self.labels = torch.randint(10, (BATCH,), generator=torch.Generator().manual_seed(0))
        self.segment = moderate_cnn(10, 32)[1:].train()
        self.optimizer = torch.optim.Adam(self.segment.parameters(), 1e-3)
        collab.clients[0](timeout=600.0).train()
        print("ALL STEPS DONE", flush=True)

    @collab.publish
    def step(self, smashed: Tensor) -> Tensor:
        """A step of the server's, and the client's cut gradient (n, features)."""
        smashed = smashed.requires_grad_()
        self.optimizer.zero_grad()
        F.cross_entropy(self.segment(smashed), self.labels).backward()
        self.optimizer.step()
        return smashed.grad


class Client:
    """The stages below the cut, and the images."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @collab.publish
    def train(self) -> None:
        """All steps."""
        images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        segment = moderate_cnn(10, 32)[:1].train()
        optimizer = torch.optim.Adam(segment.parameters(), 1e-3)
        server: Any = collab.server
        for _ in range(self.steps):
            smashed = segment(images)
            gradient = server(timeout=600.0).step(smashed.detach())
            optimizer.zero_grad()
            smashed.backward(gradient)
            optimizer.step()


if __name__ == "__main__":
    recipe = CollabRecipe(
        "split", server=Server(), client=Client(int(sys.argv[2])), min_clients=1, sync_task_timeout=600
    )
    recipe.execute(SimEnv(num_clients=1, workspace_root=sys.argv[1], log_config="ERROR"))
