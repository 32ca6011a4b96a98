"""Samples and batches: inputs and targets, each a tensor or several tensors by name, whatever they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sglr_flower import imports
from sglr_flower.errors import UserError

Tensors = Tensor | Mapping[str, Tensor]
"""A tensor, or several by name; the first dimension of each is the sample's."""

_AT_ONCE = 256  # samples that are collated together where all are gone through


def each(function: Callable[..., Tensor], *values: Tensors) -> Tensors:
    """Apply a function to a tensor, or to each of several; of several values to those of one name together."""
    several = [value for value in values if not isinstance(value, Tensor)]
    if not several:
        return function(*values)
    return {name: function(*(value[name] for value in several)) for name in several[0]}


def one(values: Tensors) -> Tensor:
    """The tensor, or the first of several."""
    return values if isinstance(values, Tensor) else next(iter(values.values()))


def join(parts: Sequence[Tensors]) -> Tensors:
    """Lay batches end to end."""
    return each(lambda *tensors: torch.cat(tensors), *parts)


def split(values: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """Inverse of `join`: the batches of these sizes."""
    if isinstance(values, Tensor):
        return list(values.split(list(sizes)))
    parts = {name: tensor.split(list(sizes)) for name, tensor in values.items()}
    return [{name: parts[name][k] for name in parts} for k in range(len(sizes))]


def nbytes(values: Tensors) -> int:
    """Bytes of a tensor, or of several together."""
    return values.nbytes if isinstance(values, Tensor) else sum(tensor.nbytes for tensor in values.values())


class Samples(Protocol):
    """Anything that has samples by number."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, indices: Tensor) -> Batch:
        """Those at `indices` (int64 [k]), in that order; the same ones whenever they are asked for."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples in memory, shared by every client that reads them: never modify the tensors in place.

    Attributes
    ----------
    inputs : Tensors
        What the model reads, [n, ...]. Stored images are uint8 [n, 1 or 3, height, width], a quarter of the memory of
        float32 (see `sglr_flower.data.inputs.to_inputs`).
    targets : Tensors
        What it shall answer, [n, ...]: class numbers int64 [n], or as the source's target type says
        (`sglr_flower.data.targets`).
    """

    inputs: Tensors
    targets: Tensors

    def __len__(self) -> int:
        return len(one(self.inputs))

    @property
    def images(self) -> Tensor:
        """The inputs, where they are one tensor, such as images."""
        assert isinstance(self.inputs, Tensor)
        return self.inputs

    @property
    def labels(self) -> Tensor:
        """The targets, where they are one tensor, such as class numbers."""
        assert isinstance(self.targets, Tensor)
        return self.targets

    def take(self, indices: Tensor) -> Batch:
        """Copy the samples at `indices` (int64 [k]), in that order."""
        return Batch(each(lambda own: own[indices], self.inputs), each(lambda own: own[indices], self.targets))


@dataclass(frozen=True, eq=False)
class Share:
    """A client's part of a set: the set that all clients share, and which of its samples are this one's.

    Attributes
    ----------
    whole : Samples
        With other clients' samples too.
    indices : torch.Tensor
        int64 [n], positions in ``whole``.
    """

    whole: Samples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> Batch:
        """Copy the client's samples at `indices` (int64 [k], from 0 to n - 1), in that order."""
        return self.whole.take(self.indices[indices])


@dataclass(frozen=True, eq=False)
class Joint:
    """Several sets as one, one after the other.

    Attributes
    ----------
    parts : tuple of Samples
        Each of at least one sample, all of one kind.
    """

    parts: tuple[Samples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, indices: Tensor) -> Batch:
        """Copy the samples at `indices` (int64 [k]), in that order."""
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        which = torch.searchsorted(ends, indices, right=True)
        order = which.argsort(stable=True)
        taken = []
        for number, (part, end) in enumerate(zip(self.parts, ends.tolist(), strict=True)):
            own = indices[order][which[order] == number]
            if len(own):
                taken.append(part.take(own - (end - len(part))))
        back = order.argsort()
        inputs, targets = (join([getattr(one, name) for one in taken]) for name in ("inputs", "targets"))
        return Batch(each(lambda own: own[back], inputs), each(lambda own: own[back], targets))


@dataclass(frozen=True, eq=False)
class Indexed:
    """Samples of anything indexable, such as a `torch.utils.data.Dataset`: item i is ``(inputs, target)``.

    They are put together by torch's `default_collate`, so an input or target may be a tensor, an array, a number, or a
    dict of them. An item has to be the same whenever it is asked for: a transformation that draws random numbers would
    make the training depend on how it is computed.

    Attributes
    ----------
    data : Any
        Has ``len(data)`` and ``data[i]``.
    read : Callable[[Tensors], Tensors]
        Makes of the targets what they are trained with (`sglr_flower.data.targets`).
    """

    data: Any
    read: Callable[[Tensors], Tensors] = field(default=lambda targets: targets)
    _targets: list[Tensors] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.data)

    def take(self, indices: Tensor) -> Batch:
        """Collate the samples at `indices` (int64 [k]), in that order."""
        from torch.utils.data import default_collate

        items = [self._item(index) for index in indices.tolist()]
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise UserError("a sample of a data set must be a pair (inputs, target)")
        try:
            inputs, targets = (_checked(default_collate([item[k] for item in items])) for k in (0, 1))
        except (TypeError, RuntimeError, LookupError) as error:
            shapes = sorted({str(tuple(own.shape)) for own, _ in items if hasattr(own, "shape")})
            if len(shapes) > 1:
                raise UserError(
                    f"the samples of a data set must have one shape, and these have {' and '.join(shapes[:3])}: let it "
                    "resize them, to images of as many channels"
                ) from error
            raise UserError(
                "a sample of a data set must be tensors, arrays or numbers, and this one is "
                f"({', '.join(type(own).__name__ for own in items[0])}): of an image torchvision's ToTensor makes one"
            ) from error
        return Batch(inputs, self.read(targets))

    def _item(self, index: int) -> Any:
        try:
            return self.data[index]
        except UserError:
            raise
        except Exception as error:  # whatever the user's own data set does
            raise UserError(f"sample {index} of a data set cannot be had: {imports.told(error)}") from error

    def targets(self) -> Tensors:
        """All targets, for which the data set is gone through once."""
        if not self._targets:
            every = torch.arange(len(self)).split(_AT_ONCE)
            self._targets.append(join([self.take(indices).targets for indices in every]))
        return self._targets[0]


