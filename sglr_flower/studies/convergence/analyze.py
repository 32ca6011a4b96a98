"""The command ``sglr analyze``: what a convergence bound speaks of, measured at the checkpoints of runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from sglr_flower.data.inputs import to_input
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.checkpoint import Checkpoint
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.seeds import generator
from sglr_flower.split import averaging, methods, optimizers
from sglr_flower.split.optimizers import OptimizerFactory
from sglr_flower.split.plan import RoundPlan
from sglr_flower.studies.convergence.convergence import measure, spread
from sglr_flower.studies.convergence.point import Batches, Point, Side
from sglr_flower.studies.figures import Row, save, tables
from sglr_flower.studies.trained import network as trained

_FILE_WIDTH = 160
IMAGES = 256
"""Images at most on which the clients' smashed data are compared."""


@dataclass(frozen=True)
class Run:
    """A run to be analyzed.

    Attributes
    ----------
    path : Path
        As it was given.
    config : RunConfig
        Its settings.
    checkpoints : tuple[Checkpoint, ...]
        Its whole ones, oldest first; not empty.
    """

    path: Path
    config: RunConfig
    checkpoints: tuple[Checkpoint, ...]


def read(run_dir: Path, data_dir: Path | None = None) -> Run:
    """Read a run's settings and find its checkpoints.

    Raises
    ------
    UserError
        If it is no run, has no checkpoint yet, or its method makes no joint step of all clients.
    """
    directory = RunDirectory(run_dir.expanduser().absolute())
    config = trained.with_data_dir(directory.read_config(), data_dir).replace(run_dir=str(directory.path))
    method = methods.get(config.method)
    if method.server is not methods.joint or method.sequential:
        raise UserError(
            f"{run_dir}: method {config.method} makes no step of all clients together, which is what is analyzed; "
            "psl, sgl, slr, sglr and sfl do"
        )
    if not isinstance(assembly.targets(config), Classes) or not assembly.inputs(config).image_size:
        raise UserError(
            f"{run_dir}: what is analyzed are steps on images of classes, dataset {config.dataset!r} has none"
        )
    if config.partition == "own":
        raise UserError(f"{run_dir}: with partition = 'own' the training data are on the devices, and not here")
    changed = {
        "a defence of smashed data": assembly.defence(config),
        "differential privacy (dp-noise)": assembly.privacy(config),
        "a codec (wire-up, wire-down)": next((codec for codec in assembly.wire_codecs(config) if not codec.off), None),
    }
    for name, setting in changed.items():
        if setting is not None:
            raise UserError(f"{run_dir}: a run with {name} makes other steps than those which are analyzed")
    directory.latest_checkpoint()  # which says so if all are damaged
    found = checkpoint.whole(directory.checkpoints)
    if not found:
        raise UserError(f"the run in {run_dir} has no checkpoint: train at least checkpoint-every rounds first")
    return Run(run_dir, config, tuple(found))


def point(run: Run, at: Checkpoint, phi: float | None = None) -> Point:
    """The weights and the optimizers' states of a checkpoint, with the plan of its round.

    Parameters
    ----------
    run : Run
        Whose.
    at : Checkpoint
        One of its.
    phi : float | None
        SplitAvg's fraction in place of the run's own.

    Raises
    ------
    UserError
        If the clients' segments are on their nodes, or do not fit the model.
    """
    config, place = run.config, assembly.device()
    plan = assembly.plan(config, at.server_round)
    if phi is not None:
        plan = replace(plan, phi=phi)
    model = assembly.model(config)
    template, shared = model.client_segment(plan.clients[0]), at.shared_weights()
    states = trained.client_states(run.path, at, config)
    clients = {}
    for client in plan.clients:
        known = client in states or shared is not None
        segment = copy.deepcopy(template) if known else model.client_segment(client)
        clients[client] = _side(segment, config, assembly.optimizer(config), states.get(client), at, place)
        if shared is not None:
            averaging.load(clients[client].segment, shared)
    of_clients, of_server = assembly.optimizer(config), assembly.server_optimizer(config)
    server = _side(model.server_segment(), config, of_server, at.server_state(), at, place)
    return Point(clients, server, plan, of_clients, of_server)


def _side(
    segment: torch.nn.Module,
    config: RunConfig,
    factory: OptimizerFactory,
    state: dict[str, torch.Tensor] | None,
    at: Checkpoint,
    place: torch.device,
) -> Side:
    segment = segment.to(place)
    optimizer = factory(segment.parameters())
    if state is not None:
        try:
            optimizers.load_flat_state(segment, optimizer, state)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"checkpoint {at.folder} does not fit model = {config.model!r}: {reason}") from None
    return Side(segment, optimizer.state())


