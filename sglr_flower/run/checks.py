"""Every mistake of a run that shows without training, found before anything starts; what may not be meant is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from sglr_flower import imports
from sglr_flower.data import datasets
from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Batch, Tensors, one
from sglr_flower.data.targets import Classes, Several, Values, to_targets
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel
from sglr_flower.run import accounting, assembly, track, trial
from sglr_flower.run.config import RunConfig
from sglr_flower.run.task import Task
from sglr_flower.split import codecs, defences, methods, optimizer_classes, splitavg, vanishing
from sglr_flower.split import loss as losses
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.server import ServerSegment


def refuse_own_partition(config: RunConfig) -> None:
    """Refuse partition "own" where no node has data of its own: in a simulation, and in one process.

    Raises
    ------
    UserError
        If the run-config has it.
    """
    if config.partition != "own":
        return
    if not (imports.is_path(config.dataset) and (owned := assembly.splits(config).owned)):
        raise UserError(
            "run-config key partition = 'own': it needs nodes with data of their own (`sglr run --federation`), which "
            "a simulation and --in-process do not have, or a dataset of one's own that gives clients"
        )
    if len(owned) != config.num_clients:
        raise UserError(
            f"run-config key num-clients = {config.num_clients}: with partition 'own' it must be {len(owned)}, as "
            f"dataset {config.dataset!r} gives so many clients"
        )


def check_parts(config: RunConfig) -> None:
    """Import all that is one's own in a run-config, and find out whether the parts fit each other and the model.

    Raises
    ------
    UserError
        If something cannot be imported, is not what its key stands for, or cannot be computed with.
    """
    if config.task and not isinstance(own := imports.load(config.task, "task"), Task):
        raise UserError(f"run-config key task = {config.task!r}: it must be a sglr_flower.Task, not {own!r}")
    method = methods.get(config.method)
    config.refuse_with(method)
    losses.get(config.loss)
    up, down = assembly.wire_codecs(config)
    of_clients, of_server = assembly.optimizer(config), assembly.server_optimizer(config)
    shield = assembly.defence(config)
    if not config.imports_code:
        return  # what is ours fits
    network = assembly.model(config)
    parts, batch = _tried(config, network)
    smashed = trial.network(parts, batch).smashed if imports.is_path(config.model) else None
    found = {
        f"optimizer = {config.optimizer!r}": optimizer_classes.refusal(of_clients, parts.lower.parameters()),
        f"{'server-' if config.server_optimizer else ''}optimizer = {config.server_optimizer or config.optimizer!r}": (
            optimizer_classes.refusal(of_server, parts.upper.parameters())
        ),
    }
    if not method.whole:
        shape = network.smashed_shape() if smashed is None else tuple(smashed.shape[1:])
        found |= {
            f"wire-up = {config.wire_up!r}": codecs.refusal(up, shape, assembly.dtype(config)),
            f"wire-down = {config.wire_down!r}": codecs.refusal(down, shape, assembly.dtype(config)),
        }
        if shield is not None:
            drawn = torch.randn(
                len(one(batch)), *shape, generator=torch.Generator().manual_seed(0), dtype=assembly.dtype(config)
            )
            found[f"defence = {config.defence!r}"] = defences.refusal(shield, one(batch), drawn)
    for setting, wrong in found.items():
        if wrong:
            raise UserError(f"run-config key {setting}: {wrong}")
    if not method.whole and not isinstance(assembly.server(config), ServerSegment):
        raise UserError(
            f"run-config key method = {config.method!r}: its server must make a sglr_flower.split.server.ServerSegment"
        )
    if imports.is_path(config.method):
        _try_method(config, network)


def _tried(config: RunConfig, network: SplitModel) -> tuple[trial.Parts, Tensors]:
    """Segments to be tried, and a batch of zeros for them."""
    own = imports.load(config.model, "model") if imports.is_path(config.model) else None
    parts = trial.Parts(*network.segments(), f"run-config key model = {config.model!r}", function=own)
    return parts, network.inputs.example(trial.COUNT, network.dtype)


def _try_method(config: RunConfig, network: SplitModel) -> None:
    """Make a step with a method of one's own, of two clients with two samples each."""
    kind, few = assembly.targets(config), assembly.clients(config)[:2]
    if isinstance(kind, Several):
        return  # nobody knows what these are
    wanted = torch.zeros(trial.COUNT, *kind.shape, dtype=kind.dtype(network.dtype))
    data = dict.fromkeys(few, Batch(network.inputs.example(trial.COUNT, network.dtype), wanted))
    tried = dataclasses.replace(
        assembly.plan(config, 1), clients=tuple(few), batch_size=trial.COUNT, local_epochs=1, augment=None
    )
    cohort = Cohort(data, network.client_segment, assembly.optimizer(config), network.dtype)
    server_side = None if tried.server is None else assembly.server(config)
    trial.step(f"run-config key method = {config.method!r}", tried, cohort, server_side)


