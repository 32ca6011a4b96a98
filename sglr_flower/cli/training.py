"""A checked run is trained: through Flower here or elsewhere, or in this process."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from sglr_flower.cli.launch import Launch
from sglr_flower.errors import UserError
from sglr_flower.federation import connection
from sglr_flower.federation.client import Submission
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.simulation import Resources, Simulation, ray_was_late
from sglr_flower.federation.submit import submit
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import UNDER_WAY, RunDirectory, read_json
from sglr_flower.run.view import ProgressView


@dataclass(frozen=True)
class Checked:
    """A run that is checked, and what it is to be trained with.

    Attributes
    ----------
    config : RunConfig
        Its settings.
    directory : RunDirectory
        Its own already.
    launch : Launch
        How it is started.
    resources : Resources | None
        The size of its simulation; None if it has none.
    simulation : Simulation | None
        That simulation's SuperLink, which has been started.
    """

    config: RunConfig
    directory: RunDirectory
    launch: Launch
    resources: Resources | None = None
    simulation: Simulation | None = None


def through_flower(checked: Checked, view: ProgressView) -> None:
    """Train in a simulation, or on a federation whose SuperLink is on this machine.

    Raises
    ------
    UserError
        With the reason, if the run failed.
    """
    directory = checked.directory
    run_config = directory.path / ".run-config.toml"
    run_config.write_text(checked.config.to_toml(), encoding="utf-8")
    log_file = directory.path / "flower.log"

    def watch() -> None:
        view.update()
        if directory.is_abandoned():  # Flower itself needs a minute to notice
            raise UserError(f"the run failed: its training process was killed (log: {log_file})")

    if checked.simulation is None or checked.resources is None:
        link = connection.read(checked.launch.federation)

        def ended() -> bool:
            state = read_json(directory.path / "status.json").get("state", UNDER_WAY[0])
            return state not in UNDER_WAY

        outcome = submit(Submission(_app_dir(), run_config, log_file, watch, ended), link)
    else:
        with _light_app() as app_dir:
            submission = Submission(app_dir, run_config, log_file, watch)
            outcome = checked.simulation.run(submission, checked.resources)
            if ray_was_late(outcome.reason) and not (directory.path / "metrics.csv").exists():
                Console().print("Ray was too slow to start; it is started once more")
                (directory.path / "status.json").unlink(missing_ok=True)
                checked.simulation.restart()
                outcome = checked.simulation.run(submission, checked.resources)
    status = read_json(directory.path / "status.json")
    if not outcome.succeeded or status.get("state") != "finished":
        reason = status.get("error") or outcome.reason or "the run ended without a result"
        raise UserError(f"the run failed: {reason} (log: {log_file})")


def elsewhere(config: RunConfig, link: Connection) -> None:
    """Train on a federation whose SuperLink is on another machine, which then has the run directory: show its log.

    Raises
    ------
    UserError
        With the reason, if the run failed.
    """
    for key, path in (("run-dir", config.run_dir), ("data-dir", config.data_dir)):
        if path and not Path(path).is_absolute():
            raise UserError(
                f"run-config key {key} = {path!r}: it must be absolute, as it is on the SuperLink's machine"
            )
    folder = Path(tempfile.mkdtemp(prefix="sglr-"))
    run_config, log_file = folder / "run-config.toml", folder / "flower.log"
    run_config.write_text(config.to_toml(), encoding="utf-8")
    shown = 0

    def watch() -> None:
        nonlocal shown
        lines = log_file.read_bytes()[shown:].rpartition(b"\n")
        shown += len(lines[0] + lines[1])
        sys.stdout.write((lines[0] + lines[1]).decode(errors="replace"))
        sys.stdout.flush()

    try:
        outcome = submit(Submission(_app_dir(), run_config, log_file, watch), link)
    except KeyboardInterrupt:
        text = "stopped; continue on the SuperLink's machine with `sglr resume` and the run directory named above"
        Console().print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if not outcome.succeeded:
        raise UserError(f"the run failed: {outcome.reason} (log: {log_file})")
    shutil.rmtree(folder, ignore_errors=True)


def in_process(config: RunConfig, nodes: int, view: ProgressView) -> None:
    """Train without Flower."""
    from sglr_flower.run import inprocess

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
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "server_app.py").exists() else checkout / "sglr_flower" / "app"


@contextlib.contextmanager
def _light_app() -> Iterator[Path]:
    """A folder with the Flower app but not this package, which a simulation's processes have.

    Flower packs the folder of an app, and looks at every file below it to do so: in a checkout at a whole environment.
    """
    with tempfile.TemporaryDirectory(prefix="sglr-app-") as made:
        for name in ("server_app.py", "client_app.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(_app_dir() / name, Path(made) / name)
        yield Path(made)
