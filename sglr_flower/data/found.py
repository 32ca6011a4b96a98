"""What a person should know of a folder of images before anything is trained on it, in a few lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from sglr_flower.data.classfolders import text
from sglr_flower.data.folder import Folder
from sglr_flower.data.levels import parse
from sglr_flower.data.pictures import named

_MOST = 12
"""Classes and endings that are listed; of more only their number is told."""


def lines(folder: Folder, root: Path) -> list[str]:
    """What was found, and what is odd of it: a sentence each, without a full stop."""
    return [line for line in (_found(folder, root), _twice(folder), _alike(folder)) if line]


def _found(folder: Folder, root: Path) -> str:
    read = folder.pictures
    counts = Counter(folder.classes[number] for _, number in read.files)
    parts = [
        f"{_many(len(read), 'image')} of {len(counts)} classes ({_listed(counts)})",
        _pixels(read.sizes),
        _listed(read.formats),
    ]
    if read.deep and (levels := parse(read.options.levels)):
        parts.append(f"{read.deep} with more than 8 bits read as {levels.words()}")
    if read.transparent:
        parts.append(f"{read.transparent} transparent, seen over {read.options.ground}")
    if read.frames:
        parts.append(f"the first of several frames of {read.frames}")
    over = folder.passed_over
    left = [f"{_listed(over.others)} file(s)"] if over.others else []
    left += [f"{over.hidden} hidden"] if over.hidden else []
    left += folder.beside
    if read.left_out:
        left.append(f"{len(read.left_out)} that cannot be read ({named(read.left_out)})")
    return f"{text(str(root))}: {', '.join(parts)}" + (f"; left out: {', '.join(left)}" if left else "")


def _twice(folder: Folder) -> str:
    """Whether files that are held out are in train too."""
    marks = [file.mark for file in folder.marked]
    trained = {marks[index] for index in folder.parts["train"].tolist()}
    held = [index for part in ("validation", "test") for index in folder.parts[part].tolist()]
    count = sum(marks[index] in trained for index in held)
    return f"{count} of the {len(held)} images held out for validation and test are in train too, byte for byte" * bool(
        count
    )


def _alike(folder: Folder) -> str:
    """Whether all images, or all of a class, are one and the same."""
    images, labels = folder.pictures.images, folder.pictures.labels
    if len(images) > 1 and bool((images == images[:1]).all()):
        return f"all {len(images)} images are one and the same picture once they are read, so nothing can be learned"
    same = []
    for number, name in enumerate(folder.classes):
        own = torch.nonzero(labels == number).flatten()
        if len(own) > 1 and bool((images[own] == images[own[:1]]).all()):
            same.append(name)
    return f"all images of class {', '.join(same)} are one and the same picture once they are read" if same else ""


def _pixels(sizes: Counter[tuple[int, int]]) -> str:
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        return f"{width} x {height} pixels"
    (low, high) = (end(sizes, key=lambda size: size[0] * size[1]) for end in (min, max))
    return f"{low[0]} x {low[1]} to {high[0]} x {high[1]} pixels"


def _listed(counts: Counter[str]) -> str:
    if len(counts) > _MOST:
        return f"{min(counts.values())} to {max(counts.values())} each"
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
