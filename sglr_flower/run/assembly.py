"""From a run-config to the objects of the engine: the one place where settings become models, data and cohorts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sglr_flower import imports
from sglr_flower.data import by, datasets, folder, partition, pinned
from sglr_flower.data.augment import augment
from sglr_flower.data.inputs import Inputs, to_inputs
from sglr_flower.data.levels import AUTO
from sglr_flower.data.options import Options
from sglr_flower.data.samples import Batch, Samples, Share, Tensors, one
from sglr_flower.data.source import Source, subset
from sglr_flower.data.targets import Classes, Kind, Several, Values, to_targets
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel
from sglr_flower.models.uncut import UncutModel
from sglr_flower.run import accounting, track, trial
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_gpus
from sglr_flower.run.task import Task
from sglr_flower.split import codecs, defences, methods, optimizer_classes, score, splitavg, splitlr, vanishing
from sglr_flower.split import loss as losses
from sglr_flower.split.codecs import Codec
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.defences import Defence, StandardDefence
from sglr_flower.split.optimizers import OptimizerFactory
from sglr_flower.split.plan import RoundPlan, draw_participants, of_method
from sglr_flower.split.privacy import GaussianDp, refusal
from sglr_flower.split.server import PrivateServer, ServerSegment


def plan(config: RunConfig, server_round: int) -> RoundPlan:
    """The method's round ``server_round`` (from 1) as a value: who takes part, at which rates, what is averaged."""
    method = methods.get(config.method)
    acts = splitavg.in_phase(config.splitavg_phase, server_round, config.num_server_rounds)
    up, down = wire_codecs(config)
    return of_method(
        method,
        alpha=config.splitlr_alpha,
        phi=config.splitavg_phi,
        averages=acts,
        seed=config.seed,
        server_round=server_round,
        clients=draw_participants(config.seed, server_round, len(clients(config)), config.fraction_train),
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        reshuffle=config.sample_order == "every-epoch",
        client_lr=config.client_lr,
        average_over=config.splitavg_over,
        gradient_scale=config.cut_gradient_scale,
        loss=losses.get(config.loss),
        augment=functools.partial(augment, flip=datasets.flips(*data_of(config))) if config.augment != "none" else None,
        client_schedule=splitlr.schedule(config.lr_schedule, config.num_server_rounds),
        server_schedule=splitlr.schedule(config.server_lr_schedule or config.lr_schedule, config.num_server_rounds),
        up=up,
        down=down,
        defence=defence(config),
        privacy=privacy(config),
    )


def optimizer(config: RunConfig) -> OptimizerFactory:
    """Makes the clients' optimizers."""
    return optimizer_classes.get(config.optimizer, "optimizer", config.momentum, config.weight_decay)


def server_optimizer(config: RunConfig) -> OptimizerFactory:
    """Makes the server segment's optimizer: as the clients' if it is not said otherwise."""
    if not config.server_optimizer:
        return optimizer(config)
    return optimizer_classes.get(config.server_optimizer, "server-optimizer", config.momentum, config.weight_decay)


def defence(config: RunConfig) -> Defence | None:
    """What clients do to their smashed data, in training and in evaluations; None: nothing."""
    if config.defence:
        return defences.get(config.defence)
    chosen = StandardDefence(config.nopeek_weight, config.smashed_clip, config.smashed_noise, config.noise_seed)
    return chosen if chosen.nopeek_weight or chosen.clip or chosen.noise else None


def privacy(config: RunConfig) -> GaussianDp | None:
    """The differential privacy of what clients receive; None: none."""
    if not config.dp_noise:
        return None
    return GaussianDp(
        noise=config.dp_noise,
        clip=config.dp_clip,
        per_sample=config.dp_clip_per == "sample",
        server_clip=config.dp_server_clip,
        protects=config.dp_protects,
        noise_seed=config.noise_seed,
    )


