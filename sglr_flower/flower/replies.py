"""What nodes reply with is read and checked as a whole before anything of it is used: values, states, averages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from sglr_flower.exchange.frames import few
from sglr_flower.flower.protocol import (
    ARRAYS,
    METRICS,
    AssignAnswer,
    Done,
    EvaluateMetrics,
    LocalMetrics,
    ProtocolError,
    TrainMetrics,
)
from sglr_flower.flower.staterecords import unpack_states
from sglr_flower.split.finite import all_finite
from sglr_flower.split.plan import RoundPlan

_OPTIMIZER = re.compile(r"optimizer\.\d+\.[A-Za-z_]\w*(\.(bool|int|float))?")


@dataclass(frozen=True)
class Trained:
    """A node's reply to the last message of a training round.

    Attributes
    ----------
    metrics : TrainMetrics
        `LocalMetrics` where it trained by itself.
    message : Message
        The reply, which has its clients' average where the method wants one.
    """

    metrics: TrainMetrics
    message: Message


def assigned(content: RecordDict, clients: Sequence[int], versions: Sequence[int], columns: int) -> AssignAnswer:
    """What a node says of the ``clients`` that it was given, whose states are of ``versions`` at most.

    Where it has data of its own it has to say how many of each of so many classes (``columns``; 0: it has none).

    Raises
    ------
    ProtocolError
        If it is not that.
    """
    answer = AssignAnswer.from_content(content)
    for key, found in (("sizes", answer.sizes), ("versions", answer.versions)):
        if len(found) != len(clients):
            raise answer.wrong(f"{key} = {few(found)}: it should have {len(clients)} item(s), one for each client")
    if any(found > newest for found, newest in zip(answer.versions, versions, strict=True)):
        raise answer.wrong(f"versions = {few(answer.versions)}: it should have at most {few(versions)}")
    if answer.held is not None and len(answer.held) != 2:
        raise answer.wrong(f"held = {few(answer.held)}: it should have 2 item(s), for validation and test")
    if columns:
        counts = answer.counts or ()
        if len(counts) != len(clients) * columns:
            raise answer.wrong(f"counts = {few(counts)}: it should have {len(clients) * columns} item(s)")
        if tuple(map(sum, answer.by_client())) != answer.sizes:
            raise answer.wrong(f"counts = {few(counts)}: they should add up to {few(answer.sizes)}")
    return answer


def evaluated(content: RecordDict, clients: Sequence[int]) -> EvaluateMetrics:
    """What a node says at the end of an evaluation of its ``clients``.

    Raises
    ------
    ProtocolError
        If it is not that.
    """
    Done.from_content(content)
    metrics = EvaluateMetrics.from_content(content)
    if metrics.num_clients != len(clients):
        raise metrics.wrong(f"num-clients = {metrics.num_clients}: it should be {len(clients)}")
    return metrics


class SegmentCheck:
    """Whether replies with tensors are those of a client segment.

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

    def trained(self, reply: Message, plan: RoundPlan, sizes: Mapping[int, int], *, whole: bool) -> Trained:
        """Read a node's last reply of a training round.

        Parameters
        ----------
        reply : Message
            The reply.
        plan : RoundPlan
            The round, or the turn of it.
        sizes : Mapping[int, int]
            Client -> train samples, of those that trained there.
        whole : bool
            Whether it trained whole networks by itself.

        Raises
        ------
        ProtocolError
            If its metrics are not of that round, or there is no average of such segments where there has to be one, or
            one where there has not.
        """
        content, samples = reply.content, sum(sizes.values())
        Done.from_content(content)
        if list(content.metric_records) != [METRICS]:
            raise TrainMetrics.wrong(f"there should be one record {METRICS!r}")
        metrics = (LocalMetrics if whole else TrainMetrics).from_content(self._averaged(content, plan.shares_segment))
        wanted = {"num_clients": len(sizes), "num_examples": samples if plan.shares_segment else 0}
        if whole:
            wanted["local_samples"] = samples * plan.local_epochs
        for field, number in wanted.items():
            if getattr(metrics, field) != number:
                raise metrics.wrong(f"{field.replace('_', '-')} = {getattr(metrics, field)}: it should be {number}")
        return Trained(metrics, reply)

    def states(self, content: RecordDict, clients: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """The states in a reply to ``query.collect``: those of ``clients`` that have trained.

        Raises
        ------
        ProtocolError
            If they are of other clients, or not of such a segment and its optimizer.
        """
        Done.from_content(content)
        states = unpack_states(content)
        if not states.keys() <= set(clients):
            raise ProtocolError(f"states of the clients {few(list(states))}, not of {few(clients)}")
        for client, state in states.items():
            segment = {n.removeprefix("segment."): t for n, t in state.items() if n.startswith("segment.")}
            self._check(f"client {client}'s segment", segment)
            others = {name: tensor for name, tensor in state.items() if not name.startswith("segment.")}
            if not all(_OPTIMIZER.fullmatch(name) for name in others) or not _finite(others):
                raise ProtocolError(f"client {client}'s optimizer state is not one, or not finite")
        return states

    def _averaged(self, content: RecordDict, wanted: bool) -> RecordDict:
        """The content, if it has an average of such segments where one is wanted, and none where none is."""
        if list(content.array_records) != ([ARRAYS] if wanted else []):
            raise ProtocolError(f"{'no' if wanted else 'an'} average of its clients' segments")
        if wanted:
            self._check("the average", tensors_of(content))
        return content

    def _check(self, what: str, segment: Mapping[str, Tensor]) -> None:
        if {name: (tensor.shape, tensor.dtype) for name, tensor in segment.items()} != self._kinds:
            raise ProtocolError(f"{what} does not have the weights of this run's model")
        if not _finite(segment):
            raise ProtocolError(f"{what} is not finite: the training may be diverging (a smaller client-lr)")


def tensors_of(content: RecordDict) -> dict[str, Tensor]:
    """The segment in a message.

    Raises
    ------
    ProtocolError
        If there is none, or it cannot be read.
    """
    if ARRAYS not in content.array_records:
        raise ProtocolError(f"there is no segment in a record {ARRAYS!r}")
    try:
        return dict(content.array_records[ARRAYS].to_torch_state_dict())
    except Exception as error:  # whatever its bytes do to NumPy's reader
        raise ProtocolError(f"a segment that cannot be read ({type(error).__name__})") from None


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(all_finite(tensor) for tensor in tensors.values() if torch.is_floating_point(tensor))
