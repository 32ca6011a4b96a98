"""What training moves between clients and server: Table 6 of arXiv 2112.05929 as functions.

Payload only: smashed data, cut gradients and segments; labels and what frames a message come on top of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sglr_flower.split.methods import Method

Average = Literal["clients", "clients-and-samples", "once"]
"""What SplitAvg broadcasts: one client's batch of gradients in each step, one sample's in each step, or, as Table 6
counts, one sample's in the whole epoch."""


@dataclass(frozen=True)
class Sizes:
    """What Table 6 names.

    Attributes
    ----------
    clients : int
        |C|.
    samples : int
        |D|: training samples of all clients together.
    batch_size : int
        Samples of a client in a step.
    cut : float
        S(L): bytes of one sample's smashed data as they travel, and of its cut gradient.
    client_segment : float
        S(w_c): bytes of a client segment's weights and buffers.
    network : float
        S(w): bytes of the whole network's.
    cut_down : float | None
        Bytes of one sample's cut gradient where it travels by another codec; None: as smashed data.
    """

    clients: int
    samples: int
    batch_size: int
    cut: float
    client_segment: float
    network: float
    cut_down: float | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch, where all clients have equally many samples."""
        return math.ceil(self.samples / self.clients / self.batch_size)


@dataclass(frozen=True)
class EpochBytes:
    """Bytes of all clients in an epoch, by the names under which a run counts them (`sglr_flower.split.sent.Sent`).

    Attributes
    ----------
    smashed : float
        Up.
    unicast : float
        Down: cut gradients to the clients that they belong to.
    broadcast : float
        Down: averaged cut gradients.
    segments_up, segments_down : float
        Weights, once in a round of one epoch, for every client.
    """

    smashed: float = 0.0
    unicast: float = 0.0
    broadcast: float = 0.0
    segments_up: float = 0.0
    segments_down: float = 0.0

    @property
    def up(self) -> float:
        """All that clients send."""
        return self.smashed + self.segments_up

    @property
    def down(self) -> float:
        """All that the server sends."""
        return self.unicast + self.broadcast + self.segments_down

    @property
    def total(self) -> float:
        """Both ways, as in Table 6."""
        return self.up + self.down


def epoch_bytes(
    method: Method, sizes: Sizes, phi: float = 0.0, average: Average = "clients", copies: float = 1
) -> EpochBytes:
    """Bytes of an epoch in which all clients take part.

    Parameters
    ----------
    method : Method
        Whose parts say what is moved.
    sizes : Sizes
        The network, the cut and the clients.
    phi : float
        Fraction of the clients that receive the average; of no effect where the method has none.
    average : Average
        What the average is.
    copies : float
        How often it travels in a step: once, as in Table 6, where one transmission reaches everybody. This
        implementation sends it to every node that has an active client, over a connection of its own.

    Returns
    -------
    EpochBytes
        FedAvg: 2 |C| S(w) in total. PSL: 2 |D| S(L). SFL: 2 |D| S(L) + 2 |C| S(w_c). SGLR: (2 - phi) |D| S(L) and the
        average, which with ``once`` is Table 6's S(L). Training in one place moves nothing.
    """
    if method.pooled:
        return EpochBytes()
    if method.whole:
        weights = sizes.clients * sizes.network
        return EpochBytes(segments_up=weights, segments_down=weights)
    active = phi if method.cut_gradient else 0.0
    gradient = sizes.cut if sizes.cut_down is None else sizes.cut_down
    # Handed from client to client by way of the server (SSL), or averaged: a segment up and one down for each.
    segments = sizes.clients * sizes.client_segment if method.shares_segment else 0.0
    per_step = {"clients": sizes.batch_size, "clients-and-samples": 1}
    rows = 1 if average == "once" else sizes.steps * per_step[average]
    return EpochBytes(
        smashed=sizes.samples * sizes.cut,
        unicast=(1 - active) * sizes.samples * gradient,
        broadcast=copies * rows * gradient if active else 0.0,
        segments_up=segments,
        segments_down=segments,
    )


def client_down(moved: EpochBytes, clients: int, phi: float) -> float:
    """Bytes that one client receives in an epoch, on the average: an active one receives the average in full.

    ``moved`` counts a broadcast once.
    """
    return (moved.unicast + moved.segments_down) / clients + phi * moved.broadcast
