"""The networks of `benchmarks.start`, which tell of their first step; for every peer the same file.

It lies in a folder of its own beside ``resnet16.py`` of this package and needs nothing else of it, as a peer's own
environment has none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import resnet16 as original
import torch
from torch import Tensor, nn

FIRST_STEP = "SGLR_BENCHMARK_FIRST_STEP"
"""Environment variable with the file that gets the time of the first step, by the clock of `time.monotonic`."""


def resnet16(num_classes: int, image_size: int) -> nn.Sequential:
    """ResNet16 as every run has it."""
    return telling(original.resnet16(num_classes, image_size))


resnet16.cut = "stage2"  # type: ignore[attr-defined]


def moderate_cnn(num_classes: int, image_size: int) -> nn.Sequential:
    """The network of NVFlare's split-learning example, cut where that is cut: six convolutions, three linear layers."""
    stages: list[nn.Module] = []
    inputs = 3
    for pair, widths in enumerate(((32, 64), (128, 128), (256, 256))):
        if pair == 2:
            stages.append(nn.Dropout2d(0.05))
        for outputs in widths:
            stages += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        stages.append(nn.MaxPool2d(2))
    features = inputs * (image_size // 8) ** 2
    low = nn.Sequential(*stages, nn.Flatten())
    head = nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(features, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(512, num_classes),
    )
    return telling(nn.Sequential(OrderedDict(low=low, head=head)))


moderate_cnn.cut = "low"  # type: ignore[attr-defined]


def telling(network: nn.Sequential) -> nn.Sequential:
    """A network that tells of its first step: when its last linear layer has first been changed after a backward."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_hook(_listen)
    return network


def _listen(layer: nn.Linear, _: Any, logits: Tensor) -> None:
    if logits.requires_grad and not Path(os.environ[FIRST_STEP]).exists():
        logits.register_hook(partial(_begin, weakref.ref(layer.weight), layer.weight.detach().clone()))


def _begin(weight: weakref.ref[Tensor], before: Tensor, _: Tensor) -> None:
    # In a thread: the step is made by code that is not ours, and need not be the next thing that happens.
    threading.Thread(target=_tell_once_changed, args=(weight, before), daemon=True).start()


def _tell_once_changed(weight: weakref.ref[Tensor], before: Tensor) -> None:
    file = Path(os.environ[FIRST_STEP])
    while (tensor := weight()) is not None and not file.exists():
        if not torch.equal(tensor, before):  # not its version: torch's fused kernels leave that as it is
            whole = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            whole.write_text(repr(time.monotonic()), encoding="utf-8")
            with contextlib.suppress(FileExistsError):  # another was the first
                os.link(whole, file)
            return
        del tensor
        time.sleep(0.002)
