"""A codec of one's own: smashed data travel as their signs and one size for each sample, an eighth of int8's bytes.

python examples/own_codec.py
sglr run --in-process -s wire-up=own_codec:signs        (in this folder)
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import sglr_flower as sglr
from sglr_flower.split.codecs import Codec, Coded


class Signs(Codec):
    """Each value as a bit, and the mean magnitude of a sample's values."""

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """A byte for eight values, and one number."""
        return {"values": ((-(-math.prod(shape) // 8),), torch.int8), "size": ((1,), dtype)}

    def encode(self, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
        """Pack (n, *shape)."""
        bits = (tensor.flatten(1) > 0).to(torch.uint8)
        bits = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
        packed = (bits * (2 ** torch.arange(8, device=bits.device)).to(bits)).sum(2, dtype=torch.uint8)
        return Coded(packed.view(torch.int8), {"size": tensor.flatten(1).abs().mean(1, keepdim=True)})

    def decode(self, coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Unpack to (n, *shape)."""
        packed = coded.values.view(torch.uint8).unsqueeze(2)
        bits = packed >> torch.arange(8, device=packed.device).to(packed) & 1
        values = bits.flatten(1)[:, : math.prod(shape)].to(dtype) * 2 - 1
        return (values * coded.aside["size"].to(dtype)).unflatten(1, shape)


signs = Signs()

if __name__ == "__main__":
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(700, 8, generator=draw)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    for codec in (None, signs):
        given = {} if codec is None else {"wire_up": codec}
        run = sglr.SplitLearning(
            lower=lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh()),
            upper=lambda: nn.Linear(64, 2),
            clients=[(x[k:500:5], y[k:500:5]) for k in range(5)],
            **given,
        )
        sent = sum(done.bytes_up for done in run.rounds(10))
        print(
            f"{'signs' if codec else 'none'}: {sent:,} bytes up, accuracy {run.evaluate((x[500:], y[500:])).score:.3f}"
        )
