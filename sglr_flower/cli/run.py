"""The commands that train a run, and ``sglr keys``: what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sglr_flower.choices import NODES
from sglr_flower.cli import completion

Config = Annotated[Path | None, typer.Argument(help="TOML run-config; keys left out take their defaults.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="One run-config key, over the file's.",
        metavar="KEY=VALUE",
        autocompletion=completion.setting,
    ),
]
TRACEBACK = "--traceback"
Traceback = Annotated[bool, typer.Option(TRACEBACK, help="Of a mistake in your own code show the whole traceback.")]


def run(
    config: Config = None,
    settings: Settings = None,
    federation: Annotated[
        str, typer.Option(help="Train on this federation's real nodes instead of a simulation.", metavar="NAME")
    ] = "",
    nodes: Annotated[
        int | None,
        typer.Option(help=f"Simulated Flower nodes, which the clients are spread over; default: {NODES}.", min=1),
    ] = None,
    cpus_per_node: Annotated[
        float | None, typer.Option(help="CPUs of one node; default: the machine's, shared by the nodes.")
    ] = None,
    gpus_per_node: Annotated[
        float | None,
        typer.Option(help="GPUs of one node; 0.25 puts four on one GPU; default: the machine's, shared.", min=0),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder for the run; default: runs/TIME-METHOD-DATA.")
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Train without Flower, in this process.")] = False,
    traceback: Traceback = False,
) -> None:
    """Train a new run through `flwr run`, on the local simulation engine or on a federation of real nodes."""
    from sglr_flower.cli import commands

    commands.run(
        config,
        settings,
        federation=federation,
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        gpus_per_node=gpus_per_node,
        run_dir=run_dir,
        in_process=in_process,
    )


def resume(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a run that was stopped or killed.")],
    changed_data: Annotated[
        bool,
        typer.Option(
            "--changed-data",
            help="Go on with the data that are there now, not those that it began with; devices keep theirs.",
        ),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Continue a run from its last whole checkpoint, to the weights that it would have had uninterrupted."""
    from sglr_flower.cli import commands

    commands.resume(run_dir, changed_data=changed_data)


def keys() -> None:
    """List all run-config keys: default, range and meaning."""
    from rich.console import Console
    from rich.table import Table

    from sglr_flower.run.config import documentation

    table = Table("key", "default", "allowed", "meaning")
    for row in documentation():
        table.add_row(*row)
    Console().print(table)
