"""The commands ``sglr federation ...``: what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sglr_flower.choices import PORT, STREAM_PORT

app = typer.Typer(
    no_args_is_help=True,
    help="Real devices: make a federation, start its SuperLink and its nodes.",
)

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder on the server.")]


@app.command()
def init(
    directory: _Directory,
    host: Annotated[str, typer.Option(help="Host name or IP address under which the nodes reach the server.")],
    node: Annotated[list[str] | None, typer.Option(help="A node's name; once for each.", metavar="NAME")] = None,
    nodes: Annotated[int, typer.Option(help="How many nodes, named node-0, node-1, ...", min=0)] = 0,
    san: Annotated[
        list[str] | None, typer.Option(help="Further host name or IP address of the server.", metavar="NAME")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Of the federation, for `sglr run --federation`; default: the folder's.")
    ] = "",
    port: Annotated[int, typer.Option(help="The SuperLink's.", min=1, max=65535)] = PORT,
    stream_port: Annotated[int, typer.Option(help="The streams'; 0: any free one.", min=0, max=65535)] = STREAM_PORT,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            help="IP address or network that may start and stop runs too; default: the server's own machine alone.",
            metavar="NETWORK",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and without authentication: for a trusted network only.")
    ] = False,
) -> None:
    """Make a federation: certificates, a key for each node, a folder to carry to each, a connection for `flwr run`."""
    from sglr_flower.federation import command

    command.init(
        directory,
        host,
        node=node,
        nodes=nodes,
        san=san,
        name=name,
        port=port,
        stream_port=stream_port,
        operator=operator,
        insecure=insecure,
    )


@app.command()
def add(directory: _Directory, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new node.")]) -> None:
    """Add a node to a federation; a SuperLink that is running lets it in within seconds."""
    from sglr_flower.federation import command

    command.add(directory, name)


@app.command()
def server(directory: _Directory) -> None:
    """Run the federation's SuperLink; Ctrl-C ends it, and a run can be resumed once it is up again."""
    from sglr_flower.federation import command

    command.server(directory)


@app.command("node")
def run_node(
    directory: Annotated[Path, typer.Argument(metavar="NODE_DIR", help="The node's folder, as `init` made it.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with this node's images; default: as in its node.toml, else as the run says."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for its clients' states; default: as in its node.toml, else NODE_DIR/state."),
    ] = None,
    superlink: Annotated[
        str, typer.Option(help="The SuperLink's address, if not as in its node.toml.", metavar="HOST:PORT")
    ] = "",
) -> None:
    """Run a node's SuperNode on its device; it connects again whenever the SuperLink is back."""
    from sglr_flower.federation import command

    command.node(directory, data_dir, state_dir, superlink)


@app.command()
def demo(
    config: Annotated[Path, typer.Argument(help="TOML run-config.")] = Path("configs/deploy.toml"),
    nodes: Annotated[int, typer.Option(help="SuperNodes.", min=1)] = 3,
) -> None:
    """Train on a federation of this machine alone, made in a temporary folder and gone afterwards."""
    from sglr_flower.federation import command

    command.demo(config, nodes)
