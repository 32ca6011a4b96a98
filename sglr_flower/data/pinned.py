"""What data a run has, kept beside it as ``data.json``: they stay what they were when the folder they lie in does not.

Of dataset ``folder`` it lists the files of each part, which the run goes on with whatever is added; of others it has a
hash. So a run that goes on over other data is known, and says what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic

FILE = "data.json"
PARTS = ("train", "validation", "test")

_END = 65_536


class File(NamedTuple):
    """An image file of dataset ``folder``.

    Attributes
    ----------
    path : str
        From the folder.
    number : int
        Its class.
    mark : str
        What tells it from others, whatever its name and time: its size, and a hash of its first and last 64 kB. Smaller
        files are hashed whole; of photographs the ends hold what differs. Empty if it could not be read.
    time : int
        When it was last written, in ns; 0: not known, of a run of an older version.
    """

    path: str
    number: int
    mark: str
    time: int = 0


@dataclass(frozen=True)
class Part:
    """A part of a run's data.

    Attributes
    ----------
    counts : Mapping of str to int
        Samples of each class; where there are no classes all are of one that is called "samples".
    hash : str
        Of its samples; empty where there are files.
    files : tuple of File
        Of dataset ``folder``.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    hash: str = ""
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Pinned:
    """A run's data.

    Attributes
    ----------
    dataset : str
        As the run-config names it.
    classes : tuple of str
        By class number; empty where there are none.
    parts : Mapping of str to Part
        Train, validation and test.
    levels : str
        Of dataset ``folder`` the range of files with more than 8 bits, as the run-config's key; "auto": it has none.
    left_out : tuple of str
        Of dataset ``folder`` files that could not be read.
    """

    dataset: str
    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    levels: str = "auto"
    left_out: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, File]:
        """Of dataset ``folder`` all files, by path: those of train first, then validation and test."""
        return {file.path: file for part in self.parts.values() for file in part.files}

    def write(self, folder: Path) -> None:
        """Keep it in a folder."""
        write_atomic(folder / FILE, json.dumps(asdict(self)).encode())


def read(folder: str) -> Pinned | None:
    """What is kept in a folder; None if nothing is, or the folder is ''.

    Raises
    ------
    UserError
        The file is damaged.
    """
    path = Path(folder) / FILE
    try:
        return _read(path, path.stat().st_mtime_ns) if folder else None
    except (FileNotFoundError, NotADirectoryError):
        return None


@lru_cache(maxsize=4)
def _read(path: Path, _written: int) -> Pinned:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            name: Part(part["counts"], part["hash"], tuple(File(*file) for file in part["files"]))
            for name, part in kept.pop("parts").items()
        }
        classes, left_out = tuple(kept.pop("classes")), tuple(kept.pop("left_out"))
        return Pinned(classes=classes, left_out=left_out, parts=parts, **kept)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, which says what data the run has, is damaged: {error}") from None


def marked(root: Path, path: str, number: int) -> File:
    """An image file as it is now."""
    hashed, size, time = hashlib.sha256(), 0, 0
    try:
        with open(os.path.join(root, path), "rb") as file:
            found = os.fstat(file.fileno())
            size, time = found.st_size, found.st_mtime_ns
            hashed.update(file.read(_END))
            if size > _END:
                file.seek(max(_END, size - _END))
                hashed.update(file.read())
    except OSError:  # a link that leads nowhere, or it went a moment ago
        return File(path, number, "")
    return File(path, number, f"{size}-{hashed.hexdigest()[:32]}", time)


def as_now(file: File, root: Path) -> File:
    """A file that was marked before, as it is now; it is read only where its size or time have moved."""
    with suppress(OSError):
        now = os.stat(os.path.join(root, file.path))
        if file.time == now.st_mtime_ns and file.mark.startswith(f"{now.st_size}-"):
            return file
    return marked(root, file.path, file.number)


def lost(kept: Pinned, root: Path, folder: str) -> frozenset[str]:
    """The paths of a run's image files that are gone, or have become others.

    Of those that are the same but were written anew, copied say, the new time is kept in ``folder``, where ``kept``
    lies, so that they are not read again by the next process.
    """
    before = kept.files
    now = {path: as_now(file, root) for path, file in before.items()}
    gone = frozenset(path for path, file in before.items() if not file.mark or now[path].mark != file.mark)
    if any(now[path].time != file.time for path, file in before.items() if path not in gone):
        parts = {
            name: replace(part, files=tuple(file if file.path in gone else now[file.path] for file in part.files))
            for name, part in kept.parts.items()
        }
        with suppress(OSError):  # a run that may only be read is evaluated too
            replace(kept, parts=parts).write(Path(folder))
    return gone


def part_of(files: Iterable[File], classes: tuple[str, ...]) -> Part:
    """A part of dataset ``folder``."""
    listed = tuple(files)
    counts = Counter(file.number for file in listed)
    return Part({name: counts[number] for number, name in enumerate(classes)}, "", listed)