def check_batches_of_one(config: RunConfig, sizes: Mapping[int, int]) -> None:
    """Refuse a network that cannot be trained on one sample where the clients' sizes leave it one (client -> samples).

    Raises
    ------
    UserError
        With the client, and the stage that fails: batch norm over one value of each channel.
    """
    first = assembly.plan(config, 1)
    rounds = range(1, config.num_server_rounds + 1) if len(first.clients) < len(assembly.clients(config)) else [1]
    reasons = trial.batches_of_one((assembly.plan(config, number) for number in rounds), sizes, _joint(config))
    if any(reasons):
        trial.check_on_one(*_tried(config, assembly.model(config)), reasons)


def _joint(config: RunConfig) -> bool:
    """Whether the server segment sees the batches of all clients of a step at once."""
    return methods.get(config.method).server is methods.joint and not assembly.is_private(config)


def remarks(config: RunConfig, sizes: Mapping[int, int]) -> list[str]:
    """What can be trained and may not be meant, a sentence each; ``sizes``: client -> its number of samples."""
    found, own = _remarks_on_averages(config), imports.is_path(config.model)
    if not config.score and (hint := trial.of_numbers(assembly.targets(config), losses.get(config.loss))):
        found.append(hint)
    if not own and config.batch_size > 1 and 1 not in sizes.values():
        return found  # ours are as they are meant, and need not be built for this
    parts, batch = _tried(config, assembly.model(config))
    outputs = trial.network(parts, batch).outputs if own else None
    found += trial.remarks(parts, outputs, losses.get(config.loss))
    return found + trial.ones(parts, sizes, config.batch_size, _joint(config))


def _remarks_on_averages(config: RunConfig) -> list[str]:
    """Whether SplitAvg over clients and samples gives the clients nothing to learn from, in a sentence."""
    if config.splitavg_over == "clients" or methods.get(config.method).cut_gradient is not splitavg.average:
        return []
    rounds = (assembly.plan(config, 1), assembly.plan(config, config.num_server_rounds))
    if not any(splitavg.num_active(each.phi, len(each.clients)) == len(each.clients) for each in rounds):
        return []  # with fewer active it is the others' sum that they get, see docs/convergence.md
    network = assembly.model(config.replace(autocast="none"))
    if not vanishing.mean_vanishes(network.server_segment(), network.smashed_shape()):
        return []
    return [
        "run-config key splitavg-over = 'clients-and-samples': with all clients active and batch norm where the server "
        "segment begins, the mean cut gradient is zero whatever the loss, so the clients learn nothing: it should be "
        "clients, or splitavg-phi smaller (docs/convergence.md)"
    ]


