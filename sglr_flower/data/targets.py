"""Target types: what a source wants predicted. They say how targets lie in tensors, and what is wrong with others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sglr_flower.data.samples import Tensors, each


@dataclass(frozen=True)
class _Named:
    """What classes and labels have alike: a logit for each."""

    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Numbers that a network answers with for a sample: a logit for each name."""
        return len(self.names)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Their shape, without the batch's dimension."""
        return (self.outputs,)


@dataclass(frozen=True)
class Classes(_Named):
    """One class of several: int64 [n], class numbers from 0 up.

    Attributes
    ----------
    names : tuple of str
        The name of each class, by class number.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's target."""
        return ()

    def dtype(self, computed: torch.dtype) -> torch.dtype:
        """Of targets, where weights and activations are ``computed`` with a dtype."""
        return torch.int64

    def read(self, targets: Tensors) -> Tensors:
        """Whole numbers of any kind as targets."""
        return each(lambda own: own if own.is_floating_point() else own.to(torch.int64), targets)

    def wrong(self, targets: Tensor) -> str:
        """What is wrong with the numbers in targets of the right shape and dtype; empty if nothing is."""
        low, high = (int(bound) for bound in targets.aminmax())
        return f"labels from {low} to {high}, not from 0 to {self.outputs - 1}" * (low < 0 or high >= self.outputs)

    def words(self) -> tuple[str, ...]:
        """What nodes of one run have to have alike."""
        return self.names


@dataclass(frozen=True)
class MultiLabel(_Named):
    """Any number of several labels: floating point [n, labels], 1 where a sample has the label and 0 where not.

    Attributes
    ----------
    names : tuple of str
        The name of each label.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """As of `Classes`."""
        return (self.outputs,)

    def dtype(self, computed: torch.dtype) -> torch.dtype:
        """As of `Classes`."""
        return computed

    def read(self, targets: Tensors) -> Tensors:
        """Zeros and ones of any kind as targets."""
        return each(_floating, targets)

    def wrong(self, targets: Tensor) -> str:
        """As of `Classes`."""
        return "" if bool(((targets == 0) | (targets == 1)).all()) else "labels that are not all 0 or 1"

    def words(self) -> tuple[str, ...]:
        """As of `Classes`."""
        return ("any of", *self.names)


@dataclass(frozen=True)
class Values:
    """Numbers, as in a regression: floating point [n, *shape].

    Attributes
    ----------
    shape : tuple of int
        Of one sample's values; () for targets [n], to which the network's output has to be [n] too.
    names : tuple of str
        What they are, if it is said.
    """

    shape: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """As of `Classes`: one for each value."""
        return math.prod(self.shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """As of `Classes`."""
        return self.shape

    def dtype(self, computed: torch.dtype) -> torch.dtype:
        """As of `Classes`."""
        return computed

    def read(self, targets: Tensors) -> Tensors:
        """Numbers of any kind as targets; [n] becomes [n, 1] where that is the shape."""
        one_each = self.shape == (1,)
        return each(lambda own: _floating(own[:, None] if one_each and own.ndim == 1 else own), targets)

    def wrong(self, targets: Tensor) -> str:
        """As of `Classes`."""
        return "" if bool(targets.isfinite().all()) else "values that are not finite"

    def words(self) -> tuple[str, ...]:
        """As of `Classes`."""
        return ("values", *map(str, self.shape), *self.names)


@dataclass(frozen=True)
class Several:
    """Several targets of a sample, by name: a dict of tensors; a loss and a score of one's own say what they mean.

    Attributes
    ----------
    parts : tuple of (str, Classes, MultiLabel or Values)
        Name and type of each.
    """

    parts: tuple[tuple[str, Classes | MultiLabel | Values], ...]

    @classmethod
    def of(cls, kinds: Mapping[str, Classes | MultiLabel | Values]) -> Several:
        """The same from a dict."""
        return cls(tuple(kinds.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the targets."""
        return tuple(name for name, _ in self.parts)

    @property
    def outputs(self) -> int:
        """As of `Classes`: those of all together."""
        return sum(kind.outputs for _, kind in self.parts)

    def read(self, targets: Tensors) -> Tensors:
        """Each as its own type."""
        if isinstance(targets, Tensor):
            return targets
        kinds = dict(self.parts)
        return {name: kinds[name].read(own) if name in kinds else own for name, own in targets.items()}  # type: ignore[misc]

    def words(self) -> tuple[str, ...]:
        """As of `Classes`."""
        return tuple(word for name, kind in self.parts for word in (name, *kind.words()))


Kind = Classes | MultiLabel | Values | Several
"""A source's target type."""


def complaint(kind: Kind, targets: Tensors, samples: int, computed: torch.dtype) -> str:
    """What is wrong with the targets of so many samples: names, dtypes and shapes first, then numbers; or nothing.

    Parameters
    ----------
    kind : Kind
        What they have to be.
    targets : Tensors
        Anything.
    samples : int
        At least 1.
    computed : torch.dtype
        Of weights and activations.
    """
    if isinstance(kind, Several):
        if isinstance(targets, Tensor) or targets.keys() != set(kind.names):
            found = "one tensor" if isinstance(targets, Tensor) else ", ".join(sorted(targets)[:20])
            return f"labels {', '.join(kind.names)}, not {found}"
        return next(
            (
                f"{name}: {wrong}"
                for name, own in kind.parts
                if (wrong := _wrong(own, targets[name], samples, computed))
            ),
            "",
        )
    if not isinstance(targets, Tensor):
        return f"several labels ({', '.join(sorted(targets)[:20])}) instead of one tensor"
    return _wrong(kind, targets, samples, computed)


def _wrong(kind: Classes | MultiLabel | Values, targets: Tensor, samples: int, computed: torch.dtype) -> str:
    if targets.dtype != kind.dtype(computed):
        return f"labels of {targets.dtype}, not {kind.dtype(computed)}"
    if tuple(targets.shape) != (samples, *kind.shape):
        return f"labels of shape {tuple(targets.shape)}, not {(samples, *kind.shape)}"
    return kind.wrong(targets)


def sample_bytes(kind: Kind, computed: torch.dtype) -> int:
    """Bytes of one sample's target."""
    if isinstance(kind, Several):
        return sum(sample_bytes(own, computed) for _, own in kind.parts)
    return math.prod(kind.shape) * kind.dtype(computed).itemsize


def to_targets(targets: Tensors, dtype: torch.dtype) -> Tensors:
    """Targets as losses take them: numbers in the run's dtype, class numbers as they are."""
    return each(lambda own: own.to(dtype) if own.is_floating_point() else own, targets)


def _floating(targets: Tensor) -> Tensor:
    return targets if targets.is_floating_point() else targets.to(torch.float32)