def draw_steps(config: RunConfig, plan: RoundPlan, count: int) -> list[Batches]:
    """Independent batches of the clients' own training data, as their training would take them.

    Parameters
    ----------
    config : RunConfig
        The run.
    plan : RoundPlan
        Gives clients, batch size and augmentation.
    count : int
        Steps.
    """
    data, place, dtype = assembly.client_data(config, plan.clients), assembly.device(), assembly.dtype(config)
    steps: list[Batches] = []
    for number in range(count):
        batches = {}
        for client, share in data.items():
            draw = generator(plan.seed, "analyze", "batch", client, plan.server_round, number)
            batch = share.take(torch.randperm(len(share), generator=draw)[: plan.batch_size])
            images = batch.images if plan.augment is None else plan.augment(batch.images, draw)
            batches[client] = to_input(images.to(place), dtype), batch.labels.to(place)
        steps.append(batches)
    return steps


def analyze(run: Run, at: Checkpoint, name: str, batches: int, phi: float | None = None) -> Row:
    """Measure at one checkpoint; see `point` and `draw_steps`."""
    here = point(run, at, phi)
    steps = draw_steps(run.config, here.plan, batches)
    images = torch.cat([inputs for inputs, _ in steps[0].values()])[:IMAGES]
    apart = spread(here.clients, images)
    cut, gradients, along = measure(here, steps)
    return Row(
        run=str(run.path),
        name=name,
        clients=len(here.clients),
        alpha=here.plan.alpha,
        phi=here.plan.phi,
        round=at.server_round,
        active=cut.active if cut else 0,
        own_norm=cut.own_norm if cut else None,
        average_norm=cut.average_norm if cut else None,
        cosine=cut.cosine if cut else None,
        gradient_norm2=gradients.norm2,
        client_gradient_norm2=gradients.client_norm2,
        variance=gradients.variance,
        own_variance=gradients.own_variance,
        bias2=gradients.bias2,
        kept=gradients.kept,
        kept_error=gradients.kept_error,
        weights_spread=apart.weights,
        function_spread=apart.function,
        smoothness=along.smoothness,
        rate_smoothness=along.rate_smoothness,
        losses=along.losses,
    )


def names(runs: Sequence[Run], phi: float | None = None) -> list[str]:
    """A name for each run: those of its clients, alpha, phi and optimizer that are not every run's, else its folder."""
    values = []
    for run in runs:
        plan = assembly.plan(run.config, run.config.num_server_rounds)
        acting = assembly.plan(run.config.replace(splitavg_phase="all"), 1)
        chosen = acting.phi if phi is None else phi
        parts = {"clients": len(plan.clients), "alpha": plan.alpha, "phi": chosen}
        values.append([*(f"{key} {value:g}" for key, value in parts.items()), run.config.optimizer])
    telling = [k for k in range(len(values[0])) if len({value[k] for value in values}) > 1]
    found = [", ".join(value[k] for k in telling) for value in values]
    alone = {name for name in found if name and found.count(name) == 1}
    return [
        name if name in alone else f"{name} ({run.path.name})" if name else run.path.name
        for name, run in zip(found, runs, strict=True)
    ]


def command(run_dirs: Sequence[Path], batches: int, phi: float | None, data_dir: Path | None, out: Path | None) -> None:
    """Analyze runs, show the tables and say where they are written."""
    runs = [read(run_dir, data_dir) for run_dir in run_dirs]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("a run directory is given twice: name each run once")
    folder = out or (runs[0].path / "analysis" if len(runs) == 1 else Path("analysis"))
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    console = Console()
    work = [(run, at, name) for run, name in zip(runs, names(runs, phi), strict=True) for at in run.checkpoints]
    # A bar for people; a file or pipe would fill with its frames.
    tracked = track(work, "analyzing", console=console, transient=True, disable=not console.is_terminal)
    rows = [analyze(run, at, name, batches, phi) for run, at, name in tracked]
    save(folder, rows, batches)
    if not console.is_terminal:  # a file has no width at which a table must break
        console = Console(width=_FILE_WIDTH)
    for shown in tables(rows, batches):
        console.print(shown)
    console.print(f"written: {folder}", highlight=False, soft_wrap=True)
