"""What a run's networks take a user's own images for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sglr_flower.data.images import read_image
from sglr_flower.errors import UserError
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained


def predict(model: Trained, images: Tensor, client: int | None = None) -> Tensor:
    """Class probabilities of images.

    Parameters
    ----------
    model : Trained
        What a run has trained.
    images : Tensor
        uint8 (n, model.channels, model.image_size, model.image_size), as `data.images.read_image` reads them.
    client : int | None
        Whose network; None: the mean of all clients' probabilities (the ensemble).

    Returns
    -------
    Tensor
        float64 (n, classes); rows sum to 1.

    Raises
    ------
    UserError
        If the run has no such client.
    """
    clients = model.clients[:1] if model.same else model.clients
    if client is not None:
        clients = (client,)
    total = torch.zeros(len(images), len(model.classes), dtype=torch.float64)
    for one in clients:
        total += trained.softmax(model.logits(one, images))
    return total / len(clients)


def command(run_dir: Path, images: Sequence[Path], client: int | None, top: int, data_dir: Path | None) -> None:
    """``sglr predict``: show the classes of image files, and name those that cannot be read."""
    model = trained.load(run_dir, data_dir)
    if client is not None:
        model.check_client(client)
    read: dict[Path, Tensor] = {}
    refused: list[str] = []
    for path in images:
        try:
            read[path] = read_image(path, model.channels, model.image_size, model.options)
        except UserError as error:  # the others are still predicted
            refused.append(str(error).rstrip("."))
    if read:
        probabilities = predict(model, torch.stack(list(read.values())), client)
        Console().print(table(model, list(read), probabilities, client, top))
    if refused:
        raise UserError("; ".join(refused))


def table(model: Trained, files: Sequence[Path], probabilities: Tensor, client: int | None, top: int) -> Table:
    """Predictions for the terminal: a row for each of the ``top`` classes of each file.

    Parameters
    ----------
    model : Trained
        Names the classes.
    files : Sequence[Path]
        As many as rows of ``probabilities``, which is `predict`'s.
    client : int | None
        Whose probabilities they are; None: the ensemble's.
    top : int
        At least 1.
    """
    if client is not None:
        title = f"probabilities of client {client}'s network"
    elif model.same:
        title = f"probabilities of the network that all {len(model.clients)} client(s) have"
    else:
        title = f"mean probabilities of {len(model.clients)} clients' networks (the ensemble)"
    shown = Table("image", "class", "probability (%)", title=title)
    values, classes = probabilities.topk(min(top, len(model.classes)), dim=1)
    for file, row, numbers in zip(files, values.tolist(), classes.tolist(), strict=True):
        for rank, (value, number) in enumerate(zip(row, numbers, strict=True)):
            # Text: a file's name may hold what rich takes for markup.
            name = Text(str(file) if rank == 0 else "", overflow="fold")
            shown.add_row(name, Text(model.classes[number]), f"{100 * value:.2f}", end_section=rank == len(row) - 1)
    return shown
