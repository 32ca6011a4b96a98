"""Scoring what a run has trained, per client and per class: on the run's images, another data set or own files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from sglr_flower.data.samples import Batch
from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.confusion import confusion_csv, save_confusion
from sglr_flower.studies.trained.network import Trained
from sglr_flower.studies.trained.targets import Target, dataset_target, folder_target, only, sample

MOST_ROWS = 20
"""Clients, or classes, up to which a table has a row for each."""

_QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The counts that everything follows from.

    Attributes
    ----------
    classes : tuple[str, ...]
        The model's.
    confusion : dict[int, NDArray[np.int64]]
        Client -> (classes, classes) images by true class (row) and predicted class (column); not empty.
    ensemble_accuracy : float
        Fraction in [0, 1] where the clients' mean probabilities decide.
    """

    classes: tuple[str, ...]
    confusion: dict[int, NDArray[np.int64]]
    ensemble_accuracy: float

    @property
    def images(self) -> int:
        """Images that each client was scored on."""
        return int(next(iter(self.confusion.values())).sum())

    @property
    def accuracy(self) -> dict[int, float]:
        """Client -> fraction in [0, 1]."""
        return {client: float(np.trace(matrix) / matrix.sum()) for client, matrix in self.confusion.items()}

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """Class -> fraction of its images predicted right, mean over clients; None if it has no image."""
        images = self.total.sum(axis=1)
        # All clients are scored on the same images, so the pooled fraction is the mean over clients.
        right = np.diagonal(self.total)
        return {name: float(right[k] / images[k]) if images[k] else None for k, name in enumerate(self.classes)}

    @property
    def total(self) -> NDArray[np.int64]:
        """The confusion matrix summed over clients."""
        summed: NDArray[np.int64] = np.sum(list(self.confusion.values()), axis=0, dtype=np.int64)
        return summed

    def spread(self) -> dict[str, float]:
        """Accuracy over clients: mean, std (the population's) and quantiles from min to max."""
        values = list(self.accuracy.values())
        quantiles = {name: float(np.quantile(values, q)) for name, q in _QUANTILES.items()}
        return {"mean": float(np.mean(values)), "std": float(np.std(values)), **quantiles}


def evaluate(model: Trained, images: Batch, clients: Iterable[int] | None = None) -> Evaluation:
    """Score clients' networks on images.

    Parameters
    ----------
    model : Trained
        What a run has trained.
    images : Batch
        Of the run's image size; labels are the model's class numbers. Not empty.
    clients : Iterable[int] | None
        Each one is scored on all images; None: all of the run's.

    Raises
    ------
    UserError
        If the run has no such client.
    """
    from sklearn.metrics import confusion_matrix  # nearly two seconds to import

    labels = images.labels.numpy()
    confusion: dict[int, NDArray[np.int64]] = {}
    probabilities = torch.zeros(len(images), len(model.classes), dtype=torch.float64)
    for client in model.clients if clients is None else clients:
        model.check_client(client)
        if model.same and confusion:
            confusion[client] = next(iter(confusion.values()))
            continue
        logits = model.logits(client, images.images)
        counted = confusion_matrix(labels, logits.argmax(dim=1).numpy(), labels=range(len(model.classes)))
        confusion[client] = counted.astype(np.int64)
        probabilities += trained.softmax(logits)
    right = probabilities.argmax(dim=1) == images.labels
    return Evaluation(model.classes, confusion, right.double().mean().item())


def save(evaluation: Evaluation, model: Trained, target: Target) -> Path:
    """Write an evaluation into the run directory: ``evaluation.json``, ``confusion.csv`` and ``confusion.png``.

    Each file is whole or not there, and ``evaluation.json`` is there only when all of them are of one evaluation.

    Returns
    -------
    Path
        The folder: ``evaluation`` for all of the run's test images, else ``evaluation/NAME``.
    """
    folder = model.run_dir / "evaluation" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "evaluation.json"
    written.unlink(missing_ok=True)
    write_atomic(folder / "confusion.csv", confusion_csv(evaluation.total, evaluation.classes))
    save_confusion(
        evaluation.total,
        evaluation.classes,
        f"{model.config.method} with {model.config.model}, {len(evaluation.confusion)} client(s), "
        f"{evaluation.images:,} images ({', '.join(target.description.values())})",
        folder / "confusion.png",
    )
    write_atomic(written, (json.dumps(_json(evaluation, model, target), indent=2) + "\n").encode())
    return folder


