"""Checkpoints: written atomically, verified when read, safetensors and JSON only.

``checkpoints/round-NNNN/`` holds ``server.safetensors`` (server segment and optimizer), with methods that average or
hand on client segments ``shared.safetensors`` (the one that all clients have), a file per client in ``clients/`` (its
segment and optimizer, where they are the server's to have) and ``state.json``: the round, the history so far, and the
SHA-256 of every file. There is no RNG state: every draw follows from the seed and its name
(`sglr_flower.seeds`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")
KEPT = 3
"""Checkpoints kept, if not said otherwise: the last one and two before it, in case the last is damaged."""


class LazyStates(Mapping[int, dict[str, Tensor]]):
    """Clients' states, each fetched when it is asked for: those of ten thousand clients need not be in memory together.

    Parameters
    ----------
    clients : Iterable[int]
        Whose.
    load : Callable[[int], dict[str, Tensor]]
        Fetches one.
    """

    def __init__(self, clients: Iterable[int], load: Callable[[int], dict[str, Tensor]]) -> None:
        self._clients = dict.fromkeys(sorted(clients))
        self._load = load

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        if client not in self._clients:
            raise KeyError(client)
        return self._load(client)

    def __contains__(self, client: object) -> bool:
        return client in self._clients

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes
    ----------
    folder : Path
        ``checkpoints/round-NNNN``.
    server_round : int
        The last round that is in it.
    history : dict[str, Any]
        What the run had recorded until then (JSON).
    versions : dict[int, int]
        Client -> the last round that it had trained in, 0 if none, of those that did not in ``server_round``: they were
        not drawn, or their node had left (see `sglr_flower.flower.roster`).
    carried : dict[int, int]
        Client -> the round that its state in this checkpoint is from, of clients that could not be reached for it.
    """

    folder: Path
    server_round: int
    history: dict[str, Any]
    versions: dict[int, int] = field(default_factory=dict)
    carried: dict[int, int] = field(default_factory=dict)

    def server_state(self) -> dict[str, Tensor]:
        """The server segment's and its optimizer's tensors."""
        return safetensors.torch.load_file(self.folder / "server.safetensors")

    def shared_weights(self) -> dict[str, Tensor] | None:
        """The client segment that all clients have, ``state_dict`` names; None where each has its own."""
        path = self.folder / "shared.safetensors"
        return safetensors.torch.load_file(path) if path.exists() else None

    def client_states(self, clients: Iterable[int]) -> LazyStates:
        """The tensors of those of ``clients`` that have some here: they have trained, and the server may have them."""
        here = [client for client in clients if client_file(self.folder, client).exists()]
        return LazyStates(here, functools.partial(load_client, self.folder))

    def state_versions(self, clients: Iterable[int]) -> dict[int, int]:
        """Client -> the round that its state in this checkpoint is from; 0: it has not trained yet."""
        newest = {client: self.versions.get(client, self.server_round) for client in clients}
        return {client: self.carried.get(client, version) for client, version in newest.items()}


def _sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def client_file(folder: Path, client: int) -> Path:
    """Where a client's state lies in a checkpoint folder."""
    return folder / "clients" / f"client-{client:05d}.safetensors"


