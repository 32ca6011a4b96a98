"""The result of a run: each client's network as a `torch.nn.Sequential`, from the newest whole checkpoint."""

from __future__ import annotations

import copy
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sglr_flower import imports, models
from sglr_flower.data import datasets, tables
from sglr_flower.data.download import DATA_DIR_VARIABLE
from sglr_flower.data.inputs import of_one_channel, to_input
from sglr_flower.data.options import Options
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checkpoint
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History
from sglr_flower.run.nodestate import simulated_states
from sglr_flower.run.rundir import RunDirectory, read_json
from sglr_flower.split import averaging
from sglr_flower.split.coding import Wire
from sglr_flower.split.optimizers import segment_weights

_BATCH = 500
"""Images in one forward: ResNet16 then needs some 100 MB, whatever the number of images."""


@dataclass(frozen=True)
class Trained:
    """What a run has trained; made by `load`.

    Attributes
    ----------
    run_dir : Path
        The run; absolute.
    config : RunConfig
        Its settings, with the ``data-dir`` of now.
    server_round : int
        The last round that these weights have seen.
    history : History
        What the run had recorded until then.
    clients : tuple[int, ...]
        The clients that have a network, ascending.
    same : bool
        Whether the method leaves all clients with one and the same network.
    classes : tuple[str, ...]
        Name of each class, by class number.
    channels : int
        Of the stored images: 1 for grey, else 3.
    image_size : int
        Their height and width in pixels.
    """

    run_dir: Path
    config: RunConfig
    server_round: int
    history: History
    clients: tuple[int, ...]
    same: bool
    classes: tuple[str, ...]
    channels: int
    image_size: int
    _folder: Path
    _states: Mapping[int, dict[str, Tensor]]
    _shared: Mapping[str, Tensor] | None
    _client_segment: nn.Sequential
    _server_segment: nn.Sequential

    @property
    def options(self) -> Options:
        """How its image files are read."""
        return assembly.data_of(self.config)[-1]

    def network(self, client: int) -> nn.Sequential:
        """A client's segment and the server segment as one unsplit network.

        Parameters
        ----------
        client : int
            One of `clients`.

        Returns
        -------
        nn.Sequential
            The caller's own, in eval mode on the CPU; its stages have the names of ``SplitModel.whole()``. Where
            clients clip smashed data, or these travel by a codec, there are stages at the cut that do the same to them.
            Its input is that of `inputs.to_input`, (n, 3 or 1, h, w) in the run's dtype; its output logits, (n,
            classes).

        Raises
        ------
        UserError
            If the run has no such client, or the client's file is damaged.
        """
        segment, server = self.client_segment(client), copy.deepcopy(self._server_segment)
        # What clients clip is part of the function that was trained; their noise protects what travels, and is none.
        between: list[tuple[str, nn.Module]] = []
        defence = assembly.defence(self.config)
        if defence is not None and (stage := defence.stage()):
            between.append(stage)
        up, _ = assembly.wire_codecs(self.config)
        if not up.off:
            between.append(("wire", Wire(up)))
        stages = [*_stages(segment), *between, *_stages(server)]
        if len({name for name, _ in stages}) < len(stages):
            raise UserError(
                f"run-config key model = {self.config.model!r}: a stage of it is named as the clipping or the codec at "
                "the cut, smashed_clip, defence or wire, so that the two cannot be one network"
            )
        return nn.Sequential(OrderedDict(stages)).eval()

    def client_segment(self, client: int) -> nn.Sequential:
        """A client's segment by itself: what turns its images into smashed data.

        Parameters, returns and raises as `network`, of which it is the stages up to the cut; the whole of it where the
        method does not cut.
        """
        self.check_client(client)
        segment = copy.deepcopy(self._client_segment)
        weights = self._shared
        if weights is None and client in self._states:
            weights = segment_weights(self._states[client])
        if weights is None:  # it has not trained yet
            segment = assembly.model(self.config, len(self.classes)).client_segment(client)
        else:
            _load_weights(segment, weights, self._folder, self.config.model)
        return segment.eval()

    @torch.inference_mode()
    def logits(self, client: int, images: Tensor) -> Tensor:
        """Logits of a client's network, computed on the GPU if there is one.

        Parameters
        ----------
        client : int
            One of `clients`.
        images : Tensor
            uint8 (n, 1 or 3, h, w), of the run's image size.

        Returns
        -------
        Tensor
            (n, classes) in the run's dtype, on the CPU.
        """
        device, dtype = assembly.device(), assembly.dtype(self.config)
        if self.config.channels == 1:
            images = of_one_channel(images)
        network = self.network(client).to(device)
        chunks = [network(to_input(chunk.to(device), dtype)).cpu() for chunk in images.split(_BATCH)]
        return torch.cat(chunks)

    def check_client(self, client: int) -> None:
        """Find out whether the run has a client.

        Raises
        ------
        UserError
            If not; the sentence says which it has.
        """
        if client not in self.clients:
            first, last = self.clients[0], self.clients[-1]
            known = f"{first} to {last}" if last - first + 1 == len(self.clients) else ", ".join(map(str, self.clients))
            raise UserError(f"--client {client}: the run in {self.run_dir} has no such client, it has {known}")

    def best_client(self) -> int:
        """The client with the best validation score in the run's history, the first on a tie; else the first."""
        sign = 1 if self.history.score.higher_is_better else -1
        best = {client: best.validation_score for client, best in self.history.best.items()}
        scored = {client: sign * score for client, score in best.items() if score is not None}
        return max(self.clients, key=lambda client: (scored.get(client, -math.inf), -client))


