"""Data, models and scores as a user brings them: plain tensors, a torch data set, dicts, several labels."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sglr_flower.data.inputs import Inputs
from sglr_flower.data.source import Source, make
from sglr_flower.data.targets import Classes, MultiLabel, Values

SAMPLES = 36


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _parts(inputs: Any, targets: Any) -> dict[str, Any]:
    def rows(values: Any, where: slice) -> Any:
        return {name: own[where] for name, own in values.items()} if isinstance(values, dict) else values[where]

    cuts = {"train": slice(0, 24), "validation": slice(24, 30), "test": slice(30, SAMPLES)}
    return {name: (rows(inputs, where), rows(targets, where)) for name, where in cuts.items()}


def _sentences() -> dict[str, Tensor]:
    tokens = torch.randint(0, 11, (SAMPLES, 5), generator=_draw(1))
    return {"tokens": tokens, "level": torch.randn(SAMPLES, 2, generator=_draw(2))}


def sentences() -> dict[str, Any]:
    """Inputs are dicts: token ids and numbers; the targets are classes."""
    return _parts(_sentences(), torch.randint(0, 3, (SAMPLES,), generator=_draw(3)))


class Tagged(Dataset[Any]):
    """A torch data set of several labels a sample."""

    def __init__(self, first: int, count: int) -> None:
        inputs = torch.randn(SAMPLES, 6, generator=_draw(4))
        self.rows = range(first, first + count)
        self.inputs, self.labels = inputs.numpy(), (inputs[:, :3] + inputs[:, 3:] > 0.3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.inputs[self.rows[index]], self.labels[self.rows[index]]


def tagged(seed: int) -> Source:
    return make(Tagged(0, 24), Tagged(24, 12), targets=MultiLabel(("red", "round", "ripe")), seed=seed)


def pairs() -> dict[str, Any]:
    """Inputs and targets are dicts; what is good is one's own."""
    size = torch.randn(SAMPLES, 2, generator=_draw(6))
    targets = {"kind": torch.randint(0, 3, (SAMPLES,), generator=_draw(5)), "size": size}
    return {**_parts(_sentences(), targets), "targets": {"kind": Classes(("a", "b", "c")), "size": Values((2,))}}


class Recurrent(nn.Module):
    """A client segment that reads a dict: an embedding, an LSTM, and the numbers beside it."""

    def __init__(self, words: int, numbers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.level = nn.Linear(numbers, 6)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        states, _ = self.lstm(self.embedding(batch["tokens"]))
        return states[:, -1] + self.level(batch["level"])


def recurrent(inputs: Inputs) -> nn.Sequential:
    assert [name for name, _, _ in inputs.parts] == ["tokens", "level"]
    head = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, inputs.outputs))
    return nn.Sequential(OrderedDict(below=Recurrent(11, inputs.parts[1][1][0]), above=head))


recurrent.cut = "below"  # type: ignore[attr-defined]


def pair_loss(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    cross_entropy = nn.functional.cross_entropy(outputs[:, :3], targets["kind"])
    return cross_entropy + nn.functional.mse_loss(outputs[:, 3:], targets["size"])


def off_by(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return (outputs[:, 3:] - targets["size"]).abs().sum(1)


off_by.higher_is_better = False  # type: ignore[attr-defined]