@dataclass(frozen=True, eq=False)
class Read:
    """Samples whose inputs are made into others when they are taken.

    Attributes
    ----------
    whole : Samples
        The samples as they are.
    made : Callable[[Batch], Batch]
        Makes them; the targets stay.
    """

    whole: Samples
    made: Callable[[Batch], Batch]

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, indices: Tensor) -> Batch:
        """Make the samples at `indices` (int64 [k]), in that order."""
        return self.made(self.whole.take(indices))


def _checked(collated: Any) -> Tensors:
    parts = collated.values() if isinstance(collated, dict) else [collated]
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise UserError("inputs and target of a sample must be a tensor, an array, a number, or a dict of these")
    return collated  # type: ignore[no-any-return]  # what has just been looked at


def all_targets(samples: Samples) -> Tensors:
    """The targets of all samples, in their order."""
    if isinstance(samples, Batch):
        return samples.targets
    if isinstance(samples, Share):
        return each(lambda own: own[samples.indices], all_targets(samples.whole))
    if isinstance(samples, Indexed):
        return samples.targets()
    if isinstance(samples, Read):
        return all_targets(samples.whole)
    if isinstance(samples, Joint):
        return join([all_targets(part) for part in samples.parts])
    return samples.take(torch.arange(len(samples))).targets


def in_memory(samples: Samples) -> Batch:
    """The samples as tensors."""
    return samples if isinstance(samples, Batch) else samples.take(torch.arange(len(samples)))