def wire_codecs(config: RunConfig) -> tuple[Codec, Codec]:
    """How smashed data and cut gradients travel."""
    return codecs.get(config.wire_up, "wire-up"), codecs.get(config.wire_down, "wire-down")


def clients(config: RunConfig) -> range:
    """The run's clients; of a method that pools all data there is one."""
    return range(1 if methods.get(config.method).pooled else config.num_clients)


def device(chosen: str = "") -> torch.device:
    """The chosen device; else the GPU that Ray set aside for this process or the user left visible to it, else the CPU.

    Raises
    ------
    UserError
        If the chosen GPU is not there.
    """
    count = available_gpus()
    if not chosen:
        return torch.device("cuda" if count else "cpu")
    found = torch.device(chosen)
    if found.type == "cuda" and (found.index or 0) >= count:
        raise UserError(f"run-config key server-device = {chosen!r}: torch sees {count} GPU(s) on this machine")
    return found


def dtype(config: RunConfig) -> torch.dtype:
    """The torch dtype of weights and activations."""
    return torch.float64 if config.dtype == "float64" else torch.float32


def data_of(config: RunConfig) -> tuple[str, str, int, int, Options]:
    """What says which data a run has: the arguments of `datasets.load`."""
    kept = pinned.read(config.run_dir)
    levels = kept.levels if kept is not None and config.levels == AUTO else config.levels
    options = Options(
        config.class_names,
        config.channels,
        levels,
        config.ground,
        config.unreadable == "skip",
        config.run_dir,
        config.cache,
    )
    return config.dataset, config.data_dir, config.seed, config.image_size, options


def splits(config: RunConfig) -> Source:
    """The run's train, validation and test samples."""
    return datasets.load(*data_of(config))


def inputs(config: RunConfig) -> Inputs:
    """What a model reads of one sample of the run's data."""
    return datasets.inputs(*data_of(config))


def targets(config: RunConfig) -> Kind:
    """What the run's data want predicted."""
    return datasets.targets(*data_of(config))


def has_data(config: RunConfig) -> bool:
    """Whether the server has the run's data: it must where it scores, and may where they are a folder."""
    if config.evaluate == "server":
        return True
    is_folder = config.dataset == "folder" and config.partition != "own" and config.data_dir != ""
    return is_folder and (Path(config.data_dir) / "train").is_dir()


def pin_data(config: RunConfig) -> None:
    """Keep in the run's folder what data it has, or compare them with what it has kept.

    Raises
    ------
    UserError
        They are others than those that the run began with.
    """
    if config.resume and not (Path(config.run_dir) / pinned.FILE).exists():
        _check_dealt(config)
    if changed := datasets.pin(*data_of(config)):
        where = f" in {config.data_dir}" if config.data_dir else ""
        raise UserError(
            f"the data{where} are not those that the run began with: {'; '.join(changed)}. Put them back, or go on "
            f"with what is there now: sglr resume --changed-data {config.run_dir}"
        )


def _check_dealt(config: RunConfig) -> None:
    """Compare who holds what with what a run of a version that kept no more than that has written down."""
    path = Path(config.run_dir) / "partition.json"
    if config.partition == "own" or not path.exists():
        return
    names, counts = class_counts(config)
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != {"classes": list(names), "counts": [list(own) for own in counts]}:
        raise UserError(
            f"the clients would not have the samples that they began with ({path}): the data have changed, or the "
            "version that began this run dealt them out otherwise. Resume it with that version, or start a new run"
        )


def levels_of(config: RunConfig) -> str:
    """The run-config's ``levels``, of which "auto" is what the server's own folder of images uses, if it has any."""
    *_, size, options = data_of(config)
    if config.dataset != "folder" or options.levels != AUTO or not config.data_dir:
        return options.levels
    root = folder.root(config.data_dir)
    if not any(path.is_file() for path in (root / "train").rglob("[!.]*")):
        return options.levels
    found = folder.load(root, config.seed, size or folder.INPUT_SIZE, options).pictures
    return found.options.levels if found.deep else AUTO


