"""What `sglr federation` does, and says to the person who makes or starts one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sglr_flower.errors import UserError
from sglr_flower.exchange.endpoint import is_loopback, join_address
from sglr_flower.federation import connection, folder
from sglr_flower.federation.folder import Federation


def init(
    directory: Path,
    host: str,
    node: Sequence[str] | None,
    nodes: int,
    san: Sequence[str] | None,
    name: str,
    port: int,
    stream_port: int,
    operator: Sequence[str] | None,
    insecure: bool,
) -> None:
    """Make a federation's folder, let ``flwr`` know it, and say what to do next."""
    names = [*(node or []), *(f"node-{number}" for number in range(nodes))]
    if not names:
        raise UserError("give --nodes N, or --node NAME once for each node")
    directory = directory.expanduser().absolute()
    federation = Federation(
        name=name or directory.name,
        host=host,
        bind=folder.default_bind(host),
        port=port,
        stream_port=stream_port,
        insecure=insecure,
        operators=list(operator or []),
    )
    folder.check_name("--name", federation.name)
    folder.check_free(directory)
    console = Console(highlight=False, soft_wrap=True)
    link = connection.Connection(
        federation.name, join_address(host, port), "" if insecure else str(directory / "ca.crt")
    )
    connection.check_can_add(link)
    folder.create(federation, directory, names, list(san or []))
    path = connection.add(link)
    console.print(f"federation {federation.name} is in {directory}; `flwr` knows it too ({path})")
    if insecure and not is_loopback(host):
        console.print("without TLS and authentication: whoever reaches its ports can read and run all", style="yellow")
    console.print(f"1. on this machine:    sglr federation server {directory}")
    console.print(f"2. for each device:    carry {directory / 'nodes'}/NAME to it and delete it here; there:")
    console.print("                       sglr federation node NAME --data-dir FOLDER")
    console.print(f"3. on this machine:    sglr run CONFIG --federation {federation.name}")


def add(directory: Path, name: str) -> None:
    """Add a node and say where its folder is."""
    made = folder.add_node(directory.expanduser().absolute(), name)
    Console(highlight=False, soft_wrap=True).print(f"carry {made} to the device and delete it here")


def server(directory: Path) -> None:
    """Run the federation's SuperLink until it is ended."""
    from sglr_flower.federation import server as side

    side.serve(directory.expanduser(), _say)


def node(directory: Path, data_dir: Path | None, state_dir: Path | None, superlink: str) -> None:
    """Run a node's SuperNode until it is ended."""
    from sglr_flower.federation import node as side

    side.run(side.read_device(directory.expanduser(), data_dir, state_dir, superlink), _say)


def demo(config: Path, nodes: int) -> None:
    """Train on a federation of this machine alone."""
    from sglr_flower.federation import demo as whole

    whole.run(config, nodes, _say)


def _say(line: str) -> None:
    Console(highlight=False, soft_wrap=True).print(line, markup=False)
