"""A client's smashed data of given images, as the server gets them."""

from __future__ import annotations

import torch
from torch import Tensor

from sglr_flower.data.inputs import to_input
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.split import methods
from sglr_flower.split.coding import Wire
from sglr_flower.split.defences import defended
from sglr_flower.studies.trained.network import Trained

_BATCH = 250


@torch.inference_mode()
def smashed(model: Trained, client: int, images: Tensor, name: str) -> Tensor:
    """What the server would get of images from a client of a trained run.

    They are what the server computes with: clipped and with noise where the run has these defences, and after the way
    there and back of a codec. The segment is in eval mode: batch norm uses the statistics of the training, and dropout
    is off.

    Parameters
    ----------
    model : Trained
        What the run has trained.
    client : int
        Whose segment.
    images : Tensor
        uint8 (n, 1 or 3, h, w), of the run's image size.
    name : str
        Of these images, so that others get other noise where ``noise-seed`` makes it follow from names.

    Returns
    -------
    Tensor
        float32 (n, *cut shape), on the CPU.

    Raises
    ------
    UserError
        If the run has no such client, or its method sends no smashed data.
    """
    check_cut(model)
    device, dtype = assembly.device(), assembly.dtype(model.config)
    segment = model.client_segment(client).to(device)
    chunks = images.split(_BATCH)
    computed = torch.cat([segment(to_input(chunk.to(device), dtype)).cpu() for chunk in chunks])
    up, _ = assembly.wire_codecs(model.config)
    sent = defended(computed, assembly.defence(model.config), "attack", name, client)
    return (sent if up.off else Wire(up)(sent)).float()


def check_cut(model: Trained) -> None:
    """Find out whether a run's server gets smashed data at all.

    Raises
    ------
    UserError
        If not.
    """
    if methods.get(model.config.method).whole:
        raise UserError(
            f"the run in {model.run_dir} was trained with method = {model.config.method!r}, which does not cut the "
            "network: its server gets no smashed data"
        )
