"""What a node keeps of its clients between two messages: their states, one version per round.

Any process may get a node's next message, so nothing can be kept in memory. A simulated node keeps its clients' states
in Flower's ``context.state``. A device keeps them on its own disk, where they outlive its SuperNode and the device's
restart: version ``R`` of a client is its segment and optimizer after round ``R``. The server names the version that a
round starts from (*base*); newer ones are of rounds that it does not count.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import safetensors.torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from sglr_flower import checkpoint
from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError

log = logging.getLogger("flwr.sglr")

State = Mapping[str, Tensor]
STATES = "states"
_EARLIER = "states-before"
_STEP = "states-of-step"


class NodeStates(Protocol):
    """Where a node keeps its clients' states."""

    def at(self, base: int) -> dict[int, dict[str, Tensor]]:
        """Client -> its newest state that is not newer than round ``base``; without clients that have none."""

    def commit(self, server_round: int, states: Mapping[int, State], base: int, checkpoints: Sequence[int]) -> None:
        """Keep the states after a round.

        ``base`` is the version that the round began with, which stays as the round may be trained again; so do the
        versions of the rounds ``checkpoints``, of which the server has checkpoints.
        """


class ContextStates:
    """The states of a simulated node, in its ``context.state``.

    Parameters
    ----------
    records : RecordDict
        ``context.state``.
    tolerant : bool
        Whether a round may be trained again or be left half done. If not, the newest version is enough: Flower moves
        the whole context with every message.
    """

    def __init__(self, records: RecordDict, *, tolerant: bool) -> None:
        self._records, self._tolerant = records, tolerant

    def at(self, base: int) -> dict[int, dict[str, Tensor]]:
        """See `NodeStates`; all clients of a version have its number."""
        key = self._newest(base)
        return {} if key is None else unpack_states(self._records, key)

    def commit(self, server_round: int, states: Mapping[int, State], base: int, checkpoints: Sequence[int]) -> None:
        """See `NodeStates`; a simulated node keeps no more than it needs to train a round again."""
        # Not simply the newest: that may be of a round which the server does not count.
        if self._tolerant and (begun := self._newest(base)) is not None and self._version(begun) < server_round:
            self._records[_EARLIER] = self._records.config_records[begun]
        packed = pack_states(states)
        packed["round"] = server_round
        self._records[STATES] = packed

    def _newest(self, base: int) -> str | None:
        for key in (STATES, _EARLIER):
            if key in self._records.config_records and (not self._tolerant or self._version(key) <= base):
                return key
        return None

    def _version(self, key: str) -> int:
        version = self._records.config_records[key]["round"]
        assert isinstance(version, int)
        return version


class FolderStates:
    """The states of a device's clients, in a folder of its own for each run.

    Parameters
    ----------
    folder : Path
        ``round-NNNN/clients/client-NNNNN.safetensors`` is client NNNNN after round NNNN.
    clients : Sequence[int]
        The clients that this node hosts.
    """

    def __init__(self, folder: Path, clients: Sequence[int]) -> None:
        self._folder, self._clients = folder, tuple(clients)

    def at(self, base: int) -> dict[int, dict[str, Tensor]]:
        """See `NodeStates`; a file that is not what was written is named in the log, and the version before is used."""
        found = {}
        for client in self._clients:
            for version in (version for version in self._versions(client) if version <= base):
                try:
                    found[client] = checkpoint.load_client(self._round(version), client)
                except UserError as error:
                    log.warning("client %d: %s; the version before is used", client, error)
                    continue
                break
        return found

    def commit(self, server_round: int, states: Mapping[int, State], base: int, checkpoints: Sequence[int]) -> None:
        """See `NodeStates`; each file is written whole or not at all, and reaches the disk before this returns.

        Raises
        ------
        UserError
            If the folder cannot be written.
        """
        try:
            checkpoint.save_clients(self._round(server_round), states)
            for client in states:
                self._prune(client, [base, *checkpoints])
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"node-config key state-dir: {self._folder} cannot be written: {reason}") from None

    def enter(self, session: int) -> None:
        """Note that a session of the run, newer than all before it, uses these states.

        Raises
        ------
        ExchangeError
            If a newer one does: what an older one still asks for would undo its rounds.
        """
        file = self._folder / "session"
        try:
            if file.exists() and int(file.read_text(encoding="utf-8")) > session:
                raise ExchangeError("the assignment is of an earlier session of this run")
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            checkpoint.write_atomic(file, str(session).encode())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"node-config key state-dir: {self._folder} cannot be written: {reason}") from None

    def go_back(self, versions: Mapping[int, int]) -> dict[int, int]:
        """Drop what is newer than client -> version; client -> its newest version then, 0 where there is none."""
        for client, newest in versions.items():
            for version in self._versions(client):
                if version > newest:
                    self._file(version, client).unlink()
        return {client: max(self._versions(client), default=0) for client in versions}

    def _prune(self, client: int, points: Collection[int]) -> None:
        """Keep the newest version, and those that were the newest after the rounds ``points``."""
        versions = self._versions(client)
        needed = set(versions[:1]) | {max((v for v in versions if v <= point), default=0) for point in points}
        for version in versions:
            if version not in needed:
                self._file(version, client).unlink()
        for folder in self._folder.glob("round-*/clients"):
            with contextlib.suppress(OSError):  # it is not empty, or another node of this machine was faster
                folder.rmdir()
                folder.parent.rmdir()

    def _versions(self, client: int) -> list[int]:
        """The rounds after which this client's state was kept, newest first."""
        files = self._folder.glob(f"round-*/clients/{checkpoint.client_file(Path(), client).name}")
        names = (file.parent.parent.name.removeprefix("round-") for file in files)
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _round(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:04d}"

    def _file(self, server_round: int, client: int) -> Path:
        return checkpoint.client_file(self._round(server_round), client)


def keep_step(records: RecordDict, states: Mapping[int, State], attempt: int, *, tolerant: bool) -> None:
    """Keep the states in the middle of a round, where every step is a message (the grid exchange)."""
    packed = pack_states(states)
    packed["attempt"] = attempt
    records[_STEP] = packed
    if not tolerant:
        records.pop(STATES, None)  # nobody will go back to them


def step_states(records: RecordDict, attempt: int) -> dict[int, dict[str, Tensor]]:
    """What `keep_step` kept last in this attempt of a round; empty if nothing."""
    if _STEP not in records.config_records or records.config_records[_STEP]["attempt"] != attempt:
        return {}
    return unpack_states(records, _STEP)


def drop_step(records: RecordDict) -> None:
    """Forget what `keep_step` kept: the round is over, or begins again."""
    records.pop(_STEP, None)


def pack_states(states: Mapping[int, State]) -> ConfigRecord:
    """Clients' states as one safetensors blob, its tensors named CLIENT.NAME."""
    tensors = {
        f"{client}.{name}": tensor.detach().cpu().contiguous()
        for client, state in states.items()
        for name, tensor in state.items()
    }
    packed: bytes = safetensors.torch.save(tensors)
    return ConfigRecord({"tensors": packed})


def unpack_states(content: RecordDict, key: str = STATES) -> dict[int, dict[str, Tensor]]:
    """Clients' states from a message's content or a context's state."""
    packed = content.config_records[key]["tensors"]
    assert isinstance(packed, bytes)
    grouped: dict[int, dict[str, Tensor]] = {}
    for name, tensor in safetensors.torch.load(packed).items():
        client, rest = name.split(".", 1)
        grouped.setdefault(int(client), {})[rest] = tensor
    return dict(sorted(grouped.items()))
