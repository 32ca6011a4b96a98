"""AlexNet for small images: the network of Table 4 of arXiv 2112.05929, as far as the paper says what it is.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, in the form for CIFAR of
Yang's pytorch-classification (https://github.com/bearpaw/pytorch-classification, ``models/cifar/alexnet.py``): the
convolutions are those of torchvision's AlexNet (the first with more padding), pooling is 2x2, and one linear layer
follows instead of three.

The paper only says that the client segment is one convolution and one max-pool, and that a client computes
0.031 / 0.588 PFLOPs = 0.053 of the whole. Of the forms in common use, training on one sample as counted by
`sglr_flower.models.compute` (client to whole), and float32 sizes:

======================================================  ======  ========  ======
form                                                    ratio   cut       whole
======================================================  ======  ========  ======
this one, 32 pixels                                     0.0685  0.004 MB  10 MB
torchvision's, 224 pixels                               0.0682  0.187 MB  228 MB
96 filters 5x5, 2x2 pools, three linear, 32 pixels      0.0125  0.098 MB  149 MB
64 filters 3x3 / 2, 2x2 pools, three linear, 32 pixels  0.0047  0.016 MB  93 MB
======================================================  ======  ========  ======

This form comes closest for small images, at 1.30 times the paper's ratio; why it is not nearer cannot be told, as the
paper names neither its AlexNet's sizes nor what it counts (the third form's whole, 2.36 GFLOPs, times 5,000 images and
250 epochs is the paper's 2.944 PFLOPs to 1 %, its ratio is not). The sizes of the paper's worked example for Table 6
(0.024 MB at the cut, 200 MB in all, 67 MB at a client) fit no AlexNet cut after its first convolution: that leaves far
less than a third of the weights with the client.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sglr_flower.errors import UserError

_SMALLEST = 13  # a stride of 4 and two 2x2 pools leave nothing of less


def alexnet(num_classes: int, image_size: int) -> nn.Sequential:
    """AlexNet for inputs (n, 3, image_size, image_size); logits (n, num_classes).

    Cut after ``conv1`` it has 23,296 parameters below and 2,448,970 above (10 classes), and 64 x 4 x 4 activations per
    sample at the cut for 32 pixels.

    Raises
    ------
    UserError
        If the images are smaller than 13 pixels.
    """
    if image_size < _SMALLEST:
        raise UserError(
            f"run-config key model = 'alexnet': it needs images of at least {_SMALLEST} x {_SMALLEST} pixels, "
            f"the data set's are {image_size} x {image_size}"
        )
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=5), nn.ReLU(), nn.MaxPool2d(2)),
            conv2=nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            conv3=nn.Sequential(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            conv4=nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            # For 32 pixels the 2x2 pool of the form for CIFAR; the 1x1 left of smaller images has no 2x2 to pool.
            conv5=nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
            head=nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes)),
        )
    )
