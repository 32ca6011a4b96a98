"""What crosses the cut in one exchange, as values: one `Upload` per node, one `Download` back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sglr_flower.split.sent import Sent


@dataclass(frozen=True)
class Upload:
    """A node's smashed data for one step: the batches of its whole cohort, concatenated in client order.

    Attributes
    ----------
    server_round, step : int
        Which step this is; rounds from 1, steps from 0.
    split : str
        ``train``, or in an evaluation the images it comes from: ``validation`` or ``test``.
    clients : tuple[int, ...]
        The node's clients that have a batch in this step, ascending.
    sizes : tuple[int, ...]
        Samples of each of them.
    smashed : Tensor
        (sum of sizes, *cut shape), in the model's dtype.
    labels : Tensor
        int64 (sum of sizes,).
    last : bool
        The node has no further step in this round.
    """

    server_round: int
    step: int
    split: str
    clients: tuple[int, ...]
    sizes: tuple[int, ...]
    smashed: Tensor
    labels: Tensor
    last: bool

    @property
    def payload(self) -> Sent:
        """Bytes of its smashed data and labels."""
        return Sent(smashed=self.smashed.nbytes, labels=self.labels.nbytes)

    def without_data(self) -> Upload:
        """The same with shapes in place of tensors (torch's device ``meta``): what its answer is checked against."""
        return replace(self, smashed=self.smashed.to("meta"), labels=self.labels.to("meta"))


@dataclass(frozen=True)
class Download:
    """The server's answer to one `Upload`: the cut gradients of the node's clients.

    Attributes
    ----------
    server_round, step : int
        As in the upload it answers.
    active : tuple[int, ...]
        This node's active clients; they all receive ``average``.
    average : Tensor | None
        (positions, *cut shape): SplitAvg's average, once for the node however many of its clients are active; None if
        none is. One row if it is averaged over samples too.
    own : Tensor | None
        The other clients' own cut gradients, concatenated in client order; None if there are none (and in answer to
        an evaluation's upload).
    """

    server_round: int
    step: int
    active: tuple[int, ...] = ()
    average: Tensor | None = None
    own: Tensor | None = None

    @property
    def payload(self) -> Sent:
        """Bytes of its cut gradients."""
        return Sent(unicast=_nbytes(self.own), broadcast=_nbytes(self.average))


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
