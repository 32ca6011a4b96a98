"""The commands that compare, attack and analyze runs: what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

from sglr_flower.choices import KNOWS, LEAST_AUXILIARY, ON
from sglr_flower.cli.trained import DataDir, RunDir


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Directories of the runs to compare.")],
    out: Annotated[Path, typer.Option(help="The page to write; it needs no other file and no network.")] = Path(
        "report.html"
    ),
) -> None:
    """Compare runs: curves and tables as one HTML page, and the tables as Markdown here."""
    from sglr_flower.studies import report as room

    room.command(run_dirs, out)


def attack(
    run_dir: RunDir,
    client: Annotated[int | None, typer.Option(help="Who is attacked; default: drawn.", min=0)] = None,
    knows: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(KNOWS),
            help="Whose segment gives the smashed data that the decoder is trained on: the attacked client's own, "
            "or the other clients' only.",
        ),
    ] = "client",
    on: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(ON), help="Images attacked: the client's training images, or the test images."
        ),
    ] = "train",
    auxiliary: Annotated[
        int, typer.Option(help="Validation images that the attacker has, at most.", min=LEAST_AUXILIARY)
    ] = 2000,
    samples: Annotated[int, typer.Option(help="Images attacked, at most.", min=1)] = 1000,
    decoder_steps: Annotated[int, typer.Option(help="Optimizer steps of the decoder's training.", min=2)] = 400,
    repeats: Annotated[
        int, typer.Option(help="Attacks, with another decoder each and, if none is chosen, on another client.", min=1)
    ] = 1,
    seed: Annotated[int | None, typer.Option(help="Names all draws; default: the run's seed.", min=0)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: attack in the run directory.", metavar="FOLDER")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Reconstruct a client's images from its smashed data, as a curious server could."""
    from sglr_flower.studies.leakage import command

    command.command(
        run_dir,
        client=client,
        knows=knows,
        on=on,
        auxiliary=auxiliary,
        samples=samples,
        decoder_steps=decoder_steps,
        repeats=repeats,
        seed=seed,
        out=out,
        data_dir=data_dir,
    )


def analyze(
    run_dirs: Annotated[list[Path], typer.Argument(help="Directories of runs; several are compared.")],
    batches: Annotated[int, typer.Option(help="Steps of which each figure is a mean.", min=3)] = 16,
    phi: Annotated[
        float | None, typer.Option(help="As if SplitAvg averaged this fraction; default: the run's own.", min=0, max=1)
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: analysis in the run's, of several runs here.")
    ] = None,
) -> None:
    """Measure what convergence depends on, at each checkpoint: gradients, their bias, spread, smoothness."""
    from sglr_flower.studies.convergence import analyze as room

    room.command(run_dirs, batches=batches, phi=phi, data_dir=data_dir, out=out)
