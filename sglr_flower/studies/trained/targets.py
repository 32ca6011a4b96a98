"""What a trained network is evaluated on: the run's own images, another data set's, or a user's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from sglr_flower.choices import SPLITS
from sglr_flower.data import datasets, imagefiles
from sglr_flower.data.inputs import grey
from sglr_flower.data.samples import Batch, Samples, in_memory
from sglr_flower.data.source import Source, subset
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.studies.trained.network import Trained


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be evaluated on.

    Attributes
    ----------
    images : Batch
        Of the run's image size, labelled with the model's class numbers.
    name : str
        For a folder; the same images have the same name. Empty: the run's own test images, all of them.
    description : dict[str, str]
        For people and ``evaluation.json``.
    """

    images: Batch
    name: str
    description: dict[str, str]


def run_target(model: Trained, split: str = "test") -> Target:
    """The run's own test or validation images, all of them whatever ``evaluate-samples`` was.

    Raises
    ------
    UserError
        If there is no such split, or the data are missing.
    """
    whole = assembly.splits(model.config)
    name = "" if split == "test" else f"{model.config.dataset}-{split}"
    return Target(in_memory(_split(whole, split)), name, {"data set": model.config.dataset, "split": split})


def dataset_target(model: Trained, dataset: str, split: str = "test") -> Target:
    """Another data set's images, which must be of classes that the model knows by the same names.

    Raises
    ------
    UserError
        If the data set or split is unknown, the data are missing, or they have a class that the model does not know.
    """
    if dataset == model.config.dataset:
        return run_target(model, split)
    # Names first: what does not fit need not be downloaded. And a folder of images is no place for other data sets.
    data_dir = "" if model.config.dataset == "folder" else model.config.data_dir
    if unknown := [name for name in datasets.targets(dataset, data_dir).names if name not in model.classes]:
        raise UserError(
            f"--dataset {dataset}: its class {unknown[0]!r} is none of the model's: {', '.join(model.classes)}"
        )
    whole = datasets.load(dataset, data_dir, model.config.seed, model.image_size)
    if not whole.are_images:
        raise UserError(f"--dataset {dataset}: it has no images")
    numbers = torch.tensor([model.classes.index(name) for name in whole.classes])
    chosen = in_memory(_split(whole, split))
    images = grey(chosen.images) if chosen.images.shape[1] > model.channels else chosen.images
    return Target(Batch(images, numbers[chosen.labels]), f"{dataset}-{split}", {"data set": dataset, "split": split})


def folder_target(model: Trained, folder: Path) -> Target:
    """A user's own images, ``folder/CLASS/IMAGE``.

    Raises
    ------
    UserError
        As `imagefiles.read_folder`.
    """
    folder = folder.expanduser().absolute()
    images = imagefiles.read_folder(folder, model.classes, model.channels, model.image_size, model.options)
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:6]  # there may be two folders of one name
    return Target(images, f"images-{folder.name}-{mark}", {"images": str(folder)})


def sample(target: Target, model: Trained, size: int) -> Target:
    """A class-balanced sample of ``size`` images of a target; the target itself if it has no more."""
    if size >= len(target.images):
        return target
    name = f"{target.name or f'{model.config.dataset}-test'}-{size}"
    return Target(in_memory(subset(target.images, size, model.config.seed)), name, target.description)


def only(target: Target, model: Trained, client: int) -> Target:
    """A target under the name that an evaluation of one client by itself is filed under."""
    name = f"{target.name or f'{model.config.dataset}-test'}-client-{client}"
    return Target(target.images, name, target.description)


def _split(whole: Source, split: str) -> Samples:
    if split not in SPLITS:
        raise UserError(f"--split {split}: it must be one of {', '.join(SPLITS)}")
    return whole.test if split == "test" else whole.validation
