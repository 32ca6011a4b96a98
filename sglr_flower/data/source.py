"""A source: a run's train, validation and test samples and what is to be predicted; made of whatever holds samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglr_flower.data.draw import balanced_order
from sglr_flower.data.inputs import Inputs, describe, is_image, of_one_channel
from sglr_flower.data.samples import Batch, Indexed, Joint, Read, Samples, Share, Tensors, all_targets, one
from sglr_flower.data.targets import Classes, Kind, MultiLabel, Several, Values, complaint, to_targets
from sglr_flower.errors import UserError
from sglr_flower.seeds import numpy_generator as generator

_VALIDATION_SHARE = 6  # one sixth of train: the paper's 10,000 of 60,000


@dataclass(frozen=True, eq=False)
class Source:
    """The data of a run.

    Attributes
    ----------
    train, validation, test : Samples
        Disjoint. The clients hold parts of `train`; the clients' networks are scored on the other two.
    targets : Kind
        The target type: `Classes`, `MultiLabel`, `Values`, or `Several` of them by name.
    flips : bool
        Whether augmentation may mirror its images: not where they are of digits, say.
    owned : tuple of int
        Where each client has samples of its own: how many of `train`, one client after the other. Else empty.
    """

    train: Samples
    validation: Samples
    test: Samples
    targets: Kind
    flips: bool = False
    owned: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, by class number; empty where the targets are no classes."""
        return self.targets.names if isinstance(self.targets, Classes) else ()

    @cached_property
    def inputs(self) -> Inputs:
        """What a model reads of a sample."""
        return describe(self._first)

    @property
    def are_images(self) -> bool:
        """Whether its inputs are stored images."""
        return isinstance(self._first, Tensor) and is_image(self._first)

    @cached_property
    def _first(self) -> Tensors:
        return self.train.take(torch.zeros(1, dtype=torch.int64)).inputs

    def labels(self, samples: Samples) -> Tensor | None:
        """The class numbers of some of its samples, int64 [n]; None where the targets are no classes."""
        return one(all_targets(samples)) if isinstance(self.targets, Classes) else None


def _of_one_channel(batch: Batch) -> Batch:
    return Batch(of_one_channel(batch.images), batch.targets)


def one_channel(source: Source) -> Source:
    """The same images, to be read with one channel.

    Raises
    ------
    UserError
        They are no images.
    """
    if not source.are_images:
        raise UserError("run-config key channels = 1: it is for images, and the data set has none")
    train, validation, test = (
        _of_one_channel(part) if isinstance(part, Batch) else Read(part, _of_one_channel)
        for part in (source.train, source.validation, source.test)
    )
    return replace(source, train=train, validation=validation, test=test)


def subset(samples: Samples, size: int, seed: int) -> Samples:
    """Draw a sample of some samples, class-balanced where there are classes: to evaluate on fewer, say.

    Parameters
    ----------
    samples : Samples
        What to draw from, without replacement.
    size : int
        How many; 0, or as many as there are or more, for all of them.
    seed : int
        Decides the draw; at least 0.

    Returns
    -------
    Samples
        `size` samples in their original order, the same number of every class as far as size and classes
        allow (a class that is too small is made up for by the others); `samples` itself when all are asked for.
    """
    if size == 0 or size >= len(samples):
        return samples
    like = samples.take(torch.zeros(1, dtype=torch.int64)).targets
    by_class = isinstance(like, Tensor) and like.dtype == torch.int64
    classes = one(all_targets(samples)).numpy() if by_class else np.zeros(len(samples), np.int64)
    drawn = balanced_order(classes, generator(seed, "subset"))[:size]
    return _part(samples, torch.from_numpy(np.sort(drawn)))


