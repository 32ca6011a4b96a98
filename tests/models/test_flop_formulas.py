"""Operations of single operators, by hand; two for a multiply-add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.data.inputs import rgb
from sglr_flower.models.compute import segment_flops
from sglr_flower.models.formulas import FORMULAS

aten = torch.ops.aten


class Twice(nn.Module):
    """A layer behind another one: its input's gradient is needed, as it is not where the input is the images."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(self.scale * x)
        return found if isinstance(found, Tensor) else found[0]


def test_a_depthwise_layer_within_a_segment() -> None:
    segment = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32))
    pointwise = 2 * 3 * 32 * 16 * 16
    depthwise = 2 * 9 * 32 * 16 * 16  # each of the 32 channels sees itself alone
    assert segment_flops(segment, rgb(16)) == (pointwise + depthwise, pointwise + 2 * depthwise)


@pytest.mark.parametrize(
    ("layer", "forward"),
    [
        # Weight: 6 output channels x (3 / 3) input channels x 3 x 3, at 8 x 8 places.
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 2 * 6 * 1 * 9 * 8 * 8),
        # Kernel 3 x 5, stride 2 x 1, no padding: at 3 x 4 places.
        (nn.Conv2d(3, 6, (3, 5), stride=(2, 1)), 2 * 6 * 3 * 15 * 3 * 4),
        # The same with groups, and the kernel's rows dilated to 5 of 8: at 2 x 4 places.
        (nn.Conv2d(3, 6, (3, 5), stride=(2, 1), dilation=(2, 1), groups=3), 2 * 6 * 1 * 15 * 2 * 4),
        # Transposed: every weight at every place of the input, whatever becomes of the output's size.
        (nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1), 2 * 3 * 6 * 9 * 8 * 8),
        (nn.ConvTranspose2d(3, 6, (2, 5), stride=(3, 1), groups=3), 2 * 3 * 2 * 10 * 8 * 8),
    ],
    ids=["grouped", "asymmetrical", "asymmetrical-dilated-grouped", "transposed", "transposed-grouped"],
)
def test_a_convolution(layer: nn.Module, forward: int) -> None:
    assert segment_flops(nn.Sequential(layer), rgb(8)) == (forward, forward)  # of the weights alone
    assert segment_flops(nn.Sequential(Twice(layer)), rgb(8)) == (forward, 2 * forward)


def test_a_grouped_convolution_is_as_much_as_one_for_each_group() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(1, 4, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([part(channel) for part, channel in zip(self.parts, x.split(1, dim=1), strict=True)], 1)

    assert segment_flops(nn.Sequential(nn.Conv2d(3, 12, 3, groups=3)), rgb(8)) == segment_flops(
        nn.Sequential(Split()), rgb(8)
    )


class Attention(nn.Module):
    """Of the 3 x size tokens of width size that an image's rows are, to themselves or to the first ``keys`` of them."""

    def __init__(self, keys: int, value_width: int, masked: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.keys, self.value_width, self.masked = keys, value_width, masked

    def forward(self, x: Tensor) -> Tensor:
        query = (self.scale * x).flatten(1, 2)[:, None]
        key = query[:, :, : self.keys]
        mask = torch.zeros(query.shape[2], self.keys) if self.masked else None
        return F.scaled_dot_product_attention(query, key, key[..., : self.value_width], attn_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_to_fewer_keys_than_queries(masked: bool) -> None:
    scores = 2 * 24 * 5 * 8  # 24 queries, 5 keys, width 8; scores times values are as many
    assert segment_flops(nn.Sequential(Attention(5, 8, masked)), rgb(8)) == (2 * scores, 5 * scores)


def test_attention_with_narrower_values_is_not_fused_and_keeps_its_scores() -> None:
    scores, mixed = 2 * 24 * 5 * 8, 2 * 24 * 5 * 6
    assert segment_flops(nn.Sequential(Attention(5, 6)), rgb(8)) == (scores + mixed, 2 * (scores + mixed))


def test_dropout_of_the_scores_is_not_fused_on_the_cpu_and_keeps_them() -> None:
    class Attended(nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, dropout=dropout, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(1, 2)  # 48 tokens of width 16
            found: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return found

    projected, scores = 2 * 48 * 4 * 16**2, 2 * 48**2 * 16
    # Nobody needs the gradient of the tokens, which are the images: of the projections the weights' alone, of the last
    # one its input's too, a fourth of all of them.
    backward = projected + projected // 4
    assert segment_flops(nn.Sequential(Attended(0.0)), rgb(16)) == (projected + 2 * scores, backward + 5 * scores)
    assert segment_flops(nn.Sequential(Attended(0.1)), rgb(16)) == (projected + 2 * scores, backward + 4 * scores)


BACKENDS = ["flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"]


@pytest.mark.parametrize("backend", [*BACKENDS, "fused_attention_overrideable"])
def test_every_backend_of_attention_counts_the_same(backend: str) -> None:
    forward = FORMULAS[getattr(aten, f"_scaled_dot_product_{backend}")]
    backward = FORMULAS[getattr(aten, f"_scaled_dot_product_{backend}_backward")]
    query, key, value = torch.zeros(2, 6, 10, 8), torch.zeros(2, 6, 7, 8), torch.zeros(2, 6, 7, 4)
    scores, mixed = 2 * (2 * 6) * 10 * 7 * 8, 2 * (2 * 6) * 10 * 7 * 4
    assert forward(query, key, value, 0.0, False, scale=None, out_val=None) == scores + mixed
    # Scores twice: once more as they were not kept. Both gradients of each product.
    gradient = torch.zeros(2, 6, 10, 4)
    assert backward(gradient, query, key, value, gradient, 0.0, False, out_val=None) == 3 * scores + 2 * mixed
    grouped = torch.zeros(2, 3, 7, 8)  # each of 3 heads of keys and values serves 2 of the queries'
    assert forward(query, grouped, grouped, out_val=None) == 2 * scores


def test_no_backend_of_attention_is_missing() -> None:
    """A new one would count as none."""
    names = {name.removeprefix("aten::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    fused = {name for name in names if name.startswith("_scaled_dot_product_") and "_math" not in name}
    assert fused == {str(operator).removeprefix("aten.") for operator in FORMULAS if "_scaled_dot" in str(operator)}


def test_an_lstm_layer() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.lstm(x.flatten(1, 2))[0]  # 24 rows of 8 pixels
            return found

    # Four gates, two directions; the second layer's inputs are both directions' outputs.
    forward = 2 * 24 * 2 * 4 * 5 * ((8 + 5) + (10 + 5))
    assert segment_flops(nn.Sequential(Rows()), rgb(8)) == (forward, 2 * forward)


def test_a_matrix_times_a_vector() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight  # (n, 3, 8, 8) by (8,)

    assert segment_flops(nn.Sequential(Pooled()), rgb(8)) == (2 * 3 * 8 * 8, 2 * 3 * 8 * 8)
    assert FORMULAS[aten.addmv](torch.ones(3), torch.ones(3, 4), torch.ones(4), beta=1, alpha=1, out_val=None) == 24
    assert FORMULAS[aten.dot](torch.ones(4), torch.ones(4), out_val=None) == 8
