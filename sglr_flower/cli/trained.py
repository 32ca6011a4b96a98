"""The commands that use what a run has trained: what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sglr_flower.choices import DATASETS, SPLITS
from sglr_flower.cli import completion

RunDir = Annotated[Path, typer.Argument(help="Directory of a run.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the data are now; default: as for the run.")]
FolderDataDir = Annotated[
    Path | None, typer.Option(help="Where the run's data are now; only dataset = 'folder' needs it.")
]


def evaluate(
    run_dir: RunDir,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another data set with classes of the same names; default: the run's.",
            autocompletion=completion.of(DATASETS),
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Your own images, FOLDER/CLASS/IMAGE.", metavar="FOLDER")] = None,
    client: Annotated[int | None, typer.Option(help="One client by itself; default: all.", min=0)] = None,
    samples: Annotated[int | None, typer.Option(help="So many images, class-balanced; default: all.", min=1)] = None,
    split: Annotated[
        str | None, typer.Option(help="test (default) or validation.", autocompletion=completion.of(SPLITS))
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Score a run's networks: accuracy per client and per class, and who is taken for whom."""
    from sglr_flower.studies.trained import evaluation

    evaluation.command(
        run_dir, dataset=dataset, images=images, client=client, samples=samples, split=split, data_dir=data_dir
    )


def export(
    run_dir: RunDir,
    client: Annotated[
        int | None, typer.Option(help="Whose network; default: of the best validation accuracy.", min=0)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: RUN_DIR/export/client-I.", metavar="FOLDER")
    ] = None,
    data_dir: FolderDataDir = None,
) -> None:
    """Write a client's whole network as files that load without this package."""
    from sglr_flower.studies.trained import export as room

    room.command(run_dir, client=client, out=out, data_dir=data_dir)


def predict(
    run_dir: RunDir,
    images: Annotated[list[Path], typer.Argument(help="Image files of any kind and size.")],
    client: Annotated[
        int | None, typer.Option(help="One client's network; default: the mean of all clients' probabilities.", min=0)
    ] = None,
    top: Annotated[int, typer.Option(help="So many classes of each image, the most probable first.", min=1)] = 3,
    data_dir: FolderDataDir = None,
) -> None:
    """Tell what a run's networks take images for."""
    from sglr_flower.studies.trained import prediction

    prediction.command(run_dir, images, client=client, top=top, data_dir=data_dir)
