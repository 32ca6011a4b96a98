"""The data sets that a run-config can name, read and split into train, validation and test: each as a `Source`.

Published images are files, downloaded where they are missing and read by us (`idx`) or by torchvision (`vision`);
"digits" comes with scikit-learn and needs no disk and no network, and so do the tables (`tables`); "folder" is the
user's own images (`folder`); "hf:NAME" is a data set of the Hugging Face hub (`hub`), "package.module:function"
whatever a user's function returns (`own`). Images are resized to the model's input.
"""

import http.client
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from sglr_flower import imports
from sglr_flower.data import changed, draw, fingerprint, folder, found, hub, idx, own, pinned, tables, vision
from sglr_flower.data import download as published
from sglr_flower.data.download import DATA_DIR_VARIABLE, Part, data_folder, download
from sglr_flower.data.images import resize
from sglr_flower.data.inputs import Inputs, rgb
from sglr_flower.data.options import DEFAULT, Options
from sglr_flower.data.pinned import Pinned
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import Source, held_out, one_channel
from sglr_flower.data.targets import Classes, Kind
from sglr_flower.errors import UserError

_SOURCES: dict[str, published.Source] = {**idx.SOURCES, **vision.SOURCES}

# 8x8 would be 2x2 after ResNet16's two strides, nothing left for a convolution to look at; 16x16 still costs
# a quarter of 32x32, and a quick run is what the digits are for.
_DIGITS_INPUT_SIZE = 16
_DIGITS_TEST_SIZE = 297  # leaves a round 1,500 of the 1,797
_DIGITS_CLASSES = tuple(str(digit) for digit in range(10))


def names() -> tuple[str, ...]:
    """Name the data sets that `load` knows, but for those of the hub and of one's own."""
    return (*_SOURCES, "digits", "folder", *tables.NAMES)


def targets(dataset: str, data_dir: str = "", seed: int = 0, image_size: int = 0, options: Options = DEFAULT) -> Kind:
    """What a data set wants predicted; of published ones without reading them.

    Parameters and raises as `load`. The classes of "folder" are the names of the folders in ``data_dir/train``.
    """
    _check_known(dataset)
    if _is_read_first(dataset):
        return load(dataset, data_dir, seed, image_size, options).targets
    match dataset:
        case "digits":
            return Classes(_DIGITS_CLASSES)
        case "folder":
            return Classes(folder.class_names(data_dir, options))
    return tables.targets(dataset) if dataset in tables.NAMES else Classes(_SOURCES[dataset].classes)


def inputs(dataset: str, data_dir: str = "", seed: int = 0, image_size: int = 0, options: Options = DEFAULT) -> Inputs:
    """What a model reads of one sample; of published images without reading them.

    Parameters and raises as `load`.
    """
    _check_known(dataset)
    if _is_read_first(dataset) or dataset in tables.NAMES:
        return load(dataset, data_dir, seed, image_size, options).inputs
    return rgb(_input_size(dataset, image_size), options.channels or 3)


def _input_size(dataset: str, image_size: int) -> int:
    """The side in pixels that a data set's images are resized to; 0 asks for its own default."""
    if image_size < 0:
        raise UserError(
            f"run-config key image-size = {image_size}: it must be at least 0 (which is the data set's default)"
        )
    if image_size:
        return image_size
    match dataset:
        case "digits":
            return _DIGITS_INPUT_SIZE
        case "folder":
            return folder.INPUT_SIZE
    return _SOURCES[dataset].input_size


def channels(dataset: str, data_dir: str = "", seed: int = 0, image_size: int = 0, options: Options = DEFAULT) -> int:
    """The channels of a data set's stored images: 1 for grey ones, else 3; 0 where it has no images.

    Parameters and raises as `load`.
    """
    _check_known(dataset)
    if _is_read_first(dataset) or dataset in tables.NAMES:
        source = load(dataset, data_dir, seed, image_size, options)
        first = source.train.take(torch.zeros(1, dtype=torch.int64)).inputs if source.are_images else None
        return first.shape[1] if isinstance(first, torch.Tensor) else 0
    return 1 if options.channels == 1 or dataset == "digits" or isinstance(_SOURCES.get(dataset), idx.IdxSource) else 3


