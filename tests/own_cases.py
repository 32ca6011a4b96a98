"""Runs with a user's own parts, by name and as a plain loop has them."""

from __future__ import annotations

from functools import partial

import own_parts
import torch
from reference_parts import Parts

ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
HEAVY = partial(SGD, momentum=0.9, weight_decay=0.01)
SETTINGS: dict[str, object] = {
    "method": "psl",
    "num-clients": 3,  # on two nodes: of two clients and of one
    "samples-per-client": 16,
    "batch-size": 8,
    "num-server-rounds": 2,
    "dtype": "float64",
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "checkpoint-every": 1,
}
CASES: dict[str, tuple[dict[str, object], Parts]] = {
    "model": ({"model": "own_parts:convolutions"}, Parts(ADAM, ADAM)),
    "data": ({"dataset": "own_parts:readings", "model": "mlp"}, Parts(ADAM, ADAM)),
    "loss": ({"loss": "own_parts:smooth"}, Parts(ADAM, ADAM, own_parts.smooth)),
    "loss of torch": (
        {"loss": "torch.nn:MultiMarginLoss"},
        Parts(ADAM, ADAM, torch.nn.MultiMarginLoss()),
    ),
    "adamw": ({"optimizer": "adamw", "weight-decay": 0.1}, Parts(*[partial(ADAMW, weight_decay=0.1)] * 2)),
    "momentum": (
        {"optimizer": "sgd", "momentum": 0.9, "weight-decay": 0.01, "client-lr": 0.02},
        Parts(HEAVY, HEAVY),
    ),
    "server's own": (
        {"optimizer": "sgd", "momentum": 0.9, "server-optimizer": "adamw", "client-lr": 0.01},
        Parts(partial(SGD, momentum=0.9), ADAMW),
    ),
    "rmsprop": ({"optimizer": "torch.optim:RMSprop"}, Parts(torch.optim.RMSprop, torch.optim.RMSprop)),
    "nadam": ({"server-optimizer": "torch.optim:NAdam"}, Parts(ADAM, torch.optim.NAdam)),
    "own optimizers": (
        {"optimizer": "own_parts:Counting", "server-optimizer": "own_parts:averaged", "client-lr": 0.05},
        Parts(partial(own_parts.Counting, lr=1.0), own_parts.averaged),
    ),
    "codec": (
        {"wire-up": "own_parts:Halves", "wire-down": "own_parts:Halves"},
        Parts(ADAM, ADAM, codec=True),
    ),
    "defence": ({"defence": "own_parts:Squashed"}, Parts(ADAM, ADAM, defence=True)),
    "server": ({"method": "own_parts:cautious"}, Parts(ADAM, ADAM, cautious=True)),
    "all": (
        {
            "method": "own_parts:cautious",
            "loss": "own_parts:smooth",
            "optimizer": "torch.optim:RMSprop",
            "server-optimizer": "own_parts:Counting",
            "wire-up": "own_parts:Halves",
            "wire-down": "own_parts:Halves",
            "defence": "own_parts:Squashed",
        },
        Parts(
            torch.optim.RMSprop,
            partial(own_parts.Counting, lr=1.0),
            own_parts.smooth,
            codec=True,
            defence=True,
            cautious=True,
        ),
    ),
}
