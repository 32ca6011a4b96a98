"""Which client holds which training samples.

"balanced" is drawn as the authors of SGLR do (arXiv 2112.05929 and its code): every client the same number of
samples of every class. The others are partitioners of Flower Datasets
(https://flower.ai/docs/datasets/ref-api/flwr_datasets.partitioner.html), which see the samples in an order
drawn with the run's seed, since several of them cut the list as it comes.

Their DirichletPartitioner (flwr-datasets 0.6.1) rounds each class's shares down where it cuts, in the order of the
clients: with few samples of a class for each client the first one gets about half of what the others have, the last
one half as much again, whatever ALPHA is. So its shares go to the clients in an order drawn with the run's seed; that
there are two such shares remains, and the share of a given client is another than before that was so.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglr_flower.data.draw import balanced_order
from sglr_flower.errors import UserError
from sglr_flower.seeds import numpy_generator as generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_PARAMETERS = {
    "balanced": "",
    "iid": "",
    "dirichlet": "ALPHA",
    "pathological": "K",
    "shards": "K",
    "linear": "",
    "square": "",
    "own": "",
    "by": "LEVEL-OR-COLUMN",
}
"""Each partition's name, and what follows it after a colon: a positive number ALPHA, a whole one K, or a text."""


def parse(spec: str) -> tuple[str, float]:
    """Read the run-config's ``partition``.

    Parameters
    ----------
    spec : str
        - ``balanced``: the same number of every class for every client, as equal as possible; where there are no
          classes equal shares at random;
        - ``iid``: equal shares at random (IidPartitioner);
        - ``dirichlet:ALPHA``: each class spread with shares from Dirichlet(ALPHA), the smaller ALPHA the more
          uneven (DirichletPartitioner, arXiv 1905.12022);
        - ``pathological:K``: K classes for each client; with few clients some classes go to nobody
          (PathologicalPartitioner, first-deterministic as in arXiv 2102.02079);
        - ``shards:K``: the samples sorted by class, cut into equal shards, K shards for each client, the
          remainder of the division to nobody (ShardPartitioner, arXiv 1602.05629);
        - ``linear``, ``square``: client i of 1, 2, ... gets a share proportional to i or i squared
          (LinearPartitioner, SquarePartitioner);
        - ``by:LEVEL-OR-COLUMN``: a client for each folder of a level, or each value of a column (`by.shares`);
        - ``own``: each node's samples are its clients' alone (`deal`).

    Returns
    -------
    tuple of str and float
        The name and its parameter, 0 where it takes none.

    Raises
    ------
    UserError
        The name is unknown or the parameter is missing, needless or out of range.
    """
    name, colon, text = spec.partition(":")
    if name not in _PARAMETERS:
        allowed = ", ".join(f"{known}:{kind}" if kind else known for known, kind in _PARAMETERS.items())
        raise refused(spec, f"it must be one of {allowed}")
    kind = _PARAMETERS[name]
    if not kind:
        if colon:
            raise refused(spec, f"{name} takes no parameter: write {name!r}")
        return name, 0.0
    if kind == "LEVEL-OR-COLUMN":
        if not text:
            raise refused(spec, f"{name}:{kind} must name one, such as by:1 or by:writer")
        return name, 0.0
    try:
        value = float(text) if kind == "ALPHA" else float(int(text))
    except (ValueError, OverflowError):
        value = math.nan
    if not 0 < value < math.inf:
        wanted = "a positive number such as 0.5" if kind == "ALPHA" else "a positive whole number such as 2"
        raise refused(spec, f"the {kind} of {name}:{kind} must be {wanted}")
    return name, value


def refused(spec: str, why: str) -> UserError:
    """The sentence on a partition that cannot be had."""
    return UserError(f"run-config key partition = {spec!r}: {why}")


_BY_CLASS = ("dirichlet", "pathological", "shards")


