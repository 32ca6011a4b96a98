"""What ``sglr run`` and ``sglr resume`` do.

`sglr run` stays for as long as the training takes, so this module imports no torch, and nothing that does: what needs
torch before the training is a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tomli_w
import typer
from rich.console import Console

from sglr_flower.choices import NODES
from sglr_flower.cli import training
from sglr_flower.cli.launch import Launch, cpu_share, read_launch
from sglr_flower.cli.training import Checked
from sglr_flower.errors import UserError
from sglr_flower.federation import connection, preflight
from sglr_flower.federation.simulation import Simulation
from sglr_flower.files import write_atomic
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import slow_autocast
from sglr_flower.run.rundir import LAUNCH, RunDirectory, new_run_dir
from sglr_flower.run.settings import parse_assignment, read_config
from sglr_flower.run.view import ProgressView, closing_table

STOP_SECONDS = 60.0
"""A ServerApp learns from its heartbeat, every 21 s, that its run has been stopped."""


def run(
    config: Path | None,
    settings: Sequence[str] | None,
    federation: str,
    nodes: int | None,
    cpus_per_node: float | None,
    gpus_per_node: float | None,
    run_dir: Path | None,
    in_process: bool,
) -> None:
    """Train a new run through `flwr run`, on the local simulation engine or on a federation of real nodes."""
    values: dict[str, Any] = read_config(config) if config else {}
    values |= dict(parse_assignment(text) for text in settings or [])
    if run_dir is not None:
        values["run-dir"] = str(run_dir)
    if "resume" in values:
        raise UserError("run-config key resume: `sglr resume RUN_DIR` sets it")
    parsed = RunConfig.parse(values)
    code_dir = os.getcwd() if parsed.imports_code else ""
    if federation:
        simulated = {"--nodes": nodes, "--cpus-per-node": cpus_per_node, "--gpus-per-node": gpus_per_node}
        if of_simulation := [option for option, value in simulated.items() if value is not None]:
            raise UserError(f"{of_simulation[0]} is for a simulation: the nodes of --federation are what they are")
        if in_process:
            raise UserError("--in-process and --federation exclude each other: give one of them")
        launch = Launch(federation=federation, code_dir=code_dir)
        link = connection.read(federation)
        if not link.is_local:
            training.elsewhere(parsed, link)
            return
    else:
        count = nodes or NODES
        share = cpus_per_node if cpus_per_node is not None else cpu_share(count)
        launch = Launch(
            nodes=count,
            cpus_per_node=share,
            gpus_per_node=gpus_per_node,
            in_process=in_process,
            code_dir=code_dir,
        )
    parsed = parsed.replace(data_dir=_absolute_data_dir(parsed))
    with _start(launch) as simulation, tempfile.TemporaryDirectory(prefix="sglr-check-") as images:
        # Every mistake that shows without training is found before anything is written.
        findings = _look(parsed.replace(run_dir=images), launch, simulation)
        _warn_of_slow_autocast(parsed, findings.gpus)
        resources = None if launch.federation else launch.resources(findings.gpus)
        chosen = Path(parsed.run_dir).expanduser().absolute() if parsed.run_dir else new_run_dir(Path("runs"), parsed)
        parsed = parsed.replace(run_dir=str(chosen))
        directory = RunDirectory(chosen)
        directory.claim(parsed)
        directory.take_images(Path(images))  # which the check has decoded
        if launch.in_process:
            from sglr_flower.data import datasets  # with torch, which is here by now

            datasets.forget_folders()  # the run reads them with what it keeps of them: they would be in memory twice
        if findings.counts:
            directory.partition(findings.classes, findings.counts)  # with evaluate = "client" the server has no data
        for note in findings.notes:
            Console().print(note, markup=False, highlight=False, soft_wrap=True)
        write_atomic(chosen / LAUNCH, tomli_w.dumps(launch.model_dump(exclude_none=True)).encode())
        _train(Checked(parsed, directory, launch, resources, simulation), findings.remarks)


def resume(run_dir: Path, *, changed_data: bool = False) -> None:
    """Continue a run from its last whole checkpoint, to the weights that it would have had uninterrupted."""
    directory = RunDirectory(run_dir.absolute())
    config = directory.read_config()
    launch = read_launch(directory)
    if directory.is_finished():
        Console().print("this run is finished already")
        Console().print(closing_table(directory.summary(), directory.path))
        return
    _wait_until_free(directory, launch)
    if directory.latest_checkpoint() is None:
        Console().print("it has no checkpoint yet, so it starts again from its first round")
    config = config.replace(resume=True, run_dir=str(directory.path))
    with _start(launch) as simulation:
        findings = _look(config, launch, simulation, changed_data=changed_data)
        _warn_of_slow_autocast(config, findings.gpus)
        resources = launch.resources(findings.gpus) if launch.simulated else None
        _train(Checked(config, directory, launch, resources, simulation), findings.remarks)


def _start(launch: Launch) -> AbstractContextManager[Simulation | None]:
    """Let a simulation's SuperLink start, as it does while the run is checked."""
    code_dir = Path(launch.code_dir) if launch.code_dir else None
    return Simulation(code_dir) if launch.simulated else contextlib.nullcontext()


