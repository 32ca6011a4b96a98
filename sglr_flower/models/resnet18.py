"""ResNet-18 (He et al., arXiv 1512.03385): torchvision's, regrouped into stages."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_CIFAR_STEM_UP_TO = 64  # pixels


def resnet18(num_classes: int, image_size: int) -> nn.Sequential:
    """ResNet-18 for inputs (n, 3, image_size, image_size); logits (n, num_classes).

    Above 64 pixels it is the same function as torchvision's. Up to 64 pixels it has the usual stem for CIFAR, one 3x3
    convolution of stride 1 and no max-pool: the 7x7 convolution of stride 2 with its pool would leave 8x8 of 32x32
    pixels for the first block and 1x1 for the last. Cut after ``layer1`` with that stem it has 149,824 parameters
    below and 11,024,138 above (10 classes), and 64 x image_size x image_size activations per sample at the cut.
    """
    # Here, because importing torchvision takes a second that a run of another model need not wait.
    from torchvision import models

    network = models.resnet18(weights=None, num_classes=num_classes)
    if image_size <= _CIFAR_STEM_UP_TO:
        conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision draws the others
        stem = nn.Sequential(conv, network.bn1, network.relu)
    else:
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            layer1=network.layer1,
            layer2=network.layer2,
            layer3=network.layer3,
            layer4=network.layer4,
            head=nn.Sequential(network.avgpool, nn.Flatten(), network.fc),
        )
    )
