"""The optimizers of both sides, and their state as flat named tensors.

Ours are torch's own update rules in their functional form: `torch.optim`'s classes import its compiler with their first
step, which is a second and 150 MB in every node's process, and cost a third of a millisecond per client and step
besides. Any other class of torch's or one's own is in `split.optimizer_classes`.
"""

from sglr_flower.split.optimizers.adam import Adam, StackedAdam
from sglr_flower.split.optimizers.optimizer import Functional, Optimizer, OptimizerFactory, Slots
from sglr_flower.split.optimizers.sgd import Sgd
from sglr_flower.split.optimizers.standard import ADAM, SGD, WEIGHT_DECAY, StandardOptimizer
from sglr_flower.split.optimizers.state import flat_state, load_flat_state, segment_weights

__all__ = [
    "ADAM",
    "SGD",
    "WEIGHT_DECAY",
    "Adam",
    "Functional",
    "Optimizer",
    "OptimizerFactory",
    "Sgd",
    "Slots",
    "StackedAdam",
    "StandardOptimizer",
    "flat_state",
    "load_flat_state",
    "segment_weights",
]