def scoring(config: RunConfig) -> score.Scoring:
    """How networks are scored."""
    return score.of(targets(config), losses.get(config.loss), config.score)


def model(config: RunConfig, num_classes: int | None = None) -> SplitModel:
    """The model, its cut and its initial weights; ``num_classes`` where the data are not there to tell."""
    method = methods.get(config.method)
    kind = UncutModel if method.whole else SplitModel
    return kind(
        name=config.model,
        cut=config.cut,
        num_classes=num_classes or targets(config).outputs,
        inputs=inputs(config),
        seed=config.seed,
        # Segments are averaged or handed on only where they started alike (SplitFed and FedAvg, Algorithm 1 of each).
        shared=method.shares_segment or config.initial_segments == "shared",
        dtype=dtype(config),
        mixed=config.autocast == "bfloat16",
    )


def _memory_format(config: RunConfig, place: torch.device) -> torch.memory_format:
    return model(config).memory_format() if place.type == "cpu" else torch.contiguous_format


def server(config: RunConfig) -> ServerSegment:
    """The server's side of the method, with its initial weights."""
    # Without a server segment it has no stage: clients' outputs are logits already, and it only scores them.
    kind = PrivateServer if _private(config) else methods.get(config.method).makes_server or ServerSegment
    segment, place = model(config).server_segment(), device(config.server_device)
    _check_private(config, segment)
    return kind(segment, server_optimizer(config), place, _memory_format(config, place))


def _private(config: RunConfig) -> bool:
    """Whether the server segment's steps are noised."""
    return config.dp_noise > 0 and config.dp_protects == "updates"


def _check_private(config: RunConfig, segment: torch.nn.Module) -> None:
    """Refuse a server segment of which the privacy that is asked for would not be true."""
    if _private(config) and (wrong := refusal(segment)):
        raise UserError(f"run-config key model = {config.model!r}: with dp-noise it is refused, as {wrong}")


def client_data(config: RunConfig, clients: Sequence[int]) -> dict[int, Share]:
    """The train samples of some clients, none of them copied.

    With partition "own" they are the node's, so these must be all the clients that it hosts.
    """
    source = splits(config)
    train = source.train
    if source.owned and config.partition != "own":
        raise UserError(
            f"run-config key partition = {config.partition!r}: dataset {config.dataset!r} gives each of its "
            f"{len(source.owned)} clients data of its own, so it must be own"
        )
    if config.partition == "own" and source.owned:
        parts = torch.arange(len(train)).split(list(source.owned))
        return {client: Share(train, parts[client]) for client in clients}
    if config.partition == "own":
        owned = partition.deal(_labels(source), len(clients), config.samples_per_client, config.seed)
        return {client: Share(train, share) for client, share in zip(clients, owned, strict=True)}
    shares = _shares(config)
    if methods.get(config.method).pooled:
        shares = [torch.cat(shares)]
    return {client: Share(train, shares[client]) for client in clients}


def class_counts(config: RunConfig) -> tuple[tuple[str, ...], list[list[int]]]:
    """The class names, and for each client of the partition how many samples of each class it has.

    Where there are no classes all samples are of one that is called "samples".
    """
    return counts_of(config, {client: Share(splits(config).train, own) for client, own in enumerate(_shares(config))})