def command(
    run_dir: Path,
    dataset: str | None,
    images: Path | None,
    client: int | None,
    samples: int | None,
    split: str | None,
    data_dir: Path | None,
) -> None:
    """``sglr evaluate``: score a run, show the tables and say where they are written."""
    if images is not None and (dataset is not None or split is not None):
        other = "--dataset" if dataset is not None else "--split"
        raise UserError(f"--images {images}: it cannot be combined with {other}")
    model = trained.load(run_dir, data_dir)
    if client is not None:
        model.check_client(client)
    if images is not None:
        target = folder_target(model, images)
    else:
        target = dataset_target(model, dataset or model.config.dataset, split or "test")
    if samples is not None:
        target = sample(target, model, samples)
    clients: Sequence[int] = model.clients
    if client is not None:
        clients, target = (client,), only(target, model, client)
    console = Console()
    # A bar for people; a file or pipe would fill with its frames.
    shown = track(clients, "evaluating", console=console, transient=True, disable=not console.is_terminal)
    evaluation = evaluate(model, target.images, shown)
    folder = save(evaluation, model, target)
    for table in tables(evaluation, target):
        console.print(table)
    console.print(f"written: {folder}", highlight=False, soft_wrap=True)


def tables(evaluation: Evaluation, target: Target) -> list[Table]:
    """An evaluation for the terminal: over clients, per client (or the spread of many), per class (or the worst)."""
    spread, accuracy = evaluation.spread(), evaluation.accuracy
    what = escape(", ".join(target.description.values()))
    title = f"accuracy (%) of the last checkpoint on {evaluation.images:,} images: {what}"
    caption = "ensemble: the mean of the clients' probabilities decides"
    overall = Table("clients", "mean", "std", "min", "max", "ensemble", title=title, caption=caption)
    figures = [spread["mean"], spread["std"], spread["min"], spread["max"], evaluation.ensemble_accuracy]
    overall.add_row(str(len(accuracy)), *map(_percent, figures))
    shown = [overall]
    if 1 < len(accuracy) <= MOST_ROWS:
        clients = Table("client", "accuracy")
        for client, value in accuracy.items():
            clients.add_row(str(client), _percent(value))
        shown.append(clients)
    elif len(accuracy) > MOST_ROWS:
        quantiles = Table(*_QUANTILES, title=f"quantiles over {len(accuracy)} clients")
        quantiles.add_row(*(_percent(spread[name]) for name in _QUANTILES))
        shown.append(quantiles)
    rows = [(name, value) for name, value in evaluation.class_accuracy.items() if value is not None]
    classes = Table("class", "accuracy")
    if len(rows) > MOST_ROWS:
        classes.title = f"the {MOST_ROWS} hardest of {len(rows)} classes"
        rows = sorted(rows, key=lambda row: row[1])[:MOST_ROWS]
    for name, value in rows:
        classes.add_row(escape(name), _percent(value))
    return [*shown, classes]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _json(evaluation: Evaluation, model: Trained, target: Target) -> dict[str, Any]:
    return {
        "run": {
            "method": model.config.method,
            "model": model.config.model,
            "dataset": model.config.dataset,
            "round": model.server_round,
        },
        "evaluated": {**target.description, "images": evaluation.images},
        "accuracy": evaluation.spread(),
        "ensemble_accuracy": evaluation.ensemble_accuracy,
        "client_accuracy": {str(client): value for client, value in evaluation.accuracy.items()},
        "class_accuracy": evaluation.class_accuracy,
    }
