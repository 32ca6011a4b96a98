"""What nodes reply with is checked before it is used: their clients' states, and averages of client segments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from flwr.app import Message
from torch import Tensor

from sglr_flower.exchange.checks import all_finite
from sglr_flower.exchange.frames import FrameError
from sglr_flower.flower.node import ARRAYS
from sglr_flower.flower.staterecords import STATES, unpack_states

_OPTIMIZER = re.compile(r"optimizer\.\d+\.[A-Za-z_]\w*(\.(bool|int|float))?")


class SegmentCheck:
    """Whether tensors are those of a client segment.

    Parameters
    ----------
    segment : Mapping[str, Tensor]
        The ``state_dict`` of one.
    """

    def __init__(self, segment: Mapping[str, Tensor]) -> None:
        self._kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in segment.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one segment."""
        return sum(shape.numel() * dtype.itemsize for shape, dtype in self._kinds.values())

    def states(self, reply: Message, clients: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """The states in a reply to ``query.collect``: those of ``clients`` that have trained.

        Raises
        ------
        FrameError
            If they are of other clients, or not of such a segment and its optimizer.
        """
        if STATES not in reply.content.config_records:
            return {}
        try:
            states = unpack_states(reply.content)
        except Exception as error:  # whatever its bytes do to the parser
            raise FrameError(f"its clients' states cannot be read ({type(error).__name__})") from None
        if not states.keys() <= set(clients):
            raise FrameError(f"states of the clients {list(states)}, not of {list(clients)}")
        for client, state in states.items():
            segment = {n.removeprefix("segment."): t for n, t in state.items() if n.startswith("segment.")}
            self._check(f"client {client}'s segment", segment)
            others = {name: tensor for name, tensor in state.items() if not name.startswith("segment.")}
            if not all(_OPTIMIZER.fullmatch(name) for name in others) or not _finite(others):
                raise FrameError(f"client {client}'s optimizer state is not one, or not finite")
        return states

    def average(self, reply: Message, samples: int) -> None:
        """Check a node's average of its clients' segments, made of ``samples`` images.

        Raises
        ------
        FrameError
            If there is none, or it is not one of such segments.
        """
        if list(reply.content.array_records) != [ARRAYS] or len(reply.content.metric_records) != 1:
            raise FrameError("no average of its clients' segments")
        counted = next(iter(reply.content.metric_records.values())).get("num-examples")
        if counted != samples:
            raise FrameError(f"an average over {counted} images, not {samples}")
        try:
            average = reply.content.array_records[ARRAYS].to_torch_state_dict()
        except Exception as error:
            raise FrameError(f"an average that cannot be read ({type(error).__name__})") from None
        self._check("the average", dict(average))

    def _check(self, what: str, segment: Mapping[str, Tensor]) -> None:
        if {name: (tensor.shape, tensor.dtype) for name, tensor in segment.items()} != self._kinds:
            raise FrameError(f"{what} does not have the weights of this run's model")
        if not _finite(segment):
            raise FrameError(f"{what} is not finite: the training may be diverging (a smaller client-lr)")


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(all_finite(tensor) for tensor in tensors.values() if torch.is_floating_point(tensor))
