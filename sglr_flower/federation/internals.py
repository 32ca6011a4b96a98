"""What is used of Flower and Ray without their promise: names that no public module exports, and words of their output.

Flower's public API is what ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and ``flwr.simulation`` export; it is
imported where it is used. All else is here, so that one test (`tests/federation/test_internals.py`) finds what a
release has renamed or worded anew, before a user does. Names are imported when they are asked for, as Flower takes half
a second to import.
"""

from __future__ import annotations

from collections.abc import Callable

FINISHED = "finished"
"""How the status of a run that has ended begins (``flwr ls --format json``)."""

COMPLETED = "finished:completed"
"""The status of a run that ended well."""

STARTED = "Successfully started run "
"""What ``flwr run`` says before the id of the run."""

DETAILS = "Simulation failed with exception: "
"""What a simulation puts before the text of the exception that ended it."""

WRAPPERS = ("An error was encountered. Ending simulation.", "Simulation Runtime crashed.")
"""Texts of the exceptions that Flower raises in place of the one that matters, which stands earlier in the log."""

CLIENT_RAISED = "Exception ClientAppException occurred. Message: "
"""What stands before the text of an exception of a ClientApp, in the reason of the error that a node replies with."""

CONNECTED = "SuperNode ID: "
"""What a SuperNode says when a SuperLink has taken it."""

UNKNOWN_KEY = "Failed to activate SuperNode"
"""What it says when its key is not taken."""

ENDED = "SuperNode terminated gracefully"
"""All that it says when its signature, which holds the time, is refused: Flower then interrupts its own process."""

DEAF = "SSL/TLS handshake error detected"
"""What it says when its connection broke in a handshake; it does not try again, and yet goes on."""

REGISTERED = '"success": true'
"""What ``flwr supernode register --format json`` prints when a key was registered."""

KEY_KNOWN = "already in use"
"""What it prints when the key was registered before; there is no error code for it."""

RAY_LATE = ("The current node timed out during startup", "Timed out waiting for file ")
"""How Ray says that its node, or a service that it waits for, was not there within the 30 s that it gives itself."""

RAY_BACKEND = "flwr.server.superlink.fleet.vce.backend.raybackend"
"""The module from which a simulation, once it starts, takes its class ``RayBackend``, the pool of nodes' processes."""

HEALTH, FLEET, CONTROL, RUNTIME = "/health", "/v1/fleet/", "/v1/control/", "/v1/runtime/"
"""The paths of a SuperLink's APIs: whether it is up, for nodes, for whoever starts runs, for a run's own processes."""


def box(said: str) -> str:
    """The text in the last of the boxes in which ``flwr`` shows an error, its lines as they are; empty without one."""
    inside = said.rpartition("╭")[2].partition("╮")[2].partition("╰")[0]
    return "\n".join(line.strip("│ ") for line in inside.strip().splitlines())


def node_unavailable() -> int:
    """The code of the error with which Flower answers for a node that it has no sign of life of."""
    from flwr.common.constant import ErrorCode

    return ErrorCode.NODE_UNAVAILABLE


def default_connections() -> str:
    """The ``config.toml`` that ``flwr`` writes where there is none."""
    from flwr.cli.constant import DEFAULT_FLOWER_CONFIG_TOML

    return DEFAULT_FLOWER_CONFIG_TOML


def client_exceptions() -> tuple[type[Exception], type[Exception]]:
    """What a backend raises where a ClientApp raised, and where it could not be loaded."""
    from flwr.clientapp.client_app import ClientAppException, LoadClientAppError

    return ClientAppException, LoadClientAppError


def superlink() -> Callable[[], None]:
    """The command ``flower-superlink``, which reads ``sys.argv`` and serves by a call of `uvicorn.run`."""
    from flwr.superlink.cli import flower_superlink

    return flower_superlink
