"""From a run-config to the objects of the engine: the one place where settings become models, data and cohorts."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sglr_flower.data import by, datasets, folder, partition, pinned
from sglr_flower.data.augment import augment
from sglr_flower.data.inputs import Inputs
from sglr_flower.data.levels import AUTO
from sglr_flower.data.options import Options
from sglr_flower.data.samples import Samples, Share
from sglr_flower.data.source import Source, subset
from sglr_flower.data.targets import Kind
from sglr_flower.errors import UserError
from sglr_flower.models import SplitModel
from sglr_flower.models.uncut import UncutModel
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_gpus
from sglr_flower.split import codecs, defences, methods, optimizer_classes, score, splitavg, splitlr
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
    return is_folder and (folder.root(config.data_dir) / "train").is_dir()


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


def take_changed_data(config: RunConfig) -> None:
    """Go on with the data that are there now, instead of those that the run began with; of the server's alone.

    Raises
    ------
    UserError
        They are of other classes, a part would be left without any, or they cannot be read.
    """
    if has_data(config):
        datasets.take_changed(*data_of(config))
        _shares.cache_clear()


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
    kind = PrivateServer if is_private(config) else methods.get(config.method).makes_server or ServerSegment
    segment, place = model(config).server_segment(), device(config.server_device)
    check_private(config, segment)
    return kind(segment, server_optimizer(config), place, _memory_format(config, place))


def is_private(config: RunConfig) -> bool:
    """Whether the server segment's steps are noised."""
    return config.dp_noise > 0 and config.dp_protects == "updates"


def check_private(config: RunConfig, segment: torch.nn.Module) -> None:
    """Refuse a server segment of which the privacy that is asked for would not be true."""
    if is_private(config) and (wrong := refusal(segment)):
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


def evaluation_images(config: RunConfig) -> dict[str, Samples]:
    """The validation and test samples that an evaluation scores: the same ones in every round, for every client."""
    whole = splits(config)
    return {
        split: subset(samples, config.evaluate_samples, config.seed)
        for split, samples in (("validation", whole.validation), ("test", whole.test))
    }
