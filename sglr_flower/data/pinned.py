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
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from sglr_flower.data.classfolders import class_folders, find, text
from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic

FILE = "data.json"
PARTS = ("train", "validation", "test")

_END = 65_536


@dataclass(frozen=True)
class Part:
    """A part of a run's data.

    Attributes
    ----------
    counts : Mapping of str to int
        Samples of each class; where there are no classes all are of one that is called "samples".
    hash : str
        Of its samples; empty where there are files.
    files : tuple of (str, int, str)
        Of dataset ``folder`` each file's path from there, its class number and its `mark`.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    hash: str = ""
    files: tuple[tuple[str, int, str], ...] = ()


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
    def files(self) -> dict[str, tuple[int, str]]:
        """Path of each file -> its class number and its mark."""
        return {path: (number, mark) for part in self.parts.values() for path, number, mark in part.files}

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
            name: Part(part["counts"], part["hash"], tuple((file[0], file[1], file[2]) for file in part["files"]))
            for name, part in kept.pop("parts").items()
        }
        classes, left_out = tuple(kept.pop("classes")), tuple(kept.pop("left_out"))
        return Pinned(classes=classes, left_out=left_out, parts=parts, **kept)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, which says what data the run has, is damaged: {error}") from None


def mark(path: str) -> str:
    """What tells a file from others, whatever its name and time: its size, and a hash of its first and last 64 kB.

    Smaller files are hashed whole; of photographs the ends hold what differs, and reading them takes no time.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        hashed = hashlib.sha256(file.read(_END))
        if size > _END:
            file.seek(max(_END, size - _END))
            hashed.update(file.read())
    return f"{size}-{hashed.hexdigest()[:32]}"


def folder_changes(kept: Pinned, root: Path) -> list[str]:
    """What has changed in a folder of images since it was pinned; new classes first."""
    now, before = _files(root), kept.files
    new = {path: name for path, name in now.items() if path not in before and path not in kept.left_out}
    classes = Counter(name for name in new.values() if name not in kept.classes)
    told = [f"class {name!r} was added ({count} images)" for name, count in classes.items()]
    counts = Counter(name for name in new.values() if name in kept.classes)
    told += [f"{_images(counts.total())} added ({_listed(counts)})"] if counts else []
    gone = Counter(kept.classes[number] for path, (number, _) in before.items() if path not in now)
    told += [f"{_images(gone.total())} removed ({_listed(gone)})"] if gone else []
    other = Counter(now[path] for path, (_, own) in before.items() if path in now and mark(f"{root}/{path}") != own)
    told += [f"{_images(other.total())} replaced by others ({_listed(other)})"] if other else []
    return told


def stamp(root: Path) -> str:
    """What changes whenever a folder of images may have: a hash of its files' names, sizes and times."""
    hashed = hashlib.sha256()
    for path in _files(root):
        file = os.stat(f"{root}/{path}")
        hashed.update(f"{path}\0{file.st_size} {file.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return hashed.hexdigest()


def refreshed(kept: Pinned, root: Path) -> Pinned:
    """The same folder with the files that are there now: new ones are for training, and nothing changes its part.

    Raises
    ------
    UserError
        A class was added: the network of the run has no output for it.
    """
    now = _files(root)
    if unknown := sorted({name for name in now.values() if name not in kept.classes}):
        raise UserError(
            f"Folder {text(str(root))} has the class {unknown[0]!r}, which is none of the run's: "
            f"{', '.join(kept.classes)}; its network has no output for others."
        )
    before = kept.files
    files = {
        name: [(path, number, mark(f"{root}/{path}")) for path, number, _ in part.files if path in now]
        for name, part in kept.parts.items()
    }
    added = sorted(path for path in now if path not in before and path not in kept.left_out)
    files["train"] += [(path, kept.classes.index(now[path]), mark(f"{root}/{path}")) for path in added]
    parts = {name: part_of(own, kept.classes) for name, own in files.items()}
    return Pinned(kept.dataset, kept.classes, parts, kept.levels, kept.left_out)


def part_of(files: Iterable[tuple[str, int, str]], classes: tuple[str, ...]) -> Part:
    """A part of dataset ``folder``."""
    listed = tuple(files)
    counts = Counter(number for _, number, _ in listed)
    return Part({name: counts[number] for number, name in enumerate(classes)}, "", listed)


def _files(root: Path) -> dict[str, str]:
    """Path of each image file in ``root/train`` and ``root/test`` from there -> the name of its class."""
    found = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            continue
        own = class_folders(root / part)
        names = tuple(own)
        for path, number in find(root / part, {own[name]: number for number, name in enumerate(names)}).files:
            found[os.path.relpath(path, root)] = names[number]
    return found


def changes(kept: Pinned, now: Pinned) -> list[str]:
    """What has changed in data of another kind since they were pinned."""
    told = []
    if kept.classes != now.classes:
        told.append(f"classes {', '.join(kept.classes)} became {', '.join(now.classes)}")
    for name, before in kept.parts.items():
        after = now.parts[name]
        if before.counts != after.counts:
            every = dict.fromkeys([*before.counts, *after.counts])
            differ = {key: (before.counts.get(key, 0), after.counts.get(key, 0)) for key in every}
            told.append(f"{name}: " + ", ".join(f"{key} {a} became {b}" for key, (a, b) in differ.items() if a != b))
        elif before.hash != after.hash:
            told.append(f"{name} has other samples, as many as before")
    return told


def _images(count: int) -> str:
    return f"{count} image was" if count == 1 else f"{count} images were"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