def _check_loss(config: RunConfig) -> None:
    """Try the loss on two samples of the first client, in the whole network of a client."""
    (share,) = assembly.client_data(config, [0]).values()
    batch = share.take(torch.arange(min(2, len(share))))
    network = assembly.model(config).whole(0).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = network(to_inputs(batch.inputs, assembly.dtype(config)))
    if wrong := losses.refusal(losses.get(config.loss), outputs, to_targets(batch.targets, assembly.dtype(config))):
        hint = trial.of_numbers(assembly.targets(config), losses.get(config.loss))
        raise UserError(f"run-config key loss = {config.loss!r}: {wrong}" + f" ({hint})" * bool(hint))


def check(config: RunConfig, *, own_data: bool = False) -> None:
    """Find every mistake of a run-config that shows without training: before anything is started or written.

    Parameters
    ----------
    config : RunConfig
        The run.
    own_data : bool
        Whether its nodes may have data of their own, as those of a federation.

    Raises
    ------
    UserError
        If the model or cut is unknown, the data or a tracker's library are missing, or the data do not suffice for the
        partition.
    """
    track.check(config)
    if not own_data:
        refuse_own_partition(config)
        assembly.device(config.server_device)
    if config.partition == "own" and methods.get(config.method).pooled:
        raise UserError(
            f"run-config key partition = 'own': method {config.method} needs the data of all clients in one place"
        )
    check_parts(config)
    datasets.ensure_present(config.dataset, config.data_dir, assembly.data_of(config)[-1])
    if config.resume and assembly.has_data(config):
        assembly.pin_data(config)
    network = assembly.model(config)
    _check_task(config, network)
    assembly.check_private(config, network.server_segment())
    if config.dp_noise:
        accounting.check()
    if config.partition == "own" and own_data and config.evaluate == "server":
        if config.dataset == "folder" and not config.data_dir:
            raise UserError(
                "run-config key evaluate = 'server': with dataset 'folder' and partition 'own' it needs data-dir, a "
                "folder with images on the server; evaluate = 'client' scores each client on its own node's"
            )
        assembly.evaluation_images(config)
    if config.partition != "own" or not own_data:
        shares = assembly.client_data(config, assembly.clients(config))
        check_batches_of_one(config, {client: len(share) for client, share in shares.items()})
        _check_loss(config)


@torch.no_grad()
def _check_task(config: RunConfig, network: SplitModel) -> None:
    """Refuse settings that are not for such data, and a network, loss or score that does not fit its targets."""
    kind, read, source = assembly.targets(config), network.inputs, config.dataset
    if config.augment != "none" and not read.image_size:
        raise UserError(f"run-config key augment = {config.augment!r}: it is for images, dataset {source!r} has none")
    if config.nopeek_weight and (not read.single or read.parts[0][2] is not None):
        raise UserError(f"run-config key nopeek-weight: it is for inputs of numbers, dataset {source!r} has others")
    if not isinstance(kind, Classes) and config.loss in ("cross-entropy", "binary-cross-entropy"):
        raise UserError(
            f"run-config key loss = {config.loss!r}: it is for classes, dataset {source!r} has other targets: "
            + ("mse or l1 is for values" if isinstance(kind, Values) else "bce-with-logits is for several labels")
            + ", or one's own as package.module:name"
        )
    measured = assembly.scoring(config)
    network.smashed_shape()
    with torch.random.fork_rng(devices=[]):
        outputs = network.whole().eval()(read.example(2, network.dtype))
    if isinstance(kind, Several):
        return
    wanted = kind.output_shape
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != (2, *wanted):
        found = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"run-config key model = {config.model!r}: it answers a sample with {found}, but dataset {source!r} needs "
            f"{wanted}"
        )
    example = torch.zeros(2, *kind.shape, dtype=kind.dtype(network.dtype))
    try:
        measured.values(outputs, example, (1, 1))
    except Exception as error:  # whatever the user's own functions do
        given = f"run-config keys loss = {config.loss!r}, score = {config.score!r}"
        raise UserError(f"{given}: they fail on outputs and targets: {error}") from error
