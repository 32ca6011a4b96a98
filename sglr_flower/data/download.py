"""The data folder, and the download of a data set into it by one process while the others wait."""

import contextlib
import http.client
import io
import logging
import os
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_data_path
from torch import Tensor

_log = logging.getLogger(__name__)

DATA_DIR_VARIABLE = "SGLR_DATA_DIR"
"""The environment variable that names the data folder where the run-config's ``data-dir`` does not."""

_PATIENCE = 10.0
"""Seconds without an answer, or without a byte, after which a download is given up."""

Part = tuple[Tensor, Tensor]
"""Images uint8 [n, channels, height, width] and labels int64 [n]."""


@dataclass(frozen=True)
class Source(ABC):
    """A published data set that torchvision can download, laid out in the data folder as torchvision does it.

    So one folder serves this program and others.

    Attributes
    ----------
    name : str
        The name of torchvision's class.
    classes : tuple of str
        The name of each class, by class number.
    input_size : int
        The images' side in pixels after resizing, unless the run-config's ``image-size`` says otherwise.
    flips : bool
        Whether an image seen in a mirror still shows its class.
    files : tuple of str
        Its files, relative to the data folder.
    """

    name: str
    classes: tuple[str, ...]
    input_size: int
    flips: bool
    files: tuple[str, ...]

    def is_present(self, root: Path) -> bool:
        """Whether all files lie below the data folder `root`; looks at names only, it must be quick."""
        return all((root / file).is_file() for file in self.files)

    def torchvision_class(self) -> Any:
        """Torchvision's class of this data set."""
        # Imported here because torchvision takes 2 s, which the data sets that can do without need not wait for.
        from torchvision import datasets

        return getattr(datasets, self.name)

    @abstractmethod
    def urls(self) -> list[str]:
        """Where it is downloaded from, only to find out whether there is a network: one that answers is enough."""

    @abstractmethod
    def fetch(self, folder: Path) -> None:
        """Download it into `folder` with torchvision, which checks the MD5 sums of what it gets."""

    @abstractmethod
    def read(self, root: Path) -> tuple[Part, Part]:
        """Read train and test images in their own size; a UserError names a damaged file."""


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
        The folder cannot be written to; the network or the disk fails; no mirror has the data, or what it has
        is not the published data; the other end breaks off.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{source.name}.lock")
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
        _check_network(source.urls())
        _log.info("Downloading %s to %s", source.name, root)
        with _socket_timeout(_PATIENCE), _no_output():
            source.fetch(Path(scratch))
        for file in source.files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / file).replace(root / file)


def _check_network(urls: list[str]) -> None:
    """Raise ConnectionError unless some address answers in good time.

    Asked from threads, because no timeout of Python's bounds a look-up of a name, nor the sum over all the
    addresses that a name has.
    """
    answers: Queue[str] = Queue()
    for url in urls:
        threading.Thread(target=lambda url: answers.put(_problem(url)), args=(url,), daemon=True).start()
    problem = ""
    for _ in urls:
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