def partition(labels: Tensor | int, spec: str, num_clients: int, samples_per_client: int, seed: int) -> list[Tensor]:
    """Divide the training samples among the clients, alike on every node and in every process.

    Parameters
    ----------
    labels : torch.Tensor or int
        int64 [n], the class of every training sample, from 0 up; of samples without classes only how many there are.
    spec : str
        The run-config's ``partition``, see `parse`.
    num_clients : int
        How many clients, at least 1.
    samples_per_client : int
        0 divides all there is. Otherwise "balanced" gives each client exactly this many, and every other
        partition at most this many, drawn at random from its share.
    seed : int
        The run's seed, at least 0.

    Returns
    -------
    list of torch.Tensor
        For each client the int64 [n_i] indices of its samples, ascending, n_i at least 1; no sample is in two.

    Raises
    ------
    UserError
        `spec`, `num_clients` or `samples_per_client` is out of range, there are too few samples (of a class), or
        a client is left with none; or `spec` is by classes and there are none; or it is ``own``, as there is no one set
        of samples to divide then.
    """
    name, parameter = parse(spec)
    if name == "own":
        raise refused(spec, "every node has samples of its own, so there is nothing to divide")
    if name == "by":
        raise refused(spec, "it is by what the samples are of (`by.shares`), not by their classes")
    if isinstance(labels, int) and name in _BY_CLASS:
        raise refused(spec, "it is by classes, and the data set has none: take balanced or iid")
    classes = _classes(labels)
    _check_sizes(len(classes), num_clients, samples_per_client)
    if name == "balanced":
        shares = _balanced(classes, num_clients, samples_per_client, seed)
    else:
        _check_parameter(classes, spec, name, parameter, num_clients)
        uncapped = _flower_shares(classes.tobytes(), spec, num_clients, seed)
        shares = _capped(uncapped, samples_per_client, seed)
    return [torch.from_numpy(np.sort(share)) for share in shares]


def _classes(labels: Tensor | int) -> npt.NDArray[np.int64]:
    """Class numbers; without classes all are of one."""
    return np.zeros(labels, np.int64) if isinstance(labels, int) else labels.numpy().astype(np.int64, copy=False)


def deal(labels: Tensor | int, num_clients: int, samples_per_client: int, seed: int) -> list[Tensor]:
    """Divide the samples that a node has of its own evenly among the clients it hosts (partition ``own``).

    Parameters
    ----------
    labels : torch.Tensor or int
        int64 [n], the class of every training sample of the node; or how many there are, as in `partition`.
    num_clients : int
        How many clients the node hosts.
    samples_per_client : int
        At most this many each, drawn at random from the client's share; 0 gives it all of that.
    seed : int
        The run's seed, at least 0.

    Returns
    -------
    list of torch.Tensor
        As of `partition`; every client has as many of each class as any other, give or take one.

    Raises
    ------
    UserError
        There are fewer samples than clients.
    """
    classes = _classes(labels)
    if num_clients > len(classes):
        raise refused("own", f"this node has {len(classes)} train samples for {num_clients} clients")
    shares = _balanced(classes, num_clients, 0, seed) if num_clients else []
    return [torch.from_numpy(np.sort(share)) for share in _capped(tuple(shares), samples_per_client, seed)]


def class_counts(labels: Tensor | int, shares: Sequence[Tensor], num_classes: int) -> list[list[int]]:
    """Count each client's samples of every class.

    Parameters
    ----------
    labels : torch.Tensor or int
        int64 [n], the class of every training sample; or how many there are, all of one class.
    shares : sequence of torch.Tensor
        For each client the int64 [n_i] indices of its samples, see `partition`.
    num_classes : int
        How many classes there are, also such as no sample is of.

    Returns
    -------
    list of list of int
        For each client a list of `num_classes` numbers.
    """
    classes = torch.from_numpy(_classes(labels))
    return [torch.bincount(classes[share], minlength=num_classes).tolist() for share in shares]


def _check_sizes(available: int, num_clients: int, samples_per_client: int) -> None:
    if num_clients < 1:
        raise UserError(f"run-config key num-clients = {num_clients}: it must be at least 1")
    if samples_per_client < 0:
        raise UserError(
            f"run-config key samples-per-client = {samples_per_client}: it must be at least 0 (which is all there are)"
        )
    if num_clients > available:
        raise UserError(
            f"run-config key num-clients = {num_clients}: every client needs a train sample, and there are {available}"
        )
    if num_clients * samples_per_client > available:
        raise UserError(
            f"run-config key samples-per-client = {samples_per_client}: with num-clients {num_clients} that is "
            f"{num_clients * samples_per_client} train samples, but there are {available}; it must be at most "
            f"{available // num_clients} (0 divides all there are)"
        )


