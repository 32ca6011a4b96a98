"""The nodes of a simulation on one machine without GPUs as forked processes, in place of Ray's actors.

Flower's simulation hands each message for a node to a *backend*, a pool of processes that run ClientApps; its own is
Ray's. Ray starts six processes of its own, and each actor imports everything anew; these are forks of the warm
interpreter (`sglr_flower.federation.warm`) that the simulation is a fork of as well. GPUs and clusters are Ray's to
share out.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import socket
import sys
import threading
import traceback
import types
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Any

import cloudpickle

from sglr_flower.federation import warm
from sglr_flower.federation.internals import RAY_BACKEND, client_exceptions
from sglr_flower.run import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


def simulation() -> None:
    """Be ``flwr-simulation``, with forked nodes where they will do."""
    chooser = types.ModuleType(RAY_BACKEND)
    chooser.RayBackend = _backend  # type: ignore[attr-defined]
    sys.modules[RAY_BACKEND] = chooser
    warm.command("flwr-simulation")()


def _backend(config: Mapping[str, Mapping[str, Any]]) -> Any:
    """Ray's backend for a node with a share of a GPU or a user's own cluster, else forked processes.

    Parameters
    ----------
    config : mapping of str to mapping
        Flower's: ``client_resources`` with the CPUs and GPUs of a node, ``init_args`` with those of the machine.
    """
    of_node = config["client_resources"]
    if of_node.get("num_gpus") or os.environ.get("RAY_ADDRESS"):
        del sys.modules[RAY_BACKEND]
        return importlib.import_module(RAY_BACKEND).RayBackend(config)
    cpus = int(of_node["num_cpus"])
    return ForkedBackend(cpus, int(config["init_args"].get("num_cpus", machine.available_cpus())) // cpus)


class ForkedBackend:
    """A backend, as Flower's class ``Backend`` describes them, whose workers are forked processes.

    Parameters
    ----------
    cpus : int
        CPUs of a node.
    workers : int
        Nodes that handle a message at the same time, each in a process that any of them may get.
    """

    def __init__(self, cpus: int, workers: int) -> None:
        self._place = machine.Place(cpus, workers)
        self._app = b""
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._reader, self._output = os.pipe()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Fork the workers."""
        self._app = cloudpickle.dumps(app_fn())
        threading.Thread(target=_show, args=(os.fdopen(self._reader),), daemon=True).start()
        for _ in range(self.num_workers):
            self._idle.put(self._fork())

    @property
    def num_workers(self) -> int:
        """Messages that are handled at the same time."""
        return self._place.at_once

    def is_worker_idle(self) -> bool:
        """Whether a worker waits for a message."""
        return not self._idle.empty()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Have a worker run the ClientApp: its reply, and the node's context after it.

        Raises
        ------
        ClientAppException, LoadClientAppError
            As the ClientApp did.
        RuntimeError
            If the worker has ended meanwhile; another takes its place.
        """
        worker = self._idle.get()
        try:
            worker.send((message, context))
            answer = worker.recv()
        except (OSError, EOFError):
            worker.close()
            worker = self._fork()
            raise RuntimeError("the process of a simulated node was killed") from None
        finally:
            self._idle.put(worker)
        if isinstance(answer, Exception):
            raise answer
        reply, after = answer
        return reply, after

    def terminate(self) -> None:
        """End the workers, which they do once their connection is closed."""
        while not self._idle.empty():
            self._idle.get().close()
        os.close(self._output)

    def _fork(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            nothing = os.open(os.devnull, os.O_RDONLY)
            warm.fork([f"{__name__}:node"], [nothing, self._output, self._output, theirs.fileno()])
            os.close(nothing)
        connection = Connection(ours.detach())
        connection.send((self._place, sys.path, self._app))
        return connection


def node() -> None:
    """Be a worker: for each message of a node and its context, the reply and the context after it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as with Ray, who has no GPU set aside sees none
    link = Connection(int(sys.argv[1]))
    place, sys.path[:], packed = link.recv()
    machine.take_place(place)
    app: ClientApp = pickle.loads(packed)  # from the process that has asked for this one, over their own socket
    raised, not_loaded = client_exceptions()
    while True:
        try:
            message, context = link.recv()
        except EOFError:
            sys.stdout.flush()
            os._exit(0)  # torch would take half a second to end in good order
        answer: tuple[Message, Context] | Exception
        try:
            answer = app(message=message, context=context), context
        except not_loaded as error:
            answer = error
        except Exception as error:
            traceback.print_exc()
            answer = raised(str(error))
        link.send(answer)


def _show(lines: IO[str]) -> None:
    """Pass on what the workers say, as what this process says goes to the run's log."""
    with lines:
        for line in lines:
            sys.stdout.write(line)
