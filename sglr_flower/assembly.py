"""From a run-config to the objects of the engine: the one place where settings become models, data and cohorts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sglr_flower.config import RunConfig
from sglr_flower.data import datasets, partition
from sglr_flower.data.datasets import ImageSet, Splits
from sglr_flower.models import SplitModel
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.server import ServerSegment


def device() -> torch.device:
    """The GPU that Ray or the user left visible to this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype(config: RunConfig) -> torch.dtype:
    """The torch dtype of weights and activations."""
    return torch.float64 if config.dtype == "float64" else torch.float32


def splits(config: RunConfig) -> Splits:
    """The run's train, validation and test images."""
    return datasets.load(config.dataset, config.data_dir, config.seed)


def model(config: RunConfig) -> SplitModel:
    """The model, its cut and its initial weights."""
    return SplitModel(
        name=config.model,
        cut=config.cut,
        num_classes=len(splits(config).classes),
        seed=config.seed,
        shared=config.initial_segments == "shared",
        dtype=dtype(config),
    )


def server(config: RunConfig) -> ServerSegment:
    """The server segment with its initial weights."""
    return ServerSegment(model(config).server_segment(), config.optimizer, device())


def client_data(config: RunConfig, clients: Sequence[int]) -> dict[int, ImageSet]:
    """The train images of some clients."""
    train = splits(config).train
    shares = partition.partition(
        train.labels, config.partition, config.num_clients, config.samples_per_client, config.seed
    )
    return {client: train.take(shares[client]) for client in clients}


def cohort(
    config: RunConfig, clients: Sequence[int], states: Mapping[int, Mapping[str, Tensor]] | None = None
) -> Cohort:
    """The cohort of some clients, in the given ``states`` or else with their initial segments.

    Raises
    ------
    UserError
        If the data are missing or do not suffice.
    """
    build: Callable[[int], torch.nn.Module] = model(config).client_segment
    made = Cohort(client_data(config, clients), build, config.optimizer, dtype(config), device())
    for client in clients:
        if states and client in states:
            made.load_state(client, states[client])
    return made


def check(config: RunConfig) -> None:
    """Find every mistake of a run-config that shows without training: before anything is started or written.

    Raises
    ------
    UserError
        If the model or cut is unknown, the data are missing, or they do not suffice for the partition.
    """
    datasets.ensure_present(config.dataset, config.data_dir)
    model(config).server_segment()
    client_data(config, [])


def evaluation_images(config: RunConfig) -> dict[str, ImageSet]:
    """The validation and test images that an evaluation scores: the same ones in every round, for every client."""
    whole = splits(config)
    return {
        split: datasets.subset(images, config.evaluate_samples, config.seed)
        for split, images in (("validation", whole.validation), ("test", whole.test))
    }
