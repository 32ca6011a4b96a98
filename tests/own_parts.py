"""Parts of one's own, as a user would write them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower import methods
from sglr_flower.split.codecs import Codec, Coded, Part
from sglr_flower.split.defences import Defence
from sglr_flower.split.noise import key, noised
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.server import ServerSegment


def convolutions(num_classes: int, image_size: int) -> nn.Sequential:
    """A model for images."""
    below = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Tanh())
    return nn.Sequential(OrderedDict(below=below, above=nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))))


convolutions.cut = "below"  # type: ignore[attr-defined]


def readings() -> dict[str, tuple[Tensor, Tensor]]:
    """Data: six numbers a sample, of four classes."""
    inputs = torch.randn(72, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(72) % 4
    cuts = {"train": slice(0, 48), "validation": slice(48, 60), "test": slice(60, 72)}
    return {part: (inputs[where], targets[where]) for part, where in cuts.items()}


def smooth(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss as a function."""
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


weighted = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 1.5, 10))
"""A loss as a module with buffers; its mean over all samples is not the mean of the clients' means."""


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    """No loss: not a scalar."""
    return F.cross_entropy(outputs, targets, reduction="none")


class Learned(nn.Module):
    """No loss: it has a weight that nobody would train."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)


averaged = partial(torch.optim.ASGD, lambd=0.01, weight_decay=0.1)
"""An optimizer with arguments, whose state has tensors of numbers."""


class Counting(torch.optim.Optimizer):
    """An optimizer as a user may write it: its rate falls with its steps, which it counts in a number of Python's."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for weight in self.param_groups[0]["params"]:
            if weight.grad is not None:
                steps = self.state[weight].get("steps", 0) + 1
                self.state[weight]["steps"] = steps
                weight.add_(weight.grad, alpha=-self.param_groups[0]["lr"] / steps)


class Forgetful(Counting):
    """No optimizer for a run that is resumed: it counts in itself."""

    count = 0

    def step(self, closure: None = None) -> None:
        self.count += 1
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.add_(weight.grad, alpha=-group["lr"] / self.count)


def two_groups(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """No optimizer for one learning rate."""
    return torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=1.0)


class Halves(Codec):
    """Sixteen bits around each sample's own middle."""

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        return {"values": (shape, torch.int16), "low": ((1,), dtype), "width": ((1,), dtype)}

    def encode(self, tensor: Tensor, draws: object = ()) -> Coded:
        flat = tensor.flatten(1)
        low = flat.min(1, keepdim=True).values
        width = (flat.max(1, keepdim=True).values - low).clamp(min=1e-30) / 65_534
        whole = ((flat - low) / width).round() - 32_767
        return Coded(whole.to(torch.int16).view(tensor.shape), {"low": low, "width": width})

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        flat = coded.values.to(dtype).flatten(1) + 32_767
        return (flat * coded.aside["width"] + coded.aside["low"]).unflatten(1, shape)

    def wrong(self, coded: Coded, shape: tuple[int, ...]) -> str:
        return "" if bool((coded.aside["width"] > 0).all()) else "with a width that is none"


class Many(Halves):
    """The same with as many tensors, and as long names, as a codec may have."""

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        more: dict[str, Part] = {letter * 20: ((1, 1, 1), dtype) for letter in "ab"}
        return {**super().parts(shape, dtype), **more}

    def encode(self, tensor: Tensor, draws: object = ()) -> Coded:
        coded = super().encode(tensor)
        more = {letter * 20: tensor.new_ones(len(tensor), 1, 1, 1) for letter in "ab"}
        return Coded(coded.values, {**coded.aside, **more})


class Undeclared(Halves):
    """No codec: what it makes is not what it declares."""

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Part]:
        return {"values": (shape, torch.int16)}


class Together(Halves):
    """No codec: samples depend on each other."""

    def encode(self, tensor: Tensor, draws: object = ()) -> Coded:
        return super().encode(tensor - tensor.mean(0))


class Squashed(Defence):
    """A defence with all three parts: tanh, a penalty of large values, and noise that follows from names."""

    def changed(self, smashed: Tensor) -> Tensor:
        return 2 * torch.tanh(smashed / 2)

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor:
        return 0.01 * smashed.square().sum() / len(inputs)

    def sent(self, smashed: Tensor, *name: str | int, first: int = 0) -> Tensor:
        rows = [noised(row, 0.05, key(7, *name, first + k)) for k, row in enumerate(smashed)]
        return torch.stack(rows)


class Shrinking(Defence):
    """No defence: another shape."""

    def changed(self, smashed: Tensor) -> Tensor:
        return smashed[:, :1]


class Cautious(ServerSegment):
    """A server behaviour: the larger a client's loss, the more its batch counts."""

    def update(
        self, plan: RoundPlan, step: int, smashed: Mapping[int, Tensor], labels: Mapping[int, Tensor]
    ) -> tuple[dict[int, Tensor], float]:
        cuts = {i: own.detach().requires_grad_() for i, own in smashed.items()}
        self.segment.train()
        losses = {i: plan.loss(self.segment(cuts[i]), labels[i]) for i in cuts}
        total = sum(loss.detach() for loss in losses.values())
        sum(loss * loss.detach() / total for loss in losses.values()).backward()
        self.optimizer.lr = plan.server_rate(len(cuts), step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {i: cut.grad for i, cut in cuts.items()}, float(total / len(cuts))


cautious = methods.Method(server=Cautious)
by_name = methods.Method(server="in-turn", average=True)
