"""A user's module with a task: tables that each client has of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sglr_flower as sglr


def lower() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU())


def upper() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def tables(sizes: tuple[int, ...] = (20, 20, 13)) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 5, generator=draw), torch.randint(3, (size,), generator=draw)) for size in sizes]


def data() -> dict[str, Any]:
    *clients, validation, test = tables((20, 20, 13, 12, 30))
    return {"clients": clients, "validation": validation, "test": test}


task = sglr.Task(lower=lower, upper=upper, data=data)
