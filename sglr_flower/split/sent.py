"""What was sent, in bytes, apart by what it is: the one way in which messages, links, rounds and runs are counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Sent:
    """Bytes that went between nodes and server; adds up.

    Table 6 of arXiv 2112.05929 counts ``smashed``, ``unicast``, ``broadcast`` and the segments
    (`sglr_flower.studies.costs.communication` has its formulas); labels and framing come on top.

    Attributes
    ----------
    smashed : int
        Up: smashed data.
    labels : int
        Up: their labels.
    unicast : int
        Down: clients' own cut gradients.
    broadcast : int
        Down: SplitAvg's average, once for every node and step in which one of its clients is active. Were there one
        transmission that all nodes hear, it would be once a step.
    segments_up, segments_down : int
        Weights and buffers that a method averages or hands on: once for a node, which sends its clients' mean and
        gives all of them what it receives.
    framing_up, framing_down : int
        What the exchange's frames, and the records that carry segments, have besides the tensors' own bytes: names,
        shapes, numbers. What lies below that (Flower's messages, gRPC, TLS, TCP) is not counted. 0 in one process.
    """

    smashed: int = 0
    labels: int = 0
    unicast: int = 0
    broadcast: int = 0
    segments_up: int = 0
    segments_down: int = 0
    framing_up: int = 0
    framing_down: int = 0

    @property
    def up(self) -> int:
        """All that nodes sent."""
        return self.smashed + self.labels + self.segments_up + self.framing_up

    @property
    def down(self) -> int:
        """All that nodes were sent."""
        return self.unicast + self.broadcast + self.segments_down + self.framing_down

    def __add__(self, other: Sent) -> Sent:
        return Sent(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Sent)))


def total(parts: Iterable[Sent]) -> Sent:
    """The sum of any number of them."""
    return sum(parts, Sent())


KINDS = {
    "smashed data": ("smashed",),
    "labels": ("labels",),
    "own gradients": ("unicast",),
    "averages": ("broadcast",),
    "segments up": ("segments_up",),
    "segments down": ("segments_down",),
    "framing": ("framing_up", "framing_down"),
}
"""What a person is shown -> the counters of `Sent` that it adds up."""
