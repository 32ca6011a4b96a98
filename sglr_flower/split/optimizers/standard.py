"""Those of this package by their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from sglr_flower.split.optimizers.adam import Adam, StackedAdam
from sglr_flower.split.optimizers.optimizer import Functional, Optimizer, OptimizerFactory
from sglr_flower.split.optimizers.sgd import Sgd


@dataclass(frozen=True)
class StandardOptimizer(OptimizerFactory):
    """Adam, AdamW and SGD as torch's classes of these names have them, and for many clients at once.

    Attributes
    ----------
    name : str
        ``adam``, ``adamw`` or ``sgd``.
    momentum : float
        Of ``sgd``.
    weight_decay : float
        As of `Adam` and `Sgd`.
    """

    name: str
    momentum: float = 0.0
    weight_decay: float = 0.0

    stackable = True

    def __call__(self, parameters: Iterable[Tensor]) -> Optimizer:
        """One for these parameters, without a state yet."""
        if self.name == "sgd":
            return Sgd(parameters, momentum=self.momentum, weight_decay=self.weight_decay)
        return Adam(parameters, weight_decay=self.weight_decay, decoupled=self.name == "adamw")

    def stacked(self, parameters: Iterable[Tensor], *, alike: bool = False) -> Functional:
        """As of `OptimizerFactory`."""
        if self.name == "sgd":
            return Sgd(parameters, momentum=self.momentum, weight_decay=self.weight_decay)
        decoupled = self.name == "adamw"
        return StackedAdam(parameters, alike=alike, weight_decay=self.weight_decay, decoupled=decoupled)


ADAM = StandardOptimizer("adam")
SGD = StandardOptimizer("sgd")
WEIGHT_DECAY = {"adam": 0.0, "adamw": 0.01, "sgd": 0.0}
"""Ours -> torch's default of their weight decay."""