def flips(dataset: str, data_dir: str = "", seed: int = 0, image_size: int = 0, options: Options = DEFAULT) -> bool:
    """Whether augmentation may mirror a data set's images: not where they are digits, which it would garble.

    "folder" is taken for photographs, which show the same in a mirror. Parameters and raises as `load`.
    """
    _check_known(dataset)
    if _is_read_first(dataset):
        return load(dataset, data_dir, seed, image_size, options).flips
    match dataset:
        case "digits":
            return False
        case "folder":
            return True
    return dataset in _SOURCES and _SOURCES[dataset].flips


def _is_read_first(dataset: str) -> bool:
    """Whether nothing is known of a data set before it is read."""
    return hub.is_name(dataset) or imports.is_path(dataset)


def load(dataset: str, data_dir: str, seed: int, image_size: int = 0, options: Options = DEFAULT) -> Source:
    """Read a data set, downloading it first where it is missing.

    Parameters
    ----------
    dataset : str
        One of `names`, or ``hf:NAME`` (see `hub`), or ``package.module:function`` (see `own`).
    data_dir : str
        The folder that holds, or shall hold, the data set's files; empty for the one named by the environment
        variable SGLR_DATA_DIR, or else for the user's data folder of this program. For "folder" it must be given
        and is the folder that has ``train`` and perhaps ``test``.
    seed : int
        Draws the sixth of the training images that is held out for validation (i.i.d., as in the paper); at
        least 0.
    image_size : int
        The run-config's ``image-size``, the side that images are resized to: 0 for the data set's own default, which is
        16 for digits (of 8), 48 for stl-10 (of 96), and 32 for all others. Tables and data of one's own have none.
    options : Options
        How it is read.

    Returns
    -------
    Source
        Remembered for the next call with the same arguments. The test set is the data set's own; digits, and
        "folder" where it has none, get a stratified one that does not depend on `seed`.

    Raises
    ------
    UserError
        The data set is unknown, or missing and not to be had, or a file of it is damaged.
    """
    if options.channels == 1:
        return _with_one_channel(dataset, data_dir, seed, image_size, options)
    _check_known(dataset)
    if hub.is_name(dataset):
        return hub.load(dataset, seed, image_size or hub.INPUT_SIZE)
    if image_size and (dataset in tables.NAMES or _is_read_first(dataset)):
        raise UserError(f"run-config key image-size = {image_size}: it must be 0 with dataset {dataset!r}")
    if dataset in tables.NAMES:
        return tables.load(dataset, seed)
    if _is_read_first(dataset):
        return own.load(dataset, data_dir, seed)
    ensure_present(dataset, data_dir, options)
    size = _input_size(dataset, image_size)
    match dataset:
        case "digits":
            return _load_digits(seed, size)
        case "folder":
            return folder.load(folder.root(data_dir), seed, size, options).source()
    # Resolved here, so that what is remembered depends on arguments alone and not on the environment.
    return _load_published(dataset, data_folder(data_dir).path, seed, size)


@lru_cache(maxsize=2)
def _with_one_channel(dataset: str, data_dir: str, seed: int, image_size: int, options: Options) -> Source:
    _check_known(dataset)
    if dataset == "folder":  # read in grey to begin with
        size = _input_size(dataset, image_size)
        return one_channel(folder.load(folder.root(data_dir), seed, size, options).source())
    return one_channel(load(dataset, data_dir, seed, image_size, replace(options, channels=0)))


def notes(dataset: str, data_dir: str, seed: int, image_size: int = 0, options: Options = DEFAULT) -> list[str]:
    """What a person should know of one's own images: what was found and what is odd of it, a sentence each.

    Parameters and raises as `load`; of published data sets there is nothing to tell.
    """
    if imports.is_path(dataset):
        return own.oddities(load(dataset, data_dir, seed, image_size, options))
    if dataset != "folder":
        return []
    where = folder.root(data_dir)
    return found.lines(folder.load(where, seed, _input_size(dataset, image_size), options), where)


