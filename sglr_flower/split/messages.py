"""What crosses the cut in one exchange, as values: one `Upload` per node, one `Download` back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from sglr_flower.data import samples
from sglr_flower.data.samples import Tensors, each
from sglr_flower.split.codecs import Form
from sglr_flower.split.sent import Sent


@dataclass(frozen=True)
class Upload:
    """A node's smashed data for one step: the batches of its whole cohort, concatenated in client order.

    Attributes
    ----------
    server_round, step : int
        Which step this is; rounds from 1, steps from 0.
    split : str
        ``train``, or in an evaluation the samples it comes from: ``validation`` or ``test``.
    clients : tuple[int, ...]
        The node's clients that have a batch in this step, ascending.
    sizes : tuple[int, ...]
        Samples of each of them.
    smashed : Tensor
        (sum of sizes, *cut shape), in the model's dtype; with a codec `codecs.Coded.values`.
    labels : Tensors
        The targets (sum of sizes, ...): of classes int64 (sum of sizes,); several by name where the source has such.
    last : bool
        The node has no further step in this round.
    aside : Mapping[str, Tensor]
        `codecs.Coded.aside` of the smashed data, as ``smashed.NAME``; empty without a codec.
    answer : Form | None
        Of what the cut gradients in the answer have to be; does not travel. None: as the smashed data.
    """

    server_round: int
    step: int
    split: str
    clients: tuple[int, ...]
    sizes: tuple[int, ...]
    smashed: Tensor
    labels: Tensors
    last: bool
    aside: Mapping[str, Tensor] = field(default_factory=dict)
    answer: Form | None = None

    @property
    def payload(self) -> Sent:
        """Bytes of its smashed data and labels."""
        return Sent(smashed=_nbytes("smashed", self.smashed, self.aside), labels=samples.nbytes(self.labels))

    def without_data(self) -> Upload:
        """The same with shapes in place of tensors (torch's device ``meta``): what its answer is checked against."""
        labels = each(lambda own: own.to("meta"), self.labels)
        return replace(self, smashed=self.smashed.to("meta"), labels=labels, aside={})


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
    aside : Mapping[str, Tensor]
        With a codec ``average`` and ``own`` are `codecs.Coded.values`, and here is the rest of them, as
        ``average.NAME`` and ``own.NAME``.
    """

    server_round: int
    step: int
    active: tuple[int, ...] = ()
    average: Tensor | None = None
    own: Tensor | None = None
    aside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def payload(self) -> Sent:
        """Bytes of its cut gradients."""
        return Sent(
            unicast=_nbytes("own", self.own, self.aside), broadcast=_nbytes("average", self.average, self.aside)
        )


def _nbytes(name: str, tensor: Tensor | None, aside: Mapping[str, Tensor]) -> int:
    """A tensor and what goes with it; the shape that a codec sends along is framing."""
    if tensor is None:
        return 0
    return tensor.nbytes + sum(
        part.nbytes for key, part in aside.items() if key.startswith(f"{name}.") and key != f"{name}.shape"
    )