def counts_of(config: RunConfig, data: Mapping[int, Share]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The same of some clients' shares of `client_data`."""
    whole = splits(config)
    names = whole.classes or ("samples",)
    shares = [share.indices for share in data.values()]
    return names, partition.class_counts(_labels(whole), shares, len(names))


def _labels(source: Source) -> Tensor | int:
    """The classes of the train samples, or without classes their number."""
    labels = source.labels(source.train)
    return len(source.train) if labels is None else labels


@functools.lru_cache(maxsize=2)  # a node's process builds its cohort anew for every message
def _shares(config: RunConfig) -> list[Tensor]:
    if partition.parse(config.partition)[0] == "by":
        values = by.of_train(config.partition, *data_of(config))
        return by.shares(values, config.partition, config.num_clients, config.samples_per_client, config.seed)
    labels = _labels(splits(config))
    return partition.partition(labels, config.partition, config.num_clients, config.samples_per_client, config.seed)


def cohort(
    config: RunConfig, clients: Sequence[int], states: Mapping[int, Mapping[str, Tensor]] | None = None
) -> Cohort:
    """The cohort of some clients, in the given ``states`` or else with their initial segments.

    Raises
    ------
    UserError
        If the data are missing or do not suffice.
    """
    initial, restored = model(config), {i: states[i] for i in clients if i in states} if states else {}
    # Drawing initial weights that are overwritten would cost as much as a client's forward.
    template = initial.client_segment(clients[0]) if restored else None

    def build(client: int) -> torch.nn.Module:
        return copy.deepcopy(template) if template and client in restored else initial.client_segment(client)

    data, place = client_data(config, clients), device()
    return Cohort(
        data,
        build,
        optimizer(config),
        dtype(config),
        place,
        memory_format=_memory_format(config, place),
        states=restored,
        recompute=config.recompute,
        stacked=config.cohort in ("stacked", "graph") or (config.cohort == "auto" and place.type == "cuda"),
    )


def refuse_own_partition(config: RunConfig) -> None:
    """Refuse partition "own" where no node has data of its own: in a simulation, and in one process.

    Raises
    ------
    UserError
        If the run-config has it.
    """
    if config.partition != "own":
        return
    if not (imports.is_path(config.dataset) and (owned := splits(config).owned)):
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
    up, down = wire_codecs(config)
    of_clients, of_server, shield = optimizer(config), server_optimizer(config), defence(config)
    if not config.imports_code:
        return  # what is ours fits
    network = model(config)
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
            f"wire-up = {config.wire_up!r}": codecs.refusal(up, shape, dtype(config)),
            f"wire-down = {config.wire_down!r}": codecs.refusal(down, shape, dtype(config)),
        }
        if shield is not None:
            drawn = torch.randn(
                len(one(batch)), *shape, generator=torch.Generator().manual_seed(0), dtype=dtype(config)
            )
            found[f"defence = {config.defence!r}"] = defences.refusal(shield, one(batch), drawn)
    for setting, wrong in found.items():
        if wrong:
            raise UserError(f"run-config key {setting}: {wrong}")
    if not method.whole and not isinstance(server(config), ServerSegment):
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
    kind, few = targets(config), clients(config)[:2]
    if isinstance(kind, Several):
        return  # nobody knows what these are
    wanted = torch.zeros(trial.COUNT, *kind.shape, dtype=kind.dtype(network.dtype))
    data = dict.fromkeys(few, Batch(network.inputs.example(trial.COUNT, network.dtype), wanted))
    tried = dataclasses.replace(
        plan(config, 1), clients=tuple(few), batch_size=trial.COUNT, local_epochs=1, augment=None
    )
    cohort = Cohort(data, network.client_segment, optimizer(config), network.dtype)
    server_side = None if tried.server is None else server(config)
    trial.step(f"run-config key method = {config.method!r}", tried, cohort, server_side)


def check_batches_of_one(config: RunConfig, sizes: Mapping[int, int]) -> None:
    """Refuse a network that cannot be trained on one sample where the clients' sizes leave it one (client -> samples).

    Raises
    ------
    UserError
        With the client, and the stage that fails: batch norm over one value of each channel.
    """
    first = plan(config, 1)
    rounds = range(1, config.num_server_rounds + 1) if len(first.clients) < len(clients(config)) else [1]
    reasons = trial.batches_of_one((plan(config, number) for number in rounds), sizes, _joint(config))
    if any(reasons):
        trial.check_on_one(*_tried(config, model(config)), reasons)


def _joint(config: RunConfig) -> bool:
    """Whether the server segment sees the batches of all clients of a step at once."""
    return methods.get(config.method).server is methods.joint and not _private(config)