def pin(dataset: str, data_dir: str, seed: int, image_size: int = 0, options: Options = DEFAULT) -> list[str]:
    """Keep in ``options.kept`` what data a run has, where that is not kept yet; else say what has changed since then.

    Parameters and raises as `load`.
    """
    kept = pinned.read(options.kept)
    if dataset == "folder":
        where = folder.root(data_dir)
        if kept is not None:
            return changed.of_folder(kept, where, options)
        now = folder.pin(folder.load(where, seed, _input_size(dataset, image_size), options), where)
    else:
        source = load(dataset, data_dir, seed, image_size, options)
        now = Pinned(dataset, source.classes, fingerprint.parts(source))
        if kept is not None:
            return changed.of_others(kept, now)
    now.write(Path(options.kept))
    return []


def take_changed(dataset: str, data_dir: str, seed: int, image_size: int = 0, options: Options = DEFAULT) -> None:
    """Keep in ``options.kept`` the data that are there now in the place of those that a run began with.

    Parameters and raises as `load` and `changed.taken`; where it raises nothing is changed.
    """
    kept = pinned.read(options.kept)
    if kept is None:
        return
    if dataset == "folder":
        now = changed.taken(kept, folder.root(data_dir), options)
    else:
        source = load(dataset, data_dir, seed, image_size, options)
        now = Pinned(dataset, source.classes, fingerprint.parts(source))
    now.write(Path(options.kept))
    forget_folders()


def forget_folders() -> None:
    """Let go of the images of folders that are remembered in this process."""
    folder.load.cache_clear()
    _with_one_channel.cache_clear()


def train_files(data_dir: str, seed: int, image_size: int, options: Options = DEFAULT) -> list[str]:
    """The path of every train image of dataset "folder", in their order; parameters and raises as `load`."""
    loaded = folder.load(folder.root(data_dir), seed, _input_size("folder", image_size), options)
    return [loaded.pictures.files[index][0] for index in loaded.parts["train"].tolist()]


def ensure_present(dataset: str, data_dir: str, options: Options = DEFAULT) -> None:
    """Download a data set unless its files are there.

    Several processes may call this at once; one of them downloads and the others wait for it.

    Parameters
    ----------
    dataset, data_dir, options
        As in `load`.

    Raises
    ------
    UserError
        The data set is unknown, or it is missing and cannot be downloaded into the folder.
    """
    _check_known(dataset)
    if dataset == "digits" or dataset in tables.NAMES or _is_read_first(dataset):
        return
    if dataset == "folder":
        folder.class_names(data_dir, options)
        return
    source, where = _SOURCES[dataset], data_folder(data_dir)
    if source.is_present(where.path):
        return
    try:
        download(source, where.path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Data set {dataset} is not in {where.path} ({where.origin}) and could not be downloaded there "
            f"({reason}): put its files there ({', '.join(source.files)}), or set data-dir in the run-config "
            f"or the environment variable {DATA_DIR_VARIABLE} to a folder that has them."
        ) from error


def _check_known(dataset: str) -> None:
    if dataset not in names() and not _is_read_first(dataset):
        raise UserError(
            f"run-config key dataset = {dataset!r}: it must be one of {', '.join(names())}, hf:NAME, or "
            "package.module:function"
        )


# What is read is remembered in the process: a node's process is handed one message per round and would read the
# data set anew each time. Two at most, because more would keep in memory what nobody asks for again.
@lru_cache(maxsize=2)
def _load_published(dataset: str, root: Path, seed: int, size: int) -> Source:
    source = _SOURCES[dataset]
    train, test = source.read(root)
    kind = Classes(source.classes)
    return held_out(_resized(train, size), _resized(test, size), kind, seed, flips=source.flips)


@lru_cache(maxsize=2)
def _load_digits(seed: int, size: int) -> Source:
    """Load scikit-learn's digits, 8x8 images of levels 0..16."""
    # An image's 64 levels and its label.
    rows = np.loadtxt(tables.bundled("digits.csv.gz", "digits"), delimiter=",")
    pixels = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round_().to(torch.uint8)
    labels = rows[:, -1].astype(np.int64)
    everything = _resized((pixels, torch.from_numpy(labels)), size)
    train, test = (everything.take(torch.from_numpy(part)) for part in draw.held_out(labels, _DIGITS_TEST_SIZE))
    return held_out(train, test, Classes(_DIGITS_CLASSES), seed)


def _resized(part: Part, size: int) -> Batch:
    images, labels = part
    return Batch(resize(images, size), labels)
