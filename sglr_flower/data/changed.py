"""What has changed in a run's data since they were pinned (see `pinned`), and going on with what is there now."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from sglr_flower.data import pictures
from sglr_flower.data.classfolders import class_folders, find, text
from sglr_flower.data.options import Options
from sglr_flower.data.pinned import File, Pinned, as_now, lost, marked, part_of
from sglr_flower.errors import UserError


def of_folder(kept: Pinned, root: Path, options: Options) -> list[str]:
    """What has changed in a folder of images; new classes first."""
    now, before = _files(root), kept.files
    passed = {*before, *kept.left_out}
    new = Counter(name for path, name in now.items() if path not in passed and os.path.exists(root / path))
    told = [f"class {name!r} was added ({count} images)" for name, count in new.items() if name not in kept.classes]
    counts = Counter({name: count for name, count in new.items() if name in kept.classes})
    told += [f"{_images(counts.total())} added ({_listed(counts)})"] if counts else []
    gone, other = Counter[str](), Counter[str]()
    for path in sorted(lost(kept, root, options.kept)):
        (other if os.path.exists(root / path) else gone)[kept.classes[before[path].number]] += 1
    told += [f"{_images(gone.total())} removed ({_listed(gone)})"] if gone else []
    told += [f"{_images(other.total())} replaced by others ({_listed(other)})"] if other else []
    return told


def taken(kept: Pinned, root: Path, options: Options) -> Pinned:
    """The same folder with the files that are there now; nothing that was there changes its part.

    New files are for training, or for test where they lie below ``root/test``.

    Raises
    ------
    UserError
        A class was added: the network of the run has no output for it. A part would be left without an image; the
        folder may not be mounted. New files, or those that have become others, cannot be read and are not to be left
        out.
    """
    now, before = _files(root), kept.files
    if unknown := sorted({name for name in now.values() if name not in kept.classes}):
        raise UserError(
            f"Folder {text(str(root))} has the class {unknown[0]!r}, which is none of the run's: "
            f"{', '.join(kept.classes)}; its network has no output for others."
        )
    there = {path: as_now(file, root) for path, file in before.items() if path in now}
    there |= {path: marked(root, path, kept.classes.index(now[path])) for path in sorted(now) if path not in before}
    there = {path: file for path, file in there.items() if file.mark}
    fresh = [path for path, file in there.items() if path not in before or file.mark != before[path].mark]
    files = [(os.path.join(root, path), there[path].number) for path in fresh]
    read = pictures.read(files, 8, replace(options, levels=kept.levels), channels=options.channels or 3)
    left_out = tuple(os.path.relpath(path, root) for path in read.left_out)
    parts: dict[str, list[File]] = {
        name: [there[file.path] for file in part.files if file.path in there and file.path not in left_out]
        for name, part in kept.parts.items()
    }
    for path in fresh:
        if path not in before and path not in left_out:
            parts["test" if path.startswith(f"test{os.sep}") else "train"].append(there[path])
    for name, part in kept.parts.items():
        if part.files and not parts[name]:
            raise UserError(
                f"Folder {text(str(root))} has none of the {len(part.files)} images that the run has for {name}, so it "
                "cannot go on with what is there now: put some of them back, or mount the disk that has them."
            )
    return replace(
        kept, parts={name: part_of(own, kept.classes) for name, own in parts.items()}, left_out=tuple(left_out)
    )


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


def of_others(kept: Pinned, now: Pinned) -> list[str]:
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