def remarks(config: RunConfig, sizes: Mapping[int, int]) -> list[str]:
    """What can be trained and may not be meant, a sentence each; ``sizes``: client -> its number of samples."""
    found, own = _remarks_on_averages(config), imports.is_path(config.model)
    if not config.score and (hint := trial.of_numbers(targets(config), losses.get(config.loss))):
        found.append(hint)
    if not own and config.batch_size > 1 and 1 not in sizes.values():
        return found  # ours are as they are meant, and need not be built for this
    parts, batch = _tried(config, model(config))
    outputs = trial.network(parts, batch).outputs if own else None
    found += trial.remarks(parts, outputs, losses.get(config.loss))
    return found + trial.ones(parts, sizes, config.batch_size, _joint(config))


def _remarks_on_averages(config: RunConfig) -> list[str]:
    """Whether SplitAvg over clients and samples gives the clients nothing to learn from, in a sentence."""
    if config.splitavg_over == "clients" or methods.get(config.method).cut_gradient is not splitavg.average:
        return []
    rounds = (plan(config, 1), plan(config, config.num_server_rounds))
    if not any(splitavg.num_active(each.phi, len(each.clients)) == len(each.clients) for each in rounds):
        return []  # with fewer active it is the others' sum that they get, see docs/convergence.md
    network = model(config.replace(autocast="none"))
    if not vanishing.mean_vanishes(network.server_segment(), network.smashed_shape()):
        return []
    return [
        "run-config key splitavg-over = 'clients-and-samples': with all clients active and batch norm where the server "
        "segment begins, the mean cut gradient is zero whatever the loss, so the clients learn nothing: it should be "
        "clients, or splitavg-phi smaller (docs/convergence.md)"
    ]


def _check_loss(config: RunConfig) -> None:
    """Try the loss on two samples of the first client, in the whole network of a client."""
    (share,) = client_data(config, [0]).values()
    batch = share.take(torch.arange(min(2, len(share))))
    network = model(config).whole(0).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = network(to_inputs(batch.inputs, dtype(config)))
    if wrong := losses.refusal(losses.get(config.loss), outputs, to_targets(batch.targets, dtype(config))):
        hint = trial.of_numbers(targets(config), losses.get(config.loss))
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
        device(config.server_device)
    if config.partition == "own" and methods.get(config.method).pooled:
        raise UserError(
            f"run-config key partition = 'own': method {config.method} needs the data of all clients in one place"
        )
    check_parts(config)
    datasets.ensure_present(config.dataset, config.data_dir, data_of(config)[-1])
    if config.resume and has_data(config):
        pin_data(config)
    network = model(config)
    _check_task(config, network)
    _check_private(config, network.server_segment())
    if config.dp_noise:
        accounting.check()
    if config.partition == "own" and own_data and config.evaluate == "server":
        if config.dataset == "folder" and not config.data_dir:
            raise UserError(
                "run-config key evaluate = 'server': with dataset 'folder' and partition 'own' it needs data-dir, a "
                "folder with images on the server; evaluate = 'client' scores each client on its own node's"
            )
        evaluation_images(config)
    if config.partition != "own" or not own_data:
        shares = client_data(config, clients(config))
        check_batches_of_one(config, {client: len(share) for client, share in shares.items()})
        _check_loss(config)


@torch.no_grad()
def _check_task(config: RunConfig, network: SplitModel) -> None:
    """Refuse settings that are not for such data, and a network, loss or score that does not fit its targets."""
    kind, read, source = targets(config), network.inputs, config.dataset
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
    measured = scoring(config)
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


def evaluation_images(config: RunConfig) -> dict[str, Samples]:
    """The validation and test samples that an evaluation scores: the same ones in every round, for every client."""
    whole = splits(config)
    return {
        split: subset(samples, config.evaluate_samples, config.seed)
        for split, samples in (("validation", whole.validation), ("test", whole.test))
    }
