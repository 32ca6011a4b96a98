"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929): torchvision's, regrouped into stages."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sglr_flower.errors import UserError

_PATCH, _BLOCKS, _HEADS, _WIDTH, _DROPOUT = 4, 6, 4, 128, 0.1


class Embedding(nn.Module):
    """Patches as tokens, the class token before them, and where each is.

    Parameters
    ----------
    patches : nn.Conv2d
        From an image to its patches' embeddings: kernel and stride are the patch.
    class_token : nn.Parameter
        (1, 1, width).
    position : nn.Parameter
        (1, 1 + patches, width).
    dropout : nn.Module
        Of the tokens.
    """

    def __init__(
        self, patches: nn.Conv2d, class_token: nn.Parameter, position: nn.Parameter, dropout: nn.Module
    ) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = class_token
        self.position = position
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, image_size, image_size) to tokens (n, 1 + patches, width)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        dropped: Tensor = self.dropout(tokens + self.position)
        return dropped


class ClassToken(nn.Module):
    """The first token of each sample, which is what is classified."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, tokens, width) to (n, width)."""
        return x[:, 0]


def vit(num_classes: int, image_size: int) -> nn.Sequential:
    """A vision transformer for inputs (n, 3, image_size, image_size); logits (n, num_classes).

    Patches of 4x4 pixels, 6 blocks of width 128 with 4 heads, an MLP four times as wide, dropout 0.1: 1.2 million
    parameters. Stages ``embedding``, ``block1`` to ``block6``, ``head``. Cut after ``block2`` it has 411,264 parameters
    below and 794,634 above (10 classes, 32 pixels), and 65 x 128 activations per sample at the cut.

    Raises
    ------
    UserError
        If the images cannot be divided into patches.
    """
    # Here, because importing torchvision takes a second that a run of another model need not wait.
    from torchvision.models import VisionTransformer

    if image_size < _PATCH or image_size % _PATCH:
        raise UserError(
            f"run-config key model = 'vit': it needs images whose sides are a multiple of {_PATCH} pixels, "
            f"the data set's are {image_size} x {image_size}"
        )
    network = VisionTransformer(
        image_size, _PATCH, _BLOCKS, _HEADS, _WIDTH, 4 * _WIDTH, dropout=_DROPOUT, num_classes=num_classes
    )
    # torchvision's head starts at zero, for fine-tuning: the cut gradients of the first step would all be zero.
    network.heads.head.reset_parameters()
    encoder = network.encoder
    embedding = Embedding(network.conv_proj, network.class_token, encoder.pos_embedding, encoder.dropout)
    blocks = {f"block{number}": block for number, block in enumerate(encoder.layers, start=1)}
    head = nn.Sequential(encoder.ln, ClassToken(), network.heads.head)
    return nn.Sequential(OrderedDict(embedding=embedding, **blocks, head=head))