def save_sealed(path: Path, state: Mapping[str, Tensor], *, durable: bool = True) -> None:
    """Write a client's state with the SHA-256 of its tensors in it, so that a damaged file is known by itself.

    ``durable`` as in `write_atomic`; without it there is no seal either: it is for what is not read after a machine's
    crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _pack(state, sealed=durable), durable=durable)
    if durable:
        _sync_folder(path.parent)
        _sync_folder(path.parent.parent)


def load_client(folder: Path, client: int) -> dict[str, Tensor]:
    """Read one client's state from a checkpoint folder.

    Raises
    ------
    UserError
        If the file is missing or damaged; the sentence names it.
    """
    return load_state(client_file(folder, client))


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a file of one client's state.

    Raises
    ------
    UserError
        If it is missing or damaged; the sentence names it.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            seal = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint file {path} cannot be read: {error}") from None
    if seal is not None and seal != _seal(state):
        raise UserError(f"checkpoint file {path} does not have the SHA-256 it was written with")
    return state


def save(
    checkpoints: Path,
    server_round: int,
    server_state: Mapping[str, Tensor],
    client_states: Mapping[int, Mapping[str, Tensor]],
    history: Mapping[str, Any],
    shared: Mapping[str, Tensor] | None = None,
    versions: Mapping[int, int] | None = None,
    carried: Mapping[int, int] | None = None,
    kept: int = KEPT,
) -> Path:
    """Write a whole checkpoint into a hidden folder, make it one by a rename, and drop the oldest.

    ``client_states`` has those that have trained, and is empty where the nodes keep their clients' states themselves;
    ``shared`` is the client segment of all clients, where they have the same; ``versions`` and ``carried`` as in
    `Checkpoint`; so many checkpoints are ``kept``, all if 0.
    """
    partial = checkpoints / f".round-{server_round:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "clients").mkdir(parents=True)
    files: dict[str, str] = {}

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        content = _pack(tensors)
        write_atomic(path, content)
        files[str(path.relative_to(partial))] = hashlib.sha256(content).hexdigest()

    for client, tensors in client_states.items():
        write(client_file(partial, client), tensors)
    write(partial / "server.safetensors", server_state)
    if shared is not None:
        write(partial / "shared.safetensors", shared)
    _sync_folder(partial / "clients")
    state = {
        "round": server_round,
        "files": files,
        "history": history,
        "versions": {str(client): version for client, version in (versions or {}).items()},
        "carried": {str(client): version for client, version in (carried or {}).items()},
    }
    # A hash of itself too: a figure changed by a flipped bit would still be JSON.
    written = {"sha256": _state_hash(state), "state": state}
    write_atomic(partial / "state.json", json.dumps(written).encode())
    folder = checkpoints / f"round-{server_round:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    _sync_folder(partial)
    partial.rename(folder)
    _sync_folder(checkpoints)
    for old in _rounds(checkpoints)[kept:] if kept else []:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def discard_unfinished(checkpoints: Path) -> None:
    """Remove what a write that failed has left: on a full disk it takes the room of what is still to be said."""
    for partial in checkpoints.glob(".round-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def rounds(checkpoints: Path) -> list[int]:
    """The rounds of the checkpoints in a folder, newest first."""
    return [int(folder.name.removeprefix("round-")) for folder in _rounds(checkpoints)]


def latest(checkpoints: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over.

    Returns
    -------
    Checkpoint | None
        None if there is not any.

    Raises
    ------
    UserError
        If all there are are damaged.
    """
    folders = _rounds(checkpoints)
    damage = ""
    for folder in folders:
        try:
            return _verify(folder)
        except (OSError, ValueError) as error:
            damage = f"{folder} is damaged ({error})"
            log.warning("checkpoint %s; the one before is used", damage)
    if folders:
        raise UserError(f"no checkpoint to resume from: {damage}, and no whole one is before it")
    return None


def whole(checkpoints: Path) -> list[Checkpoint]:
    """All checkpoints of a folder that are whole, oldest first; damaged ones are named in the log and left out."""
    found = []
    for folder in reversed(_rounds(checkpoints)):
        try:
            found.append(_verify(folder))
        except (OSError, ValueError) as error:
            log.warning("checkpoint %s is damaged (%s) and left out", folder, error)
    return found


def _verify(folder: Path) -> Checkpoint:
    try:
        written = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = written["state"]
        whole = written["sha256"] == _state_hash(state)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError("state.json is not what was written")
    for name, expected in state["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(path) != expected:
            raise ValueError(f"{name} does not have the SHA-256 it was written with")
    behind, carried = (
        {int(client): version for client, version in state.get(name, {}).items()} for name in ("versions", "carried")
    )
    return Checkpoint(folder, state["round"], state["history"], behind, carried)


def _state_hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def packable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors as safetensors takes them: on the CPU, contiguous, none in the memory of another one.

    A weight that a network uses in two places has two names, and is there twice.
    """
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        tensors[name] = own
    return tensors


def _pack(state: Mapping[str, Tensor], *, sealed: bool = False) -> bytes:
    tensors = packable(state)
    content: bytes = safetensors.torch.save(tensors, {"sha256": _seal(tensors)} if sealed else None)
    return content


def _seal(state: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(dict(state))).hexdigest()


def _rounds(checkpoints: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    folders = [folder for folder in checkpoints.glob("round-*") if folder.name.removeprefix("round-").isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("round-")), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