def load(run_dir: Path, data_dir: Path | None = None) -> Trained:
    """Read what a run has trained from its newest whole checkpoint.

    Parameters
    ----------
    run_dir : Path
        A run directory; the run may be unfinished, or still training.
    data_dir : Path | None
        Where the run's data are now; None: the run's ``data-dir`` if that is still there, else as for a new run.

    Raises
    ------
    UserError
        If this is no run, if it has no checkpoint yet, or if its clients' segments are not here.
    """
    directory = RunDirectory(run_dir.expanduser().absolute())
    config = with_data_dir(directory.read_config().replace(cache=0), data_dir)  # no image is read twice here
    newest = directory.latest_checkpoint()
    if newest is None:
        raise UserError(f"the run in {directory.path} has no checkpoint: train at least checkpoint-every rounds first")
    clients = tuple(assembly.clients(config))
    shared = newest.shared_weights()
    states = client_states(directory.path, newest, config) if shared is None else {}
    classes = _classes(directory.path, config)
    channels, size = datasets.channels(*assembly.data_of(config)), datasets.inputs(*assembly.data_of(config)).image_size
    if not classes or not channels or not size:
        raise UserError(
            f"{directory.path}: what is done with a trained network here is for square images of classes, and dataset "
            f"{config.dataset!r} has others"
        )
    model = assembly.model(config, len(classes))
    server_segment = model.server_segment()
    _load_weights(server_segment, segment_weights(newest.server_state()), newest.folder, config.model)
    return Trained(
        run_dir=directory.path,
        config=config,
        server_round=newest.server_round,
        history=History.from_json(newest.history),
        clients=clients,
        same=shared is not None,
        classes=classes,
        channels=channels,
        image_size=size,
        _folder=newest.folder,
        _states=states,
        _shared=shared,
        _client_segment=model.client_segment(0),  # its weights are overwritten, the shapes are every client's
        _server_segment=server_segment,
    )


def with_data_dir(config: RunConfig, data_dir: Path | None) -> RunConfig:
    """A run's settings with the ``data-dir`` of now: the one given, or the run's if it is still there."""
    if data_dir is not None:
        return config.replace(data_dir=str(data_dir.expanduser().absolute()))
    if config.data_dir and not Path(config.data_dir).is_dir():  # the run came from another machine
        return config.replace(data_dir=os.environ.get(DATA_DIR_VARIABLE, ""))
    return config


def _classes(run_dir: Path, config: RunConfig) -> tuple[str, ...]:
    """The class names as they were when the run began; a folder of images may have changed, or not be here."""
    names = read_json(run_dir / "partition.json").get("classes") or ()
    if names and not imports.is_path(config.dataset) and config.dataset not in tables.NAMES:
        return tuple(names)
    kind = datasets.targets(*assembly.data_of(config))
    return tuple(names or kind.names) if isinstance(kind, Classes) else ()


def client_states(run_dir: Path, newest: checkpoint.Checkpoint, config: RunConfig) -> Mapping[int, dict[str, Tensor]]:
    """The states of the clients that have trained: the checkpoint's own, or those that a simulation's nodes kept.

    Raises
    ------
    UserError
        If they are on their nodes.
    """
    clients = assembly.clients(config)
    own = newest.client_states(clients)
    if own or config.evaluate == "server":
        return own
    trained = newest.state_versions(clients)
    states = simulated_states(config.replace(run_dir=str(run_dir))).later(trained)
    if states.keys() != {client for client, version in trained.items() if version}:
        raise UserError(
            f"{newest.folder} does not hold the {len(clients)} clients' segments: with evaluate = 'client' they stay "
            "on their nodes, and a client's network can be had only where a simulation kept them in its run directory"
        )
    return states


def _load_weights(segment: nn.Sequential, weights: Mapping[str, Tensor], folder: Path, model: str) -> None:
    try:
        averaging.load(segment, weights)
    except (RuntimeError, KeyError) as error:  # torch names the tensors that differ, over several lines
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {folder} does not fit model = {model!r}: {reason}") from None


def _stages(segment: nn.Sequential) -> list[tuple[str, nn.Module]]:
    return list(zip(models.stage_names(segment), segment, strict=True))


def softmax(logits: Tensor) -> Tensor:
    """Probabilities float64 (n, classes) of logits."""
    return torch.softmax(logits.double(), dim=1)
