"""The command ``sglr``: run, resume, keys."""

from __future__ import annotations

import os
import signal
import sys
import threading
import tomllib
from pathlib import Path
from typing import Annotated, Any

import click
import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from sglr_flower.config import RunConfig, documentation, parse_assignment, read_toml
from sglr_flower.errors import UserError
from sglr_flower.launch import Resources, simulate
from sglr_flower.plots import save_curves
from sglr_flower.rundir import RunDirectory, default_run_dir, read_json
from sglr_flower.view import ProgressView, closing_table

app = typer.Typer(
    help="SGLR split learning on Flower.", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)
LAUNCH = "launch.toml"
"""File in the run directory that says how the run was started, for `sglr resume`."""


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="TOML run-config; keys left out take their defaults.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="One run-config key, over the file's.", metavar="KEY=VALUE")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Simulated Flower nodes; the clients are spread over them.", min=1)] = 2,
    cpus_per_node: Annotated[
        float | None, typer.Option(help="CPUs of one node; default: the machine's, shared by the nodes.")
    ] = None,
    gpus_per_node: Annotated[float, typer.Option(help="GPUs of one node; 0.25 puts four on one GPU.", min=0)] = 0.0,
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder for the run; default: runs/TIME-METHOD-DATA.")
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Train without Flower, in this process.")] = False,
) -> None:
    """Train a new run through `flwr run` on the local simulation engine."""
    values: dict[str, Any] = read_toml(config) if config else {}
    values |= dict(parse_assignment(text) for text in settings or [])
    if run_dir is not None:
        values["run-dir"] = str(run_dir)
    parsed = RunConfig.parse(values)
    chosen = Path(parsed.run_dir) if parsed.run_dir else default_run_dir(Path("runs"), parsed)
    parsed = parsed.replace(run_dir=str(chosen.absolute()), data_dir=_absolute_data_dir(parsed), resume=False)
    share = cpus_per_node if cpus_per_node is not None else _cpu_share(nodes)
    launched = {
        "nodes": nodes,
        "cpus-per-node": share,
        "gpus-per-node": gpus_per_node,
        "in-process": in_process,
    }
    from sglr_flower import assembly  # torch: only once the config is right

    assembly.check(parsed)
    directory = RunDirectory(Path(parsed.run_dir))
    directory.make()
    (directory.path / LAUNCH).write_text(tomli_w.dumps(launched), encoding="utf-8")
    _train(parsed, directory, launched)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a run that was stopped or killed.")],
) -> None:
    """Continue a run from its last whole checkpoint, to the weights that it would have had uninterrupted."""
    directory = RunDirectory(run_dir.absolute())
    config = directory.read_config()
    try:
        launched = tomllib.loads((directory.path / LAUNCH).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{directory.path / LAUNCH} cannot be read: {error}") from None
    summary = read_json(directory.path / "summary.json")
    if summary:
        Console().print("this run is finished already")
        Console().print(closing_table(summary, directory.path))
        return
    directory.check_free()
    directory.latest_checkpoint()
    _train(config.replace(resume=True, run_dir=str(directory.path)), directory, launched)


@app.command()
def keys() -> None:
    """List all run-config keys: default, range and meaning."""
    table = Table("key", "default", "allowed", "meaning")
    for row in documentation():
        table.add_row(*row)
    Console().print(table)


def _train(config: RunConfig, directory: RunDirectory, launched: dict[str, Any]) -> None:
    """Train with live progress to the closing table.

    Raises
    ------
    UserError
        With the reason, if the run failed.
    """
    console = Console()
    console.print(f"run directory: {directory.path}", highlight=False, soft_wrap=True)
    (directory.path / "status.json").unlink(missing_ok=True)
    try:
        with ProgressView(directory.path, config.num_server_rounds, console) as view:
            if launched["in-process"]:
                _in_process(config, int(launched["nodes"]), view)
            else:
                _through_flower(config, directory, launched, view)
    except KeyboardInterrupt:
        console.print(f"stopped; continue with: sglr resume {directory.path}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    save_curves(directory.path)
    console.print(closing_table(read_json(directory.path / "summary.json"), directory.path))


def _through_flower(config: RunConfig, directory: RunDirectory, launched: dict[str, Any], view: ProgressView) -> None:
    run_config = directory.path / ".run-config.toml"
    run_config.write_text(config.to_toml(), encoding="utf-8")
    resources = Resources(launched["nodes"], launched["cpus-per-node"], launched["gpus-per-node"])
    log_file = directory.path / "flower.log"

    def watch() -> None:
        view.update()
        if directory.is_abandoned():  # Flower itself needs a minute to notice
            raise UserError(f"the run failed: its training process was killed (log: {log_file})")

    outcome = simulate(_app_dir(), run_config, resources, log_file, watch)
    status = read_json(directory.path / "status.json")
    if not outcome.succeeded or status.get("state") != "finished":
        reason = status.get("error") or outcome.reason or "the run ended without a result"
        raise UserError(f"the run failed: {reason} (log: {log_file})")


def _in_process(config: RunConfig, nodes: int, view: ProgressView) -> None:
    from sglr_flower import inprocess

    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            view.update()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        inprocess.run(config, nodes)
    finally:
        done.set()
        watcher.join()
        view.update()


def _app_dir() -> Path:
    """The folder with the Flower app: the checkout, or what an installed package carries of it."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "server_app.py").exists() else checkout / "sglr_flower" / "app"


def _absolute_data_dir(config: RunConfig) -> str:
    """``data-dir`` for processes with another working directory and environment."""
    chosen = config.data_dir or os.environ.get("SGLR_DATA_DIR", "")
    return str(Path(chosen).expanduser().absolute()) if chosen else ""


def _cpu_share(nodes: int) -> float:
    """CPUs per node: all nodes at once as long as Flower can run them at once, else one each."""
    cpus = os.cpu_count() or 1
    return cpus / nodes if nodes <= min(32, cpus + 4) else 1.0


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit status 1; Ctrl-C ends what was started and gives 130."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` blocks end the children
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        Console(stderr=True).print(f"sglr: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
