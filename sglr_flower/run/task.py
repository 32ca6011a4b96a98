"""A task of one's own: network, data, loss and score, named once in a module and run by Flower and on devices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.errors import UserError
from sglr_flower.split.loss import Loss

if TYPE_CHECKING:
    from sglr_flower.data.inputs import Inputs


@dataclass(frozen=True)
class Task:
    """What is learned.

    As a variable of a module it is run by ``task = "package.module:name"``: by `sglr run`, by ``flwr run``, and on
    devices; each of its parts then takes the place of a run-config key (``model``, ``dataset``, ``loss``, ``score``).

    Attributes
    ----------
    lower : Callable[[], nn.Module]
        Makes a client segment, from a batch of inputs to smashed data (n, *cut shape).
    upper : Callable[[], nn.Module]
        Makes the server segment, from smashed data to outputs.
    data : Callable[..., Any]
        Gives the data, as a function that is named by ``dataset = "package.module:function"``: it takes no parameter,
        or ``data_dir`` and ``seed``, and returns (train, test), or a dict of ``train`` or ``clients`` and ``test``. On
        a device with ``partition = "own"`` it is called there.
    loss : Callable[[Tensor, Tensor], Tensor]
        (outputs, targets) -> a scalar, the mean over the samples.
    score : Callable[[Tensor, Tensor], Tensor] | None
        (outputs, targets) -> a number for each sample, (n,); None: the one of the data's target type.

    Examples
    --------
    >>> from torch import nn
    >>> import sglr_flower as sglr
    >>> def flowers():
    ...     from sklearn.datasets import load_iris
    ...     x, y = load_iris(return_X_y=True)
    ...     return (x[::2], y[::2]), (x[1::2], y[1::2])
    >>> task = sglr.Task(
    ...     lower=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU()),
    ...     upper=lambda: nn.Linear(16, 3),
    ...     data=flowers,
    ... )
    """

    lower: Callable[[], nn.Module]
    upper: Callable[[], nn.Module]
    data: Callable[..., Any]
    loss: Loss = F.cross_entropy
    score: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "data"):
            part = getattr(self, name)
            if isinstance(part, nn.Module) or not callable(part):
                raise UserError(f"Task: its {name} must be a function, not a {type(part).__name__}")

    def model(self, inputs: Inputs) -> nn.Sequential:
        """The whole network, cut between its two stages ``lower`` and ``upper``."""
        return nn.Sequential(OrderedDict(lower=self.lower(), upper=self.upper()))

    model.cut = "lower"  # type: ignore[attr-defined]  # where `models.get` looks for it
