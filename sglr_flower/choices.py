"""Names and limits that the command line offers, without what they stand for: that may need torch."""

from __future__ import annotations

MODELS = ("resnet16", "alexnet", "resnet18", "vit", "mlp")
"""The networks of `sglr_flower.models`."""
DATASETS = (
    "digits",
    "fashion-mnist",
    "mnist",
    "cifar-10",
    "cifar-100",
    "svhn",
    "stl-10",
    "folder",
    "breast-cancer",
    "wine",
    "diabetes",
)
"""What `data.datasets` can load."""
LOSSES = ("cross-entropy", "binary-cross-entropy", "mse", "l1", "bce-with-logits")
"""What `split.loss` has."""
OPTIMIZERS = ("adam", "adamw", "sgd")
"""What `split.optimizers` has."""
SPLITS = ("test", "validation")
"""Images that a run has not trained on."""
EXPERIMENTS = (
    *("table1", "table2", "table3", "table4", "table5", "fig2", "fig3", "fig4"),
    *("methods", "initial", "cycles", "codecs", "defences", "privacy"),
)
"""What `paper.experiments` trains."""
CALCULATIONS = ("table6", "fig5")
"""What `paper.command` calculates."""
SCALES = ("smoke", "small", "tiny", "short", "full")
"""Names of `paper.scales`."""
KNOWS = ("client", "others")
"""Whose segment gives the smashed data that a decoder is trained on: the attacked client's, or the others'."""
ON = ("train", "test")
"""Which images are attacked: the client's training images, or the test images."""
LEAST_AUXILIARY = 16
"""Images without which no decoder can be trained."""
BENCHMARKS = ("step", "exchange", "scale", "start", "gpu")
"""Modules of ``benchmarks`` that measure ratios, in the order in which all are run."""
NODES = 2
"""Nodes of a simulation, if not said otherwise."""
PORT = 9092
"""Of a federation's SuperLink."""
STREAM_PORT = 9093
"""Of a federation's streams."""
