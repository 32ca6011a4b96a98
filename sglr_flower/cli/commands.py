"""What ``sglr run`` and ``sglr resume`` do.

`sglr run` stays for as long as the training takes, so this module imports no torch, and nothing that does: what needs
torch before the training is a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from sglr_flower.choices import NODES
from sglr_flower.errors import UserError
from sglr_flower.federation import connection, preflight
from sglr_flower.federation.client import Submission
from sglr_flower.federation.connection import Connection
from sglr_flower.federation.simulation import Resources, Simulation, check_fits, ray_was_late
from sglr_flower.federation.submit import submit
from sglr_flower.files import write_atomic
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_cpus, slow_autocast
from sglr_flower.run.rundir import LAUNCH, UNDER_WAY, RunDirectory, new_run_dir, read_json
from sglr_flower.run.settings import parse_assignment, read_config, read_toml
from sglr_flower.run.view import ProgressView, closing_table

STOP_SECONDS = 60.0
"""A ServerApp learns from its heartbeat, every 21 s, that its run has been stopped."""


class Launch(BaseModel):
    """How a run is started; written beside it, so that it is resumed alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=NODES, ge=1)
    cpus_per_node: float = Field(default=1.0, gt=0)
    gpus_per_node: float | None = Field(default=None, ge=0)  # None: whatever the machine has when it is started
    in_process: bool = False
    federation: str = ""
    code_dir: str = ""

    @property
    def simulated(self) -> bool:
        """Whether it is a simulation's, on a SuperLink of its own."""
        return not self.federation and not self.in_process

    def resources(self, gpus: int) -> Resources:
        """The size of the simulation on a machine with so many GPUs.

        Raises
        ------
        UserError
            If the machine does not have what a node asks for.
        """
        share = _gpu_share(self.nodes, gpus) if self.gpus_per_node is None else self.gpus_per_node
        resources = Resources(self.nodes, self.cpus_per_node, share)
        check_fits(resources, gpus)
        return resources


@dataclass(frozen=True)
class _Checked:
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
            _train_elsewhere(parsed, link)
            return
    else:
        count = nodes or NODES
        share = cpus_per_node if cpus_per_node is not None else _cpu_share(count)
        launch = Launch(
            nodes=count,
            cpus_per_node=share,
            gpus_per_node=gpus_per_node,
            in_process=in_process,
            code_dir=code_dir,
        )
    parsed = parsed.replace(data_dir=_absolute_data_dir(parsed))
    with _start(launch) as simulation:
        # Every mistake that shows without training is found before anything is written.
        findings = _look(parsed, launch, simulation)
        _warn_of_slow_autocast(parsed, findings.gpus)
        resources = None if launch.federation else launch.resources(findings.gpus)
        chosen = Path(parsed.run_dir).expanduser().absolute() if parsed.run_dir else new_run_dir(Path("runs"), parsed)
        parsed = parsed.replace(run_dir=str(chosen))
        directory = RunDirectory(chosen)
        directory.claim(parsed)
        if findings.counts:
            directory.partition(findings.classes, findings.counts)  # with evaluate = "client" the server has no data
        for note in findings.notes:
            Console().print(note, markup=False, highlight=False, soft_wrap=True)
        write_atomic(chosen / LAUNCH, tomli_w.dumps(launch.model_dump(exclude_none=True)).encode())
        _train(_Checked(parsed, directory, launch, resources, simulation))


def resume(run_dir: Path, *, changed_data: bool = False) -> None:
    """Continue a run from its last whole checkpoint, to the weights that it would have had uninterrupted."""
    directory = RunDirectory(run_dir.absolute())
    config = directory.read_config()
    launch = _read_launch(directory)
    if directory.is_finished():
        Console().print("this run is finished already")
        Console().print(closing_table(directory.summary(), directory.path))
        return
    _wait_until_free(directory, launch)
    if changed_data:
        directory.take_changed_data(config)
    if directory.latest_checkpoint() is None:
        Console().print("it has no checkpoint yet, so it starts again from its first round")
    config = config.replace(resume=True, run_dir=str(directory.path))
    with _start(launch) as simulation:
        findings = _look(config, launch, simulation)
        _warn_of_slow_autocast(config, findings.gpus)
        resources = launch.resources(findings.gpus) if launch.simulated else None
        _train(_Checked(config, directory, launch, resources, simulation))


def _start(launch: Launch) -> AbstractContextManager[Simulation | None]:
    """Let a simulation's SuperLink start, as it does while the run is checked."""
    code_dir = Path(launch.code_dir) if launch.code_dir else None
    return Simulation(code_dir) if launch.simulated else contextlib.nullcontext()


def _look(config: RunConfig, launch: Launch, simulation: Simulation | None) -> preflight.Findings:
    """Check a run, in a process of its own unless it is trained in this one.

    Raises
    ------
    UserError
        If it has a mistake.
    """
    if launch.in_process:
        return preflight.look(config, own_data=False)
    warm = simulation.interpreter if simulation is not None else None
    return preflight.look_apart(config, own_data=bool(launch.federation), warm=warm)


def _read_launch(directory: RunDirectory) -> Launch:
    """How the run was started; one of `flwr run` itself had no launch file, but its status knows the nodes."""
    path = directory.path / LAUNCH
    if not path.exists():
        nodes = int(read_json(directory.path / "status.json").get("nodes", 2))
        return Launch(nodes=nodes, cpus_per_node=_cpu_share(nodes))
    try:
        return Launch.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is damaged: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from None


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


def _train(checked: _Checked) -> None:
    """Train with live progress to the closing table.

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
            if launch.in_process:
                _in_process(checked.config, launch.nodes, view)
            else:
                _through_flower(checked, view)
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


def _through_flower(checked: _Checked, view: ProgressView) -> None:
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


def _train_elsewhere(config: RunConfig, link: Connection) -> None:
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


def _in_process(config: RunConfig, nodes: int, view: ProgressView) -> None:
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


def _warn_of_slow_autocast(config: RunConfig, gpus: int) -> None:
    if sentence := slow_autocast(config.autocast, on_cpu=gpus == 0 or config.server_device == "cpu"):
        Console(stderr=True).print(
            f"warning: {sentence}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )


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


def _absolute_data_dir(config: RunConfig) -> str:
    """``data-dir`` for processes with another working directory and environment."""
    chosen = config.data_dir or os.environ.get("SGLR_DATA_DIR", "")
    return str(Path(chosen).expanduser().absolute()) if chosen else ""


def _gpu_share(nodes: int, gpus: int) -> float:
    """GPUs per node: one, or where there are fewer than nodes an equal share of one, which Ray takes to 1/10,000."""
    if os.environ.get("RAY_ADDRESS"):
        return 0.0
    return math.floor(10_000 / math.ceil(nodes / gpus)) / 10_000 if gpus else 0.0


def _cpu_share(nodes: int) -> float:
    """CPUs per node: all nodes at once as long as Flower can run them at once, else one each."""
    cpus = available_cpus()
    return cpus / nodes if nodes <= min(32, (os.cpu_count() or 1) + 4) else 1.0