def validation_split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of so many train samples, int64 ascending: those that are left, and a sixth held out for validation."""
    order = torch.from_numpy(generator(seed, "validation").permutation(count))
    size = count // _VALIDATION_SHARE
    return order[size:].sort().values, order[:size].sort().values


def held_out(train: Samples, test: Samples, targets: Kind, seed: int, *, flips: bool = False) -> Source:
    """A source whose validation samples are a sixth of train's, drawn with the run's seed."""
    rest, validation = validation_split(len(train), seed)
    return Source(_part(train, rest), _part(train, validation), test, targets, flips)


def make(
    train: Any = None,
    test: Any = None,
    validation: Any = None,
    *,
    clients: Sequence[Any] = (),
    targets: Kind | Mapping[str, Classes | MultiLabel | Values] | None = None,
    seed: int = 0,
    flips: bool = False,
) -> Source:
    """Make a source of data sets.

    Parameters
    ----------
    train, test, validation : Any
        Each a pair (inputs, targets) of tensors, arrays or dicts of them; or anything indexable of (inputs, target),
        such as a torch data set or a list; or `Samples`. Without validation it is a sixth of train, drawn with `seed`.
    clients : Sequence[Any]
        In place of train, each client's own samples. Without validation it is a sixth of each client's.
    targets : Kind, or a dict of them
        The target type; None: whole numbers are `Classes` (named as the data set's ``classes`` says, else by their
        number), floating point numbers are `Values`, rows of booleans `MultiLabel`.
    seed : int
        The run's seed.
    flips : bool
        As of `Source`.

    Raises
    ------
    UserError
        If a part is none of this, is empty, or has other targets than the type says.
    """
    if (train is None) is (len(clients) == 0):
        raise UserError("it must have either a train part or clients")
    own = {f"clients[{number}]": part for number, part in enumerate(clients)} if len(clients) else {"train": train}
    given = {**own, "test": test, **({} if validation is None else {"validation": validation})}
    parts = {name: samples_of(name, part) for name, part in given.items()}
    if targets is None:
        named = getattr(next(iter(own.values())), "classes", ())
        kind = guess([all_targets(part) for part in parts.values()], named)
    else:
        kind = Several.of(targets) if isinstance(targets, Mapping) else targets
    parts = {name: read_as(part, kind) for name, part in parts.items()}
    first, inputs = next((name, _inputs(part)) for name, part in parts.items())
    for name, part in parts.items():
        if (found := _inputs(part)) != inputs:
            raise UserError(f"its {name} part has {found.words()}, and its {first} part {inputs.words()}")
        _check(name, part, kind)
    if len(clients):
        return _of_clients([parts[name] for name in own], parts.get("validation"), parts["test"], kind, seed, flips)
    if validation is None:
        if len(parts["train"]) < _VALIDATION_SHARE:
            raise UserError(
                f"its train part has {len(parts['train'])} samples, but at least {_VALIDATION_SHARE} are needed"
            )
        return held_out(parts["train"], parts["test"], kind, seed, flips=flips)
    return Source(parts["train"], parts["validation"], parts["test"], kind, flips)


def _of_clients(
    clients: Sequence[Samples], validation: Samples | None, test: Samples, kind: Kind, seed: int, flips: bool
) -> Source:
    """A source whose clients have samples of their own."""
    if validation is None:
        if min(map(len, clients)) < _VALIDATION_SHARE:
            raise UserError(f"without a validation part each of its clients needs {_VALIDATION_SHARE} samples at least")
        halves = [held_out(own, test, kind, seed) for own in clients]
        clients, validation = [half.train for half in halves], Joint(tuple(half.validation for half in halves))
    return Source(Joint(tuple(clients)), validation, test, kind, flips, tuple(map(len, clients)))


def _part(samples: Samples, indices: Tensor) -> Samples:
    """Some of the samples: in memory a copy, so that the others can be forgotten."""
    return samples.take(indices) if isinstance(samples, Batch) else Share(samples, indices)


def samples_of(name: str, part: Any) -> Samples:
    """Samples of whatever holds some.

    Parameters
    ----------
    name : str
        What it is, for the sentence.
    part : Any
        As of `make`.

    Raises
    ------
    UserError
        If it is none of this, or is empty.
    """
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Tensor | np.ndarray | Mapping):
        inputs, targets = _tensors(name, part[0]), _tensors(name, part[1])
        lengths = {len(own) for values in (inputs, targets) for own in each_of(values)}
        if len(lengths) != 1:
            raise UserError(f"its {name} part has tensors of {' and '.join(map(str, sorted(lengths)))} samples")
        found: Samples = Batch(inputs, targets)
    elif isinstance(part, Batch | Share | Indexed) or (hasattr(part, "take") and not hasattr(part, "__getitem__")):
        found = part
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, str | Mapping):
        found = Indexed(part)
    else:
        raise UserError(
            f"its {name} part must be a pair (inputs, targets) of tensors or arrays, or anything indexable of "
            f"(inputs, target), not a {type(part).__name__}"
        )
    if len(found) == 0:
        raise UserError(f"its {name} part is empty")
    return found


def each_of(values: Tensors) -> list[Tensor]:
    """The tensor, or all of several."""
    return [values] if isinstance(values, Tensor) else list(values.values())


def _tensors(name: str, values: Any) -> Tensors:
    try:
        if isinstance(values, Mapping):
            return {key: torch.as_tensor(own) for key, own in values.items()}
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"its {name} part cannot be made into tensors: {error}") from None


def read_as(part: Samples, kind: Kind) -> Samples:
    """Samples whose targets lie in tensors as the target type has them."""
    if isinstance(part, Batch):
        return Batch(part.inputs, kind.read(part.targets))
    return Indexed(part.data, kind.read) if isinstance(part, Indexed) else part


def _inputs(part: Samples) -> Inputs:
    return describe(part.take(torch.zeros(1, dtype=torch.int64)).inputs)


def _check(name: str, part: Samples, kind: Kind) -> None:
    """Look at the targets: at all of them where they are in memory or are classes, else at one."""
    every = isinstance(part, Batch) or isinstance(kind, Classes)
    found = all_targets(part) if every else part.take(torch.zeros(1, dtype=torch.int64)).targets
    if wrong := complaint(kind, to_targets(found, torch.float64), len(part) if every else 1, torch.float64):
        raise UserError(f"its {name} part has {wrong}")


def guess(parts: Sequence[Tensors], classes: Any = ()) -> Kind:
    """The target type of targets [n, ...] of several parts, as of `make`; ``classes``: their names, if it is said."""
    if not isinstance(parts[0], Tensor):
        several = {name: guess([own[name] for own in parts], ()) for name in parts[0]}  # type: ignore[index]
        return Several.of(several)  # type: ignore[arg-type]
    kinds = [own for own in parts if isinstance(own, Tensor)]
    first = kinds[0]
    if first.is_floating_point():
        return Values(tuple(first.shape[1:]) or (1,))
    if first.dtype == torch.bool and first.ndim == 2:
        return MultiLabel(tuple(map(str, range(first.shape[1]))))
    if first.ndim == 1:
        count = 1 + max(int(own.max()) for own in kinds)
        names = tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
        return Classes(names if len(names) >= count else tuple(map(str, range(max(2, count)))))
    raise UserError(
        f"its targets are whole numbers of shape {tuple(first.shape[1:])} for each sample, of which nobody can tell "
        "what they mean: give each sample's class number alone ([n], of one-hot rows targets.argmax(1)), or say it "
        "with targets = MultiLabel(...) or Values(...)"
    )