def _balanced(
    classes: npt.NDArray[np.int64], num_clients: int, samples_per_client: int, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Deal the samples out like cards sorted by class: a class's counts differ by one at most."""
    draw = generator(seed, "partition")
    order = balanced_order(classes, draw)
    if samples_per_client:
        _check_smallest_class(classes, num_clients, samples_per_client)
        order = order[: num_clients * samples_per_client]
    by_class = order[np.argsort(classes[order], kind="stable")]
    return [by_class[client::num_clients] for client in range(num_clients)]


def _check_smallest_class(classes: npt.NDArray[np.int64], num_clients: int, samples_per_client: int) -> None:
    counts = np.unique(classes, return_counts=True)[1]
    balanced = len(counts) * int(counts.min())
    if num_clients * samples_per_client > balanced:
        raise UserError(
            f"run-config key samples-per-client = {samples_per_client}: with num-clients {num_clients} that is more "
            f"than the {counts.min()} train samples of the smallest class; with partition balanced it must be at most "
            f"{balanced // num_clients} (0 divides all there are)"
        )


def _check_parameter(classes: npt.NDArray[np.int64], spec: str, name: str, parameter: float, num_clients: int) -> None:
    if name == "pathological" and parameter > (present := len(np.unique(classes))):
        raise refused(spec, f"there are only {present} classes, so K can be at most {present}")
    if name == "shards" and parameter * num_clients > len(classes):
        most = len(classes) // num_clients
        raise refused(
            spec, f"{len(classes)} train samples and num-clients {num_clients} allow for at most {most} shards each"
        )


# Remembered in the process: a node's process asks again every round, and DirichletPartitioner takes a while.
@lru_cache(maxsize=2)
def _flower_shares(labels: bytes, spec: str, num_clients: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Let a partitioner of Flower Datasets divide the samples.

    Parameters
    ----------
    labels : bytes
        The labels' int64 values: bytes can be looked up by what they hold, arrays cannot.
    spec, num_clients, seed
        As in `partition`.

    Returns
    -------
    tuple of numpy.ndarray
        For each client the int64 indices of its samples, in no particular order.
    """
    # Imported here because it takes more than 2 s, which the default partition need not wait for.
    from datasets import Dataset

    classes = np.frombuffer(labels, np.int64)
    order = generator(seed, "partition").permutation(len(classes))
    partitioner = _partitioner(spec, num_clients, seed)
    try:
        # The partitioners warn of what their errors then say, and Arrow below them of its own future.
        with warnings.catch_warnings(action="ignore"):
            # A table in memory: nothing of it touches the Hugging Face hub, nor a cache on disk.
            partitioner.dataset = Dataset.from_dict({"index": order, "label": classes[order]})
            shares = tuple(
                np.asarray(partitioner.load_partition(number)["index"][:], np.int64)
                for number in _dealt(spec, num_clients, seed)
            )
    except ValueError as error:
        raise _too_thin(spec, num_clients, len(classes)) from error
    if not all(len(share) for share in shares):
        raise _too_thin(spec, num_clients, len(classes))
    return shares


def _dealt(spec: str, num_clients: int, seed: int) -> list[int]:
    """Which of the partitioner's shares each client gets: of Dirichlet's in a random order (see above)."""
    if parse(spec)[0] != "dirichlet":
        return list(range(num_clients))
    order: list[int] = generator(seed, "shares").permutation(num_clients).tolist()
    return order


def _partitioner(spec: str, num_clients: int, seed: int) -> "Partitioner":
    from flwr_datasets import partitioner as flower

    name, parameter = parse(spec)
    match name:
        case "iid":
            return flower.IidPartitioner(num_clients)
        case "dirichlet":
            # Flower's own least size of 10 rules out the small ALPHA that one may well want to see.
            return flower.DirichletPartitioner(num_clients, "label", parameter, min_partition_size=1, seed=seed)
        case "pathological":
            return flower.PathologicalPartitioner(
                num_clients, "label", int(parameter), class_assignment_mode="first-deterministic", seed=seed
            )
        case "shards":
            return flower.ShardPartitioner(num_clients, "label", num_shards_per_partition=int(parameter), seed=seed)
        case "linear":
            return flower.LinearPartitioner(num_clients)
        case "square":
            return flower.SquarePartitioner(num_clients)
    raise AssertionError(name)


def _too_thin(spec: str, num_clients: int, available: int) -> UserError:
    return refused(
        spec,
        f"it leaves some client without samples (train samples {available}, num-clients {num_clients}): use fewer "
        "clients, or a partition that is less uneven",
    )


def _capped(
    shares: tuple[npt.NDArray[np.int64], ...], samples_per_client: int, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Keep at most `samples_per_client` random ones of each share, or all of them for 0."""
    draw = generator(seed, "samples-per-client")
    return [draw.permutation(share)[: samples_per_client or None] for share in shares]
