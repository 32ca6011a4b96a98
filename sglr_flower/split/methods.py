"""The methods by name: each a composition of the same few primitives.

A method says how the server's learning rate follows from the number of clients, what cut gradient clients receive, how
the server segment is updated, in which order clients train, and what is averaged at the end of a round. A new one is an
entry here, or a `Method` of your own by its import path (``method = "package.module:name"``).

========================  ============================================================================================
SGLR, SLR, SGL, PSL, SFL  Pal et al., "Server-Side Local Gradient Averaging and Learning Rate Acceleration for Scalable
                          Split Learning", arXiv 2112.05929: Algorithm 1, eq. 4-5 (PSL), 9-10 (SFL), 12-16 (SGLR)
SplitFed V1, V2           Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", arXiv 2004.12088
SSL                       Gupta & Raskar, "Distributed learning of deep neural network over multiple agents",
                          arXiv 1810.06060; eq. 1-3 of arXiv 2112.05929
FedAvg                    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
                          arXiv 1602.05629; averaged by Flower's own ``FedAvg`` strategy
========================  ============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.split import splitavg, splitlr

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglr_flower.split.plan import CutGradient, ServerLr
    from sglr_flower.split.server import ServerSegment

    Server = Callable[..., ServerSegment]
    """Makes the server's side, from the arguments of `ServerSegment`; a class of such is one, and its attribute
    ``together`` says whether an update is of all clients' batches."""


@dataclass(frozen=True)
class Built:
    """The server's side by the name of its class, which needs torch and is imported when it is made.

    Attributes
    ----------
    name : str
        In `sglr_flower.split.server`.
    together : bool
        Whether an update is of all clients' batches: what SplitLr's number of clients is.
    """

    name: str
    together: bool

    def __call__(self, *args: Any, **kwargs: Any) -> ServerSegment:
        """A `ServerSegment`, from its arguments."""
        from sglr_flower.split import server

        made: ServerSegment = getattr(server, self.name)(*args, **kwargs)
        return made


joint = Built("ServerSegment", together=True)
"""One step over the concatenated batches of all clients."""
in_turn = Built("ServerInTurn", together=False)
"""One step per client, one after the other in an order drawn for each step."""
copies = Built("ServerCopies", together=False)
"""A server segment for each client, averaged at the end of the round."""
_BY_NAME: dict[str, Server | None] = {"joint": joint, "in-turn": in_turn, "copies": copies, "none": None}


@dataclass(frozen=True)
class Method:
    """One method; the defaults are those of parallel split learning (PSL).

    Attributes
    ----------
    server_lr : ServerLr | None
        The server's rate from (eta_0, clients of the step, ``splitlr-alpha``); None: eta_0.
    cut_gradient : CutGradient | None
        What the active clients (a fraction ``splitavg-phi`` of them) all receive, from the cut gradients of all
        clients, who is active, and ``splitavg-over``; None: nobody is active, everybody receives their own.
    server : Server | None
        How the server learns: `joint`, `in_turn`, `copies`, or what makes a `ServerSegment` of one's own, such as its
        class. None: there is no server segment, clients hold the whole network and train it by themselves. The names
        ``joint``, ``in-turn``, ``copies`` and ``none`` stand for the same.
    sequential : bool
        In a round the clients train one after the other, and each hands its client segment on to the next.
    average : bool
        At the end of a round the participants' client segments are replaced by their average, weighted by their
        numbers of samples (eq. 10).
    pooled : bool
        One client, 0, holds the data of all.
    alpha : float | None
        SplitLr's exponent, in place of ``splitlr-alpha``; None: the run's.
    phi : float | None
        SplitAvg's fraction of active clients, in place of ``splitavg-phi``; None: the run's.
    """

    server_lr: ServerLr | None = None
    cut_gradient: CutGradient | None = None
    server: Server | str | None = joint
    sequential: bool = False
    average: bool = False
    pooled: bool = False
    alpha: float | None = None
    phi: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.server, str):
            if self.server not in _BY_NAME:
                raise UserError(f"Method.server = {self.server!r}: it must be one of {', '.join(_BY_NAME)}, or a class")
            object.__setattr__(self, "server", _BY_NAME[self.server])
        elif self.server is not None and not callable(self.server):
            raise UserError(f"Method.server must make a server's side, which a {type(self.server).__name__} cannot")

    @property
    def makes_server(self) -> Server | None:
        """``server``, as it is once its name has been looked up."""
        assert not isinstance(self.server, str)
        return self.server

    @property
    def whole(self) -> bool:
        """Whether the network is not cut."""
        return self.server is None

    @property
    def one_network(self) -> bool:
        """Whether all clients end with the same network."""
        return self.shares_segment or self.pooled

    @property
    def shares_segment(self) -> bool:
        """Whether between rounds all clients have the same client segment, which the server then knows."""
        return self.average or self.sequential


METHODS = {
    "sglr": Method(server_lr=splitlr.server_lr, cut_gradient=splitavg.average),
    "slr": Method(server_lr=splitlr.server_lr),
    "sgl": Method(cut_gradient=splitavg.average),
    "psl": Method(),
    "sfl": Method(average=True),
    "sfl-v1": Method(server=copies, average=True),
    "sfl-v2": Method(server=in_turn, average=True),
    "ssl": Method(sequential=True),
    "fedavg": Method(server=None, average=True),
    "centralized": Method(server=None, pooled=True),
}


def sglr(alpha: float = 0.5, phi: float = 0.5) -> Method:
    """SGLR: SplitLr and SplitAvg together.

    Parameters
    ----------
    alpha : float
        The server's learning rate is ``eta_0 * C**alpha``, in [0, 2].
    phi : float
        Fraction of a step's clients whose cut gradients are averaged, in [0, 1].

    Examples
    --------
    >>> sglr(alpha=1.0).alpha
    1.0
    """
    return _with(METHODS["sglr"], alpha, phi)


def slr(alpha: float = 0.5) -> Method:
    """SplitLr only; ``alpha`` as of `sglr`."""
    return _with(METHODS["slr"], alpha, None)


def sgl(phi: float = 0.5) -> Method:
    """SplitAvg only; ``phi`` as of `sglr`."""
    return _with(METHODS["sgl"], None, phi)


def _with(method: Method, alpha: float | None, phi: float | None) -> Method:
    for name, value, most in (("alpha", alpha, 2), ("phi", phi, 1)):
        if value is not None and not 0 <= value <= most:
            raise UserError(f"{name} = {value!r}: it must be a number from 0 to {most}")
    return replace(method, alpha=alpha, phi=phi)


def get(name: str) -> Method:
    """Look a method up by its name, or by the import path of one's own.

    Raises
    ------
    UserError
        If it is unknown; the sentence lists the known ones.
    """
    if imports.is_path(name):
        own = imports.load(name, "method")
        if not isinstance(own, Method):
            raise UserError(f"run-config key method = {name!r}: it must be a sglr_flower.methods.Method, not {own!r}")
        return own
    if name not in METHODS:
        raise imports.unknown("method", name, METHODS)
    return METHODS[name]
