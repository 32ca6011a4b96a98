"""Images that were read once, kept at the size that is trained on: decoding a photograph takes longer than training.

A node's process is another one in every round, so they are kept in a file, in the run's folder or a device's own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sglr_flower.data import pictures
from sglr_flower.data.options import Options
from sglr_flower.data.pictures import File, Pictures
from sglr_flower.errors import UserError

FILE = "images.safetensors"

_MEGABYTE = 1_000_000
_COUNTS = ("deep", "frames", "transparent")


def read(
    files: Sequence[File],
    size: int,
    options: Options,
    marks: Mapping[str, str],
    *,
    trained: int,
    channels: int = 3,
    lost: Collection[str] = frozenset(),
) -> Pictures:
    """As `pictures.read`, but what is kept in ``options.kept`` is not decoded again, and what fits there is kept.

    It is kept of the same files alone, in whatever order: of the same paths and marks, read in the same way.

    Parameters
    ----------
    files, size, options, trained, channels
        As of `pictures.read`.
    marks : Mapping of str to str
        Path -> what tells a file from others (see `pinned.File`).
    lost : Collection of str
        Paths of files that are not there any more, or have become others: they can be had only if they are kept.

    Raises
    ------
    UserError
        Files that are lost are not kept, or others cannot be read.
    """
    path = Path(options.kept) / FILE
    if not options.cache or not options.kept or not path.parent.is_dir():
        return pictures.read(_there(files, lost), size, options, trained=trained, channels=channels)
    how = json.dumps([size, channels, options.ground])
    if kept := _kept(path, how, marks, options):
        return _ordered(kept, files, size, channels, lost)
    found = pictures.read(_there(files, lost), size, options, trained=trained, channels=channels)
    _keep(path, how, marks, found, options)
    return found


def _there(files: Sequence[File], lost: Collection[str]) -> Sequence[File]:
    """The files, of which none may be lost."""
    if missing := [path for path, _ in files if path in lost]:
        raise UserError(
            f"{len(missing)} of the images that the run began with are not there any more, or have become others: "
            f"{pictures.named(missing)}. Put them back, or start a new run without them."
        )
    return files


def _kept(path: Path, how: str, marks: Mapping[str, str], options: Options) -> Pictures | None:
    """What is kept of these files, with the images of the first of them; None if nothing is."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            of = json.loads(told.get("pictures", "{}"))
            if told.get("how") != how or options.levels not in (of["asked"], of["levels"]):
                return None
            left_out = tuple(name for name in of["left_out"] if name in marks)  # a run that is pinned has none of them
            if left_out and not options.skip_unreadable:
                return None
            known = {name: mark for name, mark in of["marks"].items() if name in marks or name not in of["left_out"]}
            if known != marks:
                return None
            return Pictures(
                files=tuple((name, number) for name, number in of["files"]),
                images=file.get_tensor("images"),
                formats=Counter(of["formats"]),
                sizes=Counter({(width, height): count for width, height, count in of["sizes"]}),
                **{name: of[name] for name in _COUNTS},
                options=replace(options, levels=of["levels"]),
                left_out=left_out,
            )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):  # none, or it is damaged
        return None


def _ordered(kept: Pictures, files: Sequence[File], size: int, channels: int, lost: Collection[str]) -> Pictures:
    """What is kept in the order that is asked for; what did not fit is read."""
    places = {path: place for place, (path, _) in enumerate(kept.files)}
    asked = tuple(file for file in files if file[0] in places)
    order = torch.tensor([places[path] for path, _ in asked])
    here = order < len(kept.images)
    images = torch.empty(len(asked), *kept.images.shape[1:], dtype=torch.uint8)
    images[here] = kept.images[order[here]]
    if rest := [file for file, fitted in zip(asked, here.tolist(), strict=True) if not fitted]:
        images[~here] = pictures.read(_there(rest, lost), size, kept.options, channels=channels).images
    return replace(kept, files=asked, images=images)


def _keep(path: Path, how: str, marks: Mapping[str, str], found: Pictures, options: Options) -> None:
    """Keep as many images as fit; where the disk does not take them they are read anew the next time."""
    fitting = options.cache * _MEGABYTE // max(1, found.images[:1].nbytes)
    told = {
        "files": found.files,
        "formats": found.formats,
        "sizes": [(*size, count) for size, count in found.sizes.items()],
        "asked": options.levels,
        "levels": found.options.levels,
        "left_out": found.left_out,
        "marks": dict(marks),
        **{name: getattr(found, name) for name in _COUNTS},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({"images": found.images[:fitting].contiguous()}, partial, {"how": how, "pictures": json.dumps(told)})
        partial.replace(path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
