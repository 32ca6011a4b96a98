"""``sglr paper``: what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

from sglr_flower.choices import CALCULATIONS, EXPERIMENTS, SCALES


def paper(
    experiment: Annotated[
        str, typer.Argument(click_type=click.Choice([*EXPERIMENTS, *CALCULATIONS]), help="The table or figure to make.")
    ],
    scale: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(SCALES),
            help="full: the paper's setting; short: its data, 15 of its 250 rounds; small: fewer samples too, hours "
            "on a few CPUs; tiny: a third of that; smoke: minutes.",
        ),
    ] = "small",
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1 of each cell.", min=1, metavar="N")] = 1,
    only: Annotated[
        str, typer.Option(help="Run these cells alone, as in 'clients=10|20,method=sglr'.", metavar="EXPR")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results and the runs; default: results/NAME-SCALE.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Cells at once; default: one per CPU, or four per GPU; 0: show what is finished.", min=0),
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Train without Flower.")] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a ledger, SCALE.csv: finished cells are recorded in it, and what it has is not run again; "
            "default: results in a checkout of sglr-flower (not at scale smoke), none elsewhere.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Make a table or figure of the paper; the same command goes on where it was stopped or killed."""
    from sglr_flower.studies.paper import command

    command.command(experiment, scale, seeds, only, out, jobs, in_process, ledger)
