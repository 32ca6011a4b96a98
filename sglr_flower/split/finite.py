"""Numbers that are not finite end a training in one process, as a frame's check ends it over a wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sglr_flower.errors import Diverged
from sglr_flower.split.codecs import NOT_FINITE
from sglr_flower.split.messages import Download, Upload


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither infinities nor NaN."""
    # A sum is finite only if all its terms are, and needs one pass and no memory; of large terms it may overflow.
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def check_upload(upload: Upload) -> None:
    """Refuse smashed data that are not finite.

    Raises
    ------
    Diverged
        With the round, the step and the clients.
    """
    if not _all_finite((upload.smashed,), upload.aside):
        found = upload.clients
        if sum(upload.sizes) == len(upload.smashed):  # no codec has laid it out in another way
            batches = zip(found, upload.smashed.split(list(upload.sizes)), strict=True)
            found = tuple(client for client, own in batches if not own.isfinite().all()) or found
        clients = " ".join(map(str, found))
        raise Diverged(f"{_place(upload)}: smashed data of client(s) {clients} that are {NOT_FINITE}")


def check_download(download: Download) -> None:
    """Refuse cut gradients that are not finite.

    Raises
    ------
    Diverged
        With the round and the step.
    """
    if not _all_finite((download.average, download.own), download.aside):
        raise Diverged(f"{_place(download)}: cut gradients that are {NOT_FINITE}")


def check_losses(server_round: int, losses: Iterable[float]) -> None:
    """Refuse losses of which one is not finite.

    Raises
    ------
    Diverged
        With the round.
    """
    if not all(map(math.isfinite, losses)):
        raise Diverged(f"round {server_round}: a training loss that is {NOT_FINITE}")


def _all_finite(tensors: Iterable[Tensor | None], aside: Mapping[str, Tensor]) -> bool:
    several = (tensor for tensor in (*tensors, *aside.values()) if tensor is not None and tensor.is_floating_point())
    return all(map(all_finite, several))


def _place(message: Upload | Download) -> str:
    return f"round {message.server_round}, step {message.step}"
