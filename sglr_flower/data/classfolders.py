"""Folders of images, one for each class: their names, and the files in them that are images."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from sglr_flower.errors import UserError

_SYSTEM = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
"""What systems leave in folders, in small letters, beside names that begin with a dot."""


_NOT_READ = frozenset({"MPEG", "EPS"})
"""Of a film Pillow knows the size alone; a page in PostScript is a program, which Ghostscript would run."""


@dataclass(frozen=True)
class Found:
    """The image files of some class folders.

    Attributes
    ----------
    files : tuple of (str, int)
        Path and class number, by folder and name.
    hidden : int
        Hidden and system files and folders that were passed over, each folder as one.
    others : Counter of str
        Endings of files that are no images, such as ``.txt``, and how many files have them.
    """

    files: tuple[tuple[str, int], ...] = ()
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """The formats that the installed Pillow can read by itself, as it calls them."""
    from PIL import Image, ImageFile

    Image.init()
    openers = {name: opener for name, (opener, _) in Image.OPEN.items() if name not in _NOT_READ}
    stubs = {
        name for name, own in openers.items() if isinstance(own, type) and issubclass(own, ImageFile.StubImageFile)
    }
    return tuple(name for name in openers if name not in stubs)


@lru_cache(maxsize=1)
def endings() -> frozenset[str]:
    """The endings of these, in small letters."""
    from PIL import Image

    known = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's or an editor's rather than its user's."""
    return name.startswith(".") or name.lower() in _SYSTEM


def text(name: str) -> str:
    r"""A file's or folder's name that can be shown and sent: composed, bytes that are not UTF-8 as ``\xNN``."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def class_folders(folder: Path) -> dict[str, str]:
    """Name of each class that has a folder in ``folder``, in their order -> the name of that folder.

    Raises
    ------
    OSError
        It cannot be read.
    UserError
        Two of the folders' names look the same.
    """
    with os.scandir(folder) as entries:
        names = sorted((text(entry.name), entry.name) for entry in entries if entry.is_dir())
    found: dict[str, str] = {}
    for name, own in names:
        if is_hidden(own):
            continue
        if name in found:
            raise UserError(
                f"Folder {text(str(folder))} has two folders whose names both read {name!r}, one composed and one of "
                "letters and accents: put their images into one."
            )
        found[name] = own
    return found


def _leads_up(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in, below which everything would be found again and again."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(place).resolve().is_relative_to(Path(path).resolve())


def find(folder: Path, numbers: Mapping[str, int]) -> Found:
    """Find all image files below some class folders, in folders of their own too, each folder once in a class.

    Parameters
    ----------
    folder : pathlib.Path
        Has the class folders.
    numbers : Mapping of str to int
        Name of each of these folders -> its class number.
    """
    files: list[tuple[str, int]] = []
    hidden, others, known = 0, Counter[str](), endings()
    for own, number in numbers.items():
        reached: list[tuple[str, list[str]]] = []
        entered: set[str] = set()  # several links, also over another class and back, may lead to one folder
        for place, below, names in os.walk(folder / own, followlinks=True):
            if (real := os.path.realpath(place)) in entered:
                below.clear()
                continue
            entered.add(real)
            shown = [name for name in below if not is_hidden(name) and not _leads_up(place, name)]
            hidden += sum(map(is_hidden, below))
            below[:] = sorted(shown, key=lambda name: (os.path.islink(os.path.join(place, name)), name))
            reached.append((place, names))
        for place, names in sorted(reached):
            for name in sorted(names):
                ending = os.path.splitext(name)[1].lower()
                if is_hidden(name):
                    hidden += 1
                elif ending in known:
                    files.append((os.path.join(place, name), number))
                else:
                    others[ending or "no ending"] += 1
    return Found(tuple(files), hidden, others)
