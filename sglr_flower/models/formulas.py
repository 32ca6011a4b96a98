"""How many floating-point operations an operator of PyTorch takes: its own formulas, with ours where they lack or err.

What torch 2.7 to 2.15 count otherwise depends on the version and on the device. Attention on the CPU is 0 before 2.15
(``_scaled_dot_product_flash_attention_for_cpu``, which is what the CPU computes it by); so is that of the backends of
other devices, LSTM layers on the CPU, and a matrix times a vector. The gradient of a grouped convolution's weights is
counted as if every output channel saw every input channel. A formula here holds for all versions of the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

Formula = Callable[..., int]
"""From an operator's own arguments, and its result as ``out_val``, to operations: two for a multiply-add."""

_aten = torch.ops.aten


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """The scores, query times key, and the scores times the values; masks, causal ones too, skip nothing.

    Tensors (n, heads, tokens, width); keys and values may have fewer heads, each then serves several of the query's.
    """
    width, value_width = key.shape[-1], value.shape[-1]
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (width + value_width)


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """The scores once more, as fused attention does not keep them; the gradients of the two products' factors."""
    width, value_width = key.shape[-1], value.shape[-1]
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (3 * width + 2 * value_width)


def _convolution_backward(
    out_gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    _bias_sizes: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """As many for the images' gradient, and for the weights', as forward: each has the same products, summed otherwise.

    A weight meets every output position of every image once, in a transposed convolution every input position. Padding
    is not left out, nor is it in PyTorch's formula of the forward.
    """
    positions = (images if transposed else out_gradient).shape[2:]
    return sum(output_mask[:2]) * 2 * len(images) * prod(positions) * weight.numel()


def _matrix_vector(matrix: Tensor, _: Tensor, **__: Any) -> int:
    return 2 * matrix.numel()


def _added_matrix_vector(_: Tensor, matrix: Tensor, __: Tensor, **___: Any) -> int:
    return 2 * matrix.numel()


def _lstm_layer(sequence: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    """The four gates' two matrix products at each place of a (length, n, features) sequence, in one direction."""
    return 2 * prod(sequence.shape[:-1]) * (input_weight.numel() + hidden_weight.numel())


def _lstm_layer_backward(sequence: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    """Both factors' gradients of each product; of the sequence too, whether it is needed or not."""
    return 2 * _lstm_layer(sequence, input_weight, hidden_weight)


_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""Scaled dot-product attention as the backends fuse it; each has its ``_backward``. Where none fits (on the CPU with
dropout of the scores, say), PyTorch computes it by matrix products, which are counted as they are."""

FORMULAS: dict[Any, Formula] = {
    **flop_registry,
    **{getattr(_aten, name): _attention for name in _ATTENTION},
    **{getattr(_aten, f"{name}_backward"): _attention_backward for name in _ATTENTION},
    _aten.convolution_backward: _convolution_backward,
    _aten.mv: _matrix_vector,
    _aten.addmv: _added_matrix_vector,
    _aten.dot: _matrix_vector,
    _aten.mkldnn_rnn_layer: _lstm_layer,
    _aten.mkldnn_rnn_layer_backward: _lstm_layer_backward,
}
"""Operator -> its formula; what is not here counts as none."""
