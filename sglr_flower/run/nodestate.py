"""What a node keeps of its clients between two messages: their states, one version per round.

Any process may get a node's next message, so nothing can be kept in memory. A node keeps its clients' states in files:
a device on its own disk, where they outlive its SuperNode and the device's restart, a simulated node in the run's
folder, where only the clients of a round are read and written. Version ``R`` of a client is its segment and optimizer
after round ``R``. The server names the version that each client starts from (its *base*): the last round that it has
trained in, as the server counts. Versions after it are of rounds that do not count.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sglr_flower.errors import UserError
from sglr_flower.exchange.wire import ExchangeError
from sglr_flower.files import write_atomic
from sglr_flower.run import checkpoint
from sglr_flower.run.checkpoint import LazyStates
from sglr_flower.run.config import RunConfig

log = logging.getLogger("flwr.sglr")

State = Mapping[str, Tensor]


class NodeStates:
    """The states of a node's clients, in a folder of its own for each run.

    Parameters
    ----------
    folder : Path
        ``client-NNNNN/round-RRRR.safetensors`` is client NNNNN after round RRRR.
    key : str
        What a user sets to have them elsewhere, for the sentence that says that they cannot be written.
    durable : bool
        Whether they outlive a machine that loses its power: a device's do, and those that are a run's only checkpoint.
    """

    def __init__(self, folder: Path, *, key: str = "node-config key state-dir", durable: bool = True) -> None:
        self._folder, self._key, self._durable = folder, key, durable

    def at(self, bases: Mapping[int, int]) -> dict[int, dict[str, Tensor]]:
        """Client -> its newest state that is not newer than its base; without clients that have none.

        A file that is not what was written is named in the log, and the version before is used.
        """
        found = {}
        for client, base in bases.items():
            for version in (version for version in self.versions(client) if version <= base):
                try:
                    found[client] = checkpoint.load_state(self._file(version, client))
                except UserError as error:
                    log.warning("client %d: %s; the version before is used", client, error)
                    continue
                break
        return found

    def later(self, bases: Mapping[int, int]) -> LazyStates:
        """Client -> its newest state that is not newer than its base, read when it is asked for; as `at`."""
        here = [client for client, base in bases.items() if any(version <= base for version in self.versions(client))]

        def load(client: int) -> dict[str, Tensor]:
            found = self.at({client: bases[client]})
            if client not in found:
                raise UserError(f"{self._folder / _name(client)} has no state that can be read")
            return found[client]

        return LazyStates(here, load)

    def commit(
        self, server_round: int, states: Mapping[int, State], bases: Mapping[int, int], checkpoints: Sequence[int]
    ) -> None:
        """Keep the states after a round; each file is written whole or not at all.

        Parameters
        ----------
        server_round : int
            The round.
        states : Mapping[int, State]
            Client -> its state after it.
        bases : Mapping[int, int]
            Client -> the version that the round began with, which stays as the round may be trained again.
        checkpoints : Sequence[int]
            The rounds of which the server has checkpoints without these states; what was newest then stays too.

        Raises
        ------
        UserError
            If the folder cannot be written.
        """
        try:
            for client, state in states.items():
                checkpoint.save_sealed(self._file(server_round, client), state, durable=self._durable)
                self._prune(client, server_round, bases[client], checkpoints)
        except OSError as error:
            raise self._unwritable(error) from None

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
            write_atomic(file, str(session).encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def go_back(self, versions: Mapping[int, int]) -> dict[int, int]:
        """Drop what is newer than client -> version; client -> its newest version then, 0 where there is none."""
        for client, newest in versions.items():
            for version in self.versions(client):
                if version > newest:
                    self._file(version, client).unlink(missing_ok=True)
        return {client: max(self.versions(client), default=0) for client in versions}

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def versions(self, client: int) -> list[int]:
        """The rounds after which this client's state was kept, newest first."""
        files = (self._folder / _name(client)).glob("round-*.safetensors")
        names = (file.stem.removeprefix("round-") for file in files)
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _prune(self, client: int, newest: int, base: int, checkpoints: Sequence[int]) -> None:
        """Keep the newest version, its base, and what was newest at each checkpoint; of versions that count."""
        counted = [version for version in self.versions(client) if version <= base]
        needed = {newest} | {max((v for v in counted if v <= point), default=0) for point in (base, *checkpoints)}
        for version in self.versions(client):
            if version not in needed:
                self._file(version, client).unlink(missing_ok=True)

    def _file(self, server_round: int, client: int) -> Path:
        return self._folder / _name(client) / f"round-{server_round:04d}.safetensors"

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._key}: {self._folder} cannot be written: {error.strerror or error}")


def simulated_states(config: RunConfig) -> NodeStates:
    """Where all nodes of a simulation keep their clients' states: in the run's folder.

    With client-side evaluation they are the run's only checkpoint of its clients.
    """
    folder = Path(config.run_dir) / "nodes"
    return NodeStates(folder, key="run-config key run-dir", durable=config.evaluate == "client")


def _name(client: int) -> str:
    return f"client-{client:05d}"
