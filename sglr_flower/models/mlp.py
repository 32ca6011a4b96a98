"""A small network for tables: what shows that nothing here needs to be an image."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sglr_flower.data.inputs import Inputs
from sglr_flower.errors import UserError

_WIDTH = 64


def mlp(inputs: Inputs) -> nn.Sequential:
    """Two hidden layers of 64 units with ReLU for inputs (n, features); outputs (n, inputs.outputs).

    Raises
    ------
    UserError
        If the inputs are not rows of numbers.
    """
    if not inputs.single or len(inputs.shape) != 1 or inputs.parts[0][2] is not None:
        raise UserError(
            f"run-config key model = 'mlp': it is made for tables, rows of numbers, and the data set has "
            f"{inputs.words()}"
        )
    return nn.Sequential(
        OrderedDict(
            layer1=nn.Sequential(nn.Linear(inputs.shape[0], _WIDTH), nn.ReLU()),
            layer2=nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()),
            head=nn.Linear(_WIDTH, inputs.outputs),
        )
    )