def _look(
    config: RunConfig, launch: Launch, simulation: Simulation | None, *, changed_data: bool = False
) -> preflight.Findings:
    """Check a run, in a process of its own unless it is trained in this one.

    Raises
    ------
    UserError
        If it has a mistake.
    """
    if launch.in_process:
        return preflight.look(config, own_data=False, changed_data=changed_data)
    warm = simulation.interpreter if simulation is not None else None
    return preflight.look_apart(config, own_data=bool(launch.federation), changed_data=changed_data, warm=warm)


def _wait_until_free(directory: RunDirectory, launch: Launch) -> None:
    """Return once no process trains in the folder; a federation's SuperLink takes a while to end one.

    Raises
    ------
    UserError
        If one still does.
    """
    deadline = time.monotonic() + (STOP_SECONDS if launch.federation else 0.0)
    while True:
        try:
            directory.check_free()
            return
        except UserError:
            if time.monotonic() >= deadline:
                raise


def _train(checked: Checked, remarks: Sequence[str]) -> None:
    """Train with live progress to the closing table; ``remarks`` are said before, and not once more.

    Raises
    ------
    UserError
        With the reason, if the run failed.
    """
    directory, launch = checked.directory, checked.launch
    console = Console()
    console.print(f"run directory: {directory.path}", highlight=False, soft_wrap=True)
    (directory.path / "status.json").unlink(missing_ok=True)
    if launch.federation:
        connection.read(launch.federation)  # a mistake in its name shows before anything else
    try:
        rounds, warnings = checked.config.num_server_rounds, not launch.in_process
        with ProgressView(directory.path, rounds, console, warnings=warnings) as view:
            view.warn(remarks)
            if launch.in_process:
                training.in_process(checked.config, launch.nodes, view)
            else:
                training.through_flower(checked, view)
    except KeyboardInterrupt:
        if launch.federation:
            console.print("stopping: the nodes end their round, the server its process")
            with contextlib.suppress(UserError):
                _wait_until_free(directory, launch)
        console.print(f"stopped; continue with: sglr resume {directory.path}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    try:
        _draw(directory.path)
    except Exception as error:  # the training is done and saved; a picture must not make it a failure
        console.print(f"the pictures could not be drawn: {error}", style="yellow", markup=False)
    console.print(closing_table(directory.summary(), directory.path))


def _draw(run_dir: Path) -> None:
    """Draw the pictures of a run that has ended."""
    from sglr_flower.run.plots import save_curves, save_partition  # NumPy, which nothing needs earlier

    save_curves(run_dir)
    if (run_dir / "partition.json").exists():
        save_partition(run_dir)


def _warn_of_slow_autocast(config: RunConfig, gpus: int) -> None:
    if sentence := slow_autocast(config.autocast, on_cpu=gpus == 0 or config.server_device == "cpu"):
        Console(stderr=True).print(
            f"warning: {sentence}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )


def _absolute_data_dir(config: RunConfig) -> str:
    """``data-dir`` for processes with another working directory and environment."""
    chosen = config.data_dir or os.environ.get("SGLR_DATA_DIR", "")
    return str(Path(chosen).expanduser().absolute()) if chosen else ""
