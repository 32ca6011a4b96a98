"""Data sets of four idx files, Fashion-MNIST and MNIST: where they lie, their download, their reading.

They lie as torchvision lays them out, ``FashionMNIST/raw/train-images-idx3-ubyte`` and so on, as they are or
with gzip (``.gz``), so that one folder serves this program and others.
"""

import contextlib
import gzip
import http.client
import io
import logging
import os
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import BinaryIO, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from platformdirs import user_data_path
from torch import Tensor

from sglr_flower.errors import UserError

_log = logging.getLogger(__name__)

DATA_DIR_VARIABLE = "SGLR_DATA_DIR"
"""The environment variable that names the data folder where the run-config's ``data-dir`` does not."""

_PATIENCE = 10.0
"""Seconds without an answer, or without a byte, after which a download is given up."""

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """A data set of idx files.

    Attributes
    ----------
    folder : str
        Its folder's name, which is also the name of torchvision's class.
    classes : tuple of str
        The name of each class, by class number.
    """

    folder: str
    classes: tuple[str, ...]

    def raw(self, root: Path) -> Path:
        """Folder of the files below the data folder `root`."""
        return root / self.folder / "raw"

    def is_present(self, root: Path) -> bool:
        """Whether all four files lie below `root`; looks at names only, it must be quick."""
        raw = self.raw(root)
        return all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in _FILES)


SOURCES = {
    "fashion-mnist": Source(
        "FashionMNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "mnist": Source("MNIST", tuple(str(digit) for digit in range(10))),
}


@dataclass(frozen=True)
class Folder:
    """The data folder, and in words for the user what chose it."""

    path: Path
    origin: str


def data_folder(data_dir: str) -> Folder:
    """Resolve the run-config's ``data-dir``.

    Parameters
    ----------
    data_dir : str
        The folder; empty for that of SGLR_DATA_DIR, or else for the user's data folder of this program.

    Returns
    -------
    Folder
        Its absolute path; it need not exist.
    """
    if data_dir:
        return Folder(Path(data_dir).expanduser().absolute(), "from data-dir")
    if variable := os.environ.get(DATA_DIR_VARIABLE):
        return Folder(Path(variable).expanduser().absolute(), f"from {DATA_DIR_VARIABLE}")
    return Folder(user_data_path("sglr-flower", appauthor=False), "the default of data-dir")


def read(source: Source, root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of a part of a data set.

    Parameters
    ----------
    source : Source
        The data set.
    root : pathlib.Path
        The data folder.
    part : str
        ``train`` or ``t10k``, as the files are called.

    Returns
    -------
    tuple of torch.Tensor
        Images uint8 [n, height, width] and labels int64 [n].

    Raises
    ------
    UserError
        A file is damaged.
    """
    images_file = source.raw(root) / f"{part}-images-idx3-ubyte"
    labels_file = source.raw(root) / f"{part}-labels-idx1-ubyte"
    images, labels = _read_file(images_file), _read_file(labels_file)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise UserError(
            f"Data files {images_file} {tuple(images.shape)} and {labels_file} {tuple(labels.shape)} do not belong "
            "together: delete them, then start again to download them."
        )
    if int(labels.max()) >= len(source.classes):
        raise UserError(
            f"Data file {labels_file} has the label {int(labels.max())}, but there are {len(source.classes)} classes: "
            "delete it, then start again to download it."
        )
    return images, labels.long()


def _read_file(file: Path) -> Tensor:
    """Read an idx file of bytes: 2 zero bytes, type, number of axes, the axes as big-endian int32, the bytes.

    Not left to torchvision, whose import would cost every node's process more than a second.
    """
    try:
        with _open(file) as stream:
            content = bytearray(stream.read())  # not bytes, as torch wants memory that it may write to
        axes = content[3]
        shape = np.frombuffer(content, ">i4", count=axes, offset=4)
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape))
    # The file ends within its header or its bytes, or gzip says so in its own ways.
    except (IndexError, ValueError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"Data file {file} cannot be read ({error}): delete it, then start again to download it."
        ) from error


def _open(file: Path) -> BinaryIO:
    return file.open("rb") if file.exists() else cast(BinaryIO, gzip.open(f"{file}.gz"))


def download(source: Source, root: Path) -> None:
    """Download a data set with torchvision, while no other process does.

    Parameters
    ----------
    source : Source
        The data set.
    root : pathlib.Path
        The data folder, made where there is none.

    Raises
    ------
    OSError, RuntimeError, http.client.HTTPException
        The folder cannot be written to; the network or the disk fails; no mirror has the data; the other end
        breaks off.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{source.folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with lock:  # waits for the process that downloads
            if source.is_present(root):
                return
            # Trying in turn, twenty nodes would wait for the same dead network one after the other.
            raise ConnectionError("another process tried just now and failed") from None
    try:
        if not source.is_present(root):
            _download_unlocked(source, root)
    finally:
        lock.release()


def _download_unlocked(source: Source, root: Path) -> None:
    """Download into a folder beside and move the finished files to their places.

    A reader, which goes by their names and takes no lock, thus never meets a file half written.
    """
    # Made first, so that a folder that cannot be written to is found out without a network.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        # Imported here because torchvision takes more than a second, and only a download needs it.
        from torchvision import datasets as torchvision_datasets

        data_set = getattr(torchvision_datasets, source.folder)
        _check_network(data_set.mirrors)
        _log.info("Downloading %s to %s", source.folder, root)
        with _socket_timeout(_PATIENCE), _no_output():
            data_set(scratch, download=True)
        source.raw(root).mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (source.raw(Path(scratch)) / name).replace(source.raw(root) / name)


def _check_network(mirrors: list[str]) -> None:
    """Raise ConnectionError unless some mirror answers in good time.

    Asked from threads, because no timeout of Python's bounds a look-up of a name, nor the sum over all the
    addresses that a name has.
    """
    answers: Queue[str] = Queue()
    for mirror in mirrors:
        threading.Thread(target=lambda url: answers.put(_problem(url)), args=(mirror,), daemon=True).start()
    problem = ""
    for _ in mirrors:
        try:
            problem = answers.get(timeout=_PATIENCE)
        except Empty:
            raise ConnectionError(f"no answer from the network in {_PATIENCE:.0f} s") from None
        if not problem:
            return
    raise ConnectionError(f"no network: {problem}")


def _problem(url: str) -> str:
    """Say what keeps `url` from answering, or nothing when it does."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # an answer too, if only that a folder cannot be listed
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound every wait of the sockets opened inside: torchvision itself sets no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Keep torchvision's progress bars off the terminal and out of a node's log."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
