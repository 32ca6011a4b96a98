"""ResNet16: the network of Tables 1-3 and 5 of arXiv 2112.05929, as in the authors' code.

A CIFAR-style residual network (He et al., arXiv 1512.03385, section 4.2) of basic blocks [2, 2, 3].
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut.

    Parameters
    ----------
    inputs, outputs : int
        Channels in and out.
    stride : int
        Of the first convolution; the shortcut is a 1x1 convolution with batch norm where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        # In place wherever nothing else needs what was there: the same numbers from less memory (docs/performance.md).
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def resnet16(num_classes: int, image_size: int) -> nn.Sequential:
    """ResNet16 for inputs (n, 3, image_size, image_size), the same network for any size; logits (n, num_classes).

    Cut after ``stage2`` it has 42,896 parameters below and 206,346 above (10 classes), and
    32 x image_size/2 x image_size/2 activations per sample at the cut.
    """
    network = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            stage1=_stage(16, 16, blocks=2, stride=1),
            stage2=_stage(16, 32, blocks=2, stride=2),
            stage3=_stage(32, 64, blocks=3, stride=2),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # N(0, 2 / (k * k * out)), as the authors' code draws it
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    return network
